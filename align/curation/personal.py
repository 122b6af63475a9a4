"""Where personal data stands in a text: each kind by its pattern and, where it has one, its sum.

A finder is told how many digits the text has, and yields (start, end, identity) of what it finds,
from left to right; two spellings of one address or number have the same identity. It first looks,
in C, for what the kind cannot be without: nearly all texts end there.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from itertools import groupby, pairwise

Found = tuple[int, int, str]
"""Start and end in the text, and what is the same for two spellings of the same thing."""

_W = "A-Za-z0-9_À-ӿ"
"""What goes on in a word: Latin, Greek and Cyrillic. Chinese, Japanese and Thai have no blanks."""

_NO_DIGIT = bytes(set(range(256)) - set(b"0123456789"))


def digits(text: str) -> str:
    """The digits of a text; several times as fast as a pattern that looks for the first one."""
    return text.encode(errors="ignore").translate(None, _NO_DIGIT).decode()


# -- e-mail --------------------------------------------------------------------------------------

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9À-ӿ.%+-])([A-Za-z0-9À-ӿ][A-Za-z0-9À-ӿ._%+'-]{0,63})"
    r"(@|\s?[\[(]at[\])]\s?)"
    r"((?:[A-Za-z0-9À-ӿ-]{1,63}(?:\.|\s?[\[(]dot[\])]\s?)){1,8}[A-Za-zЀ-ӿ]{2,24})"
    r"(?![A-Za-z0-9À-ӿ@]|[_-]{1,3}[A-Za-z0-9À-ӿ])",  # _in@italics.org_ are two marks more
    re.IGNORECASE,
)
_RESERVED = re.compile(
    r"(?:.*\.)?(?:example(?:\.(?:com|net|org))?|invalid|localhost|test)"
    r"|.*\.(?:png|jpe?g|gif|svg|webp|css|js)"  # icon@2x.png
)
"""Domains that belong to nobody (RFC 2606), and names of files."""


def emails(text: str, known: int) -> Iterator[Found]:
    """E-mail addresses, also with [at] and (dot); not those at domains that belong to nobody."""
    if "@" not in text:
        low = text.lower() if ")" in text or "]" in text else ""
        if "at)" not in low and "at]" not in low:
            return
    for match in _EMAIL.finditer(text):
        domain = re.sub(r"\s?[\[(]dot[\])]\s?", ".", match[3].lower())
        if not _RESERVED.fullmatch(domain) and match[1] != "git":  # git@github.com:owner/name
            yield match.start(), match.end(), f"{match[1].lower()}@{domain}"


# -- telephone -----------------------------------------------------------------------------------

_PHONE = re.compile(
    rf"(?<![{_W}.+$€£/-])"
    r"""(?:
      (?:\+?1[ .-]?)?(?:\([2-9]\d\d\)\s?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}    # (212) 555-1234
    | (?<![0-9],)(?:
        \+\d{1,3}(?:[ .-]?\(\d{1,4}\)|[ .-]?\d{1,5})(?:[ .-]?\d{2,5}){1,4}   # +49 30 901820
      | 00[1-9]\d?[ ]\d{1,4}(?:[ ]\d{3,5}){2,3}                             # 0044 20 7946 0958
      | 0[1-9](?:[ .-]\d\d){4}                                               # 06 12 34 56 78
      | 0\d{2,4}[ ]\d{3,4}[ ]\d{3,4}                                         # 020 7946 0958
      | 0[2-9]\d{1,3}[/-]\d{5,8} | 01\d{2,3}[/-]\d{6,8}                      # 0171/2345678
      )(?!,\d)
    )"""
    rf"(?![{_W}%+/^=]|\*[{_W}(]|[-.]\d)",
    re.VERBOSE | re.ASCII,
)
_CALLED = re.compile(
    rf"(?<![{_W}.])(?:(?:tele)?(?:phone|fax|mobile|whatsapp)(?![{_W}])|tel(?=[.:])"
    rf"|cell(?=\W{{1,4}}(?:phone|number|no|is|at|whatsapp)(?![{_W}])|\W?:))"  # others are biology's
    r"(?:[ \t:：.'’\"“(){}#-]|\*\*"  # what is set in bold, but no sum
    rf"|(?:number|no|nr|is|at|or|phone|fax|mobile|cell|whatsapp|home|work)(?![{_W}])){{0,12}}?"
    r"((?:\+|\((?=\+?\d{1,4}\)))?\+?\d(?:[ ()./-]{0,2}\d){6,14})"
    rf"(?![{_W}%]|[-.,]\d|\s?[=\[\]<]|\s?\*(?!\*))",
    re.IGNORECASE | re.ASCII,
)
"""A number that is called one may have any form; but a phone's screen or price is no number."""

_TOLL_FREE = re.compile(r"1?(?:8(?:00|33|44|55|66|77|88)|900)\d{7}")
"""Hotlines and the like: nobody's own, and an answer may be of no use without it."""

_AMOUNT = re.compile(
    r"\+(?:[0-9]{1,3}(?:(?:[ .][0-9]{3})*[ .]000|(?:[ .][0-9]{3}){1,2})|1(?:[ .][0-9]{3}){3})"
)
"""Thousands: a number in threes that is too short to be somebody's, or round."""

_BEFORE, _AFTER = re.compile(r"[0-9][ \t,]\Z"), re.compile(r"[ \t,][0-9]")
_NO_PART = re.compile(r"(?:19|20)[0-9]{2}|[0-9]+00")
_YEAR = re.compile(r"\((?:19|20)[0-9]{2}\)")
_DENSE = re.compile(r"[0-9](?:[ ()./-]{0,3}[0-9]){6}")
"""Seven digits in a row. It begins with a set of characters: `re` looks for those fast."""


def phones(text: str, known: int) -> Iterator[Found]:
    """Telephone numbers: international ones, national forms with separators, and what is called so.

    Not toll-free ones, and not numbers of the form of +100 000 000, lists of numbers and sums.
    """
    if known < 7 or not _DENSE.search(text):
        return
    spans = [span for m in _PHONE.finditer(text) if not _listed(text, *(span := m.span()))]
    spans += [m.span(1) for m in _CALLED.finditer(text) if not _reckoned(m[1])]
    end = 0
    for start, stop in sorted(spans):
        number = digits(text[start:stop])
        if start >= end and 7 <= len(number) <= 15 and not _AMOUNT.fullmatch(text, start, stop):
            if not _TOLL_FREE.fullmatch(number):
                yield start, stop, number
            end = stop


def _listed(text: str, start: int, stop: int) -> bool:
    """Whether groups of digits are rather numbers in a row.

    More of them stand beside, or they are binary, round, in equal steps, or drawn: pairs that rise.
    """
    groups = [int(group) for group in re.findall("[0-9]+", text[start:stop])]
    if len(groups) < 3:
        return False
    if text[start] != "0":
        return all(group % 100 == 0 for group in groups[1:])
    return (
        bool(_BEFORE.search(text[max(0, start - 2) : start]) or _AFTER.match(text, stop))
        or set(digits(text[start:stop])) <= {"0", "1"}
        or all(group % 100 == 0 for group in groups[1:])
        or len({after - before for before, after in pairwise(groups)}) == 1
        or (len(groups) == 5 and groups == sorted(groups) and groups[-1] < 50)
    )


def _reckoned(spelled: str) -> bool:
    """Whether what stands behind a name is rather round, years, a date, decimals or a fraction."""
    groups = re.findall("[0-9]+", spelled)
    if spelled.endswith("000") or all(map(_NO_PART.fullmatch, groups)) or _YEAR.search(spelled):
        return True
    short = sum(len(group) < 3 for group in groups)
    return spelled[0] != "+" and (
        2 * short >= len(groups) or ("/" in spelled and groups[0][0] != "0")
    )


# -- addresses of machines -----------------------------------------------------------------------

_V4 = re.compile(rf"[0-9]{{1,3}}\.[0-9]{{1,3}}\.[0-9]{{1,3}}\.[0-9]{{1,3}}(?![{_W}-]|\.[0-9])")
_V6 = re.compile(
    rf"(?<![{_W}.])[23][0-9A-Fa-f]{{3}}:{{1,2}}(?:[0-9A-Fa-f]{{1,4}}:{{1,2}}){{0,6}}"
    rf"[0-9A-Fa-f]{{0,4}}(?![{_W}:])"
)
"""Public IPv6 addresses lie in 2000::/3; `1::2` in a program does not."""

_INSIDE = re.compile(rf"(?:^|[^{_W}])[0-9A-Fa-f]{{0,4}}:\Z")
"""What comes before the middle of an IPv6 address; `ip:` comes before a whole one."""

_OTHERWISE = re.compile(
    rf"(?:[{_W}.-]|[a-z]/|[=<>~!]=\s?|version[\"'>(:=\s]{{1,5}}|(?<![{_W}])(?:version|ver|release"
    r"|section|chapter|appendix|figure|table|build|oid|§|python|java|node|php|ruby|opencv|chrome"
    r"|firefox|safari|windows|linux|kernel|android|ios|macos)(?:\s(?:is|was))?[.:]?\s*)\Z",
    re.IGNORECASE,
)
"""What comes before four numbers that are no address; `a/` as in Chrome/120.0.0.0, `==` as in what
pip installs."""


def addresses(text: str, known: int) -> Iterator[Found]:
    """Public IPv4 and IPv6 addresses; no versions, no sections, none of private networks.

    Nor four single digits: sections have these, and services for all (8.8.8.8), and nobody else.
    """
    if known >= 5 and text.count(".") >= 3:
        for match in _V4.finditer(text):
            before = text[max(0, match.start() - 24) : match.start()]
            if len(match[0]) > 7 and not _OTHERWISE.search(before) and _public(match[0]):
                yield match.start(), match.end(), match[0]
    if known and ("::" in text or text.count(":") >= 7):
        for match in _V6.finditer(text):
            before = text[max(0, match.start() - 6) : match.start()]
            if not _INSIDE.search(before) and _public(match[0]):
                yield match.start(), match.end(), str(ipaddress.ip_address(match[0]))


def _public(spelled: str) -> bool:
    try:
        return ipaddress.ip_address(spelled).is_global
    except ValueError:
        return False


# -- accounts and cards --------------------------------------------------------------------------

_LENGTHS = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
"""Characters of an IBAN, and the countries whose have so many (SWIFT's IBAN registry)."""

_SPELLED = {
    code: re.compile(
        rf"(?<![{_W}])[A-Z](?:[ -]?[A-Z0-9]){{{length - 1}}}(?!-?[{_W}])", re.IGNORECASE | re.ASCII
    )
    for length, codes in _LENGTHS.items()
    for code in codes.split()
}
_IBAN = re.compile(r"[0-9]{2}(?:[ -]?[A-Za-z0-9]){11}")
"""From its first digit on, as digits are rare; two letters must stand before."""


def ibans(text: str, known: int) -> Iterator[Found]:
    """Account numbers of the right length for their country whose remainder by 97 is 1 (ISO 7064).

    In groups, too. In small letters more than half are digits: words could have that sum.
    """
    at = 0
    while known >= 7 and (begun := _IBAN.search(text, at)):
        at = begun.start() + 1
        whole = _SPELLED.get(text[max(0, at - 3) : at - 1].upper())
        if whole and (match := whole.match(text, at - 3)):
            number = re.sub("[ -]", "", match[0])
            plain = number.isupper() or 2 * len(digits(number)) > len(number)
            if plain and _remainder(number) == 1:
                at = match.end()
                yield match.start(), match.end(), number.upper()


def _remainder(number: str) -> int:
    return int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97


_CARD = re.compile(
    rf"(?<![{_W}.$€£-])(?<![0-9],)[0-9]{{4}}(?:[ -]?[0-9]){{8,14}}[0-9](?![{_W}%]|[-.][0-9])"
)
_ISSUER = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}"  # Amex, Diners, JCB
    r"|6(?:011|4[4-9]\d|5\d\d)\d{12}|62\d{14,17}"  # Discover, UnionPay
)
"""What numbers of issuers begin with, and how long they are (ISO/IEC 7812)."""


def cards(text: str, known: int) -> Iterator[Found]:
    """Numbers of payment cards: an issuer's, of its length, with the right check digit (Luhn)."""
    if known < 13 or not _DENSE.search(text):
        return
    for match in _CARD.finditer(text):
        number = digits(match[0])
        if _ISSUER.fullmatch(number) and _evenly(match[0]) and luhn(number):
            yield match.start(), match.end(), number


def _evenly(spelled: str) -> bool:
    """Whether a card's number is written as cards are: in one, or in fours, 4-6-5 or 4-6-4."""
    groups = [len(list(run)) for digit, run in groupby(spelled, str.isdigit) if digit]
    fours = all(size == 4 for size in groups[:-1]) and groups[-1] <= 4
    return len(groups) == 1 or fours or groups in ([4, 6, 5], [4, 6, 4])


def luhn(number: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    twice = [int(digit) * 2 for digit in number[-2::-2]]
    return (sum(map(int, number[-1::-2])) + sum(n // 10 + n % 10 for n in twice)) % 10 == 0

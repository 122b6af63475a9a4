r"""What an answer ends in: its number or its letter, where it says which, else the last one.

An answer says which in `\boxed{…}`, after `####` (GSM8K's form), or in words: "The answer is …".
Of several the last counts, so that a second thought does.
"""

from __future__ import annotations

import math
import re

_PHRASE = r"\banswer\b(?:\s+\w+){0,3}?\s*(?::|=|\b(?:is|was|be|equals)\b:?)"
"""How an answer is announced in words."""

# -- numbers -------------------------------------------------------------------------------------

_PLAIN = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(
    # no index, exponent or part of a word (x_1, cm^2, CO2), and no minus that stands between two
    rf"(?<![A-Za-z_^\d])(?<!\d\.)(?:(?<![\w)\]])(-))?"
    rf"(?:(\d+)\s+(?={_PLAIN}\s*/))?({_PLAIN})(?:\s*/\s*({_PLAIN}))?"
)
_ANSWERED = re.compile(
    rf"{_PHRASE}[\s*_$€£(\\]*(?:(?:about|approximately|exactly|[a-z]\s*=)\s*)?"
    r"(?=-?[$€£]?\.?\d)(?=((?:[^\n.]|\.(?=\d)){0,200}))",
    re.IGNORECASE,
)
"""It comes at once: "Answer: she has 3, and …" is only the beginning of one."""


def number(text: str) -> float | None:
    r"""The number an answer gives: `$1,000.00`, `-5`, `50%`, `3/4`, `1 1/2`, `\boxed{\frac{3}{4}}`.

    Signs of money and of percent say nothing, units neither. None where there is no number.
    """
    text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r" \1/\2", text)
    text = re.sub(r"[-−]\s?\\?[$€£]?(?=[\d.])", "-", text).replace("{,}", ",").replace("\\,", "")
    for marked in (boxed(text), _hashed(text, r"-?[$€£]?(?!\d+[.)]\s)\.?\d")):
        if marked is not None and (found := _numbers(marked)):
            return found[-1]
    for said in reversed(_ANSWERED.findall(text)):
        beginning = said.partition("(")[0]
        if "=" not in beginning and (found := _numbers(beginning)):
            return found[0]
    found = _numbers(text)
    return found[-1] if found else None


def _numbers(text: str) -> list[float]:
    values = []
    for minus, whole, above, below in _NUMBER.findall(text):
        bottom = _value(below) if below else 1.0
        value = _value(whole or "0") + _value(above) / bottom if bottom else math.inf
        if math.isfinite(value):
            values.append(-value if minus else value)
    return values


def _value(digits: str) -> float:
    return float(digits.replace(",", ""))


def boxed(text: str) -> str | None:
    r"""What is in the last `\boxed{…}` that ends; None where none does."""
    open_: list[re.Match[str]] = []
    found = None
    for brace in re.finditer(r"\\boxed\{|[{}]", text):
        if brace.group() != "}":
            open_.append(brace)
        elif open_ and (begin := open_.pop()).group() != "{":
            found = text[begin.end() : brace.start()]
    return found


def _hashed(text: str, begin: str) -> str | None:
    """What follows the last `####` with this beginning: others are headings of Markdown."""
    found = re.findall(rf"####\s*({begin}.*)", text)
    return found[-1] if found else None


# -- letters -------------------------------------------------------------------------------------

_MARKUP = re.compile(r"[*_`$\"“”{}]|\\(?:boxed|text\w*|mathrm|mathbf)\b")
_LETTER = r"(?<![A-Za-z])(?<![A-Za-z]['’])([A-J])(?![A-Za-z]|['’][A-Za-z])"
_NO_WORD = r"(?!(?<=[AI])\s+(?!(?:and|as|because|for|is|since|which|with)\b)[a-z])"
"""Not the article in `A cell`, nor the pronoun in `I think`."""

_NOT_WRONG = r"(?!\)?\s+(?i:is|are)\s+(?i:wrong|incorrect|false|not\s+(?:correct|right))\b)"

_SMALL = r"\(([a-j])\)|([a-j])(?=\s*(?:[).,;\n]|$))"
_CHOICE = r"\b(?:choose|chose|pick|select|go with|option|choice)\b(?:\s+(?:is|option|choice))?"
_SAID = re.compile(
    rf"(?i:{_PHRASE}|{_CHOICE}|^A:)\s*(?i:the\s+)?(?i:option|choice|letter)?\s*"
    rf"(?:\(?{_LETTER}{_NO_WORD}{_NOT_WRONG}|{_SMALL})"
    rf"|(?!I\b){_LETTER}\)?\s+is\s+(?:the\s+)?(?:correct|right|best|true|answer)\b",
    re.MULTILINE,
)
_LISTED = re.compile(rf"^[^\S\n]*\(?{_LETTER}{_NOT_WRONG}(?:[).:,]|\s*$)", re.MULTILINE)
_ALONE = re.compile(_LETTER + _NO_WORD + _NOT_WRONG)


def letter(text: str) -> str | None:
    r"""The option an answer chooses, A to J: `(B)`, `**B**`, `B) because A …`, `\boxed{\text{B}}`.

    Where nothing says which, it is the one option a line begins with, else the last of them.
    """
    for marked in (boxed(text), _hashed(text, r"\(?[A-J]\)?(?=\W*$)")):
        if marked is not None and (found := _ALONE.findall(_MARKUP.sub("", marked))):
            return str(found[-1])
    plain = _MARKUP.sub("", text)
    if choices := _SAID.findall(plain):
        return "".join(choices[-1]).upper()
    found = list(set(_LISTED.findall(plain)))
    if len(found) != 1:
        found = _ALONE.findall(plain)
    return str(found[-1]) if found else None

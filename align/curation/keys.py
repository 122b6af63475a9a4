"""Where keys, tokens and passwords stand in a text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from align import credentials

_ASSIGNED = re.compile(
    r"(?:key|token|secret|passw(?:or)?d)[\"']?\s{0,3}[:=]\s{0,3}[\"']?([A-Za-z0-9+/_-]{16,}={0,2})"
    r"|passw(?:or)?d[\"']?\s{0,3}[:=]\s{0,3}[\"']([!#-&(-~]{12,})[\"']"  # in quotes: any sign
    r"|bearer\s{1,3}([A-Za-z0-9+/._-]{16,}={0,2})",
    re.IGNORECASE,
)
_NAMES = ("key", "token", "secret", "passw", "bearer")

BITS, TURNS = 3.5, 3
"""The least of what is random: bits per character (Shannon, of its own characters; hexadecimal
digits reach 4), and turns from letters to digits or back, of which a name like `version_2_final`
has few."""


def keys(text: str, known: int) -> Iterator[tuple[int, int, str]]:
    """Tokens by their form, private keys, passwords in addresses, and random values with a name.

    A text without digits (`known` is their number) has no random values.
    """
    found = [(begin, end) for begin, end, _ in credentials.found(text)]
    if known >= TURNS // 2 + 1 and ("=" in text or ":" in text):
        low = text.lower()
        if any(name in low for name in _NAMES):
            for match in _ASSIGNED.finditer(text):
                assert match.lastindex is not None
                if _random(match[match.lastindex]):
                    found.append(match.span(match.lastindex))
    at = 0
    for begin, end in sorted(found, key=lambda span: (span[0], -span[1])):
        begin = max(begin, at)  # a token is often assigned: it is found twice
        if begin < end:
            yield begin, end, text[begin:end]
            at = end


def _random(value: str) -> bool:
    shares = [n / len(value) for n in Counter(value).values()]
    turns = sum(a.isdigit() != b.isdigit() for a, b in pairwise(value))
    return turns >= TURNS and -sum(p * math.log2(p) for p in shares) >= BITS

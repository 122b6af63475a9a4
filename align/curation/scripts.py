"""Scripts that put no space between words, and characters that are not seen."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

SPACELESS = (
    *((0x3005, 0x3007), (0x3040, 0x312F), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)),
)
"""The first and the last code points of kana, ideographs; Thai, Lao, Myanmar, Khmer. Korean has
spaces."""

_UNSEEN = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0001-\U000e007f]"
)
"""Characters that say how others are shown (of Unicode's Cf)."""


def apart(text: str) -> list[str]:
    """What stands between white space; of a script without it every letter."""
    if text.isascii() or not _letter().search(text):
        return text.split()
    letter = _letter().pattern
    return re.findall(rf"{letter}[^\w\s]*|(?:(?!{letter})\S)+", text)


def plain(text: str) -> str:
    """A text small, in NFC, without characters that are not seen."""
    return _UNSEEN.sub("", unicodedata.normalize("NFC", text.lower()))


@cache
def _letter() -> re.Pattern[str]:
    """A letter that is a word."""
    parts: list[list[int]] = []
    for first, last in SPACELESS:
        for code in range(first, last + 1):
            if not chr(code).isalnum() or chr(code).isdecimal():
                continue
            if parts and parts[-1][1] == code - 1:
                parts[-1][1] = code
            else:
                parts.append([code, code])
    return re.compile(f"[{''.join(f'{chr(first)}-{chr(last)}' for first, last in parts)}]")

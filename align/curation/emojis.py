"""Emojis and exclamation marks in a text: how many there are, and the text with fewer."""

from __future__ import annotations

import re
from collections import Counter

from align.curation.texts import beside_code

_PICTURE = (
    r"[\u231a\u231b\u23e9-\u23ec\u23f0\u23f3\u25fd\u25fe\u2614\u2615\u2648-\u2653\u267f\u2693\u26a1"
    r"\u26aa\u26ab\u26bd\u26be\u26c4\u26c5\u26ce\u26d4\u26ea\u26f2\u26f3\u26f5\u26fa\u26fd\u270a"
    r"\u270b\u2728\u27b0\u27bf\u2b1b\u2b1c\u2b50\u2b55\U0001f004\U0001f0cf\U0001f18e"
    r"\U0001f191-\U0001f19a\U0001f201-\U0001f251\U0001f300-\U0001faff]"
    r"|[\U0001f1e6-\U0001f1ff]{1,2}|[\u2190-\u32ff](?=\ufe0f)"
)
"""Characters drawn as pictures (Emoji_Presentation in Unicode's emoji-data), flags, and signs that
a variation selector makes a picture. Ticks, crosses, question and plus signs are none: tables say
something with them."""

_EMOJI = (
    rf"(?:{_PICTURE})[\ufe0f\U0001f3fb-\U0001f3ff]*"
    rf"(?:\u200d(?:{_PICTURE}|[\u2640\u2642\u2695\u2696\u2708])\ufe0f?)*"
)
_ANY = re.compile(_EMOJI)
_WITH_SPACE = re.compile(rf"(?m:^)(?:{_EMOJI})[ ]?|[ ]?(?:{_EMOJI})")


def count(text: str) -> int:
    """The emojis of a text; a family, a flag or a hand of some colour is one."""
    return 0 if text.isascii() else len(_ANY.findall(text))


def fewer(text: str, emojis: int, exclamations: int, counts: Counter[str]) -> str:
    """A text without the emojis after the first ones, and with so many exclamation marks in a row.

    Code stays as it is, and so does a text that would have nothing left. What was taken out is
    added to `counts`: `emojis`, `exclamations`.
    """
    if "!!" not in text and count(text) <= emojis:
        return text
    left, found = emojis, Counter[str]()

    def emoji(match: re.Match[str]) -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            return match[0]
        found["emojis"] += 1
        return ""

    def marks(match: re.Match[str]) -> str:
        if len(match[0]) <= exclamations:
            return match[0]
        found["exclamations"] += len(match[0]) - exclamations
        return match[0][:exclamations]

    def part(prose: str) -> str:
        return re.sub("!+", marks, _WITH_SPACE.sub(emoji, prose))

    new = beside_code(text, part)
    if not new.strip():
        return text
    counts.update(found)
    return new

"""What rules read of a row: its answers; and a number that stands for what it holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from align.curation import hashes
from align.curation.rules import Row, Said, by_role

ANSWERS = ("assistant", "text")
"""Roles whose texts are learnt from: answers, and documents. What was asked is the user's own."""

_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`)", re.DOTALL)


def answers(said: list[Said]) -> list[str]:
    """The answers among what a row says, or its document."""
    return [text for role, text in said if role in ANSWERS]


def amended(row: Row, change: Callable[[str], str]) -> Row:
    """A row with its answers changed, or its document; what was asked stays as it is."""
    return by_role(row, lambda role, text: change(text) if role in ANSWERS else text)


def beside_code(text: str, change: Callable[[str], str]) -> str:
    """A text changed everywhere but in code."""
    if "`" not in text:
        return change(text)
    parts = _CODE.split(text)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def tie(row: Row) -> int:
    """64 bits that follow from what a row holds: what draws and ties go by.

    Its id is no part of it, which may be its place in a file, and the file's name is none.
    """
    held = {key: value for key, value in row.items() if key not in hashes.NAMES}
    return hashes.number(json.dumps(held, sort_keys=True, ensure_ascii=False))

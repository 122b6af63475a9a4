"""What rules read of a row: its answers; and a number that stands for what it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from align.curation.rules import Row, Said, rewritten, said

ANSWERS = ("assistant", "text")
"""Roles whose texts are learnt from: answers, and documents. What was asked is the user's own."""


def answers(said: list[Said]) -> list[str]:
    """The answers among what a row says, or its document."""
    return [text for role, text in said if role in ANSWERS]


def amended(row: Row, change: Callable[[str], str]) -> Row:
    """A row with its answers changed, or its document; what was asked stays as it is."""
    roles = iter([role for role, _ in said(row)])  # in the order in which texts are rewritten
    return rewritten(row, lambda text: change(text) if next(roles) in ANSWERS else text)


def number(row: Row) -> int:
    """64 bits that follow from all that a row holds: what ties and draws go by, never its place."""
    content = json.dumps(row, sort_keys=True, ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8])

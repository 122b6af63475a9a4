"""Texts of models and data as they may be shown: nothing in them acts, nothing hides."""

from __future__ import annotations

import re

HIDDEN = re.compile(
    r"[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\ud800-\udfff]"
)
"""Control characters, marks of direction, spaces without width, halves of surrogate pairs: they
would move a cursor or colour a terminal, would not be seen, would turn what is, or cannot be
written. As in rows.js."""


def visible(text: str) -> str:
    """The text with a code in place of each such character."""
    return HIDDEN.sub(_code, text)


def _code(hidden: re.Match[str]) -> str:
    code = ord(hidden[0])
    return f"\\x{code:02x}" if code < 256 else f"U+{code:x}"

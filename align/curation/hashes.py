"""What a row says, as numbers: rows that say the same have the same; and what it is worth."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable, Iterator

import xxhash

from align.curation.rules import Row, by_role

NAMES = ("id", "source")
"""Columns that say where a row comes from, and nothing of what it holds."""

dumps = json.JSONEncoder(ensure_ascii=False).encode
_sorted = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode

SAYS = ("text", "prompt", "messages", "chosen", "rejected", "ranked", "also_rejected", "tools")
"""The columns that a row says something with."""

SCORES = ("score", "chosen_score")
"""The columns that tell which of equal rows is the best one."""


def content(row: Row) -> int:
    """64 bits of what it says: texts in NFC, white space as one space; roles, tools, their calls.

    Tools and arguments may be written as JSON, and in any order. Two of a million rows that differ
    have the same in one of 37 million data sets.
    """
    texts: list[str] = []

    def taken(role: str, text: str) -> str:
        text = _normal(text)
        if role == "call":
            return text
        texts.append(text)
        return ""

    says = by_role({key: row[key] for key in SAYS if key in row}, taken)
    line = _sorted({**says, "tools": tools(row)})
    if '"tool_calls"' in line:
        line = _sorted(json.loads(line, object_hook=_read))
    return number("\n".join([line, *texts]))  # no text has a line end any more


def _read(block: Row) -> Row:
    """A call whose arguments are no text."""
    given = block.get("arguments")
    if not isinstance(given, str):
        return block
    try:
        return {**block, "arguments": json.loads(given)}
    except (ValueError, RecursionError):
        return block


def holds(row: Row) -> tuple[int, str]:
    """64 bits of all its columns but the names of itself and its source; and all as JSON."""
    columns = dumps({key: value for key, value in row.items() if key not in NAMES})
    names = "".join(f'"{key}": {dumps(row[key])}, ' for key in NAMES)
    return number(columns), f"{{{names}{columns[1:]}"


def tools(row: Row) -> int:
    """64 bits of the tools it has, in any order; 0: none."""
    having = row.get("tools")
    if not having:
        return 0
    each = json.loads(having) if isinstance(having, str) else having
    return number(dumps(sorted(json.dumps(tool, sort_keys=True) for tool in each)))


def score(row: Row) -> float:
    """What it is worth, where something says so."""
    return next(finite(row, SCORES), -math.inf)


def finite(row: Row, names: Iterable[str]) -> Iterator[float]:
    """The numbers in these columns of a row: one of its own may hold anything."""
    found = (row[name] for name in names if isinstance(row.get(name), (int, float)))
    return filter(math.isfinite, map(float, found))


def number(text: str) -> int:
    """64 bits of a text's hash."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def _normal(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())

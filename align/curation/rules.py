"""What the rules of `curate` have in common: the texts of a row, and why one is removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from align.settings import Dialog, Settings

Row = dict[str, Any]

Said = tuple[str, str]
"""(role, text) of one message; the role of a document's text is "text"."""

_DIALOGS = ("prompt", "messages", "chosen", "rejected")
"""Columns of one dialog."""

_LISTS = ("ranked", "also_rejected")
"""Columns of several dialogs."""


@dataclass(frozen=True)
class Why:
    """Why a row is removed."""

    reason: str
    """Its name in the counts: `dropped.<reason>`."""

    facts: dict[str, Any] = field(default_factory=dict)
    """What was found: the shared words, the row it repeats, the number that is out of bounds."""


class Rule(Settings):
    """A block of `curate` that looks at one row, and at no other."""

    def look(self, said: list[Said]) -> Why | None:
        """Why a row that says this is removed; None: it stays."""
        raise NotImplementedError


def said(row: Row) -> list[Said]:
    """Every text of a row in its normal form, in order."""
    found = [("text", row["text"])] if "text" in row else []
    return found + [
        (message["role"], text)
        for dialog in _dialogs(row)
        for message in dialog
        for text in _texts(message)
    ]


def rewritten(row: Row, change: Callable[[str], str]) -> Row:
    """A row with every text changed; ids, numbers, tools and their calls are as they were."""
    new = dict(row)
    if "text" in row:
        new["text"] = change(row["text"])
    for key in _DIALOGS:
        if key in row:
            new[key] = _changed(row[key], change)
    for key in _LISTS:
        if key in row:
            new[key] = [_changed(dialog, change) for dialog in row[key]]
    return new


def _dialogs(row: Row) -> Iterator[Dialog]:
    for key in _DIALOGS:
        if key in row:
            yield row[key]
    for key in _LISTS:
        yield from row.get(key, ())


def _texts(message: dict[str, Any]) -> Iterator[str]:
    """What a message says; of a message in parts those that are text."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (part["text"] for part in content if part.get("type") == "text")


def _changed(dialog: Dialog, change: Callable[[str], str]) -> Dialog:
    new = []
    for message in dialog:
        content = message.get("content")
        if isinstance(content, str):
            message = {**message, "content": change(content)}
        elif isinstance(content, list):
            parts = [
                {**part, "text": change(part["text"])} if part.get("type") == "text" else part
                for part in content
            ]
            message = {**message, "content": parts}
        new.append(message)
    return new

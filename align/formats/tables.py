"""Dialogs that tables write as JSON, as their cells have no lists."""

from __future__ import annotations

from typing import Any

from align.formats.dialogs import KNOWN, ROLES, Row, is_message, loaded, role_of
from align.sources.files import Cell


def written(row: Row) -> Row:
    """A row with the dialogs that cells of a table hold as JSON; any other row as it is.

    Beside a question that is a text, answers may be JSON that somebody asked for: they are dialogs
    only where they begin with the assistant, or say that question themselves.
    """
    found = {key: said for key, cell in row.items() if (said := _dialog(cell)) is not None}
    if not found:
        return row
    question = next((row[name] for name in ("prompt", "instruction") if name in row), None)
    if isinstance(question, str) and _dialog(question) is None:
        found = {key: said for key, said in found.items() if _answers(said, question)}
    return {**row, **found}


def _dialog(cell: Any) -> list[Row] | None:
    """The messages in a cell, if it holds nothing else."""
    said = loaded(cell) if isinstance(cell, Cell) else None
    is_dialog = isinstance(said, list) and all(is_message(one) and _is_known(one) for one in said)
    return said if said and is_dialog else None


def _is_known(message: Row) -> bool:
    return role_of(message) in (*KNOWN, *ROLES)


def _answers(said: list[Row], question: str) -> bool:
    """Whether a dialog is an answer to a question, or has both."""
    first = role_of(said[0])
    texts = [one.get("content", one.get("value")) for one in said]
    return ROLES.get(first, first) == "assistant" or question in texts

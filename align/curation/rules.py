"""What the rules of `curate` have in common: the texts of a row, and why one is removed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from align.rendering import THOUGHTS
from align.settings import Dialog, Settings

Row = dict[str, Any]

Said = tuple[str, str]
"""(role, text) of one message; the role of a document's text is "text", that of a tool's call
"call"."""

_DIALOGS = ("prompt", "messages", "chosen", "rejected")
"""Columns of one dialog."""

_LISTS = ("ranked", "also_rejected")
"""Columns of several dialogs."""

_BESIDE = "\0"
"""What the names of columns begin with that stand beside a prompt and have a dialog's name."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"(\s*:)?')
"""A string in JSON; with a colon it is a name."""


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
        one for dialog in _dialogs(row) for message in dialog for one in _texts(message)
    ]


def by_role(row: Row, change: Callable[[str, str], str]) -> Row:
    """A row with every text changed by what is made of its role and itself, and the strings that
    tools are called with; ids, numbers, tools and columns beside are as they were.
    """
    new = dict(row)
    if "text" in row:
        new["text"] = change("text", row["text"])
    for key in _DIALOGS:
        if key in row:
            new[key] = _changed(row[key], change)
    for key in _LISTS:
        if key in row:
            new[key] = [_changed(dialog, change) for dialog in row[key]]
    return new


def set_aside(row: Row) -> Row:
    """A row of prompts whose other columns have no dialog's name: they may hold anything."""
    names = {"text", *_DIALOGS, *_LISTS} - {"prompt"}
    return {_BESIDE + key if key in names else key: value for key, value in row.items()}


def put_back(row: Row) -> Row:
    """A row of prompts with the names that its columns came with."""
    return {key.removeprefix(_BESIDE): value for key, value in row.items()}


def in_json(text: str, change: Callable[[str], str]) -> str | None:
    """JSON with its strings changed; names and all else stay as written. None: it is no JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):  # deep, or a number of thousands of digits
        return None

    def changed(found: re.Match[str]) -> str:
        if found[1]:
            return found[0]
        old = json.loads(found[0])
        new = change(old)
        return found[0] if new == old else json.dumps(new, ensure_ascii=False)

    return _STRING.sub(changed, text)


def _dialogs(row: Row) -> Iterator[Dialog]:
    for key in _DIALOGS:
        if key in row:
            yield row[key]
    for key in _LISTS:
        yield from row.get(key, ())


def _texts(message: dict[str, Any]) -> Iterator[Said]:
    """What a message thinks, says and calls; of a message in parts those that are text."""
    role, content = message["role"], message.get("content")
    for key in THOUGHTS:
        if isinstance(message.get(key), str):
            yield role, message[key]
    calls = _calls(message)
    if isinstance(content, str) and (content.strip() or not calls):  # what only calls says nothing
        yield role, content
    elif isinstance(content, list):
        yield from ((role, part["text"]) for part in content if part.get("type") == "text")
    for block in map(_block, calls):
        given = block.get("arguments", "")
        written = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        yield "call", f"{block.get('name', '')} {written}"


def _changed(dialog: Dialog, change: Callable[[str, str], str]) -> Dialog:
    new = []
    for message in dialog:
        role, content = message["role"], message.get("content")
        thought = [key for key in THOUGHTS if isinstance(message.get(key), str)]
        more: dict[str, Any] = {key: change(role, message[key]) for key in thought}
        if isinstance(content, str):
            more["content"] = change(role, content)
        elif isinstance(content, list):
            more["content"] = [
                {**part, "text": change(role, part["text"])} if part.get("type") == "text" else part
                for part in content
            ]
        if calls := _calls(message):
            more["tool_calls"] = [_called(call, change) for call in calls]
        new.append({**message, **more})
    return new


def _calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The tools a message calls; none where that is no list of objects, as no template has it."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return []
    return calls if all(isinstance(_block(call), dict) for call in calls) else []


def _block(call: dict[str, Any]) -> dict[str, Any]:
    """Where a call has its name and its arguments."""
    block: dict[str, Any] = call.get("function", call)
    return block


def _called(call: dict[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    """A call with the strings in its arguments changed; those that are written as JSON stay it."""
    if "function" in call:
        return {**call, "function": _called(call["function"], change)}
    given = call.get("arguments")
    if not isinstance(given, str):
        return {**call, "arguments": _inside(given, change)} if given else call
    new = in_json(given, lambda text: change("call", text))
    return {**call, "arguments": change("call", given) if new is None else new}


def _inside(value: Any, change: Callable[[str, str], str]) -> Any:
    if isinstance(value, str):
        return change("call", value)
    if isinstance(value, dict):
        return {key: _inside(inner, change) for key, inner in value.items()}
    return [_inside(inner, change) for inner in value] if isinstance(value, list) else value

"""Dialogs in the words of chat templates, and which of them nobody should train on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from align.settings import Dialog, Message
from align.sources.files import Cell

Row = dict[str, Any]

ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
}
"""Names of roles in public data, in the words of chat templates."""

CALLS = ("function_call", "tool_call")
"""Roles of LLaMA-Factory and ms-swift whose text is the JSON of a call of a tool."""

MARKS = ("train", "training", "loss")
"""Whether a message is learnt, in the words of axolotl and ms-swift; here it is its `weight`."""

KNOWN = ("system", "developer", "user", "assistant", "tool", "ipython")
"""Roles of chat templates. `ipython` is Llama 3's tool, `developer` the system of gpt-oss."""

STRONGEST = ("significantly", "better")
"""The levels that Llama 3 trains on (arXiv 2407.21783, §4.2.1)."""

HUMAN = "\n\nHuman:"
"""How a dialog that is one text begins in Anthropic's hh-rlhf."""


class Unusable(Exception):
    """A row, or a part of one, that is dropped; the message is its name in the counts."""

    def __init__(self, why: str, **facts: Any) -> None:
        super().__init__(why)
        self.facts = facts
        """What the example in the artifact shows; nothing: the row."""


Made = Iterator[Row | Unusable]
"""What one row of a source becomes: rows in their normal form, and what is dropped of it."""


@dataclass(frozen=True)
class Choice:
    """What a source says about which of its answers are read."""

    strength: tuple[str, ...] | None = None
    """The levels that are read; None: the strongest, and pairs without one."""

    best: int | None = None


def loaded(value: Any) -> Any:
    """What a text of JSON says, as a table has lists; anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):  # also of a number of more than 4,300 digits
        return value


def listed(value: Any, where: str) -> list[Any]:
    """A list, which in a table is a text of JSON.

    Raises:
        Unusable: it is null, or the cell is empty.
        TypeError: it is no list.
    """
    if value is None or value == "":
        raise Unusable("null")
    found = loaded(value)
    if not isinstance(found, list):
        raise TypeError(f'"{where}" is {shown(value)}, and must be a list, or one as JSON')
    return found


def dialog(value: Any, role: str, where: str) -> Dialog:
    """A dialog from a list of messages, one message, or a text of `role`.

    Raises:
        Unusable: it is null, or the call of a tool cannot be read.
        TypeError, ValueError, KeyError: it is neither; a message lacks its role or content, or the
            role is not known.
    """
    if value is None:
        raise Unusable("null")
    if isinstance(value, str):
        if value.startswith(HUMAN):
            return _human_assistant(value)
        if isinstance(value, Cell) and _PYTHON.fullmatch(value):
            raise ValueError(
                f'"{where}" is {shown(value)}, a list as Python shows it. Write it as JSON '
                "(json.dumps)"
            )
        return [{"role": role, "content": value}]
    value = [value] if is_message(value) else value
    if not isinstance(value, list):
        raise TypeError(f'"{where}" is {shown(value)}, and must be a text or a list of messages')
    said: Dialog = []
    for one in value:
        message = _message(one, where)
        if said and role_of(one) in CALLS and _go_together(said[-1], message):
            calls = [*said[-1].get("tool_calls", ()), *message["tool_calls"]]
            said[-1] = {**said[-1], "tool_calls": calls}
        else:
            said.append(message)
    return said


def role_of(message: Row) -> str:
    """The role of a message as the data name it."""
    return str(message.get("from", message.get("role"))).lower()


def _go_together(message: Message, call: Message) -> bool:
    """Whether a call is of the turn before it: ms-swift writes each call as a message."""
    is_same = message.get("weight", 1) == call.get("weight", 1)
    return message["role"] == "assistant" and bool(is_same)


_PYTHON = re.compile(r"\[\s*\{'(role|content|from|value)':.*\}\s*\]\s*", re.DOTALL)
"""A list of messages that was written with `str`, as pandas does."""


def is_message(value: Any) -> bool:
    """Whether a value is a message, in one of the two ways of writing them."""
    return isinstance(value, dict) and (
        {"from", "value"} <= value.keys()
        or ("role" in value and not value.keys().isdisjoint(("content", "tool_calls")))
    )


def _human_assistant(text: str) -> Dialog:
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    return [
        {"role": ROLES.get(who.lower(), "assistant"), "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise TypeError(f'"{where}" holds {shown(message)} where a message should be')
    who, what = ("from", "value") if "from" in message else ("role", "content")
    what = "value" if "value" in message and what not in message else what
    role, content = message[who], message.get(what)
    if not isinstance(role, str):
        raise TypeError(f'"{where}" holds a message with the role {shown(role)}')
    is_call = role.lower() in CALLS
    role = ROLES.get(role.lower(), role.lower())
    if role not in KNOWN:
        raise ValueError(
            f'"{where}" has the role {shown(role)}, which is not known. Roles are '
            f"{', '.join((*KNOWN, *ROLES))}: rename it"
        )
    rest = {
        key: value
        for key, value in message.items()
        if key not in ("role", "content", "from", "value") and value is not None
    }
    if what not in message and not rest:  # a call of a tool may have no content
        raise TypeError(f'"{where}" holds a message of {role} without "{what}"')
    _weigh(rest, where)
    if is_call:
        content, rest["tool_calls"] = "", _written_calls(content)
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if "tool_calls" in rest:
        given = rest.pop("tool_calls")
        calls = loaded(given) or []
        if not isinstance(calls, list) or not all(map(_has_name, calls)):
            raise TypeError(
                f'"{where}" holds the tool_calls {shown(given)}, and must have a list '
                'of calls there, each with the "name" of its tool'
            )
        rest |= {"tool_calls": [_call(call) for call in calls]} if calls else {}
    if not isinstance(content, (str, type(None))):
        raise TypeError(
            f'"{where}" holds a message of {role} with {shown(content)} where a text should be'
        )
    return {"role": role, "content": content, **rest}


def _weigh(rest: Row, where: str) -> None:
    """Make the marks of a message its weight."""
    if rest.pop("train_detail", None):
        raise ValueError(
            f'"{where}" holds a message with "train_detail", which marks letters to learn, and a '
            'message is learnt as a whole or not at all: write "train" in its place'
        )
    for mark in MARKS:
        if mark == "loss" and not isinstance(rest.get(mark), bool):
            continue  # a number: what a model lost by it
        value = rest.pop(mark, True)
        if value not in (True, False):
            raise ValueError(
                f'"{where}" holds a message with "{mark}": {shown(value)}, which is true where it '
                "is learnt, and false where it is only read"
            )
        if not value:
            rest["weight"] = 0


def _written_calls(content: Any) -> list[Row]:
    """The calls of tools in a text of JSON, which is one or a list of them.

    Raises:
        Unusable: it is none, as where a model wrote it.
    """
    found = loaded(content)
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(_has_name(call) and "arguments" in call for call in calls):
        raise Unusable("broken_call", call=shown(content))
    return [{"type": "function", "function": call} for call in calls]


def _part(part: Any, where: str) -> str:
    """The text of a part of a message. Templates of models of text write a list as Python does."""
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else part
    raise ValueError(
        f'"{where}" holds a message with a part that is no text ({shown(kind)}), and models of '
        "text read nothing else. Leave such rows out, or say in words what it shows"
    )


def _has_name(call: Any) -> bool:
    inside = call.get("function", call) if isinstance(call, Mapping) else None
    return isinstance(inside, Mapping) and isinstance(inside.get("name"), str)


def _call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The call of a tool with its arguments as an object, which OpenAI writes as a text of JSON.

    Most templates write them with `tojson`, which would put quotes around such a text.
    """
    if "function" in call:
        return {**call, "function": _call(call["function"])}
    found = loaded(call.get("arguments"))
    return {**call, "arguments": found} if isinstance(found, dict) else call


def says(message: Message) -> bool:
    """Whether there is anything in a message: words, or the call of a tool."""
    content = message.get("content")
    return bool(content.strip() if isinstance(content, str) else content) or bool(
        message.get("tool_calls")
    )


def checked(dialog: Dialog) -> Dialog:
    """A dialog whose turns are as chat templates expect them.

    An empty system message stays, as some templates have one of their own without it, and so does
    what a tool returned, which may be nothing.

    Raises:
        Unusable: a turn of the user or the assistant is empty, one of them speaks twice in a row,
            or the assistant speaks first.
    """
    spoken = [message for message in dialog if message["role"] not in ("system", "developer")]
    if spoken and spoken[0]["role"] == "assistant":
        raise Unusable("assistant_first")
    before = ""
    for message in spoken:
        role = message["role"]
        if role in ("user", "assistant"):
            if not says(message):
                raise Unusable("empty_turn")
            if role == before:
                raise Unusable("two_in_a_row")
        before = role
    return dialog


def answered(row: Row) -> Row:
    """A row whose conversation can be learnt from.

    Raises:
        Unusable: the assistant says nothing in it, or see `checked`.
    """
    said = row["messages"]
    if not any(message["role"] == "assistant" and says(message) for message in said):
        raise Unusable("no_answer")
    checked(said)
    return row


def renamed(row: Row) -> dict[str, str]:
    """The names of roles in a row that are others here: `{"gpt": "assistant"}`."""
    found = {}
    for value in map(loaded, row.values()):
        for message in value if isinstance(value, list) else ():
            if isinstance(message, Mapping):
                role = message.get("from", message.get("role"))
                if isinstance(role, str) and role.lower() in ROLES:
                    found[role] = ROLES[role.lower()]
    return found


def column(row: Row, *names: str) -> str:
    """The first of these columns that a row has.

    Raises:
        KeyError: it has none.
    """
    for name in names:
        if name in row:
            return name
    raise KeyError(" or ".join(names))


def shown(value: Any) -> str:
    """A value in a sentence: short, whatever it is."""
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:59]}…"
    return f"the number {text}" if type(value) in (int, float) else text

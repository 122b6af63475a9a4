"""The normal forms of rows, and the columns of public data sets that are understood as such.

    Text           text
    Prompts        prompt | messages, conversations (up to the last answer) | instruction (+ input)
    Conversations  messages | conversations | prompt or instruction (+ input), and completion,
                   response or output
    Preferences    prompt or instruction (+ input), and chosen and rejected, or ranked
                   | chosen and rejected that begin alike, whatever else there is
                   | prompt, and chosen and rejected that are lists of texts (best of n)

Answers and prompts are texts or dialogs (`role`, `content` or `from`, `value`). A text that begins
with "\\n\\nHuman:" is a dialog, as in Anthropic's hh-rlhf.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from align.artifacts import Conversations, Preferences, Prompts, Rows, Text
from align.errors import StageFailed
from align.settings import Dialog

Row = dict[str, Any]

ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
"""Names of roles in public data, in the words of chat templates."""


class Unusable(Exception):
    """A row that is dropped; the message is its name in the counts."""


def recognise(first: Row, kind: type[Rows], name: str) -> tuple[str, Callable[[Row], Row]]:
    """What a source's first row is, in words, and the function that makes rows of `kind` of it.

    Raises:
        StageFailed: its columns are none of the known ones.
    """
    for known, forms in _FORMS.items():
        for columns, normal in forms.items() if issubclass(kind, known) else ():
            if all(any(name in first for name in either.split("|")) for either in columns.split()):
                found = [name for name in first if name in _UNDERSTOOD]
                return f"{kind.__name__.lower()} from {', '.join(found)}", normal
    wanted = next(forms for known, forms in _FORMS.items() if issubclass(kind, known))
    ways = "; or ".join(way.replace(" ", " and ").replace("|", " or ") for way in wanted)
    raise StageFailed(
        f"{name} has the columns {', '.join(first)}, which are not {kind.__name__.lower()}: that "
        f"takes {ways}. Make them with `columns:`, as in columns: "
        f'{{{next(iter(wanted)).split("|")[0].split()[0]}: "{{{next(iter(first), "text")}}}"}}.'
    )


def dialog(value: Any, role: str) -> Dialog:
    """A dialog from a list of messages or a text, which `role` says.

    Raises:
        ValueError, TypeError, KeyError: it is neither.
    """
    if isinstance(value, str):
        if value.startswith("\n\nHuman:"):
            parts = re.split(r"\n\n(Human|Assistant):", value)[1:]
            said = zip(parts[::2], parts[1::2], strict=True)
            return [
                {"role": ROLES.get(who.lower(), "assistant"), "content": text.strip()}
                for who, text in said
            ]
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise TypeError(f"a {type(value).__name__} is neither a text nor a list of messages")
    return [_message(message) for message in value]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role = message["from"] if "from" in message else message["role"]
    content = message["value"] if "from" in message else message.get("content")
    if not isinstance(role, str) or not isinstance(content, (str, list, type(None))):
        raise TypeError(f"a message has the role {role!r} and the content {content!r}")
    rest = {
        key: value
        for key, value in message.items()
        if key not in ("role", "content", "from", "value") and value is not None
    }
    if content is None and not rest:
        raise TypeError(f"a message of {role} says nothing")
    return {"role": ROLES.get(role, role), "content": content, **rest}


def _text(row: Row) -> Row:
    if not isinstance(row["text"], str):
        raise TypeError(f'"text" is {row["text"]!r}')
    if not row["text"].strip():
        raise Unusable("empty")
    return {"text": row["text"]}


def _asked(row: Row) -> Dialog:
    """The prompt of a row."""
    if "prompt" in row:
        return dialog(row["prompt"], "user")
    text = str(row["instruction"])
    more = str(row.get("input") or "")
    return dialog(f"{text}\n\n{more}" if more.strip() else text, "user")


def _tools(row: Row) -> Row:
    """What stays with a row besides its messages: `tools`, and `subset`, which tasks report by."""
    return {key: row[key] for key in ("tools", "subset") if row.get(key)}


def _spoken(row: Row) -> Dialog:
    return dialog(row["messages"] if "messages" in row else row["conversations"], "user")


def _conversation(row: Row) -> Row:
    return _answered({"messages": _spoken(row), **_tools(row)})


def _question_and_answer(row: Row) -> Row:
    answer = next(row[key] for key in ("completion", "response", "output") if key in row)
    return _answered({"messages": _asked(row) + dialog(answer, "assistant"), **_tools(row)})


def _answered(row: Row) -> Row:
    answers = [message for message in row["messages"] if message["role"] == "assistant"]
    if not any(message["content"] or message.get("tool_calls") for message in answers):
        raise Unusable("no_answer")
    return row


def _prompt(row: Row) -> Row:
    ours = ("id", "prompt_id", "instruction", "input")  # `reject` calls the prompt's row prompt_id
    others = {key: value for key, value in row.items() if key not in ours}
    asked = _asked(row)
    if not asked or asked[-1]["role"] == "assistant":
        raise Unusable("no_question")
    return {**others, "prompt": asked}


def _prompt_of_conversation(row: Row) -> Row:
    said = _spoken(row)
    while said and said[-1]["role"] == "assistant":
        said.pop()
    others = {key: value for key, value in row.items() if key not in ("messages", "conversations")}
    return _prompt({**others, "prompt": said})


def _pair(row: Row) -> Row:
    """Answers to a prompt; or whole dialogs, whose shared beginning is the prompt.

    A column `prompt` beside whole dialogs is a text: it may hold the first question only. Of lists
    of texts the first chosen one is better than every rejected one, as in RewardBench 2.
    """
    if isinstance(row["chosen"], list) and isinstance(row["chosen"][0], str):
        return _set(row)
    answers = {key: dialog(row[key], "assistant") for key in ("chosen", "rejected")}
    whole = all(said and said[0]["role"] != "assistant" for said in answers.values())
    if not whole and ("prompt" in row or "instruction" in row):
        prompt = _asked(row)
    else:
        both = list(zip(answers["chosen"], answers["rejected"], strict=False))
        shared = next((i for i, (a, b) in enumerate(both) if a != b), len(both))
        shared = min(shared, *(len(answer) - 1 for answer in answers.values()))
        prompt = answers["chosen"][:shared]
        answers = {key: answer[shared:] for key, answer in answers.items()}
    numbers = {
        key: float(row[key])
        for key in ("margin", "chosen_score", "rejected_score")
        if row.get(key) is not None
    }
    return _compared({"prompt": prompt, **answers, **numbers, **_tools(row)})


def _set(row: Row) -> Row:
    chosen = dialog(row["chosen"][0], "assistant")
    rejected = [dialog(text, "assistant") for text in row["rejected"]]
    first, *others = [answer for answer in rejected if answer != chosen] or [chosen]
    more = {"also_rejected": others} if others else {}
    answers = {"chosen": chosen, "rejected": first, **more}
    return _compared({"prompt": _asked(row), **answers, **_tools(row)})


def _ranking(row: Row) -> Row:
    ranked: list[Dialog] = []
    for answer in row["ranked"]:
        if (said := dialog(answer, "assistant")) not in ranked:
            ranked.append(said)
    if len(ranked) < 2:
        raise Unusable("equal_answers")
    answers = (
        {"ranked": ranked}
        if len(ranked) > 2
        else dict(zip(("chosen", "rejected"), ranked, strict=True))
    )
    return _compared({"prompt": _asked(row), **answers, **_tools(row)})


def _compared(row: Row) -> Row:
    answers = row["ranked"] if "ranked" in row else [row["chosen"], row["rejected"]]
    answers = answers + row.get("also_rejected", [])
    if not row["prompt"] or row["prompt"][-1]["role"] == "assistant":
        raise Unusable("no_question")
    if any(not answer or answer[0]["role"] != "assistant" for answer in answers):
        raise Unusable("no_answer")
    for answer in answers:
        _answered({"messages": answer})
    if answers[0] == answers[1]:
        raise Unusable("equal_answers")
    return row


_FORMS: dict[type[Rows], dict[str, Callable[[Row], Row]]] = {
    Text: {"text": _text},
    Prompts: {
        "prompt": _prompt,
        "messages|conversations": _prompt_of_conversation,
        "instruction": _prompt,
    },
    Conversations: {
        "messages|conversations": _conversation,
        "prompt|instruction completion|response|output": _question_and_answer,
    },
    Preferences: {"prompt|instruction ranked": _ranking, "chosen rejected": _pair},
}
"""Columns that must be there ("a|b": either), and what makes the normal form of them."""

_UNDERSTOOD = {
    word for forms in _FORMS.values() for way in forms for word in re.split("[ |]", way)
} | {"prompt", "instruction", "input", "margin", "tools"}

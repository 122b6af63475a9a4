"""Questions, answers to them, and answers that somebody compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.formats.dialogs import (
    HUMAN,
    Choice,
    Made,
    Row,
    Unusable,
    answered,
    checked,
    column,
    dialog,
    listed,
    loaded,
    says,
    shown,
)
from align.settings import Dialog

ANSWER = ("completion", "response", "output")
"""Columns of one answer."""

MORE = ("input", "context")
"""Columns of what an instruction is about, as in Alpaca and Dolly."""

DIALOG = ("messages", "conversations")
"""Columns of a whole dialog."""

QUESTION = ("prompt", "instruction", *DIALOG)
"""Columns of a prompt."""

LABEL = ("label", "kto_tag")
"""Columns of a mark; the second is LLaMA-Factory's."""

GOOD, BAD = ("true", "desirable"), ("false", "undesirable")
"""What a mark says of an answer."""

OURS = (
    *("id", "prompt_id"),  # which `reject` calls the prompt's row
    *("system", "history", "instruction", "input", "context", *DIALOG),
)
"""Columns that no prompt keeps: they name it, or are its dialog."""


def text(row: Row, _: Choice) -> Made:
    """A document."""
    if row["text"] is None:
        raise Unusable("null")
    if not isinstance(row["text"], str):
        raise TypeError(f'"text" is {shown(row["text"])}, and must be a text')
    if not row["text"].strip():
        raise Unusable("empty")
    yield {"text": row["text"]}


# -- prompts -------------------------------------------------------------------------------------


def asked(row: Row) -> Dialog:
    """The prompt of a row."""
    if "prompt" in row:
        said = dialog(row["prompt"], "user", "prompt")
        if isinstance(row["prompt"], str) and row["prompt"].startswith(HUMAN):
            said = said if says(said[-1]) else said[:-1]  # "Assistant:" asks for the answer
        return after(row, said)
    if "instruction" not in row and "context" in row:
        return after(row, dialog(row["context"], "user", "context"))
    if "instruction" not in row and any(name in row for name in DIALOG):
        return parted(spoken(row))[0]  # the answer may stand there, too
    more = next((row[key] for key in MORE if key in row), None) or ""
    instruction = row["instruction"]
    if isinstance(instruction, str) and isinstance(more, str) and more.strip():
        instruction = f"{instruction}\n\n{more}"
    return after(row, dialog(instruction, "user", "instruction"))


def after(row: Row, said: Dialog) -> Dialog:
    """A dialog after what begins it in other columns: `system`, and LLaMA-Factory's `history`."""
    if not row.get("system") and not row.get("history"):
        return said
    system, history = row.get("system") or "", loaded(row.get("history")) or []
    if not isinstance(system, str):
        raise TypeError(f'"system" is {shown(system)}, and must be a text. {_LEAVE_OUT} system: ""')
    before: Dialog = []
    for turn in history if isinstance(history, list) else [history]:
        if not isinstance(turn, list) or [type(one) for one in turn] != [str, str]:
            raise TypeError(
                f'"history" holds {shown(turn)} where a list of a question and an answer should '
                f'be. {_LEAVE_OUT} history: ""'
            )
        before += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    own = said[:1] if said and said[0]["role"] in ("system", "developer") else []
    first: Dialog = [{"role": "system", "content": system}] if system.strip() else []
    return (own or first) + before + said[len(own) :]


_LEAVE_OUT = "To leave the column out, write under `columns:`"


SHOWN = ("images", "videos", "audios")
"""Columns of what a model of text cannot read, whose place a mark holds in the words."""


def with_rest(row: Row) -> Row:
    """What stays with a row besides its messages: `tools`, and `subset`, which tasks report by."""
    check_words(row)
    if row.get("tools"):
        _check_tools(row["tools"])
    return {key: row[key] for key in ("tools", "subset") if row.get(key)}


def check_words(row: Row) -> None:
    """Refuse a row whose words are about what a model of text cannot read."""
    for name in SHOWN:
        found = loaded(row.get(name))
        if any(found) if isinstance(found, list) else found:
            raise ValueError(
                f'"{name}" is not empty, and models of text read words alone. Leave such rows '
                f'out. To learn their words without them, write under `columns:` {name}: ""'
            )


def _check_tools(tools: Any) -> None:
    found = loaded(tools)
    if not isinstance(found, list) or not all(isinstance(tool, Mapping) for tool in found):
        raise TypeError(
            f'"tools" is {shown(tools)}, and must be a list of objects, or such a list as JSON. '
            f'{_LEAVE_OUT} tools: ""'
        )


def prompt(row: Row, _: Choice) -> Made:
    """A prompt, and all other columns, which rewards may want."""
    yield prompt_of(row, asked(row))


def prompt_of_conversation(row: Row, _: Choice) -> Made:
    """A conversation up to its last answer."""
    yield prompt_of(row, parted(spoken(row))[0])


def prompt_of(row: Row, said: Dialog) -> Row:
    """A prompt with the columns of its row that are no part of the dialog."""
    dialogs = ("text", "chosen", "rejected") if "prompt" not in row else ()
    others = {key: value for key, value in row.items() if key not in (*OURS, *dialogs)}
    if not said or said[-1]["role"] == "assistant":
        raise Unusable("no_question")
    return {**others, **with_rest(row), "prompt": checked(said)}


# -- conversations -------------------------------------------------------------------------------


def spoken(row: Row) -> Dialog:
    """The dialog of a row that is one."""
    where = column(row, *DIALOG, "text")
    said = row[where]
    if where != "text" and isinstance(said, str) and not said.startswith(HUMAN):
        said = listed(said, where)
    return after(row, dialog(said, "user", where))


def conversation(row: Row, _: Choice) -> Made:
    """A dialog as it is."""
    yield answered({"messages": spoken(row), **with_rest(row)})


def question_and_answer(row: Row, _: Choice) -> Made:
    """A prompt and its answer."""
    yield conversation_of(row, *question_of(row))


def question_of(row: Row) -> tuple[Dialog, Dialog]:
    """The prompt of a row and its answer, which is the end of its dialog if no column has it."""
    if not any(name in row for name in ANSWER) and any(name in row for name in DIALOG):
        return parted(spoken(row))
    where = column(row, *ANSWER)
    return asked(row), dialog(row[where], "assistant", where)


def parted(said: Dialog) -> tuple[Dialog, Dialog]:
    """A dialog up to its last answer, and that."""
    end = len(said)
    while end and said[end - 1]["role"] == "assistant":
        end -= 1
    return said[:end], said[end:]


def good_answer(row: Row, choice: Choice) -> Made:
    """An answer that was marked good."""
    if not marked(row):
        raise Unusable("marked_bad")
    yield from question_and_answer(row, choice)


def mark(row: Row) -> str:
    """The column that marks an answer: the first that says so, as the other may be a class."""
    words = (*GOOD, *BAD)
    return next((name for name in LABEL if str(row.get(name)).lower() in words), None) or column(
        row, *LABEL
    )


def marked(row: Row) -> bool:
    """Whether a label says good: true or false, 1 or 0, or a word for these, as csv has them.

    Raises:
        Unusable: it is null, or the cell is empty.
        ValueError: it says neither.
    """
    where = mark(row)
    label = row[where]
    if label is None or label == "":
        raise Unusable("null")
    word = str(label).lower().removesuffix(".0")
    if word not in (*GOOD, "1", *BAD, "0"):
        raise ValueError(
            f'"{where}" is {shown(label)}, neither true nor false. Where it is no mark, write '
            f"`format: {'answers' if any(name in row for name in ANSWER) else 'messages'}`"
        )
    return word in (*GOOD, "1")


def conversation_of(row: Row, said: Dialog, answer: Dialog) -> Row:
    """A prompt and an answer as one conversation."""
    return answered({"messages": said + answer, **with_rest(row)})

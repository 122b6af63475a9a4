"""Questions, answers to them, and answers that somebody compared."""

from __future__ import annotations

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
    says,
    shown,
)
from align.settings import Dialog

ANSWER = ("completion", "response", "output")
"""Columns of one answer."""


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
            return said if says(said[-1]) else said[:-1]  # "Assistant:" asks for the answer
        return said
    if "context" in row and "instruction" not in row:
        return dialog(row["context"], "user", "context")
    instruction, more = row["instruction"], row.get("input") or ""
    if isinstance(instruction, str) and isinstance(more, str) and more.strip():
        instruction = f"{instruction}\n\n{more}"
    return dialog(instruction, "user", "instruction")


def with_rest(row: Row) -> Row:
    """What stays with a row besides its messages: `tools`, and `subset`, which tasks report by."""
    return {key: row[key] for key in ("tools", "subset") if row.get(key)}


def prompt(row: Row, _: Choice) -> Made:
    """A prompt, and all other columns, which rewards may want."""
    yield prompt_of(row, asked(row))


def prompt_of_conversation(row: Row, _: Choice) -> Made:
    """A conversation up to its last answer."""
    said = spoken(row)
    while said and said[-1]["role"] == "assistant":
        said.pop()
    yield prompt_of(row, said)


def prompt_of(row: Row, said: Dialog) -> Row:
    """A prompt with the columns of its row that are no part of the dialog."""
    # `reject` calls the prompt's row prompt_id
    ours = ("id", "prompt_id", "instruction", "input", "context", "messages", "conversations")
    dialogs = ("text", "chosen", "rejected") if "prompt" not in row else ()
    others = {key: value for key, value in row.items() if key not in (*ours, *dialogs)}
    if not said or said[-1]["role"] == "assistant":
        raise Unusable("no_question")
    return {**others, "prompt": checked(said)}


# -- conversations -------------------------------------------------------------------------------


def spoken(row: Row) -> Dialog:
    """The dialog of a row that is one."""
    where = column(row, "messages", "conversations", "text")
    return dialog(row[where], "user", where)


def conversation(row: Row, _: Choice) -> Made:
    """A dialog as it is."""
    yield answered({"messages": spoken(row), **with_rest(row)})


def question_and_answer(row: Row, _: Choice) -> Made:
    """A prompt and its answer."""
    where = column(row, *ANSWER)
    yield conversation_of(row, asked(row), dialog(row[where], "assistant", where))


def good_answer(row: Row, choice: Choice) -> Made:
    """An answer that was marked good."""
    if row["label"] is None:
        raise Unusable("null")
    if not marked(row["label"]):
        raise Unusable("marked_bad")
    yield from question_and_answer(row, choice)


def marked(label: Any) -> bool:
    """Whether a label says good: true or false, 1 or 0, or these as words, as csv has them."""
    word = str(label).lower()
    if word not in ("true", "1", "false", "0"):
        raise ValueError(f'"label" is {shown(label)}, neither true nor false')
    return word in ("true", "1")


def conversation_of(row: Row, said: Dialog, answer: Dialog) -> Row:
    """A prompt and an answer as one conversation."""
    return answered({"messages": said + answer, **with_rest(row)})

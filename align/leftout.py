"""Rows and pairs that a training stage leaves out, and how loudly it says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

LOUD = 0.01
"""The share of rows that are left out for one reason, above which a stage says it loudly."""

LOOK = "Look at them: align view RECIPE --text STAGE."
UNREAD = "The report has examples."

REASONS = {
    "too_long": ("they are too long", ""),
    "answer_begins_inside_a_token": (
        "an answer begins inside a token",
        "Let the chat template write no space before an answer, and no answer begin with one.",
    ),
    "nothing_to_learn": ("nothing in them is learnt", LOOK),
    "prompts_differ": (
        "the chat template writes another prompt before either answer",
        "Name another template: base: {chat_template: plain} works with every tokenizer.",
    ),
    "equal_answers": ("both answers are equal", LOOK),
    "empty_turn": ("the user or the assistant says nothing", UNREAD),
    "two_in_a_row": ("the user or the assistant speaks twice in a row", UNREAD),
    "assistant_first": ("the assistant speaks before anyone asked", UNREAD),
    "no_question": ("nothing is asked in them", UNREAD),
    "no_answer": ("they have no answer", UNREAD),
    "empty": ("they are empty", UNREAD),
    "null": ("a column that is needed is null", UNREAD),
    "broken_call": ("a call of a tool is broken", UNREAD),
    "broken_line": ("their lines cannot be read", UNREAD),
}
"""The fact and the remedy of every `dropped.…` that counts rows or pairs and that nobody asked for.

What is too long hangs on the stage's settings.
"""


def said(left: Counter[str], rows: int, noun: str, long: tuple[str, str]) -> Iterator[str]:
    """What is left out of so many rows: each reason that is loud, and the others in one sentence.

    `long`: the fact and the remedy of rows that are too long.
    """
    quiet = Counter[str]()
    for reason, n in left.items():
        if n > LOUD * rows:
            fact, remedy = long if reason == "too_long" else REASONS[reason]
            yield f"{n:,} of {rows:,} {noun} ({n / rows:.1%}) are LEFT OUT: {fact}. {remedy}"
        else:
            quiet[reason] = n
    if quiet:
        yield f"{quiet.total():,} of {rows:,} {noun} are left out ({by_reason(quiet)})."


def by_reason(left: Counter[str]) -> str:
    """`too long: 3, nothing to learn: 1`."""
    return ", ".join(f"{reason.replace('_', ' ')}: {n:,}" for reason, n in left.items())

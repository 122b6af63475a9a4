"""Which form the rows of a source have, and what makes rows of the type a stage asks for of them.

A form is recognised by the columns of the first row, or named (`format:`). docs/data.md shows a row
of each.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from align.artifacts import Conversations, Preferences, Prompts, Rows, Text
from align.errors import StageFailed
from align.formats import answers, comparisons, feedback, scored, trees
from align.formats.dialogs import HUMAN, Choice, Made, Unusable, renamed
from align.formats.strength import COLUMNS
from align.options import nearest

Row = dict[str, Any]

Numbered = Iterator[tuple[int, Row]]
"""Rows with their numbers in the source."""

Gathered = Iterator[tuple[int, Row | Exception]]
"""Rows that were put together of several, and what is wrong with those that could not be."""


@dataclass(frozen=True)
class Form:
    """One way in which public data are written."""

    columns: str
    """What must be there, of "a|b" one: "prompt|instruction ranked"."""

    makes: dict[type[Rows], Callable[[Row, Choice], Made]]
    """What a row becomes, by the type that is asked for."""

    also: Callable[[Row], bool] | None = None
    """What the first row must be besides, where its columns alone do not tell."""

    gather: dict[type[Rows], Callable[[Numbered], Gathered]] | None = None
    """Puts rows together first, by the type that is asked for."""

    more: str = ""
    """What is read besides where it is there, written as `columns`."""

    def has_columns(self, row: Row) -> bool:
        """Whether a row has what must be there."""
        return all(any(n in row for n in either.split("|")) for either in self.columns.split())

    def fits(self, row: Row) -> bool:
        """Whether a row is recognised as one of this form."""
        return self.has_columns(row) and (self.also is None or self.also(row))


UNREAD = 8
"""Names of columns that are not read, at most, in a sentence."""

_BEFORE = "id system history tools subset "
"""What may stand beside every dialog."""

_QUESTION = "|".join(answers.QUESTION)

_ASKED = f"{_BEFORE} {_QUESTION} prompt|input|context "
"""What may stand beside answers."""

FORMS = {
    "trees": Form(
        "prompt|message_id",
        {
            Prompts: trees.prompts,
            Conversations: trees.conversations,
            Preferences: trees.preferences,
        },
        also=trees.is_tree,
        gather={Prompts: trees.gather, Conversations: trees.gather, Preferences: trees.gather},
    ),
    "text": Form("text", {Text: answers.text}, more="id"),
    "prompts": Form("prompt", {Prompts: answers.prompt}),
    "feedback": Form(
        f"{_QUESTION} {'|'.join((*answers.ANSWER, *answers.DIALOG))} {'|'.join(answers.LABEL)}",
        {Conversations: answers.good_answer, Preferences: comparisons.pair},
        also=feedback.is_feedback,
        gather={Preferences: feedback.gather},
        more=f"{_ASKED}kto_tag",
    ),
    "messages": Form(
        "messages|conversations",
        {Prompts: answers.prompt_of_conversation, Conversations: answers.conversation},
        also=lambda row: row.get("chosen") is None or row.get("rejected") is None,
        more=_BEFORE,
    ),
    "human_assistant": Form(
        "text",
        {Prompts: answers.prompt_of_conversation, Conversations: answers.conversation},
        also=lambda row: str(row["text"]).startswith(HUMAN),
        more=_BEFORE,
    ),
    "answers": Form(
        "prompt|instruction completion|response|output",
        {Conversations: answers.question_and_answer},
        more=_ASKED,
    ),
    "ranked": Form(
        "prompt|instruction ranked",
        {Conversations: comparisons.best, Preferences: comparisons.preference},
        more=_ASKED,
    ),
    "scored": Form(
        "prompt|instruction completions|responses|generations",
        {Conversations: scored.best_of_n, Preferences: scored.ranking_by_score},
        also=scored.is_scored,
        more=_ASKED + "scores|rewards",
    ),
    "two_responses": Form(
        "prompt|context response_1|response1 response_2|response2 "
        "preference_strength|overall_preference",
        {
            Prompts: answers.prompt,
            Conversations: comparisons.best_of_two,
            Preferences: comparisons.better_of_two,
        },
        more=_BEFORE,
    ),
    "pairs": Form(
        f"{'|'.join(comparisons.CHOSEN)} {'|'.join(comparisons.REJECTED)}",
        {
            Prompts: comparisons.prompt_of_pair,
            Conversations: comparisons.best,
            Preferences: comparisons.preference,
        },
        also=comparisons.is_pair,
        more=" ".join([_ASKED, "edited also_rejected", "|".join(COLUMNS), *comparisons.NUMBERS]),
    ),
    "instructions": Form("instruction", {Prompts: answers.prompt}),
}
"""By the name that `format:` says, in the order in which they are tried."""

_PLAIN: dict[type[Rows], tuple[str, ...]] = {
    Text: ("text",),
    Prompts: ("prompt",),
    Conversations: ("prompt", "completion"),
    Preferences: ("prompt", "chosen", "rejected"),
}
"""The columns to make of others, for a remedy."""

_ELSEWHERE = {
    "prompt": ("instruction", "query", "question", "input"),
    "completion": ("response", "output", "answer", "chosen"),
}
"""What they are called in other places."""


@dataclass(frozen=True)
class Found:
    """What a source's rows are."""

    name: str
    """Of the form."""

    brief: str
    """For the person who watches: the type, what it is made of, and the form."""

    unread: str
    """The columns that nothing is made of, as a sentence, or nothing."""

    make: Callable[[Row, Choice], Made]
    gather: Callable[[Numbered], Gathered] | None

    @property
    def words(self) -> str:
        """All that is said of them before they are read."""
        return self.brief + self.unread


def recognise(
    first: Row,
    kind: type[Rows],
    name: str,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Found:
    """What the rows of a source are, by its first one, or as `format` says.

    Args:
        first: the row.
        kind: the type that a stage asks for.
        name: of the source, for messages.
        format: the name of a form; None: the first that fits.
        columns: the templates that some of its columns were made by, of others.

    Raises:
        StageFailed: its columns are none of the known ones, or not those of `format`, or that
            cannot become what is asked for.
    """
    known = next((known for known in _PLAIN if issubclass(kind, known)), None)
    if known is None:
        raise StageFailed(f"{name} cannot be read as {kind.__name__}: no data from outside can.")
    ways = {name: form for name, form in FORMS.items() if known in form.makes}
    if format is None:
        found = next((way for way, form in ways.items() if form.fits(first)), None)
    else:
        found = format if format in ways and FORMS[format].has_columns(first) else None
    if found is None:
        raise StageFailed(_no_form(first, kind.__name__.lower(), known, name, format))
    form = FORMS[found]
    read = _read(form, first)
    brief = f"{kind.__name__.lower()} from {', '.join(read)} (format: {found})"
    if roles := renamed({column: first[column] for column in read}):
        brief += f", roles {', '.join(f'{old} → {new}' for old, new in roles.items())}"
    # of prompts all columns stay; trees have columns of their own for what a message is
    unread = (
        "" if known is Prompts or found == "trees" else _unread(first, [*read, *_used(columns)])
    )
    make = form.makes[known]
    if format is None and known is Conversations and found in ("answers", "messages"):
        make = feedback.unmarked(make)
    return Found(found, brief, unread, make, (form.gather or {}).get(known))


def others(row: Row, kind: type[Rows], name: str) -> list[str]:
    """The forms but this one that a row is one of."""
    return [
        other
        for other, form in FORMS.items()
        if other != name and form.fits(row) and any(issubclass(kind, t) for t in form.makes)
    ]


def normal(row: Row, kind: type[Rows]) -> Row:
    """A row that is one row of its type already, checked anew.

    Raises:
        StageFailed, Unusable, KeyError, TypeError, ValueError: it is not.
    """
    made = next(recognise(row, kind, "").make(row, Choice()))
    if isinstance(made, Unusable):
        raise made
    return made


def _read(form: Form, row: Row) -> list[str]:
    """The columns of a row that a form reads."""
    read = set()
    for either in f"{form.columns} {form.more}".split():
        read.update([name for name in either.split("|") if name in row][:1])
    return [name for name in row if name in read and name != "id"]


def _used(columns: Mapping[str, str] | None) -> Iterator[str]:
    """The columns that others are made of."""
    for template in (columns or {}).values():
        for _, place, _, _ in string.Formatter().parse(template):
            if place is not None:
                yield re.split(r"[.\[]", place)[0]


def _unread(row: Row, read: list[str]) -> str:
    names = [name for name in row if name not in read and name != "id"]
    shown = ", ".join(names[:UNREAD]) + (f" and {len(names) - UNREAD} more" * (len(names) > UNREAD))
    return f". Not read: {shown}" if names else ""


def _no_form(first: Row, kind: str, known: type[Rows], name: str, format: str | None) -> str:
    have = ", ".join(first)
    if format is not None:
        if known not in FORMS[format].makes:
            able = ", ".join(way for way, form in FORMS.items() if known in form.makes)
            return f"{name}: format {format} has no {kind}. Those that have: {able}."
        takes = _takes(FORMS[format])
        return f"{name} has the columns {have}, and format {format} takes {takes}."
    ways = ", ".join(way for way, form in FORMS.items() if known in form.makes)
    columns = list(first) or ["text"]
    made = {
        new: _likely(new, columns) or columns[min(place, len(columns) - 1)]
        for place, new in enumerate(_PLAIN[known])
    }
    asked = {**first, "prompt": first.get(made.get("prompt", ""))}
    if any(known in form.makes and form.fits(asked) for form in FORMS.values()):
        made = {"prompt": made["prompt"]}  # nothing else is missing
    example = ", ".join(f'{new}: "{{{old}}}"' for new, old in made.items())
    return (
        f"{name} has the columns {have}, and no format of {kind} has those ({ways}: docs/data.md "
        f"shows a row of each). Make them with `columns:`, as in columns: {{{example}}}."
    )


def _likely(name: str, columns: list[str]) -> str | None:
    """The column that is most likely what a form calls by another name."""
    return next((other for other in (name, *_ELSEWHERE.get(name, ())) if other in columns), None)


def _takes(form: Form) -> str:
    names = [either.split("|") for either in form.columns.split()]
    return " and ".join(
        first + (f" (or {', '.join(others)})" if others else "") for first, *others in names
    )


def check_name(format: str) -> None:
    """Refuse a name that is no form's.

    Raises:
        ValueError: it is none. The message lists them.
    """
    if format not in FORMS:
        raise ValueError(
            f'There is no format "{format}".{nearest(format, FORMS)} Formats are: '
            f"{', '.join(FORMS)}."
        )

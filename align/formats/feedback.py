"""Answers that were marked one by one (`label`: true or false), as for KTO (arXiv 2402.01306)."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import groupby, zip_longest

from align.formats.answers import BAD, GOOD, LABEL, mark, marked, question_of, with_rest
from align.formats.comparisons import REJECTED
from align.formats.dialogs import Choice, Made, Row, Unusable


def is_feedback(row: Row) -> bool:
    """Whether a label is a mark of an answer: numbers are, too, but only where `format:` says so.

    Beside a rejected answer it is something else.

    One that is null is taken for a mark: an answer that was marked bad must not be learnt.
    """
    label = row[mark(row)]
    if any(row.get(name) is not None for name in REJECTED):
        return False
    return label in (None, "") or str(label).lower() in (*GOOD, *BAD)


def unmarked(make: Callable[[Row, Choice], Made]) -> Callable[[Row, Choice], Made]:
    """What makes rows, of which none may be marked bad: the first one had no mark."""

    def made(row: Row, choice: Choice) -> Made:
        if any(row.get(name) is False for name in LABEL):
            raise ValueError(
                f'"{mark(row)}" is False, and the first row has no such mark. Where it marks bad '
                "answers, give every row its mark (`format: feedback`); else name this format"
            )
        yield from make(row, choice)

    return made


def gather(rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, Row | Exception]]:
    """Pairs of a good and a bad answer to the same prompt, wherever in the file they stand.

    No answer is in two pairs. Which are together follows from what they say, so that it does not
    depend on the order of the rows; what finds no partner that says something else is
    dropped. The answers wait in a file that SQLite deletes: those to one prompt at a time are in
    memory.
    """
    with closing(sqlite3.connect("")) as file:
        file.execute("PRAGMA journal_mode = OFF")
        file.execute("CREATE TABLE marked (prompt BLOB, answer BLOB, good INT, n INT, row TEXT)")
        for number, row in rows:
            try:
                file.execute("INSERT INTO marked VALUES (?, ?, ?, ?, ?)", _entry(number, row))
            except (Unusable, KeyError, TypeError, ValueError) as error:
                yield number, error
        found = file.execute("SELECT * FROM marked ORDER BY prompt, answer, good, n")
        for _, answers in groupby(found, key=lambda entry: entry[0]):
            sides: tuple[list[_Marked], list[_Marked]] = ([], [])
            for _, answer, good, number, text in answers:
                sides[good].append((answer, number, json.loads(text)))
            for better, worse in _paired(*sides):
                if better is not None and worse is not None and better[0] != worse[0]:
                    pair = {"chosen": better[2]["answer"], "rejected": worse[2]["answer"]}
                    yield better[1], better[2] | pair
                    continue
                for one in (better, worse):
                    if one is not None:
                        answer = str(one[2]["answer"])[:200]
                        yield one[1], Unusable("no_partner", answer=answer)


_Marked = tuple[bytes, int, Row]
"""An answer: its hash, the number of its row, the row."""


def _paired(bad: list[_Marked], good: list[_Marked]) -> list[list[_Marked | None]]:
    """Better and worse side by side, or one alone.

    Where both say the same, as when one answer was marked both ways, the worse one is exchanged
    for one of another pair, as long as there is a pair that does not say it.
    """
    pairs: list[list[_Marked | None]] = [list(pair) for pair in zip_longest(good, bad)]
    begin: dict[bytes, int] = {}  # what was looked at for an answer stays without use to it
    for pair in pairs:
        said = {one[0] for one in pair if one is not None}
        if None in pair or len(said) > 1:
            continue
        (same,) = said
        places = range(begin.get(same, 0), len(pairs))
        for place in places:
            other = pairs[place]
            begin[same] = place + 1
            if all(one is None or one[0] != same for one in other):
                pair[1], other[1] = other[1], pair[1]
                break
    return pairs


def _entry(number: int, row: Row) -> tuple[bytes, bytes, bool, int, str]:
    said, answer = question_of(row)
    question = {"prompt": said, **with_rest(row)}
    text = json.dumps({**question, "answer": answer})
    return _hash(question), _hash(answer), marked(row), number, text


def _hash(value: object) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:16]

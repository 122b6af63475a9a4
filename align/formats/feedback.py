"""Answers that were marked one by one (`label`: true or false), as for KTO (arXiv 2402.01306)."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby

from align.formats.answers import ANSWER, asked, marked, with_rest
from align.formats.dialogs import Row, Unusable, column, dialog


def is_feedback(row: Row) -> bool:
    """Whether a label is a mark: numbers are, too, but only where `format:` says so."""
    return str(row.get("label")).lower() in ("true", "false")


def gather(rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, Row | Exception]]:
    """Pairs of a good and a bad answer to the same prompt, wherever in the file they stand.

    No answer is in two pairs. Which are together follows from what they say, so that it does not
    depend on the order of the rows; what finds no partner is dropped. The answers wait in a file
    that SQLite deletes: those to one prompt at a time are in memory.
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
            sides: tuple[list[tuple[int, Row]], ...] = ([], [])
            for _, _, good, number, text in answers:
                sides[good].append((number, json.loads(text)))
            bad, good_ones = sides
            for (_, worse), (number, better) in zip(bad, good_ones, strict=False):
                yield number, better | {"chosen": better["answer"], "rejected": worse["answer"]}
            for side in sides:
                for number, row in side[min(len(bad), len(good_ones)) :]:
                    yield number, Unusable("no_partner", answer=str(row["answer"])[:200])


def _entry(number: int, row: Row) -> tuple[bytes, bytes, bool, int, str]:
    if row["label"] is None:
        raise Unusable("null")
    where = column(row, *ANSWER)
    answer = dialog(row[where], "assistant", where)
    question = {"prompt": asked(row), **with_rest(row)}
    text = json.dumps({**question, "answer": answer})
    return _hash(question), _hash(answer), marked(row["label"]), number, text


def _hash(value: object) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:16]

"""What is done to each row for itself, in processes: changes, rules, numbers to compare it by.

A process writes the rows it has looked at to files of its own; what goes back is numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align import forms
from align.artifacts import Rows
from align.curation import minhash
from align.curation.contamination import Questions, texts
from align.curation.hashes import content, dumps, holds, number, score, tools
from align.curation.heuristics import Emoji
from align.curation.language import Language
from align.curation.near import Near
from align.curation.pii import Pii
from align.curation.rules import Row, Rule, Why, said
from align.curation.words import Texts
from align.data import CURATED
from align.formats.dialogs import Unusable
from align.out import Out

ROWS, BANDS, GRAMS = "rows", "bands", "grams"
"""A process's files: lines of rows, and of what is said of removed ones; the numbers of `near`."""


@dataclass
class Lot:
    """What is known of rows that were looked at together: an array of each, in their order."""

    by: int
    """The process; where its files hold these rows:"""

    at: dict[str, int]
    columns: dict[str, NDArray[Any]]
    counts: dict[str, Any]
    """What was changed, as `Out.counts`."""


@dataclass
class Looker:
    """Looks at rows: what has to be done, and for which rows, is known before."""

    folder: Path
    kind: type[Rows]
    near: Near | None
    emoji: Emoji | None
    pii: Pii | None
    language: Language | None
    rules: Sequence[Rule]
    questions: Questions | None
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.shape = minhash.bands(self.near.similarity) if self.near else (0, 0)

    def look(self, rows: Sequence[Row], sources: Sequence[int]) -> Lot:
        """Look at rows, each of the source with that number."""
        out = Out(self.folder, self.folder, main=False)
        first = [None if self.emoji is None else self.emoji.look(said(row)) for row in rows]
        given, new = rows, [self._changed(row, out) for row in rows]
        rows = [row for row, _ in new]
        read = self.read(rows)
        words = read.count(read.said)
        judged = self.judge(rows, read, out)
        why = [a or b or c for a, (_, b), c in zip(first, new, judged, strict=True)]
        held = [holds(row) for row in rows]
        lines = [
            encode(line) if one is None else encoded(removed(row, one))
            for row, (_, line), one in zip(rows, held, why, strict=True)
        ]
        columns: dict[str, NDArray[Any]] = {
            "source": np.array(sources, np.uint16),
            "gone": np.array([one is not None for one in why]),
            "size": np.array([len(line) for line in lines], np.uint32),
            "read": self._before(given, rows, words).astype(np.uint32),
            "words": words.astype(np.uint32),
            "content": np.array([content(row) for row in rows], np.uint64),
            "score": np.array([score(row) for row in rows]),
            "holds": np.array([one for one, _ in held], np.uint64),
            "id": np.array([number(row["id"]) for row in rows], np.uint64),
        }
        at = {ROWS: self._write(ROWS, b"".join(lines))}
        if self.near is not None:
            compared = read.texts.numbers[np.repeat(read.near, read.texts.lengths)]
            found, counts = minhash.grams(compared, read.count(read.near))
            having = np.array([tools(row) for row in rows], np.uint64)
            found, counts = minhash.different(found ^ np.repeat(having, counts), counts)
            columns["grams"] = counts.astype(np.uint32)
            at[GRAMS] = self._write(GRAMS, found.tobytes())
            bands = minhash.sketch(found, counts, self.shape)
            at[BANDS] = self._write(BANDS, np.ascontiguousarray(bands.T).tobytes())
        return Lot(os.getpid(), at, columns, out.counts)

    def again(self, row: Row) -> tuple[Row, Why | None, int]:
        """A row that was changed since, why it is removed, and how many words it has now."""
        row, unusable = self._checked(row)
        read = self.read([row])
        why = self.judge([row], read, Out(self.folder, self.folder, main=False))[0]
        return row, unusable or why, int(read.count(read.said)[0])

    def read(self, rows: Sequence[Row]) -> Read:
        """Their words, as far as they are compared."""
        prompts = self.near is not None and self.near.of == "prompt"
        return Read(rows, prompts, beside=self.questions is not None)

    def _changed(self, row: Row, out: Out) -> tuple[Row, Why | None]:
        new = row
        for rule in (self.emoji, self.pii):
            if rule is not None:
                new, counts = rule.change(new)
                for what, n in counts.items():
                    out.count(f"changed.{what}", n, example={"id": row["id"]})
        return (row, None) if new is row else self._checked(new)

    def _checked(self, row: Row) -> tuple[Row, Why | None]:
        """A row that was changed, read anew: its answers may be equal now, or empty."""
        try:
            made = forms.normal(row, self.kind)
        except Unusable as why:
            return row, Why(str(why), why.facts)
        kept = {name: row[name] for name in ("id", *CURATED) if name in row}
        return {**kept, **made}, None

    def _before(
        self, given: Sequence[Row], rows: Sequence[Row], words: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """How many words the rows had before they were changed."""
        words = words.copy()
        changed = [i for i, row in enumerate(rows) if row is not given[i]]
        if changed:
            read = self.read([given[i] for i in changed])
            words[changed] = read.count(read.said)
        return words

    def judge(self, rows: Sequence[Row], read: Read, out: Out) -> list[Why | None]:
        """By the rules that look at one row: why each is removed."""
        rules = [*self.rules, *([self.language] if self.language else [])]
        hits = self.questions.find(read.texts, read.of) if self.questions else {}
        found: list[Why | None] = []
        for i, (row, heard) in enumerate(zip(rows, read.heard, strict=True)):
            why = next((why for rule in rules if (why := rule.look(heard))), None)
            if self.language is not None and self.language.short(heard):
                out.count("too_short_to_tell_language", example={"id": row["id"]})
            if why is None and i in hits:
                why = Why("contamination", asdict(hits[i][0]))
            found.append(why)
        return found

    def _write(self, name: str, data: bytes) -> int:
        """Add to a file of this process; where that begins."""
        with (self.folder / f"{name}-{os.getpid()}").open("ab") as file:
            at = file.tell()
            file.write(data)
        return at


class Read:
    """The words of rows, and which of them each comparison is about."""

    def __init__(self, rows: Sequence[Row], prompts: bool, beside: bool) -> None:
        texts_: list[str] = []
        of, said_, near = [], [], []
        self.heard = [said(row) for row in rows]
        for i, (row, heard) in enumerate(zip(rows, self.heard, strict=True)):
            first = len(said(_asked(row))) if prompts else len(heard)
            known = {row["id"], *(word for pair in heard for word in pair)}
            more = [text for text in texts(row) if text not in known] if beside else []
            texts_ += [text for _, text in heard] + more
            of += [i] * (len(heard) + len(more))
            said_ += [True] * len(heard) + [False] * len(more)
            near += [n < first and role != "system" for n, (role, _) in enumerate(heard)]
            near += [False] * len(more)
        self.rows = len(rows)
        self.texts = Texts(texts_)
        self.of = of
        """Which row each text is of."""

        self.said = np.array(said_, bool)
        """Whether it is said; else it stands in a column beside."""

        self.near = np.array(near, bool)
        """Whether it is compared with what other rows say."""

    def count(self, texts: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Of every row, the words of these texts."""
        lengths = self.texts.lengths * texts
        return np.bincount(self.of, lengths, self.rows).astype(np.int64)


def removed(row: Row, why: Why) -> Row:
    """What is kept of a row that is removed."""
    return {"id": row["id"], "reason": why.reason, "facts": why.facts, "said": said(row)}


def encoded(row: Row) -> bytes:
    """A row as a line."""
    return encode(dumps(row))


def encode(line: str) -> bytes:
    """JSON as a line; halves of characters, which UTF-8 has no bytes for, are escapes in it."""
    try:
        return line.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(json.loads(line)).encode() + b"\n"


def _asked(row: Row) -> Row:
    """What comes before the answers; of a conversation, before the last one."""
    if "prompt" in row:
        return {"prompt": row["prompt"]}
    messages = list(row.get("messages", ()))
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return {"messages": messages}

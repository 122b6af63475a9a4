"""Rules that look at all rows together, one after the other, and what becomes of the rows at last.

data/rows.jsonl    the rows that stay, in the order of the input
removed.jsonl      those that are removed, in that order: id, reason, facts, said
metrics.json       counts, by source and by reason
"""

from __future__ import annotations

import heapq
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from align.artifacts import Prompts
from align.curation.flow import Table
from align.curation.looking import Looker, encoded, removed
from align.curation.rules import Row, Why, put_back, said
from align.out import Out


class Sifter(Protocol):
    """A block of `curate` that looks at all rows."""

    def sift(self, rows: Callable[[], Iterator[Row]], out: Out) -> Iterator[tuple[Row, Why | None]]:
        """Every row in its order, changed or not, and why it is removed."""
        ...


class Part:
    """Lines in a file, each with the place that its row had in the input."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.places = array("q")
        self._lines = file.open("wb")

    def add(self, place: int, line: bytes) -> None:
        """One more."""
        self.places.append(place)
        self._lines.write(line)

    def close(self) -> None:
        """Nothing more is added."""
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._lines.close()

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Every line with its place."""
        with self.file.open("rb") as lines:
            yield from zip(self.places, lines, strict=True)

    def rows(self) -> Iterator[Row]:
        """Every line as a row."""
        for _, line in self.lines():
            yield json.loads(line)


class Sieve:
    """The rows that stay so far, and those that are removed."""

    def __init__(self, table: Table, looker: Looker, out: Out) -> None:
        self._table, self._looker, self._out = table, looker, out
        self._stay, gone = self._parts()
        self._gone = [gone]
        with closing(self._stay), closing(gone):
            for place, stays, line in table.lines():
                (self._stay if stays else gone).add(place, line)

    def sift(self, rule: Sifter) -> None:
        """Apply a rule to those that stay. Rows that say something else now are looked at again."""
        before, (self._stay, gone) = self._stay, self._parts()
        self._gone.append(gone)
        after = rule.sift(before.rows, self._out)
        with closing(self._stay), closing(gone):
            for place, row, (new, why) in zip(before.places, before.rows(), after, strict=True):
                if why is None and said(new) != said(row):
                    new, why, self._table.words[place] = self._looker.again(new)
                if why is None:
                    self._stay.add(place, encoded(new))
                else:
                    gone.add(place, encoded(removed(row, why)))
        before.file.unlink()

    def finish(self, sources: Sequence[str]) -> dict[str, Any]:
        """Write the artifact's files; the numbers that are in `metrics.json`."""
        out, of = self._out, self._table.sources
        dropped: Counter[tuple[int, str]] = Counter()
        with (out.path / "removed.jsonl").open("wb") as file:
            for place, line in heapq.merge(*(p.lines() for p in self._gone), key=itemgetter(0)):
                file.write(line)
                row = json.loads(line)
                dropped[int(of[place]), row["reason"]] += 1
                example = {"id": row["id"], **row["facts"]}
                out.count(f"dropped.{row['reason']}", example=example)
            file.flush()
            os.fsync(file.fileno())
        (out.path / "data").mkdir(exist_ok=True)
        if issubclass(self._looker.kind, Prompts):
            self._put_back()
        os.replace(self._stay.file, out.path / "data" / "rows.jsonl")
        kept = np.frombuffer(self._stay.places, np.int64)
        out.count("read", len(of))
        out.count("kept", len(kept))
        read = self._numbers(np.arange(len(of)), self._table.read, len(sources))
        stays = self._numbers(kept, self._table.words[kept], len(sources))
        return {
            "read": _summed(read),
            "kept": _summed(stays),
            "sources": [
                {
                    "source": name,
                    "read": read[i],
                    "kept": stays[i],
                    "dropped": {why: n for (source, why), n in dropped.items() if source == i},
                }
                for i, name in enumerate(sources)
            ],
        }

    def _put_back(self) -> None:
        """Write those that stay with the names that their columns came with."""
        before, (self._stay, gone) = self._stay, self._parts()
        with closing(self._stay), closing(gone):
            for place, row in zip(before.places, before.rows(), strict=True):
                self._stay.add(place, encoded(put_back(row)))
        before.file.unlink()

    def _numbers(self, places: Any, words: Any, sources: int) -> list[dict[str, int]]:
        """Rows and their words, by source."""
        of = self._table.sources[places]
        each = zip(np.bincount(of, minlength=sources), np.bincount(of, words, sources), strict=True)
        return [{"rows": int(n), "words": int(said)} for n, said in each]

    def _parts(self) -> tuple[Part, Part]:
        """New files, for rows that stay and rows that do not."""
        number = len(list(self._looker.folder.glob("gone-*")))
        folder = self._looker.folder
        return Part(folder / f"stay-{number}"), Part(folder / f"gone-{number}")


def say(metrics: dict[str, Any], rules: Sequence[str], out: Out) -> None:
    """What was left out and what changed, what each of these rules has removed, what is left."""
    gone: Counter[str] = Counter()
    for source in metrics["sources"]:
        gone.update(source["dropped"])
    if unread := _counted(out, "dropped.", gone):
        out.say(f"Left out while reading: {unread}.")
    if changed := _counted(out, "changed.", {}):
        out.say(f"Changed: {changed}.")
    reasons = [REASONS.get(rule, rule) for rule in rules]
    for reason in [*sorted(gone.keys() - reasons), *reasons]:
        line = f"{reason}: {gone[reason]:,} rows removed"
        if reason == "contamination" and gone[reason]:
            first = out.counts["dropped.contamination"]["examples"][0]
            line += f'; row {first["id"]} holds "{first["gram"]}" of {first["task"]}, '
            line += f"item {first['item']}"
        out.say(f"{line}.")
    read, kept = metrics["read"], metrics["kept"]
    out.say(
        f"Kept {kept['rows']:,} of {read['rows']:,} rows, {kept['words']:,} of "
        f"{read['words']:,} words."
    )


REASONS = {"decontaminate": "contamination"}
"""Of rules, where counts have another word than the key."""


def _counted(out: Out, prefix: str, but: Mapping[str, int]) -> str:
    """`email 3, phone 1`: the counts of that prefix, less these."""
    names = sorted(name.removeprefix(prefix) for name in out.counts if name.startswith(prefix))
    found = {name: out.counts[f"{prefix}{name}"]["n"] - but.get(name, 0) for name in names}
    return ", ".join(f"{name} {n:,}" for name, n in found.items() if n)


def _summed(each: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(one[name] for one in each) for name in ("rows", "words")}

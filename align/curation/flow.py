"""Rows are looked at in processes, each for itself, and then compared with each other.

The parent keeps numbers of every row, the rows lie in files. What is found hangs neither on the
order of the rows nor on how many processes there are.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align import processes
from align.curation import minhash
from align.curation.looking import BANDS, GRAMS, ROWS, Looker, Lot, encoded, removed
from align.curation.rules import Row, Why, said
from align.curation.words import Numbers, Texts, lots, starts
from align.errors import StageFailed
from align.out import EXAMPLES, Out
from align.verifiers.cores import cores

AHEAD = 2
"""Lots that wait for each process, so that none waits for us."""

_looker: Looker
"""Of this process."""


def look(rows: Iterable[tuple[int, Row]], looker: Looker, out: Out) -> Table:
    """Have all rows looked at, each with the number of its source, on all cores.

    Raises:
        StageFailed: a process was killed, or a rule raised one.
    """
    shutil.rmtree(looker.folder, ignore_errors=True)  # of a run that was killed: it begins anew
    looker.folder.mkdir(parents=True)
    Texts([" "])  # makes tables that all processes share
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    count = cores()
    found: list[Lot] = []
    with ProcessPoolExecutor(count, context, _begin, (looker, os.getpid())) as pool:
        pool.submit(os.getpid).result()  # all are forked here, before anything has a thread
        ahead = deque[Any]()
        try:
            for lot in lots(rows, lambda pair: (text for _, text in said(pair[1]))):
                ahead.append(pool.submit(_look, lot))
                if len(ahead) > AHEAD * count:
                    found.append(_taken(ahead.popleft().result(), out))
            found += [_taken(one.result(), out) for one in ahead]
        except BrokenProcessPool:
            raise StageFailed(
                "A process that looked at rows was killed (out of memory?). Run it again: rows are "
                "read anew. OMP_NUM_THREADS=1 takes one process."
            ) from None
    return Table(looker.folder, found)


def _begin(looker: Looker, parent: int) -> None:
    global _looker
    processes.die_with(parent)
    _looker = looker


def _look(lot: list[tuple[int, Row]]) -> Lot:
    return _looker.look([row for _, row in lot], [source for source, _ in lot])


def _taken(lot: Lot, out: Out) -> Lot:
    """A lot whose counts are added to the stage's."""
    for name, count in lot.counts.items():
        total = out.counts.setdefault(name, {"n": 0})
        total["n"] += count["n"]
        if examples := [*total.get("examples", ()), *count.get("examples", ())]:
            total["examples"] = examples[:EXAMPLES]
    lot.counts = {}
    return lot


class Table:
    """What is known of every row, in the order of the rows: 44 bytes each, more while comparing.

    `gone` are the rows that are removed so far, `sources` the numbers of their sources, `read` the
    words that they came with, `words` those that they have.
    """

    def __init__(self, folder: Path, lots: list[Lot]) -> None:
        self._lots = [(lot.by, lot.at) for lot in lots]
        self._first = starts(np.array([len(lot.columns["gone"]) for lot in lots] + [0]))
        """Where each lot begins; at last how many rows there are."""

        columns: dict[str, NDArray[Any]] = {}
        for name in list(lots[0].columns) if lots else ():
            columns[name] = np.concatenate([lot.columns.pop(name) for lot in lots])
        order = np.lexsort((columns.pop("id"), columns.pop("holds"), -columns.pop("score")))
        self._rank = np.empty(len(order), np.int64)
        """Which of several rows stays: the lowest. It follows from what they hold."""

        self._rank[order] = np.arange(len(order))
        self._columns = columns
        self.sources, self.gone = columns["source"], columns["gone"]
        self.read, self.words = columns["read"], columns["words"]
        self._same = np.arange(len(order))
        """Of a row that repeats another, that one; else itself."""

        named = {(lot.by, name) for lot in lots for name in lot.at}
        self._files = {(by, name): (folder / f"{name}-{by}").open("rb") for by, name in named}

    def close(self) -> None:
        """Let go of the files; the numbers stay."""
        for file in self._files.values():
            file.close()

    def exact(self) -> None:
        """Of rows that say the same remove all but the one that comes first by rank."""
        there = np.flatnonzero(~self.gone)
        order = there[np.lexsort((self._rank[there], self._columns["content"][there]))]
        says = self._columns["content"][order]
        new = np.append(True, says[1:] != says[:-1])[: len(says)]
        self._remove(order, order[new][np.cumsum(new) - 1])

    def near(self, looker: Looker, out: Out) -> None:
        """Of rows that nearly say the same remove all but the one that comes first by rank."""
        assert looker.near is not None
        there = np.flatnonzero(~self.gone & (self._columns["grams"] > 0))
        columns = (self._band(band)[there] for band in range(looker.shape[0]))
        firsts, crowded = minhash.groups(
            columns, self._rank[there], lambda row: self.grams(there[row]), looker.near.similarity
        )
        self._remove(there, there[firsts])
        if crowded:
            out.count("near.crowded", crowded)
            out.say(
                f"near: {crowded:,} rows are in crowds, as those of one template. Each was not "
                f"compared with all others, but with {minhash.WINDOW} of a band and with those "
                "that share its rarest runs."
            )

    def _remove(self, rows: NDArray[np.int64], kept: NDArray[np.int64]) -> None:
        self._same[rows] = kept
        self.gone[rows] |= rows != kept

    def lines(self) -> Iterator[tuple[int, bool, bytes]]:
        """(place, whether it stays, line) of every row; of one that is removed, what is kept."""
        for lot, (begin, end) in enumerate(pairwise(self._first.tolist())):
            sizes = self._columns["size"][begin:end]
            text = self._read(lot, ROWS, 0, int(sizes.sum()))
            ends = np.cumsum(sizes).tolist()
            for row, first, last in zip(range(begin, end), [0, *ends], ends, strict=False):
                line = text[first:last]
                if self._same[row] != row:
                    line = encoded(self._repeats(row, json.loads(line)))
                yield row, not self.gone[row], line

    def _repeats(self, place: int, row: Row) -> Row:
        """What is kept of a row that repeats another."""
        other = int(self._same[place])
        stays = int(self._same[other])
        facts = {"repeats": self._row(stays)["id"]}
        if self._columns["content"][place] == self._columns["content"][other]:
            return removed(row, Why("exact", facts))
        alike = minhash.jaccard(self.grams(place), self.grams(stays))
        return removed(row, Why("near", {**facts, "similarity": round(alike, 3)}))

    def _row(self, place: int) -> Row:
        lot = self._lot(place)
        before = int(self._columns["size"][self._first[lot] : place].sum())
        row: Row = json.loads(self._read(lot, ROWS, before, int(self._columns["size"][place])))
        return row

    def _band(self, band: int) -> Numbers:
        """The number of a band, of every row."""
        found = np.empty(len(self.gone), np.uint64)
        for lot, (begin, end) in enumerate(pairwise(self._first.tolist())):
            size = 8 * (end - begin)
            part = self._read(lot, BANDS, band * size, size)
            found[begin:end] = np.frombuffer(part, np.uint64)
        return found

    def grams(self, place: int) -> Numbers:
        """The different runs of a row, sorted."""
        lot = self._lot(place)
        counts = self._columns["grams"]
        before = int(counts[self._first[lot] : place].sum())
        found = self._read(lot, GRAMS, 8 * before, 8 * int(counts[place]))
        return np.frombuffer(found, np.uint64)

    def _lot(self, place: int) -> int:
        return int(np.searchsorted(self._first, place, side="right")) - 1

    def _read(self, lot: int, name: str, start: int, size: int) -> bytes:
        by, at = self._lots[lot]
        return os.pread(self._files[by, name].fileno(), size, at[name] + start)

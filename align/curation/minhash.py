"""Groups of rows that share most of their runs of words, found without comparing all pairs.

A sketch of a row is the least of its runs' numbers under each of 128 hash functions; two rows have
one of these in common with a probability that is the Jaccard similarity s of their sets of runs.
With b bands of r of them, some band is the same in both with probability 1-(1-s^r)^b (Leskovec et
al., Mining of Massive Datasets, §3.4). Rows with a band in common are compared by their very runs.

Where many rows share a template, most of them meet in a band, and there are too many pairs. In such
a crowd a row is compared with some of a band, and with those that share the rarest of its runs.

What is found hangs on the rows alone, not on their order: who is compared with whom goes by a rank
that their content gives them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from align.curation.words import ODD, Numbers, runs, starts

Counts = NDArray[np.int64]

GRAM = 5
"""Words of a run (FineWeb, arXiv 2406.17557)."""

HASHES = 128

SURE = 0.99
"""The probability that two rows of just the similarity that is asked for meet in a band."""

WINDOW = 16
"""Rows that a row is compared with at most, of those with the same band, or the same run: those
before it by rank. If there are more they are a crowd."""

KEYS, MANY = 8, 1000
"""Of a row in such a crowd, the rarest of its runs, by which it is compared, too: as many as that,
and none that more rows have. What many have is the template, and says nothing of who is near."""

ROW = np.uint64(0xFFFFFFFF)
"""Of a run and a row in one number, the bits of the row."""

CHUNK = 1 << 16
"""Such numbers that are compared at once."""

TIMES = 24
"""Bits of the places in which the rows of crowds are counted that have a run; where two runs have
one place, they are counted together."""

REFUSED = 22
"""Bits of the places for pairs that were compared and are not near, so that they are not compared
again in each band; where two pairs have one place, the later one has it."""


def bands(similarity: float) -> tuple[int, int]:
    """(bands, hashes in each): the longest ones with which rows that are near enough meet."""
    for rows in range(HASHES, 1, -1):
        if meeting(similarity, HASHES // rows, rows) >= SURE:
            return HASHES // rows, rows
    return HASHES, 1


def meeting(similarity: float, bands: int, rows: int) -> float:
    """The probability that two rows have a band in common."""
    return float(1 - (1 - similarity**rows) ** bands)


def grams(numbers: Numbers, lengths: Counts) -> tuple[Numbers, Counts]:
    """The runs of every text, and how many it has; a shorter text is one run, an empty one none."""
    found, places = runs(numbers, lengths, GRAM)
    counts = np.maximum(lengths - GRAM + 1, 0)
    short = np.flatnonzero((lengths > 0) & (lengths < GRAM))
    if not len(short):
        return found, counts
    counts[short] = 1
    first = starts(lengths)
    whole = [
        runs(numbers[first[i] : first[i] + lengths[i]], lengths[i : i + 1], int(lengths[i]))[0]
        for i in short
    ]
    order = np.argsort(np.concatenate([places, first[short]]), kind="stable")
    return np.concatenate([found, *whole])[order], counts


def different(found: Numbers, counts: Counts) -> tuple[Numbers, Counts]:
    """The different runs of every text, sorted, and how many they are."""
    found, begins = found.copy(), starts(counts)
    for begin, count in zip(begins.tolist(), counts.tolist(), strict=True):
        found[begin : begin + count].sort()
    new = np.append(True, found[1:] != found[:-1])[: len(found)]
    new[begins[counts > 0]] = True
    sums = np.append(0, np.cumsum(new))
    return found[new], sums[begins + counts] - sums[begins]


def sketch(found: Numbers, counts: Counts, shape: tuple[int, int]) -> Numbers:
    """The bands of every row, one number each: (rows, bands)."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # we are one process of several
    import rensa  # type: ignore[import-untyped]

    offsets = np.concatenate([starts(counts), [len(found)]]).astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        found, offsets, shape[0] * shape[1], 1
    )
    least = np.array(matrix.to_rows(), np.uint64).reshape(-1, shape[1])
    lengths = np.full(len(least), shape[1])
    return runs(least.ravel(), lengths, shape[1])[0].reshape(-1, shape[0])


def groups(
    columns: Iterator[Numbers], rank: Counts, runs_of: Callable[[int], Numbers], similarity: float
) -> tuple[Counts, int]:
    """Of every row the one of its group that comes first by `rank`; how many rows are in crowds.

    Args:
        columns: band after band, the number of every row.
        rank: of every row; no two are equal.
        runs_of: the different runs of a row, sorted.
        similarity: from which two rows are in one group.
    """
    joined = _Joined(rank, runs_of, similarity)
    crowded = np.zeros(len(rank), np.bool_)
    for column in columns:
        for members in _equal(column):
            joined.compare(members)
            if len(members) > WINDOW + 1 and joined.several(members):
                crowded[members] = True
    rows = np.flatnonzero(crowded)
    for members in _having(_rarest(rows, runs_of)):
        joined.compare(members)
    return np.fromiter(map(joined.top, range(len(rank))), np.int64, len(rank)), len(rows)


class _Joined:
    """Rows in groups, which grow as pairs are found near."""

    def __init__(self, rank: Counts, runs_of: Callable[[int], Numbers], similarity: float) -> None:
        self._rank, self._similarity = rank, similarity
        self._above = np.arange(len(rank))
        self._runs = lru_cache(2 * WINDOW)(runs_of)  # of the rows that a row is compared with
        self._refused = np.zeros(1 << REFUSED, np.uint64)

    def top(self, row: int) -> int:
        """The first of a row's group."""
        above = self._above
        while above[row] != row:
            above[row] = above[above[row]]
            row = int(above[row])
        return row

    def several(self, members: Counts) -> bool:
        """Whether these rows are not all in one group."""
        tops = map(self.top, map(int, members))
        first = next(tops)
        return any(top != first for top in tops)

    def compare(self, members: Counts) -> None:
        """Compare each of these rows with those before it, in the order of their rank."""
        members = members[np.argsort(self._rank[members])]
        for i, row in enumerate(map(int, members)):
            others = members[max(0, i - WINDOW) : i]
            pairs = (row * len(self._rank) + others + 1).astype(np.uint64)  # 0 is no pair
            places = pairs * ODD >> np.uint64(64 - REFUSED)
            new = self._refused[places] != pairs
            for other, place, pair in zip(
                others[new].tolist(), places[new], pairs[new], strict=True
            ):
                ours, theirs = self.top(row), self.top(other)
                if ours == theirs:
                    continue
                if jaccard(self._runs(row), self._runs(other)) >= self._similarity:
                    first, last = sorted((ours, theirs), key=self._rank.__getitem__)
                    self._above[last] = first
                else:
                    self._refused[place] = pair


def _rarest(rows: Counts, runs_of: Callable[[int], Numbers]) -> Numbers:
    """The runs of each row that the fewest others of these rows have: sorted, 32 bits of the run,
    which are enough to find who is to be compared, and then 32 of the row.
    """
    shift = np.uint64(64 - TIMES)
    times = np.zeros(1 << TIMES, np.uint32)
    for row in map(int, rows):
        times[runs_of(row) >> shift] += 1
    keys, count = np.empty(KEYS * len(rows), np.uint64), 0
    for row in map(int, rows):
        found = runs_of(row)
        having = times[found >> shift]
        found, having = (each[(having > 1) & (having <= MANY)] for each in (found, having))
        rarest = found[np.argsort(having, kind="stable")[:KEYS]]
        keys[count : count + len(rarest)] = rarest & ~ROW | np.uint64(row)
        count += len(rarest)
    keys[:count].sort()
    return keys[:count]


def _having(keys: Numbers) -> Iterator[Counts]:
    """The rows that have a run in common, of what `_rarest` has found; a part of it at a time."""
    at = 0
    while at < len(keys):
        end = int(np.searchsorted(keys, keys[at : at + CHUNK][-1] | ROW, side="right"))
        part = keys[at:end]
        for places in _equal(part & ~ROW):
            yield (part[places] & ROW).astype(np.int64)
        at = end


def jaccard(a: Numbers, b: Numbers) -> float:
    """The share of the runs of both that are in both; of sorted, different runs."""
    every = np.concatenate([a, b])
    every.sort()
    both = int(np.count_nonzero(every[1:] == every[:-1]))
    return both / (len(a) + len(b) - both)


def _equal(column: Numbers) -> Iterator[Counts]:
    """The places of numbers that occur more than once."""
    order = np.argsort(column, kind="stable")
    column = column[order]
    again = np.append(column[1:] == column[:-1], False)
    begins = np.flatnonzero(again & ~np.append(False, again[:-1]))
    ends = np.flatnonzero(~again & np.append(False, again[:-1])) + 1
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        yield order[begin:end]

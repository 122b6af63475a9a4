"""Groups of rows that share most of their runs of words, found without comparing all pairs.

A sketch of a row is the least of its runs' numbers under each of 128 hash functions; two rows have
one of these in common with a probability that is the Jaccard similarity s of their sets of runs.
With b bands of r of them, some band is the same in both with probability 1-(1-s^r)^b (Leskovec et
al., Mining of Massive Datasets, §3.4). Rows with a band in common are compared by their very runs.

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
"""Rows of a band that a row is compared with at most: those before it by rank. More rows meet only
where many share a template that is most of what they say, and are not near each other."""

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
) -> Counts:
    """Of every row the one of its group that comes first by `rank`.

    Args:
        columns: band after band, the number of every row.
        rank: of every row; no two are equal.
        runs_of: the different runs of a row, sorted.
        similarity: from which two rows are in one group.
    """
    above = np.arange(len(rank))
    known = lru_cache(2 * WINDOW)(runs_of)  # of the rows that a row is compared with
    refused = np.zeros(1 << REFUSED, np.uint64)

    def top(row: int) -> int:
        while above[row] != row:
            above[row] = above[above[row]]
            row = int(above[row])
        return row

    for column in columns:
        for members in _equal(column):
            members = members[np.argsort(rank[members])]
            for i, row in enumerate(members.tolist()):
                others = members[max(0, i - WINDOW) : i]
                pairs = (row * len(rank) + others + 1).astype(np.uint64)  # 0 is no pair
                places = pairs * ODD >> np.uint64(64 - REFUSED)
                new = refused[places] != pairs
                for other, place, pair in zip(
                    others[new].tolist(), places[new], pairs[new], strict=True
                ):
                    ours, theirs = top(row), top(other)
                    if ours == theirs:
                        continue
                    if jaccard(known(row), known(other)) >= similarity:
                        first, last = sorted((ours, theirs), key=rank.__getitem__)
                        above[last] = first
                    else:
                        refused[place] = pair
    return np.fromiter(map(top, range(len(rank))), np.int64, len(rank))


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

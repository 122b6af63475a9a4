"""Words of texts, and runs of them, as numbers that are the same in every process."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Numbers = NDArray[np.uint64]

LOT, CHARACTERS = 1000, 1 << 20
"""Rows that are looked at together, and what they may say."""

_WORD = re.compile(r"\w+")

_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio (Knuth 6.4)


def words(text: str) -> list[str]:
    """Letters and digits, small."""
    return _WORD.findall(text.lower())


class _Known(dict[str, int]):
    """64 bits of every word's hash; looking one up again takes a tenth of the time."""

    MOST = 1 << 20

    def __missing__(self, word: str) -> int:
        if len(self) >= self.MOST:
            self.clear()
        number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        self[word] = number
        return number


_KNOWN = _Known()


class Texts:
    """The words of many texts, one after the other.

    `words` and their `numbers` are flat; `lengths` says how many words each text has, and `starts`
    where they begin.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        each = [words(text) for text in texts]
        self.words = list(chain.from_iterable(each))
        self.numbers: Numbers = np.fromiter(
            map(_KNOWN.__getitem__, self.words), np.uint64, len(self.words)
        )
        self.lengths = np.fromiter(map(len, each), np.int64, len(each))
        self.starts = starts(self.lengths)

    def key(self, text: int) -> bytes:
        """The same for texts of the same words."""
        start = self.starts[text]
        return self.numbers[start : start + self.lengths[text]].tobytes()


def lots(rows: Iterable[T], texts: Callable[[T], Iterable[str]]) -> Iterator[list[T]]:
    """Rows in lists that are neither long nor large, so that long documents take no memory."""
    lot: list[T] = []
    characters = 0
    for row in rows:
        lot.append(row)
        characters += sum(map(len, texts(row)))
        if len(lot) == LOT or characters >= CHARACTERS:
            yield lot
            lot, characters = [], 0
    if lot:
        yield lot


def starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of several parts begins that lie one after the other."""
    return np.cumsum(lengths) - lengths


def runs(numbers: Numbers, lengths: NDArray[np.int64], n: int) -> tuple[Numbers, NDArray[np.int64]]:
    """The runs of n words that lie within one text: their numbers, and where they begin.

    Two runs of the same words have the same number, and others meet in one of 2^64.
    """
    if len(numbers) < n:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    mixed = np.zeros(len(numbers) - n + 1, np.uint64)
    for i in range(n):
        mixed ^= numbers[i : i + len(mixed)]
        mixed *= _ODD
        mixed ^= mixed >> np.uint64(29)
    left = np.repeat(starts(lengths) + lengths, lengths) - np.arange(len(numbers))
    places = np.flatnonzero(left >= n)
    return mixed[places], places

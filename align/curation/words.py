"""Words of texts, and runs of them, as numbers that are the same in every process."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from align.curation.scripts import SPACELESS, plain

T = TypeVar("T")
Numbers = NDArray[np.uint64]

LOT, CHARACTERS = 1000, 1 << 20
"""Rows that are looked at together, and what they may say."""

PIECE = 1 << 17
"""Characters whose hashes are computed together: few enough for a processor's cache."""

ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio (Knuth, vol. 3, 6.4)

FORM = 2
"""Which words are found: another number where others are, so that nothing kept is taken for it."""

_LETTER, _ALONE, _MARK = 1, 2, 3
"""A character that words are made of, one that is a word, and a sign that belongs to that."""


class Texts:
    """The words of many texts, one after the other: runs of letters and digits, small.

    Where a script puts no space between words, every letter is one, with its signs. Characters are
    in NFC, and those that are not seen (a zero-width space, a soft hyphen) are not there.

    `numbers` are 64 bits of each word's hash; `lengths` says how many words each text has, and
    `starts` where they begin.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        each = [text.lower() if text.isascii() else plain(text) for text in texts]
        self._text = "\n".join(each)
        found = [_words(piece, at) for at, piece in _pieces(self._text)]
        self.numbers, self._begins, self._ends = map(
            np.concatenate, zip(_NONE, *found, strict=True)
        )
        ends = np.cumsum(np.fromiter(map(len, each), np.int64, len(each)) + 1)
        self.lengths = np.diff(np.searchsorted(self._begins, ends), prepend=0)
        self.starts = starts(self.lengths)

    def key(self, text: int) -> bytes:
        """The same for texts of the same words."""
        start = self.starts[text]
        return self.numbers[start : start + self.lengths[text]].tobytes()

    def run(self, place: int, n: int) -> str:
        """The n words from a place on."""
        ends = zip(self._begins[place : place + n], self._ends[place : place + n], strict=True)
        return " ".join(self._text[begin:end] for begin, end in ends)


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
        mixed *= ODD
        mixed ^= mixed >> np.uint64(29)
    left = np.repeat(starts(lengths) + lengths, lengths) - np.arange(len(numbers))
    places = np.flatnonzero(left >= n)
    return mixed[places], places


_NONE = (np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """A text in parts, with the place of each; no word is cut."""
    begin = 0
    while begin < len(text):
        end = begin + PIECE
        while end < len(text) and _kinds()[ord(text[end])] in (_LETTER, _MARK):
            end += 1
        yield begin, text[begin:end]
        begin = end


def _words(text: str, at: int) -> tuple[Numbers, NDArray[np.int64], NDArray[np.int64]]:
    """The number of every word, and where it begins and ends.

    Its hash is a polynomial with a random number for each character, read off sums over the whole
    text: of all words at once, and without a string for any of them.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    marks = _marks()[codes]
    edges = np.flatnonzero(np.diff(marks != 0, prepend=False, append=False))
    begins, ends = edges[::2], edges[1::2]
    if not text.isascii():
        kinds = _kinds()[codes]
        left, right = kinds[:-1], kinds[1:]
        cut = (left > 0) & ((right == _ALONE) | (right == _LETTER) & (left > _LETTER))
        within = np.flatnonzero(cut) + 1
        begins, ends = (np.sort(np.append(each, within)) for each in (begins, ends))
    powers, inverse = _powers(max(2 * PIECE, len(marks) + 1))
    sums = np.append(np.uint64(0), np.cumsum(marks * powers[: len(marks)]))
    numbers: Numbers = (sums[ends] - sums[begins]) * inverse[begins]
    return numbers, begins + at, ends + at


@cache
def _marks() -> Numbers:
    """By code point: a number for each character of words, and 0 for all others."""
    known = _kinds() > 0
    marks: Numbers = np.random.default_rng(0).integers(1, 2**64, len(known), np.uint64) * known
    return marks


@cache
def _kinds() -> NDArray[np.uint8]:
    """By code point: what it is in a word, and 0 for what is in none."""
    codes = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    kinds: NDArray[np.uint8] = (np.strings.isalnum(codes.view("U1")) | (codes == ord("_"))).astype(
        np.uint8
    )
    for first, last in SPACELESS:
        part, characters = kinds[first : last + 1], codes[first : last + 1].view("U1")
        part[(part > 0) & ~np.strings.isdecimal(characters)] = _ALONE
        for place in np.flatnonzero(part == 0):
            if unicodedata.category(characters[place])[0] == "M":
                part[place] = _MARK
    return kinds


@lru_cache(1)
def _powers(n: int) -> tuple[Numbers, Numbers]:
    """The powers of an odd number modulo 2^64, and their inverses."""
    bases = int(ODD), pow(int(ODD), -1, 2**64)
    powers, inverse = (
        np.append(np.uint64(1), np.full(n - 1, base, np.uint64)).cumprod(dtype=np.uint64)
        for base in bases
    )
    return powers, inverse

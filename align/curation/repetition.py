"""How much of a text was there before: the shares of Gopher's rules (arXiv 2112.11446, table A1).

Two things differ from datatrove's filter. What comes once is no repetition, so the most frequent
words of a short text are none; and words are what stands between white space,
or letters where a script has none (`scripts.apart`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from align.curation.scripts import apart

SHORTEST = 50
"""Words of the shortest text whose shares say something: Gopher keeps no shorter documents."""

LONGEST = 100_000
"""Characters that are read of a text: its shares are those of its first ten thousand words."""


@dataclass(frozen=True)
class Shares:
    """Of a text: from 0, nothing comes twice, to 1. Characters are counted of the whole text."""

    lines: float
    paragraphs: float
    line_characters: float
    paragraph_characters: float
    top_ngrams: tuple[float, ...]
    """For 2, 3 and 4 words."""

    duplicate_ngrams: tuple[float, ...]
    """For 5 to 10 words."""


def shares(text: str) -> Shares | None:
    """The shares of a text; None where it has fewer words than say something."""
    text = text[:LONGEST].strip()
    words = apart(text)
    if len(words) < SHORTEST:
        return None
    between = " " if len(words) == len(text.split()) else ""
    lines = re.split(r"\n+", text)
    paragraphs = re.split(r"\n{2,}", text)
    line, paragraph = _again(lines), _again(paragraphs)
    return Shares(
        len(line) / len(lines),
        len(paragraph) / len(paragraphs),
        sum(map(len, line)) / len(text),
        sum(map(len, paragraph)) / len(text),
        tuple(_top(words, n, between) / len(text) for n in (2, 3, 4)),
        tuple(n / len(text) for n in _duplicates(words)),
    )


def _again(things: Sequence[str]) -> list[str]:
    """Those that were there before."""
    return [thing for thing, times in Counter(things).items() for _ in range(times - 1)]


def _top(words: list[str], n: int, between: str) -> int:
    """Characters in all places of the run of n words that comes most often, if more than once."""
    runs = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    [(run, times)] = runs.most_common(1)
    return times * len(between.join(run)) if times > 1 else 0


def _duplicates(words: list[str]) -> list[int]:
    """Characters in runs of 5 to 10 words that were there before; none is counted twice."""
    found: list[int] = []
    for n in range(5, 11):
        runs = list(zip(*(words[i:] for i in range(n)), strict=False))
        if len(set(runs)) == len(runs):  # then no longer one comes twice
            return found + [0] * (11 - n)
        seen: set[tuple[str, ...]] = set()
        characters = at = 0
        while at < len(runs):
            if runs[at] in seen:
                characters += sum(map(len, runs[at]))
                at += n
            else:
                seen.add(runs[at])
                at += 1
        found.append(characters)
    return found

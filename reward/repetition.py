"""How much of an answer is said for the first time."""

import re
from typing import Any

from pydantic import Field

from align.rewards import Numbers, text
from align.settings import Dialog, Reward

LONGEST = 20
"""A run of more characters without a space is no word: it is read character by character."""

_RULE = re.compile(r"(?<![-=_*|:+])[-=_*|:+]{3,200}(?![-=_*|:+])")
"""A line drawn in a table or under a heading; a loop is longer."""


class Repetition(Reward):
    """The share of an answer's n-grams that are new where they stand: 1 where nothing comes twice.

    It is 1 minus seq-rep-n (Welleck et al., arXiv 1908.04319), and near 0 in a loop. Units are
    words, and characters in text without spaces. The detail `lines` is the share of lines that are
    new, as Gopher's filter has it (arXiv 2112.11446, appendix A).
    """

    n: int = Field(4, ge=1)
    """Units in a row that count as one; an answer with fewer repeats nothing."""

    def __call__(
        self, *, prompts: list[Dialog], completions: list[Dialog], **columns: list[Any]
    ) -> list[dict[str, float | None]]:
        """Two shares per answer."""
        return [self._numbers(text(one)) for one in completions]

    def _numbers(self, said: str) -> Numbers:
        units = _units(said)
        grams = list(zip(*(units[i:] for i in range(self.n)), strict=False))
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return {"score": _new(grams), "lines": _new(lines)}


def _units(said: str) -> list[str]:
    return [
        unit
        for word in _RULE.sub(" ", said.lower()).split()
        for unit in ([word] if len(word) <= LONGEST else word)
    ]


def _new(things: list[Any]) -> float:
    return len(set(things)) / len(things) if things else 1.0

"""How good and how hard rows are, by what scores answers anywhere else: rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import Field, FiniteFloat

from align.artifacts import Rows
from align.curation.rules import Row, Why
from align.out import Out
from align.settings import Reward, Settings


class Quality(Settings):
    """The best rows by a reward model, or by a judge (Llama 3, arXiv 2407.21783, §4.2.3).

    Of a conversation the last answer is scored, of preferences the chosen one. Rows get a column
    `quality`.
    """

    reward: Reward | None = None
    """What ranks all rows, as {use: reward/model.py, model: reward}."""

    top: float = Field(0.25, gt=0, lt=1)
    """The share of the rows that is good by `reward`."""

    judge: Reward | None = None
    """What marks each row for itself, as {use: reward/judge.py, …}."""

    at_least: FiniteFloat | None = None
    """The mark from which a row is good by `judge`: the highest of the scale, in Llama 3."""

    keep: Literal["either", "both"] = "either"
    """Whether one of the two is enough: Llama 3 finds that they often disagree, and takes either
    for the best recall."""

    def misfit(self, kind: type[Rows]) -> str | None:
        """Why rows of this type cannot be scored; None: they can."""
        raise NotImplementedError

    def sift(self, rows: Callable[[], Iterator[Row]], out: Out) -> Iterator[tuple[Row, Why | None]]:
        """Every row in its order with its column; and why it is removed: `quality`."""
        raise NotImplementedError


class Difficulty(Settings):
    """Rows that are hard enough. They get a column `difficulty`."""

    judge: Reward
    """What says how hard it is, as {use: reward/difficulty.py, …}."""

    at_least: FiniteFloat
    """The lowest number that stays."""

    def misfit(self, kind: type[Rows]) -> str | None:
        """Why rows of this type cannot be scored; None: they can."""
        raise NotImplementedError

    def sift(self, rows: Callable[[], Iterator[Row]], out: Out) -> Iterator[tuple[Row, Why | None]]:
        """Every row in its order with its column; and why it is removed: `difficulty`."""
        raise NotImplementedError

"""Gates: what a model must reach for a recipe to go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from align.artifacts import Model, RewardModel
from align.asking import identity, name_of
from align.settings import Settings

if TYPE_CHECKING:
    from align.evaluation import Results


class Gate(Settings):
    """What a model must reach for the recipe to go on.

    It is `passed` when the lower 95 % bound of the difference to `against` is at least -`may_lose`
    (without `against`: when the lower bound reaches `at_least`), `failed` when the upper bound does
    not, else `inconclusive`.
    """

    model: Model | RewardModel
    task: str
    """A task's name (its file's), or `task/subset`."""

    metric: str | None = None
    """The task's main metric unless named."""

    against: Model | RewardModel | None = None
    may_lose: float = 0.0
    at_least: float | None = None

    def judge(self, results: Results) -> dict[str, Any]:
        """The gate with its number and verdict, as in a report."""
        from align.evaluation import numbers

        if self.against is None:
            estimate, bar = results.mean(self.model, self.task, self.metric), self.at_least or 0.0
        else:
            estimate = results.difference(self.model, self.against, self.task, self.metric)
            bar = -self.may_lose
        passed, failed = estimate.low >= bar, estimate.high < bar
        return {
            "model": name_of(self.model),
            "key": identity(self.model),
            "task": self.task,
            "metric": self.metric or results.main_metric(self.task),
            "against": None if self.against is None else name_of(self.against),
            "may_lose": None if self.against is None else self.may_lose,
            "at_least": self.at_least,
            **numbers("value", estimate),
            "verdict": "passed" if passed else "failed" if failed else "inconclusive",
        }

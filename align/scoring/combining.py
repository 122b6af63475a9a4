"""How an answer's numbers become the one score that selection goes by.

Some rules measure numbers in units of their own spread over all answers of the stage. They need
every number before the first score: `Moments` collects mean and spread as rows stream by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from align.errors import StageFailed
from align.settings import Settings

if TYPE_CHECKING:
    from align.scoring.moments import Moments

Numbers = Mapping[str, float | None]

_KEYS = {
    "min": {"of"},
    "lower": {"of", "k"},
    "safety_first": {"safety", "helpfulness", "below", "is_safety"},
}


class Combine(Settings):
    """A rule by which several rewards become one score.

    * `min`: the smallest number. Of 0/1 checks: all must hold. Members share a scale.
    * `lower`: mean - k sd of the members' standard scores. Where reward models of other seeds
      disagree, the answer is not trusted; what they disagree by stays, as `disagreement`. (Coste et
      al., arXiv 2310.02743, with the deviation in place of the variance.)
    * `safety_first`: the safety score where the prompt is about safety or the answer may be unsafe,
      else the helpfulness score; then standardised (Llama 2, arXiv 2307.09288, §3.2.2).

    Standardised is: less the mean, over the deviation of all answers of the stage.
    """

    rule: Literal["min", "lower", "safety_first"]
    """Which rule."""

    of: list[str] = []
    """The members, by name; all rewards of the stage unless said."""

    k: float = Field(1.0, ge=0, allow_inf_nan=False)
    """`lower`: deviations (of the members, 1/n) taken off. With two members and 1 it is the lower
    of both."""

    safety: str | None = None
    """`safety_first`: the reward whose score is the logit of being safe."""

    helpfulness: str | None = None
    """`safety_first`: the reward for everything else."""

    below: float = Field(0.15, gt=0, lt=1)
    """`safety_first`: an answer may be unsafe where sigmoid(safety) is below it."""

    is_safety: str | None = None
    """`safety_first`: a column of the prompts that is true where a prompt is about safety."""

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        for name, field in type(self).model_fields.items():
            unset = getattr(self, name) == field.get_default(call_default_factory=True)
            if name != "rule" and name not in _KEYS[self.rule] and not unset:
                raise ValueError(f'"{name}" is not for the rule {self.rule}.')
        if self.rule == "safety_first" and not (self.safety and self.helpfulness):
            raise ValueError("safety_first needs two rewards: `safety` and `helpfulness`.")
        return self


Rule = dict[str, FiniteFloat] | Combine
"""Weights by name, or a rule."""


def standardises(rule: Rule) -> bool:
    """Whether a rule needs all numbers of the stage before it can give the first score."""
    return isinstance(rule, Combine) and rule.rule != "min"


def members(rule: Rule, names: Sequence[str]) -> list[str]:
    """The numbers a rule reads; `names` are the stage's rewards."""
    if isinstance(rule, dict):
        return list(rule)
    if rule.rule == "safety_first":
        return [str(rule.safety), str(rule.helpfulness)]
    return rule.of or list(names)


def inputs(
    rule: Rule, names: Sequence[str], numbers: Numbers, columns: Mapping[str, Any]
) -> list[float] | None:
    """What is combined of an answer's numbers: the members', or the one that `safety_first` takes.

    None where one of them is missing.

    Args:
        rule: as in the recipe.
        names: the stage's rewards.
        numbers: the answer's, by name.
        columns: of the answer's prompt.

    Raises:
        StageFailed: the rule names a number or a column that is not there.
    """
    found = []
    for name in members(rule, names):
        if name not in numbers:
            raise StageFailed(
                f'combine: there is no "{name}", only {", ".join(numbers)}. With another "combine" '
                "the rewards are asked again."
            )
        if (number := numbers[name]) is None:
            return None
        found.append(number)
    if isinstance(rule, dict) or rule.rule != "safety_first":
        return found
    if rule.is_safety is not None and rule.is_safety not in columns:
        raise StageFailed(
            f'combine.is_safety: the prompts have no column "{rule.is_safety}", only '
            f"{', '.join(columns) or 'none'}."
        )
    safety, helpfulness = found
    asked = rule.is_safety is not None and bool(columns[rule.is_safety])
    return [safety if asked or safety < logit(rule.below) else helpfulness]


def combined(
    rule: Rule, numbers: Sequence[float] | None, all_answers: Moments | None = None
) -> dict[str, float | None]:
    """`score`, and `disagreement` of the rule `lower`, of what `inputs` gave.

    `all_answers` are the moments of the inputs of the whole stage, where the rule `standardises`.
    """
    if numbers is None:
        return {"score": None}
    if isinstance(rule, dict):
        return {"score": sum(w * x for w, x in zip(rule.values(), numbers, strict=True))}
    if rule.rule == "min":
        return {"score": min(numbers)}
    assert all_answers is not None
    z = all_answers.standard(numbers)
    if rule.rule == "safety_first":
        return {"score": float(z[0])}
    spread = float(z.std())
    return {"score": float(z.mean()) - rule.k * spread, "disagreement": spread}


def logit(p: float) -> float:
    """The inverse of the sigmoid."""
    return math.log(p / (1 - p))

"""How good and how hard rows are, by what scores answers anywhere else: rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import Field, FiniteFloat, model_validator

from align import models
from align.artifacts import Prompts, RewardModel, Rows, Text
from align.curation.rules import Row, Why
from align.out import Out
from align.records import consumed
from align.settings import Reward, Settings


class Quality(Settings):
    """The best rows by a reward model, or by a judge (Llama 3, arXiv 2407.21783, §4.2.3).

    Of a conversation the last answer is scored, of preferences the chosen one. Rows get a column
    `quality`: the share of the rows that are no better, by what keeps them. A row that nothing has
    a number for is not good. What was scored before a kill is not scored again.
    """

    reward: Reward | None = None
    """What ranks all rows, as {use: reward/model.py, model: reward}."""

    top: float = Field(0.25, gt=0, lt=1)
    """The share of the rows that is good by `reward`; of those that it has a number for."""

    judge: Reward | None = None
    """What marks each row for itself: {use: reward/judge.py, url: …, model: …, scale: [1, 3],
    rubric_file: reward/rubrics/general.txt}, or `code.txt` with the scale [1, 2]."""

    at_least: FiniteFloat | None = None
    """The mark from which a row is good by `judge`: the highest of the scale, in Llama 3."""

    keep: Literal["either", "both"] = "either"
    """Whether one of the two is enough. Llama 3 finds that they often disagree, and that either has
    the best recall."""

    @model_validator(mode="after")
    def _complete(self) -> Quality:
        if self.reward is None and self.judge is None:
            raise ValueError("Name what scores the rows: reward: …, judge: …, or both.")
        if (self.judge is None) != (self.at_least is None):
            raise ValueError(
                '"judge" and "at_least", the mark from which a row is good, go together.'
            )
        if self.keep == "both" and (self.reward is None or self.judge is None):
            raise ValueError('"keep: both" needs "reward" and "judge".')
        return self

    def misfit(self, kind: type[Rows]) -> str | None:
        """Why rows of this type cannot be scored; None: they can."""
        if kind is Text:
            return "Text has no answers that can be scored."
        if kind is Prompts:
            return "Prompts have no answers that can be scored. Sample some, or use `difficulty`."
        return next(filter(None, map(_untold, (self.reward, self.judge))), None)

    def sift(self, rows: Callable[[], Iterator[Row]], out: Out) -> Iterator[tuple[Row, Why | None]]:
        """Every row in its order with its column; and why it is removed: `quality`."""
        import numpy as np

        from align.curation import scoring

        good, ranks, facts = [], [], {}
        if self.reward is not None:
            facts["reward"], ties = scoring.score("quality.reward", self.reward, rows, out)
            good.append(scoring.best(facts["reward"], ties, self.top))
            ranks.append(scoring.ranks(facts["reward"]))
        if self.judge is not None and self.at_least is not None:
            facts["judge"], _ = scoring.score("quality.judge", self.judge, rows, out)
            good.append(facts["judge"] >= self.at_least)
            ranks.append(scoring.ranks(facts["judge"]))
        if len(good) == 2:
            for name, n in (("both", good[0] & good[1]), ("disagree", good[0] ^ good[1])):
                out.count(f"quality.{name}", int(n.sum()))
        both = self.keep == "both"
        stays = np.logical_and.reduce(good) if both else np.logical_or.reduce(good)
        quality = np.minimum.reduce(ranks) if both else np.maximum.reduce(ranks)
        for i, row in enumerate(rows()):
            why = None if stays[i] else Why("quality", {k: _shown(v[i]) for k, v in facts.items()})
            yield {**row, "quality": round(float(quality[i]), 6)}, why


class Difficulty(Settings):
    """Rows that are hard enough (Llama 3, arXiv 2407.21783, §4.2.3).

    They get a column `difficulty`; a row without a number goes. What was scored before a kill is
    not scored again.
    """

    judge: Reward
    """What says how hard it is, as {use: reward/difficulty.py, url: …, model: …}."""

    at_least: FiniteFloat
    """The lowest number that stays."""

    def misfit(self, kind: type[Rows]) -> str | None:
        """Why rows of this type cannot be scored; None: they can."""
        return "Text asks nothing that could be hard." if kind is Text else _untold(self.judge)

    def sift(self, rows: Callable[[], Iterator[Row]], out: Out) -> Iterator[tuple[Row, Why | None]]:
        """Every row in its order with its column; and why it is removed: `difficulty`."""
        from align.curation import scoring

        found, _ = scoring.score("difficulty", self.judge, rows, out)
        for number, row in zip(found, rows(), strict=True):
            shown = _shown(number)
            why = None if number >= self.at_least else Why("difficulty", {"difficulty": shown})
            yield {**row, "difficulty": shown}, why


def _untold(reward: Reward | None) -> str | None:
    """Why a reward's model cannot read dialogs; None: it can."""
    for model in consumed(reward):
        if isinstance(model, RewardModel) and list(models.check_template(model)):
            return (
                f"The tokenizer of {model.path} has no chat template. Name one: "
                "model: {path: …, chat_template: plain}, or a jinja file."
            )
    return None


def _shown(number: float) -> float | None:
    return None if math.isnan(number) else round(float(number), 6)

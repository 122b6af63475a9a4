"""Score every answer by every reward."""

from __future__ import annotations

import json
from collections.abc import Iterable

from pydantic import Field, FiniteFloat

from align import models, rewards
from align.artifacts import RewardModel, Samples, Scored
from align.out import Out
from align.parallel import shards
from align.parallel.workers import Workers
from align.records import consumed
from align.scoring import combining, scorer
from align.scoring.combining import Combine
from align.settings import Reward, Stage


class Score(Stage):
    """Every reward's numbers for every answer, and one `score` that selection goes by.

    Samples that were scored before keep those numbers: `combine:` can use them, too. An answer that
    a reward fails on has no number of it, and is counted with the error; the stage stops where that
    is more than half of them.
    """

    samples: Samples
    """Answers."""

    rewards: list[Reward] = Field(min_length=1)
    """What scores, by path. Its numbers are called by the file's name: `length`, `length_2` …"""

    combine: dict[str, FiniteFloat] | Combine | None = None
    """How the numbers become one: weights by name (`{model: 1, length: -0.01}`), a detail as
    `instructions.strict`; or a rule (`{rule: lower, of: [model, model_2]}`). With one reward it is
    that reward's. None where a number is missing."""

    shard: int = Field(512, ge=1, exclude=True)
    """Prompts per shard: what a kill can lose."""

    workers: Workers | None = Field(None, exclude=True)
    """Who makes the shards: `{on: local, count: 2}`; this process unless said."""

    def check(self) -> Iterable[tuple[str, str]]:
        """Rules for what is not there; reward models that cannot be one."""
        names = rewards.names(self.rewards)
        if self.combine is None and len(names) > 1:
            yield "combine", f"Several rewards ({', '.join(names)}) need weights: combine: {{…}}."
        if self.combine == {}:
            yield "combine", f"The block is empty: name weights, of {', '.join(names)}, or a rule."
        lower = isinstance(self.combine, Combine) and self.combine.rule == "lower"
        if lower and len(set(combining.members(self._rule(), names))) < 2:
            yield "combine", '"lower" goes by what rewards disagree on: it needs two or more.'
        if not isinstance(self.samples, Scored):
            for name in combining.members(self._rule(), names):
                if name.partition(".")[0] not in names:
                    yield "combine", f'"{name}" is none of the rewards: {", ".join(names)}.'
        for i, reward in enumerate(self.rewards):
            for model in consumed(reward):
                if isinstance(model, RewardModel) and list(models.check_template(model)):
                    message = f"The tokenizer of {model.path} has no chat template. Name one: "
                    message += "model: {path: …, chat_template: plain}, or a jinja file."
                    yield f"rewards.{i}", message
        if self.workers is not None:
            yield from self.workers.problems()

    def run(self, out: Out) -> Scored:
        """Score shard by shard, one model after the other; then combine what needs all numbers."""
        rule, names = self._rule(), rewards.names(self.rewards)
        passes = len(rewards.passes(self.rewards))
        scorer.begin(self.samples, out)
        shards.make(out, scorer.plan(self.samples, self.shard, passes), self, self.workers)
        if passes > 1 or combining.standardises(rule):
            scorer.join(out, passes, rule, names)
        summary = scorer.summary(Scored(out.path), out)
        (out.path / "metrics.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        return Scored(out.path)

    def worker(self, out: shards.Shard) -> shards.Work:
        """Asks the rewards of a pass about a shard's answers, one reward after the other."""
        return scorer.Scorer(self.rewards, self._rule(), out)

    def _rule(self) -> combining.Rule:
        return {rewards.names(self.rewards)[0]: 1.0} if self.combine is None else self.combine

"""Score every answer by every reward."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from pydantic import Field

from align import rewards, shards
from align.artifacts import Samples, Scored
from align.errors import StageFailed
from align.out import Out
from align.selection import message
from align.settings import Reward, Stage


class Score(Stage):
    """Every reward's numbers for every answer, and one `score` that selection goes by.

    Samples that were scored before keep those numbers: `combine:` can use them, too.
    """

    samples: Samples
    """Answers."""

    rewards: list[Reward] = Field(min_length=1)
    """What scores, by path. Its numbers are called by the file's name: `length`, `length_2` …"""

    combine: dict[str, float] | None = None
    """How the numbers become one: weights by name (`{model: 1, length: -0.01}`), a detail as
    `instructions.strict`. With one reward it is that reward's. None where a number is missing."""

    shard: int = Field(512, ge=1, exclude=True)
    """Prompts per shard: what a kill can lose."""

    def check(self) -> Iterable[tuple[str, str]]:
        """Weights for what is not there."""
        names = rewards.names(self.rewards)
        if self.combine is None and len(names) > 1:
            yield "combine", f"Several rewards ({', '.join(names)}) need weights: combine: {{…}}."
        if not isinstance(self.samples, Scored):
            for name in self.combine or {}:
                if name.partition(".")[0] not in names:
                    yield "combine", f'"{name}" is none of the rewards: {", ".join(names)}.'

    def run(self, out: Out) -> Scored:
        """Score shard by shard; reward models that are adapters on one base share it."""
        shards.make(out, shards.cut(self.samples.rows(), self.shard), self)
        scored = Scored(out.path)
        summary = _summary(scored, out)
        (out.path / "metrics.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        return scored

    def worker(self, out: shards.Shard) -> shards.Work:
        """Every reward on a shard's answers, one reward after the other."""
        names = rewards.names(self.rewards)
        weights = self.combine or {names[0]: 1.0}
        together = len(names) > 1 and rewards.on_one_base(self.rewards)

        def work(number: int, shard: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
            done = 0

            def progress(more: int) -> None:
                nonlocal done
                done += more
                out.progress(done, len(names) * len(answers), "answers")

            answers = [answer for row in shard for answer in row["completions"]]
            owners = [row for row in shard for _ in row["completions"]]
            prompts = [row["prompt"] for row in owners]
            completions = [[message(answer)] for answer in answers]
            columns = rewards.columns_of([row["columns"] for row in owners])
            scores = [dict(answer.get("scores", {})) for answer in answers]
            for name, reward in zip(names, self.rewards, strict=True):
                found = rewards.call(reward, prompts, completions, columns, progress)
                if len(names) > 1 and not together:  # several models need not fit in memory
                    reward.free()
                for into, numbers in zip(scores, found, strict=True):
                    into[name] = numbers.pop("score")
                    into.update({f"{name}.{detail}": x for detail, x in numbers.items()})
            results = iter(
                {**answer, "scores": numbers, "score": combined(numbers, weights)}
                for answer, numbers in zip(answers, scores, strict=True)
            )
            for row in shard:
                yield {**row, "completions": list(islice(results, len(row["completions"])))}

        return work


def combined(numbers: rewards.Numbers, weights: dict[str, float]) -> float | None:
    """The weighted sum of an answer's numbers; None where one of them is missing."""
    total = 0.0
    for name, weight in weights.items():
        if name not in numbers:
            raise StageFailed(f'combine: there is no "{name}", only {", ".join(numbers)}.')
        number = numbers[name]
        if number is None:
            return None
        total += weight * number
    return total


def _summary(scored: Scored, out: Out) -> dict[str, float]:
    """Mean and spread of the score, and how it goes with length (a reward's favourite mistake)."""
    import numpy as np

    scores, lengths = [], []
    for row in scored.rows():
        out.count("prompts")
        for answer in row["completions"]:
            out.count("answers")
            if answer["score"] is None:
                out.count("no_score", example={"id": row["id"], "text": answer["text"][:200]})
            else:
                scores.append(answer["score"])
                lengths.append(len(answer["token_ids"]))
    if not scores:
        raise StageFailed("No answer got a score. Look at what the rewards return.")
    spread = float(np.std(scores))
    summary = {"mean": float(np.mean(scores)), "sd": spread}
    if spread > 0 and np.std(lengths) > 0:
        correlation = float(np.corrcoef(scores, lengths)[0, 1])
        if math.isfinite(correlation):
            summary["correlation_with_length"] = correlation
    return summary

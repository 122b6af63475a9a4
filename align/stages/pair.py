"""Pairs of a better and a worse answer, for DPO or a reward model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field

from align.artifacts import Preferences, Samples, Scored
from align.errors import StageFailed
from align.out import Out
from align.selection import (
    Answer,
    Row,
    Ties,
    candidates,
    chance,
    dropped,
    length,
    message,
    ranked,
)
from align.settings import Stage


class Pair(Stage):
    """One pair per prompt: its best answer and a worse one.

    Take the answers from the model that will be trained: what DPO lowers must be what it would say.
    Answers with the same text are one answer, and are never paired.
    """

    scores: Scored
    """Answers with scores."""

    rejected: Literal["worst", "second", "random"] = "worst"
    """Which answer loses: the worst, the second best, or any that scores less than the best."""

    margin: float = Field(0.0, ge=0)
    """The smallest difference of scores a pair may have. Equal scores are never paired."""

    ties: Ties = "first"
    """Which of equal scores is better: the `first` drawn, the `shortest`, or any (`random`)."""

    margin_column: bool = False
    """Write the difference as `margin`, which a reward model's loss takes into account."""

    allow_cut: bool = False
    """Whether answers that were cut at `max_new_tokens` may be paired."""

    def check(self) -> Iterable[tuple[str, str]]:
        """One answer per prompt gives no pair."""
        if _answers(self.scores) == 1:
            yield "scores", "There is one answer per prompt, and a pair needs two: sample n: 2."

    def run(self, out: Out) -> Preferences:
        """Pair, in the order of the prompts."""
        total: Counter[str] = Counter()

        def pairs() -> Iterator[Row]:
            for row in self.scores.rows():
                out.count("prompts")
                if (pair := self._pair(row, out)) is None:
                    continue
                best, loser = pair
                margin = best["score"] - loser["score"]
                longer = length(best) - length(loser)
                total.update(pairs=1, margin=margin, tokens=longer, longer=longer > 0)
                out.count("pairs")
                yield {
                    "id": row["id"],
                    "prompt": row["prompt"],
                    "chosen": [message(best)],
                    "rejected": [message(loser)],
                    **{k: v for k, v in row["columns"].items() if k not in _OURS},
                    "chosen_score": best["score"],
                    "rejected_score": loser["score"],
                    **({"margin": margin} if self.margin_column else {}),
                }

        if not out.write_rows(pairs()):
            raise StageFailed(
                f"No prompt of {self.scores.name or self.scores.key} gives a pair "
                f"({dropped(out)}). Sample more answers or warmer ones, or lower `margin`."
            )
        summary = {
            "pairs": total["pairs"],
            "mean_margin": total["margin"] / total["pairs"],
            "chosen_minus_rejected_tokens": total["tokens"] / total["pairs"],
            "chosen_longer": total["longer"] / total["pairs"],
        }
        (out.path / "metrics.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        return Preferences(out.path)

    def _pair(self, row: Row, out: Out) -> tuple[Answer, Answer] | None:
        """The better and the worse answer; None, counted, where there are none."""
        answers = candidates(row, self.allow_cut, out)
        found = ranked(row, answers, self.ties, self.seed)
        if twice := len(answers) - len(found):
            out.count("dropped.duplicate", twice, example={"id": row["id"]})
        example = {"id": row["id"], "answers": [a["text"][:200] for a in found[:2]]}
        if len(found) < 2:
            out.count("dropped.no_two_different_answers", example=example)
            return None
        best = found[0]
        worse = [a for a in found[1:] if a["score"] < best["score"]]
        if not worse:
            out.count("dropped.equal_scores", example=example)
            return None
        wide = [a for a in worse if best["score"] - a["score"] >= self.margin]
        if not wide:
            out.count("dropped.margin", example=example)
            return None
        if self.rejected == "worst":
            lowest = wide[-1]["score"]
            return best, next(a for a in wide if a["score"] == lowest)
        if self.rejected == "second":
            return best, wide[0]
        return best, min(wide, key=lambda a: chance(self.seed, row["id"], a["index"]))


def _answers(samples: Samples) -> int | None:
    """How many answers a prompt has at most; None where that is not known before they are there."""
    stage = samples.stage
    while isinstance(below := getattr(stage, "samples", None), Samples):
        stage = below.stage
    return getattr(stage, "most", None)


_OURS = ("prompt", "chosen", "rejected", "margin", "id")

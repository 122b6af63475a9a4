"""Rejection sampling: keep the answers that score best."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field

from align import selection
from align.artifacts import Conversations, Scored
from align.errors import StageFailed
from align.out import Out
from align.selection import Answer, Earlier, Row, Ties
from align.settings import Stage
from align.worth import Worth, words


class Reject(Stage):
    """Conversations that end with a chosen answer.

    Answers to a prompt with the same text are one answer. `metrics.json` says what choosing is
    worth: the expected score of the best of k answers for every k (unbiased) with its interval, the
    gain over a random pick, how many answers are enough, and how the score goes with length.
    """

    scores: Scored
    """Answers with scores."""

    keep: Literal["best", "top", "above", "random"] = "best"
    """`best`: the `n` best of every prompt; `random`: any `n` of every prompt, the control;
    `top`: the `n` best of all prompts together; `above`: all that reach `bar`."""

    n: int = Field(1, ge=1)
    """How many are kept: per prompt, with `top` in all."""

    bar: float | None = None
    """The lowest score that `above` keeps."""

    ties: Ties = "first"
    """Which of equal scores is better: the `first` drawn, the `shortest`, or any (`random`)."""

    like: Conversations | None = None
    """With `random`: a `reject` stage of the same scores, `bank`, `allow_cut`, `solved` and `drop`;
    the same prompts get as many answers."""

    bank: list[Scored] = []
    """Earlier rounds: their answers to the same prompts compete. The same rewards must have scored
    them."""

    solved: float | None = None
    """The score from which an answer is right: prompts that are always or never solved are
    counted."""

    drop: list[Literal["always", "never"]] = []
    """Of which prompts nothing is kept: those `always` solved teach little, those `never` solved
    have no right answer to keep."""

    allow_cut: bool = False
    """Whether answers that were cut at `max_new_tokens` may be kept."""

    def check(self) -> Iterable[tuple[str, str]]:
        """Settings that do not go together, and rounds whose scores cannot be compared."""
        if (self.keep == "above") != (self.bar is not None):
            yield "bar", '"keep: above" and "bar" belong together.'
        if self.drop and self.solved is None:
            yield "drop", '"drop" needs "solved", the score from which an answer is right.'
        if self.like is not None and self.keep != "random":
            yield "like", f'"like" is for the control, "keep: random", not for "{self.keep}".'
        if self.like is not None:
            yield from self._unlike(self.like.stage)
        for name in ("rewards", "combine"):
            ours = getattr(self.scores.stage, name, None)
            if any(getattr(earlier.stage, name, None) != ours for earlier in self.bank):
                fact = "by other rewards" if name == "rewards" else 'with another "combine"'
                yield "bank", f"A round was scored {fact}: score its samples anew."
        if any(earlier.key == self.scores.key for earlier in self.bank):
            yield "bank", 'The bank holds "scores" itself: name earlier rounds only.'
        rule = getattr(getattr(self.scores.stage, "combine", None), "rule", "min")
        if self.bank and rule != "min":  # measured by the spread of one stage's own scores
            fact = f'"combine: {rule}" means another thing in every round'
            yield "bank", f"{fact}: combine by weights or by min."

    def _unlike(self, like: object) -> Iterator[tuple[str, str]]:
        """Why a control that takes as many answers as `like` did would not be one."""
        if not isinstance(like, Reject) or like.scores.key != self.scores.key:
            yield "like", '"like" must be a "reject" stage of the same scores.'
            return
        if like.bank != self.bank:
            yield "like", '"like" has another "bank": it chose among other answers.'
        if like.allow_cut != self.allow_cut:
            yield "allow_cut", '"like" has another "allow_cut": it chose among other answers.'
        if like.solved != self.solved:
            yield "solved", '"like" has another "solved": other answers count as right.'
        if set(like.drop) != set(self.drop):
            yield "drop", '"like" has another "drop": of other prompts it kept nothing.'

    def run(self, out: Out) -> Conversations:
        """Choose, prompt by prompt."""
        bank = [Earlier(one) for one in self.bank]
        wanted: Counter[str] = Counter()
        if self.like is not None:
            wanted.update(row["prompt_id"] for row in self.like.rows())
        top = self._top(bank) if self.keep == "top" else set()
        worth = Worth()

        def conversations() -> Iterator[Row]:
            for row in selection.merged(self.scores, bank, out):
                answers = selection.candidates(row, self.allow_cut, out)
                self._count(row, answers, out)
                kept = self._ranked(row, answers)
                if self.like is not None:
                    kept = kept[: wanted[row["id"]]]
                elif self.keep == "top":
                    kept = [answer for answer in kept if (row["id"], answer["index"]) in top]
                elif self.keep == "above":
                    kept = [answer for answer in kept if answer["score"] >= self.bar]
                else:
                    kept = kept[: self.n]
                worth.add(answers, kept)
                for answer in kept:
                    out.count("kept")
                    yield selection.conversation(row, answer)

        if not out.write_rows(conversations()):
            low = f"all others are below the bar of {self.bar}" if self.keep == "above" else ""
            why = "; ".join(part for part in (selection.dropped(out), low) if part)
            raise StageFailed(
                f"No answer of {self.scores.name or self.scores.key} can be kept ({why}). "
                "If all were cut, raise max_new_tokens or say allow_cut: true."
            )
        summary = worth.summary()
        if self.keep != "random" and "n" in summary:
            out.say("\n".join(words(summary)[:2]))
        (out.path / "metrics.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        return Conversations(out.path)

    def _ranked(self, row: Row, answers: list[Answer]) -> list[Answer]:
        """The different answers of a prompt, best first or by chance; none where it is dropped."""
        if self._solved(answers) in self.drop:
            return []
        if self.keep == "random":
            return selection.shuffled(row, answers, self.seed)
        return selection.ranked(row, answers, self.ties, self.seed)

    def _top(self, bank: list[Earlier]) -> set[tuple[str, int]]:
        """Prompt and index of the `n` best of all; of equal scores the earlier prompt's."""
        everything = (
            (-answer["score"], number, place, row["id"], answer["index"])
            for number, row in enumerate(selection.merged(self.scores, bank, None))
            for place, answer in enumerate(
                self._ranked(row, selection.candidates(row, self.allow_cut, None))
            )
        )
        return {one[3:] for one in heapq.nsmallest(self.n, everything)}

    def _solved(self, answers: list[Answer]) -> Literal["always", "never"] | None:
        if self.solved is None or not answers:
            return None
        right = [answer["score"] >= self.solved for answer in answers]
        return "always" if all(right) else None if any(right) else "never"

    def _count(self, row: Row, answers: list[Answer], out: Out) -> None:
        out.count("prompts")
        example = {"id": row["id"]}
        if not answers:
            out.count("dropped.prompt_without_candidates", example=example)
        if twice := len(answers) - len(selection.distinct(answers)):
            out.count("dropped.duplicate", twice, example=example)
        if solved := self._solved(answers):
            out.count(f"{'dropped.' * (solved in self.drop)}{solved}_solved", example=example)

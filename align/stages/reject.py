"""Rejection sampling: keep the answers that score best."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal

from pydantic import Field

from align.artifacts import Conversations, Scored
from align.errors import StageFailed
from align.out import Out
from align.selection import Answer, Row, candidates, chance, message, short, worth
from align.settings import Stage


class Reject(Stage):
    """Conversations that end with a chosen answer.

    Equal scores: the answer with the lowest index. `metrics.json` says what choosing is worth: the
    expected score of the best of k answers for every k (unbiased), the mean, the gain.
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

    like: Conversations | None = None
    """With `random`: a `reject` stage of the same scores; the same prompts get as many answers."""

    bank: list[Scored] = []
    """Earlier rounds: their answers to the same prompts compete. The same rewards must have scored
    them."""

    allow_cut: bool = False
    """Whether answers that were cut at `max_new_tokens` may be kept."""

    def check(self) -> Iterable[tuple[str, str]]:
        """Settings that do not go together, and rounds whose scores cannot be compared."""
        if (self.keep == "above") != (self.bar is not None):
            yield "bar", '"keep: above" and "bar" belong together.'
        if self.like is not None and self.keep != "random":
            yield "like", f'"like" is for the control, "keep: random", not for "{self.keep}".'
        if self.like is not None:
            theirs = getattr(self.like.stage, "scores", None)
            if theirs is None or theirs.key != self.scores.key:
                yield "like", '"like" must be a "reject" stage of the same scores.'
        ours = getattr(self.scores.stage, "rewards", None)
        for earlier in self.bank:
            if getattr(earlier.stage, "rewards", None) != ours:
                yield "bank", "A round was scored by other rewards: score its samples anew."

    def run(self, out: Out) -> Conversations:
        """Choose, in the order of the prompts."""
        rows = list(self._merged())
        eligible = {row["id"]: candidates(row, self.allow_cut, out) for row in rows}
        chosen = self._choose(eligible)

        def conversations() -> Iterator[Row]:
            for row in rows:
                out.count("prompts")
                if not eligible[row["id"]]:
                    out.count("dropped.prompt_without_candidates", example={"id": row["id"]})
                for answer in chosen.get(row["id"], ()):
                    out.count("kept")
                    yield {
                        "id": f"{row['id']}/{answer['index']}",
                        "prompt_id": row["id"],
                        "messages": [*row["prompt"], message(answer)],
                        **{
                            name: value
                            for name, value in row["columns"].items()
                            if name not in ("messages", "prompt_id")
                        },
                        "score": answer["score"],
                    }

        if not out.write_rows(conversations()):
            raise StageFailed(
                f"No answer of {self.scores.key} can be kept (see the counts of what was dropped). "
                "If all were cut, raise max_new_tokens or say allow_cut: true."
            )
        kept = [answer["score"] for answers in chosen.values() for answer in answers]
        summary = {**worth(rows), "kept": sum(kept) / len(kept)}
        (out.path / "metrics.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        return Conversations(out.path)

    def _merged(self) -> Iterator[Row]:
        """The rows, the answers of earlier rounds after their own, all numbered on."""
        earlier = [{row["id"]: short(row) for row in one.rows()} for one in self.bank]
        for row in self.scores.rows():
            completions = short(row)
            for answers in (found.get(row["id"], ()) for found in earlier):
                start = 1 + max((answer["index"] for answer in completions), default=-1)
                completions += [{**a, "index": start + a["index"]} for a in answers]
            yield {**row, "completions": completions}

    def _choose(self, eligible: dict[str, list[Answer]]) -> dict[str, list[Answer]]:
        """Per prompt what is kept; see `keep`."""
        if self.keep == "above":
            assert self.bar is not None
            bar = self.bar
            return {p: [a for a in answers if a["score"] >= bar] for p, answers in eligible.items()}
        found: dict[str, list[Answer]] = {}
        if self.keep == "top":
            everything = [(p, answer) for p, answers in eligible.items() for answer in answers]
            everything.sort(key=lambda one: -one[1]["score"])  # stable: by prompt, then index
            for prompt, answer in everything[: self.n]:
                found.setdefault(prompt, []).append(answer)
            return found
        wanted = dict.fromkeys(eligible, self.n)
        if self.like is not None:
            wanted = dict.fromkeys(eligible, 0)
            for conversation in self.like.rows():
                wanted[conversation["prompt_id"]] += 1
        for prompt, answers in eligible.items():
            if self.keep == "best":
                answers = sorted(answers, key=lambda answer: -answer["score"])
            else:
                luck = partial(chance, self.seed, prompt)
                answers = sorted(answers, key=lambda answer: luck(answer["index"]))
            found[prompt] = answers[: wanted[prompt]]
        return found

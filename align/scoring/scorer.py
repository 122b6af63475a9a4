"""What a `score` stage does with a shard, and with all shards when they are there.

A pass is the rewards whose models are in memory together. Every shard is scored once a pass, each
pass over all shards before the next: so a model is loaded once, and no two need to fit. What passes
found is joined at the end, and so is a rule that needs all numbers of the stage before its first
score; one pass and a sum of weights write the rows as they stay.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from align import rewards, store
from align.artifacts import Samples, Scored, read_json
from align.errors import StageFailed
from align.out import Out
from align.parallel import shards
from align.scoring import combining
from align.scoring.combining import Rule
from align.selection import length, message
from align.settings import Reward

SURE = 1000
"""Answers after which a reward that fails on more than half of them is not tried on the rest."""

COLUMNS = "checkpoints/columns.json"
"""The names of all columns that prompts have: rewards ask for them, and a shard may lack one."""

Row = dict[str, Any]


class Scorer:
    """Makes shards: each row says by `pass` which rewards are asked."""

    def __init__(self, blocks: Sequence[Reward], rule: Rule, out: shards.Shard) -> None:
        self.rewards = list(zip(rewards.names(blocks), blocks, strict=True))
        self.passes = rewards.passes(blocks)
        self.rule = rule
        self.out = out
        self.columns: list[str] = read_json(out.path / COLUMNS)["columns"]
        self._loaded = 0
        self._seen: dict[str, Found] = {name: Found() for name, _ in self.rewards}

    def __call__(self, number: int, shard: list[Row]) -> Iterator[Row]:
        """The rows with the numbers of their pass, and with the score where that is all."""
        which = shard[0]["pass"]
        if which != self._loaded:
            for i in self.passes[self._loaded]:
                self.rewards[i][1].free()
            self._loaded = which
        answers = [answer for row in shard for answer in row["completions"]]
        owners = [row for row in shard for _ in row["completions"]]
        scores = [dict(answer.get("scores", {})) for answer in answers]
        for at, i in enumerate(self.passes[which]):
            name, reward = self.rewards[i]
            found = self._ask(at, name, reward, owners, answers)
            for into, numbers in zip(scores, found, strict=True):
                into[name] = numbers.pop("score")
                into.update({f"{name}.{detail}": x for detail, x in numbers.items()})
        made = iter(self._scored(owners, answers, scores))
        for row in shard:
            kept = {key: value for key, value in row.items() if key != "pass"}
            yield {**kept, "completions": list(islice(made, len(row["completions"])))}

    def _scored(
        self, owners: list[Row], answers: list[Row], scores: list[rewards.Numbers]
    ) -> Iterator[Row]:
        last = len(self.passes) == 1 and not combining.standardises(self.rule)
        names = [name for name, _ in self.rewards]
        for row, answer, numbers in zip(owners, answers, scores, strict=True):
            taken = combining.inputs(self.rule, names, numbers, row["columns"]) if last else None
            yield {**answer, "scores": numbers, **combining.combined(self.rule, taken)}

    def _ask(
        self, before: int, name: str, reward: Reward, owners: list[Row], answers: list[Row]
    ) -> list[rewards.Numbers]:
        """One reward on all answers of the shard; `before` is how many rewards were asked."""
        seen, done = self._seen[name], 0

        def progress(found: list[rewards.Numbers]) -> None:
            nonlocal done
            done += len(found)
            seen.add(found)
            total = len(answers) * len(self.passes[owners[0]["pass"]])
            note = f"{name}: mean {seen.mean:.3g}, best {seen.best:.3g}"
            self.out.progress(before * len(answers) + done, total, "answers", note)

        def failed(place: int, why: str) -> None:
            row, answer = owners[place], answers[place]
            seen.failed += 1
            seen.last = {"id": row["id"], "index": answer["index"], "error": why}
            self.out.count(f"failed.{name}", example=seen.last)

        found = rewards.call(
            reward,
            [row["prompt"] for row in owners],
            [[message(answer)] for answer in answers],
            {name: [row["columns"].get(name) for row in owners] for name in self.columns},
            progress,
            failed,
        )
        if seen.n >= SURE and seen.failed > seen.n / 2:
            raise _fails(name, seen.failed, seen.n, seen.last)
        return found


class Found:
    """What a reward has said so far in this process."""

    def __init__(self) -> None:
        self.n = self.failed = self.scored = 0
        self.total, self.best = 0.0, -math.inf
        self.last: Row = {}
        """The answer it failed on last, and why."""

    @property
    def mean(self) -> float:
        """Of the scores; nan where there are none."""
        return self.total / self.scored if self.scored else math.nan

    def add(self, found: list[rewards.Numbers]) -> None:
        """The numbers of some more answers."""
        scores = [one["score"] for one in found if one["score"] is not None]
        self.n += len(found)
        self.scored += len(scores)
        self.total += sum(scores)
        self.best = max([self.best, *scores])


def _fails(name: str, failed: int, n: int, example: Row) -> StageFailed:
    return StageFailed(
        f"{name} fails on {failed} of {n} answers, {_as_on(example)}. "
        "Mend the reward and run again."
    )


def _as_on(example: Row) -> str:
    return f"as on answer {example['index']} of {example['id']}: {example['error'].rstrip('.')}"


# -- all shards ----------------------------------------------------------------------------------


def plan(samples: Samples, size: int, passes: int) -> Iterator[list[Row]]:
    """What shards are made from: all rows for the first pass, then all for the second …"""
    for which in range(passes):
        for shard in shards.cut(samples.rows(), size):
            yield [{**row, "pass": which} for row in shard]


def begin(samples: Samples, out: Out) -> None:
    """Note the columns; take back a `join` that a kill came after, as shards are looked for where
    they were made.
    """
    (out.path / COLUMNS).parent.mkdir(exist_ok=True)
    names = dict.fromkeys(name for row in samples.rows() for name in row["columns"])
    store.write_json(out.path / COLUMNS, {"columns": list(names)})
    if _parts(out).is_dir():
        shutil.rmtree(out.path / "data", ignore_errors=True)
        os.rename(_parts(out), out.path / "data")


def join(out: Out, passes: int, rule: Rule, names: list[str]) -> None:
    """Put the passes' numbers of every answer together, and the score; memory stays flat.

    Nothing is written over: shards as they were made lie in `checkpoints` until the stage is done.
    """
    from align.scoring.moments import Moments

    files = Scored(out.path).files()
    count = len(files) // passes

    def rows(number: int) -> Iterator[Row]:
        parts = [_rows(files[number + which * count]) for which in range(passes)]
        return map(_joined, zip(*parts, strict=True))

    def inputs(row: Row) -> list[list[float] | None]:
        scores = [answer["scores"] for answer in row["completions"]]
        return [combining.inputs(rule, names, one, row["columns"]) for one in scores]

    moments = Moments()
    if combining.standardises(rule):
        for number in range(count):
            for row in rows(number):
                moments.add([one for one in inputs(row) if one is not None])

    def scored(row: Row) -> Row:
        found = [combining.combined(rule, one, moments) for one in inputs(row)]
        return {**row, "completions": list(map(_with, row["completions"], found))}

    shutil.rmtree(out.path / "checkpoints" / "joined", ignore_errors=True)
    joined = Out(out.path / "checkpoints" / "joined", out.cache)
    joined.path.mkdir(parents=True)
    for number in range(count):
        joined.write_rows(map(scored, rows(number)), f"shard-{number:05d}")
    os.rename(out.path / "data", _parts(out))
    os.rename(joined.path / "data", out.path / "data")


def summary(scored: Scored, out: Out) -> dict[str, float]:
    """Mean, spread and best of the score, and how it goes with length (a reward's favourite
    mistake); of the rule `lower` the mean disagreement.

    Raises:
        StageFailed: no answer got a score, or a reward failed on more than half of them.
    """
    from align.scoring.moments import Moments

    moments, disagreement, best = Moments(), Moments(), -math.inf
    for row in scored.rows():
        out.count("prompts")
        out.count("answers", len(row["completions"]))
        for answer in row["completions"]:
            if answer["score"] is None:
                out.count("no_score", example={"id": row["id"], "text": answer["text"][:200]})
        had = [answer for answer in row["completions"] if answer["score"] is not None]
        best = max([best, *(answer["score"] for answer in had)])
        moments.add([[answer["score"], length(answer)] for answer in had])
        told = [answer["scores"] for answer in had if "disagreement" in answer["scores"]]
        disagreement.add([[numbers["disagreement"]] for numbers in told])
    answers, said = out.counts["answers"]["n"], []
    for name, count in out.counts.items():
        if name.startswith("failed."):
            [last, *_] = count["examples"]
            if count["n"] > answers / 2:
                raise _fails(name[7:], count["n"], answers, last)
            said.append(f"{name[7:]} fails on {count['n']}, {_as_on(last)}")
    if not moments.n:
        raise StageFailed("No answer got a score. Look at what the rewards return.")
    if said or answers > moments.n:
        facts = [f"{answers - moments.n} of {answers} answers have no score", "; ".join(said)]
        out.say(": ".join(filter(None, facts)) + ".")
    found = {"mean": float(moments.mean[0]), "sd": float(moments.sd[0]), "best": best}
    if disagreement.n:
        found["mean_disagreement"] = float(disagreement.mean[0])
    correlation = moments.correlation()
    return found if correlation is None else {**found, "correlation_with_length": correlation}


def _parts(out: Out) -> Path:
    return out.path / "checkpoints" / "parts"


def _rows(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _joined(parts: tuple[Row, ...]) -> Row:
    """One prompt's row of what the passes made of it."""
    answers = zip(*(part["completions"] for part in parts), strict=True)
    completions = [
        {**same[0], "scores": {k: v for one in same for k, v in one["scores"].items()}}
        for same in answers
    ]
    return {**parts[0], "completions": completions}


def _with(answer: Row, found: rewards.Numbers) -> Row:
    """An answer with its score, and what the rule says beside it."""
    details = {name: x for name, x in found.items() if name != "score"}
    return {**answer, "scores": {**answer["scores"], **details}, "score": found["score"]}

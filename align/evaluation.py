"""What models are worth: every task's numbers item by item, their means and their differences."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from align import records, rewards, stats
from align.artifacts import Model, RewardModel
from align.asking import Asked, Item, Said, identity, name_of, takes
from align.errors import StageFailed
from align.out import Out
from align.scoring import pairwise
from align.settings import Task
from align.stats import Estimate

Values = Mapping[str, float | None]
"""An item's numbers, the main one first; None where one does not apply."""


def numbers(name: str, estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON: `n`, `<name>`, `ci_low`, `ci_high`; null where there is no number."""
    values = {name: estimate.mean, "ci_low": estimate.low, "ci_high": estimate.high}
    known = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return {"n": estimate.n, **known}


class Results:
    """Every model's numbers, item by item."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._values: dict[tuple[str, str, str], dict[str, float]] = {}
        """By (model, task, metric): a value per item. Subsets are `task/subset`."""

        self._wholes: dict[tuple[str, str, str], Estimate] = {}
        """By (model, task, metric): what is a number of all items together and of none alone."""

    def add(self, model: Model, task: str, items: list[Item], graded: Sequence[Values]) -> None:
        """A model's numbers of a task, and of each of its subsets; None is left out of them.

        The pairs of one `ranking` count as one item, with their mean: they are not independent.
        """
        self._names[identity(model)] = name_of(model)
        found: dict[tuple[str, str], list[tuple[str, float]]] = {}
        for item, values, of in zip(items, graded, pairwise.rankings(items), strict=True):
            subsets = item.get("subset") or []
            subsets = subsets if isinstance(subsets, list) else [subsets]
            for name in [task, *(f"{task}/{subset}" for subset in subsets)]:
                for metric, value in values.items():
                    place = found.setdefault((name, metric), [])
                    if value is not None:
                        place.append((of, float(value)))
        for (name, metric), each in found.items():
            self._values[identity(model), name, metric] = pairwise.means(each)

    def add_whole(self, model: Model, task: str, metrics: Mapping[str, Estimate]) -> None:
        """Numbers of all items of a task together, by name; nan ones are left out."""
        for metric, value in metrics.items():
            if math.isfinite(value.mean):
                self._wholes[identity(model), task, metric] = value

    def scores(self) -> list[dict[str, Any]]:
        """The report's `scores`."""
        means = {
            at: stats.mean(list(values.values())) for at, values in self._values.items() if values
        }
        return [
            {"model": self._names[model], "key": model, "task": task, "metric": metric}
            | numbers("mean", value)
            for (model, task, metric), value in [*means.items(), *self._wholes.items()]
        ]

    def compare(self, model: Model, against: Model, role: str) -> Iterator[dict[str, Any]]:
        """The report's `comparisons` of two models: every metric both have, on the same items."""
        for (of, task, metric), ours in self._values.items():
            theirs = self._values.get((identity(against), task, metric), {})
            if of == identity(model) and ours.keys() & theirs.keys():
                found = self.difference(model, against, task, metric)
                yield {
                    "model": name_of(model),
                    "key": of,
                    "against": name_of(against),
                    "against_key": identity(against),
                    "role": role,
                    "task": task,
                    "metric": metric,
                    **numbers("delta", found),
                    "p": found.p if math.isfinite(found.p) else None,
                }

    def mean(self, model: Model, task: str, metric: str | None) -> Estimate:
        """A model's mean."""
        return stats.mean(list(self._of(model, task, metric).values()))

    def difference(self, model: Model, against: Model, task: str, metric: str | None) -> Estimate:
        """Of two models on the same items."""
        ours, theirs = self._of(model, task, metric), self._of(against, task, metric)
        items = [item for item in ours if item in theirs]
        if not items:
            raise StageFailed(
                f"No item of {task} has a number of {name_of(model)} and one of {name_of(against)}."
            )
        return stats.paired([ours[item] for item in items], [theirs[item] for item in items])

    def main_metric(self, task: str) -> str:
        """The first number of a task."""
        return next((m for _, name, m in self._values if name == task), "")

    def _of(self, model: Model, task: str, metric: str | None) -> dict[str, float]:
        place = (identity(model), task, metric or self.main_metric(task))
        if not self._values.get(place):
            known = sorted(
                {
                    f"{t} {m}"
                    for (of, t, m), v in self._values.items()
                    if of == identity(model) and v
                }
            )
            raise StageFailed(
                f"There is no {task} {metric or ''} of {name_of(model)}. It has: "
                f"{', '.join(known)}. Correct the gate; answers are kept, so that it is quick."
            )
        return self._values[place]


def measure(
    models: Sequence[Model], tasks: Sequence[Task], seed: int, rows: int, out: Out
) -> Results:
    """Ask every model everything that is for it, and grade what it says.

    What was said is kept in `items/<task>/<model>.jsonl`, one line per item with its numbers.
    """
    named = [
        (name, task, _items(name, task))
        for name, task in zip(rewards.names(tasks), tasks, strict=True)
    ]
    total = sum(len(i) for m in models for _, task, i in named if takes(task, m))
    contents = records.Contents(out.cache.parent)
    results, before = Results(), 0
    judged: dict[str, list[tuple[RewardModel, list[Said]]]] = {}
    for model in models:
        asked = Asked(model, content(model, contents), out.cache, rows)
        answered = []
        for name, task, items in named:
            if takes(task, model):
                note = f"{name} of {name_of(model)}"
                said = asked.ask(task, items, seed, partial(_progress, out, before, total, note))
                before += len(items)
                answered.append((name, task, items, said))
        del asked  # a judge takes the model's place on the device
        for name, task, items, said in answered:
            graded = grade(task, items, said)
            results.add(model, name, items, graded)
            _keep(out, name, model, items, said, graded)
            if isinstance(model, RewardModel):
                results.add_whole(model, name, pairwise.wholes(items, said))
                for other, theirs in judged.setdefault(name, []):
                    found = pairwise.agreement(items, said, theirs, name_of(other))
                    results.add_whole(model, name, found)
                judged[name].append((model, said))
    contents.save()
    return results


def content(model: Model, contents: records.Contents) -> str:
    """What answers are remembered under: a made model's key, and the bytes of what was made.

    Other versions of the libraries, or another machine, make other weights under the same key.
    """
    from align import models

    base = Path(models.describe(model).base.path)
    made = [path for path in (model.path, base.parent) if (path / "artifact.json").is_file()]
    return records.digest([records.identity(model, contents), *map(contents.of, made)])


def _progress(out: Out, before: int, total: int, note: str, done: int) -> None:
    out.progress(before + done, total, "items", note)


def _keep(
    out: Out, name: str, model: Model, items: list[Item], said: list[Said], graded: Sequence[Values]
) -> None:
    rows = [
        {"id": item["id"], "prompt": item["prompt"], **one, "numbers": values}
        for item, one, values in zip(items, said, graded, strict=True)
    ]
    out.count(f"items.{name}", len(rows))
    for row in rows:
        if row.get("finish") in ("length", "no room"):
            example = {"id": row["id"], "model": name_of(model), "end": row["text"][-200:]}
            out.count(f"cut.{name}", example=example)
        if next(iter(row["numbers"].values()), None) is None:
            example = {"id": row["id"], "model": name_of(model), "answer": row["text"][:200]}
            out.count(f"dropped.{name}_not_graded", example=example)
    of = name_of(model) if model.stage is None else model.key
    file = out.path / "items" / name / f"{of}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf-8")


def _items(name: str, task: Task) -> list[Item]:
    items = list(task.items())
    ids = [str(item["id"]) for item in items]
    if not items:
        raise StageFailed(f"{name} has no items. Look at its data.")
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise StageFailed(f"{name} has two items with the id {twice}. Every item needs its own.")
    return items


def grade(task: Task, items: list[Item], said: list[Said]) -> Sequence[Values]:
    """Numbers per item, the main one first.

    `choose`: `accuracy`, and `accuracy_by_length` with likelihoods per byte of the option;
    `likelihood`: `loglik_per_token` (nats; perplexity is exp of minus its mean);
    `score`: `accuracy` (a tie shares the point), the `margin` to the best wrong answer, `log_loss`
    (nats), and `accuracy_at_equal_length` (None where lengths differ by more than a tenth).

    Raises:
        StageFailed: a task's `grade` returned another number of results than it got answers.
    """
    if task.ask == "answer":
        numbers = task.grade(items, [one["text"] for one in said])
        if len(numbers) != len(items):
            raise StageFailed(
                f"{type(task).__name__}.grade returned {len(numbers)} results for {len(items)} "
                "answers. It returns one per answer, in order."
            )
        return numbers
    if task.ask == "choose":
        return [_chosen(item, one["options"]) for item, one in zip(items, said, strict=True)]
    if task.ask == "likelihood":
        return [{"loglik_per_token": one["loglik"] / one["tokens"]} for one in said]
    return [pairwise.numbers(item, one) for item, one in zip(items, said, strict=True)]


def _chosen(item: Item, logliks: list[float]) -> dict[str, float]:
    lengths = [max(1, len(option.encode())) for option in item["options"]]
    by_length = [value / length for value, length in zip(logliks, lengths, strict=True)]
    right = item["answer"]
    return {
        "accuracy": float(logliks.index(max(logliks)) == right),
        "accuracy_by_length": float(by_length.index(max(by_length)) == right),
    }

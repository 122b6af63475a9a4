"""What models are worth: every task asked, graded item by item, and kept."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

from align import data, records, rewards
from align.artifacts import Model, RewardModel
from align.asking import spread
from align.asking.asked import name_of
from align.asking.questions import NO_ROOM
from align.asking.said import Item, Said
from align.errors import StageFailed
from align.out import Out
from align.results import Results, file_of
from align.scoring import likely, pairwise
from align.settings import Task, Values

if TYPE_CHECKING:
    from align.stages.evaluate import Evaluate

Named = tuple[str, Task, list[Item]]
"""A task with its name and its items."""

KEPT = {
    **{name: name for name in ("prefix", "answer", "subset", "cluster", "ranking")},
    **{"options": "choices", "chosen": "chosen_text", "rejected": "rejected_text"},
}
"""What is kept of an item beside its prompt, and its name in the row, where what was said has that
of the item: for people, and for gates that are judged later."""


def items(tasks: Sequence[Task], out: Out) -> list[Named]:
    """The tasks with their names and items; rows that cannot be used are counted.

    Raises:
        StageFailed: a task has no items, or two with one id.
    """
    return [
        (name, task, _items(name, task, out))
        for name, task in zip(rewards.names(tasks), tasks, strict=True)
    ]


def about(named: Named) -> dict[str, Any]:
    """A task as in a report: `task`, `file`, `n`, `settings`, `samples`."""
    name, task, of = named
    settings = records.dump(task)
    file = settings.pop("use")
    return {"task": name, "file": file, "n": len(of), "settings": settings, "samples": task.samples}


def measure(stage: Evaluate, tasks: Sequence[Named], out: Out) -> Results:
    """Ask every model everything that is for it, and grade what it says.

    What was said is kept in `items/<task>/<model>.jsonl`, one line per item with its numbers.
    """
    results = Results()
    judged: dict[str, list[tuple[RewardModel, list[Said]]]] = {}
    for model, answered in spread.ask(stage, tasks, out):
        for name, task, of, said in answered:
            each = graded(task, of, said)
            numbers = [task.over_samples(one) for one in each]
            weights = _weights(name, task, of)
            results.add(model, name, of, numbers, weights, each if task.samples > 1 else None)
            _keep(out, name, model, _rows(of, said, numbers, weights, each))
            if task.ask == "answer":
                _count_thoughts(out, name, model, of, said)
            if isinstance(model, RewardModel):
                results.add_whole(model, name, pairwise.wholes(of, said))
                for other, theirs in judged.setdefault(name, []):
                    found = pairwise.agreement(of, said, theirs, name_of(other))
                    results.add_whole(model, name, found)
                judged[name].append((model, said))
    return results


def grade(task: Task, items: list[Item], said: list[Said]) -> list[Values]:
    """Numbers per item, the main one first.

    `choose`: what the task's `grade_options` says; `likelihood`: `loglik_per_token` (nats;
    perplexity is exp of minus its mean), and per byte and word (likely.py); `score`: `accuracy` (a
    tie shares the point), the `margin` to the best wrong answer, `log_loss` (nats), and
    `accuracy_at_equal_length` (None where lengths differ by more than a tenth).
    """
    return [task.over_samples(each) for each in graded(task, items, said)]


def graded(task: Task, items: list[Item], said: list[Said]) -> list[list[Values]]:
    """Numbers per item and sample; one sample where nothing is drawn.

    What a model thinks before its answer is not graded (`rewards.after_thought`).

    Raises:
        StageFailed: a task's `grade` returned another number of results than it got answers.
    """
    if task.ask == "answer":
        asked = [item for item, one in zip(items, said, strict=True) for _ in one["texts"]]
        texts = [rewards.after_thought(text) for one in said for text in one["texts"]]
        found = iter(_as_many(task, "grade", task.grade(asked, texts), len(texts)))
        return [[next(found) for _ in one["texts"]] for one in said]
    if task.ask == "harness":
        return [[one["numbers"]] for one in said]
    if task.ask in ("choose", "likelihood"):
        return [[one] for one in _likely(task, items, said)]
    return [[pairwise.numbers(item, one)] for item, one in zip(items, said, strict=True)]


def _likely(task: Task, items: list[Item], said: list[Said]) -> list[Values]:
    """Numbers from likelihoods; None for what the model's context has no room for."""
    fits = [one.get("finish") != NO_ROOM for one in said]
    asked = list(compress(items, fits))
    if not asked:
        raise StageFailed(
            f"No item of {type(task).__name__} fits into what the model can read. Ask with fewer "
            "shots, or leave the task out."
        )
    if task.ask == "choose":
        options = [one["options"] for one in compress(said, fits)]
        found = _as_many(task, "grade_options", task.grade_options(asked, options), len(asked))
    else:
        each = compress(said, fits)
        found = [likely.numbers(item, one) for item, one in zip(asked, each, strict=True)]
    numbers = iter(found)
    return [next(numbers) if fit else dict.fromkeys(found[0]) for fit in fits]


def _as_many(task: Task, what: str, found: Sequence[Any], wanted: int) -> Sequence[Any]:
    if len(found) != wanted:
        raise StageFailed(
            f"{type(task).__name__}.{what} returned {len(found)} results for {wanted}. It returns "
            "one for each, in order."
        )
    return found


def _weights(name: str, task: Task, items: list[Item]) -> dict[str, list[float]]:
    """By metric, how much each item counts."""
    of = {metric: [*map(float, each)] for metric, each in task.weights(items).items()}
    for metric, each in of.items():
        _as_many(task, f'weights()["{metric}"]', each, len(items))
        if min(each) < 0 or max(each) <= 0:
            raise StageFailed(f"The weights of {name} {metric} must be 0 or more, and not all 0.")
    return of


def _rows(
    items: list[Item],
    said: list[Said],
    numbers: list[Values],
    weights: dict[str, list[float]],
    each: list[list[Values]],
) -> list[dict[str, Any]]:
    """The lines of `items/<task>/<model>.jsonl`: what `results.read` reads, and people."""
    rows = []
    for i, (item, one, values) in enumerate(zip(items, said, numbers, strict=True)):
        shown = {kept: item[key] for key, kept in KEPT.items() if key in item}
        row = {"id": item["id"], "prompt": item.get("prompt"), **shown, **one, "numbers": values}
        if len(each[i]) > 1:
            row["each"] = each[i]
        if weights:
            row["weights"] = {metric: of[i] for metric, of in weights.items()}
        rows.append(row)
    return rows


def _keep(out: Out, name: str, model: Model, rows: list[dict[str, Any]]) -> None:
    of = name_of(model)
    out.count(f"items.{name}", len(rows), of=of)
    if written := sum(len(row.get("texts", ())) for row in rows):
        out.count(f"answers.{name}", written, of=of)
    for row in rows:
        texts = row.get("texts", [])
        for text, finish in zip(texts, row.get("finishes", []), strict=True):
            if finish in ("length", NO_ROOM):
                example = {"id": row["id"], "model": of, "end": text[-200:]}
                out.count(f"cut.{name}", example=example, of=of)
        if row.get("truncated"):
            example = {"id": row["id"], "model": of, "tokens": row["truncated"]}
            out.count(f"truncated.{name}", example=example, of=of)
        if row.get("finish") == NO_ROOM:
            example = {"id": row["id"], "model": of}
            out.count(f"dropped.{name}_no_room", example=example, of=of)
        elif next(iter(row["numbers"].values()), None) is None:
            answer = "".join(texts[:1])[:200]
            example = {"id": row["id"], "model": of, "answer": answer}
            out.count(f"dropped.{name}_not_graded", example=example, of=of)
    file = out.path / "items" / name / f"{file_of(model)}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary = file.with_name(file.name + ".tmp")  # a kill leaves no half of them
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, file)


def _count_thoughts(out: Out, name: str, model: Model, items: list[Item], said: list[Said]) -> None:
    of = name_of(model)
    for item, one in zip(items, said, strict=True):
        for text in one["texts"]:
            if (answer := rewards.after_thought(text)) != text:
                example = {"id": item["id"], "model": of, "graded": answer[:200]}
                out.count(f"thought.{name}", example=example, of=of)


def _items(name: str, task: Task, out: Out) -> list[Item]:
    dropped: set[str] = set()

    def told(why: str, row: dict[str, Any]) -> None:
        if (key := json.dumps(row)) not in dropped:  # a task may read one file twice
            dropped.add(key)
            out.count(f"dropped.{name}_{why}", example=row)

    with data.telling(told):
        items = list(task.items())
    ids = [str(item["id"]) for item in items]
    if not items:
        raise StageFailed(f"{name} has no items. Look at its data.")
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise StageFailed(f"{name} has two items with the id {twice}. Every item needs its own.")
    return items

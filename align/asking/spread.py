"""Every task asked of every model it is for: here, or by workers.

What workers hear goes into the cache of what models said, as everything does. So it makes no
difference who asked, how many they were, or when one of them was killed.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from align import chat, precision, records, rewards
from align.artifacts import Model, RewardModel
from align.asking.asked import Asked, Asks, name_of, takes
from align.asking.questions import NO_ROOM
from align.asking.said import SHOWN, Item, Said
from align.errors import StageFailed
from align.out import Out
from align.parallel import shards
from align.settings import Task

if TYPE_CHECKING:
    from align.stages.evaluate import Evaluate

SHARDS = 4
"""Shards of a model's questions for each worker, so that all end at about the same time."""

LARGEST = 1024
"""Items of a shard: the longest answers of each keep a batch waiting."""


def ask(
    stage: Evaluate, tasks: Asks, out: Out
) -> Iterator[tuple[Model, list[tuple[str, Task, list[Item], list[Said]]]]]:
    """Each model with the (name, task, items, what it said) of the tasks that are for it.

    While one is looked at, no model is in memory: a judge may take its place on the device. A task
    of which nothing fits a model's context is left out for that model, and counted.

    Raises:
        StageFailed: a model without a chat template is asked dialogs; nothing fits any model.
    """
    _check_templates(stage.models, tasks)
    contents = records.Contents(out.cache.parent)
    found = {id(model): content(model, contents) for model in stage.models}
    contents.save()
    asks = [[one for one in tasks if takes(one[1], model)] for model in stage.models]
    if stage.workers is not None:
        planned = [
            (model, found[id(model)], its) for model, its in zip(stage.models, asks, strict=True)
        ]
        shards.make(out, _plan(stage, planned, out.cache), stage, stage.workers)
        shutil.rmtree(out.path / "data", ignore_errors=True)
    screen = _Screen(out, sum(len(items) for its in asks for _, _, items in its))
    left, nothing = False, ""
    for model, its in zip(stage.models, asks, strict=True):
        asked = Asked(model, found[id(model)], out.cache, stage.rows, screen)
        answered = asked.ask(its, stage.seed)
        del asked
        screen.before += sum(len(items) for _, _, items in its)
        each = [(*one, said) for one, said in zip(its, answered, strict=True)]
        fits = []
        for name, task, items, said in each:
            if not all(map(_has_no_room, said)):
                for sentence in _unanswered(name, name_of(model), said):
                    out.say(sentence)
                fits.append((name, task, items, said))
                continue
            nothing = f"Every item of {name} is longer than what {name_of(model)} can read."
            out.say(f"{nothing} It is left out for this model.")
            for item in items:
                example = {"id": item["id"], "model": name_of(model)}
                out.count(f"dropped.{name}_no_room", example=example, of=name_of(model))
        left = left or bool(fits)
        yield model, fits
    if not left:
        raise StageFailed(f"{nothing} Leave the task out, or ask it with fewer shots.")


def _has_no_room(said: Said) -> bool:
    return set(said.get("finishes", [said.get("finish")])) == {NO_ROOM}


def _unanswered(name: str, model: str, said: Sequence[Said]) -> Iterator[str]:
    """What a reader of the numbers should know of how a model was asked."""
    ends = Counter(end for one in said for end in one.get("finishes", [one.get("finish")]))
    total = f"of {ends.total():,}"
    if ends["length"]:
        yield f"{name}: {ends['length']:,} {total} answers of {model} were cut at max_new_tokens."
    if ends[NO_ROOM]:
        as_what = "Their answers are empty" if "texts" in said[0] else "They are in no mean"
        longer = f"{name}: {ends[NO_ROOM]:,} {total} prompts are longer than {model} can read."
        yield f"{longer} {as_what}."
    if cut := sum("truncated" in one for one in said):
        yield f"{name}: {cut:,} {total} prompts were cut on the left for {model} to read them."


def content(model: Model, contents: records.Contents) -> str:
    """What answers are remembered under: a made model's key, the bytes of what was made, its dtype.

    Other versions of the libraries, or another machine, make other weights under the same key, and
    "auto" is another dtype on other hardware.
    """
    from align import models

    base = models.describe(model).base
    places = (model.path, Path(base.path).parent)
    made = [contents.of(path) for path in places if (path / "artifact.json").is_file()]
    dtype = precision.dtype(base.dtype, models.device(), full=False)
    return records.digest([records.identity(model, contents), *made, dtype])


class Asker:
    """Makes shards: asks a model what the rows say, which are all of one model."""

    def __init__(self, stage: Evaluate, out: shards.Shard) -> None:
        self._stage = stage
        self._out = out
        self._tasks = dict(zip(rewards.names(stage.tasks), stage.tasks, strict=True))
        self._asked: tuple[int, Asked] | None = None
        self._total = 0

    def __call__(self, number: int, rows: list[shards.Row]) -> Iterator[shards.Row]:
        """The rows' ids: what was said is in the cache."""
        which, self._total = rows[0]["model"], len(rows)
        if self._asked is None or self._asked[0] != which:
            self._asked = None  # no two models are in memory
            model, known = self._stage.models[which], rows[0]["content"]
            asked = Asked(model, known, self._out.cache, self._stage.rows, self._tell)
            self._asked = which, asked
        asks = [
            (name, self._tasks[name], [row["item"] for row in each if row["item"]])
            for name, each in groupby(rows, key=lambda row: str(row["task"]))
        ]
        self._asked[1].ask(asks, self._stage.seed)
        yield from ({"id": row["id"]} for row in rows)

    def _tell(self, done: float, note: str, tokens: int) -> None:
        self._out.progress(done, self._total, "items", note, tokens)


def _plan(
    stage: Evaluate, planned: Sequence[tuple[Model, str, Asks]], cache: Path
) -> Iterator[list[shards.Row]]:
    """What is missing in the cache, model by model: so a worker loads each once at most."""
    assert stage.workers is not None
    for which, (model, known, asks) in enumerate(planned):
        asked = Asked(model, known, cache, stage.rows, _silent)
        rows = [
            {
                "id": f"{which}/{name}/{item['id'] if item else ''}",
                "model": which,
                "content": known,
                "task": name,
                "item": item and {key: item[key] for key in SHOWN if key in item},
            }
            for name, item in asked.missing(asks, stage.seed)
        ]
        size = ceil(len(rows) / (SHARDS * stage.workers.count))
        yield from shards.cut(rows, min(LARGEST, max(1, size)))


def _silent(done: float, note: str, tokens: int) -> None:
    """Nobody is told."""


def _check_templates(models: Sequence[Model], tasks: Asks) -> None:
    """See that models that are asked dialogs can be, before any is loaded.

    Raises:
        StageFailed: one has no chat template, or one that does not fit a task.
    """
    from align import models as loading

    dialogs = [
        name
        for name, task, items in tasks
        if task.ask != "score" and any(isinstance(item.get("prompt"), list) for item in items)
    ]
    for model in models:
        if dialogs and not isinstance(model, RewardModel):
            tokenizer = loading.tokenizer(model)
            if tokenizer.chat_template is None:
                fact = chat.NO_TEMPLATE.format(tokenizer.name_or_path)
                raise StageFailed(f"{', '.join(dialogs)} cannot be asked. {fact}")
            for name, task, _ in tasks:
                if takes(task, model) and (misfit := task.misfit(tokenizer)):
                    raise StageFailed(f"{name} cannot be asked. {misfit}")


class _Screen:
    """Says how far all models are together, and how fast answers are drawn."""

    def __init__(self, out: Out, total: int) -> None:
        self.before = 0
        self._out = out
        self._total = total
        self._first: tuple[float, int] | None = None

    def __call__(self, done: float, note: str, tokens: int) -> None:
        now = time.monotonic()
        if self._first is None or tokens < self._first[1]:  # another model's
            self._first = (now, tokens) if tokens else None
        elif tokens > self._first[1]:
            rate = (tokens - self._first[1]) / (now - self._first[0])
            note = f"{note}, {rate:,.0f} tokens/s"
        self._out.progress(round(self.before + done), self._total, "items", note)

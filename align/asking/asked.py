"""Asking models about the items of tasks, with everything they say remembered by content.

What a model said is kept in the store's cache under (the model's content, item, how it was asked):
a killed evaluation goes on, and a model or task added to it asks only what is new. The tasks of a
model are asked together: answers that are drawn alike share batches, so that none waits for
another's longest, and a model is loaded once, and only where something is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import rewards
from align.artifacts import Model, RewardModel
from align.asking.meter import Meter, Tell
from align.asking.questions import Question
from align.asking.said import Cache, Item, Said, key_of
from align.generation.decoding import problems
from align.settings import Task
from align.tokenizing import check_template

if TYPE_CHECKING:
    from align.asking.speaking import Speaker

GREEDY = {"do_sample": False, "max_new_tokens": 256}
"""How answers are drawn unless a task says otherwise."""

Asks = Sequence[tuple[str, Task, list[Item]]]
"""Tasks by name, with their items."""


def identity(model: Model) -> str:
    """What tells models apart: the key of a made one, the path or hub id of another.

    A made one may be named by its path, which is a link, and leads to another model tomorrow.
    """
    if model.stage is not None:
        return model.key
    made = (model.path / "stage.json").is_file()
    return model.path.resolve().name if made else str(model.path)


def name_of(model: Model) -> str:
    """What a person calls a model: its name in the recipe, else its directory's."""
    return model.name or model.key


def tell_apart(models: Iterable[Model]) -> None:
    """Names for models from outside that share one (directories of the same name): `judge-2` …"""
    names: dict[str, str] = {}
    for model in sorted(models, key=lambda model: model.stage is None):  # a stage's name stays
        known = identity(model)
        if known not in names:
            wanted, n = name_of(model), 1
            names[known] = wanted
            while list(names.values()).count(names[known]) > 1:
                n += 1
                names[known] = f"{wanted}-{n}"
        if model.stage is None:
            model.name = names[known]


def takes(task: Task, model: Model) -> bool:
    """Whether a task is for this kind of model."""
    return isinstance(model, RewardModel) == (task.ask == "score")


def drawing(task: Task) -> dict[str, Any]:
    """The options that a task's answers are drawn with."""
    return {**GREEDY, **task.decoding(), **task.generation}


def misfits(models: Sequence[Model], tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
    """(key, message) for tasks that cannot be asked as they are, or not of these models."""
    bare = {i: fact for i, model in enumerate(models) for _, fact in check_template(model)}
    names = rewards.names(tasks)
    for number, (name, task) in enumerate(zip(names, tasks, strict=True)):
        place, options = f"tasks.{number}", drawing(task)
        yield from ((place, message) for _, message in problems(options))
        if task.ask == "answer" and task.samples > 1 and not options["do_sample"]:
            fact = f"{name} draws {task.samples} samples greedily, which are all the same."
            yield place, f"{fact} Say generation: {{do_sample: true}}, or samples: 1."
        if task.ask != "answer":
            drawn = bool(task.generation) and task.ask != "harness"  # its own tasks may draw
            idle = ["samples"] * (task.samples > 1) + ["generation"] * drawn
            if idle:
                yield place, f"{name} draws no answers: leave out {' and '.join(idle)}."
        if task in tasks[:number]:
            twin = names[tasks.index(task)]
            yield place, f"{name} is {twin} once more: leave it out, or set it otherwise."
        taking = [i for i, model in enumerate(models) if takes(task, model)]
        if not taking:
            what = "a reward model" if task.ask == "score" else "a language model"
            yield place, f'{name} is for {what}, and none is in "models".'
        chat = task.model_dump(include={"chat"}).get("chat")  # tasks that know both ways have it
        for i in taking:
            if i in bare and chat:
                yield f"models.{i}", f"{bare.pop(i)} Or ask {name} as plain text: chat: false."
            elif i in bare and task.ask == "score":
                yield f"models.{i}", bare.pop(i)


class Asked:
    """A model that is loaded when it is asked something that is not in its cache."""

    def __init__(
        self, model: Model, identity: str, cache: Path, rows: int | None, tell: Tell
    ) -> None:
        """Nothing is loaded yet.

        Args:
            model: what is asked.
            identity: of its content.
            cache: the store's.
            rows: answers decoded at once; None: what the device holds.
            tell: told how far it is.
        """
        self.model = model
        self._rows = rows
        self._cache = Cache(cache / "said" / identity[:24])
        self._meter = Meter(name_of(model), tell)
        self._speaker: Speaker | None = None
        self._harness = ("", 0)

    def ask(self, asks: Asks, seed: int) -> list[list[Said]]:
        """What the model says to every item of every task, in order.

        By the task's `ask`: `texts` and `finishes`, one of each for a sample; `options`
        (log-likelihoods); `loglik`, `tokens` and `bytes` of the completion; `chosen`, `rejected`
        (scores; a list of them where several are rejected); what the task itself says (`harness`).
        What the model's context has no room for has no likelihoods, and "no room" as `finish`.
        """
        self._meter.begin({name: len(items) for name, _, items in asks})
        wanted = [_questions(task, items, seed) for _, task, items in asks]
        self._settle(
            (question, name)
            for (name, _, _), part in zip(asks, wanted, strict=True)
            for question in part
        )
        found = []
        for (name, task, items), part in zip(asks, wanted, strict=True):
            said = [self._of(question) for question in part]
            if task.ask == "harness":
                self._harness = name, len(items)
                rows = {row["id"]: row for row in task.measure(self, seed)}
                said = [rows[item["id"]] for item in items]
            found.append(said)
        return found

    def missing(self, asks: Asks, seed: int) -> Iterator[tuple[str, Item | None]]:
        """(task's name, item) of what is not in the cache; None for a task that asks by itself."""
        for name, task, items in asks:
            if task.ask == "harness":
                yield name, None
            for question in _questions(task, items, seed):
                if self._known(question) < question.samples:
                    yield name, question.item

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        from align import models

        return self._speaker.tokenizer if self._speaker else models.tokenizer(self.model)

    # -- what a harness asks ---------------------------------------------------------------------

    def continuations(self, asked: Sequence[tuple[str, str]]) -> list[Said]:
        """`loglik` of each (context, continuation), and whether it is the `greedy` one.

        A context that is too long is cut on the left, as lm-eval does: `truncated` tokens of it.
        """
        items = [{"prompt": context, "options": [text]} for context, text in asked]
        return self._all([(item, {"ask": "continuation"}) for item in items])

    def documents(self, texts: Sequence[str]) -> list[Said]:
        """`loglik` of whole texts as lm-eval reads them, in windows of what the model can read."""
        items = [{"prompt": "", "completion": text} for text in texts]
        return self._all([(item, {"ask": "document"}) for item in items])

    def completions(self, asked: Sequence[tuple[str, dict[str, Any]]], seed: int) -> list[Said]:
        """`text` and `finish` of an answer to each (context, options), cut as in `continuations`.

        The second of two equal ones that are not greedy is another sample.
        """
        return self._all(
            [
                ({"prompt": context}, _manner("completion", {**GREEDY, **options}, seed))
                for context, options in asked
            ]
        )

    def _all(self, asked: Sequence[tuple[Item, dict[str, Any]]]) -> list[Said]:
        """What is said to each."""
        name, items = self._harness
        once: dict[str, Question] = {}
        places = []
        for item, how in asked:
            key = key_of(item, how)
            question = once.setdefault(key, Question(key, item, how, 0, worth=0.0))
            number = question.samples if "seed" in how else 0
            places.append(f"{key}/{number}")
            question.samples = number + 1
            question.worth += items / len(asked)
        self._settle((question, name) for question in once.values())
        return [self._cache[place] for place in places]

    # -- asking ----------------------------------------------------------------------------------

    def _known(self, question: Question) -> int:
        """How many of its samples are in the cache, from the first."""
        keys = (f"{question.key}/{k}" for k in range(question.samples))
        return next((k for k, key in enumerate(keys) if key not in self._cache), question.samples)

    def _of(self, question: Question) -> Said:
        """What was said, of all samples together."""
        each = [self._cache[f"{question.key}/{k}"] for k in range(question.samples)]
        if question.how["ask"] != "answer":
            return each[0]
        return {
            "texts": [one["text"] for one in each],
            "finishes": [one["finish"] for one in each],
        }

    def _settle(self, asked: Iterable[tuple[Question, str]]) -> None:
        """Ask what is not in the cache: equal questions once, and those together that can be."""
        once: dict[str, Question] = {}
        for question, task in asked:
            known = once.setdefault(question.key, replace(question, tasks=[]))
            known.samples = max(known.samples, question.samples)
            known.tasks.append(task)
        groups: dict[tuple[str, int, int], list[Question]] = {}
        for question in once.values():
            if (first := self._known(question)) < question.samples:
                how = json.dumps(question.how, sort_keys=True)
                groups.setdefault((how, first, question.samples), []).append(question)
            else:
                self._meter.add(question.tasks, question.worth)
        for (_, first, _), group in groups.items():
            self._ask(group, first)

    def _ask(self, group: list[Question], first: int) -> None:
        """Ask what is asked alike, and remember each answer as it comes."""
        from align.asking.speaking import Speaker

        if self._speaker is None:
            self._speaker = Speaker(self.model, self._rows, self._meter)
        speaker = self._speaker
        ways = {
            "answer": speaker.answer,
            "completion": speaker.answer,
            "choose": speaker.choose,
            "likelihood": speaker.likelihood,
            "document": speaker.document,
            "continuation": speaker.continuation,
            "score": speaker.score,
        }
        try:
            for question, said in ways[group[0].how["ask"]](group, first):
                for k, one in enumerate(said, first):
                    self._cache.add(f"{question.key}/{k}", one)
                self._meter.add(question.tasks, question.worth)
        finally:
            self._cache.close()


def _questions(task: Task, items: Sequence[Item], seed: int) -> list[Question]:
    """What a task asks; nothing where it asks by itself."""
    if task.ask == "harness":
        return []
    how = _manner(task.ask, drawing(task), seed)
    samples = task.samples if task.ask == "answer" else 1
    return [Question(key_of(item, how), item, how, samples) for item in items]


def _manner(ask: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """How a question is asked, as far as what is said depends on it."""
    how: dict[str, Any] = {"ask": ask}
    if ask in ("answer", "completion"):
        how |= {"generation": options} | ({"seed": seed} if options["do_sample"] else {})
    return how

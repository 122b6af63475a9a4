"""Asking models about the items of tasks, with everything they say remembered by content.

What a model said to an item is kept in the store's cache under (the model's content, item, how it
was asked): a killed evaluation goes on, and a model or task added to it asks only what is new.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from align.artifacts import Model, RewardModel
from align.errors import StageFailed
from align.settings import Dialog, Task

Item = dict[str, Any]
Said = dict[str, Any]

GREEDY = {"do_sample": False, "max_new_tokens": 256}
"""How answers are drawn unless a task says otherwise."""


def identity(model: Model) -> str:
    """What tells models apart: the key of a made one, the path or hub id of another."""
    return model.key if model.stage is not None else str(model.path)


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


class Cache:
    """What one model said, a line of JSON per item; a line that a kill cut short is not read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Said] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                self.known[entry["key"]] = entry["said"]

    def add(self, entries: dict[str, Said]) -> None:
        """Remember; one write per call, so that what a kill leaves is whole lines."""
        self.known.update(entries)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = False
        if self.path.is_file() and self.path.stat().st_size:
            with self.path.open("rb") as end:
                end.seek(-1, os.SEEK_END)
                torn = end.read() != b"\n"
        lines = (json.dumps({"key": key, "said": said}) + "\n" for key, said in entries.items())
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + "".join(lines))


class Asked:
    """A model that is loaded when it is asked something that is not in its cache."""

    def __init__(self, model: Model | RewardModel, identity: str, cache: Path, rows: int) -> None:
        self.model = model
        self.rows = rows
        self._cache = Cache(cache / "said" / f"{identity[:24]}.jsonl")
        self._loaded: tuple[Any, Any] | None = None

    def ask(
        self, task: Task, items: Sequence[Item], seed: int, progress: Callable[[int], None]
    ) -> list[Said]:
        """What the model says to every item, in order; `progress` is called with items done.

        By the task's `ask`: `text`, `finish`; `options` (log-likelihoods); `loglik`, `tokens`;
        `chosen`, `rejected` (scores; a list of them where several are rejected).
        """
        how: dict[str, Any] = {"ask": task.ask}
        if task.ask == "answer":
            how |= {"generation": {**GREEDY, **task.generation}}
            if how["generation"]["do_sample"]:
                how["seed"] = seed
        keys = [_key(item, how) for item in items]
        missing = [i for i, key in enumerate(keys) if key not in self._cache.known]
        progress(len(items) - len(missing))
        if missing:
            asks = {
                "answer": self._answer,
                "choose": self._choose,
                "likelihood": self._likelihood,
                "score": self._score,
            }
            done = len(items) - len(missing)
            for found in asks[task.ask]([items[i] for i in missing], how):
                self._cache.add({keys[missing[i]]: said for i, said in found.items()})
                done += len(found)
                progress(done)
        return [self._cache.known[key] for key in keys]

    def _network(self) -> tuple[Any, Any]:
        from align import models
        from align.generation import generate
        from align.scoring import scores

        if self._loaded is None:
            if isinstance(self.model, RewardModel):
                self._loaded = scores.load(self.model)
            else:
                network = generate.folded(models.load(self.model))
                self._loaded = network, models.tokenizer(self.model)
        return self._loaded

    def _answer(self, items: list[Item], how: dict[str, Any]) -> Iterator[dict[int, Said]]:
        from align.generation import generate

        network, tokenizer = self._network()
        prompts = [_prompt(tokenizer, item) for item in items]
        options, seed = how["generation"], how.get("seed", 0)
        ids = [str(item["id"]) for item in items]
        found: dict[int, Said] = {}
        for i, answers in generate.generate(
            network, tokenizer, prompts, ids, seed=seed, generation=options, rows=self.rows
        ):
            said = {"text": "", "finish": "no room"}
            found[i] = {"text": answers[0].text, "finish": answers[0].finish} if answers else said
            if len(found) == self.rows:
                yield found
                found = {}
        yield found

    def _choose(self, items: list[Item], how: dict[str, Any]) -> Iterator[dict[int, Said]]:
        network, tokenizer = self._network()
        for at in range(0, len(items), 256):
            part = items[at : at + 256]
            pairs = [_continued(tokenizer, item, o)[:2] for item in part for o in item["options"]]
            values = iter(_likelihoods(network, pairs, part[0]["id"]))
            yield {
                at + i: {"options": [next(values) for _ in item["options"]]}
                for i, item in enumerate(part)
            }

    def _likelihood(self, items: list[Item], how: dict[str, Any]) -> Iterator[dict[int, Said]]:
        network, tokenizer = self._network()
        for at in range(0, len(items), 256):
            part = items[at : at + 256]
            triples = [_continued(tokenizer, item, item["completion"]) for item in part]
            pairs = [(prompt, said + end) for prompt, said, end in triples]
            values = _likelihoods(network, pairs, part[0]["id"])
            yield {
                at + i: {"loglik": value, "tokens": len(pair[1])}
                for i, (value, pair) in enumerate(zip(values, pairs, strict=True))
            }

    def _score(self, items: list[Item], how: dict[str, Any]) -> Iterator[dict[int, Said]]:
        from align.scoring import scores

        network, tokenizer = self._network()
        for at in range(0, len(items), 256):
            part = items[at : at + 256]
            asked: dict[str, tuple[Dialog, Dialog, Any]] = {}  # a ranking's pairs share answers
            for item in part:
                for answer in answers(item):
                    asked[_shown(item, answer)] = item["prompt"], answer, item.get("tools")
            values = scores.dialogs(network, tokenizer, *zip(*asked.values(), strict=True))
            found = dict(zip(asked, values, strict=True))
            said: dict[int, Said] = {}
            for i, item in enumerate(part):
                chosen, *rejected = (found[_shown(item, answer)] for answer in answers(item))
                if None in (chosen, *rejected):
                    raise StageFailed(
                        f"Item {item['id']} is longer than the context of {self.model.key}. "
                        "Leave it out of the data."
                    )
                several = len(rejected) > 1
                said[at + i] = {"chosen": chosen, "rejected": rejected if several else rejected[0]}
            yield said


def _key(item: Item, how: dict[str, Any]) -> str:
    """Of what an answer depends on: an item's `answer` or `subset` is not shown to the model."""
    shown = ("id", "prompt", "tools", "options", "completion", "chosen", "rejected")
    content = {name: item[name] for name in shown if name in item}
    text = json.dumps([how, content], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def answers(item: Item) -> list[Dialog]:
    """The chosen answer and the rejected ones, of which an item has one or a list."""
    rejected = item["rejected"]
    one = isinstance(rejected, str) or isinstance(rejected[0], dict)
    return [_dialog(item["chosen"]), *map(_dialog, [rejected] if one else rejected)]


def _shown(item: Item, answer: Dialog) -> str:
    return json.dumps([item["prompt"], answer, item.get("tools")], ensure_ascii=False)


def _dialog(answer: str | Dialog) -> Dialog:
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer


def _prompt(tokenizer: Any, item: Item) -> list[int]:
    """Token ids of an item's prompt: a dialog, or a text that is continued as it is."""
    from align import chat

    if isinstance(item["prompt"], str):
        return list(tokenizer(item["prompt"]).input_ids)
    return chat.prompt(tokenizer, item["prompt"], item.get("tools"))


def _continued(
    tokenizer: Any, item: Item, answer: str | Dialog
) -> tuple[list[int], list[int], list[int]]:
    """Token ids of the prompt, of what is said, and of what ends the turn."""
    from align import chat

    if isinstance(item["prompt"], str):
        assert isinstance(answer, str), "a text is continued by a text"
        said = tokenizer(answer, add_special_tokens=False).input_ids
        return _prompt(tokenizer, item), list(said), []
    ids, encoded = chat.answer(tokenizer, item["prompt"], _dialog(answer), item.get("tools"))
    spoken = [i for i, kind in zip(encoded.ids, encoded.kinds, strict=True) if kind == chat.CONTENT]
    end = [i for i, kind in zip(encoded.ids, encoded.kinds, strict=True) if kind == chat.END]
    return ids, spoken, end


def _likelihoods(network: Any, pairs: list[tuple[list[int], list[int]]], at: Any) -> list[float]:
    from align.generation import generate

    longest = max(len(prompt) + len(said) for prompt, said in pairs)
    if longest > generate.context(network):
        raise StageFailed(
            f"An item near {at} has {longest} tokens, more than the {generate.context(network)} "
            "that the model can read. Leave it out of the data."
        )
    return generate.likelihoods(network, pairs)

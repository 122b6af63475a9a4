"""Ghost Attention (Llama 2, arXiv 2307.09288, section 3.3): an instruction that lasts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field

from align import models
from align.artifacts import Conversations, Model
from align.data import Source, mix
from align.errors import StageFailed
from align.generation import draws
from align.generation.decoding import Generation, problems
from align.generation.draws import Draw, Row
from align.generation.endpoint import Engine
from align.generation.turns import given, message, spoken
from align.out import Out
from align.parallel import shards
from align.parallel.workers import Workers
from align.selection import chance, dropped
from align.settings import Dialog, Stage


class Ghost(Stage):
    """Dialogs in which a model keeps to an instruction that only their first turn has.

    The model is given the user's turns one after the other, each with the instruction before it.
    The rows have the instruction in the first turn only, and all answers but the last have
    `weight: 0`: `sft` reads them and does not learn them.

    A dialog ends before an answer that was cut at `max_new_tokens`, or for which the model's
    context has no room.
    """

    model: Model
    """What answers; in the paper the newest chat model."""

    data: list[Conversations | Source]
    """Dialogs, of which the user's turns are taken."""

    instructions: list[str] = Field(min_length=1)
    """What holds for a whole dialog: whom to act as, which language to speak, both. A dialog has
    one of them, drawn by its id."""

    terse: list[str] = []
    """The instructions in short, in the same order: for "Always act as Napoleon from now on" it is
    "Figure: Napoleon". Half of the rows have theirs; the model is given the long one."""

    place: Literal["user", "system"] = "user"
    """Where the rows have the instruction: before the first question, or as the system prompt."""

    generation: Generation = {}
    """Options of `GenerationConfig`, as in `sample`."""

    engine: Engine = None
    """What generates, as in `sample`."""

    rows: int | None = Field(None, ge=1, exclude=True)
    """Answers decoded at once by a process, as in `sample`."""

    shard: int = Field(256, ge=1, exclude=True)
    """Dialogs per shard: what a kill can lose."""

    workers: Workers | None = Field(None, exclude=True)
    """Who makes the shards: `{on: local, count: 4}`. This process unless set."""

    def check(self) -> Iterable[tuple[str, str]]:
        """Options that decoding does not know; not as many short forms as instructions."""
        yield from problems(self.generation)
        yield from models.check_template(self.model)
        if self.terse and len(self.terse) != len(self.instructions):
            fact = (
                f'"terse" has {len(self.terse)} texts and "instructions" {len(self.instructions)}'
            )
            yield "terse", f"{fact}: give a short form of each, in the same order."
        if self.workers is not None:
            yield from self.workers.problems()

    def run(self, out: Out) -> Conversations:
        """Plan the shards, have the dialogs spoken, and take the instruction out of later turns."""
        planned = draws.plan(self._asked(out), [self._draw()], self.model, out)
        made = shards.make(out, shards.cut(planned, self.shard), self, self.workers)
        summary = draws.summary(1, out.counts, made)
        (out.path / "metrics.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        if not shards.settle(out, self._rows(out)):
            raise StageFailed(
                f"No dialog has an answer that ended ({dropped(out)}). Raise max_new_tokens."
            )
        return Conversations(out.path)

    def worker(self, out: shards.Shard) -> shards.Work:
        """Load the model; the answers of a shard are drawn turn by turn."""
        from align.generation import engines

        ask = engines.ready(self.engine, self.model, seed=self.seed, rows=self.rows, out=out)

        def work(number: int, shard: list[Row]) -> list[Row]:
            rows = [{"id": row["id"], **row["columns"]} for row in shard]
            return spoken(ask, self._draw(), rows, out)

        return work

    def _draw(self) -> Draw:
        return draws.resolved([], 1, self.generation, None)[0]

    def _asked(self, out: Out) -> Iterator[Row]:
        """What every dialog begins with, and what is to be said in it."""
        for row in mix(self.data, Conversations, self.seed, out):
            turns = [one["content"] for one in row["messages"] if one["role"] == "user"]
            if not turns or not all(isinstance(turn, str) for turn in turns):
                out.count("dropped.no_text_of_the_user", example={"id": row["id"]})
                continue
            which = int.from_bytes(chance(self.seed, row["id"], 0)) % len(self.instructions)
            short = self.terse and chance(self.seed, row["id"], 1)[0] % 2
            kept = (self.terse if short else self.instructions)[which]
            told = {"instruction": self.instructions[which], "turns": turns, "answers": []}
            yield {"id": row["id"], "prompt": given(told, 0), "kept": kept, **told}

    def _rows(self, out: Out) -> Iterator[Row]:
        """The rows to learn from."""
        for row in Conversations(out.path).rows():
            why, example = row.get("ended"), {"id": row["id"], "turns": len(row["answers"])}
            if why is not None:
                name = f"shortened.{why}" if row["answers"] else f"dropped.{why}"
                out.count(name, example=example)
            if row["answers"]:
                out.count("rows")
                yield {"id": row["id"], "messages": self._dialog(row), "instruction": row["kept"]}

    def _dialog(self, row: Row) -> Dialog:
        kept, (first, *others) = row["kept"], row["turns"]
        system = self.place == "system"
        turns = [first if system else f"{kept}\n\n{first}", *others]
        found = [message("system", kept)] if system else []
        for turn, answer in zip(turns, row["answers"], strict=False):
            found += [message("user", turn), {**message("assistant", answer), "weight": 0}]
        del found[-1]["weight"]
        return found

"""Draw answers from a model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import Field

from align import adapters, headers, models
from align.artifacts import Model, Prompts, Samples
from align.data import Source, mix
from align.generation import draws
from align.generation.decoding import Generation, problems, unpaged
from align.generation.draws import Draw
from align.generation.endpoint import Engine
from align.out import Out
from align.parallel import shards
from align.parallel.workers import Workers
from align.settings import Stage

SHARD = 1024
"""Answers of a shard unless `shard:` says how many prompts: seconds to minutes of work."""


class Sample(Stage):
    """`n` answers to every prompt.

    In fp32 an answer depends on the seed, the prompt's id and the answer's index only: it is the
    same in any batch, order, number of shards or workers, and with a larger `n` the first ones
    stay. (A batch rounds logits otherwise; that changed none of 557,952 tokens.) In bf16 the same
    `rows` and `shard` give the same answers with the engine `generate`. A server promises nothing.
    What drew, and what it promises, is in the artifact's `metrics.json`.
    """

    model: Model
    """What answers. Its chat template writes the prompts."""

    prompts: list[Prompts | Source]
    """What is asked. Further columns stay with the row and reach rewards; `tools` the template."""

    n: int = Field(8, ge=1)
    """Answers per prompt."""

    generation: Generation = {}
    """Options of `GenerationConfig`. Unless told: do_sample true, temperature 1, top_k 0 (all
    tokens), max_new_tokens 256. It ends at every end-of-turn token the model or template has."""

    system: str | None = None
    """A system prompt for drawing, in the place of the prompt's own. The rows keep the prompt as it
    was asked: what is trained on them learns to answer so without it."""

    draws: list[Draw] = []
    """Several draws instead of one, each with its own `n`, `generation` and `system`, for all
    prompts or for some. An answer's `draw` is the number of its own."""

    engine: Engine = None
    """What generates: `generate`, in this process; `paged`, in this process with shared pages of
    prompts; or the URL of a server. Unless set `paged` on a GPU for models it can decode (attention
    to everything or in a window, no ALiBi, keys and values of one form), else `generate`."""

    rows: int | None = Field(None, ge=1, exclude=True)
    """Answers decoded at once by a process. Unless set 128 on a CPU, and on a GPU as many as fit
    its memory."""

    shard: int | None = Field(None, ge=1, exclude=True)
    """Prompts per shard: what a kill can lose. About 1,024 answers unless set."""

    workers: Workers | None = Field(None, exclude=True)
    """Who makes the shards: `{on: local, count: 4}`. This process unless set."""

    def check(self) -> Iterable[tuple[str, str]]:
        """Options that decoding does not know; a model that its engine or template cannot serve."""
        yield from problems(self.generation)
        yield from models.check_template(self.model)
        base = adapters.root(self.model)
        if self.engine == "paged" and base and (fact := unpaged(headers.config(base))):
            yield "engine", fact
        if self.workers is not None:
            yield from self.workers.problems()
        yield from draws.misfits(self.draws, self.drawn(), self.prompts)

    def drawn(self) -> list[Draw]:
        """The draws, each with what it takes from the stage."""
        return draws.resolved(self.draws, self.n, self.generation, self.system)

    @property
    def most(self) -> int:
        """The most answers that a prompt can have."""
        return sum(draw.n or 0 for draw in self.drawn())

    def run(self, out: Out) -> Samples:
        """Plan the shards, have them drawn, and sum up."""
        rows = mix(self.prompts, Prompts, self.seed, out)
        planned = draws.plan(rows, self.drawn(), self.model, out)
        size = self.shard or max(1, SHARD // self.most)
        made = shards.make(out, shards.cut(planned, size), self, self.workers)
        summary = draws.summary(len(self.drawn()), out.counts, made)
        (out.path / "metrics.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        if cut := out.counts.get("cut"):
            answers = out.counts["answers"]["n"]
            out.say(f"{cut['n']} of {answers} answers were cut at max_new_tokens.")
        return Samples(out.path)

    def worker(self, out: shards.Shard) -> shards.Work:
        """Load the model; the answers of a shard are drawn together, one draw after the other."""
        from align.generation import engines

        ask = engines.ready(self.engine, self.model, seed=self.seed, rows=self.rows, out=out)

        def work(number: int, shard: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
            answers = draws.answers(ask, self.drawn(), shard, out)
            for row in shard:
                out.count("prompts")
                kept = {name: row[name] for name in ("id", "prompt", "columns")}
                yield {**kept, "completions": answers[row["id"]]}

        return work

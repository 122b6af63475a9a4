"""Draw answers from a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from pydantic import Field

from align import models, shards
from align.artifacts import Model, Prompts, Samples
from align.data import Source, mix
from align.decoding import Generation, problems
from align.errors import StageFailed
from align.out import Out
from align.settings import Stage

SHARD = 1024
"""Answers of a shard unless `shard:` says how many prompts: seconds to minutes of work."""


class Sample(Stage):
    """`n` answers to every prompt.

    An answer depends on the seed, the prompt's id and the answer's index only: in fp32 it is the
    same in any batch, order or number of shards, and with a larger `n` the first ones stay. In
    bf16 the same `rows` and `shard` give the same answers.

    Not its work: several devices, and engines other than our own decoding.
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

    rows: int = Field(128, ge=1, exclude=True)
    """Answers decoded at once: as many as fit the memory, if a GPU is to be busy."""

    shard: int | None = Field(None, ge=1, exclude=True)
    """Prompts per shard: what a kill can lose. About 1,024 answers unless set."""

    def check(self) -> Iterable[tuple[str, str]]:
        """Options that decoding does not know; a model that cannot render a dialog."""
        yield from problems(self.generation)
        yield from models.check_template(self.model)

    def run(self, out: Out) -> Samples:
        """Sample shard by shard."""
        from align import chat, generate

        tokenizer = models.tokenizer(self.model)
        network = generate.folded(models.load(self.model))
        rows, encoded = [], {}
        for row in mix(self.prompts, Prompts, self.seed, out):
            ids = chat.prompt(tokenizer, row["prompt"], row.get("tools"))
            if len(ids) < generate.context(network):
                rows.append(row)
                encoded[row["id"]] = ids
            else:
                out.count("dropped.prompt_too_long", example={"id": row["id"], "tokens": len(ids)})
        if not rows:
            raise StageFailed(
                f"Every prompt is longer than the {generate.context(network)} tokens that "
                f"{self.model.key} can read. Use shorter prompts or another model."
            )
        size, total = self.shard or max(1, SHARD // self.n), self.n * len(rows)

        def work(number: int, shard: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
            def progress(tokens: int) -> None:
                done = self.n * (number * size + len(drawn))
                out.progress(done, total, "answers", f"{tokens:,} tokens of shard {number}")

            drawn: dict[int, list[dict[str, Any]]] = {}
            for i, answers in generate.generate(
                network,
                tokenizer,
                [encoded[row["id"]] for row in shard],
                [row["id"] for row in shard],
                n=self.n,
                seed=self.seed,
                generation=self.generation,
                rows=self.rows,
                progress=progress,
            ):
                drawn[i] = [asdict(answer) for answer in answers]
            for i, row in enumerate(shard):
                columns = {k: v for k, v in row.items() if k not in ("id", "prompt")}
                kept = {"id": row["id"], "prompt": row["prompt"], "columns": columns}
                yield {**kept, "completions": drawn[i]}

        shards.make(out, shards.cut(rows, size), work)
        out.progress(total, total, "answers")
        samples = Samples(out.path)
        for row in samples.rows():
            out.count("prompts")
            for answer in row["completions"]:
                out.count("answers")
                out.count("tokens", len(answer["token_ids"]))
                if answer["finish"] == "length":
                    out.count("cut", example={"id": row["id"], "end": answer["text"][-200:]})
        return samples

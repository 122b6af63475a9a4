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
        """Plan the shards, then draw one after the other."""
        size = self.shard or max(1, SHARD // self.n)
        shards.make(out, shards.cut(self.planned(out), size), self)
        return Samples(out.path)

    def planned(self, out: Out) -> Iterator[dict[str, Any]]:
        """The prompts that are asked, one at a time; the others are counted."""
        from align import chat

        tokenizer, limit = models.tokenizer(self.model), context(self.model)
        asked = 0
        for row in mix(self.prompts, Prompts, self.seed, out):
            ids = chat.prompt(tokenizer, row["prompt"], row.get("tools"))
            if len(ids) < limit:
                asked += 1
                yield row
            else:
                out.count("dropped.prompt_too_long", example={"id": row["id"], "tokens": len(ids)})
        if not asked:
            raise StageFailed(
                f"Every prompt is longer than the {limit} tokens that {self.model.key} can read. "
                "Use shorter prompts or another model."
            )

    def worker(self, out: shards.Shard) -> shards.Work:
        """Load the model; a shard's prompts are read and answered together."""
        from align import chat, generate

        tokenizer = models.tokenizer(self.model)
        network = generate.folded(models.load(self.model))

        def work(number: int, shard: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
            drawn: dict[int, list[dict[str, Any]]] = {}
            for i, answers in generate.generate(
                network,
                tokenizer,
                [chat.prompt(tokenizer, row["prompt"], row.get("tools")) for row in shard],
                [row["id"] for row in shard],
                n=self.n,
                seed=self.seed,
                generation=self.generation,
                rows=self.rows,
                progress=lambda tokens: out.progress(
                    len(drawn), len(shard), "prompts", tokens=tokens
                ),
            ):
                drawn[i] = [asdict(answer) for answer in answers]
            for i, row in enumerate(shard):
                columns = {k: v for k, v in row.items() if k not in ("id", "prompt")}
                kept = {"id": row["id"], "prompt": row["prompt"], "columns": columns}
                yield {**kept, "completions": drawn[i]}
                out.count("prompts")
                for answer in drawn[i]:
                    out.count("answers")
                    out.count("tokens", len(answer["token_ids"]))
                    if answer["finish"] == "length":
                        out.count("cut", example={"id": row["id"], "end": answer["text"][-200:]})

        return work


def context(model: Model) -> int:
    """The most tokens the model can attend to (a large number where its config names none)."""
    from transformers import AutoConfig

    base = models.describe(model).base
    config = AutoConfig.from_pretrained(base.path, revision=base.revision)
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30)

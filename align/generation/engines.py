"""What draws the answers of a `sample` stage: our decoding, continuous batching, or a server.

engine: generate      our own decoding in this process; the default on a CPU
engine: paged         transformers' continuous batching in this process; the default on a GPU, for
                      models it can decode
engine: http://…/v1   a server that speaks OpenAI's API; as a block, see `Endpoint`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from align import chat, models
from align.artifacts import Model
from align.generation import generate, paged
from align.generation.draws import Ask, Draw, Row, limit
from align.generation.endpoint import Endpoint
from align.generation.generate import Completion
from align.generation.served import Served
from align.parallel.shards import Shard

AGAIN = 4
"""Prompts of the first shard that are drawn again, alone, where the batch can change an answer."""


def ready(engine: Any, model: Model, *, seed: int, rows: int | None, out: Shard) -> Ask:
    """Load the model, or see that it is served; returns what draws its answers.

    Args:
        engine: as the stage says; None: by the device.
        model: what answers.
        seed: of the stage.
        rows: answers decoded at once.
        out: its `facts` will say what draws; a server's refusals are counted in it.

    Raises:
        StageFailed: see `models.load` and `Served`.
    """
    tokenizer = models.tokenizer(model)
    if isinstance(engine, Endpoint):
        served = Served(engine, model, tokenizer, limit(model), out)
        out.facts = {"engine": "endpoint", "model": model.key, **served.facts}
    else:
        network = generate.folded(models.load(model))
        pages = network.device.type != "cpu" and paged.decodes(network)
        name = engine or ("paged" if pages else "generate")
        dtype = str(network.dtype).removeprefix("torch.")
        same = dtype == "float32"
        draws = {"generate": generate.generate, "paged": paged.generate}[name]
        out.facts = {"engine": name, "model": model.key, "dtype": dtype, "same_draw": same}

    def ask(
        asked: list[Row], draw: Draw, first: int, progress: Callable[[int], None]
    ) -> Iterator[tuple[int, list[Completion]]]:
        dialogs = [draw.dialog(row["prompt"]) for row in asked]
        tools = [row["columns"].get("tools") for row in asked]
        prompts = [chat.prompt(tokenizer, *one) for one in zip(dialogs, tools, strict=True)]
        ids = [row["id"] for row in asked]
        how: dict[str, Any] = {
            "n": draw.n,
            "first": first,
            "seed": seed,
            "generation": draw.generation,
        }
        if isinstance(engine, Endpoint):
            kept = out.path / "checkpoints" / "answers" / f"{out.number:05d}.jsonl"
            more: dict[str, Any] = {"dialogs": dialogs, "tools": tools, "kept": kept}
            yield from served.generate(prompts, ids, progress=progress, **more, **how)
            return
        again = {}
        for place, answers in draws(
            network, tokenizer, prompts, ids, rows=rows, progress=progress, **how
        ):
            yield place, answers
            if place < AGAIN and out.number == 0 and not same:
                again[place] = [answer.token_ids for answer in answers]
        for place, drawn in again.items():
            changed, n = generate.redrawn(
                draws, network, tokenizer, [prompts[place]], [ids[place]], [drawn], **how
            )
            out.count("drawn_again", n)
            out.count("drawn_again_otherwise", changed)

    return ask

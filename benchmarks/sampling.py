"""Drawing answers: `generate` and `paged` against `generate(num_return_sequences=n)`.

    python benchmarks/sampling.py [--rounds 3] [--prompts 96] [--n 8] [--size small|1b|8b]
                                  [--threads 2]

Prompts and answers are of uneven length. `small` is the model stories260k with instructions as
prompts where $ALIGN_DATA has them, else a Llama of 1.1M parameters with random weights; `1b` and
`8b` are Llama 3's shapes with random weights in bfloat16, for a GPU. All sides get token ids and
give texts. The library takes the prompts as they come and sorted by length, in batches of each of
`SIZES`, and its best size counts. Cases run in turn.

Times are CPU seconds with one thread, because other work on the machine does not count in them;
wall seconds with several threads (which crawl where the cores are busy), and on a GPU. Two local
workers: benchmarks/shards.py.

Prints the tables of RESULTS.md: medians, and the medians of the ratios round by round.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from run import make_base

SIZES = (4, 8, 16, 32)
"""Prompts of a batch of the library."""

SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}
LLAMA_3 = {
    "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "dtype": "bfloat16",
}  # fmt: skip

Speed = Callable[[], float]
"""Draws everything once; tokens per second."""


class World:
    """A model, prompts, and the tokens that end its answers."""

    def __init__(self, size: str, prompts: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        data = Path(os.environ.get("ALIGN_DATA", "/nowhere"))
        real = size == "small" and (data / "stories260k").is_dir()
        folder = data / "stories260k"
        if not real:
            folder = Path(tempfile.mkdtemp(prefix="align-bench-"))
            make_base(folder, **({**SHAPES[size], **LLAMA_3} if size in SHAPES else {}))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        dtype = torch.float32 if size == "small" else torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model: Any = model.to(self.device).eval()
        mean = 30 if size == "small" else 200
        if real:
            rows = json.loads((data / "raschka_instruct/instruction-data.json").read_text())
            texts = [f"{row['instruction']}\n{row['input']}".strip() for row in rows[:prompts]]
            self.prompts = [self.tokenizer(text).input_ids for text in texts]
            self.stops = self.tokenizer.convert_tokens_to_ids(["."])
        else:  # the next token is nearly any: one in `mean` ends an answer
            chance = random.Random(0)
            lengths = [round(mean * chance.lognormvariate(-0.18, 0.6)) + 1 for _ in range(prompts)]
            self.prompts = [[chance.randrange(5, 512) for _ in range(n)] for n in lengths]
            self.stops = list(range(5, model.config.vocab_size, mean))
        self.ids = [str(i) for i in range(len(self.prompts))]
        self.options = {"max_new_tokens": 6 * mean, "eos_token_id": self.stops}

    def timed(self, work: Callable[[], int], threads: int = 1) -> float:
        """Tokens per second of something that draws tokens."""
        import torch

        torch.set_num_threads(threads)
        clock = time.process_time if self.device == "cpu" and threads == 1 else time.perf_counter
        started = clock()
        tokens = work()
        return tokens / (clock() - started)

    def ours(self, engine: Any, n: int, **how: Any) -> int:
        """Tokens that one of our engines draws."""
        given = {"generation": self.options, **how}
        prompts = given.pop("prompts", self.prompts)
        drawn = engine(self.model, self.tokenizer, prompts, self.ids[: len(prompts)], n=n, **given)
        return sum(len(answer.token_ids) for _, found in drawn for answer in found)

    def library(self, n: int, size: int, order: list[int]) -> int:
        """Tokens that `transformers` draws, to the end of each answer."""
        import torch

        tokens = 0
        for at in range(0, len(order), size):
            part = [self.prompts[i] for i in order[at : at + size]]
            width = max(map(len, part))
            ids = torch.tensor([[0] * (width - len(p)) + p for p in part], device=self.device)
            mask = torch.tensor(
                [[0] * (width - len(p)) + [1] * len(p) for p in part], device=self.device
            )
            with torch.inference_mode():
                made = self.model.generate(
                    ids,
                    attention_mask=mask,
                    do_sample=True,
                    top_k=0,
                    num_return_sequences=n,
                    pad_token_id=0,
                    **self.options,
                )[:, width:]
            self.tokenizer.batch_decode(made, skip_special_tokens=True)
            for row in made.tolist():
                ends = [i + 1 for i, token in enumerate(row) if token in self.stops]
                tokens += ends[0] if ends else len(row)
        return tokens


def in_turn(cases: dict[str, Speed], rounds: int) -> dict[str, list[float]]:
    """Tokens per second of every case in every round; what is drawn first warms up."""
    next(iter(cases.values()))()
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, speed in cases.items():
            found[name].append(speed())
    return found


def engines(world: World, n: int, threads: int, rounds: int) -> float:
    """The table of engines; returns our tokens per second."""
    from align.generation import generate, paged

    order = list(range(len(world.prompts)))
    sides = {"as they come": order, "sorted": sorted(order, key=lambda i: len(world.prompts[i]))}
    cases: dict[str, Speed] = {
        "generate, one thread": lambda: world.timed(lambda: world.ours(generate.generate, n)),
        "paged, one thread": lambda: world.timed(lambda: world.ours(paged.generate, n)),
    }
    if world.device == "cpu" and threads > 1:
        cases[f"generate, {threads} threads"] = lambda: world.timed(
            lambda: world.ours(generate.generate, n), threads
        )
    for side, places in sides.items():
        for size in SIZES:
            cases[f"transformers, {size} prompts {side}"] = lambda size=size, places=places: (  # type: ignore[misc]
                world.timed(lambda: world.library(n, size, places))
            )
    found = in_turn(cases, rounds)
    medians = {name: statistics.median(speeds) for name, speeds in found.items()}
    best = {
        side: max((name for name in cases if name.endswith(side)), key=medians.__getitem__)
        for side in sides
    }
    print("| what | tokens/s | × transformers as they come | × sorted |\n|---|---|---|---|")
    shown = [name for name in cases if not name.startswith("transformers") or name in best.values()]
    for name in shown:
        ratios = [
            statistics.median(a / b for a, b in zip(found[name], found[best[side]], strict=True))
            for side in sides
        ]
        print(f"| {name} | {medians[name]:,.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)
    return medians["generate, one thread"]


def multinomial(logits: Any) -> Any:
    """A draw as `transformers` makes it."""
    import torch

    return torch.multinomial(logits.float().softmax(-1), 1)


def draws(rounds: int) -> None:
    """One step's draw against softmax and `torch.multinomial`."""
    import torch

    from align.generation import noise
    from align.generation.decoding import OPTIONS

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    rows = 64
    key = torch.arange(rows, device=device)
    stops = torch.tensor([2], device=device)

    def seconds(work: Callable[[], Any], times: int) -> float:
        work()
        clock = time.process_time if device == "cpu" else time.perf_counter
        started = clock()
        for _ in range(times):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
        return (clock() - started) / times

    print("\n| draw for 64 rows | ours, ms | multinomial, ms | ratio |\n|---|---|---|---|")
    for vocabulary in (512, 128256):
        logits = torch.randn(rows, vocabulary, device=device) * 3
        times = 200 if vocabulary == 512 else 5
        ours = partial(noise.draw, logits, key, key, OPTIONS, stops)
        plain = partial(multinomial, logits)
        pairs = [(seconds(ours, times), seconds(plain, times)) for _ in range(rounds)]
        a, b = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"| vocabulary {vocabulary:,} | {1e3 * a:.2f} | {1e3 * b:.2f} | {ratio:.2f} |")


def growth(world: World, n: int, rounds: int) -> None:
    """Seconds as prompts, answers and their length double twice."""
    from align.generation import generate

    few, short = len(world.prompts) // 4, world.options["max_new_tokens"] // 8
    print("\n| tokens/s with | 1 × | 2 × | 4 × |\n|---|---|---|---|")
    for what in ("prompts", "n", "length"):
        speeds = []
        for factor in (1, 2, 4):
            prompts = world.prompts[: few * (factor if what == "prompts" else 1)]
            answers = n * (factor if what == "n" else 1)
            length = short * (factor if what == "length" else 1)
            options = {"max_new_tokens": length, "min_new_tokens": length}
            speeds.append(
                statistics.median(
                    world.timed(
                        lambda p=prompts, k=answers, o=options: world.ours(  # type: ignore[misc]
                            generate.generate, k, prompts=p, generation=o
                        )
                    )
                    for _ in range(rounds)
                )
            )
        base = {"prompts": few, "n": n, "length": short}[what]
        print(f"| {what} from {base} | " + " | ".join(f"{speed:,.0f}" for speed in speeds) + " |")


def sizes(world: World, n: int) -> None:
    """Bytes of a candidate: in the device's memory, and on the disk."""
    from align.generation import columns, generate

    drawn = generate.generate(
        world.model, world.tokenizer, world.prompts, world.ids, n=n, generation=world.options
    )
    answers = [answer for _, found in drawn for answer in found]
    tokens = statistics.mean(len(answer.token_ids) for answer in answers)
    stored = statistics.mean(len(json.dumps(asdict(answer))) for answer in answers)
    _, each = columns.held(world.model)
    longest = max(map(len, world.prompts)) + int(world.options["max_new_tokens"]) + columns.SLACK
    print(
        f"\nA candidate has {tokens:.0f} tokens and {stored:,.0f} bytes on the disk "
        f"({stored / tokens:.1f} a token). While it is decoded it has {longest:,} columns of keys "
        f"and values, {each:,} bytes each: {each * longest / 1e6:.2f} MB."
    )


def limit(world: World, speed: float) -> None:
    """What a GPU's bandwidth allows: a step reads the weights once, and every row's keys."""
    import torch

    from align.generation import columns

    block = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(block)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        other.copy_(block)
    torch.cuda.synchronize()
    bandwidth = 2 * 20 * block.numel() / (time.perf_counter() - started)
    longest = max(map(len, world.prompts)) + int(world.options["max_new_tokens"])
    rows = columns.fitting(world.model, longest)
    kept = statistics.mean(map(len, world.prompts)) + int(world.options["max_new_tokens"]) / 12
    _, each = columns.held(world.model)
    step = world.model.get_memory_footprint() + rows * kept * each
    most = rows * bandwidth / step
    print(
        f"\n{bandwidth / 1e9:,.0f} GB/s measured allow {most:,.0f} tokens/s with {rows} rows; "
        f"`generate` reaches {speed / most:.0%}."
    )


def main() -> None:
    """Everything, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--size", choices=["small", *SHAPES], default="small")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="a further case")
    asked = parser.parse_args()
    world = World(asked.size, asked.prompts)
    speed = engines(world, asked.n, asked.threads, asked.rounds)
    draws(asked.rounds)
    growth(world, asked.n, asked.rounds)
    sizes(world, asked.n)
    if world.device == "cuda":
        limit(world, speed)


if __name__ == "__main__":
    main()

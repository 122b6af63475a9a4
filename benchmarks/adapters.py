"""SFT and DPO of adapters: a recipe, the same settings in a plain TRL script, and TRL's defaults.

    python benchmarks/adapters.py [--model tiny|1b|8b] [--rounds 3] [--rows 160]

All three run in turn, A B C A B C, each in processes of its own, on the same base (random weights,
made here) and the same rows, for one epoch, with the LoRA and quantization blocks of adapters.yaml.

* align: adapters.yaml by `align run`, that is our defaults;
* same: plain.py with what these defaults come to, as someone would write it who knows TRL well;
* TRL: plain.py with nothing else set.

Prints the tables of RESULTS.md: medians, and medians of the ratios round by round. On a CPU time is
CPU seconds (set OMP_NUM_THREADS=1), which other work on the machine changes little, of the whole
stage: loading, tokenizing, training and saving, without imports; memory is the peak of the resident
set. On a GPU time is wall seconds: of SFT those of the training, of DPO those of the whole process;
memory is the peak of what torch allocated.
"""

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plain import COMMON, dialogs
from ruamel.yaml import YAML
from run import HERE, WORDS, make_base

RECIPE = YAML(typ="safe").load((HERE / "adapters.yaml").read_text(encoding="utf-8"))
LORA = RECIPE["defaults"]["sft"]["lora"]
NF4 = RECIPE["stages"]["sft_qlora"]["quantization"]
SWEEP = [name for name in RECIPE["stages"] if name.startswith("beta_")]

_LLAMA_3: dict[str, Any] = {
    "vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "rope_theta": 500000.0, "dtype": "bfloat16",
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"max_position_embeddings": 1024},
    "1b": {
        **_LLAMA_3, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "head_dim": 64, "tie_word_embeddings": True,
    },
    "8b": {
        **_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "head_dim": 128,
    },
}  # fmt: skip
"""A tiny one, and Llama 3.2 1B and 3.1 8B."""

MEDIAN = {"tiny": 110, "1b": 220, "8b": 220}
"""Tokens of a dialog, about. Prompts and answers are log-normal: a few are many times that long."""

HOOK = """
import atexit, json, os, resource, sys, time
born = os.getpid()
def note():
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_initialized()
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    numbers = {"forked": os.getpid() != born, "cuda": cuda, "memory": (peak or rss) / 2**20}
    with open(os.environ["ALIGN_BENCH_NOTES"], "a") as file:
        print(json.dumps({**numbers, "cpu": time.process_time()}), file=file)
atexit.register(note)
"""
"""What every Python process here does at its end. Several stages on a CPU are forks of a parent
that has imported the libraries, and the CPU time of a fork begins with it."""

Numbers = dict[str, float]


def make_data(folder: Path, rows: int, median: int) -> None:
    """Conversations, and half as many preferences, of log-normal lengths (sigma 1)."""
    draw = random.Random(0)
    most = 4 * median  # no row is longer than the 1,024 tokens at which TRL cuts

    def said(role: str, share: float) -> list[dict[str, str]]:
        tokens = min(share * most, share * median * math.exp(draw.gauss(0, 1)))
        words = draw.choices(WORDS, k=max(2, round(tokens / 1.9)))
        return [{"role": role, "content": " ".join(words)}]

    def write(name: str, lines: list[dict[str, Any]]) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    turns = [said("user", 0.3) + said("assistant", 0.7) for _ in range(rows)]
    write("conversations", [{"messages": messages} for messages in turns])
    pairs = [[said("user", 0.3), *(said("assistant", 0.7) for _ in "ab")] for _ in turns[::2]]
    write("preferences", [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs])


def lengths(work: Path) -> dict[str, list[int]]:
    """Tokens of every sequence a trainer sees: by kind of stage."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work / "base")

    def count(messages: list[dict[str, str]]) -> int:
        return len(tokenizer(tokenizer.apply_chat_template(messages, tokenize=False)).input_ids)

    pairs = dialogs(str(work / "preferences.jsonl"))
    return {
        "sft": [count(row["messages"]) for row in dialogs(str(work / "conversations.jsonl"))],
        "dpo": [count(row["prompt"] + row[s]) for s in ("chosen", "rejected") for row in pairs],
    }


def flops(kind: str, tokens: Sequence[int], base: Path) -> float:
    """Model FLOPs of one epoch: what the mathematics needs, without what is computed again.

    With N weights in matrices (the head among them, the embeddings not) and A in adapters, a token
    takes 2 (N + A) forward, as much again for the gradients of what goes in, and 2 A for the
    adapters' own: 4 N + 6 A, where full fine-tuning takes 6 N. Causal attention over n tokens takes
    2 n^2 d forward in each of L layers, and twice that backward. DPO adds the reference's forward.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        modules = AutoModelForCausalLM.from_config(config).named_modules()
    sides = {name: m.weight.shape for name, m in modules if isinstance(m, torch.nn.Linear)}
    n = sum(math.prod(shape) for shape in sides.values())
    a = sum(LORA["r"] * sum(shape) for name, shape in sides.items() if name != "lm_head")
    layers, width = config.num_hidden_layers, config.num_attention_heads * config.head_dim
    attention = 2 * layers * width * sum(length**2 for length in tokens)
    training = (4 * n + 6 * a) * sum(tokens) + 3 * attention
    return training + (2 * n * sum(tokens) + attention if kind == "dpo" else 0)


def peak_flops() -> float:
    """FLOP/s of a large matrix product here, in the faster of float32 and bfloat16; best of 20."""
    import torch

    device, side = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 1024)
    best = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in "ab")
        for _ in range(20):
            started = time.perf_counter()
            float((a @ b)[0, 0])
            best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def same_settings(kind: str, quantized: bool, gpu: bool) -> dict[str, Any]:
    """What our defaults come to, as TRL's options. On a CPU the plain script is never slowed down.

    The reference's numbers are computed before training, as ours are.
    """
    settings: dict[str, Any] = {
        **COMMON, "num_train_epochs": 1, "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4, "logging_steps": 1, "bf16": gpu or quantized,
        "gradient_checkpointing": gpu, "use_cpu": not gpu, "lora": LORA,
    }  # fmt: skip
    if gpu:
        settings["model_init_kwargs"] = {"dtype": "bfloat16"}
    if quantized:
        settings["quantization"] = NF4 | ({"bnb_4bit_compute_dtype": "bfloat16"} if gpu else {})
    if kind == "dpo":
        settings["precompute_ref_log_probs"] = True
    return settings


def trl_defaults(quantized: bool, **more: Any) -> dict[str, Any]:
    """Model, data, one epoch and the adapter: all else as TRL has it."""
    block = {"quantization": NF4} if quantized else {}
    return {"defaults": True, "num_train_epochs": 1, "lora": LORA, **block, **more}


class Bench:
    """A folder with a base and its data, in which the three are run."""

    def __init__(self, work: Path, gpu: bool) -> None:
        self.work, self.gpu = work, gpu
        self.notes = work / "notes.jsonl"
        (work / "sitecustomize.py").write_text(HOOK)
        os.environ["ALIGN_BENCH_NOTES"] = str(self.notes)
        os.environ["PYTHONPATH"] = f"{work}:{os.environ.get('PYTHONPATH', '')}"

    def execute(self, *command: str) -> tuple[float, str, list[dict[str, Any]]]:
        """Seconds of a process with its children, imports included; what it printed; its notes."""
        self.notes.write_text("")
        printed = self.work / "printed.txt"
        started = time.perf_counter()
        with printed.open("w") as file:
            child = subprocess.Popen(
                [sys.executable, *command], cwd=self.work, stdout=file, stderr=subprocess.STDOUT
            )
            _, status, usage = os.wait4(child.pid, 0)
        wall, text = time.perf_counter() - started, printed.read_text()
        if status:
            sys.exit(f"{' '.join(command)} ended with {status}\n{text}")
        seconds = wall if self.gpu else usage.ru_utime + usage.ru_stime
        return seconds, text, dialogs(str(self.notes))

    def align(self, *stages: str) -> list[Numbers]:
        """Our recipe, into an empty store: the numbers of each of several stages."""
        shutil.rmtree(self.work / "runs", ignore_errors=True)
        recipe = str(HERE / "adapters.yaml")
        whole, _, notes = self.execute("-m", "align.cli", "run", recipe, *stages)
        mine = [note for note in notes if note["cuda" if self.gpu else "forked"]]
        found = []
        for stage, note in zip(stages, mine, strict=True):
            made = self.work / "runs" / "adapters" / stage
            train = json.loads((made / "metrics.json").read_text())["seconds"]
            wall = json.loads((made / "artifact.json").read_text())["seconds"]
            seconds = wall if self.gpu else note["cpu"]
            found.append({"train": train, "seconds": seconds, "memory": note["memory"]})
        return [{**numbers, "whole": whole} for numbers in found]

    def trl(self, kind: str, settings: dict[str, Any]) -> Numbers:
        """One plain script."""
        data = "conversations.jsonl" if kind == "sft" else "preferences.jsonl"
        script = str(HERE / "plain.py")
        whole, text, notes = self.execute(script, kind, "base", data, "out", json.dumps(settings))
        said = json.loads(text.splitlines()[-1])
        seconds = whole if self.gpu else said["cpu"]
        train, memory = said["train_seconds"], notes[-1]["memory"]
        return {"train": train, "seconds": seconds, "memory": memory, "whole": whole}

    def cases(self, kind: str) -> dict[tuple[str, bool], list[Numbers]]:
        """Our recipe, the same settings, TRL's defaults: once each, LoRA and QLoRA."""
        ours = self.align(f"{kind}_lora", f"{kind}_qlora")
        return {
            (kind, quantized): [
                numbers,
                self.trl(kind, same_settings(kind, quantized, self.gpu)),
                self.trl(kind, trl_defaults(quantized)),
            ]
            for quantized, numbers in zip((False, True), ours, strict=True)
        }

    def sweep(self) -> list[Numbers]:
        """Three betas: one recipe, and three scripts with TRL's defaults."""
        ours = self.align(*SWEEP)
        betas = [RECIPE["stages"][name]["trainer"]["beta"] for name in SWEEP]
        runs = [self.trl("dpo", trl_defaults(False, beta=beta)) for beta in betas]
        theirs = {key: sum(run[key] for run in runs) for key in runs[0]}
        return [{"seconds": sum(one["seconds"] for one in ours), "whole": ours[0]["whole"]}, theirs]


def line(what: str, values: Sequence[float], ratios: Sequence[float], form: str = ",.0f") -> None:
    """One row of the table."""
    cells = [f"{value:{form}}" for value in values]
    cells += [f"{ratio:.2f}" for ratio in ratios] or ["", ""]
    print(f"| {what} | {' | '.join(cells)} |", flush=True)


def show(what: str, rounds: Sequence[list[Numbers]], key: str, tokens: int, rate: float) -> None:
    """The rows of one case: `key` is the time that counts, `rate` a run's MFU times its seconds."""
    sides = range(len(rounds[0]))

    def medians(key: str) -> list[float]:
        return [statistics.median(run[side][key] for run in rounds) for side in sides]

    def ratios(key: str) -> list[float]:
        return [
            statistics.median(run[0][key] / run[side][key] for run in rounds) for side in (1, 2)
        ]

    seconds = medians(key)
    speeds = [1 / ratio for ratio in ratios(key)]
    line(f"{what}, tokens/s", [tokens / each for each in seconds], speeds)
    line(f"{what}, MFU", [rate / each for each in seconds], [], ".1%")
    line(f"{what}, s", seconds, ratios(key), ".1f")
    line(f"{what}, peak memory, MiB", medians("memory"), ratios("memory"))


def main() -> None:
    """Everything, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=160)
    asked = parser.parse_args()
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    import torch

    gpu = torch.cuda.is_available()
    work = Path(tempfile.mkdtemp(prefix="align-bench-"))
    make_base(work / "base", **SHAPES[asked.model])
    make_data(work, asked.rows, MEDIAN[asked.model])
    tokens, peak, bench = lengths(work), peak_flops(), Bench(work, gpu)
    cuts = statistics.quantiles(tokens["sft"], n=100)
    print(
        f"{torch.cuda.get_device_name() if gpu else 'CPU'}, {peak / 1e9:,.0f} GFLOP/s; "
        f"{asked.model}; {asked.rows} conversations and {asked.rows // 2} pairs; tokens of a "
        f"conversation: median {cuts[49]:.0f}, mean {statistics.mean(tokens['sft']):.0f}, "
        f"90 % {cuts[89]:.0f}, 99 % {cuts[98]:.0f}, longest {max(tokens['sft'])}; "
        f"{asked.rounds} rounds\n"
    )
    print("| what | align | same | TRL | align / same | align / TRL |\n|---|---|---|---|---|---|")
    runs: dict[tuple[str, bool], list[list[Numbers]]] = {}
    sweeps = []
    for _ in range(asked.rounds):
        for kind in ("sft", "dpo"):
            for case, numbers in bench.cases(kind).items():
                runs.setdefault(case, []).append(numbers)
        sweeps.append(bench.sweep())
    for (kind, quantized), rounds in runs.items():
        rate = flops(kind, tokens[kind], work / "base") / peak
        what = f"{kind.upper()}, {'QLoRA' if quantized else 'LoRA'}"
        key = "train" if gpu and kind == "sft" else "seconds"
        show(what, rounds, key, sum(tokens[kind]), rate)
    for key, name in (("seconds", "s"), ("whole", "s with imports")):
        a, b = (statistics.median(sweep[side][key] for sweep in sweeps) for side in (0, 1))
        ratio = statistics.median(ours[key] / theirs[key] for ours, theirs in sweeps)
        print(f"| DPO, LoRA, three betas, {name} | {a:.1f} | | {b:.1f} | | {ratio:.2f} |")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()

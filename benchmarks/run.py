"""Side by side: a stage, and the chain, through `align run` and by hand-written TRL scripts.

    python benchmarks/run.py [--rounds 3] [--rows 800]

Both sides get the same tiny Llama (random weights, made here), the same rows and the same options,
and run in turn, A B A B, each in processes of its own. Prints the table of RESULTS.md: medians, and
the median of the ratios round by round.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "r", "s", "l")]
TRAINER = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "max_length": 256,
    "learning_rate": 1e-3,
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_base(folder: Path, **shape: Any) -> None:
    """A Llama with random weights, and a BPE tokenizer of 512 tokens.

    It has 1.1M parameters (GQA 8/2 heads) unless `shape`, keys of `LlamaConfig`, says otherwise.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "<|user|>", "<|assistant|>", "<|end|>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet)
    raw.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="<|end|>"
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    own = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 352,
        "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 4, "pad_token_id": 0,
    }  # fmt: skip
    config = LlamaConfig(**{**own, **shape})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):  # 8B random numbers take minutes on a CPU
        LlamaForCausalLM._from_config(config, dtype=config.dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_data(folder: Path, rows: int) -> None:
    """Conversations, preferences and prompts of uneven lengths."""
    draw = random.Random(0)

    def text(most: int) -> str:
        return " ".join(
            draw.choices(WORDS, k=max(3, int(draw.paretovariate(1.2) * most / 6) % most))
        )

    def said(role: str, most: int) -> list[dict[str, str]]:
        return [{"role": role, "content": text(most)}]

    def write(name: str, lines: list[dict[str, Any]]) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    write(
        "conversations",
        [{"messages": said("user", 40) + said("assistant", 60)} for _ in range(rows)],
    )
    pairs = [(said("user", 40), said("assistant", 60), said("assistant", 60)) for _ in range(rows)]
    write("preferences", [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs])
    write("prompts", [{"prompt": said("user", 40)} for _ in range(rows // 4)])


def execute(command: list[str], cwd: Path) -> tuple[float, str]:
    """Wall seconds of a whole process, and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return seconds, done.stdout


def plain(
    work: Path, kind: str, model: str, data: str, out: str, **settings: Any
) -> dict[str, float]:
    """One hand-written script."""
    seconds, printed = execute(
        [sys.executable, str(HERE / "plain.py"), kind, model, data, out, json.dumps(settings)], work
    )
    numbers = json.loads(printed.splitlines()[-1])
    return {"wall": seconds, "train": numbers["train_seconds"]}


def ours(work: Path, recipe: str, *stages: str) -> dict[str, float]:
    """`align run` into an empty store."""
    shutil.rmtree(work / "runs", ignore_errors=True)
    seconds, _ = execute(
        [sys.executable, "-m", "align.cli", "run", str(HERE / recipe), *stages], work
    )
    numbers = {"wall": seconds}
    if stages:
        (folder,) = (work / "runs").glob(f"{stages[0]}-*")
        made = json.loads((folder / "metrics.json").read_text())
        numbers |= {"train": made["seconds"]}
    return numbers


def by_hand(work: Path) -> dict[str, float]:
    """The whole chain as a user runs it by hand: eight scripts, one after the other."""
    sampling = {"n": 8, "batch": 32, "max_new_tokens": 64}
    dpo_settings = {**TRAINER, "learning_rate": 1e-4, "beta": 0.1}
    steps = [
        ("sft", "base", "conversations.jsonl", "h_sft", TRAINER),
        ("reward_model", "base", "preferences.jsonl", "h_reward", TRAINER),
        ("sample", "h_sft", "prompts.jsonl", "h_samples.jsonl", sampling),
        ("score", "h_reward", "h_samples.jsonl", "h_scored.jsonl", {"batch": 8}),
        ("sft", "base", "h_scored.jsonl", "h_best", TRAINER),
        ("sample", "h_best", "prompts.jsonl", "h_samples2.jsonl", sampling),
        ("score", "h_reward", "h_samples2.jsonl", "h_scored2.jsonl", {"batch": 8}),
        ("dpo", "h_best", "h_scored2.jsonl", "h_dpo", dpo_settings),
    ]
    return {"wall": sum(plain(work, *step[:4], **step[4])["wall"] for step in steps)}  # type: ignore[arg-type]


def compare(
    rounds: int, a: Callable[[], dict[str, float]], b: Callable[[], dict[str, float]]
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Medians of both, and the medians of the ratios a / b round by round."""
    runs = [(a(), b()) for _ in range(rounds)]
    keys = sorted(runs[0][0].keys() & runs[0][1].keys())
    medians = [
        {key: statistics.median(run[side][key] for run in runs) for key in keys} for side in (0, 1)
    ]
    ratios = {key: statistics.median(x[key] / y[key] for x, y in runs) for key in keys}
    return medians[0], medians[1], ratios


def row(what: str, a: float, b: float, ratio: float | None = None) -> None:
    """One line of the table."""
    form = ",.0f" if a > 1000 else ".1f"
    last = "" if ratio is None else f"{ratio:.2f}"
    print(f"| {what} | {a:{form}} | {b:{form}} | {last} |", flush=True)


def main() -> None:
    """Everything, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=800)
    options = parser.parse_args()
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    work = Path(tempfile.mkdtemp(prefix="align-bench-"))
    make_base(work / "base")
    make_data(work, options.rows)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {options.rows} rows, "
        f"{options.rounds} rounds\n"
    )
    print("| what | align | by hand | ratio |\n|---|---|---|---|")
    for kind, data in (
        ("sft", "conversations"),
        ("reward_model", "preferences"),
        ("dpo", "preferences"),
    ):
        settings = {**TRAINER, "learning_rate": 1e-4, "beta": 0.1} if kind == "dpo" else TRAINER
        a, b, ratio = compare(
            options.rounds,
            lambda kind=kind: ours(work, "one.yaml", kind),
            lambda kind=kind, data=data, settings=settings: plain(
                work, kind, "base", f"{data}.jsonl", f"h_{kind}", **settings
            ),
        )
        # the same rows on both sides; TRL's own count of tokens counts the prompt of a pair twice
        speed = options.rows / a["train"], options.rows / b["train"]
        row(f"{kind}, rows/s in training", *speed, 1 / ratio["train"])
        row(f"{kind}, whole process, s", a["wall"], b["wall"], ratio["wall"])
        row(f"{kind}, outside training, s", a["wall"] - a["train"], b["wall"] - b["train"])
    a, b, ratio = compare(options.rounds, lambda: ours(work, "chain.yaml"), lambda: by_hand(work))
    row("chain, s", a["wall"], b["wall"], ratio["wall"])
    shutil.rmtree(work)


if __name__ == "__main__":
    main()

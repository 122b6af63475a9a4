"""Peak memory with one base in memory, against two models: reward adapters, and DPO's reference.

    python benchmarks/one_base.py [--rounds 3]

A Llama of 76M parameters with random weights, made here. Every case is a process of its own; its
number is the peak of the resident set, less what it was after the imports.

* score: two reward adapters (LoRA, rank 16) score the same dialogs on one base, or on two;
* dpo: two steps of a new adapter, by our stage, or by `trl.DPOTrainer` with a `ref_model`.

Prints the table of RESULTS.md: medians.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from run import make_base, make_data

SHAPE = {
    "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip
LORA = {"r": 16, "target_modules": "all-linear"}
TRAINER = {"max_steps": 2, "per_device_train_batch_size": 4, "max_length": 128, "bf16": False}


def prepare(folder: Path) -> None:
    """A base, preferences, and two reward adapters that differ."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from align import models
    from align.out import Out

    make_base(folder / "base")
    make_data(folder, 64)
    config = LlamaConfig.from_pretrained(folder / "base", **SHAPE)
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    for i in range(2):
        network = models.load(base(folder), train=True, head=True, lora=LORA, seed=i)
        for weight in network.parameters():
            if weight.requires_grad:
                weight.data += 0.02 * torch.randn_like(weight)
        (folder / f"reward_{i}").mkdir()
        out = Out(folder / f"reward_{i}", folder)
        models.save(network, models.tokenizer(base(folder)), base(folder), out, lora=LORA)


def base(folder: Path) -> Any:
    """The base as a recipe's `base:`."""
    from align.artifacts import Model

    path = folder / "base"
    return Model(path, spec={"base": {"path": str(path)}, "quantization": None})


def score(folder: Path, load: Callable[[Any], Any]) -> None:
    """Both reward models, loaded one after the other and kept, score some rows."""
    from align.artifacts import RewardModel
    from align.scoring import scores

    rows = [[1, *range(5, 5 + n), 4] for n in range(8, 72)]
    kept = [load(RewardModel(folder / f"reward_{i}")) for i in range(2)]
    print([sum(scores.scores(network, rows)) for network in kept], file=sys.stderr)


def score_one_base(folder: Path) -> None:
    """As the stage `score` does."""
    from align.scoring import scores

    score(folder, lambda model: scores.load(model)[0])


def score_two_models(folder: Path) -> None:
    """Each with a base of its own."""
    from align import models

    score(folder, lambda model: models.load(model, head=True))


def dpo_one_base(folder: Path) -> None:
    """Our stage."""
    from align.out import Out
    from align.stages.dpo import Dpo

    source = {"path": str(folder / "preferences.jsonl")}
    stage = Dpo(model=base(folder), data=[source], lora=LORA, batch_size=4, trainer=TRAINER)
    (folder / "dpo").mkdir(exist_ok=True)
    stage.run(Out(folder / "dpo", folder / "cache"))


def dpo_two_models(folder: Path) -> None:
    """TRL with the reference as a model of its own."""
    from datasets import load_dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "base") for _ in range(2))
    args = DPOConfig(
        str(folder / "trl"), use_cpu=True, gradient_checkpointing=False, report_to="none",
        save_strategy="no", gradient_accumulation_steps=1, **TRAINER,
    )  # fmt: skip
    rows = load_dataset("json", data_files=str(folder / "preferences.jsonl"), split="train")
    DPOTrainer(
        model=get_peft_model(policy, LoraConfig(task_type="CAUSAL_LM", **LORA)),
        ref_model=reference,
        args=args,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
    ).train()


CASES = (score_one_base, score_two_models, dpo_one_base, dpo_two_models)


def measured(case: Callable[[Path], None], folder: Path) -> float:
    """MiB that a case adds to the peak of a fresh process."""
    command = [sys.executable, __file__, "--case", case.__name__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{case.__name__} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    found: float = json.loads(done.stdout.splitlines()[-1])["mib"]
    return found


def main() -> None:
    """Measure every case in turn, several times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        for library in ("datasets", "peft", "transformers", "trl"):
            importlib.import_module(library)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        {case.__name__: case for case in CASES}[asked.case[0]](Path(asked.case[1]))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print("\n" + json.dumps({"mib": (after - before) / 1024}))
        return
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        rounds = [[measured(case, Path(name)) for case in CASES] for _ in range(asked.rounds)]
    print("| peak above the imports, MiB | one base | two models | ratio |\n|---|---|---|---|")
    for label, at in (("score, two reward adapters", 0), ("dpo, a new adapter", 2)):
        one, two = (statistics.median(numbers[i] for numbers in rounds) for i in (at, at + 1))
        ratio = statistics.median(numbers[at] / numbers[at + 1] for numbers in rounds)
        print(f"| {label} | {one:.0f} | {two:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()

"""The training scripts a user would write by hand with TRL, for the comparison in run.py.

    python benchmarks/plain.py sft MODEL DATA OUT SETTINGS      (settings: the trainer's, in JSON)

Each prints one JSON line: {"tokens": seen or made, "train_seconds": ...}; those that train also
"seconds" and "cpu" (CPU seconds) from the end of the imports, loading and saving included.
They follow TRL's own examples; nothing is slowed down: no checkpoints, no gradient checkpointing,
dynamic padding, and length grouping where the trainer offers it (SFT's does; TRL 1.16's reward and
DPO trainers stop with an error). With `defaults: true` among the settings everything else is as TRL
has it. `lora` and `quantization` are blocks of their own.
"""

import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

COMMON: dict[str, Any] = {
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}


def dialogs(path: str) -> list[dict[str, Any]]:
    """The rows of a JSON lines file."""
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def options(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What goes into TRL's config, and what goes into its trainer."""
    import torch

    settings = dict(settings)
    lora, bits = settings.pop("lora", None), settings.pop("quantization", None)
    if settings.pop("defaults", False):
        config = {"use_cpu": not torch.cuda.is_available()}
    else:
        config = {**COMMON}
    config |= settings
    if bits:
        from transformers import BitsAndBytesConfig

        loading = {**config.get("model_init_kwargs", {})}
        config["model_init_kwargs"] = {
            **loading,
            "quantization_config": BitsAndBytesConfig(**bits),
        }
    if config["use_cpu"] and bits:
        # else bitsandbytes 0.50 repacks its weights when the reference's numbers are computed, and
        # no gradient passes through them afterwards
        import bitsandbytes

        bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
    if not lora:
        return config, {}
    from peft import LoraConfig

    return config, {"peft_config": LoraConfig(task_type="CAUSAL_LM", **lora)}


def sft(model: str, data: str, out: str, settings: dict[str, Any]) -> None:
    """Conversations of one turn, as prompt and completion: loss on the completion.

    By default TRL trains on all tokens of the messages, in batches of any lengths.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = dialogs(data)
    config, beside = options(settings)
    if not settings.get("defaults"):
        config["train_sampling_strategy"] = "group_by_length"
        rows = [
            {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows
        ]
    train(
        SFTTrainer(
            model=model,
            args=SFTConfig(output_dir=out, **config),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model),
            **beside,
        )
    )


def reward_model(model: str, data: str, out: str, settings: dict[str, Any]) -> None:
    """Preference pairs."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in dialogs(data)]
    train(
        RewardTrainer(
            model=model,
            args=RewardConfig(output_dir=out, **COMMON, **settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
    )


def dpo(model: str, data: str, out: str, settings: dict[str, Any]) -> None:
    """Preference pairs; the reference is the model as it came in."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in dialogs(data)]
    config, beside = options(settings)
    train(
        DPOTrainer(
            model=model,
            args=DPOConfig(output_dir=out, **config),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model),
            **beside,
        )
    )


def sample(model: str, data: str, out: str, settings: dict[str, Any]) -> None:
    """`generate` in batches of prompts sorted by length; writes rows of prompt and n answers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(model).eval()
    torch.manual_seed(0)
    prompts = [row["prompt"] for row in dialogs(data)]
    texts = [
        tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True)
        for p in prompts
    ]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    n, batch, started, tokens = settings["n"], settings["batch"], time.perf_counter(), 0
    with open(out, "w", encoding="utf-8") as file:
        for first in range(0, len(order), batch):
            chunk = order[first : first + batch]
            inputs = tokenizer(
                [texts[i] for i in chunk],
                return_tensors="pt",
                padding=True,
                add_special_tokens=False,
            )
            made = policy.generate(
                **inputs, do_sample=True, top_k=0, temperature=1.0, num_return_sequences=n,
                max_new_tokens=settings["max_new_tokens"],
            )[:, inputs["input_ids"].shape[1] :]  # fmt: skip
            tokens += int((made != tokenizer.pad_token_id).sum())
            answers = tokenizer.batch_decode(made, skip_special_tokens=True)
            for place, index in enumerate(chunk):
                row = {"prompt": prompts[index], "answers": answers[place * n : place * n + n]}
                file.write(json.dumps(row) + "\n")
    print(json.dumps({"tokens": tokens, "train_seconds": time.perf_counter() - started}))


def score(model: str, data: str, out: str, settings: dict[str, Any]) -> None:
    """Every answer by `pipeline("text-classification")`; best for SFT, best and worst for DPO."""
    from transformers import AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(model)
    judge = pipeline(
        "text-classification", model=model, tokenizer=tokenizer, function_to_apply="none"
    )
    rows = dialogs(data)
    texts = [
        tokenizer.apply_chat_template(
            [*row["prompt"], {"role": "assistant", "content": answer}], tokenize=False
        )
        for row in rows
        for answer in row["answers"]
    ]
    started = time.perf_counter()
    scores = [found["score"] for found in judge(texts, batch_size=settings["batch"])]
    place = 0
    with open(out, "w", encoding="utf-8") as file:
        for row in rows:
            mine = scores[place : place + len(row["answers"])]
            place += len(mine)
            best, worst = (
                row["answers"][mine.index(max(mine))],
                row["answers"][mine.index(min(mine))],
            )
            chosen, rejected = ([{"role": "assistant", "content": text}] for text in (best, worst))
            messages = [*row["prompt"], *chosen]
            if best != worst:
                line = {
                    "prompt": row["prompt"],
                    "chosen": chosen,
                    "rejected": rejected,
                    "messages": messages,
                }
                file.write(json.dumps(line) + "\n")
    print(json.dumps({"tokens": len(texts), "train_seconds": time.perf_counter() - started}))


def train(trainer: Any) -> None:
    """Train, save, and say how long the training took and how many tokens it saw."""
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    trainer.save_model()
    tokens = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry]
    whole = {"seconds": time.perf_counter() - STARTED, "cpu": time.process_time() - CPU_STARTED}
    print(json.dumps({"tokens": tokens[-1], "train_seconds": seconds, **whole}))


if __name__ == "__main__":
    import datasets  # noqa: F401
    import peft  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401
    from trl import DPOTrainer, RewardTrainer, SFTTrainer  # noqa: F401

    STARTED, CPU_STARTED = time.perf_counter(), time.process_time()
    _, kind, model, data, out, settings = sys.argv
    {"sft": sft, "reward_model": reward_model, "dpo": dpo, "sample": sample, "score": score}[kind](
        model, data, out, json.loads(settings)
    )

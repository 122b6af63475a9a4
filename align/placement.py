"""How a training stage may be placed: what `launch:` cannot be put together with, and why.

`launch.py` knows `accelerate launch`; here is what its options mean for a stage that trains. What
is refused was seen to fail with the installed libraries, or is said by their authors or by others
who tried (docs/placement.md says which).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from typing import Any

from align import headers, launch, shelf
from align.adapters import carried, root

BITSANDBYTES = re.compile(r"(?!adamw_torch).*(bnb|bit|paged|lion|ademamix)")
"""transformers' names of bitsandbytes' optimizers, which have no rule for weights in parts."""

WHOLE = (
    "Nearest are the same 4-bit base on every device (`launch: recipes/launch/ddp.yaml`), or "
    "`quantization: null` with the LoRA under FSDP2."
)


def check(stage: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with the `launch:` of a stage that trains, as (key, message)."""
    block = stage.launch if isinstance(stage.launch, dict) else {}
    for key, message in _problems(stage, launch.asked({"launch": stage.launch})):
        yield (f"launch.{key}" if key in block else "launch"), message


def _problems(stage: Any, asked: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if asked.get("use_megatron_lm") or asked.get("tpu"):
        yield "use_megatron_lm", "Megatron-LM and TPUs are not supported. Use FSDP2 or ZeRO."
    yield from _precision(stage, asked)
    if asked.get("gradient_accumulation_steps", 1) not in (1, "auto"):
        yield (
            "gradient_accumulation_steps",
            "gradient_accumulation_steps follows from `batch_size` and "
            "`trainer.per_device_train_batch_size`. Leave it out.",
        )
    if asked.get("deepspeed_config_file"):
        yield (
            "deepspeed_config_file",
            "Batches, precision and clipping are the stage's, and such a file says them again. "
            "Write zero_stage and the offload_… keys into the profile, as in "
            "recipes/launch/zero3.yaml.",
        )
    if asked.get("use_fsdp"):
        yield from _fsdp(stage, asked)
    if asked.get("use_deepspeed"):
        yield from _deepspeed(stage, asked)


def _precision(stage: Any, asked: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """`mixed_precision: no` says nothing: `accelerate config` writes it where nothing is chosen.

    It writes bf16 into profiles too, which may agree with the stage; a recipe's own block has no
    reason to say it, as it would change nothing.
    """
    said, trainer = str(asked.get("mixed_precision") or "no").lower(), stage.trainer
    trains = "fp16" if trainer.get("fp16") else "bf16" if trainer.get("bf16", True) else "no"
    own = isinstance(stage.launch, dict) and "mixed_precision" in stage.launch
    if said != "no" and (own or said != trains):
        yield (
            "mixed_precision",
            f"mixed_precision is {said}, and the stage says what it is trained in: "
            "`trainer: {bf16: …, fp16: …}`, bf16 where the hardware has it. Leave it out.",
        )


def _fsdp(stage: Any, asked: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if str(asked.get("fsdp_version", 1)) != "2":
        yield (
            "fsdp_version",
            "This is FSDP 1, which PyTorch has replaced. Set fsdp_version: 2, as in "
            "recipes/launch/fsdp2.yaml.",
        )
    if asked.get("fsdp_activation_checkpointing"):
        yield (
            "fsdp_activation_checkpointing",
            "Activations are checkpointed by `trainer.gradient_checkpointing`, which is on where "
            "there is a GPU. Leave fsdp_activation_checkpointing out.",
        )
    if BITSANDBYTES.match(optimizer := str(stage.trainer.get("optim", ""))):
        yield (
            "use_fsdp",
            f"{optimizer} is an optimizer of bitsandbytes, which cannot update weights in parts. "
            "Leave `trainer.optim` out, or use recipes/launch/ddp.yaml or zero2.yaml.",
        )
    bits = _quantization(stage)
    if bits and bits.get("load_in_8bit"):
        yield "use_fsdp", f"FSDP2 cannot divide 8-bit weights (bitsandbytes 0.50). {WHOLE}"
    elif bits and shelf.source(type(stage)).stem != "sft":
        yield (
            "use_fsdp",
            "FSDP2 with a 4-bit base trains by `sft` only: for pairs others report that it fails "
            f"(accelerate#3874, axolotl's support matrix), and it is not tried here. {WHOLE}",
        )
    elif bits and (stored := _storage(stage, bits)) != "bfloat16":
        yield (
            "use_fsdp",
            "FSDP2 casts what it divides to bfloat16, and 4-bit weights stored as "
            f"{stored} would become others. Leave bnb_4bit_quant_storage and base.dtype out.",
        )


def _storage(stage: Any, bits: dict[str, Any]) -> str:
    """As what type 4-bit weights lie in memory under FSDP: see `precision.bits`."""
    base = root(stage.model)
    dtype = base.dtype if base and base.dtype != "auto" else "bfloat16"
    return str(bits.get("bnb_4bit_quant_storage", dtype))


def _deepspeed(stage: Any, asked: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if importlib.util.find_spec("deepspeed") is None:
        yield (
            "use_deepspeed",
            "ZeRO is DeepSpeed's, which is not installed: pip install 'align-recipes[deepspeed]'. "
            "recipes/launch/fsdp2.yaml divides a model without it.",
        )
    clipping, norm = asked.get("gradient_clipping"), stage.trainer.get("max_grad_norm", 1.0)
    if clipping not in (None, "auto") and float(clipping) != norm:
        yield (
            "gradient_clipping",
            f"gradient_clipping is {clipping}, and trainer.max_grad_norm is {norm}. Leave it out.",
        )
    if asked.get("zero_stage") == 3 and _quantization(stage):
        yield (
            "zero_stage",
            "ZeRO-3 cannot divide quantized weights. Nearest is the same quantized base on every "
            "device: recipes/launch/ddp.yaml, or zero2.yaml.",
        )


def _quantization(stage: Any) -> dict[str, Any] | None:
    """The quantization of the base that a stage trains on; `pretrain` has no such key."""
    settings = dict(stage)
    model, own = settings.get("model"), settings.get("quantization", "inherit")
    asked: dict[str, Any] | None = carried(model)[1] if own == "inherit" else own
    base = root(model)
    saved = headers.config(base).get("quantization_config") if base else None
    return asked or (saved if isinstance(saved, dict) else None)

"""The type that weights are held and multiplied in, as the hardware has it; quantized weights."""

from __future__ import annotations

import os
from typing import Any

from align.errors import StageFailed


def dtype(asked: str, device: str, full: bool) -> str:
    """The type of a model's weights in memory.

    What the base asks for; `auto` is float32 on a CPU and where all weights are trained (`full`),
    else bfloat16, or float16 on a GPU that only emulates bfloat16 (before compute capability 8).
    """
    import torch

    if asked != "auto":
        return asked
    if full or device == "cpu":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def autocast(half: bool) -> dict[str, bool]:
    """What a training multiplies in, as a trainer's option: `half` is `models.half`."""
    import torch

    if half or not torch.cuda.is_available():
        return {"bf16": half}
    return {"bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16": True}


def bits(quantization: dict[str, Any], dtype: str) -> Any:
    """A `BitsAndBytesConfig`, which computes in the type of the other weights unless told.

    Its own default is float32: a quarter of the speed on a GPU. FSDP shards only tensors of one
    type, so it needs the packed weights stored in that type, too
    (https://huggingface.co/docs/peft/accelerate/fsdp, "Use PEFT QLoRA and FSDP").
    """
    from transformers import BitsAndBytesConfig

    ours = {"bnb_4bit_compute_dtype": dtype}
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
        ours["bnb_4bit_quant_storage"] = dtype
    return BitsAndBytesConfig(**{**ours, **quantization})


def check(quantization: dict[str, Any], device: str) -> None:
    """See that a GPU can do what is asked, before gigabytes are read.

    Raises:
        StageFailed: it is older than bitsandbytes supports, or has no bfloat16.
    """
    import torch

    if not device.startswith("cuda"):
        return
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    fact = f"{name} has compute capability {capability[0]}.{capability[1]}"
    if capability < (6, 0):  # the table of bitsandbytes 0.50's README
        raise StageFailed(f"{fact}, and bitsandbytes needs 6.0. Set `quantization: null`.")
    if quantization.get("bnb_4bit_compute_dtype") == "bfloat16" and capability < (8, 0):
        raise StageFailed(
            f"{fact}, and bfloat16 needs 8.0. Leave bnb_4bit_compute_dtype out: float16."
        )


def quantized(network: Any) -> bool:
    """Whether a loaded network's weights are quantized: transformers marks those, and no others."""
    return bool(getattr(network, "is_quantized", False))


def keep_unpacked(network: Any) -> None:
    """No repacking of 4-bit weights on a CPU with AVX512-BF16.

    bitsandbytes 0.50 repacks them at the first forward in eval mode, and gradients no longer flow
    through them afterwards, with a warning only (measured: other weights at the end).
    """
    from bitsandbytes.nn import Linear4bit

    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False

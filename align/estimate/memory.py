"""Bytes of what lies in a device's memory: weights, adapters, optimizers, keys and values.

Closed forms, in numbers alone; what they were compared with is in docs/estimate.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import ceil
from typing import Any

from align.shapes import Linear, Shape, Unknown

GIB = 1 << 30

BLOCK = 64
"""Weights that share one scale in bitsandbytes' 4 bits; with double quantization 256 scales do."""

DEFAULT_TARGETS = ("q_proj", "v_proj")
"""What PEFT adapts in the architectures of shapes.py where `target_modules` is left out."""

SLACK = 128
"""Columns of keys and values beyond the longest row (`columns.SLACK`)."""

Parts = dict[str, float]
"""What the memory is for, and its bytes."""


# -- weights -------------------------------------------------------------------------------------


def packed(linear: Linear, quantization: dict[str, Any]) -> tuple[int, int]:
    """Bytes of a matrix that bitsandbytes quantizes: of the weights, and of its constants.

    NF4 and FP4 have one float32 scale for 64 weights, 4.5 bits a weight; with double quantization
    the scales are 8 bits with a float32 for 256 of them, 4.126953 bits (arXiv 2305.14314, §3). Each
    matrix has code tables of its own: 16 floats, 256 more and an offset with double quantization.
    """
    if quantization.get("load_in_8bit"):
        return linear.weights, 4 * linear.outputs
    scales = ceil(linear.weights / BLOCK)
    if not quantization.get("bnb_4bit_use_double_quant"):
        return ceil(linear.weights / 2), 4 * scales + 4 * 16
    return ceil(linear.weights / 2), scales + 4 * ceil(scales / 256) + 4 * (16 + 256 + 1)


def weights(
    shape: Shape, width: int, quantization: dict[str, Any] | None = None, head: bool = False
) -> Parts:
    """A model's weights; `width` is the bytes of those that are not quantized."""
    if not quantization:
        return {"weights": width * shape.parameters(head)}
    sizes = [packed(linear, quantization) for linear in shape.layer()]
    rest = shape.parameters(head) - shape.linear_weights
    return {
        "weights": shape.num_hidden_layers * sum(size for size, _ in sizes) + width * rest,
        "constants": shape.num_hidden_layers * sum(size for _, size in sizes),
    }


def adapted(shape: Shape, lora: dict[str, Any]) -> Iterator[tuple[Linear, int]]:
    """The matrices that an adapter is on, each with its rank, as PEFT chooses them."""
    asked = lora.get("target_modules") or DEFAULT_TARGETS
    layers = lora.get("layers_to_transform")
    only = None if layers is None else {layers} if isinstance(layers, int) else set(layers)
    for index in range(shape.num_hidden_layers):
        if only is not None and index not in only:
            continue
        for linear in shape.layer(index):
            if _named(linear.name, asked):
                yield linear, _rank(linear.name, lora)
    if not isinstance(asked, str) and "embed_tokens" in asked:
        words = Linear("model.embed_tokens", shape.vocab_size, shape.hidden_size, bias=False)
        yield words, _rank(words.name, lora)


def _named(name: str, asked: Any) -> bool:
    if isinstance(asked, str):
        return asked.lower() == "all-linear" or re.fullmatch(asked, name) is not None
    return any(name == word or name.endswith(f".{word}") for word in asked)


def _rank(name: str, lora: dict[str, Any]) -> int:
    for pattern, rank in (lora.get("rank_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return int(rank)
    return int(lora.get("r", 8))


def adapter(shape: Shape, lora: dict[str, Any], head: bool = False) -> int:
    """Numbers that an adapter trains: r (inputs + outputs) of every matrix, and whole modules."""
    dora = bool(lora.get("use_dora"))
    factors = sum(
        rank * (linear.inputs + linear.outputs) + dora * linear.outputs
        for linear, rank in adapted(shape, lora)
    )
    whole = set(lora.get("modules_to_save") or ()) & {"embed_tokens", "lm_head"}
    return factors + len(whole) * shape.embedding + (shape.hidden_size if head else 0)


def states(optim: str, width: int) -> float:
    """Bytes that an optimizer keeps for a number of `width` bytes.

    torch's AdamW keeps two numbers of the weight's own type; bitsandbytes' 8-bit ones a byte each
    and a float32 for 256 (arXiv 2110.02861, §2). Paged states leave the device where it is full.

    Raises:
        Unknown: the optimizer is none of those.
    """
    known = {
        "adamw_torch": 2.0 * width,
        "adamw_torch_fused": 2.0 * width,
        "adamw_8bit": 2 * (1 + 4 / 256),
        "adamw_bnb_8bit": 2 * (1 + 4 / 256),
        "lion_32bit": 4.0,
        "lion_8bit": 1 + 4 / 256,
        "sgd": 0.0,
    }
    if optim.startswith("paged_"):
        return 0.0
    if optim not in known:
        raise Unknown(f"what the optimizer {optim} keeps is not counted")
    return known[optim]


def sampling(shape: Shape, width: int, rows: int, prompts: int, prompt: int, new: int) -> Parts:
    """What drawing answers needs beside the weights (generate.py).

    Keys and values are in buffers made for the longest row; those of one layer are copied when they
    are moved. A draw holds the logits twice in float32 and 24 bytes of noise for each of them, for
    2**26 at once.

    Args:
        shape: of the model.
        width: bytes of keys, values and logits.
        rows: answers decoded at once.
        prompts: prompts that are read at once.
        prompt: tokens of the longest prompt.
        new: tokens of the longest answer.
    """
    tokens = prompt + new + SLACK
    cache = rows * tokens * shape.cached(width) * (1 + 1 / shape.num_hidden_layers)
    logits = rows * shape.vocab_size
    drawing = (width + 8) * logits + 24 * min(logits, max(1 << 26, shape.vocab_size))
    reading = prompts * prompt * passing(shape, width)
    return {"cache": cache, "logits": drawing, "activations": max(0.0, reading - drawing)}


def passing(shape: Shape, width: int) -> float:
    """Bytes for a token that passes one layer when nothing is kept for gradients."""
    stream = 2 * width * shape.hidden_size + 4 * shape.hidden_size
    heads = width * (2 * shape.queries + 2 * shape.queries)
    return stream + max(heads, 3 * width * shape.intermediate_size)

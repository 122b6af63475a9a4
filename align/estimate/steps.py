"""Bytes that a training step holds on one device at its highest moment.

Counted is what autograd keeps of transformers' Llama-like layers under PEFT and autocast, TRL's
fused head, gradients, and how they are shared out; memory.py has what lies there all the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from align.estimate import memory
from align.estimate.memory import Parts
from align.shapes import Shape

TILE_TOKENS, TILE_WORDS = 4096, 32768
"""Logits that TRL 1.16 computes at once (trl/kernels/chunked_logprob.py, trainer/utils.py)."""

SHARED = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Matrices that read what another one has read."""


@dataclass(frozen=True)
class Spread:
    """How training is shared out: what each device's part is divided by."""

    processes: int = 1
    weights: int = 1
    states: int = 1
    """Gradients and optimizer."""

    gathers: bool = False
    """Weights are put together again, layer by layer, where they are used: FSDP and ZeRO-3."""

    zero: bool = False
    """DeepSpeed: all in two bytes, and float32 copies in the optimizer (arXiv 1910.02054, §3.1)."""

    offloads: frozenset[str] = frozenset()
    """`weights` and `optimizer` that live in the host's memory."""


ALONE = Spread()


@dataclass(frozen=True)
class Step:
    """What the memory of a training step depends on, on one device."""

    shape: Shape
    sequences: int
    """At once: rows, or both answers of every pair."""

    length: int
    """Tokens of the longest."""

    lora: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None
    head: bool = False
    """A reward model's one-number head instead of the vocabulary's."""

    stored: int = 2
    """Bytes of a weight that is not quantized."""

    autocast: bool = True
    """Matrices are multiplied in two bytes (`trainer.bf16`)."""

    checkpointing: bool = True
    masked: bool = True
    """Attention gets a mask: rows of unequal length, and no kernel that needs none."""

    accumulates: bool = False
    """Gradients of earlier parts of the batch are there while the next part runs."""

    optim: str = "adamw_torch_fused"
    measured: int = 0
    """Sequences at once where held-out data is measured."""

    reference: int = 0
    """Weights of a second, frozen model, which computes at every step."""

    reference_stored: int = 2
    """Bytes of one of them."""

    spread: Spread = ALONE

    @property
    def stream(self) -> int:
        """Bytes of what goes from layer to layer: FSDP and DeepSpeed make weights short for it."""
        return 2 if self.autocast and (self.spread.gathers or self.spread.zero) else self.stored

    @property
    def wide(self) -> int:
        """Bytes of what matrices are multiplied in."""
        return 2 if self.autocast else self.stored

    @property
    def tokens(self) -> int:
        """Padding included."""
        return self.sequences * self.length

    @cached_property
    def trained(self) -> int:
        """Numbers that are trained."""
        if self.lora is None:
            return self.shape.parameters(self.head)
        return memory.adapter(self.shape, self.lora, self.head)

    @property
    def precision(self) -> int:
        """Bytes of one of them: TRL makes what is trained on quantized weights bfloat16."""
        if self.lora is None:
            return 2 if self.spread.zero else self.stored
        return 2 if self.quantization or self.spread.zero else 4

    @property
    def copies(self) -> float:
        """Bytes of the short copies that autocast makes of all float32 matrices, once a step."""
        wide = self.stream > self.wide and not self.quantization
        beside = self.lora is not None and self.precision > self.wide
        return self.wide * (wide * self.shape.linear_weights + beside * float(self.trained))


def peak(step: Step) -> Parts:
    """A training step's bytes on one device at its highest moment, by what they are for."""
    return held(step) | max(moments(step), key=lambda parts: sum(parts.values()))


def held(step: Step) -> Parts:
    """What is there all the time: weights, adapter, the optimizer's states."""
    shape, spread = step.shape, step.spread
    stored = 2 if spread.zero else step.stored
    parts = memory.weights(shape, stored, step.quantization, step.head)
    if step.lora is not None:
        parts["adapter"] = step.precision * step.trained
    parts["reference"] = float((2 if spread.zero else step.reference_stored) * step.reference)
    divisor = float("inf") if "weights" in spread.offloads else spread.weights
    parts = {name: size / divisor for name, size in parts.items()}
    each = 12.0 if spread.zero else memory.states(step.optim, step.precision)
    if "optimizer" not in spread.offloads:
        parts["optimizer"] = each * step.trained / spread.states
    around = shape.parameters(step.head) - shape.linear_weights
    if spread.gathers:  # one layer in use, one on its way, and what is in no layer
        layers = 2 * shape.linear_weights / shape.num_hidden_layers
        parts["gathered"] = step.wide * (layers + around)
    elif spread.processes > 1:  # the buckets in which gradients travel
        parts["gathered"] = float(step.precision * step.trained)
    return parts


def kept(step: Step) -> float:
    """What autograd keeps at the end of the forward pass; checkpointing keeps what layers read."""
    return _kept_of_layers(step) + step.tokens * _last(step) + _copied(step)


def _kept_of_layers(step: Step) -> float:
    shape = step.shape
    each = step.stream * shape.hidden_size if step.checkpointing else saved(step)
    return float(step.tokens * shape.num_hidden_layers * each)


def _copied(step: Step) -> float:
    """Autocast's copies go with the pass that made them, but for those that autograd keeps."""
    return 0.0 if step.checkpointing else step.copies


def moments(step: Step) -> Iterator[Parts]:
    """What comes to `held`, at each of the moments of a step that can be its highest."""
    shape, n = step.shape, step.tokens
    gradients = step.precision * step.trained / step.spread.states
    before = gradients if step.accumulates else 0.0
    mask = step.sequences * step.length**2 if step.masked else 0  # a byte each, once
    at_end = kept(step) - _copied(step) + step.copies + mask
    passing = n * transient(step) + unpacked(step)
    forward, backward = logits(step)

    # TRL gives FSDP the reference as one unit, not by layer: all of it is gathered to compute
    at_once = step.spread.gathers and not step.spread.zero
    whole = float(step.wide * step.reference) if at_once else 0.0

    yield {
        "activations": at_end + n * transient(step) if step.reference else at_end,
        "logits": forward,
        "gradients": before,
        "gathered reference": whole,
    }
    yield {"activations": at_end + passing, "gradients": before}
    yield {"activations": kept(step) + mask, "logits": backward, "gradients": before}
    if step.checkpointing:
        layer = n * saved(step) + step.copies / shape.num_hidden_layers + passing
        yield {"activations": _kept_of_layers(step) + layer + mask, "gradients": before}
    # the embedding's gradient comes last: beside the one there is, and that of the head tied to it
    words = step.precision * shape.embedding if step.lora is None else 0
    more = (step.accumulates + (shape.tie_word_embeddings and not step.head)) * words
    yield {"gradients": gradients + more / step.spread.states}
    if step.optim == "adamw_torch":  # not fused: a number for every one that is trained
        yield {"gradients": 2 * gradients}
    if step.measured:
        passed = step.measured * step.length * (transient(step) + 6 * shape.hidden_size)
        yield {"activations": passed, "logits": forward, "gathered reference": whole}


def saved(step: Step) -> float:
    """Bytes for a token that autograd keeps of one layer.

    RMSNorm: its input in float32, and what its weight multiplies where that is trained. Attention
    (flash or memory-efficient): queries, keys, values, output, a float32 a head; with a mask, keys
    and values repeated for every head, and a row of the mask. SwiGLU: three of its width. And what
    the matrices that are trained, or the adapters beside them, have read.
    """
    shape, wide = step.shape, step.wide
    keys = shape.queries if step.masked else shape.keys
    norms, weighed = 2 * (shape.hidden_size + 1), 2 * step.stream * shape.hidden_size
    if shape.model_type == "qwen3":  # a norm for every head of queries and keys
        norms += shape.queries + shape.keys + shape.num_attention_heads + shape.num_key_value_heads
        weighed += wide * (shape.queries + shape.keys)
    attention = wide * (2 * shape.queries + 2 * keys) + 4 * shape.num_attention_heads
    attention += wide * step.length if step.masked else 0
    if step.lora is not None:
        weighed = 0
    return 4 * norms + weighed + attention + 3 * wide * shape.intermediate_size + _read(step)


def _read(step: Step) -> float:
    """Bytes for a token of what a layer's trained matrices, or its adapters, have read."""
    shape, wide = step.shape, step.wide
    if step.lora is None:  # autocast makes a copy for each that reads
        inputs = 2 if step.stream == wide else 5
        return wide * (inputs * shape.hidden_size + shape.intermediate_size)
    total, shared = 0.0, set[str]()
    width = 2 if step.autocast else step.precision
    dropout = step.lora.get("lora_dropout", 0) > 0
    for linear, rank in memory.adapted(shape, step.lora):
        place, _, name = linear.name.rpartition(".")
        if not place.startswith("model.layers"):
            continue
        given = wide if name in ("o_proj", "down_proj") else step.stream
        source = f"{place}.{SHARED.get(name, name)}"
        if dropout:
            total += (width + 1) * linear.inputs  # and the mask, a byte
        elif not given == step.precision == width:
            total += width * linear.inputs  # cast to the adapter's type and back
        elif name != "o_proj" and source not in shared:  # attention keeps its output anyway
            total += width * linear.inputs
            shared.add(source)
        total += width * rank
        total += 2 * wide * linear.outputs if step.lora.get("use_dora") else 0
    return total / shape.num_hidden_layers


def _last(step: Step) -> float:
    """Bytes for a token kept after the layers: the last norm, and what the head reads."""
    normed = step.stream if step.lora is None else 0
    return (4 + normed + step.stream) * step.shape.hidden_size + 32


def transient(step: Step) -> float:
    """Bytes for a token that come and go within a layer: two of SwiGLU's width and the stream.

    Beside an adapter in float32, what it reads is cast to that on its way.
    """
    cast = 4 if step.lora is not None and step.precision > step.wide else 0
    return (2 * step.wide + cast) * step.shape.intermediate_size + (
        step.stream * step.shape.hidden_size
    )


def unpacked(step: Step) -> float:
    """The largest quantized matrix in full, once at a time: bitsandbytes' backward makes it."""
    if not step.quantization:
        return 0.0
    return float(step.wide * max(linear.weights for linear in step.shape.layer()))


def logits(step: Step) -> tuple[float, float]:
    """Bytes of the head's work: in the forward pass and in the backward pass.

    TRL's fused head computes tiles of logits and keeps none; going back it sums the gradients of
    what it has read, and of its own weights, in float32.
    """
    if step.head:
        return 0.0, 0.0
    shape, n = step.shape, step.tokens
    tile = float(step.wide * min(n, TILE_TOKENS) * TILE_WORDS)
    if step.stream != step.wide:
        tile += step.wide * TILE_WORDS * shape.hidden_size
    backward = tile + (4 + step.stream) * n * shape.hidden_size
    return tile, backward + (4.0 * shape.embedding if step.lora is None else 0.0)

"""The noise behind a draw, and the draw.

A draw must not depend on the company it is drawn in. `transformers`' `generate` takes its random
numbers from one stream per batch: another batch size, another order or a restart gives other
answers. Here the noise of a token is a hash of (row seed, position, vocabulary index), and the row
seed is a hash of (seed, prompt id, answer index).

Gumbel-max: with E_v independent Exp(1), argmax_v p_v / E_v is a draw from p. The hash is the
finaliser of SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195).
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def draw(
    logits: torch.Tensor,
    key: torch.Tensor,
    step: torch.Tensor,
    options: dict[str, Any],
    stops: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of every row and its log-probability.

    Args:
        logits: [rows, vocabulary]; may be overwritten.
        key: the rows' seeds, int64 [rows].
        step: how many tokens each row has drawn before, int64 [rows].
        options: do_sample, temperature, top_k, top_p, min_p and min_new_tokens as in
            `GenerationConfig`, the filters applied in that order.
        stops: tokens that a row may not draw before `min_new_tokens`, int64.
    """
    if options["min_new_tokens"]:
        early = (step < options["min_new_tokens"])[:, None]
        logits[:, stops] = logits[:, stops].masked_fill(early, float("-inf"))
    logits = logits.float()
    if not options["do_sample"]:
        token = logits.argmax(-1)
        return token, logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
    logits = logits / options["temperature"]
    vocabulary = torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
    if 0 < options["top_k"] < logits.shape[1]:
        logits, vocabulary = logits.topk(options["top_k"])
    p = logits.softmax(-1)
    if options["top_p"] < 1:
        ordered, place = p.sort(dim=-1, descending=True, stable=True)
        outside = ordered.cumsum(-1) - ordered >= options["top_p"]
        p = p.masked_fill(outside.scatter(1, place, outside), 0)
    if options["min_p"] > 0:
        p = p.masked_fill(p < options["min_p"] * p.amax(-1, keepdim=True), 0)
    total = p.sum(-1)
    stream = mix(key + (step + 1) * _GOLDEN)[:, None]
    best = torch.empty(len(p), dtype=torch.long, device=p.device)
    # Blocks of 2 MB stay in a CPU's cache; a GPU takes larger ones.
    block = max(1, (1 << (18 if p.device.type == "cpu" else 26)) // p.shape[1])
    for at in range(0, len(p), block):
        part = slice(at, at + block)
        noise = exponential(stream[part], vocabulary[part])
        best[part] = noise.reciprocal_().mul_(p[part]).argmax(-1)
    best = best[:, None]
    logprob = p.gather(1, best)[:, 0].log() - total.log()
    return vocabulary.gather(1, best)[:, 0], logprob


def row_seed(seed: int, prompt: str, sample: int) -> int:
    """The 64-bit seed of one answer, a signed integer."""
    digest = hashlib.sha256(f"{seed}\n{sample}\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser, in place: int64 in, int64 out, every bit depends on every bit.

    torch shifts int64 arithmetically; the masks make the shifts logical.
    """
    x ^= (x >> 30) & ((1 << 34) - 1)
    x *= _MIX_1
    x ^= (x >> 27) & ((1 << 37) - 1)
    x *= _MIX_2
    x ^= (x >> 31) & ((1 << 33) - 1)
    return x


def exponential(stream: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Exp(1) numbers in float32, a function of (stream, index) alone.

    Made from 40 bits as -log1p(-v): the small values, which decide a draw, keep full precision.

    Args:
        stream: int64 [rows, 1].
        index: int64 [rows, candidates].
    """
    bits = mix(index * _GOLDEN + stream)
    v = (bits.bitwise_and_((1 << 40) - 1)).float()
    v.add_(0.5).mul_(2.0**-40).clamp_(max=1 - 2.0**-24)
    return v.neg_().log1p_().neg_()

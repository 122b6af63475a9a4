"""Drawing answers from a model, and the likelihood of given ones.

Our own loop over `model.forward`, because a draw must not depend on the company it is drawn in.
`transformers`' `generate` takes its random numbers from one stream per batch: another batch size,
another order or a restart gives other answers, and `top_k=50` is applied unless one says otherwise.
Here the noise of a token is a hash of (row seed, position, vocabulary index), and the row seed is a
hash of (seed, prompt id, sample index). In fp32 the tokens of an answer are therefore the same in
any batch, any order, with any number of workers and after a crash. In bf16 the logits themselves
change with the shape of a batch, and the same holds only for the same batches.

Gumbel-max: with E_v independent Exp(1), argmax_v p_v / E_v is a draw from p. The hash is the
finaliser of SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from align import chat
from align.decoding import OPTIONS

ROWS = 128
"""Answers decoded at once. On two cores 256 were slower than 128; a GPU may want more."""

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


@dataclass
class Completion:
    """One answer to one prompt."""

    index: int
    """Which of the prompt's n answers."""

    text: str
    """The answer without special tokens."""

    token_ids: list[int]
    """What was drawn, the closing end-of-turn token included."""

    logprob: float
    """Natural log of its probability, summed over `token_ids`, under the distribution it was drawn
    from (after temperature, top_k …); for greedy answers under the model's own at temperature 1."""

    finish: str
    """`stop`: the model ended its turn. `length`: it was cut."""


def folded(model: Any) -> Any:
    """A model whose adapter is added to its weights, where that changes nothing but the speed.

    That is in float32 without quantization; in bfloat16 the sum would be rounded.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel) or model.dtype != torch.float32:
        return model
    return model if getattr(model.config, "quantization_config", None) else model.merge_and_unload()


def context(model: Any) -> int:
    """The most tokens the model can attend to (a large number where its config names none)."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


def stop_ids(model: Any, tokenizer: Any, generation: dict[str, Any] | None = None) -> list[int]:
    """Every token that ends an answer.

    The option `eos_token_id` where it is given; else all that the generation config, the model's
    config and the tokenizer name, and what ends a turn in the chat template: a base model's config
    often lacks it.
    """
    named = (generation or {}).get("eos_token_id")
    sources = (
        [named]
        if named is not None
        else [
            model.generation_config.eos_token_id,
            model.config.get_text_config().eos_token_id,
            tokenizer.eos_token_id,
        ]
    )
    ids: set[int] = set()
    for source in sources:
        ids.update([source] if isinstance(source, int) else source or [])
    if named is None and tokenizer.chat_template is not None:
        ids.add(chat.end_of_turn(tokenizer))
    return sorted(ids)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    ids: Sequence[str],
    *,
    n: int = 1,
    seed: int = 0,
    generation: dict[str, Any] | None = None,
    rows: int = ROWS,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, list[Completion]]]:
    """Draw `n` answers to every prompt; yields (the prompt's index, its answers) as they are ready.

    Args:
        model: a causal language model in eval mode.
        tokenizer: turns tokens into text; its padding is not used.
        prompts: token ids of each prompt, ready to be continued.
        ids: of each prompt, unique; the draw depends on the id and not on the position.
        n: answers per prompt.
        seed: the same seed, id and index give the same answer.
        generation: options of `GenerationConfig`, those in decoding.py.
        rows: answers decoded at once. A prompt is read once for all its answers in a batch.
        progress: called with the number of tokens drawn so far, every few steps.

    A prompt that leaves less room in the model's context than `max_new_tokens` gets what is left;
    one that leaves none gets no answers (an empty list).
    """
    options = {**OPTIONS, **(generation or {})}
    stops = torch.tensor(stop_ids(model, tokenizer, options), device=model.device)
    limit = context(model)
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), ids[i]))
    yield from ((i, []) for i in order if len(prompts[i]) >= limit)
    jobs = [(i, k) for i in order if len(prompts[i]) < limit for k in range(n)]
    ready: dict[int, list[Completion]] = {}
    drawn = 0
    for start in range(0, len(jobs), rows):
        batch = jobs[start : start + rows]
        seeds = [row_seed(seed, ids[i], k) for i, k in batch]
        rooms = [min(options["max_new_tokens"], limit - len(prompts[i])) for i, _ in batch]
        tokens, logprobs = _decode(
            model,
            [prompts[i] for i, _ in batch],
            [i for i, _ in batch],
            seeds,
            rooms,
            stops,
            options,
            progress=None if progress is None else partial(_add, progress, drawn),
        )
        drawn += sum(map(len, tokens))
        ends = set(stops.tolist())
        texts = tokenizer.batch_decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for (i, k), text, drawn_ids, logprob in zip(batch, texts, tokens, logprobs, strict=True):
            finish = "stop" if drawn_ids and drawn_ids[-1] in ends else "length"
            answers = ready.setdefault(i, [])
            answers.append(Completion(k, text, drawn_ids, round(logprob, 4), finish))
            if len(answers) == n:
                yield i, ready.pop(i)


def _add(progress: Callable[[int], None], before: int, now: int) -> None:
    progress(before + now)


@torch.inference_mode()
def _decode(
    model: Any,
    prompts: list[list[int]],
    owners: list[int],
    seeds: list[int],
    rooms: list[int],
    stops: torch.Tensor,
    options: dict[str, Any],
    progress: Callable[[int], None] | None,
) -> tuple[list[list[int]], list[float]]:
    """One batch: answers and their log-probabilities, row by row.

    Rows of the same owner share a prompt, which is read once. Rows that are done leave the batch as
    soon as an eighth of it is done.
    """
    device = model.device
    first = [r for r in range(len(owners)) if r == 0 or owners[r] != owners[r - 1]]
    width = max(len(prompts[r]) for r in first)
    pad = [width - len(prompts[r]) for r in first]
    input_ids = torch.tensor([[0] * p + prompts[r] for p, r in zip(pad, first, strict=True)])
    mask = (torch.arange(width) >= torch.tensor(pad)[:, None]).long()
    padded = any(pad)
    cache = _cache(model.config)
    logits = model(
        input_ids=input_ids.to(device),
        attention_mask=mask.to(device) if padded else None,
        position_ids=(mask.cumsum(1) - 1).clamp_(min=0).to(device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]

    unique = {owners[r]: j for j, r in enumerate(first)}
    expand = torch.tensor([unique[owner] for owner in owners], device=device)
    if len(first) < len(owners):
        cache.reorder_cache(expand)
        logits = logits[expand]
    position = torch.tensor([len(p) for p in prompts], device=device)[:, None]
    longest = max(rooms)
    if padded:
        mask = torch.cat(
            [mask.to(device)[expand], mask.new_ones(1).to(device).expand(len(owners), longest)], 1
        )
    key = torch.tensor(seeds, device=device)
    room = torch.tensor(rooms, device=device)
    row = torch.arange(len(owners), device=device)
    tokens = torch.zeros(len(owners), longest, dtype=torch.long, device=device)
    length = room.clone()
    logprob = torch.zeros(len(owners), dtype=torch.float64, device=device)
    done = torch.zeros(len(owners), dtype=torch.bool, device=device)
    drawn = 0
    for step in range(longest):
        if step < options["min_new_tokens"]:
            logits = logits.index_fill(1, stops, float("-inf"))
        token, gained = _draw(logits, key, step, options)
        tokens[row, step] = token
        logprob[row] += torch.where(done, 0.0, gained.double())
        drawn += len(row) - int(done.sum())
        ended = ~done & (torch.isin(token, stops) | (room == step + 1))
        length[row[ended]] = step + 1
        done |= ended
        finished = int(done.sum())
        if progress is not None and step % 8 == 0:
            progress(drawn)
        if finished == len(row):
            break
        if finished * 8 >= len(row):
            keep = (~done).nonzero()[:, 0]
            cache.reorder_cache(keep)
            row, key, room, position = row[keep], key[keep], room[keep], position[keep]
            token, done = token[keep], done[keep]
            mask = mask[keep] if padded else mask
        logits = model(
            input_ids=token[:, None],
            attention_mask=mask[:, : width + step + 1] if padded else None,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        position = position + 1
    cut = [t[:n] for t, n in zip(tokens.tolist(), length.tolist(), strict=True)]
    return cut, logprob.tolist()


def _draw(
    logits: torch.Tensor, key: torch.Tensor, step: int, options: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of every row and its log-probability.

    Args:
        logits: [rows, vocabulary].
        key: the rows' seeds, int64 [rows].
        step: how many tokens each row has drawn before.
        options: temperature, top_k, top_p, min_p as in `GenerationConfig`, applied in that order.
    """
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
    stream = mix(key + (torch.tensor(step + 1, device=key.device) * _GOLDEN))[:, None]
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


class _Buffered(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer in a buffer that grows in blocks.

    `DynamicLayer` copies everything it holds at every token.
    """

    BLOCK = 128

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [rows, heads, new, width] states; returns all of them, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.get_seq_length()
        new = old + key_states.shape[2]
        if not self._buffers and old == 0:  # the prompt: kept as it is until it is expanded
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        if not self._buffers or self._buffers[0].shape[2] < new:
            grown = []
            for held, states in ((self.keys, key_states), (self.values, value_states)):
                rows, heads, _, width = states.shape
                buffer = states.new_empty(rows, heads, new + self.BLOCK, width)
                buffer[:, :, :old] = held
                grown.append(buffer)
            self._buffers = grown
        self._buffers[0][:, :, old:new] = key_states
        self._buffers[1][:, :, old:new] = value_states
        self.keys, self.values = (buffer[:, :, :new] for buffer in self._buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may come several times."""
        super().reorder_cache(beam_idx)
        self._buffers = []


def _cache(config: Any) -> Cache:
    """The cache the architecture asks for, its growing layers in buffers."""
    cache = DynamicCache(config=config)
    cache.layers = [_Buffered() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@torch.inference_mode()
def likelihoods(
    model: Any,
    pairs: Sequence[tuple[list[int], list[int]]],
    *,
    tokens: int = 16384,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Log-likelihood (natural, summed) of each continuation after its prompt.

    Args:
        model: a causal language model in eval mode.
        pairs: token ids of (prompt, continuation); both need at least one token, and together they
            must fit the model's context.
        tokens: of one batch, padding included. Pairs of like length share a batch.
        progress: called with the number of pairs done.
    """
    device = model.device
    order = sorted(range(len(pairs)), key=lambda i: (-sum(map(len, pairs[i])), i))
    result = [0.0] * len(pairs)
    at = 0
    while at < len(order):
        width = sum(map(len, pairs[order[at]]))
        batch = order[at : at + max(1, tokens // width)]
        at += len(batch)
        rows = [pairs[i][0] + pairs[i][1] for i in batch]
        # Padding on the right, after everything that counts: causal attention never sees it.
        input_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)[:, None]
        starts = torch.tensor([len(pairs[i][0]) for i in batch], device=device)[:, None]
        place = torch.arange(width, device=device)
        keep = min(
            width,
            max(len(pairs[i][1]) + width - len(row) for i, row in zip(batch, rows, strict=True))
            + 1,
        )
        logits = (
            model(
                input_ids=input_ids,
                attention_mask=(place < lengths).long(),
                use_cache=False,
                logits_to_keep=keep,
            )
            .logits[:, :-1]
            .float()
        )
        targets = input_ids[:, width - keep + 1 :]
        place = place[width - keep + 1 :]
        gained = logits.gather(2, targets[:, :, None])[:, :, 0] - logits.logsumexp(-1)
        gained = gained.masked_fill((place < starts) | (place >= lengths), 0)
        for i, value in zip(batch, gained.double().sum(1).tolist(), strict=True):
            result[i] = value
        if progress is not None:
            progress(at)
    return result

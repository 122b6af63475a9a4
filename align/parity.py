"""How alike two models are: the same prompts, the same seed, logit by logit and answer by answer.

A model is asked once (`ask`), its answers and logits are kept, and it can be freed before the next
one is loaded. Logits are compared along the first model's answers, where models are used, and not
on random tokens, where a model has nothing to say and its likeliest tokens are nearly ties.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, takewhile
from typing import Any

import torch

from align import chat, data
from align.artifacts import Prompts
from align.data import Source
from align.generation import generate
from align.out import Out

MOST = 64
"""Prompts that are compared."""

TOKENS = 32
"""Tokens of an answer. The logits kept are prompts x tokens x vocabulary: 1 GB for Llama 3's."""

PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain to a child why the sky is blue.",
    "Translate into German: I would like a cup of tea.",
    "A train travels 60 km in 45 minutes. How fast is it in km/h?",
    "Write a Python function that reverses a list.",
    "List three causes of the First World War.",
    "Summarize: the meeting was moved from Monday to Thursday because two people were ill.",
    "Is 91 a prime number? Answer yes or no, and say why.",
    "Give me a recipe that uses eggs, flour and milk.",
    "What should I do if I cannot sleep?",
    "Correct the grammar: he go to school every days.",
)
"""What models are compared on where the recipe names no prompts: no data set's, so that no adapter
was trained on them, and written as a user would."""

ANSWERS = (
    "Yes.",
    "I do not know.",
    "Let me think about it. First, it depends on what you mean; second, on what you need it for.",
    "Here is a list: one, two, three.",
    "No, no, no, no.",
)
"""What reward models score after the prompts, one after another: they rank dialogs with answers."""


@dataclass(frozen=True)
class Said:
    """What a model said to the prompts."""

    answers: list[list[int]]
    """Token ids, drawn at temperature 1 from the seed; none of a reward model."""

    logits: list[torch.Tensor]
    """Float32 on the CPU, of each prompt: (tokens, vocabulary) where the first model's answer
    begins, or (1, 1): the score."""


def prompts(
    sources: Sequence[Prompts | Source], tokenizer: Any, seed: int, out: Out, *, head: bool = False
) -> list[list[int]]:
    """Token ids of the first `MOST` prompts of the sources, or of `PROMPTS`.

    `head`: for reward models, each with one of `ANSWERS`.
    """
    rows: Iterable[dict[str, Any]] = data.mix(sources, Prompts, seed, out)
    if not sources and tokenizer.chat_template is None:
        pairs = zip(PROMPTS, cycle(ANSWERS), strict=False)
        return [tokenizer(f"{text} {said}" if head else text).input_ids for text, said in pairs]
    if not sources:
        rows = [{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS]
    found = []
    for row, said in zip(islice(rows, MOST), cycle(ANSWERS), strict=False):
        messages, tools = row["prompt"], row.get("tools")
        answer = {"role": "assistant", "content": said}
        found.append(
            chat.encode_one(tokenizer, [*messages, answer], tools).ids
            if head
            else chat.prompt(tokenizer, messages, tools)
        )
    return found


def ask(
    network: Any,
    tokenizer: Any,
    batch: Sequence[list[int]],
    seed: int,
    answers: Sequence[list[int]] | None = None,
) -> Said:
    """What a model says to the prompts, and its logits along `answers`, by default its own.

    Args:
        network: a causal language model or a reward model in eval mode.
        tokenizer: of the model.
        batch: token ids of each prompt.
        seed: of the answers.
        answers: token ids; those of the model that this one is compared with.
    """
    if not network.can_generate():
        return Said([], [_logits(network, ids, 1) for ids in batch])
    said: list[list[int]] = [[] for _ in batch]
    drawn = generate.generate(
        network,
        tokenizer,
        batch,
        [str(i) for i in range(len(batch))],
        seed=seed,
        generation={"max_new_tokens": TOKENS},
    )
    for i, found in drawn:
        said[i] = [token for answer in found for token in answer.token_ids]
    along = zip(batch, said if answers is None else answers, strict=True)
    return Said(said, [_logits(network, ids + ahead[:-1], len(ahead)) for ids, ahead in along])


@torch.inference_mode()
def _logits(network: Any, ids: list[int], last: int) -> torch.Tensor:
    found: torch.Tensor = network(input_ids=torch.tensor([ids], device=network.device)).logits
    return found[0, -last:].float().cpu()


def compare(first: Said, second: Said) -> dict[str, float]:
    """How far the second model is from the first.

    `max_logit_difference`, and `max_logit` to hold it against; NaN where a logit is. Of reward
    models also `max_rank_difference`, the difference less its mean, which changes no ranking, and
    `spread`, the standard deviation of the first model's scores. Of language models also
    `top_1_agreement`, the share of places where both find the same token likeliest;
    `kl_per_token`, KL(first || second) in nats, averaged over places; `same_answers`; and
    `same_tokens`, the share of the first model's tokens before the second's answer departs.
    """
    both = list(zip(first.logits, second.logits, strict=True))
    found = {
        "max_logit_difference": _largest([a - b for a, b in both]),
        "max_logit": _largest(first.logits),
    }
    if not first.answers:
        scores, others = (torch.cat(said.logits).flatten() for said in (first, second))
        moved = scores - others
        return found | {
            "max_rank_difference": _largest([moved - moved.mean()]),
            "spread": float(scores.std(correction=0)),
        }
    places = sum(len(a) for a, _ in both)
    answers = list(zip(first.answers, second.answers, strict=True))
    return found | {
        "top_1_agreement": sum(_same(a.argmax(-1), b.argmax(-1)) for a, b in both) / places,
        "kl_per_token": sum(_kl(a, b) for a, b in both) / places,
        "same_answers": sum(a == b for a, b in answers) / len(answers),
        "same_tokens": sum(_alike(a, b) for a, b in answers) / sum(len(a) for a, _ in answers),
    }


def finite(said: Said) -> bool:
    """Whether all logits are numbers."""
    return all(bool(logits.isfinite().all()) for logits in said.logits)


def _largest(tensors: Sequence[torch.Tensor]) -> float:
    """The largest absolute value; torch's maximum is NaN where any is, Python's is not."""
    return float(torch.stack([tensor.abs().max() for tensor in tensors]).max())


def _same(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a == b).sum())


def _alike(first: list[int], second: list[int]) -> int:
    """How many tokens two answers begin with in common."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _kl(a: torch.Tensor, b: torch.Tensor) -> float:
    """KL(a || b) in nats, summed over places."""
    p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum())

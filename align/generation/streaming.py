"""One answer while it is drawn: the same tokens as `generate` gives, and their text as it grows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os.path import commonprefix
from typing import Any

import torch

from align.generation import noise, prefill
from align.generation.batch import Batch
from align.generation.decoding import OPTIONS
from align.generation.endings import Endings
from align.generation.generate import Completion, completion, context, stop_ids
from align.generation.prefill import Job


def stream(
    model: Any,
    tokenizer: Any,
    prompt: list[int],
    id: str,
    *,
    number: int = 0,
    seed: int = 0,
    generation: dict[str, Any] | None = None,
) -> Iterator[Completion]:
    """The answer as far as it is drawn, again and again; the last one is whole.

    Args:
        model: a causal language model in eval mode.
        tokenizer: of the model.
        prompt: token ids, fewer than the model's context.
        id: of the prompt: with `number` and `seed` it says which answer is drawn.
        number: which of the prompt's answers.
        seed: of the draws.
        generation: options of `GenerationConfig`, those in decoding.py.
    """
    options = {**OPTIONS, **(generation or {})}
    limit, stops = context(model), stop_ids(model, tokenizer, options)
    endings = Endings(tokenizer, options)
    room = min(options["max_new_tokens"], limit - len(prompt))
    job = Job(0, number, prompt, noise.row_seed(seed, id, number), room)
    ends = torch.tensor(stops, device=model.device)
    none = prefill.beginning(model, [job])
    batch = Batch(model, [job], none, limit, ends, endings, options)
    while True:
        done = batch.done()
        length = int(batch.rows.length[0])
        tokens, gained = batch.rows.tokens[0, :length], batch.rows.gained[0, :length]
        yield completion(endings, number, tokens.tolist(), gained.double().sum().item(), stops)
        if done:
            return
        batch.step()


def pieces(drawn: Iterable[Completion]) -> Iterator[tuple[str, Completion]]:
    """What a growing answer says anew, as far as it is sure, and the answer it is of.

    A character of several tokens is held back until it is whole. Until then it is decoded as
    U+FFFD, and some tokenizers take back what stood before it in the same run of bytes.
    """
    shown = ""
    answer = None
    for answer in drawn:
        sure = answer.text.rstrip("\ufffd")
        if sure.startswith(shown):
            yield sure[len(shown) :], answer
            shown = sure
    if answer is not None:
        yield answer.text[len(commonprefix([answer.text, shown])) :], answer

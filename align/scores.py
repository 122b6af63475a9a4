"""The score a reward model gives a dialog: the same alone and in any batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


@torch.inference_mode()
def scores(
    model: Any,
    rows: Sequence[list[int]],
    *,
    tokens: int = 16384,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """The score of each row, in the order of the rows.

    A row's score differs by less than 1e-5 between batches in fp32 and by some thousandths in bf16,
    where ranks flip now and then: load reward models in fp32 where ranks matter.

    Args:
        model: a model with a one-number head, in eval mode, whose config names its pad token.
        rows: token ids of whole dialogs, rendered and tokenised as in training.
        tokens: of one batch, padding included. Rows of like length share a batch.
        progress: called with the number of rows done.
    """
    pad = model.config.get_text_config().pad_token_id
    assert pad is not None, "without a pad token the head reads the padding of shorter rows"
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    result = [0.0] * len(rows)
    at = 0
    while at < len(order):
        width = len(rows[order[at]])
        batch = order[at : at + max(1, tokens // width)]
        at += len(batch)
        ids = [rows[i] + [pad] * (width - len(rows[i])) for i in batch]
        mask = [[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in batch]
        logits = model(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            use_cache=False,
        ).logits
        for i, value in zip(batch, logits[:, 0].double().tolist(), strict=True):
            result[i] = value
        if progress is not None:
            progress(at)
    return result

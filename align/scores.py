"""The score a reward model gives a dialog, the same alone and in any batch; and how good it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from align import chat, models, stats
from align.artifacts import RewardModel
from align.settings import Dialog


def load(model: RewardModel) -> tuple[Any, Any]:
    """A reward model ready to score, in float32 unless it is quantized, and its tokenizer."""
    network = models.load(model, head=True)
    if models.describe(model).quantization is None:
        network = network.float()
    return network, models.tokenizer(model)


def dialogs(
    network: Any,
    tokenizer: Any,
    prompts: Sequence[Dialog],
    answers: Sequence[Dialog],
    tools: Sequence[Any],
    *,
    tokens: int = 16384,
) -> list[float | None]:
    """The score of each answer to its prompt: of the whole dialog, as the model saw it in training.

    None where the dialog is longer than the model's context. `tools` has one entry per answer.
    """
    limit = getattr(network.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    rows = []
    for prompt, answer, tool in zip(prompts, answers, tools, strict=True):
        ids, encoded = chat.answer(tokenizer, prompt, answer, tool)
        rows.append(ids + encoded.ids)
    fits = [i for i, row in enumerate(rows) if len(row) <= limit]
    found: list[float | None] = [None] * len(rows)
    numbers = scores(network, [rows[i] for i in fits], tokens=tokens)
    for i, number in zip(fits, numbers, strict=True):
        found[i] = number
    return found


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


def accuracy(margins: torch.Tensor) -> torch.Tensor:
    """How often the chosen answer wins, a tie counting one half: P(m > 0) + P(m = 0) / 2.

    TRL counts a tie as a loss: a model that has learnt nothing scores 0 there, and one half here.
    """
    return ((margins > 0).double() + (margins == 0).double() / 2).mean()


def measure(model: RewardModel, rows: Any) -> dict[str, float]:
    """A reward model on `held_out` pairs: rows of `preference.dialogs`.

    `accuracy` with its Wilson 95 % interval, `accuracy_low` to `accuracy_high`;
    `accuracy_of_longer`, what always preferring the longer answer would reach; and
    `length_correlation`, Pearson's between the score and the answer's tokens over all answers.
    """
    network, _ = load(model)
    n = len(rows)
    found = scores(network, [*rows["chosen_ids"], *rows["rejected_ids"]])
    lengths = [*rows["chosen_tokens"], *rows["rejected_tokens"]]
    both = torch.tensor([found, lengths], dtype=torch.float64)
    right, longer = (accuracy(margins).item() for margins in both[:, :n] - both[:, n:])
    low, high = stats.wilson(right * n, n)
    return {
        "held_out": n,
        "accuracy": right,
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_of_longer": longer,
        "length_correlation": torch.corrcoef(both)[0, 1].nan_to_num().item(),
    }

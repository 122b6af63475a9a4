"""The score a reward model gives a dialog, in fp32 the same in any batch; and how good it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any
from weakref import WeakValueDictionary

import torch
from peft import PeftModel

from align import chat, models, precision, stats
from align.artifacts import RewardModel
from align.generation import tree
from align.scoring import prefixes
from align.settings import Dialog

TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens scored at once. On one core 16,384 took twice as long as 1,024, and 512 as long."""


class Judge:
    """A reward adapter on a base that others may lie on, too: its own is active when it is called.

    Called as the model itself is; `config` and `device` are the model's.
    """

    def __init__(self, network: Any, adapter: str) -> None:
        self.network = network
        self.adapter = adapter
        self.config = network.config
        self.device = network.device

    def __call__(self, **inputs: Any) -> Any:
        """The model's outputs, with this adapter and its own score head."""
        if self.network.active_adapter != self.adapter:
            self.network.set_adapter(self.adapter, inference_mode=True)
        return self.network(**inputs)


_bases: WeakValueDictionary[Any, Any] = WeakValueDictionary()
"""What is loaded of reward adapters' bases: as long as one who scores with it holds it."""


def base(model: RewardModel) -> Any:
    """What two reward adapters have in common that can lie on one base in memory; else None."""
    spec = models.describe(model)
    if spec.adapter is None:
        return None
    about = spec.base.model_dump_json(), json.dumps(spec.quantization, sort_keys=True)
    return (*about, models.tokenizer(model).pad_token_id, models.device())


def load(model: RewardModel) -> tuple[Any, Any]:
    """A reward model ready to score, in float32 unless it is quantized, and its tokenizer.

    Adapters on one base share it: the second one costs what it has of its own.
    """
    key = base(model)
    network = _bases.get(key)
    if network is not None:
        name = f"reward_{len(network.peft_config)}"
        network.load_adapter(str(models.describe(model).adapter), name, use_safetensors=True)
    else:
        name = "default"
        network = models.load(model, head=True)
        if key is not None:
            _bases[key] = network
    if not precision.quantized(network):
        network = network.float()
    tokenizer = models.tokenizer(model)
    return (network if key is None else Judge(network, name)), tokenizer


def dialogs(
    network: Any,
    tokenizer: Any,
    prompts: Sequence[Dialog],
    answers: Sequence[Dialog],
    tools: Sequence[Any],
    *,
    tokens: int | None = None,
) -> list[float | None]:
    """The score of each answer to its prompt: of the whole dialog, as the model saw it in training.

    None where the dialog is longer than the model's context. `tools` has one entry per answer.
    """
    limit = getattr(network.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    rows, starts = [], []
    for prompt, answer, tool in zip(prompts, answers, tools, strict=True):
        ids, encoded = chat.answer(tokenizer, prompt, answer, tool, whole=False)
        rows.append(ids + encoded.ids)
        starts.append(len(ids))
    fits = [i for i, row in enumerate(rows) if len(row) <= limit]
    found: list[float | None] = [None] * len(rows)
    numbers = scores(network, [rows[i] for i in fits], [starts[i] for i in fits], tokens=tokens)
    for i, number in zip(fits, numbers, strict=True):
        found[i] = number
    return found


@torch.inference_mode()
def scores(
    model: Any,
    rows: Sequence[list[int]],
    starts: Sequence[int] | None = None,
    *,
    tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """The score of each row, in the order of the rows.

    Between batches a row's score differs by less than 1e-5 in fp32, and by about a hundredth of
    itself in bf16, where ranks flip now and then: load reward models in fp32 where ranks matter.

    Args:
        model: a model with a one-number head, in eval mode, whose config names its pad token.
        rows: token ids of whole dialogs, rendered and tokenised as in training.
        starts: how many tokens of each row are the prompt's. Prompts of several rows are then read
            once, where the model allows it and it is worth it (prefixes.py).
        tokens: of one batch, padding included; `TOKENS` unless given. Rows of like length share a
            batch.
        progress: called with the number of rows done.
    """
    pad = model.config.get_text_config().pad_token_id
    assert pad is not None, "without a pad token the head reads the padding of shorter rows"
    tokens = tokens or TOKENS[model.device.type]
    causal = prefixes.causal(_network(model))
    together = prefixes.groups(rows, starts) if causal and starts is not None else []
    alone = set(range(len(rows))).difference(*(members for _, members in together))
    result = [0.0] * len(rows)
    done = 0
    for places, numbers in chain(
        prefixes.scores(model, rows, together, tokens), _whole(model, rows, alone, tokens, causal)
    ):
        for i, number in zip(places, numbers, strict=True):
            result[i] = number
        done += len(places)
        if progress is not None:
            progress(done)
    return result


def _whole(
    model: Any, rows: Sequence[list[int]], which: Iterable[int], tokens: int, causal: bool
) -> Iterator[tuple[list[int], list[float]]]:
    """Indices of rows and their scores, batch by batch; every row is read from its beginning.

    Padding is on the right: a causal model needs no mask, without which attention is faster.

    Where the rotary frequencies depend on the longest row, only rows of one length share a batch,
    and shorter ones come first: "dynamic" frequencies stay those of the longest row so far until
    one within the context is read. Rows beyond the context depend on an earlier call's, therefore,
    if none within it is among them.
    """
    pad = model.config.get_text_config().pad_token_id
    alike = tree.by_length(_network(model))
    order = sorted(which, key=lambda i: (len(rows[i]) if alike else -len(rows[i]), i))
    at = 0
    while at < len(order):
        width = len(rows[order[at]])
        batch = order[at : at + max(1, tokens // width)]
        if alike:
            batch = [i for i in batch if len(rows[i]) == width]
        at += len(batch)
        ids = [rows[i] + [pad] * (width - len(rows[i])) for i in batch]
        mask = [[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in batch]
        logits = model(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=None if causal else torch.tensor(mask, device=model.device),
            use_cache=False,
        ).logits
        yield batch, logits[:, 0].double().tolist()


def _network(model: Any) -> Any:
    """A reward model without the adapter and what holds it."""
    network = model.network if isinstance(model, Judge) else model
    return network.get_base_model() if isinstance(network, PeftModel) else network


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

"""What rows mean, as vectors: the mean of a model's last hidden states, of length 1.

Rows lie in files: in memory are some twenty bytes of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from align import headers, models, precision
from align.artifacts import Model
from align.curation.rules import Row, said
from align.out import Out
from align.scoring.scores import TOKENS
from align.spec import describe, sentences

LONGEST = 512
"""Tokens of a row that are read, its first ones: as many as most encoders can."""

PART = 1000
"""Rows that are tokenised at once."""

Vectors = NDArray[np.float32]


def vectors(
    model: Model, rows: Callable[[], Iterator[Row]], ties: NDArray[np.uint64], out: Out
) -> Vectors:
    """A vector for every row, in their order: [rows, hidden size], in a file.

    Batches are of rows of like length, and follow from the rows' lengths and `ties`: in which order
    the rows come changes no bit.
    """
    network, tokenizer = _load(model)
    ids, lengths = _tokenised(network, tokenizer, rows, out.path / "tokens.tmp")
    starts = np.cumsum(lengths) - lengths
    shape = len(lengths), network.config.get_text_config().hidden_size
    file = out.path / "vectors.tmp"
    found: Vectors = np.memmap(file, np.float32, "w+", shape=shape)
    order = np.lexsort((ties, lengths))[::-1]
    pad = tokenizer.pad_token_id or 0
    at, most = 0, TOKENS[network.device.type]
    while at < len(order):
        width = int(lengths[order[at]])
        batch = order[at : at + max(1, most // width)]
        texts = [ids[starts[i] : starts[i] + lengths[i]].tolist() for i in batch]
        found[batch] = _embedded(network, texts, pad)
        at += len(batch)
        out.progress(at, len(order), "rows", "semantic")
    return found


def _load(model: Model) -> tuple[Any, Any]:
    """A network without its head, and its tokenizer, which need not know how a turn ends."""
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    spec, device = describe(model), models.device()
    kind = str(headers.config(spec.base).get("architectures"))
    disable_progress_bar()
    with sentences(spec.base.path):
        tokenizer = AutoTokenizer.from_pretrained(
            spec.tokenizer,
            revision=spec.base.revision if spec.tokenizer == spec.base.path else None,
            trust_remote_code=False,
        )
        if spec.adapter is None and "CausalLM" not in kind and "LMHeadModel" not in kind:
            network = AutoModel.from_pretrained(
                spec.base.path,
                revision=spec.base.revision,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=precision.dtype(spec.base.dtype, device, False),
            )
            return network.to(device).eval(), tokenizer
    network = models.load(model)
    whole = network.get_base_model() if isinstance(network, PeftModel) else network
    return whole.base_model, tokenizer


def _tokenised(
    network: Any, tokenizer: Any, rows: Callable[[], Iterator[Row]], file: Path
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The token ids of all rows, one after the other in a file, and how many each has."""
    known = getattr(network.config.get_text_config(), "max_position_embeddings", None) or LONGEST
    most = min(LONGEST, tokenizer.model_max_length, known - 2)  # RoBERTa counts places from 2 on
    lengths: list[NDArray[np.int64]] = []
    each = rows()
    with file.open("wb") as written:
        while part := list(islice(each, PART)):
            texts = [text(row) for row in part]
            encoded = tokenizer(texts, truncation=True, max_length=most)["input_ids"]
            encoded = [one or [0] for one in encoded]  # an empty text
            lengths.append(np.array([len(one) for one in encoded], np.int64))
            np.array([i for one in encoded for i in one], np.uint32).tofile(written)
    return np.memmap(file, np.uint32, "r"), np.concatenate(lengths)


def text(row: Row) -> str:
    """What is embedded of a row: all it says, but of preferences no rejected answer."""
    if "prompt" not in row:
        return "\n\n".join(text for _, text in said(row))
    answer = row["ranked"][0] if "ranked" in row else row.get("chosen", [])
    return "\n\n".join(text for _, text in said({"messages": [*row["prompt"], *answer]}))


@torch.inference_mode()
def _embedded(network: Any, rows: list[list[int]], pad: int) -> Vectors:
    width = max(map(len, rows))
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = mask.to(network.device)
    states = network(input_ids=ids.to(network.device), attention_mask=mask).last_hidden_state
    mean = (states.float() * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    made: Vectors = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
    return made

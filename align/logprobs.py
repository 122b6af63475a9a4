"""Summed log-probabilities of pairs under a frozen model: computed once, kept by content.

The pairs are sorted by length and cut into batches, and these into shards, by the pairs and by how
many tokens a batch may have: the same pairs give the same batches in any order, on any number of
processes and after a kill. A shard is a file of the store's cache, written at once or not at all,
with the pairs' digests in it:

    runs/.cache/reference/<what the numbers depend on>/00000.npz    pair, chosen, rejected
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from datasets import Dataset
from peft import PeftModel
from trl import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from align import records
from align.errors import StageFailed
from align.out import Out

TOKENS = 16384
"""Of one batch at most, padding included; a pair with more is a batch of its own."""

SHARD = 32
"""Batches of a shard: what a kill loses at most."""

SIDES = ("chosen", "rejected")

Numbers = np.ndarray[Any, np.dtype[np.float32]]
"""(n, 2): a pair's summed log-probabilities (natural log) of the chosen and the rejected answer."""


class Scorer(DPOTrainer):  # type: ignore[misc]
    """TRL's own `compute_ref_log_probs` for one model, without a trainer around it."""

    def __init__(self, network: Any, args: Any, collator: Any) -> None:
        """`network` is put in eval mode on the device of `args`, a `DPOConfig`."""
        self.model = network.to(args.device).eval()
        self.ref_model = self.model  # without one, TRL would switch off the adapter
        self.args, self.ld_alpha = args, args.ld_alpha
        self.accelerator = Accelerator(mixed_precision=args.mixed_precision)
        self.data_collator = collator

    def numbers(self, rows: Dataset, batches: list[list[int]]) -> Numbers:
        """Of the rows of all batches, in their order; every process does a part of the batches.

        Raises:
            StageFailed: a number is not finite.
        """
        rank, world = self.args.process_index, self.args.world_size
        with torch.no_grad():
            sums = [self._sums([rows[i] for i in batch]) for batch in batches[rank::world]]
        mine = [(rank + i * world, each.cpu().numpy()) for i, each in enumerate(sums)]
        found = np.concatenate([each for _, each in sorted(gather_object(mine), key=_place)])
        if not np.isfinite(found).all():
            raise StageFailed(
                "The reference gives an answer a log-probability that is not finite. Look at its "
                "weights; with `trainer: {fp16: true}` try bf16."
            )
        return found

    def _sums(self, examples: list[dict[str, Any]]) -> torch.Tensor:
        batch = send_to_device(self.data_collator(examples), self.args.device)
        del batch["nll_mask"]
        return torch.stack(self.compute_ref_log_probs(self.model, batch)).float().T


def tolerance(network: Any, args: Any) -> float:
    """How far apart numbers from batches of other shapes may be, per square root of a token."""
    return 1e-3 if in_float32(network, args) else 1e-1


def in_float32(network: Any, args: Any) -> bool:
    """Whether a network computes in float32 throughout."""
    return bool(network.dtype == torch.float32 and args.mixed_precision == "no")


def _place(piece: tuple[int, Numbers]) -> int:
    return piece[0]


@contextlib.contextmanager
def scoring(network: Any, args: Any, collator: Any) -> Iterator[Scorer]:
    """A scorer of the network, which is afterwards as it was, but on the device, in eval mode."""
    plain = network.get_base_model() if isinstance(network, PeftModel) else network
    forward = plain.forward
    add_fused_lm_head(plain)
    try:
        yield Scorer(network, args, collator)
    finally:
        plain.forward = forward


def log_probs(
    scorer: Scorer, rows: Dataset, wanted: list[int], about: Any, room: int, out: Out
) -> tuple[Numbers, int, int]:
    """The numbers of all rows, and how many pairs were computed and found in the cache.

    Args:
        scorer: of the frozen model.
        rows: of `preference.pairs`. Equal ones are computed once.
        wanted: the rows that will be read; others have NaN.
        about: what the numbers depend on beside the pairs.
        room: tokens of a training step's batch, with no more of which memory is known to do.
        out: of the stage; shows the progress.
    """
    keys = digests(rows)
    widths = np.maximum(*(lengths(rows, "prompt_ids", f"{side}_ids") for side in SIDES))
    first = {keys[i]: i for i in reversed(wanted)}  # one row of each pair
    order = sorted(first, key=lambda key: (-widths[first[key]], key))  # too long shows at once
    room = min(TOKENS, room)
    batches = list(_cut([first[key] for key in order], widths, room))
    shards = [batches[at : at + SHARD] for at in range(0, len(batches), SHARD)]
    folder = out.cache / "reference" / records.digest([about, room, sorted(first)])[:16]
    names = [np.array([keys[i] for batch in shard for i in batch], "S32") for shard in shards]
    files = [folder / f"{number:05d}.npz" for number in range(len(shards))]
    known = [_read(*each) for each in zip(files, names, strict=True)] if out.main else []
    [known] = broadcast_object_list([known])
    cached = sum(len(numbers) for numbers in known if numbers is not None)
    done = cached
    for at, shard in enumerate(shards):
        if known[at] is None:
            out.progress(done, len(order), "pairs", "reference")
            known[at] = scorer.numbers(rows, shard)
            done += len(names[at])
            if out.main:
                _write(files[at], names[at], known[at])
    of = dict(zip(order, np.concatenate(known), strict=True))
    missing = np.full(2, np.nan, np.float32)
    return np.stack([of.get(key, missing) for key in keys]), len(order) - cached, cached


def lengths(rows: Dataset, *columns: str) -> Any:
    """Tokens of every row in these columns together, (n,)."""
    table = rows.with_format("arrow")[:]
    return sum(pc.list_value_length(table[name]).to_numpy() for name in columns)


def digests(rows: Dataset) -> list[str]:
    """What every pair is known by: a hash of its tokens and their kinds, 32 hexadecimal digits."""
    columns = ["prompt_ids", *(f"{side}_{what}" for side in SIDES for what in ("ids", "kinds"))]
    found = []
    for table in rows.with_format("arrow").iter(1000):
        split = []
        for name in columns:
            ends = pc.list_value_length(table[name]).to_numpy().cumsum()
            split.append(np.split(pc.list_flatten(table[name]).to_numpy(), ends[:-1]))
        for pair in zip(*split, strict=True):
            sizes = np.array([len(part) for part in pair])
            content = b"".join(part.astype(np.int32).tobytes() for part in (sizes, *pair))
            found.append(hashlib.sha256(content).hexdigest()[:32])
    return found


def _cut(order: list[int], widths: Any, room: int) -> Iterator[list[int]]:
    """Rows, longest first, in batches of at most `room` tokens: two sequences a row, padded."""
    at = 0
    while at < len(order):
        size = max(1, room // (2 * int(widths[order[at]])))
        yield order[at : at + size]
        at += size


def _read(file: Path, pairs: Any) -> Numbers | None:
    """The shard's numbers; None where there is none of these pairs, or it is damaged."""
    try:
        with file.open("rb") as stream, np.load(stream) as shard:
            if np.array_equal(shard["pair"], pairs):
                return np.stack([shard[side] for side in SIDES], axis=1)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        pass  # a cache may be damaged, which its checksums show: the shard is made anew
    return None


def _write(file: Path, pairs: Any, numbers: Numbers) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        np.savez(stream, pair=pairs, chosen=numbers[:, 0], rejected=numbers[:, 1])
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)

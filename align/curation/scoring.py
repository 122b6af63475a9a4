"""What a reward says of every row, kept row by row: a kill costs the rows in hand, and no more."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align import rewards
from align.curation import hashes
from align.curation.rules import Row, put_back
from align.curation.texts import tie
from align.errors import StageFailed
from align.out import Out
from align.settings import Dialog, Reward

Numbers = NDArray[np.float64]
"""One a row, in their order; nan where the reward has none."""

PART = rewards.CHUNK
"""Rows that are scored together: batches are made of rows of like length among them."""

_OURS = {*hashes.SAYS, "id", "source"} - {"tools"}
"""Columns that a reward is not given beside the dialog."""


def asked(row: Row) -> tuple[Dialog, Dialog]:
    """What was asked, and the answer that is scored: the last one, or the chosen one, or none."""
    if "messages" not in row:
        return row["prompt"], row["ranked"][0] if "ranked" in row else row.get("chosen", [])
    said = row["messages"]
    last = max(i for i, message in enumerate(said) if message["role"] == "assistant")
    return said[:last], [said[last]]


def score(
    name: str, reward: Reward, rows: Callable[[], Iterator[Row]], out: Out
) -> tuple[Numbers, NDArray[np.uint64]]:
    """A number for every row, and the number that stands for what it holds.

    They are kept in `checkpoints/scores/<name>.jsonl`; those of the same rows are not asked again.

    Raises:
        StageFailed: not one row has a number; or the reward says itself why it cannot go on.
    """
    file = out.path / "checkpoints" / "scores" / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    total = sum(1 for _ in rows())
    known = _known(file, rows())
    each = islice(rows(), known, None)
    with file.open("a", encoding="utf-8") as lines:
        for at in range(known, total, PART):
            part = list(islice(each, PART))
            found = _score(name, reward, part, out)
            lines.writelines(
                f"{json.dumps([tie(row), number])}\n"
                for row, number in zip(part, found, strict=True)
            )
            lines.flush()
            os.fsync(lines.fileno())
            out.progress(at + len(part), total, "rows", name)
    reward.free()
    numbers, ties = np.empty(total), np.empty(total, np.uint64)
    for i, (content, number) in enumerate(_lines(file)):
        ties[i], numbers[i] = content, math.nan if number is None else number
    missing = int(np.isnan(numbers).sum())
    if total and missing == total:
        raise StageFailed(f"{name} has no number for any of {total} rows. Look at what it returns.")
    if missing:
        out.count(f"unscored.{name}", missing)
        out.say(
            f"{name}: {missing:,} of {total:,} rows have no number, as those that are longer than "
            "a reward model reads. It keeps none of them."
        )
    return numbers, ties


def _score(name: str, reward: Reward, part: Sequence[Row], out: Out) -> list[float | None]:
    def failed(place: int, why: str) -> None:
        out.count(f"failed.{name}", example={"id": part[place]["id"], "error": why})

    pairs = [asked(row) for row in part]
    beside = [
        put_back({key: value for key, value in row.items() if key not in _OURS}) for row in part
    ]
    found = rewards.call(
        reward,
        [prompt for prompt, _ in pairs],
        [answer for _, answer in pairs],
        rewards.columns_of(beside),
        failed=failed,
    )
    return [one["score"] for one in found]


def _known(file: Path, rows: Iterator[Row]) -> int:
    """How many rows were scored before, from the first one on; a file of other rows is removed."""
    if not file.is_file():
        return 0
    whole = file.read_bytes().rpartition(b"\n")[0]
    known = 0
    for (content, _), row in zip(map(json.loads, whole.splitlines()), rows, strict=False):
        if content != tie(row):
            file.unlink()
            return 0
        known += 1
    with file.open("r+b") as lines:  # what a kill left of the last line
        lines.truncate(len(whole) + 1 if whole else 0)
    return known


def _lines(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def best(numbers: Numbers, ties: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which rows are the best ones: this share of those with a number, rounded, and at least one.

    Of equal numbers the lower tie is better, so that what is chosen does not hang on the order.
    """
    count = max(1, round(share * int((~np.isnan(numbers)).sum())))
    chosen = np.zeros(len(numbers), bool)
    chosen[np.lexsort((ties, -numbers))[:count]] = True  # nan comes last
    return chosen


def ranks(numbers: Numbers) -> Numbers:
    """Of every row, the share of those with a number whose number is no higher; 0 without one."""
    there = np.sort(numbers[~np.isnan(numbers)])
    found = np.searchsorted(there, numbers, side="right") / len(there)
    return np.where(np.isnan(numbers), 0.0, found)

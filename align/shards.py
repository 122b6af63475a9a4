"""Work in shards: a kill loses at most the shard in hand, and going on gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from align.out import Out

Row = dict[str, Any]


def make(
    out: Out, shards: Iterable[list[Row]], work: Callable[[int, list[Row]], Iterable[Row]]
) -> None:
    """Write `data/shard-00000.jsonl` and so on, one for every shard that is not there yet.

    Args:
        out: of the stage.
        shards: the rows each shard is made from. A file that is there with other ids (shards were
            of another size before) is made anew.
        work: makes a shard's rows, with the same ids in the same order, from its number and rows.
    """
    made = set()
    for number, rows in enumerate(shards):
        name = f"shard-{number:05d}"
        file = out.path / "data" / f"{name}.jsonl"
        made.add(file)
        if not file.is_file() or _ids(file) != [row["id"] for row in rows]:
            out.write_rows(work(number, rows), name)
    for stray in set((out.path / "data").glob("*.jsonl")) - made:
        stray.unlink()


def cut(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Rows in lists of `size`, one list at a time."""
    iterator = iter(rows)
    while shard := list(islice(iterator, size)):
        yield shard


def _ids(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as lines:
        return [str(json.loads(line)["id"]) for line in lines]

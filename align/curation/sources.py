"""The sources of `curate`, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from align import data
from align.artifacts import Prompts, Rows
from align.curation.rules import set_aside
from align.data import Row, Source
from align.out import Out
from align.seen import Seen
from align.sources.raw import name_of


def stage(source: Rows | Source) -> Rows | None:
    """The stage that a source is, if it is one."""
    return source if isinstance(source, Rows) else source.stage


def name(source: Rows | Source) -> str:
    """What a person calls it."""
    if isinstance(source, Rows) or source.stage is not None:
        made = stage(source)
        assert made is not None
        return made.name or made.key
    return name_of(source)


def rows(
    sources: Sequence[Rows | Source], kind: type[Rows], seed: int, out: Out
) -> Iterator[tuple[int, Row]]:
    """Every row of every source, with the source's number; its name is in the row."""
    with closing(Seen()) as seen:
        several = len(sources) > 1  # else the ids are unique
        for number, source in enumerate(sources):
            called = name(source)
            for n, row in enumerate(data.read(source, kind, out, seed)):
                identity = seen.unique(row["id"]) if several else row["id"]
                row = {**row, "id": identity, "source": row.get("source", called)}
                yield number, set_aside(row) if issubclass(kind, Prompts) else row
                if n % 1000 == 0:
                    out.progress(number, len(sources), "sources", f"{called}, row {n:,}")

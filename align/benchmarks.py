"""Rows of published benchmarks, which have to have the columns that a task reads."""

from __future__ import annotations

from collections.abc import Iterator

from align import data
from align.data import Row, Source
from align.errors import StageFailed

_WORDS = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}

_LEARNT = {"weight", "count", "without", "format", "strength", "best"}
"""Keys of a source that say which rows of a known form are read."""


def rows(source: Source, **columns: type) -> Iterator[Row]:
    """The rows of a source, as they are; each has these columns, of these types.

    Raises:
        StageFailed: a row lacks one, or has something else in it; the source has keys for rows that
            a stage learns from; or see `data.rows`.
    """
    where = source.path or "The data"
    keys = source.model_dump(include=_LEARNT, exclude_defaults=True)
    if keys:
        raise StageFailed(
            f"{where}: a benchmark is read as it is, without {', '.join(keys)}. Leave that out; "
            "`split: test[:100]` reads the first 100 rows."
        )
    for number, row in enumerate(data.rows(source), 1):
        for name, kind in columns.items():
            if isinstance(row.get(name), kind):
                continue
            fact = (
                f'the column "{name}" is {row[name]!r:.60}, not {_WORDS[kind]}'
                if name in row
                else f'there is no column "{name}", only {", ".join(row)}'
            )
            raise StageFailed(
                f"{where}, row {number}: {fact}. Take the benchmark's own data, or make it: "
                f'data: {{path: …, columns: {{{name}: "{{…}}"}}}}.'
            )
        yield row

"""Rows of a source as they are, whatever they mean, and who hears of those that are dropped."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import Any

from align.artifacts import Rows
from align.errors import StageFailed
from align.formats.tables import written
from align.out import Out
from align.sources import files, loading, local
from align.sources.source import WHERE, Source

Row = dict[str, Any]

Told = Callable[[str, Row], None]
"""Hears why a row is dropped, and what it is."""

_TOLD: ContextVar[Told | None] = ContextVar("told", default=None)


@contextmanager
def telling(told: Told | None) -> Iterator[None]:
    """Rows are read in here without an `out`: tell why each one is dropped, and what it is."""
    before = _TOLD.set(told)
    try:
        yield
    finally:
        _TOLD.reset(before)


def teller(out: Out | None) -> Told | None:
    """Who hears of what is dropped: the artifact's counts, or whoever is `telling`."""
    if out is None:
        return _TOLD.get()
    return lambda why, row: out.count(f"dropped.{why}", example=row)


def name_of(source: Source) -> str:
    """What a source is called in messages."""
    if source.stage is not None:
        return source.stage.key
    files = source.data_files
    return f"{source.path} {files}" if files else str(source.path)


def rows(source: Source, told: Told | None = None) -> Iterator[Row]:
    """The rows of a source as they are, all of them, with the columns that `columns:` makes.

    Raises:
        StageFailed: there is no data, or it cannot be read.
    """
    name = name_of(source)
    found = map(written, _columns(_raw(source, told or _TOLD.get()), source.columns, name))
    first = next(found, None)
    if first is None:
        raise StageFailed(f"{name} is empty. Look at its path, split and slice.")
    return chain([first], found)


def _raw(source: Source, told: Told | None) -> Iterator[Row]:
    if source.stage is not None:
        return source.stage.rows()
    name, folder = name_of(source), Path(str(source.path)).expanduser()
    if (folder / "artifact.json").is_file():
        return Rows(folder).rows()
    try:
        named = local.named(source)
    except FileNotFoundError as error:
        raise StageFailed(f'{name}: "data_files": there is no file "{error}".') from None
    parts = _parts(source, folder, named)
    if parts is None:
        asked = source.model_dump(include=WHERE | {"streaming"})
        if folder.is_dir():
            asked["path"] = str(folder.absolute())  # a folder called `json` is no loader
        if named:
            # `datasets` looks for names in the folder, and these begin with it
            there = {split: [_absolute(file) for file in each] for split, each in named.items()}
            asked |= {"data_files": there, "data_dir": None}
        return map(files.plain, loading.load(name, **asked))

    def broken(number: int, fact: str, begins: str) -> None:
        if told is not None:
            told("broken_line", {"source": name, "line": number, "fact": fact, "begins": begins})

    drop = broken if source.broken == "drop" else None
    return chain.from_iterable(
        files.sliced(paths, part, drop) if "[" in part else files.rows(paths, drop)
        for part, paths in parts
    )


def _absolute(file: str) -> str:
    return str(Path(file).absolute()) if Path(file).is_file() else file


_OURS = ("json", "csv", "parquet")
"""Loaders of `datasets` that are not needed for local files: these are read without a cache."""


def whole(split: str) -> str:
    """A split without its slices: "test[:9]+train[9:]" is "test+train"."""
    return "+".join(part.partition("[")[0].strip() for part in split.split("+"))


def _parts(
    source: Source, folder: Path, named: Mapping[str, list[str]]
) -> list[tuple[str, list[Path]]] | None:
    """What `split` adds up, a split or a slice each, with its local files; None where `datasets`
    reads them.
    """
    if named:
        splits = {split: [Path(file) for file in each] for split, each in named.items()}
    elif source.data_files:
        return None
    elif folder.is_file():
        splits = {"train": [folder]}
    elif _is_plain(folder) and not source.name:
        splits = loading.folder_files(folder / (source.data_dir or ""))
    else:
        return None
    parts = []
    for part in splits if source.split == "all" else source.split.split("+"):
        if (split := whole(part)) not in splits:
            have = f"It has {', '.join(splits)}."
            raise StageFailed(f'{name_of(source)} has no split "{split}". {have}')
        parts.append((part.strip(), splits[split]))
    found = [file for _, each in parts for file in each]
    plain = all(file.is_file() and files.format_of(file) in files.SUFFIXES for file in found)
    if named and not (plain and (source.path in _OURS or folder.is_dir())):
        return None
    return parts


def _is_plain(folder: Path) -> bool:
    """Whether a folder holds data files, and no card that says which of them are what."""
    if not folder.is_dir() or (folder / "README.md").is_file():
        return False
    return any(files.format_of(file) in files.SUFFIXES for file in local.below(folder))


def _columns(rows: Iterator[Row], templates: Mapping[str, str], name: str) -> Iterator[Row]:
    """Rows with the columns that `columns:` makes; "{x}" or "{x[y]}" alone is that as it is."""
    if not templates:
        yield from rows
        return
    for number, row in enumerate(rows, 1):
        made = {}
        texts = {key: "" if value is None else value for key, value in row.items()}
        for column, template in templates.items():
            alone = re.fullmatch(r"\{(\w[^{}]*)\}", template)
            one = alone[1] if alone else ""
            try:
                if one in row:
                    made[column] = row[one]
                elif re.fullmatch(r"[^.!:]+\[[^!:]+\]", one):
                    made[column] = string.Formatter().get_field(one, (), row)[0]
                else:
                    made[column] = template.format(**texts)
            except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
                raise StageFailed(
                    f'{name}, row {number}: columns.{column} is "{template}", and {error} is no '
                    f"column. There are {', '.join(row)}."
                ) from None
        yield {**row, **made}

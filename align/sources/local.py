"""Which local files a source names: for the plan, the key of a stage and the reader alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from glob import escape, glob
from os.path import isfile
from pathlib import Path
from typing import Any

from align.sources.source import Source

LOADERS = ("json", "csv", "parquet", "text", "arrow", "xml", "webdataset")
"""What `path` may say in a data source when `data_files` names the files."""


def named(source: Source) -> dict[str, list[str]]:
    """What `data_files` names (patterns are allowed) in each split, local files as they lie here.

    With a folder as `path` they are names in there, with a loader from the working directory on.
    A name with `://`, or with a variable that is not set, stays as it is. Of a hub id: nothing.

    Raises:
        FileNotFoundError: a name or a pattern leads to no file; the message is the name.
    """
    base = _base(source)
    if source.data_files is None or base is None:
        return {}
    names: Any = source.data_files
    splits = names if isinstance(names, dict) else {"train": names}
    return {
        split: [file for name in _flat(value) for file in _files(base, name)]
        for split, value in splits.items()
    }


def data_files(source: Source) -> list[Path]:
    """The local files that `data_files` names, in order.

    Raises:
        FileNotFoundError: see `named`.
    """
    names = (name for split in named(source).values() for name in split)
    return [Path(name) for name in names if not _is_elsewhere(name)]


def below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Every file below a folder, through links to folders too: `datasets` follows some.

    A link up leads to all that lies around the folder, the store perhaps: nobody reads that.
    """
    real = folder.resolve()
    if any(one.is_relative_to(real) for one in above):
        return
    try:
        found = list(folder.iterdir())
    except PermissionError:  # the reader finds nothing in there either
        return
    for path in found:
        if path.is_dir():
            yield from below(path, (*above, real))
        elif path.is_file():
            yield path


def _base(source: Source) -> str | None:
    """Where the names in `data_files` begin; None where that is not on this machine."""
    path = os.path.expanduser(source.path or "")
    beside = os.path.expanduser(source.data_dir or "")
    if os.path.isdir(path):
        return os.path.join(path, beside)
    return beside if source.path in LOADERS else None


def _files(base: str, name: str) -> list[str]:
    if _is_elsewhere(name):
        return [name]
    name = os.path.expanduser(name)
    if isfile(path := os.path.join(base, name)):  # whose name may have brackets
        return [path]
    pattern = os.path.join(escape(base), name)
    files = [file for file in sorted(glob(pattern, recursive=True)) if isfile(file)]
    if not files:
        raise FileNotFoundError(name)
    return files


def _is_elsewhere(name: str) -> bool:
    return "://" in name or "${env:" in name


def _flat(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)

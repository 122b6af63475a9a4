"""Data that the library `datasets` finds and loads: hub ids, folders, its other loaders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from align.errors import StageFailed
from align.sources.files import SUFFIXES, format_of

Row = dict[str, Any]


def folder_files(folder: Path) -> dict[str, list[Path]]:
    """The data files of the splits of a folder, by the names that `datasets` knows splits by.

    Raises:
        StageFailed: there are none, or files of several formats.
    """
    from datasets.data_files import DataFilesDict, get_data_patterns

    try:
        patterns = get_data_patterns(str(folder))
        found = DataFilesDict.from_patterns(patterns, base_path=str(folder))
    except (OSError, ValueError) as error:
        fact = str(error).strip().splitlines()[0].rstrip(".")
        raise StageFailed(f"{folder} cannot be read: {fact}. Look at its files.") from None
    splits = {
        str(name): [Path(file) for file in files if format_of(Path(file)) in SUFFIXES]
        for name, files in found.items()
    }
    splits = {name: files for name, files in splits.items() if files}
    if not splits:
        raise StageFailed(f"{folder} holds no data, whose names end in {', '.join(SUFFIXES)}.")
    formats = {format_of(file) for files in splits.values() for file in files}
    if len(formats) > 1:
        raise StageFailed(
            f"{folder} holds files of several formats ({', '.join(sorted(formats))}). "
            'Name those you mean: data_files: "*.jsonl".'
        )
    return splits


def load(called: str, *, streaming: bool, split: str, **keys: Any) -> Iterator[Row]:
    """The rows of what `datasets.load_dataset` loads.

    Args:
        called: the source, in messages.
        streaming: rows come while they are fetched, and nothing is kept on the disk.
        split: with an optional slice; of a stream one of whole numbers, `train[1000:2000]`.
        keys: of `load_dataset`.

    Raises:
        StageFailed: it is not there, or cannot be loaded or sliced.
    """
    import datasets

    at = slice(None)
    if streaming:
        split, at = _stream_slice(called, split)
    try:
        loaded = datasets.load_dataset(split=split, streaming=streaming, **keys)
        yield from islice(loaded, at.start, at.stop)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise StageFailed(_cannot(called, str(keys["path"]), error)) from error
    except StopIteration:  # what datasets 5.2 says of an empty file
        raise StageFailed(f"{called} is empty. Look at its files.") from None


def _stream_slice(name: str, split: str) -> tuple[str, slice]:
    found = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", split)
    if found is None:
        raise StageFailed(
            f'{name}: split "{split}" cannot be taken of a stream, whose length is not known. '
            "Say it in rows, as in train[1000:2000], or leave `streaming` out."
        )
    start, stop = (int(number) if number else None for number in found.groups()[1:])
    return found[1], slice(start, stop)


def _cannot(name: str, path: str, error: Exception) -> str:
    fact = str(error).strip().splitlines()[0].rstrip(".") if str(error) else repr(error)
    where = "Look at path, name, split and data_files"
    if path.count("/") == 1 and not Path(path).expanduser().exists():
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            fact = "it is not in the hub's cache here, and this machine is offline"
        where = "Look at its name on the hub, fetch it while connected, or name a file"
    return f"{name} cannot be read: {fact}. {where}."

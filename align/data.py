"""Data as recipes name it, and rows as stages see them.

A source is an earlier stage, a path or a block with the keys of `datasets.load_dataset` and ours.
Whatever its form, a stage sees rows of the normal form of the type it asks for (artifacts.py).
"""

from __future__ import annotations

from typing import Any

from align.artifacts import Rows
from align.settings import Settings


class Source(Settings):
    """One source of rows: `stage:` or the keys of `datasets.load_dataset`, plus ours."""

    stage: Rows | None = None
    """An earlier stage."""

    path: str | None = None
    """A file, a directory, a hub id or a loader (`json`, `csv`, `parquet`, `text`)."""

    name: str | None = None
    data_dir: str | None = None
    data_files: str | list[str] | dict[str, Any] | None = None
    split: str = "train"
    """A split with an optional slice: `train`, `train[:1000]`, `train[10%:]`."""

    revision: str | None = None

    columns: dict[str, str] = {}
    """Our column: a template over the source's columns, `prompt: "{instruction}\\n{input}"`."""

    weight: float = 1.0
    """How often each row is seen: 2 repeats every row, 0.5 draws half of them by seed."""

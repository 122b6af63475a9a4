"""A data source as recipes write it."""

from __future__ import annotations

import string
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from align import forms
from align.artifacts import Conversations, Preferences, Prompts, Rows
from align.formats.strength import Level
from align.settings import Settings

WHERE = {"path", "name", "data_dir", "data_files", "split", "revision"}
"""The keys of a source that say where its rows are, and nothing of which are read."""


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

    streaming: bool = False
    """Read a hub data set while it comes, and keep nothing of it on the disk."""

    format: str | None = None
    """The form of the rows, by name, where it shall not be recognised: `trees`, `pairs` …"""

    columns: dict[str, str] = {}
    """Our column: a template over the source's columns, `prompt: "{instruction}\\n{input}"`."""

    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """How often each row is seen: 2 repeats every row, 0.5 draws half of them by seed."""

    count: int | None = Field(None, ge=1)
    """In place of a weight: so many rows, drawn by seed. No more than there are."""

    without: list[Prompts | Conversations | Preferences | Source] = []
    """Rows whose prompt is also in one of these are left out, and counted."""

    strength: list[Level] | None = None
    """Which levels of preference are read, where rows say one: the two strongest unless told."""

    best: int | None = Field(None, ge=1)
    """Of conversation trees: only answers of the best ranks are read, 1 for the best alone."""

    broken: Literal["stop", "drop"] = "stop"
    """What a line that cannot be read does: stop the stage, or be left out and counted."""

    @field_validator("columns")
    @classmethod
    def _templates(cls, columns: dict[str, str]) -> dict[str, str]:
        for column, template in columns.items():
            try:
                list(string.Formatter().parse(template))
            except ValueError as error:
                raise ValueError(f'columns.{column} is "{template}": {error}.') from None
        return columns

    @field_validator("format")
    @classmethod
    def _known(cls, format: str | None) -> str | None:
        if format is not None:
            forms.check_name(format)
        return format

    @model_validator(mode="after")
    def _one_of(self) -> Source:
        if self.count is not None and self.weight != 1.0:
            raise ValueError('"count" and "weight" both say how many rows: leave one of them out.')
        return self

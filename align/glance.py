"""A look at the first rows of local data, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from align import forms
from align.annotations import Annotation
from align.artifacts import Artifact, Rows
from align.data import Source
from align.errors import StageFailed
from align.settings import Stage
from align.sources import files, raw

WHOLE = 16 * 2**20
"""Bytes of a .json that is looked at, at most: it is read whole, and more takes long."""


def form_of(source: Source, wanted: Sequence[type[Artifact]], any_file: bool) -> str | None:
    """What the rows of a local file are, by its first one; None where a stage will see that.

    Where not rows of one type are wanted the first one need only be there. Unless `any_file`, only
    files are read whose first line is their first row, which costs no import.

    Raises:
        StageFailed: there is no such split, the row cannot be read, or is nothing that is wanted.
    """
    kinds = [kind for kind in wanted if issubclass(kind, Rows)]
    file = Path(source.path or "")
    suffix = files.format_of(file)
    light = suffix in (".jsonl", ".ndjson", ".csv", ".tsv") and file.suffix != ".zst"
    if not (light or (any_file and suffix in files.SUFFIXES)) or not file.is_file():
        return None
    if suffix == ".json" and file.stat().st_size > WHOLE:
        return None
    whole = source.model_copy(update={"split": raw.whole(source.split)})
    first, columns = next(raw.rows(whole)), source.columns
    if len(kinds) != 1:
        return None
    return forms.recognise(first, kinds[0], str(file), source.format, columns).words


def sources(
    stage: Stage, made: type[Artifact]
) -> Iterator[tuple[str, Source, Sequence[type[Artifact]]]]:
    """A stage's own sources: where each stands, and what its rows may be, of several types the one
    that the stage makes.
    """
    for key, field in type(stage).model_fields.items():
        value = getattr(stage, key)
        several = Annotation.of(field.annotation, field.metadata)
        wanted = Annotation.of(several.items).artifacts if several.items else several.artifacts
        for i, source in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(source, Source):
                yield f"{key}.{i}", source, (made,) if made in wanted else wanted


def unreadable(stage: Stage, made: type[Artifact], any_file: bool) -> Iterator[tuple[str, str]]:
    """(key, message) of sources whose first rows are nothing that the stage can take."""
    for key, source, wanted in sources(stage, made):
        try:
            form_of(source, wanted, any_file)
        except StageFailed as failure:
            yield key, str(failure)

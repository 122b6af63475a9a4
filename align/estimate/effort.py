"""How much a stage has to do, and how long: tokens by its data, time by a run of its like."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import records, store
from align.artifacts import Artifact, Rows, read_json
from align.data import Source
from align.errors import RecipeError, StageFailed
from align.estimate import totals
from align.shapes import Unknown

if TYPE_CHECKING:
    from align.recipe import Planned

BYTES = 3.94
"""Characters of English in a token of Llama 3's vocabulary (arXiv 2407.21783, §3.2)."""

TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
"""Files whose size tells how much text is in them."""


@dataclass(frozen=True)
class Effort:
    """What a stage has to do."""

    tokens: float | None = None
    exact: bool = False
    rows: float | None = None
    seconds: float | None = None
    like: str = ""
    """The run that `seconds` comes from; empty where it is the stage's own."""


def of(planned: Planned) -> Effort:
    """What a stage has to do or, where it is done, what it did."""
    path, what, use = planned.artifact.path, planned.stage, planned.record["use"]
    if store.state(path) == "done":
        tokens, seconds = _did(path)
        return Effort(tokens, tokens is not None, None, seconds)
    tokens, exact, rows = _ahead(what, use)
    if tokens is None:
        return Effort(rows=rows)
    for like in sorted(path.parent.glob(f"{planned.kind}-*/artifact.json")):
        did, seconds = _did(like.parent)
        if did and seconds and _alike(what, use, like.parent):
            return Effort(tokens, exact, rows, seconds * tokens / did, like.parent.name)
    return Effort(tokens, exact, rows)


def _did(path: Path) -> tuple[float | None, float | None]:
    """(tokens, seconds) of a finished stage."""
    manifest = read_json(path / "artifact.json")
    counted = manifest.get("counts", {}).get("tokens", {}).get("n")
    if (path / "metrics.json").is_file():
        counted = read_json(path / "metrics.json").get("tokens", counted)
    return counted, manifest.get("seconds")


def _alike(what: Any, use: str, path: Path) -> bool:
    """Whether a finished stage did the same to as large a model: then tokens take as long."""
    try:
        record = read_json(path / "stage.json")
        other = records.restore(record, path.parent)
        return bool(record["use"] == use and totals.work(what, use) == totals.work(other, use))
    except (RecipeError, StageFailed, Unknown):
        return False


def _ahead(what: Any, use: str) -> tuple[float | None, bool, float | None]:
    """(tokens, whether they are exact, rows) of a stage that is to do."""
    if use == "score":
        return *_of_artifact(what.samples), None
    if use == "sample":
        drawn = _sum(_rows(source) for source in what.prompts)
        return None, False, drawn and drawn * what.most
    if use == "curate":
        return _sum(map(_tokens, what.data)), False, _sum(map(_rows, what.data))
    if use not in totals.CONFIGS:
        return None, False, None
    if what.trainer.get("max_steps", -1) > 0:
        return None, False, what.trainer["max_steps"] * what.batch_size
    epochs = what.trainer.get("num_train_epochs", totals.default(use, "num_train_epochs"))
    rows = _sum(_rows(source) for source in what.data)
    tokens = _sum(_tokens(source) for source in what.data)
    return tokens and tokens * epochs, False, rows and rows * epochs


def _sum(numbers: Iterable[float | None]) -> float | None:
    """The sum; None where one of them is not known."""
    found = list(numbers)
    return None if None in found else sum(number for number in found if number is not None)


def _rows(source: Rows | Source) -> float | None:
    """The rows of a source whose slice says how many it has."""
    if isinstance(source, Rows):
        return None
    if source.count is not None:
        return source.count
    part = re.fullmatch(r"\w+\[(\d*):(\d+)\]", source.split)
    return (int(part[2]) - int(part[1] or 0)) * source.weight if part else None


def _tokens(source: Rows | Source) -> float | None:
    """The tokens of a source, by the size of its files."""
    if isinstance(source, Rows):
        return _of_artifact(source)[0]
    if source.count is not None:
        return None
    if source.stage is not None:
        tokens = _of_artifact(source.stage)[0]
        return tokens and tokens * source.weight
    files = records.data_files(source) or [Path(str(source.path)).expanduser()]
    if "[" in source.split or not all(file.is_file() and file.suffix in TEXT for file in files):
        return None
    return sum(file.stat().st_size for file in files) / BYTES * source.weight


def _of_artifact(artifact: Artifact) -> tuple[float | None, bool]:
    """(tokens, whether they were counted) of rows in the store."""
    if not isinstance(artifact, Rows) or store.state(artifact.path) != "done":
        return None, False
    counted, _ = _did(artifact.path)
    if counted is not None:
        return counted, True
    return sum(file.stat().st_size for file in artifact.files()) / BYTES, False

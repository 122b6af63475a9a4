"""Which files can be looked through: of a stage, of what it is trained on, of a task's items."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from align import records, results, store
from align.artifacts import Model, Report, Rows, Samples, read_json
from align.errors import StageFailed
from align.reporting import curated, learnt, listing, view
from align.reporting.index import FORM, File, Index, Row
from align.reporting.jobs import Jobs, Progress
from align.reporting.listing import Form

if TYPE_CHECKING:
    from align.recipe import Plan, Planned

TRAINED_ON = 1000
"""How many of the rows that a stage is trained on are shown: they are mixed and read for it."""

KEPT, REMOVED = "kept", "removed"
"""The two lists of a stage that says which rows it removed."""


@dataclass(frozen=True)
class Place:
    """A list: a stage's rows, those it is trained on, or the items of one of its tasks."""

    one: Planned
    task: str
    form: Form
    normal: Callable[[Row], Row]
    """What is in a line as the page shows it."""

    files: list[File]


class Places:
    """The lists of a recipe and their indexes, as they are now."""

    def __init__(self, plan: Plan) -> None:
        self.jobs = Jobs()
        self._plan = plan
        self._folder = plan.store / ".cache" / "view"
        there = next(path for path in (self._folder, *self._folder.parents) if path.is_dir())
        self._elsewhere = not os.access(there, os.W_OK)  # someone else's store
        if self._elsewhere:
            self._folder = Path(tempfile.mkdtemp(prefix="align-view-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._indexes: dict[str, Index] = {}

    def of(self, stage: str, task: str) -> Place:
        """The list of a stage; of an evaluation that of a task, else of its first.

        Raises:
            StageFailed: there is no such stage, or nothing of it.
            Waiting: what a stage is trained on is being mixed.
        """
        one = self._plan.stages.get(stage)
        if one is None:
            raise StageFailed("There is no such stage in this recipe.")
        known = tasks(one)
        if not isinstance(one.artifact, Report):
            if task == REMOVED and task in known:
                files = [File(path) for path in _removed(one)]
                return Place(one, task, listing.REMOVED, view.as_dialog, files)
            return replace(self.rows(one), task=known[0] if known else "")
        if not known:
            raise self._nothing(one)
        task = task if task in known else known[0]
        found = (root / "items" / task for root in _roots(one.artifact.path))
        files = [File(file, file.stem) for path in found for file in sorted(path.glob("*.jsonl"))]
        order = _models(one)
        files.sort(key=lambda file: order.index(file.part) if file.part in order else len(order))
        return Place(one, task, listing.ITEMS, dict, files)

    def rows(self, one: Planned) -> Place:
        """All rows that a stage has made, or the first of those that it is trained on."""
        if isinstance(one.artifact, Rows):
            if not (files := _files(one.artifact)):
                raise self._nothing(one)
            kind = type(one.artifact)
            return self._place(one, kind, listing.form(kind), files)
        if (trained := view.trained_on(one.stage)) is None:
            raise StageFailed("This stage is trained on no rows and makes none.")
        file = self._folder / one.artifact.key / "read.jsonl"
        if not file.is_file():
            what = f"mixing what {one.name} is trained on"
            self.jobs.result(what, ("mix", one.name), partial(self._mix, one, file))
        return self._place(one, trained, listing.trained(trained), [file])

    def _place(self, one: Planned, kind: type[Rows], form: Form, files: list[Path]) -> Place:
        return Place(one, "", form, partial(view.normal, kind=kind), [*map(File, files)])

    def index(self, place: Place) -> Index:
        """A list's index, which knows all its files.

        Raises:
            Waiting: it is being made.
        """
        name = "-".join(filter(None, (place.one.artifact.key, place.task, f"{FORM}.sqlite")))
        made = Index(self._folder / name, place.normal, place.form.facts)
        index = self._indexes.setdefault(name, made)
        work = ("read", name)
        if self.jobs.has(work) or index.stale(place.files):
            try:
                self.jobs.result(f"reading {place.one.name}", work, index.refresh)
            except StageFailed as error:
                raise StageFailed(f"{place.one.name}: {error}") from None
        return index

    def notes(self, one: Planned) -> list[str]:
        """What to know about a list beside its rows."""
        found = ["the first that it is trained on"] if trains(one) else []
        if self._elsewhere:
            found.append(f"{self._plan.store} cannot be written: the index is in {self._folder}")
        return found

    def takers(self, one: Planned) -> list[Planned]:
        """The stages that chose among a stage's answers."""
        return [
            other
            for other in self._plan.stages.values()
            if isinstance(other.artifact, Rows)
            and not isinstance(other.artifact, Samples)
            and any(artifact.key == one.artifact.key for artifact in other.inputs)
            and _files(other.artifact)
        ]

    def _mix(self, one: Planned, file: Path, progress: Progress) -> None:
        """Write the first rows that a stage is trained on, with the tokens it reads as `read`."""
        kind, rows = view.rows_of(self._plan, one)
        see = learnt.see(one, kind)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as out:
            for i, row in enumerate(islice(rows, TRAINED_ON)):
                more = {"read": see(row).row()} if see else {}
                out.write(json.dumps({**row, **more}, ensure_ascii=False) + "\n")
                progress(i, TRAINED_ON)
        temporary.replace(file)

    def _nothing(self, one: Planned) -> StageFailed:
        command = f"align run {self._plan.path} {one.name}"
        return StageFailed(f"Nothing is made yet. Make it: {command}")


def trains(one: Planned) -> bool:
    """Whether a stage's list is of what it is trained on."""
    return not isinstance(one.artifact, (Rows, Report)) and view.trained_on(one.stage) is not None


def tasks(one: Planned) -> list[str]:
    """The lists of a stage where it has several: the tasks of which an evaluation has items, in the
    report's order where there is one; the rows that are kept and those that are removed."""
    if not isinstance(one.artifact, Report):
        return [KEPT, REMOVED] if _removed(one) else []
    found = (root.glob("items/*/") for root in _roots(one.artifact.path))
    order = [each["task"] for each in _report(one).get("tasks", ())]
    names = sorted({path.name for paths in found for path in paths})
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _models(one: Planned) -> list[str]:
    """What the files of an evaluation's models are called, in the order they are asked in."""
    if files := _report(one).get("files"):
        return list(files)
    asked = [model for model in records.consumed(one.stage) if isinstance(model, Model)]
    return [results.file_of(model) for model in asked]


def _report(one: Planned) -> Row:
    """An evaluation's report; nothing of one that still runs."""
    file = one.artifact.path / "report.json"
    return read_json(file) if file.is_file() else {}


def _files(rows: Rows) -> list[Path]:
    """The files of an artifact, or those that are there while it is made."""
    return next(filter(None, (type(rows)(root).files() for root in _roots(rows.path))), [])


def _removed(one: Planned) -> list[Path]:
    """The file of the rows that a stage removed, if it says which."""
    found = (root / curated.REMOVED for root in _roots(one.artifact.path))
    return [file for file in found if file.is_file()][:1]


def _roots(path: Path) -> list[Path]:
    """Where an artifact lies: done, or being made."""
    return [root for root in (path, store.partial(path)) if root.is_dir()]

"""How a model came to be, as far as its store knows: stages, data, the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from align import hub, recipe, records, shelf, store
from align.artifacts import read_json
from align.data import Source
from align.errors import RecipeError, StageFailed
from align.publishing import places, plain
from align.publishing.places import Place
from align.spec import Base, is_adapter

Entry = dict[str, Any]

QUESTIONS = "only to remove its questions"
"""What `decontaminate` reads a task's data for."""

GONE = "changed or gone since"


@dataclass(frozen=True)
class Step:
    """A stage that was run on the way to a model."""

    path: Path
    record: Entry
    """`stage.json`: what was asked."""

    about: Entry
    """`artifact.json`: what came of it."""

    @property
    def name(self) -> str:
        """What its recipe calls it."""
        return str(self.record["name"])

    @property
    def kind(self) -> str:
        """`sft`, `dpo` …"""
        return str(self.record["kind"])

    @property
    def parent(self) -> str | None:
        """The key of the model it trained, merged, or averaged first."""
        asked = self.record["settings"]
        model = asked.get("model") or next(iter(asked.get("models") or ()), None)
        return model.get("artifact") if isinstance(model, dict) else None


@dataclass(frozen=True)
class Lineage:
    """Every stage before a model, each after what it consumed, the model's own last."""

    steps: tuple[Step, ...]
    gone: tuple[str, ...]
    """Keys of artifacts that are no longer in the store."""

    @property
    def line(self) -> list[Step]:
        """The models on the way, the first one first: each was made from the one before."""
        known = {step.path.name: step for step in self.steps}
        found = list(self.steps[-1:])
        while found and (before := known.get(found[-1].parent or "")):
            found.append(before)
        return found[::-1]

    @property
    def adapter(self) -> Place | None:
        """The adapter of the hub that the first model went on from, if it is one."""
        asked = self.line[0].record["settings"].get("model") if self.line else None
        if not asked or "model" not in asked:
            return None
        base = Base.model_validate(asked["model"])
        if Path(base.path).is_dir():
            return places.of(base) if is_adapter(Path(base.path)) else None
        cached = hub.snapshot("model", base.path, base.revision)
        spec = read_json(self.line[0].path / "model.json")
        on_another = spec["adapter"] and spec["base"]["path"] != base.path  # known without a cache
        found = on_another or (cached and is_adapter(cached))
        return Place(base.path, base.revision) if found else None


@dataclass(frozen=True)
class Data:
    """Data from outside the store that a stage read."""

    stage: str
    name: str
    """A hub id, or the file's name."""

    part: str
    """Configuration and split."""

    version: str
    """The hub's commit, or the sha256 of the file; in words where it is not known."""

    hub: bool

    only: str = ""
    """What it was read for, where no model learnt from it."""


def of(path: Path) -> Lineage:
    """The lineage of an artifact; without steps where no stage made it."""
    steps: dict[str, Step] = {}
    gone: dict[str, None] = {}

    def visit(at: Path) -> None:
        if at.name in steps or at.name in gone:
            return
        if not (at / store.MANIFEST).is_file():
            gone[at.name] = None
            return
        record = read_json(at / "stage.json")
        for key in record["inputs"]:
            visit(at.parent / key)
        steps[at.name] = Step(at, record, store.manifest(at))

    if (path / store.MANIFEST).is_file():
        visit(path)
    return Lineage(tuple(steps.values()), tuple(gone))


def data(lineage: Lineage) -> list[Data]:
    """The data that the stages read, each once for a stage."""
    return [one for step in lineage.steps for one in _data(step)]


def names(value: Any) -> Iterator[str]:
    """What files are called, or data of the hub, as `path` and `data_files` have them."""
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from names(inner)
    else:
        yield plain.file(str(value))


def on_hub(source: Entry) -> bool:
    """Whether recorded data came from the hub: the reader of recipes notes their commit."""
    path = str(source.get("path"))
    return bool(source.get("revision")) and path.count("/") <= 1 and not records.is_path(path)


def text(step: Step) -> tuple[str, list[str]] | str:
    """The recipe's text and the overrides it was run with; else why the card cannot have them."""
    asked = step.record
    path = shelf.find(asked["recipe_file"]) if "recipe_file" in asked else None
    if path is None:
        return "The recipe's file is not where it was run any more."
    try:
        plan = recipe.read(path, asked["overrides"], step.path.parent)
    except RecipeError:
        return "The recipe's file, or something it names, is changed or gone."
    made = plan.stages.get(step.name)
    if made is None or made.artifact.key != step.path.name:
        return "The recipe's file makes something else now."
    shown = plain.recipe(path.read_text(encoding="utf-8-sig"), plan.overrides)
    return shown or "The recipe's file says on which machines it runs."


def _data(step: Step) -> Iterator[Data]:
    same = _unchanged(step)
    asked = step.record["settings"]
    tasks = asked.get("decontaminate") or []  # their questions are looked for in the others
    learnt = {key: value for key, value in asked.items() if key != "decontaminate"}
    found = [(source, "") for source in _sources(learnt)]
    for source, only in (*found, *((source, QUESTIONS) for source in _sources(tasks))):
        part = " ".join(source[key] for key in ("name", "split") if source.get(key))
        files = _files(source)
        if files is None:
            version = f"revision `{source['revision']}`"
            yield Data(step.name, source["path"], part, version, hub=True, only=only)
            continue
        if not files:
            for name in names(source.get("data_files") or source["path"]):
                yield Data(step.name, name, part, GONE, hub=False, only=only)
        contents = records.Contents(step.path.parent)
        for file in files:
            known = same and file.exists()
            version = f"sha256 `{contents.of(file)}`" if known else GONE
            yield Data(step.name, file.name, part, version, hub=False, only=only)


def _sources(value: Any) -> Iterator[Entry]:
    """Data from outside that settings name."""
    if isinstance(value, list):
        for each in value:
            yield from _sources(each)
    elif isinstance(value, dict) and {"split", "columns"} <= value.keys():
        if value.get("path"):
            yield value
    elif isinstance(value, dict):
        yield from _sources(list(value.values()))


def _files(source: Entry) -> list[Path] | None:
    """The local files of a source as far as they are known; None for the hub's."""
    if source.get("data_files"):
        try:
            return records.data_files(Source.model_validate(source))
        except (FileNotFoundError, ValidationError):
            return []
    if on_hub(source):
        return None
    return [] if "://" in source["path"] else [Path(source["path"])]


def _unchanged(step: Step) -> bool:
    """Whether all that the stage was made from is as it was: it would have the same key now."""
    asked, root = step.record, step.path.parent
    try:
        stage = records.restore(asked, root)
        key = records.key(stage, asked["kind"], asked["attempt"], records.Contents(root))
    except (StageFailed, RecipeError, OSError, ValidationError):
        return False
    return bool(key == asked["key"])

"""Models as `align eval`, `align push` and `align chat` take them: one word on the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from align import hub, outside, shelf
from align.artifacts import Model, RewardModel, read_json
from align.errors import Problem, RecipeError
from align.reading import Reader
from align.spec import is_adapter
from align.yaml import Node

MODELS = ("Model", "RewardModel")


def model(word: str, store: Path) -> Model:
    """The model (or reward model) that a word names.

    Args:
        word: a stage's directory, the path of a model or an adapter, a hub id; or a recipe's name
            or folder, whose last model it is (see `place`).
        store: where artifacts lie.

    Raises:
        RecipeError: there is no such model, or it cannot be used; with the remedy.
    """
    reader = Reader(store, {}, strict=True)
    node = Node(place(word, store), word, word)
    read = outside.model(reader, node, (), [Model, RewardModel])
    if reader.problems or not isinstance(read, Model):
        raise RecipeError(reader.problems)
    hub.note(store, reader.resolved)
    sys.stderr.writelines(f"{sentence}\n" for sentence in reader.told)
    read.path = read.path.resolve() if read.path.is_dir() else read.path
    read.name = called(str(read.path))
    return read


def place(word: str, store: Path) -> str:
    """The word itself, or the directory of the last model where it names a recipe that was run.

    That is the last in the recipe's order that is made, no reward model, and nobody's control.

    Raises:
        RecipeError: the recipe was not run or made no model, its last model is of other settings
            than its latest finished run, or a stage is named that makes no model.
    """
    folder = _recipe(word, store)
    if folder is None:
        _refuse_rows(Path(os.path.expanduser(word)))
        return word
    report = read_json(folder / "report.json")
    reports = [report, *map(read_json, folder.glob("*/report.json"))]  # of evaluations made earlier
    compared = [one for found in reports for one in found["comparisons"]]
    controls = {one["against"] for one in compared if one["role"] == "control"}
    for stage in reversed(report["stages"]):
        path = folder / stage["name"]
        if stage["name"] in controls or _makes(path) != "Model":
            continue
        if path.resolve().name != stage["key"]:  # that run was asked for an earlier stage, or ended
            fact = f"The last model, {path}, is of other settings than the latest finished run."
            remedy = f"Make it anew (`align run {word}`), or name it by its path."
            raise RecipeError([Problem(word, "", f"{fact} {remedy}")])
        return str(path)
    message = f"This recipe has made no model yet. Run it (`align run {word}`), or name a model."
    raise RecipeError([Problem(word, "", message)])


def called(word: str) -> str:
    """What a model is called: its stage's name where it has one, else the end of its path."""
    file = Path(os.path.expanduser(word)) / "stage.json"
    return str(read_json(file)["name"]) if file.is_file() else Path(word).resolve().name


def _recipe(word: str, store: Path) -> Path | None:
    """The folder of a recipe's run: `runs/mine`, for `runs/mine`, `mine` and `mine/recipe.yaml`.

    Raises:
        RecipeError: there is the recipe, and no run of it.
    """
    path = Path(os.path.expanduser(word))
    if (path / "stage.json").is_file():
        return None  # a stage, which may be called as another recipe is
    if (path / "config.json").is_file() or is_adapter(path):
        return None  # a folder may hold a model and the recipe that made it
    if _was_run(path):
        return path
    try:
        file = shelf.recipe(path)
    except RecipeError:
        folder = store / path.name
        return folder if ("/" not in word or path.exists()) and _was_run(folder) else None
    if file.suffix not in (".yaml", ".yml"):
        return None
    if _was_run(folder := store / shelf.called(file)):
        return folder
    if path.is_dir() and file.parent.resolve() != path.resolve():
        return None  # a folder that only has the name of a recipe elsewhere
    message = f"This is a recipe that has not been run here: align run {word}"
    raise RecipeError([Problem(word, "", message)])


def _was_run(folder: Path) -> bool:
    """Whether a recipe's report lies here; that of an `evaluate` stage lies in its artifact."""
    return (folder / "report.json").is_file() and not (folder / "artifact.json").is_file()


def _refuse_rows(path: Path) -> None:
    """Refuse a stage that made no model, with the stages of its recipe that did."""
    made = _makes(path)
    if made in (None, *MODELS):
        return
    record = read_json(path / "stage.json")
    message = f"{record['name']} is a stage of the kind {record['kind']} and makes no model."
    report = path.parent / "report.json"
    stages = [one["name"] for one in read_json(report)["stages"]] if report.is_file() else []
    if beside := [name for name in stages if _makes(path.parent / name) in MODELS]:
        message += f" Models here are: {', '.join(beside)}."
    raise RecipeError([Problem(str(path), "", message)])


def _makes(path: Path) -> str | None:
    """What a stage has made, by its type's name; None where it is not made."""
    made = (path / "artifact.json").is_file()
    return str(read_json(path / "stage.json")["makes"]) if made else None

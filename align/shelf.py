"""Files that recipes name by path: first in the working directory, then on the shelf.

`recipes/`, `reward/` and `eval/` are shelves and not packages: nothing imports them, so they cannot
collide with a user's own `eval` package. A wheel carries a copy of them.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import sys
import traceback
from functools import cache
from pathlib import Path

from align.errors import Problem, RecipeError
from align.settings import Reward, Settings, Stage, Task

_HERE = Path(__file__).parent
SHELF = _HERE / "_shelf" if (_HERE / "_shelf").is_dir() else _HERE.parent
STAGES = _HERE / "stages"
SCHEMA = SHELF / "recipes" / "recipe.schema.json"

_PLURALS = {Stage: "stage", Reward: "reward", Task: "task"}
_loaded: dict[str, tuple[str, type[Settings]]] = {}


def find(path: str | Path) -> Path | None:
    """A file or directory: as named from the working directory, else on the shelf."""
    path = Path(os.path.expanduser(path))
    if os.path.exists(path):  # unlike Path.exists, False for names no system allows
        return path
    shelved = SHELF / path
    return shelved if not path.is_absolute() and os.path.exists(shelved) else None


def recipe(name: str | Path) -> Path:
    """A recipe's YAML file, from its path (without `.yaml`, too), its folder or a shipped name.

    Raises:
        RecipeError: there is none.
    """
    name = Path(os.path.expanduser(name))
    for folder in (Path(), Path("recipes"), SHELF / "recipes"):
        for path in (folder / name, folder / name / "recipe.yaml", folder / f"{name}.yaml"):
            if os.path.isfile(path):
                return path
    shipped = ", ".join(recipes())
    message = f"There is no such recipe here. Shipped ones are: {shipped}."
    if os.path.isdir(name):
        message = f"This folder holds no recipe.yaml. Name a YAML file, or one of: {shipped}."
    raise RecipeError([Problem(str(name), "", message)])


def called(path: Path) -> str:
    """What a recipe is called in the store: files beside a `recipe.yaml` begin with its folder."""
    folder = path.resolve().parent
    if path.name == "recipe.yaml":
        return folder.name
    return f"{folder.name}-{path.stem}" if (folder / "recipe.yaml").is_file() else path.stem


def recipes() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(path.parent.name for path in (SHELF / "recipes").glob("*/recipe.yaml"))


def profiles() -> list[str]:
    """The shipped launch profiles, as a recipe names them."""
    return [path.relative_to(SHELF).as_posix() for path in SHELF.glob("recipes/launch/*.yaml")]


def kinds() -> list[str]:
    """The kinds of stages this project has: the files in align/stages/."""
    return sorted(path.stem for path in STAGES.glob("[a-z]*.py"))


@cache
def shipped() -> frozenset[str]:
    """The Python files that came with this project, as the schema lists them.

    Any other file on the shelf was added by whoever owns the checkout: what it says belongs to the
    key of what it makes.
    """
    if not SCHEMA.is_file():
        return frozenset()
    return frozenset(json.loads(SCHEMA.read_text(encoding="utf-8")).get("x-shipped", ()))


def name(path: Path) -> str:
    """How a recipe names a file: relative to the working directory or to the shelf."""
    for root in (SHELF, Path.cwd()):
        if path.resolve().is_relative_to(root.resolve()):
            return path.resolve().relative_to(root.resolve()).as_posix()
    return path.resolve().as_posix()


def is_shipped(path: Path) -> bool:
    """Whether a Python file came with this project (its versions are recorded, not hashed)."""
    path = path.resolve()
    if path.is_relative_to(STAGES.resolve()):
        return True
    if not path.is_relative_to(SHELF.resolve()):
        return False
    return path.relative_to(SHELF.resolve()).as_posix() in shipped()


def source(cls: type[Settings]) -> Path:
    """The file a stage, reward or task was loaded from."""
    return Path(str(sys.modules[cls.__module__].__file__))


def load(path: Path, base: type[Settings] | None = None) -> type[Settings]:
    """The one public stage, reward or task of a file.

    Raises:
        RecipeError: the file cannot be imported, or holds none or several.
    """
    path = path.resolve()
    if path.parent == STAGES.resolve():
        return _the_class(path, f"align.stages.{path.stem}", base)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if str(path) not in _loaded or _loaded[str(path)][0] != digest:
        module = f"align_file_{hashlib.sha256(bytes(path)).hexdigest()[:8]}_{path.stem}"
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None and spec.loader is not None
        sys.modules[module] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[module])
        except Exception as error:  # it is the user's program: anything may happen there
            frames = traceback.extract_tb(error.__traceback__)
            line = next((f.lineno for f in reversed(frames) if Path(f.filename) == path), None)
            line = error.lineno if isinstance(error, SyntaxError) else line
            message = f"This file cannot be imported: {type(error).__name__}: {error}."
            raise RecipeError([Problem(f"{name(path)}:{line or 1}", "", message)]) from None
        _loaded[str(path)] = (digest, _the_class(path, module, base))
    cls = _loaded[str(path)][1]
    if base is not None and not issubclass(cls, base):
        message = f"This file holds {cls.__name__}, which is no {_PLURALS[base]}."
        raise RecipeError([Problem(name(path), "", message)])
    return cls


def _the_class(path: Path, module: str, base: type[Settings] | None) -> type[Settings]:
    bases = (base,) if base is not None else (Stage, Reward, Task)
    classes = [
        value
        for value in vars(importlib.import_module(module)).values()
        if isinstance(value, type)
        and issubclass(value, (Stage, Reward, Task))
        and value.__module__ == module
        and not value.__name__.startswith("_")
    ]
    if len(classes) == 1:
        return classes[0]
    what = " or ".join(_PLURALS[cls] for cls in bases)
    found = ", ".join(cls.__name__ for cls in classes)
    fact = f"several: {found}" if classes else "none"
    message = f"A file holds one public class that is a {what}; this one holds {fact}."
    raise RecipeError([Problem(name(path), "", message)])

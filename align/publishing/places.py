"""Where everyone finds a model: its id on the hub and its commit, and what was pushed from here."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import hub, records, store
from align.artifacts import Model, read_json
from align.errors import StageFailed
from align.spec import Base

PUSHES = ".pushes"
"""Beside the artifacts: `<key>.json`, what was pushed; `<key>/`, a folder on its way."""

TAG = "align-recipes"
"""By which a card says that it was written here."""


@dataclass(frozen=True)
class Place:
    """A model on the hub."""

    repo: str
    commit: str | None
    """None: that of a push which is still to come."""


def of(base: Base) -> Place | None:
    """Where a base lies for everyone; None: nowhere that is known by its name.

    A directory of the hub's cache is what it was downloaded as.

    Raises:
        LookupError: it is a hub id, and its commit is not known here.
    """
    path = Path(base.path)
    if not path.is_dir():
        known = hub.cached("model", base.path, base.revision)
        return Place(base.path, known or hub.resolve("model", base.path, base.revision))
    home = path.resolve()
    kind, *words = home.parent.parent.name.split("--")
    commit = re.fullmatch(r"[0-9a-f]{40}", home.name)
    if not commit or home.parent.name != "snapshots" or kind != "models" or not words:
        return None
    return Place("/".join(words), home.name)


def pushed(path: Path, runs: Path) -> Place | None:
    """Where the weights of a directory were pushed to from here, last."""
    made = (path.parent / store.MANIFEST).is_file()
    model, root = (Model(path.parent), path.parent.parent) if made else (Model(path), runs)
    found = [one for one in pushes(root, key(model, root)) if one["whole"]]
    return Place(found[-1]["repo"], found[-1]["commit"]) if found else None


def key(model: Model, runs: Path) -> str:
    """What a model is called beside the artifacts: its key; of others a name by their content."""
    if (model.path / store.MANIFEST).is_file():
        return model.path.name
    contents = records.Contents(runs)
    digest = contents.of(model.path)
    contents.save()
    return f"{model.path.name}-{digest[:12]}"


def remember(runs: Path, key: str, **pushed: Any) -> None:
    """Add a push to `runs/.pushes/<key>.json`: `repo`, `branch`, `commit`, `whole` …"""
    file = runs / PUSHES / f"{key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    store.write_json(file, {"pushes": [*pushes(runs, key), {**pushed, "pushed_at": now}]})


def pushes(runs: Path, key: str) -> list[dict[str, Any]]:
    """What was pushed of a model, the first push first."""
    file = runs / PUSHES / f"{key}.json"
    try:
        found: list[dict[str, Any]] = read_json(file)["pushes"] if file.is_file() else []
    except (StageFailed, KeyError):
        message = "is damaged. It notes what was pushed: remove this file alone, and push again."
        raise StageFailed(f"{file} {message}") from None
    return found


def branches(runs: Path) -> set[tuple[str, str | None]]:
    """All that was pushed to from a store: repository and branch (None: a pull request).

    Notes of earlier versions name no branch and count as those of pull requests.
    """
    keys = [file.stem for file in (runs / PUSHES).glob("*.json")]
    return {(one["repo"], one.get("branch")) for key in keys for one in pushes(runs, key)}

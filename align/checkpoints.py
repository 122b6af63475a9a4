"""Checkpoints that are known to be whole: hashed when written, checked before they are used.

transformers writes a checkpoint in place, takes the newest one without looking inside, and goes on
silently, to other weights, where the optimizer's or the random state is missing or a bit flipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from align.artifacts import read_json
from align.out import Out

KEEP = 2
"""Checkpoints kept while training, beside the best one: the newest may turn out to be damaged."""

COMPLETE = "complete.json"
"""The file that marks a checkpoint as complete; written last."""


def found(folder: Path) -> list[Path]:
    """The checkpoints of a training, newest first, complete or not."""
    paths = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    return sorted(paths, key=lambda path: int(path.name[11:]), reverse=True)


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as complete: every file on disk, its size and sha256 in `complete.json`."""
    files = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != COMPLETE:
            files[str(path.relative_to(checkpoint))] = _digest(path)
    temporary = checkpoint / f"{COMPLETE}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, checkpoint / COMPLETE)
    for folder in (checkpoint, checkpoint.parent):
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def prune(folder: Path) -> None:
    """Remove all but the newest checkpoints and the best one of each: what `last` may use."""
    kept = found(folder)[:KEEP]
    states = [read_json(path / "trainer_state.json") for path in kept]
    best = {Path(state["best_model_checkpoint"] or "none").name for state in states}
    for old in found(folder)[KEEP:]:
        if old.name not in best:
            shutil.rmtree(old)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where every file is as it was written."""
    if not (checkpoint / COMPLETE).is_file():
        return "it was not written to its end"
    try:
        files = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return f"{COMPLETE} is damaged"
    for name, digest in files.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if _digest(checkpoint / name) != digest:
            return f"{name} is damaged"
    return None


def last(folder: Path, out: Out) -> Path | None:
    """The newest checkpoint that is whole. Newer ones are set aside by name, which is said."""
    for path in found(folder):
        problem = damage(path)
        if problem is None:
            best = _best(path)
            if best is None or (problem := damage(best)) is None:
                return path
            problem = f"the best one so far, {best.name}, is lost: {problem}"
        aside = path.with_name(path.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        out.say(f"{path.name} is not used: {problem}. It is now {aside.name}.")
    return None


def _best(checkpoint: Path) -> Path | None:
    """The best checkpoint so far, beside this one; transformers noted where it was when written.

    After a move of the store the note is corrected, or transformers would forget the best one.
    """
    file = checkpoint / "trainer_state.json"
    state = read_json(file)
    noted = state["best_model_checkpoint"]
    if noted is None:
        return None
    best = checkpoint.with_name(Path(noted).name)
    if noted != str(best) and best.is_dir():
        file.write_text(json.dumps(state | {"best_model_checkpoint": str(best)}), encoding="utf-8")
        seal(checkpoint)
    return best

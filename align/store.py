"""The store: directories that are whole or not there at all.

    runs/<kind>-<key>            an artifact: complete, checked on use, never changed
    runs/<kind>-<key>.partial    the same while it is made; survives kills, is gone on with
    runs/<recipe>/<stage>        a link to one of the two
    runs/.locks/                 who is writing what
    runs/.cache/                 may be deleted at any time

An artifact is published in this order, so that a kill or a power cut at any point leaves either the
`.partial` directory or the whole artifact: every file is hashed and fsynced, then the directories,
then `artifact.json` is written with all the hashes and fsynced, then what was only needed to go on
after a kill is removed, then the directory is renamed and its parent fsynced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from align.artifacts import read_json
from align.errors import StageFailed

RUNS = Path("runs")
"""The store, unless another is named."""

PARTIAL = ".partial"
MANIFEST = "artifact.json"

SCRATCH = (
    "checkpoints",
    "progress.json",
    "error.json",
    "made.json",
    "began.json",
    "head.json",
    "job.json",
)
"""What a stage needs only while it is being made; `*.tmp` files too. Not part of the artifact."""

State = Literal["done", "running", "partial", "absent"]

_held: set[IO[str]] = set()


def partial(path: Path) -> Path:
    """Where the artifact is while it is made."""
    return path.with_name(path.name + PARTIAL)


def state(path: Path) -> State:
    """How far an artifact is. `running`: a living process is making it now."""
    if path.is_dir():
        return "done"
    if not partial(path).is_dir():
        return "absent"
    return "running" if writer(path.parent, path.name) else "partial"


# Publishing


def publish(work: Path, about: dict[str, Any]) -> Path:
    """Make a finished `.partial` directory an artifact and return its path.

    `about` is what the manifest says besides the files and the key.

    Raises:
        StageFailed: there is something at that place already; nothing is ever overwritten.
    """
    for leftover in work.rglob("*.tmp"):
        leftover.unlink()
    files: dict[str, dict[str, Any]] = {}
    for name in sorted(_files(work)):
        size, digest = _hash(work / name, sync=True)
        files[name] = {"size": size, "sha256": digest}
    for folder, _, _ in os.walk(work, topdown=False):
        _sync(Path(folder))
    manifest = {"key": work.name.removesuffix(PARTIAL), **about, "files": files}
    write_json(work / MANIFEST, {**manifest, "checksum": _checksum(manifest)})
    return finish(work)


def finish(work: Path) -> Path:
    """The last steps of `publish`, for a directory whose manifest is written."""
    path = work.with_name(work.name.removesuffix(PARTIAL))
    for name in SCRATCH:
        if (work / name).is_dir():
            shutil.rmtree(work / name)
        else:
            (work / name).unlink(missing_ok=True)
    _sync(work)
    if path.exists():  # os.rename would replace an empty directory
        raise StageFailed(f"{path} exists already and is not overwritten. Move it away, run again.")
    os.rename(work, path)
    _sync(path.parent)
    return path


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file so that it is there whole, or not at all, or as it was."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync(path.parent)


def _files(root: Path) -> Iterator[str]:
    """The names of the files that belong to the artifact, relative to its directory."""
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        if here == root:
            folders[:] = [name for name in folders if name not in SCRATCH]
            names = [name for name in names if name not in (*SCRATCH, MANIFEST)]
        for name in names:
            yield (here / name).relative_to(root).as_posix()


def _hash(path: Path, sync: bool = False) -> tuple[int, str]:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return os.fstat(file.fileno()).st_size, digest


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


# Verifying


def manifest(path: Path) -> dict[str, Any]:
    """`artifact.json` of an artifact, checked against its own checksum."""
    value = read_json(path / MANIFEST)
    said = value.pop("checksum", None)
    if said != _checksum(value):
        raise _damaged(path, MANIFEST, "its checksum is not the one that was written")
    return value


def verify(path: Path) -> dict[str, Any]:
    """Read every file of an artifact and compare it with the manifest, which is returned.

    Done by every stage for everything it consumes, because a flipped byte in a safetensors file
    loads without a word.

    Raises:
        StageFailed: names the first file that is not what was written, and the remedy.
    """
    if not path.is_dir():
        raise StageFailed(f"{path} is missing. Run the recipe again: it is made anew.")
    about = manifest(path)
    files: dict[str, dict[str, Any]] = about["files"]
    present = set(_files(path))
    for name in sorted(present | set(files)):
        if name not in present:
            raise _damaged(path, name, "it is missing")
        if name not in files:
            raise _damaged(path, name, "no stage wrote it")
        size, digest = _hash(path / name)
        if size != files[name]["size"]:
            raise _damaged(path, name, f"it has {size} bytes, {files[name]['size']} were written")
        if digest != files[name]["sha256"]:
            raise _damaged(path, name, "its checksum is not the one that was written")
    return about


def _damaged(path: Path, name: str, fact: str) -> StageFailed:
    return StageFailed(
        f"{path / name} is damaged: {fact}. Move {path} away and run the recipe again: this stage "
        "is made anew, and what was made from it is kept."
    )


def used(paths: Iterable[Path]) -> list[Path]:
    """The artifacts and those whose weights they use: a model's base lies in another artifact."""
    found: dict[Path, None] = {}
    ahead = list(paths)
    while ahead:
        path = ahead.pop()
        if path in found:
            continue
        found[path] = None
        if (path / "model.json").is_file():
            base = read_json(path / "model.json").get("base", {}).get("path", "")
            other = Path(os.path.normpath(path / base)).parent
            if base and other.parent == path.parent and other != path:
                ahead.append(other)
    return list(found)


# One writer


@contextlib.contextmanager
def lock(store: Path, name: str, busy: str) -> Iterator[None]:
    """Hold the lock `name` while the block runs; the kernel lets go of it when we die.

    Raises:
        StageFailed: another process holds it: `busy`, its pid and the remedy.
    """
    path = store / ".locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        patience = time.monotonic() + 2.0  # a killed writer's processes need a moment to die
        while not _try(file, fcntl.LOCK_EX):
            if time.monotonic() > patience:
                pid = path.read_text(encoding="utf-8").strip()
                raise StageFailed(
                    f"{busy} by process {pid}. Wait until it ends, or stop it with `kill {pid}`."
                )
            time.sleep(0.02)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)


def _try(file: IO[str], operation: int) -> bool:
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _let_go() -> None:
    """A forked child (a data loader's worker) must not keep our locks alive when we are killed."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def writer(store: Path, name: str) -> int | None:
    """The pid of the living process that holds the lock, or None."""
    try:
        with (store / ".locks" / name).open(encoding="utf-8") as file:
            return None if _try(file, fcntl.LOCK_SH) else int(file.read() or 0)
    except FileNotFoundError:
        return None


# Links


def link(path: Path, target: Path) -> None:
    """Make `path` a relative link to `target`, in place of what it linked to."""
    to = os.path.relpath(target, path.parent)
    if path.is_symlink() and os.readlink(path) == to:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(to)
    os.replace(temporary, path)


# A full disk


def is_full(error: BaseException, path: Path) -> bool:
    """Whether an error is a full disk's: libraries in C++ and Rust have no errno to show."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or free(path) < 1 << 16


def free(path: Path) -> int:
    """Free bytes where `path` will lie."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def full(path: Path) -> str:
    """What to tell a user whose disk is full."""
    return (
        f"The disk that holds {path} is full. Free some space (`align clean` lists what no recipe "
        "needs) and run the same command again: everything that was made is kept."
    )

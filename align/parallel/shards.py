"""Work in shards: any process can make any of them, and a kill loses the one in hand at most.

    checkpoints/plan/00000.jsonl        the rows a shard is made from
    checkpoints/shards/00000.json       that it is made: checksums of its plan and its file, counts
    checkpoints/progress/<name>.json    how far a process is with the shard in its hands
    data/shard-00000.jsonl              the shard

The driver (the stage's own process) streams the plan to the disk once, so that no process holds
more than one shard's rows. Then `one` makes a shard: in the driver, or wherever `join` has restored
the stage from its `stage.json`. Doing it twice is harmless, and the second time does nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from align import records
from align.artifacts import read_json
from align.out import EXAMPLES, Out

if TYPE_CHECKING:
    from align.parallel.workers import Workers

Row = dict[str, Any]

Work = Callable[[int, list[Row]], Iterable[Row]]
"""Makes a shard's rows, with the same ids in the same order, from its number and planned rows."""

PLAN, MADE, PROGRESS = "checkpoints/plan", "checkpoints/shards", "checkpoints/progress"

RECORD = {"plan", "data", "seconds", "counts", "facts"}
"""What the record of a made shard says."""


class Sharded(Protocol):
    """A stage whose rows are made in shards."""

    def worker(self, out: Shard) -> Work:
        """Load what making shards needs, and return what makes one.

        Called once in every process that makes shards; the stage was restored from `stage.json`
        there. What `Work` returns must depend on the stage's settings and the rows alone, and
        it needs to know nothing of other shards. `out.count` counts what belongs to the shard in
        hand: it is kept with the shard and added up in the artifact. `out.progress` says how far
        that shard is. Nothing is written to `out.path` but what the process alone reads.
        """
        ...


class Shard(Out):
    """What the work on shards speaks to: counts and progress are those of the shard in hand."""

    def __init__(self, path: Path, cache: Path, tell: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(path, cache)
        self.number = -1
        self.facts: dict[str, Any] = {}
        """What makes the shards, for the artifact: `worker` may say it."""

        self._tell = tell

    def progress(
        self, done: float, total: float, unit: str, note: str = "", tokens: int = 0
    ) -> None:
        """How far the shard is; `tokens` drawn or read so far make the whole stage's tokens/s."""
        now = time.monotonic()
        if now - self._progress_at >= 0.2:
            self._progress_at = now
            part = done / total if total else 0.0
            self._tell({"shard": self.number, "part": part, "tokens": tokens, "note": note})


@dataclass
class Made:
    """What all shards together say of how they were made."""

    seconds: float = 0.0
    """Of all shards, in all processes."""

    by: list[dict[str, Any]] = field(default_factory=list)
    """The processes' `facts`, those that differ."""


# -- making --------------------------------------------------------------------------------------


def make(
    out: Out, shards: Iterable[list[Row]], stage: Sharded, workers: Workers | None = None
) -> Made:
    """Write `data/shard-00000.jsonl` and so on, those that are not there whole; streams.

    Shards' counts are added to `out`'s.

    Args:
        out: of the stage.
        shards: the rows each shard is made from. A file that was made from others (shards were of
            another size before), or is not what was written, is made anew.
        stage: what makes them.
        workers: who does; None: this process.
    """
    sizes = _plan(out.path, shards)
    missing = [number for number in range(len(sizes)) if not made(out.path, number)]
    for number in missing:
        _record(out.path, number).unlink(missing_ok=True)
    for told in (out.path / PROGRESS).glob("*.json"):  # by processes that were killed
        told.unlink()
    watch = Watch(out, sizes, missing)
    if missing and workers is not None:
        workers.make(out, missing, watch)
    elif missing:
        shard = Shard(out.path, out.cache, watch.hear)
        work = stage.worker(shard)
        for number in missing:
            one(shard, number, work)
    watch()
    return _add_up(out, len(sizes))


def one(out: Shard, number: int, work: Work) -> None:
    """Make one shard, whole or not at all; nothing where it is made."""
    if made(out.path, number):
        return
    begun = time.monotonic()
    out.number, out.counts = number, {}
    plan = _planned(out.path, number).read_bytes()
    rows = [json.loads(line) for line in plan.splitlines()]
    data = _write(_data(out.path, number), map(_line, _same(work(number, rows), rows)))
    record = {
        "plan": hashlib.sha256(plan).hexdigest(),
        "data": data,
        "seconds": round(time.monotonic() - begun, 3),
        "counts": out.counts,
        "facts": out.facts,
    }
    _write(_record(out.path, number), [_line(record)])


def made(path: Path, number: int) -> bool:
    """Whether a shard is there, made from the plan there is, and is what was written."""
    record, data = _record(path, number), _data(path, number)
    if not (record.is_file() and data.is_file()):
        return False
    try:
        said = json.loads(record.read_bytes())
    except ValueError:  # damaged: one shard is made again, and the others are kept
        return False
    if not (isinstance(said, dict) and said.keys() == RECORD):
        return False
    return bool(said["plan"] == _sha256(_planned(path, number)) and said["data"] == _sha256(data))


def join(path: Path, name: str) -> Callable[[int], None]:
    """What makes a shard by its number, in another process than the stage's own.

    Args:
        path: the stage's `.partial` directory, on a disk that both see.
        name: of this process, unlike that of any other: its progress is kept under it.
    """
    told = path / PROGRESS / f"{name}.json"
    told.parent.mkdir(parents=True, exist_ok=True)
    out = Shard(path, path.parent / ".cache", lambda state: _tell(told, state))
    stage: Any = records.restore(read_json(path / "stage.json"), path.parent)
    work = stage.worker(out)
    return lambda number: one(out, number, work)


def cut(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Rows in lists of `size`, one list at a time."""
    iterator = iter(rows)
    while shard := list(islice(iterator, size)):
        yield shard


def settle(out: Out, rows: Iterable[Row]) -> int:
    """Write `data/rows.jsonl` from the shards, and remove them; returns the number of rows.

    For a stage that makes of a planned row several rows, or none. `rows` reads what was made.
    """
    parts = list((out.path / "data").glob("shard-*.jsonl"))
    n = out.write_rows(rows)
    for part in parts:
        part.unlink()
    return n


def _plan(path: Path, shards: Iterable[list[Row]]) -> list[int]:
    """Write what every shard is made from, and remove what belongs to none; rows per shard."""
    sizes = []
    for number, rows in enumerate(shards):
        _write(_planned(path, number), map(_line, rows))
        sizes.append(len(rows))
    for folder, of in ((PLAN, _planned), (MADE, _record), ("data", _data)):
        wanted = {of(path, number).name for number in range(len(sizes))}
        for file in (path / folder).glob("*"):
            if file.name not in wanted and file.suffix != ".tmp":  # a job may be writing it
                file.unlink()
    return sizes


def _same(rows: Iterable[Row], planned: list[Row]) -> Iterator[Row]:
    """The rows, if they are those that were planned."""
    for row, plan in zip(rows, planned, strict=True):
        assert row["id"] == plan["id"], f"{row['id']} is made in the place of {plan['id']}"
        yield row


def _add_up(out: Out, shards: int) -> Made:
    """Add the shards' counts to the stage's, in order."""
    made = Made()
    for number in range(shards):
        record = read_json(_record(out.path, number))
        made.seconds += record["seconds"]
        if record["facts"] not in made.by:
            made.by.append(record["facts"])
        for name, count in record["counts"].items():
            total = out.counts.setdefault(name, {"n": 0})
            total["n"] += count["n"]
            if examples := [*total.get("examples", ()), *count.get("examples", ())]:
                total["examples"] = examples[:EXAMPLES]
    return made


# -- files ---------------------------------------------------------------------------------------


def _planned(path: Path, number: int) -> Path:
    return path / PLAN / f"{number:05d}.jsonl"


def _record(path: Path, number: int) -> Path:
    return path / MADE / f"{number:05d}.json"


def _data(path: Path, number: int) -> Path:
    return path / "data" / f"shard-{number:05d}.jsonl"


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _write(path: Path, lines: Iterable[str]) -> str:
    """Write a file at once or not at all; its checksum.

    Two processes may write the same shard, one of which was thought to be dead: so each has a
    temporary file of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    digest = hashlib.sha256()
    with temporary.open("wb") as file:
        for line in lines:
            content = line.encode()
            digest.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- progress ------------------------------------------------------------------------------------


def _tell(file: Path, state: dict[str, Any]) -> None:
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(json.dumps(state), encoding="utf-8")
    os.replace(temporary, file)


class Watch:
    """How far all shards are together, for the screen. Call it every second or so."""

    def __init__(self, out: Out, sizes: list[int], missing: list[int]) -> None:
        self._out = out
        self._sizes = sizes
        self._missing = set(missing)
        self._tokens = 0  # of shards made since we began
        self._first: tuple[float, int] | None = None

    def __call__(self) -> None:
        """Say what the processes' files say."""
        states = []
        for file in sorted((self._out.path / PROGRESS).glob("*.json")):
            states.append(json.loads(file.read_text(encoding="utf-8")))
        self._say(states)

    def hear(self, state: dict[str, Any]) -> None:
        """Say what this process does, where no other does anything."""
        self._say([state])

    def _say(self, states: list[dict[str, Any]]) -> None:
        for number in self._missing & {int(f.stem) for f in self._records()}:
            self._missing.remove(number)
            counts = read_json(_record(self._out.path, number))["counts"]
            self._tokens += counts.get("tokens", {"n": 0})["n"]
        states = [state for state in states if state["shard"] in self._missing]
        left = sum(self._sizes[number] for number in self._missing)
        doing = sum(self._sizes[state["shard"]] * state["part"] for state in states)
        notes = [state["note"] for state in states if state["note"]]
        tokens = self._tokens + sum(state["tokens"] for state in states)
        if self._first is None and tokens:
            self._first = (time.monotonic(), tokens)
        elif self._first is not None and tokens > self._first[1]:
            rate = (tokens - self._first[1]) / (time.monotonic() - self._first[0])
            notes.insert(0, f"{rate:,.0f} tokens/s")
        total = sum(self._sizes)
        self._out.progress(round(total - left + doing), total, "prompts", ", ".join(notes[:2]))

    def _records(self) -> Iterator[Path]:
        return (self._out.path / MADE).glob("*.json")

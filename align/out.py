"""What a running stage writes to: its directory, its log, its numbers, its progress."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EXAMPLES = 5
"""How many examples of each kind of dropped row are kept in the artifact."""

SURE = 2.0
"""Seconds after which a rate says something about the time that is left."""

SAID = "» "
"""How a line for the person who watches begins in the log; the runner shows these lines."""


class Out:
    """A stage's directory while it is being made, and the ways a stage speaks.

    `path` is the `.partial` directory: whatever lies there when `run` returns is the artifact, and
    after a kill the stage is run again in the same directory, with what it had written.
    `cache` is a directory shared by all stages whose content may be deleted at any time.
    `main` is false on all but the first of several processes that run one stage together: there
    everything below does nothing.

    `path/"checkpoints"` and files called `*.tmp` are for going on after a kill: they are removed
    when the artifact is complete.
    """

    def __init__(self, path: Path, cache: Path, main: bool = True) -> None:
        self.path = path
        self.cache = cache
        self.main = main
        self.counts: dict[str, Any] = {}
        self._progress_at = 0.0
        self._progress_from: tuple[str, float, float] | None = None

    def say(self, message: str) -> None:
        """One line for the person who watches, and for the log."""
        if self.main:
            print(
                "\n".join(SAID + line for line in message.splitlines()), file=sys.stderr, flush=True
            )

    def count(self, name: str, n: int = 1, example: Any = None, of: str | None = None) -> None:
        """Add to a count of the artifact (`rows`, `dropped.too_long` …), with an example of it.

        `of`: a model, by which it is counted, too.
        """
        entry = self.counts.setdefault(name, {"n": 0})
        entry["n"] += n
        if of is not None:
            by = entry.setdefault("by", {})
            by[of] = by.get(of, 0) + n
        if example is not None and len(entry.setdefault("examples", [])) < EXAMPLES:
            entry["examples"].append(example)

    def metrics(self, **numbers: Any) -> None:
        """One line of `metrics.jsonl`."""
        if not self.main:
            return
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **numbers}) + "\n")

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        """How far the stage is; shown as a bar, and by `align status`. Cheap to call often.

        The seconds that are left follow from the rate since the first call with this unit: what was
        there before, after a kill, and what loading took are no part of it.
        """
        now = time.monotonic()
        if not self.main or (now - self._progress_at < 0.2 and done < total):
            return
        self._progress_at = now
        if self._progress_from is None or self._progress_from[0] != unit:
            self._progress_from = unit, now, done
        _, begun, before = self._progress_from
        state = {"done": done, "total": total, "unit": unit, "note": note, "left": None}
        if done > before and now - begun > SURE:
            state["left"] = round((total - done) * (now - begun) / (done - before), 1)
        temporary = self.path / "progress.json.tmp"
        temporary.write_text(json.dumps(state), encoding="utf-8")
        os.replace(temporary, self.path / "progress.json")

    def write_rows(self, rows: Iterable[dict[str, Any]], name: str = "rows") -> int:
        """Write `data/<name>.jsonl` at once or not at all; returns the number of rows."""
        if not self.main:
            return sum(1 for _ in rows)
        (self.path / "data").mkdir(exist_ok=True)
        n = 0
        temporary = self.path / "data" / f"{name}.jsonl.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                n += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / "data" / f"{name}.jsonl")
        return n

"""What a run shows on stderr: a bar that moves for people, plain lines for logs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from align.out import SAID

EVERY = 30.0
"""Seconds between two lines about the same stage's progress in a log."""


class Screen:
    """Shows one stage at a time."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._name = ""
        self._shown_at = 0.0
        self._log: Path | None = None
        self._read = 0

    def say(self, text: str) -> None:
        """One or more lines; above the bar where there is one."""
        console = self._bar.console if self._bar else self._console
        console.print(text, markup=False)

    def begin(self, name: str, work: Path) -> None:
        """A stage begins: from now on its directory is watched."""
        self._name, self._log = name, work / "log.txt"
        self._read = self._log.stat().st_size if self._log.exists() else 0
        self._shown_at = time.monotonic()
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[state]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(name, total=None, state="")
            self._bar.start()

    def look(self) -> None:
        """Show what the stage has said and how far it is."""
        assert self._log is not None
        for line in self._said():
            self.say(f"  {self._name}: {line}")
        state = _read(self._log.with_name("progress.json"))
        if state is None:
            return
        text = in_words(state)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=state["done"], total=state["total"], state=text)
        elif time.monotonic() - self._shown_at > EVERY:
            self._shown_at = time.monotonic()
            self.say(f"  {self._name}: {text}")

    def end(self) -> None:
        """The stage has ended, one way or the other."""
        if self._log is not None:
            for line in self._said():
                self.say(f"  {self._name}: {line}")
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = self._log = None

    def _said(self) -> list[str]:
        """The whole lines in the log, since we last looked, that are for the person who watches.

        After the stage has ended its log lies in the artifact: `.partial` was renamed.
        """
        assert self._log is not None
        for path in (self._log, Path(str(self._log).replace(".partial/", "/"))):
            try:
                log = path.open("rb")
            except FileNotFoundError:  # it may be renamed at any moment
                continue
            with log:
                log.seek(self._read)
                whole, newline, _ = log.read().rpartition(b"\n")
            self._read += len(whole) + len(newline)
            lines = whole.decode("utf-8", errors="replace").splitlines()
            return [line.removeprefix(SAID) for line in lines if line.startswith(SAID)]
        return []


def in_words(state: dict[str, Any]) -> str:
    """What `Out.progress` wrote, in words: `1,200/8,000 answers, 5,310 tokens/s, 3 min left`."""
    parts = [f"{_number(state['done'])}/{_number(state['total'])} {state['unit']}", state["note"]]
    left = state.get("left")  # not there in what an earlier version wrote
    if left is not None and state["done"] < state["total"]:
        parts.append(f"{_short(left)} left")
    return ", ".join(filter(None, parts))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"


def _short(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return value

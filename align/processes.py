"""Stages in processes of their own: forked from a warm parent, or fresh.

Importing the libraries takes 5 to 7 s. On a CPU they are imported once, by a server that does
nothing else, and every stage is a fork of it, ready in about 10 ms. Forking is safe only from a
process without threads that has done no tensor work, so the server counts its threads, and a child
that has not finished a first tensor operation in time is killed: a fresh process takes its place.
On a GPU every process is fresh, because a CUDA context does not survive a fork.

None of these processes outlives us, however we die, and Ctrl-C in a terminal reaches only us: it is
for the runner to say what a stage does about it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from align.launch import devices

READY = 15.0
"""Seconds after which a forked stage that has not finished its first tensor operation is stuck."""


class Stuck(Exception):
    """Forking does not work here; the message says why."""


EQUAL = {
    "PYTHONSAFEPATH": "1",
    "PYTHONHASHSEED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""The variables that make stages' processes quiet and equal.

The working directory stays out of `sys.path`, so that a user's `datasets.py` cannot shadow the
library's. Sets are ordered the same in every process. The two libraries that would start threads
when they are imported (OpenBLAS, Arrow's jemalloc) do not.
"""


def environment() -> dict[str, str]:
    """The environment of every stage's process: ours, and what makes them equal."""
    return {**os.environ, **EQUAL}


def can_fork() -> bool:
    """Whether stages can be forked from a warm parent: Linux without an accelerator."""
    return sys.platform == "linux" and devices() == 0


def command(work: Path) -> list[str]:
    """What makes one stage alone, to be run by hand."""
    return [sys.executable, "-m", "align.worker", str(work)]


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)


class Fresh:
    """A stage in a new process."""

    def __init__(self, work: Path) -> None:
        with (work / "log.txt").open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [*command(work), "--runner", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                start_new_session=True,
            )

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None if it has not ended after so many seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number: int) -> bool:
        """Send it a signal; whether it was there to get it."""
        self._process.send_signal(number)
        return True


class Server:
    """The warm parent. Start it early: it imports while other things are done."""

    def __init__(self, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "align.warm", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(),
                start_new_session=True,
            )
        self._log = log
        self._unread = b""

    def report(self, seconds: float) -> dict[str, Any] | None:
        """What the server says next, or None if it says nothing for so many seconds.

        Raises:
            Stuck: the server is gone.
        """
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = max(0.0, end - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                return None
            piece = os.read(self._process.stdout.fileno(), 4096)
            if not piece:
                raise Stuck(f"the warm parent ended; see {self._log}")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        value: dict[str, Any] = json.loads(line)
        return value

    def fork(self, work: Path) -> Forked:
        """Start a stage, as soon as the server is warm."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"work": str(work)}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Stuck(f"the warm parent ended; see {self._log}") from None
        return Forked(self)

    def close(self) -> None:
        """End the server and whatever it has forked."""
        self._process.kill()
        self._process.communicate()


class Forked:
    """A stage in a fork of the server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._pid: int | None = None
        self._ready = False
        self._deadline = float("inf")

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None if it has not ended after so many seconds.

        Raises:
            Stuck: it could not be forked, or has not become ready in time.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            report = self._server.report(left)
            if report is None:
                break
            if "stuck" in report:
                raise Stuck(report["stuck"])
            if "pid" in report:
                self._pid, self._deadline = report["pid"], time.monotonic() + READY
            if "ready" in report:
                self._ready = True
            if "exit" in report:
                return int(report["exit"])
        if not self._ready and time.monotonic() > self._deadline:
            raise Stuck(f"a forked stage did nothing for {READY:.0f} s")
        return None

    def signal(self, number: int) -> bool:
        """Send it a signal; false if it has not begun yet."""
        if self._pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):  # it has just ended: `wait` will say how
            os.kill(self._pid, number)
        return True

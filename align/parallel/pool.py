"""Workers on this machine: processes that make a stage's shards, each handed one at a time.

They are fresh processes, which load what they need once. Numbers of shards go to a worker's stdin
and come back on its stdout when they are made; the end of its stdout is its death, seen at once.
The shard it held then goes to a new one. The kernel ends all of them with the driver.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from align import launch, processes
from align.artifacts import read_json
from align.errors import StageFailed
from align.out import Out
from align.parallel import shards

if TYPE_CHECKING:
    from align.parallel.workers import Workers

TRIES = 3
"""How often a shard is begun before it is given up."""

LOOK = 0.5
"""Seconds between two looks at how far the workers are."""

PATIENCE = 5.0
"""Seconds that a worker has to end when it is asked to."""


class Worker:
    """One process, and the shard in its hands."""

    def __init__(self, work: Path, number: int, count: int) -> None:
        self.number = number
        self.shard: int | None = None
        name = f"local-{number}"
        words = [sys.executable, "-m", "align.worker", "--shards", name, str(work)]
        self.process = subprocess.Popen(
            [*words, "--runner", str(os.getpid())],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**processes.environment(), **share(number, count)},
            start_new_session=True,
        )

    def fileno(self) -> int:
        """Its stdout, for `select`."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def hand(self, shard: int) -> None:
        """Give it a shard to make. If it has died, the end of its stdout says so."""
        assert self.process.stdin is not None
        self.shard = shard
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{shard}\n".encode())

    def stop(self) -> None:
        """Ask it to end: now if it holds a shard, which is lost."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        if self.shard is not None:
            self.process.terminate()

    def end(self) -> None:
        """Wait for its end, not for long."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


def make(workers: Workers, out: Out, missing: list[int], watch: Callable[[], None]) -> None:
    """Make the shards with these numbers: see `Workers.make`."""
    count = min(workers.count, len(missing))
    ahead, died = deque(missing), Counter[int]()
    pool = [Worker(out.path, number, count) for number in range(count)]
    try:
        for worker in pool:
            worker.hand(ahead.popleft())
        while busy := [worker for worker in pool if worker.shard is not None]:
            for worker in select.select(busy, [], [], LOOK)[0]:
                if not os.read(worker.fileno(), 64):
                    assert worker.shard is not None
                    died[worker.shard] += 1
                    _bury(worker, died[worker.shard], out)
                    ahead.appendleft(worker.shard)
                    worker = pool[worker.number] = Worker(out.path, worker.number, count)
                worker.shard = None
                if ahead:
                    worker.hand(ahead.popleft())
            watch()
    finally:
        for worker in pool:
            worker.stop()
        for worker in pool:
            worker.end()


def _bury(worker: Worker, died: int, out: Out) -> None:
    """Go on without a worker that has ended, if there is reason to hope.

    Raises:
        StageFailed: it said why nobody could make the shard, or the shard was tried often enough.
    """
    worker.end()
    code = worker.process.returncode
    if code == 1 and (out.path / "error.json").is_file():
        raise StageFailed(read_json(out.path / "error.json")["error"])
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        how += " (out of memory?)" if code == -signal.SIGKILL else ""
    if died == TRIES:
        raise StageFailed(
            f"Shard {worker.shard} could not be made: {TRIES} workers ended while they made it, "
            f"and the last {how}. Look at what they wrote to {out.path / 'log.txt'}."
        )
    out.say(f"A worker {how}. Another one makes shard {worker.shard}.")


def share(number: int, count: int) -> dict[str, str]:
    """The environment that gives a worker its share of the cores, and one GPU."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    share = {"OMP_NUM_THREADS": str(max(1, cores // count))}
    if devices := launch.devices():
        for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
            known = os.environ.get(name, ",".join(map(str, range(devices)))).split(",")
            share[name] = known[number % len(known)]
    return share


def serve(work: Path, name: str) -> int:
    """The worker's side: make the shards whose numbers come on stdin, one a line."""
    numbers, made = os.fdopen(os.dup(0)), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # what a reward starts must not read our numbers,
    os.dup2(2, 1)  # nor what it prints be taken for one of them
    one = shards.join(work, name)
    for line in numbers:
        one(int(line))
        os.write(made, line.encode())
    return 0

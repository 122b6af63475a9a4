"""Workers on this machine: processes that make a stage's shards, each handed one at a time.

They are fresh processes, which load what they need once. Numbers of shards go to a worker's stdin
and come back on its stdout when they are made; the end of its stdout is its death, seen at once.
The shard it held then goes to a new one. The kernel ends all of them with the driver. One that
lives and says nothing is ended when another has nothing to do, which gets its shard.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
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

SILENCE = 600.0
"""Seconds after which a worker that tells nothing of its shard may hang."""


class Worker:
    """One process, and the shard in its hands."""

    def __init__(self, work: Path, number: int, count: int) -> None:
        self.number = number
        self.shard: int | None = None
        self.named = False
        """Whether it was said that it says nothing of its shard."""

        name = f"local-{number}"
        self.file = work / shards.PROGRESS / f"{name}.json"
        """How far it is."""

        self._told, self._heard = 0, time.monotonic()
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
        self.shard, self.named, self._heard = shard, False, time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{shard}\n".encode())

    def silent(self) -> bool:
        """Whether it has told nothing of its shard for long. Loading, it tells nothing either."""
        told = self.file.stat().st_mtime_ns if self.file.is_file() else 0
        if told != self._told:  # compared with itself: a file server has another clock
            self._told, self._heard = told, time.monotonic()
        return time.monotonic() - self._heard > SILENCE

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
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a dead disk
                self.process.wait(PATIENCE)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


def make(workers: Workers, out: Out, missing: list[int], watch: Callable[[], None]) -> None:
    """Make the shards with these numbers: see `Workers.make`."""
    _check(workers.count)
    count = min(workers.count, len(missing))
    ahead, died, taken = deque(missing), Counter[int](), set[int]()
    pool = {number: Worker(out.path, number, count) for number in range(count)}
    try:
        for worker in pool.values():
            worker.hand(ahead.popleft())
        while busy := [worker for worker in pool.values() if worker.shard is not None]:
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
            _listen(pool, taken, out)
            watch()
    finally:
        for worker in pool.values():
            worker.stop()
        for worker in pool.values():
            worker.end()


def _check(count: int) -> None:
    """See that there is a GPU for every worker; two on one would not leave each other memory.

    Raises:
        StageFailed: there are GPUs, and fewer than workers.
    """
    if 0 < (found := _devices()) < count:
        raise StageFailed(
            f"workers.count is {count}, each has a GPU for itself, and this machine has {found}. "
            f"Set it to {found}; or, where no GPU is needed, run with CUDA_VISIBLE_DEVICES=''."
        )


def _devices() -> int:
    """GPUs that the workers can have: on a Mac models run on the CPU."""
    return 0 if sys.platform == "darwin" else launch.devices()


def _listen(pool: dict[int, Worker], taken: set[int], out: Out) -> None:
    """Say who says nothing; an idle worker gets such a shard, and its worker is ended.

    Two must not make one shard, for which a server would be asked twice. A shard is taken once
    (`taken`): one that takes so long with everybody is left alone then.
    """
    for worker in [one for one in pool.values() if one.shard is not None and one.silent()]:
        shard = worker.shard
        assert shard is not None
        says = f"Worker {worker.number} has said nothing about shard {shard} for"
        says += f" {SILENCE / 60:.0f} minutes."
        idle = [one for one in pool.values() if one.shard is None]
        if idle and shard not in taken:
            out.say(f"{says} It is ended, and worker {idle[0].number} makes the shard.")
            taken.add(shard)
            pool.pop(worker.number).process.kill()
            worker.end()
            worker.file.unlink(missing_ok=True)
            idle[0].hand(shard)
        elif not worker.named:
            out.say(says)
            worker.named = True


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
    if devices := _devices():
        for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
            known = os.environ.get(name, ",".join(map(str, range(devices)))).split(",")
            share[name] = known[number]
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

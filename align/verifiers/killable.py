"""A function in processes that can be killed, for inputs from which it may never come back.

    pool = Pool("align.verifiers.expressions:equal", 1.0, ("1", "1"), 2)
    pool.map([("1/2", "0.5"), ("9^{9^{9^9}}", "1")])

A signal in our own process would be no way out: it reaches only the main thread, interrupts no long
step of C code, and a worker of Ray or of a cluster has its own use for it (math-verify's #55). Here
a server imports the function once and forks the process that calls it; the kernel ends that process
when a call takes too long, and the next fork is there in milliseconds. A server that dies, as when
memory is short, is replaced, and its call made again. A server ends with its pool, or with the
process that made it, however that dies; a call in hand ends at its limit.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from align import processes
from align.errors import StageFailed

MEMORY = 1 << 30
"""Bytes of address space of one process, libraries included."""


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a call that did not return."""

    timed_out: bool
    """Its time was over; else it raised, or its process died."""


class Pool:
    """Calls of one function in `count` processes at once.

    Args:
        target: `module:function`. What it takes and returns is JSON.
        seconds: wall-clock time of one call.
        first: a call that a server makes itself, so that what a library prepares in its first call
            is in every fork, and costs no later call its time.
        count: processes.
    """

    def __init__(self, target: str, seconds: float, first: tuple[Any, ...], count: int) -> None:
        self._servers = [_Server(target, seconds, first) for _ in range(count)]
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="killable")
        self._idle: queue.SimpleQueue[_Server] = queue.SimpleQueue()
        for server in self._servers:
            self._idle.put(server)

    def map(self, calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        """The result of every call, in order; `Lost` where there is none.

        Raises:
            StageFailed: a server died, and so did the one in its place: the function cannot be
                imported, say. Why stands on stderr.
        """
        return list(self._threads.map(self._call, calls))

    def close(self) -> None:
        """End the processes, once what they have in hand is done."""
        self._threads.shutdown()
        for server in self._servers:
            server.close()

    def _call(self, arguments: tuple[Any, ...]) -> Any:
        server = self._idle.get()
        try:
            return server.call(arguments)
        finally:
            self._idle.put(server)


class _Server:
    """The process that imports the function, seen from ours."""

    def __init__(self, target: str, seconds: float, first: tuple[Any, ...]) -> None:
        self._target = target
        self._arguments = [target, str(seconds), json.dumps(first)]
        self._start()

    def _start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "align.verifiers.killable", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=processes.environment(),
            start_new_session=True,  # Ctrl-C in a terminal is for us
        )
        self._process = process
        self.close = weakref.finalize(self, _close, process)

    def call(self, arguments: tuple[Any, ...]) -> Any:
        """What the function returns, or `Lost`; see `Pool.map`."""
        line = self._ask(arguments)
        if line is None:
            self.close()
            self._start()
            line = self._ask(arguments)
        if line is None:
            raise StageFailed(
                f"The process that calls {self._target} has ended, and so has the one in its "
                "place: why may stand before this. If nothing does, memory may be short."
            )
        result = json.loads(line)
        return result["value"] if "value" in result else Lost(result["timed_out"])

    def _ask(self, arguments: tuple[Any, ...]) -> bytes | None:
        """The server's reply; None: it is dead."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no line to read either
            stdin.write(json.dumps(arguments).encode() + b"\n")
            stdin.flush()
        line = stdout.readline()
        return line if line.endswith(b"\n") else None


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()  # the server's end of input
    process.wait()
    process.stdout.close()


# In the server


def serve(target: str, seconds: float, first: list[Any]) -> None:
    """Import the function, and keep a process alive that calls it until the input ends."""
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    replies = os.dup(1)
    os.dup2(2, 1)  # what the function prints is no reply
    function(*first)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever it does
    while (process := os.fork()) or _calls(function, seconds, replies):
        _, status = os.waitpid(process, 0)
        if status == 0:
            return
        timed_out = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
        _reply(replies, {"timed_out": timed_out})


def _calls(function: Any, seconds: float, replies: int) -> bool:
    """Make the calls, one line each; in the process that may die."""
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            result = {"value": function(*json.loads(line))}
        except MemoryError:
            os._exit(1)  # what it left behind would be missing for the next call
        except Exception:  # whatever a library does with input that was made to break it
            result = {"timed_out": False}
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(replies, result)
    os._exit(0)


def _reply(replies: int, result: dict[str, Any]) -> None:
    os.write(replies, json.dumps(result).encode() + b"\n")


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3]))

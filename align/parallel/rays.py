"""Workers on a Ray cluster: actors that make a stage's shards, each handed one at a time.

    workers: {on: ray, count: 8, options: {address: auto, num_gpus: 1}}

Ray finds the machines, starts the processes and notices when one dies; the shards are ours, and so
is trying one again. Nothing goes through Ray's object store: rows are read from the stage's
directory and written to it, which every machine must see.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import processes
from align.errors import RecipeError, StageFailed
from align.options import nearest
from align.out import Out
from align.parallel import shards
from align.parallel.pool import TRIES
from align.types import Type
from align.yaml import show

if TYPE_CHECKING:
    from align.parallel.workers import Workers

NUMBER = Type(frozenset({"float"}))

OPTIONS = {
    "address": Type(frozenset({"str"})),
    "num_cpus": NUMBER,
    "num_gpus": NUMBER,
    "memory": NUMBER,
    "resources": Type(frozenset({"dict"})),
    "accelerator_type": Type(frozenset({"str"})),
    "label_selector": Type(frozenset({"dict"})),
}
"""`ray.init`'s address, and what `ray.remote` takes that says where a worker runs.

Its other options say how often Ray tries again and what is pickled, which is not a recipe's matter.
"""

STORE = 100 << 20
"""Bytes of the object store of a cluster of our own. Nothing lies in it; Ray wants 75 MiB."""

LOOK = 1.0
"""Seconds between two looks at how far the workers are."""

PATIENCE = 30.0
"""Seconds without any worker after which it is said what they wait for."""

SHORT = "/tmp"
"""Where the files of a cluster of our own lie: the names of its sockets must be short."""

PROBE = "checkpoints/ray.tmp"
"""In a stage's directory: a word that shows a worker sees the same directory as the driver."""


def problems(workers: Workers) -> Iterator[tuple[str, str]]:
    """What is wrong with `workers: {on: ray, …}`, as (key, message)."""
    if importlib.util.find_spec("ray") is None:
        yield "workers.on", "Ray is not installed: pip install 'align-recipes[ray]'."
    for key, value in workers.options.items():
        at = f"workers.options.{key}"
        if key not in OPTIONS:
            known = ", ".join(OPTIONS)
            hint = nearest(key, OPTIONS) or f" These are: {known}."
            yield at, f'"{key}" is no option of workers on Ray.{hint}'
        elif not OPTIONS[key].accepts(value):
            yield at, f'"{key}" must be {OPTIONS[key]}, not {show(value)}.'
        elif OPTIONS[key] is NUMBER and value < 0:
            yield at, f'"{key}" is {value}; it must be a number from 0.'


# -- the worker's side ---------------------------------------------------------------------------


class Maker:
    """An actor: one worker, which keeps what it has loaded from shard to shard."""

    def __init__(self, path: Path, here: str, name: str) -> None:
        self._path = path
        self._here = here
        self._name = name
        self._one: Callable[[int], None] | None = None

    def begin(self, word: str) -> str | None:
        """Take the driver's place on this machine; why that cannot be."""
        probe = self._path / PROBE
        if not probe.is_file() or probe.read_text(encoding="utf-8") != word:
            return (
                f"{socket.gethostname()} does not see {self._path}. The store must lie on a file "
                "system that all machines of the Ray cluster share, under the same path."
            )
        try:
            os.chdir(self._here)
        except OSError as error:
            return (
                f"{socket.gethostname()} cannot enter {self._here} ({error.strerror}). Run from a "
                "directory that all machines of the Ray cluster share, under the same path."
            )
        # Ray puts it first, where a user's `datasets.py` would shadow the library's
        sys.path[:] = [path for path in sys.path if path != self._here]
        return None

    def make(self, number: int) -> str | None:
        """Make a shard; the reason where nobody could make it."""
        try:
            if self._one is None:
                self._one = shards.join(self._path, self._name)
            self._one(number)
        except (StageFailed, RecipeError) as failure:
            return str(failure)
        return None


# -- the driver's side ---------------------------------------------------------------------------


def make(workers: Workers, out: Out, missing: list[int], watch: Callable[[], None]) -> None:
    """Make the shards with these numbers by actors of Ray: see `Workers.make`."""
    path = out.path.absolute()
    word = uuid.uuid4().hex
    (path / PROBE).write_text(word, encoding="utf-8")
    address = workers.options.get("address") or os.environ.get("RAY_ADDRESS") or "local"
    with _cluster(address):
        pool = _Pool(workers, path, word, out)
        if address == "local":
            pool.check_place()
        pool.make(missing, watch)


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[None]:
    """A connection to the cluster at an address, or to one of our own on this machine.

    Raises:
        StageFailed: there is no cluster at the address, or none could be started.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # workers' lines go to our log, not a terminal
    more: dict[str, Any] = {}
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        try:
            if address == "local":
                folder = tempfile.TemporaryDirectory("", "ray-", SHORT, ignore_cleanup_errors=True)
                more = {"include_dashboard": False, "object_store_memory": STORE}
                more["_temp_dir"] = stack.enter_context(folder)
            elif address != "auto":  # Ray 2.60 may wait for ever where nobody listens
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), PATIENCE).close()
            ray.init(address=address, **more)
        except (OSError, RuntimeError, ValueError) as error:
            where = "on this machine" if address == "local" else f"at {address}"
            raise StageFailed(
                f"There is no Ray cluster {where} ({str(error).strip()}). Look at RAY_ADDRESS and "
                "`address` in `workers.options`; without both one is started on this machine."
            ) from None
        stack.callback(ray.shutdown)
        signal.signal(signal.SIGTERM, before)  # Ray's would end us without letting go of anything
        yield


class _Pool:
    """The actors, what each is doing, and how often a shard was begun in vain."""

    def __init__(self, workers: Workers, path: Path, word: str, out: Out) -> None:
        import ray

        asked = {key: value for key, value in workers.options.items() if key != "address"}
        gpus = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {}  # else Ray hides them
        self._asked: dict[str, Any] = {"num_cpus": 1, **gpus, **asked}
        runtime = {"env_vars": processes.EQUAL, "py_executable": sys.executable}
        self._actor = ray.remote(Maker).options(**self._asked, runtime_env=runtime)
        self._count = workers.count
        self._path, self._word, self._out = path, word, out
        self._doing: dict[Any, tuple[Any, int | None]] = {}
        """What Ray has promised -> (the actor, its shard; None: it begins)."""

        self._begun = 0
        self._died = Counter[int | None]()

    def check_place(self) -> None:
        """See that a worker fits this machine; no other one will join it.

        Raises:
            StageFailed: it has less of something than a worker asks for.
        """
        import ray

        found: dict[str, float] = ray.cluster_resources()
        names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
        wanted = {of: self._asked[name] for name, of in names.items() if name in self._asked}
        for name, number in {**wanted, **self._asked.get("resources", {})}.items():
            if number > found.get(name, 0):
                raise StageFailed(
                    f"A worker asks Ray for {number:g} {name}, and this machine has "
                    f"{found.get(name, 0):g}. Look at `workers.options`."
                )

    def make(self, missing: list[int], watch: Callable[[], None]) -> None:
        """Make the shards; an actor without one is let go, for its place may be wanted."""
        import ray

        ahead = deque(missing)
        for _ in range(min(self._count, len(missing))):
            self._begin()
        since: float | None = time.monotonic()
        while ahead or any(number is not None for _, number in self._doing.values()):
            for done in ray.wait(list(self._doing), timeout=LOOK)[0]:
                since = None
                actor, number = self._doing.pop(done)
                if not self._well(done, number):
                    ray.kill(actor)
                    if number is not None:
                        ahead.appendleft(number)
                    self._begin()
                elif ahead:
                    self._hand(actor, ahead.popleft())
                else:
                    ray.kill(actor)
            if since is not None and time.monotonic() - since > PATIENCE:
                since = None
                self._out.say(
                    f"No worker has begun in {PATIENCE:.0f} s. Each asks for {self._asked}; the "
                    f"Ray cluster has {_resources()}. Waiting for a place."
                )
            watch()

    def _begin(self) -> None:
        self._begun += 1
        actor = self._actor.remote(self._path, os.getcwd(), f"ray-{self._begun}")
        self._doing[actor.begin.remote(self._word)] = (actor, None)

    def _hand(self, actor: Any, number: int) -> None:
        self._doing[actor.make.remote(number)] = (actor, number)

    def _well(self, done: Any, number: int | None) -> bool:
        """Whether an actor has done what it was asked to do.

        Raises:
            StageFailed: it said why nobody can, or it was tried often enough.
        """
        import ray
        from ray.exceptions import RayActorError, RayError

        try:
            sentence = ray.get(done)
        except RayError as error:
            sys.stderr.write(f"{error}\n")
            killed = isinstance(error, RayActorError)
            how = "was killed (out of memory?)" if killed else str(error).splitlines()[-1].strip()
        else:
            if sentence is not None:
                raise StageFailed(sentence)
            self._died[None] = 0
            return True
        self._died[number] += 1
        what = "A worker" if number is None else f"Shard {number}"
        if self._died[number] == TRIES:
            did = "begin" if number is None else "be made"
            raise StageFailed(
                f"{what} could not {did}: {TRIES} workers of Ray ended, the last so: {how}. Look "
                f"at what they wrote to {self._out.path / 'log.txt'}."
            )
        self._out.say(f"{what}: the worker of Ray {how}. Another one takes its place.")
        return False


def _resources() -> str:
    import ray

    found = ray.cluster_resources()
    return ", ".join(f"{found[key]:g} {key}" for key in sorted(found) if ":" not in key)

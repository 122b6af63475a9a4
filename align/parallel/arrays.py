"""Workers as the tasks of a SLURM array: each makes the shards that no other task has taken.

    workers: {on: slurm, count: 8, options: {slurm_partition: gpu, timeout_min: 240,
              gpus_per_node: 1, cpus_per_task: 8}}

The options are submitit's own, as in `launch: {slurm: …}` (slurm.py). The array's number lies in
the stage's directory: whoever runs the recipe while it is there waits for it. A task that ends too
early costs the shard in its hands; what is missing when all tasks have ended is submitted again.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import slurm, store
from align.artifacts import read_json
from align.errors import RecipeError, StageFailed
from align.out import Out
from align.parallel import shards
from align.parallel.pool import TRIES

if TYPE_CHECKING:
    from align.parallel.workers import Workers

NOTE = "checkpoints/array.json"
"""In a stage's directory: the array that makes its shards."""

CLAIMS = "checkpoints/claims"
"""In a stage's directory: a file for every shard, locked while a task makes it."""

GRACE = 5
"""So many looks a task has to end by itself when all is made; one in the queue never would."""

SAID = "checkpoints/said"
"""In a stage's directory: why tasks cannot go on."""

OWNED = {
    **dict.fromkeys(
        ("nodes", "slurm_nodes"), "every worker is on one machine; `count` says how many"
    ),
    **dict.fromkeys(("tasks_per_node", "slurm_ntasks_per_node"), "every worker is one task"),
    "slurm_max_pickle_size_gb": slurm.OWNED["slurm_max_pickle_size_gb"],
}
"""Parameters of submitit that a recipe may not set here, and why."""


def problems(workers: Workers) -> Iterator[tuple[str, str]]:
    """What is wrong with `workers: {on: slurm, …}`, as (key, message)."""
    if importlib.util.find_spec("submitit") is None:
        yield "workers.on", slurm.MISSING
        return
    then = "goes on later with the shards that are missing"
    yield from slurm.parameters(workers.options, "workers.options", OWNED, then)


# -- a task of the array -------------------------------------------------------------------------


class Task:
    """What submitit calls in every task: makes the shards with these numbers, if nobody else does.

    Tasks begin at different places of the list, and whoever is there first takes a shard. So tasks
    that come late from the queue, or never, leave nothing undone.
    """

    def __init__(self, path: Path, numbers: list[int]) -> None:
        self.path = path
        self.numbers = numbers

    def __call__(self) -> None:
        """Make what is there to make. An exception is how submitit learns of a failure."""
        import submitit

        job = submitit.JobEnvironment()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it; we lose one shard
        one: Callable[[int], None] | None = None
        try:
            for number in self.numbers:
                with claimed(self.path, number) as ours:
                    if ours and not shards.made(self.path, number):
                        one = one or shards.join(self.path, f"slurm-{job.job_id}")
                        one(number)
        except (StageFailed, RecipeError) as failure:
            store.write_json(self.path / SAID / f"{job.job_id}.json", {"error": str(failure)})
            raise

    def checkpoint(self) -> Any:
        """Called by submitit when the time is over or another job wants the machine: go on later.

        What was made is on the disk, and the shard in hand is begun again.
        """
        import submitit

        return submitit.helpers.DelayedSubmission(Task(self.path, self.numbers))


@contextlib.contextmanager
def claimed(path: Path, number: int) -> Iterator[bool]:
    """Whether no other task makes this shard; none does while the block runs, however it ends."""
    with (path / CLAIMS / f"{number:05d}").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = True
        except BlockingIOError:
            ours = False
        yield ours


# -- the array, seen from the login node ---------------------------------------------------------


class Array:
    """The tasks that were submitted together. submitit's local executor makes a job of each."""

    def __init__(self, cluster: str, jobs: list[Any]) -> None:
        self.cluster = cluster
        self.jobs = jobs

    def __str__(self) -> str:
        return ", ".join(job.job_id for job in self.jobs)

    def ended(self) -> bool:
        """Whether nothing of it is left, in the queue or running."""
        return all(slurm.ended(job) for job in self.jobs)

    def end(self) -> None:
        """Cancel what is left of it and wait for that; a task loses the shard in its hands."""
        for job in self.jobs:
            job.cancel(check=False)
        while not self.ended():
            time.sleep(slurm.LOOK)

    def cancelled(self) -> bool:
        """Whether somebody has cancelled a task: SLURM keeps that for some minutes."""
        if self.cluster == "local":
            return False
        asked = ["scontrol", "show", "job", self.jobs[0].job_id]
        said = subprocess.run(asked, capture_output=True, text=True).stdout
        return "JobState=CANCELLED" in said


def noted(path: Path) -> Array | None:
    """The array that makes the shards in `path`, if one is in the queue or running."""
    if not (path / NOTE).is_file():
        return None
    import submitit

    note = read_json(path / NOTE)
    kind = submitit.LocalJob if note["cluster"] == "local" else submitit.SlurmJob
    array = Array(note["cluster"], [kind(slurm.folder(path), id_) for id_ in note["ids"]])
    return None if array.ended() else array


def submit(workers: Workers, path: Path, numbers: list[int]) -> Array:
    """Submit an array that makes the shards with these numbers.

    Raises:
        StageFailed: it cannot be submitted.
    """
    import submitit

    for old in (path / SAID).glob("*.json"):
        old.unlink()
    record = read_json(path / "stage.json")
    name = f"align.{record['recipe']}.{record['name']}"
    count = min(workers.count, len(numbers))
    firsts = [len(numbers) * task // count for task in range(count)]
    tasks = [Task(path, numbers[first:] + numbers[:first]) for first in firsts]
    parameters = {**workers.options, "nodes": 1, "tasks_per_node": 1}
    with slurm.submitting("workers.options"):
        jobs = slurm.executor(path, name, parameters).submit_array(tasks)
    cluster = workers.options.get("cluster", "slurm")
    if cluster == "slurm":  # one number for all tasks: SLURM is asked once, whatever their count
        jobs = [submitit.SlurmJob(slurm.folder(path), jobs[0].job_id.partition("_")[0])]
    store.write_json(path / NOTE, {"cluster": cluster, "ids": [job.job_id for job in jobs]})
    return Array(cluster, jobs)


def make(workers: Workers, out: Out, missing: list[int], watch: Callable[[], None]) -> None:
    """Make the shards with these numbers by the tasks of an array: see `Workers.make`."""
    path = out.path.absolute()
    for folder in (CLAIMS, SAID, shards.MADE):
        (path / folder).mkdir(parents=True, exist_ok=True)
    left = missing
    array = noted(path)
    if array:
        out.say(f"Job {array} makes this already; waiting for it.")
    for _ in range(TRIES):
        if array is None:
            array = submit(workers, path, left)
            out.say(f"Job {array} is submitted; its files: {slurm.folder(path)}")
        before, left = left, _wait(array, path, left, watch)
        if not left:
            return
        if len(left) == len(before) or array.cancelled():
            break
        out.say(f"Job {array} has ended, and {len(left)} shards are missing.")
        array = None
    raise StageFailed(
        f"{len(left)} of {len(missing)} shards were not made, and the job has ended: it was "
        "cancelled, its time or memory was over, or its tasks failed. What they said: "
        f"{slurm.folder(path)}"
    )


def _wait(array: Array, path: Path, left: list[int], watch: Callable[[], None]) -> list[int]:
    """Wait until the shards are made or the array has ended; those that are missing.

    Raises:
        StageFailed: a task said why nobody can make its shard; the others are cancelled.
        KeyboardInterrupt: we were told to stop; all tasks are cancelled.
    """
    try:
        while left and not array.ended():
            for _ in range(slurm.ASK):
                left = _missing(path, left)
                watch()
                if not left or all(job.done() for job in array.jobs):
                    break
                time.sleep(slurm.LOOK)
        left = _missing(path, left)
        for _ in range(GRACE):
            if left or array.ended():
                break
            time.sleep(slurm.LOOK)
        return left
    finally:
        array.end()
        (path / NOTE).unlink()


def _missing(path: Path, numbers: list[int]) -> list[int]:
    """The shards that are not made yet.

    Raises:
        StageFailed: a task said why nobody can make its shard.
    """
    for said in (path / SAID).glob("*.json"):
        raise StageFailed(read_json(said)["error"])
    os.listdir(path / shards.MADE)  # a network file system looks again for a list
    return [number for number in numbers if not shards.made(path, number)]

"""A training stage as a job of a SLURM cluster, through submitit.

    launch: {num_machines: 2, num_processes: 16, slurm: {slurm_partition: gpu, timeout_min: 720,
             gpus_per_node: 8, cpus_per_task: 64}}

The keys of `slurm:` are submitit's own (`AutoExecutor.update_parameters`), and `cluster: local`
runs the job on this machine, to try it. The job's number lies in the stage's directory: whoever
runs the recipe while the job is there waits for it instead of submitting another.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from align import store
from align.artifacts import read_json
from align.errors import StageFailed
from align.options import nearest
from align.signatures import options
from align.types import Type
from align.yaml import show

NOTE = "job.json"
"""In a stage's directory: the job that makes it."""

STOP = "stop.tmp"
"""In a stage's directory: the job is asked to save a checkpoint and to end."""

RUNS = "job.tmp"
"""In a stage's directory: machine 0 of the job has begun."""

LOOK = 1.0
"""Seconds between two looks at a job's files."""

ASK = 30
"""So many looks are between two questions to SLURM itself, which serves many."""

CLUSTERS = ("slurm", "local")

OWNED = {
    "nodes": "`num_machines` says it",
    "slurm_nodes": "`num_machines` says it",
    "tasks_per_node": "every machine has one task, which starts its processes",
    "slurm_ntasks_per_node": "every machine has one task, which starts its processes",
    "slurm_max_pickle_size_gb": "a job is a few bytes",
}
"""Keys of submitit that a recipe may not set, and why."""

MISSING = (
    "Jobs are submitted with submitit, which is not installed: pip install 'align-recipes[slurm]'."
)

_EXECUTOR = "submitit.slurm.slurm:SlurmExecutor"


def problems(launch: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with a `launch:` that has a `slurm:`, as (key, message)."""
    block = launch["slurm"]
    if not isinstance(block, dict):
        yield "launch.slurm", f"This is a block of submitit's parameters, not {show(block)}."
        return
    if importlib.util.find_spec("submitit") is None:
        yield "launch.slurm", MISSING
        return
    yield from parameters(block, "launch.slurm", OWNED, "saves a checkpoint and is queued again")
    machines, gpus = launch.get("num_machines", 1), block.get("gpus_per_node")
    if "num_processes" not in launch:
        yield (
            "launch",
            '"num_processes" is missing: this machine\'s devices are not those of the job. '
            "It counts the processes of all machines, one a GPU.",
        )
    elif gpus and launch["num_processes"] != machines * gpus:
        yield (
            "launch.slurm.gpus_per_node",
            f"{machines} machines with {gpus} GPUs run {machines * gpus} processes, and "
            f"num_processes is {launch['num_processes']}.",
        )


def parameters(
    block: dict[str, Any], at: str, owned: dict[str, str], then: str
) -> Iterator[tuple[str, str]]:
    """What is wrong with the block `at` of submitit's parameters, as (key, message).

    `owned` are those a recipe may not set there, and why; `then` is what a job does whose time is
    over.
    """
    known = _known()
    for key, value in block.items():
        if key in owned:
            yield f"{at}.{key}", f'"{key}" cannot be set here: {owned[key]}.'
        elif key == "cluster":
            if value not in CLUSTERS:
                yield f"{at}.cluster", f'It must be "slurm" or "local", not {show(value)}.'
        elif key not in known:
            names = known.keys() - owned.keys()
            hint = nearest(key, names) or nearest(f"slurm_{key}", names)
            yield f"{at}.{key}", f'"{key}" is no parameter of submitit.{hint}'
        elif not known[key].accepts(value):
            yield f"{at}.{key}", f'"{key}" must be {known[key]}, not {show(value)}.'
    if "timeout_min" not in block and "slurm_time" not in block:
        yield (
            at,
            '"timeout_min" is missing, and submitit would ask for 5 minutes. A job that reaches '
            f"its limit {then}.",
        )
    elif isinstance(limit := block.get("timeout_min"), int) and limit < 1:
        yield f"{at}.timeout_min", f"It is {limit}; it must be a whole number from 1."


def _known() -> dict[str, Type]:
    """submitit's parameters: those of every cluster, and SLURM's own with the prefix `slurm_`."""
    import submitit

    everywhere = submitit.AutoExecutor._typed_parameters().items()
    special = {**options("submitit.slurm.slurm:_make_sbatch_string"), **options(_EXECUTOR)}
    internal = {"command", "folder", "map_count"}  # what submitit fills in itself
    return {
        **{name: Type(frozenset({type_.__name__})) for name, type_ in everywhere},
        **{f"slurm_{name}": special[name].type for name in special.keys() - internal},
    }


# The job, seen from the login node


def unable(launch: dict[str, Any]) -> str | None:
    """Why no job can be submitted on this machine; None: it can."""
    if no_sbatch(launch["slurm"]):
        return (
            "There is no sbatch here, and `slurm:` submits a job. Run this on a login node of the "
            "cluster; `slurm: {cluster: local}` tries the job on this machine."
        )
    return None


def no_sbatch(block: dict[str, Any]) -> bool:
    """Whether submitit's parameters want a cluster that is not at hand."""
    return block.get("cluster", "slurm") == "slurm" and shutil.which("sbatch") is None


def run(
    work: Path,
    launch: dict[str, Any],
    name: str,
    task: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Have the stage in `work` made by a job that calls `task` once on every machine; wait for it.

    Where its job is there already it is only waited for.

    Raises:
        StageFailed: the job cannot be submitted, or has ended without having made the stage.
        KeyboardInterrupt: we were told to stop; the job has saved a checkpoint and ended.
    """
    job = _job(work)
    if job is None or (ended(job) and not _made(work)):
        job = _submit(work, launch, name, task)
        say(f"Job {job.job_id} is submitted; its files: {folder(work)}")
    else:
        say(f"Job {job.job_id} makes this already; waiting for it.")
    try:
        _wait(job)
    except KeyboardInterrupt:
        (work / STOP).touch()
        if (work / RUNS).exists():
            _wait(job)
        else:
            job.cancel(check=False)
        if not _made(work):
            (work / NOTE).unlink()
            raise
    if _made(work):
        return
    (work / NOTE).unlink()
    error = work / "error.json"
    sentence = str(read_json(error)["error"]) if error.is_file() else ""
    raise StageFailed(
        sentence
        or f"Job {job.job_id} ended ({job.state}) before the stage was made: it was cancelled, its "
        f"time or memory was over, or a machine was lost. What it said: {folder(work)}"
    )


def kept(work: Path) -> bool:
    """Whether a job is making the stage in `work`, or has made it while nobody watched."""
    job = _job(work)
    return job is not None and (not ended(job) or _made(work))


def _submit(work: Path, launch: dict[str, Any], name: str, task: Callable[[], None]) -> Any:
    cluster, machines = launch["slurm"].get("cluster", "slurm"), launch.get("num_machines", 1)
    if cluster == "slurm":
        # a machine that fails ends the others, which would wait for it
        kill = {"slurm_srun_args": ["--kill-on-bad-exit=1"]}
        block = {**kill, **launch["slurm"], "nodes": machines, "tasks_per_node": 1}
    else:  # submitit's local executor knows one machine: two tasks of it stand for two machines
        block = {**launch["slurm"], "nodes": 1, "tasks_per_node": machines}
    for left in (STOP, RUNS):
        (work / left).unlink(missing_ok=True)
    with submitting("launch.slurm"):
        job = executor(work, name, block).submit(task)
    store.write_json(work / NOTE, {"cluster": cluster, "id": job.job_id, "machines": machines})
    return job


def executor(work: Path, name: str, block: dict[str, Any]) -> Any:
    """submitit's executor for jobs of the stage in `work`, with the parameters of a block."""
    import submitit

    block = {"cluster": "slurm", "name": name, **block}
    made_with = {f"slurm_{name}" for name in options(_EXECUTOR)} & block.keys()
    cluster, of_executor = block.pop("cluster"), {key: block.pop(key) for key in made_with}
    made = submitit.AutoExecutor(folder=folder(work), cluster=cluster, **of_executor)
    made.update_parameters(**block)
    return made


@contextlib.contextmanager
def submitting(at: str) -> Iterator[None]:
    """Make a sentence of what submitit raises when a job cannot be submitted.

    Raises:
        StageFailed: there is no srun or no sbatch, or sbatch has refused the block `at`.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        said = [line for line in str(error).splitlines() if line.strip()]
        raise StageFailed(
            f"No job could be submitted: {said[-1].strip() if said else type(error).__name__} "
            f"Look at `{at}`; nothing is in the queue."
        ) from None


def _job(work: Path) -> Any | None:
    """The job that a note in the stage's directory names."""
    if not (work / NOTE).is_file():
        return None
    import submitit

    note = read_json(work / NOTE)
    kind = submitit.LocalJob if note["cluster"] == "local" else submitit.SlurmJob
    return kind(folder=folder(work), job_id=note["id"], tasks=list(range(note["machines"])))


def ended(job: Any) -> bool:
    """Whether nothing of the job is left, in the queue or running."""
    import submitit

    if isinstance(job, submitit.LocalJob):
        job.done()  # takes the exit code, where the job is ours
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(job.job_id), 0)
            return False
        return True
    if job.done():
        return True
    # submitit asks sacct, and not every cluster keeps accounts
    asked = ["squeue", "--noheader", "--format=%T", f"--jobs={job.job_id}"]
    said = subprocess.run(asked, capture_output=True, text=True)
    return not said.stdout.strip() and (said.returncode == 0 or "Invalid job id" in said.stderr)


def _wait(job: Any) -> None:
    while not ended(job):
        for _ in range(ASK):
            time.sleep(LOOK)
            if job.done():
                break


def _made(work: Path) -> bool:
    return "made.json" in os.listdir(work)  # a network file system looks again for a list


def folder(work: Path) -> Path:
    """Where the files of a stage's jobs lie, and the logs of other machines than the first."""
    return work.parent / ".jobs" / work.name.removesuffix(store.PARTIAL)

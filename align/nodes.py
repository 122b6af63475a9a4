"""A stage on several machines: this machine's part of its processes.

By hand, the same command is typed on every machine: machine 0 makes the stages as ever, and the
others `follow` it through the store, which all of them see. As a job of SLURM a `Task` runs on
every machine. In both cases `accelerate launch` starts the processes of one machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import launch, processes, slurm, store
from align.artifacts import read_json
from align.errors import Problem, RecipeError
from align.out import SAID

if TYPE_CHECKING:
    from align.progress import Screen
    from align.recipe import Plan, Planned

HEAD = "head.json"
"""In a stage's directory: where its processes meet, and the pid of who makes it on machine 0."""

REQUEUED = "requeued.tmp"
"""In a stage's directory: its job was told to leave the machines, and goes on later."""

GRACE = 5.0
"""Seconds in which processes end by themselves after those of another machine have."""

PATIENCE = 600.0
"""Seconds that machine 0 may take to begin, as torch's static rendezvous gives the others."""


# One machine's processes


def attend(
    ranks: subprocess.Popen[bytes],
    work: Path,
    stop: Callable[[], bool] = lambda: False,
    gone: Callable[[], bool] = lambda: False,
) -> int:
    """Wait for this machine's processes; their exit code.

    They are told to stop at once when `stop()` says so, and after `GRACE` when those of another
    machine have failed or are `gone()`: torch lets them wait for each other for 10 minutes or more.
    """
    told, together = False, time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return ranks.wait(0.2)
        if not ((work / "error.json").exists() or gone()):
            together = time.monotonic()
        if not told and (stop() or time.monotonic() - together > GRACE):
            told = True
            ranks.terminate()  # it tells its processes, and gives them 30 s


class Launched(subprocess.Popen[bytes]):
    """`accelerate launch` in a job, told once to stop: a second time cuts a checkpoint short.

    Two may tell it: `attend`, and SLURM's warning, which interrupts that.
    """

    told = False

    def terminate(self) -> None:
        """Send SIGTERM, the first time."""
        if not self.told:
            super().terminate()
            self.told = True


def lead(work: Path, settings: dict[str, Any], say: Callable[[str], None]) -> list[str]:
    """Machine 0's `accelerate launch`; the others learn from a note where to meet it."""
    asked = launch.asked(settings)
    host = asked.get("main_process_ip") or socket.gethostname()
    port = asked.get("main_process_port") or _free_port()
    store.write_json(work / HEAD, {"pid": os.getpid(), "host": host, "port": port})
    say(f"Machine 0 of {asked['num_machines']} waits for the others at {host}:{port}.")
    return launch.command(
        work, settings, machine_rank=0, main_process_ip=host, main_process_port=port
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def blame(work: Path, who: str, fact: str, log: str) -> None:
    """Say why the stage fails, unless one of its processes has said so."""
    if not (work / "error.json").exists():
        sentence = f"The processes of {who} {fact}. Their log: {log}"
        store.write_json(work / "error.json", {"error": sentence, "exit_code": 1})


# A machine of a job


class Task:
    """What submitit calls on every machine of a job: this machine's part of the stage in `work`."""

    def __init__(self, work: Path, settings: dict[str, Any]) -> None:
        self.work = work
        self.settings = settings
        self._told = False
        self._ranks: Launched | None = None

    def __call__(self) -> None:
        """Run it to its end. An exception is how submitit learns of a failure."""
        import submitit

        job = submitit.JobEnvironment()
        if not self._wanted(job.job_id):
            return
        signal.signal(signal.SIGTERM, self._stop)  # submitit ignores it
        if job.global_rank == 0:
            self._begin(f"Job {job.job_id} runs on {', '.join(job.hostnames)}.")
        _await(self.work / slurm.RUNS)
        code = self._run(job)
        if code and self._told and not self._noted():
            self._leave(job)
        if code and not self._asked():
            who = f"machine {job.global_rank} ({job.hostname})"
            blame(self.work, who, f"ended with exit code {code}", str(job.paths.stderr))
            raise RuntimeError(f"exit code {code}")

    def _wanted(self, job_id: str) -> bool:
        """Whether the stage's directory names this job: nobody waits for another one."""
        note = self.work / slurm.NOTE  # written after the job is submitted
        return _await(note) and bool(read_json(note)["id"] == job_id)

    def _begin(self, sentence: str) -> None:
        """What machine 0 does for all: it forgets the last attempt, and writes the stage's log."""
        for old in (REQUEUED, "error.json"):
            (self.work / old).unlink(missing_ok=True)
        (self.work / slurm.RUNS).touch()
        with (self.work / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"{SAID}{sentence}\n")
            log.flush()
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)

    def _run(self, job: Any) -> int:
        """Start this machine's processes and wait for them; their exit code."""
        place: dict[str, Any] = {}
        if launch.machines(self.settings) > 1:
            port = launch.asked(self.settings).get("main_process_port")
            place = {
                "machine_rank": job.global_rank,
                "main_process_ip": "127.0.0.1" if job.cluster == "local" else job.hostnames[0],
                "main_process_port": port or 10_000 + int(job.job_id) % 10_000,
            }
        command = launch.command(self.work, self.settings, **place)
        ours = os.getpid()

        def prepare() -> None:
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM's warning is for us alone
            processes.die_with(ours)

        self._ranks = Launched(command, env=processes.environment(), preexec_fn=prepare)
        return attend(self._ranks, self.work, self._asked)

    def _asked(self) -> bool:
        """Whether the job is to end: whoever waits for it says so, or SLURM."""
        self._told = self._told or self._noted()
        return self._told

    def _noted(self) -> bool:
        """Whether a note says why: else it was SIGTERM, which may mean several things."""
        return any((self.work / note).exists() for note in (slurm.STOP, REQUEUED))

    def _stop(self, number: int, frame: Any) -> None:
        """`scancel`, and another job that wants the machines: both are SIGTERM to us."""
        self._told = True

    def _leave(self, job: Any) -> None:
        """End without a result, which would hide that SLURM queues the job again by itself.

        And without an exit code, which would end other machines that still save.
        """
        if not (self.work / "error.json").exists():  # SLURM ends the others when one has failed
            sentence = (
                f"Job {job.job_id} was told to end (SIGTERM): it was cancelled, or another job "
                "wanted its machines. The same command goes on from the last checkpoint."
            )
            store.write_json(self.work / "error.json", {"error": sentence, "exit_code": 1})
        (self.work / slurm.RUNS).unlink(missing_ok=True)
        raise SystemExit(0)

    def checkpoint(self) -> Any:
        """Called by submitit when the time is over or another job wants the machines.

        The processes save a checkpoint, and the same job is queued again.
        """
        import submitit

        (self.work / REQUEUED).touch()
        self._told = True
        if self._ranks is not None:
            self._ranks.terminate()
            _outlast(self._ranks.pid)
        (self.work / slurm.RUNS).unlink(missing_ok=True)
        return submitit.helpers.DelayedSubmission(Task(self.work, self.settings))


def _await(note: Path) -> bool:
    """Wait for a file that another machine writes, for a minute; whether it is there."""
    patience = time.monotonic() + 60
    while not note.exists() and time.monotonic() < patience:
        time.sleep(0.2)
    return note.exists()


def _outlast(pid: int) -> None:
    """Wait until a child has ended, without taking its exit code from whoever waits for it."""
    with contextlib.suppress(ChildProcessError):  # it has been taken already
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.1)


# Following machine 0


def machine(plan: Plan, stages: Sequence[Planned]) -> int:
    """This machine's number, as `launch:` of the stages on several machines says; 0 where none is.

    Raises:
        RecipeError: they say different numbers, or are to be jobs and none can be submitted here.
    """
    found, problems = {}, []
    for stage in stages:
        asked = launch.asked(stage.record["settings"])
        missing = store.state(stage.artifact.path) != "done"
        if "slurm" in asked and missing and (fact := slurm.unable(asked)):
            problems.append(Problem(str(plan.path), f"stages.{stage.name}.launch", fact))
        workers = stage.record["settings"].get("workers") or {}
        if workers.get("on") == "slurm" and missing and slurm.no_sbatch(workers["options"]):
            fact = (
                "There is no sbatch here, and these workers are jobs. Run this on a login node of "
                "the cluster; `options: {cluster: local}` tries them on this machine."
            )
            problems.append(Problem(str(plan.path), f"stages.{stage.name}.workers", fact))
        elif "slurm" not in asked and asked.get("num_machines", 1) > 1:
            found[int(asked["machine_rank"])] = stage.name
    if len(found) > 1:
        said = ", ".join(f"{name} says {number}" for number, name in found.items())
        message = f"machine_rank is this machine's number, the same for every stage: {said}."
        problems.append(Problem(str(plan.path), "launch", message))
    if problems:
        raise RecipeError(problems)
    return next(iter(found), 0)


class Follower:
    """A machine that is not machine 0, for one run of a recipe there.

    `told` says how often we were told to stop. All that is written to the store is the log of the
    processes here, and why they failed.
    """

    def __init__(self, plan: Plan, number: int, screen: Screen, told: Callable[[], int]) -> None:
        self.plan = plan
        self.number = number
        self.screen = screen
        self.told = told

    def follow(self, stages: Sequence[Planned]) -> int:
        """Join machine 0 in every stage on several machines, until its run ends; the exit code."""
        shared = [s for s in stages if launch.machines(s.record["settings"]) > 1]
        names = ", ".join(stage.name for stage in shared)
        self.screen.say(f"Machine {self.number} waits for machine 0, and joins it in: {names}.")
        before, begun, led = self._report(), time.monotonic(), False
        joined: dict[str, Any] | None = None
        while not self.told():
            leads = store.writer(self.plan.store, f"recipe.{self.plan.name}") is not None
            if self._report() != before or (led and not leads):
                return self._end(self._report() != before)
            if not leads and all(store.state(s.artifact.path) == "done" for s in stages):
                return self._end(True)
            if not led and time.monotonic() - begun > PATIENCE:
                return self._lost()
            led = led or leads
            for stage in shared:
                work = self._work(stage)
                head = _head(work)
                if head is not None and head != joined:
                    joined = head
                    self._join(stage, work, head)
            time.sleep(0.2)
        self.screen.say("Stopped.")
        return 130

    def _join(self, stage: Planned, work: Path, head: dict[str, Any]) -> None:
        """Run this machine's processes of a stage."""
        settings = {
            **read_json(work / "stage.json")["settings"],
            "launch": stage.record["settings"]["launch"],
        }
        place = {"main_process_ip": head["host"], "main_process_port": head["port"]}
        command = launch.command(work, settings, machine_rank=self.number, **place)
        path = slurm.folder(work) / f"machine-{self.number}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.screen.say(f"{stage.name}: joins {head['host']}:{head['port']}; log: {path}")
        self.screen.begin(stage.name, work)
        ours = os.getpid()
        with path.open("a", encoding="utf-8") as log:
            ranks = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=processes.environment(),
                start_new_session=True,
                preexec_fn=lambda: processes.die_with(ours),
            )

        who = f"machine {self.number} ({socket.gethostname()})"

        def stop() -> bool:
            if self.told():
                blame(work, who, "were told to stop", str(path))
            return self.told() > 0

        def gone() -> bool:
            self.screen.look()
            return _head(work) != head

        code = attend(ranks, work, stop, gone)
        self.screen.end()
        if code and _head(work) == head:  # else machine 0 was told to stop, or has failed itself
            blame(work, who, f"ended with exit code {code}", str(path))

    def _work(self, stage: Planned) -> Path:
        """Where machine 0 makes the stage; with `--again` its key is not the one we know."""
        link = self.plan.store / self.plan.name / stage.name
        name = link.readlink().name if link.is_symlink() else stage.artifact.path.name
        return self.plan.store / name

    def _report(self) -> tuple[int, int] | None:
        """Which report of a run is there: machine 0 writes one at every end."""
        path = self.plan.store / self.plan.name / "report.json"
        if not path.is_file():
            return None
        with path.open("rb") as file:  # when it is opened a network file system looks again
            found = os.fstat(file.fileno())
        return found.st_ino, found.st_mtime_ns

    def _end(self, told: bool) -> int:
        """The exit code of machine 0's run, which has ended; `told` in its report, or killed."""
        codes = {"done": 0, "failed": 1, "stopped": 3, "interrupted": 130}
        path = self.plan.store / self.plan.name / "report.json"
        if not told or not path.is_file():
            self.screen.say("Machine 0 was killed. The same command on every machine goes on.")
            return 1
        status = read_json(path)["status"]
        self.screen.say(f"Machine 0 has ended: {status}.")
        return codes.get(status, 0)

    def _lost(self) -> int:
        self.screen.say(
            f"Machine 0 has not begun in {PATIENCE / 60:.0f} minutes. Run the same command there, "
            f"with machine_rank 0 and this store ({self.plan.store.resolve()}); its file system "
            "must share locks between machines."
        )
        return 1


def _head(work: Path) -> dict[str, Any] | None:
    """Where the processes of a stage meet, while machine 0 makes it."""
    with contextlib.suppress(FileNotFoundError):  # it may be gone at any moment
        head: dict[str, Any] = json.loads((work / HEAD).read_text(encoding="utf-8"))
        name = work.name.removesuffix(store.PARTIAL)
        return head if store.writer(work.parent, name) == head["pid"] else None
    return None

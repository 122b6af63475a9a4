"""One stage, in a process of its own.

    python -m align.worker DIRECTORY       make the stage in that .partial directory, by hand
    ... DIRECTORY --runner PID             the same for a runner: everything said goes to log.txt
    ... --rank DIRECTORY                   one of several processes of it (accelerate starts these)
    ... --shards NAME DIRECTORY            makes shards of it, as stdin says (pool.py starts these)

`stage.json` in the directory says what to do. Exit codes are the command's: 0 made, 1 failed,
3 made and a gate said stop, 130 stopped by a signal and ready to go on. A sentence for the user is
left in `error.json`; anything else that is raised leaves its traceback in the log.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import random
import signal
import subprocess
import sys
import time
import traceback
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from align import credentials, launch, nodes, processes, records, slurm, store, versions
from align.artifacts import Model, read_json
from align.errors import GateStopped, RecipeError, StageFailed
from align.out import Out
from align.parallel import pool
from align.settings import Stage


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m align.worker`."""
    parser = argparse.ArgumentParser(prog="python -m align.worker", description="Make one stage.")
    parser.add_argument("directory", nargs="?", type=Path, help="the stage's .partial directory")
    parser.add_argument("--runner", type=int, metavar="PID", help=argparse.SUPPRESS)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--shards", metavar="NAME", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if os.environ.get("PYTHONHASHSEED") != "0":  # by hand: begin again in a runner's environment
        again = [sys.executable, "-m", "align.worker", *(arguments or sys.argv[1:])]
        os.execve(sys.executable, again, processes.environment())
    if asked.runner:
        processes.die_with(asked.runner)
    if asked.directory is None or not (asked.directory / "stage.json").is_file():
        parser.error("DIRECTORY must be a stage's .partial directory, which holds a stage.json")
    work = asked.directory.resolve()
    if asked.shards:
        return guarded(lambda work: pool.serve(work, asked.shards), work)
    return guarded(rank if asked.rank else make, work)


def guarded(do: Callable[[Path], int], work: Path) -> int:
    """Call `do(work)`: the border of the process, where exceptions become an exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # training sets one of its own
    modest()
    try:
        return do(work)
    except KeyboardInterrupt:
        return 130
    except StageFailed as failure:
        return _failed(work, str(failure), failure.exit_code)
    except RecipeError as error:  # a file of the user's has changed since the recipe was read
        return _failed(work, str(error), 1)
    except Exception as error:  # the last frame of the process: to the log, with its traceback
        traceback.print_exc()
        sentence = ""
        if do is rank:  # the launcher says a lot after it, so the end of the log is not enough
            number = os.environ.get("GROUP_RANK", "0")  # torch's name for the machine's number
            log = "log" if number == "0" else f"log of machine {number}"
            sentence = f"{type(error).__name__}: {error} (its traceback is in the {log})"
        if store.is_full(error, work):
            sentence = store.full(work)
        return _failed(work, sentence, 1)


def modest() -> None:
    """What the hub's client logs is without signed addresses and tokens: it names them when it
    tries a download again, and `log.txt` is shown to others.

    At the making of records, since the client has no handlers before it is imported.
    """
    made = logging.getLogRecordFactory()

    def record(*arguments: Any, **named: Any) -> logging.LogRecord:
        said = made(*arguments, **named)
        if said.name.startswith("huggingface_hub"):
            said.msg, said.args = credentials.hidden(said.getMessage()), ()
        return said

    logging.setLogRecordFactory(record)


def _failed(work: Path, sentence: str, code: int) -> int:
    if sentence:
        sys.stderr.write(sentence + "\n")
        with contextlib.suppress(OSError):  # a full disk; the runner sees that itself
            store.write_json(work / "error.json", {"error": sentence, "exit_code": code})
    return code


# Making


def make(work: Path) -> int:
    """Make the artifact: check what it consumes, run the stage, publish."""
    name = work.name.removesuffix(store.PARTIAL)
    with store.lock(work.parent, name, f"{name} is being made"):
        if (work / store.MANIFEST).is_file():  # killed between the manifest and the rename
            with contextlib.suppress(StageFailed):
                store.verify(work)
                return judge(store.finish(work))
            (work / store.MANIFEST).unlink()
        record = read_json(work / "stage.json")
        began = begun_with(work)
        if not slurm.kept(work):  # else a job writes them
            for scratch in ("error.json", "made.json", "progress.json"):
                (work / scratch).unlink(missing_ok=True)
        (work / "metrics.jsonl").touch()
        (work / "log.txt").touch()
        for path in store.used(work.parent / key for key in record["inputs"]):
            store.verify(path)
        unchanged(work, record)
        if launch.spread(record["settings"]):
            spread(work, record)
        else:
            if "launch" in record["settings"] and launch.devices() > 1:
                launch.take_one()
            perform(work, record)
        made = read_json(work / "made.json")
        made["began_with"] = began
        made["made_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with quiet(work / "log.txt"):
            path = store.publish(work, made)
    return judge(path)


def judge(path: Path) -> int:
    """The exit code of what was made: 3 where a gate says stop. The runner gives the reason."""
    stage = records.restore(read_json(path / "stage.json"), path.parent)
    return 3 if store.manifest(path)["stopped"] or stage.verdict(path) else 0


def unchanged(work: Path, record: dict[str, Any]) -> None:
    """See that the key still holds: hours can lie between reading a recipe and running a stage.

    Raises:
        StageFailed: the user's data or files are not what the recipe was read with.
    """
    stage = records.restore(record, work.parent)
    contents = records.Contents(work.parent)
    if records.key(stage, record["kind"], record["attempt"], contents) != record["key"]:
        raise StageFailed(
            f"{record['key']} cannot be made any more: a file it is made from (data, a model, your "
            "own stage, reward or task) has changed since the recipe was read. Run the recipe "
            "again: what has changed gets a directory of its own."
        )


def begun_with(work: Path) -> dict[str, str]:
    """The versions that began this directory, if they are not today's; that is said."""
    now = versions.libraries()
    began = work / "began.json"
    if not began.is_file():
        store.write_json(began, now)
        return {}
    then = {name: then for name, then in read_json(began).items() if now.get(name) != then}
    if then:
        changed = ", ".join(f"{name} {now[name]} (was {old})" for name, old in then.items())
        Out(work, work).say(
            f"This goes on with {changed}: the result can be neither version's. "
            f"Remove {work} to begin anew."
        )
    return then


def perform(work: Path, record: dict[str, Any], main: bool = True) -> None:
    """Run the stage and leave what the manifest will say about it in `made.json`."""
    begun = time.monotonic()
    stage = records.restore(record, work.parent)
    out = Out(work, work.parent / ".cache", main)
    out.cache.mkdir(exist_ok=True)
    seed(stage)
    stopped = None
    try:
        stage.run(out)
    except GateStopped as gate:
        stopped = str(gate)
    if main:
        facts = {
            **{name: record[name] for name in ("kind", "name", "recipe", "inputs")},
            "versions": versions.libraries(),
            "shelf": versions.shelf_files(record),
            **machine(),
            "launch": record["settings"].get("launch"),
            "seconds": round(time.monotonic() - begun, 3),
            "counts": out.counts,
            "stopped": stopped,
        }
        store.write_json(work / "made.json", facts)


def seed(stage: Stage) -> None:
    """Seed the global generators. A stage without a model has no need to import torch for it."""
    random.seed(stage.seed)
    made = typing.get_type_hints(type(stage).run)["return"]
    touched = [*typing.get_args(made), made]
    touched += [type(getattr(stage, name)) for name in type(stage).model_fields]
    if any(isinstance(one, type) and issubclass(one, Model) for one in touched):
        from transformers import set_seed

        set_seed(stage.seed)


def machine() -> dict[str, Any]:
    """On what it ran: device, threads, processes."""
    device = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                device = line.partition(":")[2].strip()
                break
    threads, world_size = 1, 1
    if "torch" in sys.modules:
        import torch

        threads = torch.get_num_threads()
        if torch.cuda.is_available():
            device = torch.cuda.get_device_name()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            world_size = torch.distributed.get_world_size()
    return {"device": device, "threads": threads, "world_size": world_size}


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Say nothing to the log while its hash is taken, and after that; unless publishing fails."""
    sys.stdout.flush()
    sys.stderr.flush()
    if not os.path.samestat(os.fstat(2), log.stat()):  # by hand: that is a terminal
        yield
        return
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        yield
    except BaseException:
        os.dup2(before, 1)
        os.dup2(before, 2)
        raise


# Several processes


def spread(work: Path, record: dict[str, Any]) -> None:
    """Run the stage in several processes under `accelerate launch`; we wait, then publish."""
    settings = record["settings"]
    asked = launch.asked(settings)
    out = Out(work, work)
    if "slurm" in asked:
        task = nodes.Task(work, settings)
        slurm.run(work, asked, f"align.{record['recipe']}.{record['name']}", task, out.say)
        return
    if launch.machines(settings) > 1:
        command = nodes.lead(work, settings, out.say)
    else:
        command = launch.command(work, settings)
    sys.stderr.write("+ " + " ".join(command) + "\n")
    ours = os.getpid()
    ranks = subprocess.Popen(command, preexec_fn=lambda: processes.die_with(ours))
    try:
        code = nodes.attend(ranks, work)
    except KeyboardInterrupt:
        (work / nodes.HEAD).unlink(missing_ok=True)  # what other machines do now is not a failure
        ranks.terminate()  # it tells its processes, and gives them 30 s
        ranks.wait()
        raise
    if code and (work / "error.json").is_file():
        raise StageFailed(read_json(work / "error.json")["error"])
    if code:
        raise SystemExit(1)


def rank(work: Path) -> int:
    """One of the processes that `spread` started."""
    processes.die_with(os.getppid())
    record = read_json(work / "stage.json")
    launch.check_world(launch.processes(record["settings"]))
    from accelerate import PartialState

    state = PartialState()
    perform(work, record, main=state.is_main_process)
    state.wait_for_everyone()  # one that leaves early makes gloo abort the others
    state.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How a training stage is spread over devices: `launch:` and `accelerate launch`.

`launch:` is a profile file (what `accelerate config` writes) or a mapping of `accelerate launch`'s
own options (`num_processes: 4`). It says where a stage runs, so it is recorded with
the artifact and is not part of its key.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align import slurm
from align.errors import StageFailed

Launch = Annotated[dict[str, Any] | str | None, Field(exclude=True)]
"""The field `launch` of a training stage; its `check` yields from `problems(self.launch)`."""

KINDS = ("multi_gpu", "tpu", "cpu")
"""The options of which `accelerate launch` wants one to start more than one process."""

SHARDED = ("fsdp", "deepspeed", "megatron_lm")
"""Ways of spreading one model over devices. `models.save` would write one device's part of it, and
on a CPU accelerate 1.15 runs plain data parallel instead of FSDP without saying so."""


@functools.cache
def devices() -> int:
    """How many accelerators there are, without importing torch, which would open them."""
    if sys.platform == "darwin" or Path("/dev/dxg").exists():
        return 1
    found = len(glob("/dev/nvidia[0-9]*"))
    if Path("/dev/kfd").exists():
        found += len(glob("/dev/dri/renderD*"))
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if name in os.environ:
            chosen = [
                part for part in os.environ[name].split(",") if part.strip() not in ("", "-1")
            ]
            found = min(found, len(chosen))
    return found


def asked(settings: dict[str, Any]) -> dict[str, Any]:
    """What `launch:` of a stage's settings says; a profile's keys where it is a file."""
    launch = settings.get("launch")
    if isinstance(launch, str):
        launch = YAML(typ="safe").load(Path(launch).expanduser().read_text(encoding="utf-8"))
    return launch or {}


def processes(settings: dict[str, Any]) -> int:
    """How many processes run a stage on all machines: as `launch:` says, else one a device."""
    if "launch" not in settings:
        return 1
    if "num_processes" in asked(settings):
        return int(asked(settings)["num_processes"])
    return max(1, devices())


def machines(settings: dict[str, Any]) -> int:
    """On how many machines a stage runs."""
    return int(asked(settings).get("num_machines", 1))


def spread(settings: dict[str, Any]) -> bool:
    """Whether `accelerate launch` runs the stage: in several processes, or as a job of SLURM."""
    return processes(settings) > 1 or "slurm" in asked(settings)


def command(work: Path, settings: dict[str, Any], **place: Any) -> list[str]:
    """The `accelerate launch` that starts this machine's ranks of the stage in `work`.

    `place` is what differs from machine to machine: `machine_rank`, `main_process_ip` and
    `main_process_port`. On a CPU `--multi_gpu` is what makes it start several processes;
    `--cpu --num_processes 2` starts one without saying so. Port 0 is a free port, so that two runs
    can share a machine.
    """
    launch: dict[str, Any] | str | None = settings["launch"]
    if isinstance(launch, str):
        options = ["--config_file", str(Path(launch).expanduser())]
        launch = place
    else:
        launch = {"num_processes": processes(settings), **(launch or {}), **place}
        launch.pop("slurm", None)
        if launch["num_processes"] > 1 and not any(launch.get(kind) for kind in KINDS):
            launch["multi_gpu"] = True
        launch.setdefault("main_process_port", 0)
        options = ["--config_file", str(_plain(work, place.get("machine_rank", 0)))]
    for name, value in launch.items():
        if value is True and name in flags():
            options.append(f"--{name}")
        elif value is not None and not (value is False and name in flags()):
            options += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", *options]
    return [*accelerate, "--module", "align.worker", "--rank", str(work)]


def take_one() -> None:
    """Hide all devices but the first: transformers spreads a batch over all that one process sees.

    That is `torch.nn.DataParallel`, in which `batch_size` would mean something else.
    """
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        os.environ[name] = os.environ.get(name, "0").split(",")[0]


def _plain(work: Path, machine: int) -> Path:
    """A profile that says nothing: without one, accelerate reads the one in the home directory."""
    path = work / f"launch-{machine}.tmp"
    path.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: 'no'\n"
        "num_machines: 1\nuse_cpu: false\ndebug: false\n",
        encoding="utf-8",
    )
    return path


def check_world(expected: int) -> None:
    """Join the other processes of this stage, and see that all of them are there.

    Raises:
        StageFailed: fewer or more started than the recipe asked for.
    """
    from accelerate import PartialState

    started = PartialState(cpu=devices() == 0).num_processes
    if started != expected:
        raise StageFailed(
            f"launch: asks for {expected} processes, and {started} started. `accelerate launch` "
            "needs multi_gpu to start several, and ignores num_processes with cpu: leave cpu out."
        )


@functools.cache
def _options() -> dict[str, bool]:
    """The options of the installed `accelerate launch`: name -> whether it is a bare flag."""
    spec = importlib.util.find_spec("accelerate")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).with_name("commands") / "launch.py"
    found = {}
    for call in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
            continue
        if call.func.attr == "add_argument":
            keywords = {word.arg: word.value for word in call.keywords}
            action = keywords.get("action")
            flag = isinstance(action, ast.Constant) and action.value == "store_true"
            for word in call.args:
                if isinstance(word, ast.Constant) and str(word.value).startswith("--"):
                    found[str(word.value)[2:].replace("-", "_")] = flag
    return found


def flags() -> frozenset[str]:
    """Options that are given without a value."""
    return frozenset(name for name, flag in _options().items() if flag)


_SHARDED = (
    "{} shares one model out over the devices, and a model in parts cannot be saved yet. "
    "Every device can hold all of it: `launch: {{num_processes: N}}`, with `lora:` and "
    "`quantization:` where it is large."
)


def problems(launch: dict[str, Any] | str | None) -> Iterator[tuple[str, str]]:
    """What is wrong with a `launch:`, as (key, message); for `Stage.check`."""
    if isinstance(launch, str):
        write = f"`accelerate config --config_file {launch}` writes one."
        if not Path(launch).expanduser().is_file():
            yield "launch", f'"{launch}" is no file. {write}'
            return
        try:
            launch = YAML(typ="safe").load(Path(launch).expanduser().read_text(encoding="utf-8"))
        except (YAMLError, ValueError):
            launch = None
        if not isinstance(launch, dict):
            yield "launch", f"This is no profile of accelerate. {write}"
            return
        number = "launch"
        if str(launch.get("distributed_type", "")).lower() in SHARDED:
            yield "launch", _SHARDED.format(f"distributed_type {launch['distributed_type']}")
    elif launch is not None:
        number = "launch.num_processes"
        for name in [f"use_{kind}" for kind in SHARDED if launch.get(f"use_{kind}")]:
            yield f"launch.{name}", _SHARDED.format(name)
        known = sorted({*_options(), "slurm"} - {"config_file", "module", "help"})
        for name in sorted(set(launch) - set(known)):
            near = difflib.get_close_matches(name, known, 1)
            hint = f' Did you mean "{near[0]}"?' if near else ""
            yield f"launch.{name}", f'"{name}" is no option of `accelerate launch`.{hint}'
    if launch and "num_processes" in launch:
        asked = launch["num_processes"]
        if type(asked) is not int or asked < 1:
            yield number, f"num_processes is {asked!r}; it must be a whole number from 1."
            return
    if launch and (launch.get("num_machines", 1) != 1 or "slurm" in launch):
        yield from _several(launch)


def _several(launch: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with a `launch:` for other machines than this one."""
    machines, rank = launch.get("num_machines", 1), str(launch.get("machine_rank", ""))
    if type(machines) is not int or machines < 1:
        fact = f"num_machines is {machines!r}; it must be a whole number from 1."
        yield "launch.num_machines", fact
    elif "slurm" in launch:
        yield from slurm.problems(launch)
    elif "num_processes" not in launch:
        fact = "num_processes is missing: it counts the processes of all machines."
        yield "launch", f"num_machines is {machines}, and {fact}"
    elif launch["num_processes"] % machines:
        fact = f"{launch['num_processes']}, which {machines} machines cannot share equally"
        yield "launch.num_processes", f"num_processes is {fact}: it counts those of all machines."
    elif not rank.isdecimal() or int(rank) >= machines:
        fact = f"machine_rank is {rank or 'missing'}: this machine's number, 0 to {machines - 1}"
        yield "launch", f'{fact}. Take it from the environment: "${{env:NODE_RANK:-0}}".'

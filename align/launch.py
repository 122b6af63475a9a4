"""How a training stage is spread over devices: `launch:` and `accelerate launch`.

`launch:` is a profile file (what `accelerate config` writes; recipes/launch/ has some) or a mapping
of `accelerate launch`'s own options (`num_processes: 4`), with `config_file: FILE` on top of a
profile. It says where a stage runs, so it is recorded with
the artifact and is not part of its key.
"""

from __future__ import annotations

import ast
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

from align import shelf, slurm
from align.errors import StageFailed
from align.options import nearest
from align.signatures import options

Launch = Annotated[dict[str, Any] | str | None, Field(exclude=True)]
"""The field `launch` of a training stage; its `check` yields from `problems(self.launch)`."""

KINDS = ("multi_gpu", "tpu", "cpu", "use_fsdp", "use_deepspeed", "use_megatron_lm")
"""The options of which `accelerate launch` wants one to start more than one process."""

TYPES = {
    "MULTI_GPU": "multi_gpu",
    "FSDP": "use_fsdp",
    "DEEPSPEED": "use_deepspeed",
    "MEGATRON_LM": "use_megatron_lm",
    "XLA": "tpu",
}
"""The option that a profile's `distributed_type` stands for, as in `_validate_launch_command`."""

OURS = {"config_file", "module", "help"}
"""The options of `accelerate launch` that are no one's to set: `command` says them, or nobody."""


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
    """The options of `accelerate launch` that a stage's `launch:` comes to.

    Those of a profile (`launch: FILE`, or `config_file: FILE` in a block) are under the names they
    have on the command line; the other keys of the block go before them.
    """
    launch = _block(settings)
    profile = launch.pop("config_file", None)
    return {**(_flat(_read(*_file(profile))) if profile else {}), **launch}


def _block(settings: dict[str, Any]) -> dict[str, Any]:
    launch = settings.get("launch")
    return {"config_file": launch} if isinstance(launch, str) else dict(launch or {})


def _file(profile: str) -> tuple[Path, float]:
    """Where a profile lies, in the working directory or on the shelf, and when it was changed."""
    path = shelf.find(profile) or Path(profile)
    return path, path.stat().st_mtime


@functools.cache
def _read(path: Path, changed: float) -> dict[str, Any]:
    read = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    if not isinstance(read, dict):
        raise ValueError
    return read


def _flat(profile: dict[str, Any]) -> dict[str, Any]:
    """A profile's keys as options, the way accelerate's `_validate_launch_command` reads them."""
    options: dict[str, Any] = {}
    for name, value in profile.items():
        if name == "distributed_type" and value in TYPES:
            options[TYPES[value]] = True
        elif isinstance(value, dict):
            prefix = {"fsdp_config": "fsdp_", "dynamo_config": "dynamo_", "fp8_config": "fp8_"}
            start = prefix.get(name, "")
            options |= {start + key.removeprefix(start): value[key] for key in value}
        else:
            options[name] = value
    return options


def processes(settings: dict[str, Any]) -> int:
    """How many processes run a stage on all machines: as `launch:` says, else one a device."""
    if "launch" not in settings:
        return 1
    if "num_processes" in asked(settings):
        return int(asked(settings)["num_processes"])
    return max(1, devices())


def shards(settings: dict[str, Any]) -> bool:
    """Whether a stage is run by FSDP or DeepSpeed."""
    options = asked(settings)
    return bool(options.get("use_fsdp") or options.get("use_deepspeed"))


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
    launch = {**_block(settings), **place}
    launch.pop("slurm", None)
    if profile := launch.pop("config_file", None):
        words = ["--config_file", str(shelf.find(profile))]
    else:
        words = ["--config_file", str(_plain(work, place.get("machine_rank", 0)))]
        launch = {"num_processes": processes(settings), **launch}
        if launch["num_processes"] > 1 and not any(launch.get(kind) for kind in KINDS):
            launch["multi_gpu"] = True
    launch.setdefault("main_process_port", asked(settings).get("main_process_port", 0))
    launch["mixed_precision"] = "no"  # the stage says it: `bf16` or `fp16` of its trainer
    for name, value in launch.items():
        if value is True and name in flags():
            words.append(f"--{name}")
        elif value is not None and not (value is False and name in flags()):
            words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", *words]
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


def lack(settings: dict[str, Any]) -> str | None:
    """What this machine lacks to run a stage as its `launch:` says; None: nothing.

    No fault of a recipe: one for 8 GPUs is planned on a laptop too. FSDP and ZeRO are for GPUs:
    without one accelerate 1.15 trains with a whole model in every process and says nothing.
    """
    launch = asked(settings)
    if "slurm" in launch or processes(settings) == 1:
        return None
    share = processes(settings) // machines(settings)
    found, cores = devices(), os.cpu_count() or 1
    for kind, name in (("use_fsdp", "FSDP"), ("use_deepspeed", "ZeRO")):
        if not found and launch.get(kind):
            return f"{name} is for GPUs, and this machine has none"
    if found and share > found:
        return f"{share} processes a machine are asked for, and this one has {found} GPUs"
    if not found and share > cores:
        return f"{share} processes a machine are asked for, and this one has {cores} CPU cores"
    return None


def problems(launch: dict[str, Any] | str | None) -> Iterator[tuple[str, str]]:
    """What is wrong with a `launch:`, as (key, message); for `Stage.check`."""
    block = _block({"launch": launch})
    profile = block.pop("config_file", None)
    at = "launch" if isinstance(launch, str) else "launch.config_file"
    if profile is not None:
        if wrong := _unreadable(profile):
            yield at, wrong
            return
        yield from ((at, message) for message in _unknown_in(_read(*_file(profile))))
    known = {*_options(), "slurm"} - OURS
    for name in sorted(block.keys() - known):
        hint = nearest(name, known)
        yield f"launch.{name}", f'"{name}" is no option of `accelerate launch`.{hint}'
    number = "launch.num_processes" if "num_processes" in block else at
    launch = asked({"launch": launch})
    if "num_processes" in launch:
        count = launch["num_processes"]
        if type(count) is not int or count < 1:
            yield number, f"num_processes is {count!r}; it must be a whole number from 1."
            return
    port = launch.get("main_process_port")
    if port is not None and not (str(port).isdecimal() and int(port) < 2**16):
        yield (
            "launch.main_process_port" if "main_process_port" in block else at,
            f"main_process_port is {port!r}; it must be 0, which takes a free port, to 65535.",
        )
    if misplaced := [*_machines(launch)]:
        yield from misplaced
    elif (ids := launch.get("gpu_ids") or "all") != "all":
        share = processes({"launch": launch}) // machines({"launch": launch})
        if (listed := len(str(ids).split(","))) < share:
            fact = f"gpu_ids lists {listed}, and {share} processes a machine are asked for"
            yield "launch.gpu_ids" if "gpu_ids" in block else at, f"{fact}, one a GPU."


def _unreadable(profile: Any) -> str | None:
    """Why a profile cannot be read."""
    write = f"`accelerate config --config_file {profile or 'mine.yaml'}` writes one."
    if not isinstance(profile, str) or (path := shelf.find(profile)) is None or not path.is_file():
        near = nearest(str(profile), shelf.profiles())
        return f'"{profile}" is no file here or on the shelf.{near or " " + write}'
    try:
        _read(*_file(profile))
    except (YAMLError, ValueError):
        return f"This is no profile of accelerate. {write}"
    return None


def _unknown_in(profile: dict[str, Any]) -> Iterator[str]:
    """A profile's wrong keys: accelerate refuses some late, and ignores those inside of blocks."""
    known = {*options("accelerate.commands.config.config_args:ClusterConfig"), *_options()} - OURS
    for name in sorted(_flat(profile).keys() - known):
        yield f'"{name}" is no key of a profile of accelerate.{nearest(name, known)}'


def _machines(launch: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with the machines of a `launch:`, and with which of them this one is."""
    machines, rank = launch.get("num_machines", 1), str(launch.get("machine_rank", ""))
    if type(machines) is not int or machines < 1:
        fact = f"num_machines is {machines!r}; it must be a whole number from 1."
        yield "launch.num_machines", fact
    elif "slurm" in launch:
        yield from slurm.problems(launch)
    elif machines == 1:
        if rank not in ("", "0"):
            yield "launch", f"machine_rank is {rank}, and there is one machine: num_machines is 1."
    elif "num_processes" not in launch:
        fact = "num_processes is missing: it counts the processes of all machines."
        yield "launch", f"num_machines is {machines}, and {fact}"
    elif launch["num_processes"] % machines:
        fact = f"{launch['num_processes']}, which {machines} machines cannot share equally"
        yield "launch.num_processes", f"num_processes is {fact}: it counts those of all machines."
    elif not rank.isdecimal() or int(rank) >= machines:
        fact = f"machine_rank is {rank or 'missing'}: this machine's number, 0 to {machines - 1}"
        yield "launch", f'{fact}. Take it from the environment: "${{env:NODE_RANK:-0}}".'

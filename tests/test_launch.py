"""`launch:`: how many processes really run a stage."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from align import launch, processes, records, shelf, store
from align.settings import Stage

STAGE = """
import os
import time
from pathlib import Path
from typing import Any
from pydantic import Field
from align.artifacts import Prompts
from align.errors import StageFailed
from align.settings import Stage


class Ranks(Stage):
    launch: dict[str, Any] | str | None = Field(default=None, exclude=True)
    fails: bool = False
    sleeps: bool = False
    crashes: bool = False

    def run(self, out: Any) -> Prompts:
        import torch

        total = torch.ones(1)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        if self.sleeps:
            Path(f"{out.path}/rank-{os.environ['RANK']}.tmp").write_text(str(os.getpid()))
            time.sleep(60)
        if self.crashes:
            raise ZeroDivisionError("by nothing")
        if self.fails:
            raise StageFailed("The ranks do not like it. Ask them.")
        out.say(f"{total.item():.0f} of us")
        out.count("ranks", int(total.item()))
        out.write_rows([{"id": os.environ.get("RANK", "alone"), "prompt": []}])
        return Prompts(out.path)
"""


def begin(tmp_path: Path, **settings: Any) -> tuple[processes.Fresh, Path]:
    """Start the stage above with these settings in a process of its own, as the runner does."""
    (tmp_path / "ranks.py").write_text(STAGE)
    stage = shelf.load(tmp_path / "ranks.py", Stage)(**settings)
    assert isinstance(stage, Stage)
    key = records.key(stage, "ranks", 0, records.Contents(tmp_path))
    record = {
        "kind": "ranks",
        "name": "ranks",
        "recipe": "mine",
        "use": str(tmp_path / "ranks.py"),
        "settings": records.dump(stage),
        "attempt": 0,
        "key": key,
        "inputs": [],
    }
    work = tmp_path / f"{key}.partial"
    work.mkdir(exist_ok=True)
    (work / "stage.json").write_text(json.dumps(record))
    return processes.Fresh(work), work


def end(child: processes.Fresh) -> int:
    """Its exit code, in the end."""
    code = None
    while code is None:
        code = child.wait(1.0)
    return code


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """Make the stage above; the exit code and its directory."""

    def make(**settings: Any) -> tuple[int, Path]:
        child, work = begin(tmp_path, **settings)
        code = end(child)
        return code, work.with_name(work.name.removesuffix(".partial")) if code == 0 else work

    return make


def test_one_process_unless_a_recipe_or_the_devices_say_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "two.yaml"
    profile.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")
    monkeypatch.setattr(launch, "devices", lambda: 0)
    assert launch.processes({}) == 1
    assert launch.processes({"launch": None}) == 1
    assert launch.processes({"launch": {"num_processes": 3}}) == 3
    assert launch.processes({"launch": str(profile)}) == 2
    monkeypatch.setattr(launch, "devices", lambda: 8)
    assert launch.processes({"launch": None}) == 8
    assert launch.processes({"launch": {"num_processes": 1}}) == 1
    assert launch.processes({}) == 1, "a stage that does not train takes one device"


def test_devices_counts_only_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        launch, "glob", lambda pattern: ["0", "1", "2"] if "nvidia" in pattern else []
    )
    for value, count in [("", 0), ("-1", 0), ("1", 1), ("0,2", 2), ("0,1,2,3", 3)]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert launch.devices.__wrapped__() == count
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert launch.devices.__wrapped__() == 3


def test_several_processes_are_never_asked_for_with_cpu(tmp_path: Path) -> None:
    command = launch.command(tmp_path, {"launch": {"num_processes": 2}})
    assert command[1:3] == ["-m", "accelerate.commands.launch"]
    assert "--multi_gpu" in command and "--cpu" not in command
    assert command[command.index("--num_processes") + 1] == "2"
    assert command[command.index("--main_process_port") + 1] == "0"
    assert command[-4:] == ["--module", "align.worker", "--rank", str(tmp_path)]


def test_options_reach_accelerate_as_its_own_parser_reads_them(tmp_path: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    options = {
        "num_processes": 4,
        "num_cpu_threads_per_process": 2,
        "fsdp_offload_params": False,
        "debug": False,
    }
    command = launch.command(tmp_path, {"launch": options})
    read = launch_command_parser().parse_args(command[3:])
    assert (read.num_processes, read.num_cpu_threads_per_process, read.multi_gpu) == (4, 2, True)
    assert read.fsdp_offload_params == "false"
    assert not read.debug and read.mixed_precision == "no", "the stage says it"
    assert read.training_script == "align.worker" and read.module


def test_what_is_wrong_with_a_launch_is_known_before_anything_runs(tmp_path: Path) -> None:
    assert list(launch.problems(None)) == []
    assert list(launch.problems({"num_processes": 2, "use_fsdp": False})) == []
    assert list(launch.problems({"num_procs": 2})) == [
        (
            "launch.num_procs",
            '"num_procs" is no option of `accelerate launch`. Did you mean "num_processes"?',
        )
    ]
    assert list(launch.problems("two.yaml")) == [
        (
            "launch",
            '"two.yaml" is no file here or on the shelf. '
            "`accelerate config --config_file two.yaml` writes one.",
        )
    ]
    (problem,) = launch.problems({"config_file": "recipes/launch/fsdp.yaml"})
    assert problem[0] == "launch.config_file"
    assert problem[1].endswith('Did you mean "recipes/launch/fsdp2.yaml"?')


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("", 'launch: "" is no file here or on the shelf.'),
        ({"gpu_ids": "0", "num_processes": 2}, "launch.gpu_ids: gpu_ids lists 1, and 2 processes"),
        ({"gpu_ids": "0,1", "num_processes": 2}, None),
        ({"gpu_ids": "all", "num_processes": 2}, None),
        ({"main_process_port": 99999999}, "launch.main_process_port: main_process_port is 99999"),
        ({"main_process_port": -1}, "launch.main_process_port: main_process_port is -1"),
        ({"main_process_port": "29500"}, None),
        ({"machine_rank": 1}, "launch: machine_rank is 1, and there is one machine"),
        ({"machine_rank": "0", "num_machines": 1}, None),
    ],
)
def test_values_that_accelerate_would_crash_on_or_ignore_are_refused(
    asked: Any, message: str | None
) -> None:
    found = [": ".join(problem) for problem in launch.problems(asked)]
    assert len(found) == (message is not None)
    assert message is None or found[0].startswith(message)


def test_a_profile_whose_processes_are_more_than_its_gpus_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('distributed_type: MULTI_GPU\ngpu_ids: "0"\nnum_processes: 2\n')
    ((key, message),) = launch.problems(str(file))
    assert key == "launch" and message.startswith("gpu_ids lists 1, and 2 processes")


PROFILES = sorted((shelf.SHELF / "recipes" / "launch").glob("*.yaml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_accelerate_reads_a_shipped_profile_as_we_do(path: Path, tmp_path: Path) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    name = path.relative_to(shelf.SHELF).as_posix()
    several = {"config_file": name, "machine_rank": 0, "main_process_ip": "head"}
    asked: dict[str, Any] | str = several if path.stem == "nodes" else name
    assert list(launch.problems(asked)) == []
    command = launch.command(tmp_path, {"launch": asked})
    read, profile, _ = _validate_launch_command(launch_command_parser().parse_args(command[3:]))
    ours = launch.asked({"launch": asked})
    assert profile is not None and read.mixed_precision == "no"
    for key in ours.keys() - {"compute_environment", "distributed_type", "config_file"}:
        assert getattr(read, key) == ours[key], key
    kinds = {"MULTI_GPU": "multi_gpu", "FSDP": "use_fsdp", "DEEPSPEED": "use_deepspeed"}
    for kind, option in kinds.items():
        assert (
            getattr(read, option) == ours.get(option, False) == (profile.distributed_type == kind)
        )


def test_a_profile_is_found_on_the_shelf_from_anywhere_and_a_recipe_overrides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"launch": {"config_file": "recipes/launch/fsdp2.yaml", "num_processes": 4}}
    assert launch.processes(settings) == 4 and launch.asked(settings)["fsdp_version"] == 2
    command = launch.command(tmp_path, settings)
    assert Path(command[command.index("--config_file") + 1]).is_absolute()
    assert command[command.index("--num_processes") + 1] == "4"
    assert "--multi_gpu" not in command, "the profile says FSDP"
    mine = tmp_path / "recipes/launch/fsdp2.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("distributed_type: MULTI_GPU\nnum_processes: 3\n")
    assert launch.processes({"launch": "recipes/launch/fsdp2.yaml"}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_proceses: 2\n", 'Did you mean "num_processes"?'),
        ("fsdp_config: {fsdp_wersion: 2}\n", 'Did you mean "fsdp_version"?'),
        ("hello: 2\n", '"hello" is no key of a profile of accelerate.'),
        ("- a list\n", "This is no profile of accelerate."),
        ("a: {\n", "This is no profile of accelerate."),
    ],
)
def test_a_key_that_accelerate_would_ignore_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    (problem,) = launch.problems(str(tmp_path / "mine.yaml"))
    assert problem[0] == "launch" and message in problem[1] and "help" not in problem[1]


@pytest.mark.parametrize(
    ("devices", "asked", "lack"),
    [
        (0, None, None),
        (8, "recipes/launch/fsdp2.yaml", None),
        (1, "recipes/launch/one-gpu.yaml", None),
        (0, "recipes/launch/fsdp2.yaml", "FSDP is for GPUs, and this machine has none"),
        (0, "recipes/launch/zero3.yaml", "ZeRO is for GPUs, and this machine has none"),
        (1, "recipes/launch/ddp.yaml", "8 processes a machine are asked for, and this one has 1 G"),
        (8, "recipes/launch/nodes.yaml", None),
        (4, "recipes/launch/nodes.yaml", "8 processes a machine are asked for, and this one has 4"),
        (0, {"num_processes": 3}, "3 processes a machine are asked for, and this one has 2 CPU co"),
        (0, {"num_processes": 64, "slurm": {"timeout_min": 9}}, None),
    ],
)
def test_what_this_machine_lacks_is_told_from_what_is_wrong(
    devices: int, asked: Any, lack: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "devices", lambda: devices)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    said = launch.lack({"launch": asked})
    assert said is None if lack is None else said is not None and said.startswith(lack)


def test_two_processes_run_and_one_writes(made: Any) -> None:
    code, path = made(launch={"num_processes": 2})
    assert code == 0, (path / "log.txt").read_text()
    about = store.verify(path)
    assert about["world_size"] == 2 and about["launch"] == {"num_processes": 2}
    assert about["counts"] == {"ranks": {"n": 2}}
    assert (path / "data" / "rows.jsonl").read_text() == '{"id": "0", "prompt": []}\n'
    assert (path / "log.txt").read_text().count("» 2 of us") == 1


def test_a_launch_that_starts_fewer_processes_than_asked_for_stops(made: Any) -> None:
    """`accelerate launch --cpu --num_processes 2` runs one process without saying so."""
    code, work = made(launch={"num_processes": 2, "cpu": True})
    assert code == 1
    assert json.loads((work / "error.json").read_text())["error"].startswith(
        "launch: asks for 2 processes, and 1 started."
    )


def test_a_rank_that_fails_says_why(made: Any) -> None:
    code, work = made(launch={"num_processes": 2}, fails=True)
    assert code == 1
    error = json.loads((work / "error.json").read_text())
    assert error == {"error": "The ranks do not like it. Ask them.", "exit_code": 1}


def test_a_crash_of_a_rank_is_not_lost_in_the_launchers_own_words(made: Any) -> None:
    code, work = made(launch={"num_processes": 2}, crashes=True)
    assert code == 1
    error = json.loads((work / "error.json").read_text())["error"]
    assert error == "ZeroDivisionError: by nothing (its traceback is in the log)"
    assert 'raise ZeroDivisionError("by nothing")' in (work / "log.txt").read_text()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_no_rank_outlives_its_stage(tmp_path: Path, number: int, code: int) -> None:
    child, work = begin(tmp_path, launch={"num_processes": 2}, sleeps=True)
    notes = [work / f"rank-{i}.tmp" for i in range(2)]
    while not all(note.exists() and note.read_text() for note in notes):
        assert child.wait(0.1) is None, (work / "log.txt").read_text()
    child.signal(number)
    assert end(child) == code
    patience = time.monotonic() + 10
    ranks = [Path(f"/proc/{note.read_text()}") for note in notes]
    while any(rank.exists() for rank in ranks) and time.monotonic() < patience:
        time.sleep(0.05)
    assert not any(rank.exists() for rank in ranks)


def test_a_profile_in_the_home_directory_is_not_read(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "hf" / "accelerate"
    home.mkdir(parents=True)
    (home / "default_config.yaml").write_text("compute_environment: NOWHERE\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    code, path = made(launch={"num_processes": 2})
    assert code == 0, (path / "log.txt").read_text()


def test_counting_devices_does_not_import_torch() -> None:
    program = (
        "import sys; from align import launch; launch.devices(); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert said.stdout == "False\n"

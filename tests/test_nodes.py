"""Several machines: typed on each of them, or a job of SLURM, tried with submitit's local executor.

The "machines" are processes on this one; no cluster is part of any test.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from align import launch, nodes, recipe, runner, slurm, store
from align.errors import RecipeError

STAGE = """
import os
import time
from pathlib import Path
from typing import Any
from align.artifacts import Prompts
from align.launch import Launch, problems
from align.settings import Stage


class Ranks(Stage):
    launch: Launch = None
    value: int = 0
    waits: bool = False
    data: Prompts | None = None

    def check(self):
        yield from problems(self.launch)

    def run(self, out: Any) -> Prompts:
        import torch

        total = torch.ones(1)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        Path(f"here-{os.environ.get('GROUP_RANK', 0)}").write_text(str(os.getpid()))
        while self.waits and not Path("go").exists():
            time.sleep(0.05)
        out.say(f"{total.item():.0f} of us")
        out.count("ranks", int(total.item()))
        out.write_rows([{"id": "one", "prompt": []}])
        return Prompts(out.path)
"""

BY_HAND = """
launch: {num_machines: 2, num_processes: 2, machine_rank: "${env:NODE_RANK:-0}", main_process_ip: 127.0.0.1}
stages:
  first: {use: ./ranks.py, waits: true}
  second: {use: ./ranks.py, value: 2, data: first, launch: {num_processes: 1}}
"""  # noqa: E501

JOB = """
launch: {num_machines: 2, num_processes: 2, slurm: {cluster: local, timeout_min: 5}}
stages:
  first: {use: ./ranks.py, waits: true}
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's directory, with the stage above, is the working directory."""
    (tmp_path / "ranks.py").write_text(STAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NODE_RANK", raising=False)
    return tmp_path


class Machine:
    """`align run` in a process of its own, in a session of its own: one machine's command."""

    def __init__(self, text: str, number: int = 0) -> None:
        Path("mine.yaml").write_text(text)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "align.cli", "run", "mine.yaml"],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "NODE_RANK": str(number), "HF_HUB_OFFLINE": "1"},
        )

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it said."""
        said = self.process.communicate(timeout=120)[1]
        return self.process.returncode, said

    def kill(self) -> None:
        """What a lost session does to it."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Machine]]:
    """Start machines; none outlives the test."""
    started: list[Machine] = []

    def start(text: str, number: int = 0) -> Machine:
        started.append(Machine(text, number))
        return started[-1]

    yield start
    for machine in started:
        if machine.process.poll() is None:
            machine.kill()


LIMIT = 120.0
"""Seconds that anything here may take."""


def until(true: Callable[[], Any], *machines: Machine) -> None:
    """Wait until something is so, while the machines run; for `LIMIT` seconds at most."""
    patience = time.monotonic() + LIMIT
    while not true():
        for machine in machines:
            assert machine.process.poll() is None, machine.end()[1]
        if time.monotonic() > patience:
            logs = sorted(Path("runs").glob("*.partial/log.txt"))
            said = "\n".join(log.read_text() for log in logs)
            raise AssertionError(f"It has not come about in {LIMIT} s. The log so far:\n{said}")
        time.sleep(0.05)


def both_are_here() -> bool:
    return all(Path(f"here-{i}").exists() for i in range(2))


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def made() -> dict[str, Any]:
    (path,) = (p for p in Path("runs").glob("ranks-*") if not p.name.endswith(".partial"))
    return store.verify(path)


def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "LIMIT", 0.1)
    Path("runs/one.partial").mkdir(parents=True)
    Path("runs/one.partial/log.txt").write_text("here")
    with pytest.raises(AssertionError, match="The log so far:\nhere"):
        until(lambda: False)


# -- by hand -------------------------------------------------------------------------------------


def test_the_same_command_on_two_machines_makes_one_artifact(start: Callable[..., Machine]) -> None:
    other, main = start(BY_HAND, 1), start(BY_HAND, 0)
    until(both_are_here, main, other)
    Path("go").touch()
    code, said = main.end()
    assert code == 0, said
    assert "first: Machine 0 of 2 waits for the others at 127.0.0.1:" in said
    code, said = other.end()
    assert code == 0, said
    assert said.startswith("Machine 1 waits for machine 0, and joins it in: first.\n")
    assert "first: 2 of us\n" in said, "it shows what machine 0 says"
    assert said.endswith("Machine 0 has ended: done.\n")
    plan = recipe.read("mine.yaml")
    counts = {}
    for name, stage in plan.stages.items():
        about = store.verify(stage.artifact.path)
        counts[name] = about["world_size"], about["counts"]["ranks"]["n"]
        assert set(about["files"]) == {"data/rows.jsonl", "log.txt", "metrics.jsonl", "stage.json"}
    assert counts == {"first": (2, 2), "second": (1, 1)}
    assert start(BY_HAND, 1).end()[0] == 0, "there is nothing left to join"


LEADER = """
import os, sys, time
from pathlib import Path
from align import recipe, store
from align.reporting import report
here = recipe.read("mine.yaml")
record, path = here.stages["first"].record, here.stages["first"].artifact.path
work = store.partial(path)
with store.lock(here.store, "recipe.mine", "busy"), store.lock(path.parent, path.name, "busy"):
    work.mkdir(parents=True, exist_ok=True)
    store.link(here.store / "mine" / "first", work)
    store.write_json(work / "stage.json", record)
    store.write_json(work / "head.json", {"pid": os.getpid(), "host": "127.0.0.1", "port": 1})
    while not Path("go").exists() and not (work / "error.json").exists():
        time.sleep(0.01)
    report.write(here, sys.argv[1])
"""


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., tuple[int, str]]:
    """Machine 1 in this process, whose ranks run `does`; machine 0 ends with a status.

    What machine 0 does here is what the store shows of it: two locks, a note, a report at the end.
    """

    def follow(does: str, status: str = "failed") -> tuple[int, str]:
        begin = "import json, os, time; from pathlib import Path; Path('pid').write_text"
        program = f"{begin}(str(os.getpid())); {does}; time.sleep(60)"
        command = [sys.executable, "-c", program]
        monkeypatch.setenv("NODE_RANK", "1")
        monkeypatch.setattr(launch, "command", lambda *_, **__: command)
        monkeypatch.setattr(nodes, "GRACE", 0.2)
        Path("mine.yaml").write_text(BY_HAND)
        with subprocess.Popen([sys.executable, "-c", LEADER, status]):
            code = runner.run(recipe.read("mine.yaml"))
        assert not alive(int(Path("pid").read_text()))
        return code, capsys.readouterr().err

    return follow


def error() -> str:
    (path,) = Path("runs").glob("ranks-*.partial/error.json")
    return str(json.loads(path.read_text())["error"])


@pytest.mark.parametrize(
    ("status", "code"), [("done", 0), ("failed", 1), ("stopped", 3), ("interrupted", 130)]
)
def test_the_others_end_as_machine_0_does(status: str, code: int, follow: Any) -> None:
    found, said = follow("Path('go').touch()", status)
    assert found == code
    assert said.endswith(f"Machine 0 has ended: {status}.\n")


def test_nobody_waits_for_a_machine_0_that_was_killed(follow: Any) -> None:
    kill = "os.kill(json.loads(next(Path('runs').glob('*/head.json')).read_text())['pid'], 9)"
    code, said = follow(kill)
    assert code == 1
    assert said.endswith("Machine 0 was killed. The same command on every machine goes on.\n")


def test_a_machine_whose_processes_fail_ends_the_stage_on_all(follow: Any) -> None:
    code, said = follow("os._exit(7)")
    assert code == 1 and said.endswith("Machine 0 has ended: failed.\n")
    assert re.fullmatch(
        r"The processes of machine 1 \(.+\) ended with exit code 7\. "
        r"Their log: runs/\.jobs/ranks-\w+/machine-1\.log",
        error(),
    )


def test_a_machine_that_is_told_to_stop_says_so_to_all(follow: Any) -> None:
    code, said = follow("os.kill(os.getppid(), 15)")
    assert code == 130 and said.endswith("Stopped.\n")
    assert "were told to stop" in error()


def test_machine_0_does_not_wait_for_processes_that_failed_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "GRACE", 0.2)
    ranks = subprocess.Popen(["sleep", "60"])
    nodes.blame(tmp_path, "machine 1 (two)", "ended with exit code 1", "log")
    assert nodes.attend(ranks, tmp_path) == -signal.SIGTERM


def test_a_machine_0_that_never_begins_is_waited_for_only_so_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nodes, "PATIENCE", 0.1)
    monkeypatch.setenv("NODE_RANK", "1")
    Path("mine.yaml").write_text(BY_HAND)
    assert runner.run(recipe.read("mine.yaml")) == 1
    assert (
        "Run the same command there, with machine_rank 0 and this store" in capsys.readouterr().err
    )


def test_a_machine_has_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    other = "{num_machines: 2, num_processes: 2, machine_rank: 0}"
    monkeypatch.setenv("NODE_RANK", "1")
    Path("mine.yaml").write_text(BY_HAND.replace("{num_processes: 1}", other))
    with pytest.raises(RecipeError, match="the same for every stage: first says 1, second says 0"):
        runner.run(recipe.read("mine.yaml"))


# -- what is wrong with a launch -----------------------------------------------------------------

SEVERAL = [
    ({"num_processes": 2}, "launch: machine_rank is missing: this machine's number, 0 to 1"),
    ({"num_processes": 2, "machine_rank": 2}, "launch: machine_rank is 2: this machine's number"),
    ({"num_processes": 3, "machine_rank": 0}, "num_processes is 3, which 2 machines cannot share"),
    ({"machine_rank": 0}, "launch: num_machines is 2, and num_processes is missing"),
]


@pytest.mark.parametrize(("block", "message"), SEVERAL)
def test_what_several_machines_need_is_known_before_anything_runs(
    block: dict[str, Any], message: str
) -> None:
    (problem,) = launch.problems({"num_machines": 2, **block})
    assert message in ": ".join(problem)


def test_a_machine_rank_may_be_a_word_as_variables_are() -> None:
    block = {"num_machines": 2, "num_processes": 2, "machine_rank": "1"}
    assert list(launch.problems(block)) == []


PARAMETERS = [
    ({}, 'launch.slurm: "timeout_min" is missing, and submitit would ask for 5 minutes.'),
    (
        {"partition": "a"},
        '"partition" is no parameter of submitit. Did you mean "slurm_partition"?',
    ),
    ({"timeout": 5}, '"timeout" is no parameter of submitit. Did you mean "timeout_min"?'),
    ({"timeout_min": "12h"}, '"timeout_min" must be a whole number, not "12h".'),
    ({"timeout_min": 0}, "launch.slurm.timeout_min: It is 0; it must be a whole number from 1."),
    ({"slurm_mem_per_gpu": 3}, '"slurm_mem_per_gpu" must be a word or null, not 3.'),
    ({"nodes": 2}, '"nodes" cannot be set here: `num_machines` says it.'),
    ({"cluster": "pbs"}, 'launch.slurm.cluster: It must be "slurm" or "local", not "pbs".'),
    ({"gpus_per_node": 8}, "2 machines with 8 GPUs run 16 processes, and num_processes is 2."),
]


@pytest.mark.parametrize(("block", "message"), PARAMETERS)
def test_parameters_of_a_job_are_those_of_the_installed_submitit(
    block: dict[str, Any], message: str
) -> None:
    limit = {"timeout_min": 5} if block else {}
    asked = {"num_machines": 2, "num_processes": 2, "slurm": {**limit, **block}}
    (problem,) = launch.problems(asked)
    assert message in ": ".join(problem)


def test_every_parameter_of_submitit_is_taken() -> None:
    import submitit

    known = slurm._known()
    ours = {f"slurm_{name}" for name in submitit.SlurmExecutor._valid_parameters()}
    assert ours < known.keys() and {"name", "mem_gb", "slurm_max_num_timeout"} < known.keys()
    block = {
        "num_machines": 2,
        "num_processes": 16,
        "slurm": {
            "slurm_partition": "gpu",
            "timeout_min": 720,
            "gpus_per_node": 8,
            "cpus_per_task": 64,
            "mem_gb": 512,
            "slurm_setup": ["module load cuda"],
            "slurm_max_num_timeout": 20,
        },
    }
    assert list(launch.problems(block)) == []


def test_without_sbatch_a_job_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    Path("mine.yaml").write_text(JOB.replace("cluster: local, ", ""))
    with pytest.raises(RecipeError, match="There is no sbatch here, and `slurm:` submits a job"):
        runner.run(recipe.read("mine.yaml"))
    assert not Path("runs").exists()


def test_the_recipes_of_the_page_about_machines_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    page = Path(__file__).parents[1] / "docs" / "machines.md"
    found = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(found) == 3
    for text in found:
        Path("mine.yaml").write_text(text)
        settings = next(iter(recipe.read("mine.yaml").stages.values())).record["settings"]
        assert launch.machines(settings) == 2 or settings["workers"]["count"] == 16


# -- jobs ----------------------------------------------------------------------------------------


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def jobs() -> list[str]:
    """The ids of the jobs that were submitted for the one stage."""
    return [path.name.split("_")[0] for path in Path("runs").glob(".jobs/*/*_submitted.pkl")]


def test_a_job_outlives_its_run_and_is_not_submitted_twice(start: Callable[..., Machine]) -> None:
    main = start(JOB)
    until(both_are_here, main)
    main.kill()
    again = start(JOB)
    (log,) = Path("runs").glob("*.partial/log.txt")
    until(lambda: "makes this already" in log.read_text(), again)
    Path("go").touch()
    code, said = again.end()
    assert code == 0, said
    (job,) = jobs()
    assert f"first: Job {job} makes this already; waiting for it.\n" in said
    assert "first: 2 of us\n" in said
    about = made()
    assert about["world_size"] == 2 and about["launch"]["slurm"]["cluster"] == "local"
    assert set(about["files"]) == {"data/rows.jsonl", "log.txt", "metrics.jsonl", "stage.json"}


def test_a_job_that_is_told_to_stop_ends_and_another_goes_on(start: Callable[..., Machine]) -> None:
    main = start(JOB)
    until(both_are_here, main)
    ranks = [int(Path(f"here-{i}").read_text()) for i in range(2)]
    main.process.send_signal(signal.SIGINT)
    code, said = main.end()
    assert code == 130
    assert said.endswith("Stopped. What was made is kept; the same command goes on from here.\n")
    assert not any(map(alive, ranks))
    assert not list(Path("runs").glob("*/job.json"))
    Path("go").touch()
    code, said = start(JOB).end()
    assert code == 0, said
    assert len(jobs()) == 2 and "makes this already" not in said
    assert made()["counts"]["ranks"] == {"n": 2}


def test_a_job_that_gets_sigterm_ends_with_a_sentence(start: Callable[..., Machine]) -> None:
    """`scancel` and a preemption send it to the tasks: the grandparents of the ranks."""
    main = start(JOB)
    until(both_are_here, main)
    ranks = [int(Path(f"here-{i}").read_text()) for i in range(2)]
    for pid in ranks:
        os.kill(parent(parent(pid)), signal.SIGTERM)
    code, said = main.end()
    (job,) = jobs()
    assert code == 1
    assert f"first: Job {job} was told to end (SIGTERM): it was cancelled, or another" in said
    assert "before the stage was made" not in said
    assert not any(map(alive, ranks))
    assert not list(Path("runs").glob(".jobs/*/*_result.pkl")), "SLURM may queue it again"
    assert not [*Path("runs").glob("*/job.json"), *Path("runs").glob("*/job.tmp")]


def test_processes_that_save_a_checkpoint_are_told_once(tmp_path: Path) -> None:
    """SLURM may send SIGTERM, and then its warning."""
    saves = "trap 'echo told >> told' TERM; touch ready; for i in 1 2 3 4 5; do sleep 0.1; done"
    task = nodes.Task(tmp_path, {})
    task._ranks = nodes.Launched(["sh", "-c", saves])
    until(Path("ready").exists)
    task._ranks.terminate()
    until(Path("told").exists)
    task.checkpoint()
    assert task._ranks.wait() == 0
    assert Path("told").read_text() == "told\n"


@pytest.mark.slow
def test_a_job_whose_time_is_over_is_queued_again_and_goes_on(
    start: Callable[..., Machine],
) -> None:
    """SLURM's warning, SIGUSR2, goes to the tasks: the grandparents of the ranks."""
    main = start(JOB)
    until(both_are_here, main)
    ranks = [int(Path(f"here-{i}").read_text()) for i in range(2)]
    for pid in ranks:
        os.kill(parent(parent(pid)), signal.SIGUSR2)
    until(lambda: not any(map(alive, ranks)), main)
    for i in range(2):
        Path(f"here-{i}").unlink()
    until(both_are_here, main)
    Path("go").touch()
    code, said = main.end()
    assert code == 0, said
    assert len(jobs()) == 1 and said.count("runs on") == 2
    assert made()["counts"]["ranks"] == {"n": 2}


SFT = """
base: {path: TINY}
stages:
  sft:
    model: base
    data: {path: rows.jsonl}
    batch_size: 4
    trainer: {max_steps: 30, save_steps: 5, learning_rate: 0.01}
    launch: {num_machines: 2, num_processes: 2, slurm: {cluster: local, timeout_min: 9}}
"""


@pytest.mark.slow
def test_a_training_that_was_cancelled_ends_with_the_same_bytes(
    start: Callable[..., Machine], tiny_model: Path, write_rows: Any
) -> None:
    rows = [{"prompt": f"say {c}", "completion": 3 * c} for c in "abcdefghijkl"]
    write_rows("rows.jsonl", rows)
    text = SFT.replace("TINY", str(tiny_model))
    hashes = []
    for stops in (True, False):
        if stops:
            main = start(text)
            until(lambda: list(Path("runs").glob("sft-*/checkpoints/checkpoint-*")), main)
            main.process.send_signal(signal.SIGINT)
            code, said = main.end()
            assert code == 130, said
        code, said = start(text).end()
        assert code == 0, said
        assert bool(re.search(r"sft: Going on from checkpoint-\d+\.", said)) == stops
        (path,) = Path("runs").glob("sft-*")
        files: dict[str, Any] = store.verify(path)["files"]
        assert store.manifest(path)["world_size"] == 2
        hashes.append(files["model/model.safetensors"]["sha256"])
        Path("runs").rename(f"runs-{stops}")
    assert hashes[0] == hashes[1]


SBATCH = """#!/bin/sh
cp "$1" asked.sh
{then}
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A login node whose `sbatch` keeps the script it is given, and then does something."""

    def cluster(then: str) -> None:
        (tmp_path / "bin").mkdir()
        for name, text in (("sbatch", SBATCH.format(then=then)), ("srun", "#!/bin/sh\n")):
            (tmp_path / "bin" / name).write_text(text)
            (tmp_path / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    return cluster


def test_a_job_that_slurm_refuses_is_a_sentence(cluster: Any, capsys: Any) -> None:
    cluster("echo 'sbatch: error: invalid partition specified: gpux' >&2; exit 1")
    Path("mine.yaml").write_text(
        JOB.replace("cluster: local", "slurm_partition: gpux, slurm_max_num_timeout: 9")
    )
    assert runner.run(recipe.read("mine.yaml")) == 1
    said = capsys.readouterr().err
    assert (
        "first: No job could be submitted: sbatch: error: invalid partition specified: gpux "
        "Look at `launch.slurm`; nothing is in the queue.\n" in said
    )
    assert "Traceback" not in said
    script = Path("asked.sh").read_text()
    for line in ("--nodes=2", "--ntasks-per-node=1", "--partition=gpux", "--time=5"):
        assert f"#SBATCH {line}\n" in script
    assert "#SBATCH --job-name=align.mine.first\n" in script and "--kill-on-bad-exit=1" in script
    assert not list(Path("runs").glob("*/job.json"))

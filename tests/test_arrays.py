"""Workers as tasks of an array: tried with submitit's local executor; no cluster is needed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shouting import content, project, shout

from align import processes, recipe, runner, slurm, store
from align.errors import RecipeError, StageFailed
from align.out import Out
from align.parallel import arrays, shards
from align.parallel.workers import Workers

__all__ = ["project"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks at /proc")

TEXTS = [f"word {i}" for i in range(7)]
HERE = {"cluster": "local", "timeout_min": 5}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "LOOK", 0.05)


@pytest.fixture
def expected(project: Path) -> dict[str, bytes]:
    """What is made without workers."""
    stage, out = shout(project, TEXTS, "expected")
    stage.run(out)
    for file in project.glob("turn-*"):
        file.unlink()
    return content(out)


def workers(count: int = 2) -> Workers:
    return Workers(on="slurm", count=count, options=HERE)


def made(out: Out) -> list[Path]:
    """The records of the shards that are made."""
    return list((out.path / shards.MADE).glob("*.json"))


def until(true: Callable[[], Any]) -> None:
    patience = time.monotonic() + 60
    while not true():
        assert time.monotonic() < patience
        time.sleep(0.02)


WRONG = [
    (
        {},
        "workers.options",
        '"timeout_min" is missing, and submitit would ask for 5 minutes. A job',
    ),
    ({"timeout_min": 0}, "workers.options.timeout_min", "It is 0; it must be a whole number from"),
    (
        {"partition": "a"},
        "workers.options.partition",
        '"partition" is no parameter of submitit. Di',
    ),
    ({"nodes": 2}, "workers.options.nodes", '"nodes" cannot be set here: every worker is on one'),
    ({"cluster": "pbs"}, "workers.options.cluster", 'It must be "slurm" or "local", not "pbs".'),
]


@pytest.mark.parametrize(("options", "place", "message"), WRONG)
def test_parameters_of_an_array_are_those_of_the_installed_submitit(
    options: dict[str, Any], place: str, message: str
) -> None:
    limit = {"timeout_min": 5} if options else {}
    asked = Workers(on="slurm", count=2, options={**limit, **options})
    ((at, said),) = asked.problems()
    assert at == place and said.startswith(message)


RECIPE = """
stages:
  shout:
    use: ./shout.py
    prompts: prompts.jsonl
    workers: {on: slurm, count: 4, options: {timeout_min: 60, slurm_partition: gpux}}
"""


def test_without_sbatch_workers_are_refused_before_any_work(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    (project / "prompts.jsonl").write_text('{"prompt": "say a"}\n')
    (project / "mine.yaml").write_text(RECIPE)
    plan = recipe.read("mine.yaml")
    with pytest.raises(RecipeError, match="There is no sbatch here, and these workers are jobs"):
        runner.run(plan)
    assert not store.partial(plan.stages["shout"].artifact.path).exists()


def test_an_array_that_slurm_refuses_is_a_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = (
        '#!/bin/sh\ncp "$1" asked.sh\necho "sbatch: error: invalid partition: gpux" >&2; exit 1'
    )
    (project / "bin").mkdir()
    for name, text in (("sbatch", refuses), ("srun", "#!/bin/sh")):
        (project / "bin" / name).write_text(text)
        (project / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{project / 'bin'}:{os.environ['PATH']}")
    asked = Workers(
        on="slurm",
        count=9,
        options={"timeout_min": 60, "slurm_partition": "gpux", "gpus_per_node": 1},
    )
    stage, out = shout(project, TEXTS, workers=asked)
    with pytest.raises(StageFailed, match=r"invalid partition: gpux Look at `workers\.options`"):
        stage.run(out)
    script = (project / "asked.sh").read_text()
    for line in ("array=0-3%4", "time=60", "gpus-per-node=1", "job-name=align.tests.one"):
        assert f"#SBATCH --{line}\n" in script, "four shards need no more than four tasks"
    assert not (out.path / arrays.NOTE).exists()


def test_an_array_makes_the_same_bytes(project: Path, expected: dict[str, bytes]) -> None:
    stage, out = shout(project, TEXTS, workers=workers(3))
    stage.run(out)
    assert content(out) == expected
    assert out.counts["shouted"]["n"] == len(TEXTS)


def test_shards_of_killed_tasks_are_submitted_again(
    project: Path,
    expected: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for life in "16":
        (project / "lives" / life).write_text(f"turn-word {life}")
    stage, out = shout(project, TEXTS, workers=workers())
    stage.run(out)
    assert not list((project / "lives").iterdir())
    assert content(out) == expected
    said = capsys.readouterr().err
    assert said.count("is submitted") == 2 and "has ended, and" in said
    assert not (out.path / arrays.NOTE).exists()


def test_tasks_that_end_without_a_shard_are_not_submitted_for_ever(
    project: Path,
) -> None:
    for life in "123456":
        (project / "lives" / life).write_text("turn-word")
    stage, out = shout(project, TEXTS, workers=workers())
    with pytest.raises(StageFailed, match=r"^4 of 4 shards were not made, and the job has ended:"):
        stage.run(out)
    assert len(list((project / "lives").iterdir())) == 4
    assert not (out.path / arrays.NOTE).exists()


def test_what_a_task_refuses_is_said_and_not_tried_again(project: Path) -> None:
    stage, out = shout(project, ["fine", "refuse"], shard=1, workers=workers())
    with pytest.raises(StageFailed, match=r'^"refuse" is not shouted\. Take it out\.$'):
        stage.run(out)


class Driver:
    """The stage's process, and what it says: the tasks it starts may outlive it, so to a file."""

    def __init__(self, out: Out) -> None:
        self.log = out.path.with_suffix(f".{time.monotonic_ns()}")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*processes.command(out.path), "--runner", str(os.getpid())],
                env=processes.environment(),
                stderr=log,
                stdout=log,
            )

    def has_said(self, words: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return words in self.log.read_text()

    def end(self) -> str:
        code = self.process.wait(60)
        said = self.log.read_text()
        assert code == 0, said
        return said


def tasks(out: Out) -> list[int]:
    """The processes of tasks, and of what submitit watches them with."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            ended = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:  # it has just ended
            continue
        if not ended and str(slurm.folder(out.path)) in words:
            found.append(int(folder.name))
    return found


class Hold:
    """A row that nobody can begin before `go`: the file that it touches is a pipe."""

    def __init__(self, file: Path) -> None:
        os.mkfifo(file)
        self.file = file

    def go(self) -> None:
        self.file.rename(self.file.with_suffix(".pipe"))
        os.close(os.open(self.file.with_suffix(".pipe"), os.O_RDONLY | os.O_NONBLOCK))


def test_an_array_outlives_its_driver_and_is_not_submitted_twice(
    project: Path, expected: dict[str, bytes]
) -> None:
    hold = Hold(project / "turn-word 4")
    _, out = shout(project, TEXTS, workers=workers())
    driver = Driver(out)
    until(lambda: len(made(out)) == 3)
    driver.process.kill()
    driver.process.wait()
    again = Driver(out)
    until(lambda: again.has_said("makes this already; waiting for it."))
    hold.go()
    assert "is submitted" not in again.end()
    path = out.path.with_name("shout")
    store.verify(path)
    assert content(Out(path, path)) == expected


def test_a_driver_that_is_told_to_stop_cancels_its_array_and_keeps_the_shards(
    project: Path, expected: dict[str, bytes]
) -> None:
    hold = Hold(project / "turn-word 4")
    _, out = shout(project, TEXTS, workers=workers())
    driver = Driver(out)
    until(lambda: len(made(out)) == 3)
    driver.process.terminate()
    assert driver.process.wait(60) == 130
    assert not tasks(out) and not (out.path / arrays.NOTE).exists()
    assert len(made(out)) == 3
    hold.go()
    for file in project.glob("turn-*"):
        file.unlink()
    Driver(out).end()
    assert {file.name for file in project.glob("turn-*")} == {"turn-word 4", "turn-word 5"}
    path = out.path.with_name("shout")
    assert content(Out(path, path)) == expected


@pytest.mark.slow
def test_a_task_whose_time_is_over_is_queued_again_and_goes_on(
    project: Path, expected: dict[str, bytes]
) -> None:
    """SLURM's warning is SIGUSR2 to the task."""
    hold = Hold(project / "turn-word 4")
    _, out = shout(project, TEXTS, workers=workers(1))
    driver = Driver(out)
    until(lambda: len(made(out)) == 2)
    warned = max(tasks(out))
    os.kill(warned, signal.SIGUSR2)
    until(lambda: warned not in tasks(out))
    hold.go()
    assert driver.end().count("is submitted") == 1
    path = out.path.with_name("shout")
    assert content(Out(path, path)) == expected

"""Workers on Ray: actors of a cluster that is started on this machine."""

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shouting import content, project, shout

from align import processes, store
from align.errors import StageFailed
from align.out import Out
from align.parallel import rays, shards
from align.parallel.workers import Workers

__all__ = ["project"]

TEXTS = [f"word {i}" for i in range(7)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where Ray writes the token of its clusters; one, as a process reads it once."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install -e '.[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


WRONG = [
    ({"num_gpu": 1}, '"num_gpu" is no option of workers on Ray. Did you mean "num_gpus"?'),
    ({"max_restarts": 3}, '"max_restarts" is no option of workers on Ray. These are: address, num'),
    ({"num_gpus": "one"}, '"num_gpus" must be a number, not "one".'),
    ({"num_cpus": -1}, '"num_cpus" is -1; it must be a number from 0.'),
    ({"resources": 2}, '"resources" must be a block with keys, not 2.'),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_options_that_no_worker_on_ray_has_are_named(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    ((place, said),) = Workers(on="ray", count=2, options=options).problems()
    assert place == f"workers.options.{next(iter(options))}" and said.startswith(message)


def test_without_ray_the_plan_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    asked = Workers(on="ray", count=2, options={"num_gpus": 0.5, "address": "auto"})
    missing = "Ray is not installed: pip install 'align-recipes[ray]'."
    assert list(asked.problems()) == [("workers.on", missing)]


@pytest.mark.ray
def test_every_option_is_one_of_ray_s(home: None) -> None:
    from ray._common.ray_option_utils import actor_options

    assert rays.OPTIONS.keys() - {"address"} <= actor_options.keys()


@pytest.fixture
def expected(home: None, project: Path) -> dict[str, bytes]:
    """What is made without workers."""
    stage, out = shout(project, TEXTS, "expected")
    stage.run(out)
    for file in project.glob("turn-*"):
        file.unlink()
    return content(out)


@pytest.mark.ray
def test_actors_make_the_same_bytes_though_one_is_killed(
    project: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "datasets.py").write_text("raise ImportError('not the library')")
    (project / "lives" / "1").write_text("turn-word 3")
    before = signal.getsignal(signal.SIGTERM)
    stage, out = shout(project, TEXTS, workers=Workers(on="ray", count=2))
    stage.run(out)
    assert content(out) == expected
    assert out.counts["shouted"]["n"] == len(TEXTS)
    said = capsys.readouterr().err
    assert "Shard 1: the worker of Ray was killed (out of memory?). Another one takes" in said
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.ray
def test_a_shard_that_kills_every_actor_is_given_up(home: None, project: Path) -> None:
    for life in "123":
        (project / "lives" / life).write_text("turn-word 4")
    stage, out = shout(project, TEXTS, workers=Workers(on="ray", count=1))
    with pytest.raises(StageFailed, match=r"^Shard 2 could not be made: 3 workers of Ray ended"):
        stage.run(out)
    assert len(list((out.path / shards.MADE).glob("*.json"))) == 2


@pytest.mark.ray
def test_what_an_actor_refuses_is_said_and_not_tried_again(home: None, project: Path) -> None:
    stage, out = shout(project, ["fine", "refuse"], shard=1, workers=Workers(on="ray", count=2))
    with pytest.raises(StageFailed, match=r'^"refuse" is not shouted\. Take it out\.$'):
        stage.run(out)


def drive(out: Out, log: Path) -> subprocess.Popen[bytes]:
    """The driver in a process of its own, once two shards are made."""
    with log.open("w") as said:
        driver = subprocess.Popen(
            [*processes.command(out.path), "--runner", str(os.getpid())],
            env=processes.environment(),
            stderr=said,
            stdout=said,
        )
    until(lambda: len(list((out.path / shards.MADE).glob("*.json"))) == 2)
    return driver


def until(true: Callable[[], Any]) -> None:
    patience = time.monotonic() + 60
    while not true():
        assert time.monotonic() < patience
        time.sleep(0.02)


def actors() -> list[int]:
    """The processes in which we make shards."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().decode()
            ended = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:  # it has just ended
            continue
        if title.startswith("ray::Maker") and not ended:
            found.append(int(folder.name))
    return found


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_actors_end_with_their_driver_and_the_next_one_goes_on(
    project: Path, expected: dict[str, bytes], number: int
) -> None:
    hold = project / "turn-word 4"
    os.mkfifo(hold)  # whoever begins this row waits
    _, out = shout(project, TEXTS, workers=Workers(on="ray", count=1))
    driver = drive(out, project / "log")
    assert actors()
    driver.send_signal(number)
    code = driver.wait(60)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130), Path("log").read_text()
    until(lambda: not actors())
    hold.unlink()
    for file in project.glob("turn-*"):
        file.unlink()
    again = subprocess.run(processes.command(out.path), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert {file.name for file in project.glob("turn-*")} == {f"turn-word {i}" for i in (4, 5, 6)}
    made = out.path.with_name("shout")
    store.verify(made)
    assert content(Out(made, made)) == expected


@pytest.mark.ray
def test_a_cluster_that_is_there_is_used_and_left(
    project: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.chdir("/")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    monkeypatch.chdir(project)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        stage, out = shout(project, TEXTS, workers=Workers(on="ray", count=2))
        stage.run(out)
        assert content(out) == expected
        # another word than the driver's lies where the workers look: it is another directory
        (out.path / rays.PROBE).write_text("theirs")
        monkeypatch.setattr(rays, "PROBE", "checkpoints/elsewhere")
        (out.path / shards.MADE / "00000.json").unlink()
        with pytest.raises(StageFailed, match=r"does not see .* The store must lie on a file"):
            stage.run(out)
    finally:
        cluster.shutdown()


@pytest.mark.ray
def test_what_cannot_begin_is_said(home: None, project: Path) -> None:
    for options, message in (
        ({"address": "127.0.0.1:1"}, r"There is no Ray cluster at 127\.0\.0\.1:1 \(.*refused\)"),
        ({"num_gpus": 99}, r"A worker asks Ray for 99 GPU, and this machine has"),
    ):
        stage, out = shout(project, TEXTS, workers=Workers(on="ray", count=2, options=options))
        with pytest.raises(StageFailed, match=message):
            stage.run(out)

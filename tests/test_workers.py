"""Workers of this machine: the same bytes, whoever makes a shard, whoever is killed meanwhile."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shouting import content, project, shout

from align import launch, processes, store
from align.errors import StageFailed
from align.out import Out
from align.parallel import pool, shards
from align.parallel.workers import Workers

__all__ = ["project"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans die on Linux only")

TEXTS = [f"word {i}" for i in range(7)]


@pytest.fixture(autouse=True)
def without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(launch, "devices", lambda: 0)


@pytest.fixture
def expected(project: Path) -> dict[str, bytes]:
    """What is made without workers."""
    stage, out = shout(project, TEXTS, "expected")
    stage.run(out)
    return content(out)


def turns(project: Path) -> set[str]:
    """The rows that somebody began since we last asked."""
    files = list(project.glob("turn-*"))
    for file in files:
        file.unlink()
    return {file.name.removeprefix("turn-") for file in files}


@pytest.mark.parametrize("count", [1, 3, 9])
def test_any_number_of_workers_makes_the_same_bytes(
    project: Path, expected: dict[str, bytes], count: int
) -> None:
    stage, out = shout(project, TEXTS, workers=Workers(count=count))
    stage.run(out)
    assert content(out) == expected
    assert out.counts["shouted"]["n"] == len(TEXTS)


POINTS = [
    r"turn-word 3",
    r"data/shard-00001\.jsonl\.\S+tmp ",
    r"shard-00002\.jsonl\.\S+tmp \S+/shard-00002\.jsonl$",
    r"shards/00000\.json\.\S+tmp ",
    r"shards/00003\.json\.\S+tmp \S+/00003\.json$",
]


def test_killed_workers_are_replaced_and_the_bytes_are_the_same(
    project: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, point in enumerate(POINTS):
        (project / "lives" / str(number)).write_text(point)
    stage, out = shout(project, TEXTS, workers=Workers(count=2))
    stage.run(out)
    assert not list((project / "lives").iterdir())
    assert content(out) == expected
    assert out.counts["shouted"]["n"] == len(TEXTS)
    assert capsys.readouterr().err.count("A worker was killed by SIGKILL") == len(POINTS)


def test_a_shard_that_kills_every_worker_is_given_up_and_the_others_are_kept(
    project: Path, expected: dict[str, bytes]
) -> None:
    for life in "123":
        (project / "lives" / life).write_text("turn-word 4")
    stage, out = shout(project, TEXTS, workers=Workers(count=1))
    with pytest.raises(StageFailed, match=r"^Shard 2 could not be made: 3 workers ended .*SIGKILL"):
        stage.run(out)
    turns(project)
    stage.run(out)
    assert content(out) == expected
    assert turns(project) == set(TEXTS[4:])


def test_what_a_worker_refuses_is_said_and_not_tried_again(project: Path) -> None:
    stage, out = shout(project, ["fine", "refuse"], shard=1, workers=Workers(count=2))
    with pytest.raises(StageFailed, match=r'^"refuse" is not shouted\. Take it out\.$'):
        stage.run(out)


@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_that_hangs_is_named_and_another_gets_its_shard(
    project: Path,
    expected: dict[str, bytes],
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where there is no other, it is waited for."""
    listen, hung = pool._listen, list[pool.Worker]()

    def look(workers: dict[int, pool.Worker], taken: set[int], out: Out) -> None:
        if not hung:
            hung.append(workers[0])
            hung[0].process.send_signal(signal.SIGSTOP)
        listen(workers, taken, out)
        if count == 1 and hung[0].named:
            hung[0].process.send_signal(signal.SIGCONT)

    monkeypatch.setattr(pool, "SILENCE", 0.3)
    monkeypatch.setattr(pool, "_listen", look)
    stage, out = shout(project, TEXTS, workers=Workers(count=count))
    stage.run(out)
    assert content(out) == expected
    said = capsys.readouterr().err
    assert re.search(r"» Worker 0 has said nothing about shard \d for 0 minutes\.", said)
    assert ("It is ended, and worker 1 makes the shard." in said) == (count == 2)


def drive(out: Out, until: str) -> subprocess.Popen[bytes]:
    """The driver in a process of its own, once somebody has begun a row."""
    driver = subprocess.Popen(
        [*processes.command(out.path), "--runner", str(os.getpid())],
        env=processes.environment(),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while not Path(f"turn-{until}").exists():
        assert driver.poll() is None
        time.sleep(0.01)
    return driver


def alive(out: Out) -> list[str]:
    """Processes that work in a directory."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:  # it has just ended
            continue
        if str(out.path) in words and (folder / "stat").read_text().split(") ")[1][0] != "Z":
            found.append(" ".join(words))
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_ended_leaves_no_process_and_the_next_goes_on(
    project: Path, expected: dict[str, bytes], number: int
) -> None:
    turns(project)
    stage, out = shout(project, TEXTS, workers=Workers(count=2), shard=1)
    driver = drive(out, "word 2")
    driver.send_signal(number)
    assert driver.wait(60) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    patience = time.monotonic() + 30
    while alive(out):
        assert time.monotonic() < patience, alive(out)
        time.sleep(0.02)
    kept = list((out.path / shards.MADE).glob("*.json"))
    turns(project)
    assert subprocess.run(processes.command(out.path), capture_output=True).returncode == 0
    made = out.path.with_name("shout")
    store.verify(made)
    assert not (made / "checkpoints").exists()
    assert b"".join(content(Out(made, made)).values()) == b"".join(expected.values())
    assert len(turns(project)) <= len(TEXTS) - len(kept)


def test_workers_share_the_cores_and_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    assert pool.share(1, 2)["OMP_NUM_THREADS"] == str(max(1, cores // 2))
    assert "CUDA_VISIBLE_DEVICES" not in pool.share(1, 2)
    monkeypatch.setattr(launch, "devices", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [pool.share(i, 2)["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["4", "6"]


def test_more_workers_than_gpus_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "devices", lambda: 2)
    stage, out = shout(project, TEXTS, workers=Workers(count=3))
    with pytest.raises(StageFailed, match=r"^workers\.count is 3, .* has 2\. Set it to 2; or, "):
        stage.run(out)
    assert not turns(project)


def test_workers_of_this_machine_have_no_options() -> None:
    assert list(Workers(count=2).problems()) == []
    [(key, message)] = Workers(count=2, options={"num_gpus": 1}).problems()
    assert key == "workers.options" and message.startswith("Workers on this machine")

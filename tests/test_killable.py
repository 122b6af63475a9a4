"""Calls that never come back cost their time, and no more."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from align.errors import StageFailed
from align.verifiers.killable import Lost, Pool


@pytest.fixture(scope="module")
def sleepers() -> Iterator[Pool]:
    pool = Pool("time:sleep", 0.3, (0,), 2)
    yield pool
    pool.close()


def test_a_call_that_hangs_is_lost_and_the_others_have_their_results(sleepers: Pool) -> None:
    started = time.monotonic()
    assert sleepers.map([(0,), (60,), (0.01,), (60,)]) == [None, Lost(True), None, Lost(True)]
    assert time.monotonic() - started < 3
    assert sleepers.map([(0,)]) == [None]


def test_it_works_outside_the_main_thread(sleepers: Pool) -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.extend(sleepers.map([(0,), (60,)])))
    thread.start()
    thread.join()
    assert found == [None, Lost(True)]


def test_a_call_that_raises_or_takes_all_memory_is_lost_too() -> None:
    pool = Pool("operator:mul", 5.0, (1, 1), 1)
    assert pool.map([(2, 3), ("a", "b"), ("a", 2**40), ("ab", 2)]) == [
        6,
        Lost(False),
        Lost(False),
        "abab",
    ]
    pool.close()


def test_a_function_that_cannot_be_imported_is_an_error_and_not_a_result(
    capfd: pytest.CaptureFixture[str],
) -> None:
    pool = Pool("align.nothing_of_that_name:f", 1.0, (), 1)
    with pytest.raises(StageFailed, match="align.nothing_of_that_name:f has ended, and so has"):
        pool.map([(1,)])
    pool.close()
    assert "No module named 'align.nothing_of_that_name'" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("with_fork", [True, False], ids=["and its fork", "alone"])
def test_a_server_that_dies_is_replaced_and_no_call_is_lost(with_fork: bool) -> None:
    pool = Pool("operator:mul", 5.0, (1, 1), 1)
    assert pool.map([(2, 3)]) == [6]
    server = pool._servers[0]._process.pid
    forks = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    for pid in [server, *map(int, forks if with_fork else [])]:
        os.kill(pid, signal.SIGKILL)
    assert pool.map([("a", i) for i in range(200)]) == ["a" * i for i in range(200)]
    assert pool.map([("a", "b"), ("a", 2**40), ("a", 2)]) == [Lost(False), Lost(False), "aa"]
    pool.close()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_outlives_a_parent_that_is_killed() -> None:
    program = """
        from pathlib import Path
        from align.verifiers.killable import Pool
        pool = Pool("time:sleep", 1.0, (0,), 2)
        pool.map([(0,), (0,)])
        for task in Path("/proc/self/task").iterdir():
            print((task / "children").read_text(), end=" ")
        print(flush=True)
        pool.map([(60,), (60,), (60,)])
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    servers = parent.stdout.readline().split()
    assert len(servers) == 2
    forks = [
        child
        for server in servers
        for child in Path(f"/proc/{server}/task/{server}/children").read_text().split()
    ]
    assert len(forks) == 2
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10  # a call in hand ends at its limit of 1 s
    while any(running(pid) for pid in servers + forks) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(running(pid) for pid in servers + forks)


def running(pid: str) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"

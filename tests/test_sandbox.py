"""Generated code gets nowhere: an escape returns 42, what the test wants, only if it gets there."""

import os
import resource
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from coding import ROOT, judged, needs_sandbox

from align.verifiers import sandbox
from align.verifiers.cores import cores


@needs_sandbox
def test_an_answer_that_is_right_passes() -> None:
    assert judged("def f():\n    return 42") == {"score": 1, "passed_share": 1, "timed_out": 0}


@needs_sandbox
def test_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        found = judged(f"""
            import socket

            def f():
                socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), 2).send(b"out")
                return 42
        """)
        assert found["score"] == 0
        with pytest.raises(BlockingIOError):
            server.accept()


@needs_sandbox
def test_of_sockets_only_those_within_the_sandbox_are_left() -> None:
    answer = """
        import socket

        def f():
            left = set()
            for family in range(64):  # of which a network namespace does not hold 40, AF_VSOCK
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
                    try:
                        socket.socket(family, kind).close()
                        left.add(family)
                    except OSError as error:
                        if error.errno != 1:  # the kernel's own answer
                            left.add(family)
            return left

        def g():
            import asyncio
            return asyncio.run(asyncio.sleep(0, 42))
    """
    assert judged(answer, "assert f() == {1}", "assert g() == 42")["passed_share"] == 1


@needs_sandbox
def test_no_fork_bomb() -> None:
    found = judged("""
        import os, subprocess, threading

        def f():
            made = 0
            for start in (
                os.fork,
                threading.Thread(target=f).start,
                lambda: subprocess.run(["/usr/bin/true"]),
                lambda: os.posix_spawn("/usr/bin/true", ["true"], {}),
            ) * 1000:
                try:
                    start()
                    made += 1
                except (OSError, RuntimeError):
                    pass
            return 42 if made else 0
    """)
    assert found["score"] == 0 and found["timed_out"] == 0


@needs_sandbox
@pytest.mark.parametrize("fds", ["(1, 2)", "range(64)"], ids=["printed", "to all that is open"])
def test_ten_gigabytes_of_output_go_nowhere(fds: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = judged(f"""
        import os

        def f():
            block = b"x" * 2**20
            for _ in range(5_000):
                for fd in {fds}:
                    try:
                        os.write(fd, block)
                    except OSError:
                        pass
            return 41
    """)
    assert found["score"] == 0 and found["timed_out"] == 0
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 50_000  # KiB


@needs_sandbox
def test_files_are_few() -> None:
    found = judged("""
        import errno, os

        def f():
            kept = 0
            for folder in ("/tmp", "/dev/shm", "/", "/run"):
                for number in range(200):
                    try:
                        with open(f"{folder}/{number}", "wb", buffering=0) as file:
                            kept += file.write(b"x" * 2**20)
                    except OSError:
                        break
            return 42 if kept > 2**25 else kept
    """)
    assert found["score"] == 0 and found["timed_out"] == 0


@needs_sandbox
def test_no_memory_bomb() -> None:
    answer = """
        import ctypes, os

        def f():
            hoard = []
            try:
                while sum(map(len, hoard)) < 2**30:
                    hoard.append(bytearray(2**24))
                return 42
            except MemoryError:
                hoard.clear()
            try:  # memory of no process
                os.memfd_create("hoard")
                return 42
            except OSError:
                pass
            libc = ctypes.CDLL(None)
            if libc.shmget(0, 2**20, 0o1600) != -1 or libc.unshare(0x10000000) != -1:
                return 42
            return 0
    """
    assert judged(answer)["score"] == 0


@needs_sandbox
def test_the_parents_environment_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_THE_USER", "s3cr3t")
    found = judged("""
        import glob, os

        def f():
            seen = repr(dict(os.environ))
            for path in ["/proc/1/environ", "/proc/self/environ", *glob.glob("/proc/*/environ")]:
                try:
                    seen += open(path).read()
                except OSError:
                    pass
            return 42 if "s3cr3t" in seen or "TOKEN" in seen else 0
    """)
    assert found["score"] == 0


@needs_sandbox
def test_the_repository_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("as it was")
    inside = ROOT / "written_by_an_answer"
    found = judged(f"""
        import os

        def f():
            for path in {[str(inside), str(tmp_path / "kept"), "/usr/lib/written", os.__file__]}:
                try:
                    open(path, "a").write("x")
                    return 42
                except OSError:
                    pass
            return 0
    """)
    assert found["score"] == 0
    assert not inside.exists() and (tmp_path / "kept").read_text() == "as it was"


@needs_sandbox
def test_a_symlink_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("as it was")
    found = judged(f"""
        import os

        def f():
            for number, above in enumerate(["", "/proc/1/root", "/../.."]):
                try:
                    os.symlink(above + "{tmp_path}", f"/tmp/{{number}}")
                    open(f"/tmp/{{number}}/kept").read()
                    open(f"/tmp/{{number}}/new", "w")
                    return 42
                except OSError:
                    pass
            return 0
    """)
    assert found["score"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@needs_sandbox
@pytest.mark.parametrize(
    "answer",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit(0)",
        "import os\ndef f():\n    os._exit(0)",
        "def f():\n    exit(0)",
        "import os, signal\ndef f():\n    os.kill(os.getpid(), signal.SIGKILL)",
        "import atexit, os\natexit.register(os._exit, 0)\ndef f():\n    return 0",
    ],
)
def test_an_early_exit_is_no_pass(answer: str) -> None:
    assert judged(answer)["score"] == 0


EQUAL_TO_ALL = """
class Number(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__
    __ne__ = __lt__ = __gt__ = lambda self, other: False
    __sub__ = __rsub__ = __abs__ = lambda self, *other: Number(0)

class Object:
    __eq__ = __ge__ = __le__ = __contains__ = lambda self, other: True
    __hash__ = lambda self: hash(42)

abs = isinstance = all = int = lambda *args: True

class math:
    isclose = abs

def f():
    return Number(7)

def g():
    return Object()

def h():
    return [Object(), Number(7)]
"""


@needs_sandbox
@pytest.mark.parametrize(
    "test",
    [
        "assert f() == 42",
        "assert 42 == f()",
        "assert abs(f() - 42) < 1e-6",
        "assert math.isclose(f(), 42)",
        "assert f() in (41, 42)",
        "assert g() == 42",
        "assert 42 == g()",
        "assert g() >= 42",
        "assert g() in [42]",
        "assert isinstance(g(), int)",
        "assert h() == [42, 42]",
        "assert all(x == 42 for x in h())",
    ],
)
def test_a_patched_equality_is_no_pass(test: str) -> None:
    alone = {"score": 0, "passed_share": 0.5, "timed_out": 0}
    assert judged(EQUAL_TO_ALL, test, "assert f() == 7") == alone  # 7 is what it is


@needs_sandbox
def test_patched_builtins_are_the_answers_own() -> None:
    answer = """
        import builtins, json, operator

        def f():
            for name in ("isinstance", "type", "abs", "all", "int"):
                setattr(builtins, name, lambda *args: True)
            json.dumps = lambda *args: '{"value": true}'
            operator.eq = lambda *args: True
            return 7
    """
    assert judged(answer)["score"] == 0


@needs_sandbox
def test_printing_passed_is_no_pass() -> None:
    answer = """
        import os, sys

        def f():
            for fd in range(64):
                for text in (b"passed\\n", b"1\\n1.\\n", b'{"value": true}\\n', b"ready\\n"):
                    try:
                        os.write(fd, text)
                    except OSError:
                        pass
            print("passed", "OK", "1.", flush=True)
            return 0
    """
    assert judged(answer)["score"] == 0


@needs_sandbox
def test_an_answer_cannot_look_up_what_is_expected() -> None:
    answer = r"""
        import gc, re, sys

        def f():
            frame, seen = sys._getframe(), [repr(gc.get_objects()), repr(sys.argv)]
            while frame:
                seen.append(repr(frame.f_locals) + repr(frame.f_globals))
                frame = frame.f_back
            for path in ("/proc/self/mem", "/proc/1/mem", "/dev/fd/0", "/tmp/tests.py"):
                try:
                    seen.append(open(path).read(10_000))
                except OSError:
                    pass
            found = re.search("it is [0-9]+", " ".join(seen))
            return found and found[0]
    """
    assert judged(answer, "assert f() == 'it is 31415926535'")["score"] == 0


def ours(pid: str) -> list[str]:
    """The processes that a process has started and that are there."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [child for task in tasks for child in task.read_text().split()]


@needs_sandbox
@pytest.mark.parametrize("kind", ["bubblewrap", "unsafe-subprocess"])
def test_nothing_is_left_of_an_answer_that_never_ends(
    kind: sandbox.Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = ours("self")
    check = sandbox.Check("import time\ndef f():\n    time.sleep(600)", ("assert f() == 42",))
    started = time.monotonic()
    found = sandbox.run(check, seconds=0.5, memory=1 << 28, kind=kind, wall=1)
    assert found == sandbox.Verdict(passed=False, share=0, timed_out=True)
    assert time.monotonic() - started < 10
    assert ours("self") == before and not list(tmp_path.iterdir())


@needs_sandbox
def test_what_counts_is_the_time_an_answer_computes() -> None:
    busy = ("def f():\n    while True: pass", "assert f() == 42")
    endless = ("def f():\n    while True: yield 42", "assert sum(f()) == 42")
    waits = ("import time\ndef f():\n    time.sleep(1.5)\n    return 42", "assert f() == 42")

    def verdict(code: str, test: str, kind: sandbox.Kind = "bubblewrap") -> Any:
        return sandbox.run(sandbox.Check(code, (test,)), 0.8, 1 << 28, kind)

    over = sandbox.Verdict(passed=False, share=0, timed_out=True)
    assert [verdict(*busy), verdict(*busy, "unsafe-subprocess"), verdict(*endless)] == [over] * 3
    assert verdict(*waits) == sandbox.Verdict(passed=True, share=1, timed_out=False)


def test_as_many_are_tested_at_once_as_a_worker_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    if sys.platform == "linux":
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 4, 5})
        assert cores() == 3


@needs_sandbox
def test_nothing_outlives_a_parent_that_is_killed() -> None:
    program = """
        from align.verifiers.sandbox import Check, run
        run(Check("def f():\\n    while True: pass", ("assert f() == 42",)), 600, 2**28)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    deadline = time.monotonic() + 30
    below: list[str] = []
    while len(below) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
        below = [inner for outer in ours(str(parent.pid)) for inner in ours(outer)]
    assert len(below) == 2
    parent.kill()
    parent.wait()
    while any(map(running, below)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(running, below))


def running(pid: str) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"

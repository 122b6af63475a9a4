"""One stage in a process of its own: by hand, for a runner, forked from a warm parent."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from align import processes, records, shelf, store, worker
from align.artifacts import Prompts
from align.errors import StageFailed
from align.settings import Stage

STAGE = """
import logging, os, sys, time, warnings
from typing import Any
from align.artifacts import Prompts
from align.errors import GateStopped, StageFailed
from align.settings import Stage


class Step(Stage):
    does: str = "rows"
    value: int = 0
    data: Prompts | None = None

    def run(self, out: Any) -> Prompts:
        out.say("I begin")
        out.write_rows([{"id": "1", "prompt": []}])
        out.count("rows", 1)
        if self.does == "fail":
            raise StageFailed("The step is too high. Lower it.")
        if self.does == "later" and not (out.path / "now").exists():
            raise StageFailed("Not now.")
        if self.does == "crash":
            raise ZeroDivisionError("by nothing")
        if self.does == "gate":
            raise GateStopped("accuracy .51 is below .60: look at the data.")
        if self.does == "talk":
            print("printed")
            os.write(1, b"from C\\n")
            warnings.warn("a warning")
            client = logging.getLogger("huggingface_hub.utils")
            client.warning("at %s", "https://store.example/it?X-Amz-Signature=5ecret")
        if self.does == "sleep":
            time.sleep(60)
        if self.does == "full":
            raise RuntimeError("I/O error: No space left on device (os error 28)")
        if self.does == "where":
            import datasets
            import torch

            out.count("threads_before", len(os.listdir("/proc/self/task")))
            out.count("here_in_path", sum(p in ("", os.getcwd()) for p in sys.path))
            out.count("hash", hash("equal everywhere") % 1000)
            out.count("offline_quiet", int(os.environ["HF_HUB_DISABLE_TELEMETRY"]))
        return Prompts(out.path)
"""


Begin = Callable[..., Path]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """Prepare a `.partial` directory as the runner does; returns its path."""

    def begin(does: str = "rows", value: int = 0, data: Path | None = None) -> Path:
        file, runs = tmp_path / "step.py", tmp_path / "runs"
        file.write_text(STAGE)
        made = Prompts(data, stage=Stage()) if data else None
        stage = shelf.load(file, Stage)(seed=7, does=does, value=value, data=made)
        assert isinstance(stage, Stage)
        key = records.key(stage, "step", 0, records.Contents(runs))
        work = runs / f"{key}.partial"
        work.mkdir(parents=True, exist_ok=True)
        record = {
            "kind": "step",
            "name": "mine",
            "recipe": "chain",
            "use": str(file),
            "settings": records.dump(stage),
            "attempt": 0,
            "key": key,
            "inputs": [data.name] if data else [],
        }
        (work / "stage.json").write_text(json.dumps(record))
        return work

    return begin


def by_hand(work: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(processes.command(work), capture_output=True, text=True)


def fresh(work: Path) -> int:
    return _end(processes.Fresh(work))


def _end(child: processes.Fresh | processes.Forked, patience: float = 60.0) -> int:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        code = child.wait(0.5)
        if code is not None:
            return code
    raise TimeoutError


# -- alone ---------------------------------------------------------------------------------------


def test_a_stage_by_hand_says_everything_here_and_publishes(begin: Begin) -> None:
    work = begin("talk")
    done = by_hand(work)
    assert done.returncode == 0
    assert done.stdout == "printed\nfrom C\n" or done.stdout == "from C\nprinted\n"
    assert "» I begin" in done.stderr and "a warning" in done.stderr
    about = store.verify(store_path(work))
    assert about["counts"] == {"rows": {"n": 1}}
    assert set(about["files"]) == {"data/rows.jsonl", "log.txt", "metrics.jsonl", "stage.json"}


def store_path(work: Path) -> Path:
    return work.with_name(work.name.removesuffix(".partial"))


def test_a_stage_for_a_runner_says_everything_to_its_log(begin: Begin) -> None:
    work = begin("talk")
    assert fresh(work) == 0
    log = (store_path(work) / "log.txt").read_text()
    assert "» I begin\n" in log and "printed\n" in log and "from C\n" in log and "a warning" in log
    assert "at https://store.example/it\n" in log, "the signature is for the client alone"
    store.verify(store_path(work))


def test_what_the_manifest_says(begin: Begin) -> None:
    work = begin()
    assert fresh(work) == 0
    about = store.verify(store_path(work))
    assert about["kind"] == "step" and about["recipe"] == "chain" and about["inputs"] == []
    assert about["key"] == store_path(work).name and about["stopped"] is None
    assert about["versions"]["torch"] and about["versions"]["trl"] and about["versions"]["align"]
    assert about["world_size"] == 1 and about["threads"] == 1 and about["device"]
    assert about["seconds"] >= 0 and about["made_at"].endswith("Z")


def test_a_sentence_is_left_for_the_user(begin: Begin) -> None:
    work = begin("fail")
    assert fresh(work) == 1
    error = {"error": "The step is too high. Lower it.", "exit_code": 1}
    assert json.loads((work / "error.json").read_text()) == error
    assert "Traceback" not in (work / "log.txt").read_text()


def test_a_crash_leaves_its_traceback_in_the_log(begin: Begin) -> None:
    work = begin("crash")
    assert fresh(work) == 1
    assert not (work / "error.json").exists()
    assert (work / "log.txt").read_text().endswith("ZeroDivisionError: by nothing\n")


def test_what_a_gate_stopped_is_kept(begin: Begin) -> None:
    work = begin("gate")
    assert fresh(work) == 3
    about = store.verify(store_path(work))
    assert about["stopped"] == "accuracy .51 is below .60: look at the data."


def test_a_full_disk_is_one_sentence_also_when_a_library_has_no_errno(
    begin: Begin,
) -> None:
    work = begin("full")
    assert fresh(work) == 1
    error = json.loads((work / "error.json").read_text())["error"]
    assert error.startswith(f"The disk that holds {work} is full. Free some space")


def test_a_damaged_input_is_refused_before_the_stage_runs(begin: Begin) -> None:
    first = begin()
    assert fresh(first) == 0
    rows = store_path(first) / "data" / "rows.jsonl"
    rows.write_text(rows.read_text().replace("1", "2"))
    second = begin(data=store_path(first))
    assert fresh(second) == 1
    assert f"{rows} is damaged" in json.loads((second / "error.json").read_text())["error"]
    assert "I begin" not in (second / "log.txt").read_text()


def test_a_stage_is_not_made_twice_at_once(begin: Begin) -> None:
    work = begin("sleep")
    child = processes.Fresh(work)
    while not (work / "data" / "rows.jsonl").exists():
        assert child.wait(0.05) is None
    try:
        done = by_hand(work)
        assert done.returncode == 1
        assert f"{store_path(work).name} is being made by process" in done.stderr
    finally:
        child.signal(signal.SIGKILL)
        _end(child)


def test_a_stage_that_is_told_to_stop_stops(begin: Begin) -> None:
    work = begin("sleep")
    child = processes.Fresh(work)
    while not (work / "data" / "rows.jsonl").exists():
        assert child.wait(0.05) is None
    child.signal(signal.SIGTERM)
    assert _end(child) == 130


def test_a_stage_killed_before_the_rename_is_published_and_not_run_again(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = begin()
    with monkeypatch.context() as patch:
        patch.setattr(store, "finish", lambda work: work)
        assert worker.make(work) == 0
    assert (work / "artifact.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(worker, "perform", lambda *_: pytest.fail("it ran again"))
        assert worker.make(work) == 0
    store.verify(store_path(work))


def test_a_manifest_that_does_not_hold_makes_the_stage_run_again(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = begin()
    with monkeypatch.context() as patch:
        patch.setattr(store, "finish", lambda work: work)
        assert worker.make(work) == 0
    (work / "data" / "rows.jsonl").write_text("damaged")
    assert worker.make(work) == 0
    store.verify(store_path(work))


def test_going_on_with_other_versions_is_said_and_recorded(begin: Begin, tmp_path: Path) -> None:
    work = begin("later")
    assert fresh(work) == 1
    began = json.loads((work / "began.json").read_text())
    (work / "began.json").write_text(json.dumps({**began, "trl": "1.15.0"}))
    (work / "now").touch()
    assert fresh(work) == 0
    about = store.verify(store_path(work))
    assert about["began_with"] == {"trl": "1.15.0"}
    said = f"» This goes on with trl {began['trl']} (was 1.15.0): the result can be neither"
    assert said in (store_path(work) / "log.txt").read_text()


def test_a_file_that_changed_since_the_recipe_was_read_stops_the_stage(
    begin: Begin, tmp_path: Path
) -> None:
    work = begin()
    (tmp_path / "step.py").write_text(STAGE + "# better\n")
    assert fresh(work) == 1
    error = json.loads((work / "error.json").read_text())["error"]
    assert error.startswith(f"{store_path(work).name} cannot be made any more: a file it is made")
    assert "I begin" not in (work / "log.txt").read_text()


def test_no_secret_of_the_environment_is_written(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canaryCanaryCanaryCanary")
    assert fresh(begin("crash")) == 1
    assert fresh(begin("talk")) == 0
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not any(b"canaryCanary" in path.read_bytes() for path in files)


def test_a_model_stage_is_seeded_and_another_does_not_import_torch(tmp_path: Path) -> None:
    program = """
import sys
from align import worker
from align.artifacts import Model, Prompts
from align.settings import Stage
class Light(Stage):
    def run(self, out) -> Prompts: ...
class Heavy(Stage):
    def run(self, out) -> Model: ...
worker.seed(Light(seed=3))
assert "torch" not in sys.modules
worker.seed(Heavy(seed=3))
import torch
assert torch.initial_seed() == 3
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("machine", "log"), [("0", "log"), ("1", "log of machine 1")])
def test_a_crash_of_a_rank_says_on_which_machine(tmp_path: Path, machine: str, log: str) -> None:
    program = """
import sys
from pathlib import Path
from align import worker
worker.rank = lambda work: 1 / 0
sys.exit(worker.guarded(worker.rank, Path(sys.argv[1])))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        env={**os.environ, "GROUP_RANK": machine},
    )
    assert done.returncode == 1 and b"Traceback" in done.stderr
    assert json.loads((tmp_path / "error.json").read_text())["error"] == (
        f"ZeroDivisionError: division by zero (its traceback is in the {log})"
    )


# -- forked --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[processes.Server]:
    if sys.platform != "linux":
        pytest.skip("stages are forked on Linux only")
    here = tmp_path_factory.mktemp("here")
    (here / "datasets.py").write_text("raise SystemError('not this one')\n")
    before = Path.cwd()
    os.chdir(here)
    try:
        server = processes.Server(here / "warm.log")
    finally:
        os.chdir(before)
    yield server
    server.close()


def test_forked_stages_are_like_fresh_ones(
    server: processes.Server,
    begin: Begin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = []
    for i in range(2):
        work = begin("where", i)
        assert (_end(server.fork(work)) if i else fresh(work)) == 0, (work / "log.txt").read_text()
        counts.append(store.verify(store_path(work))["counts"])
    assert counts[0]["here_in_path"] == {"n": 0}
    assert counts[0].pop("threads_before")["n"] >= 1
    assert counts[1].pop("threads_before")["n"] <= os.cpu_count()  # its own, of the first operation
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("does", "code"), [("fail", 1), ("crash", 1), ("gate", 3), ("talk", 0)])
def test_forked_stages_end_like_fresh_ones(
    server: processes.Server, begin: Begin, does: str, code: int
) -> None:
    work = begin(does)
    assert _end(server.fork(work)) == code
    if does == "talk":
        log = (store_path(work) / "log.txt").read_text()
        assert "printed" in log and "from C" in log and "a warning" in log


def test_a_killed_fork_leaves_the_server_alive(server: processes.Server, begin: Begin) -> None:
    work = begin("sleep")
    child = server.fork(work)
    while not (work / "data" / "rows.jsonl").exists():
        assert child.wait(0.05) is None
    assert child.signal(signal.SIGKILL)
    assert _end(child) == -signal.SIGKILL
    assert _end(server.fork(begin("rows"))) == 0


def test_a_fork_is_ready_at_once(server: processes.Server, begin: Begin) -> None:
    _end(server.fork(begin("rows", 1)))  # by now the server is warm
    began = time.monotonic()
    assert _end(server.fork(begin("rows", 2))) == 0
    assert time.monotonic() - began < 1.0  # 0.1 s on a quiet machine


def test_a_parent_with_threads_does_not_fork(tmp_path: Path) -> None:
    program = """
import threading, time
from align import warm
warm.preload = lambda: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
warm.serve()
"""
    asked = subprocess.run(
        [sys.executable, "-c", program], input='{"work": "x"}\n', capture_output=True, text=True
    )
    assert json.loads(asked.stdout) == {"stuck": "the warm parent has 2 threads"}


class _Silent:
    """A server whose child never becomes ready."""

    def report(self, seconds: float) -> dict[str, Any] | None:
        time.sleep(seconds)
        return {"pid": os.getpid()} if not hasattr(self, "said") and not self._say() else None

    def _say(self) -> None:
        self.said = True


def test_a_fork_that_hangs_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "READY", 0.1)
    child = processes.Forked(_Silent())  # type: ignore[arg-type]
    with pytest.raises(processes.Stuck, match="a forked stage did nothing for"):
        _end(child, 5.0)


def test_a_server_that_cannot_import_is_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trl.py").write_text("raise ImportError('broken installation')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = processes.Server(tmp_path / "warm.log")
    with pytest.raises(processes.Stuck, match=r"the warm parent ended; see .*warm\.log"):
        server.report(60.0)
    server.close()
    assert "broken installation" in (tmp_path / "warm.log").read_text()


DRIVER = """
import sys, time
from pathlib import Path
from align import processes
server = processes.Server(Path(sys.argv[1]).parent / "warm.log")
children = [server.fork(Path(sys.argv[1])), processes.Fresh(Path(sys.argv[2]))]
while True:
    for child in children:
        child.wait(0.1)
    print(server._process.pid, children[0]._pid, children[1]._process.pid, flush=True)
"""


def test_nothing_outlives_a_killed_runner(begin: Begin) -> None:
    if sys.platform != "linux":
        pytest.skip("the kernel kills orphans on Linux only")
    works = [begin("sleep", 1), begin("sleep", 2)]
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, *map(str, works)], stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        line = ""
        while not all((work / "data" / "rows.jsonl").exists() for work in works):
            line = driver.stdout.readline()
        line = driver.stdout.readline()
        driver.send_signal(signal.SIGKILL)
    pids = [int(word) for word in line.split()]
    assert len(pids) == 3
    end = time.monotonic() + 5
    states = {"running"}
    while "running" in states and time.monotonic() < end:
        states = {store.state(store_path(work)) for work in works}
        time.sleep(0.01)
    assert states == {"partial"}
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_directory_without_a_stage_is_said_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "align.worker", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "DIRECTORY must be a stage's .partial directory" in done.stderr


def test_an_input_that_is_gone_is_named(begin: Begin, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="step-gone is missing"):
        worker.make(begin(data=tmp_path / "runs" / "step-gone"))

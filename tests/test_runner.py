"""Running a plan: what is missing is made once, and every end is said and kept."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from align import processes, recipe, runner, store
from align.errors import RecipeError

STEP = """
import os, signal, time
from pathlib import Path
from typing import Any
from align.artifacts import Prompts
from pydantic import Field
from align.errors import GateStopped, StageFailed
from align.settings import Stage


class Step(Stage):
    does: str = "rows"
    bar: int = Field(0, exclude=True)
    value: int = 0
    data: Prompts | None = None

    def run(self, out: Any) -> Prompts:
        with open("ran.txt", "a") as file:
            file.write(f"{self.does} {self.value}\\n")
        out.say(f"value {self.value}")
        out.progress(1, 2, "rows")
        if self.does == "fail" and not Path("fixed").exists():
            raise StageFailed("The step is too high. Lower it.")
        if self.does == "crash" and not Path("fixed").exists():
            raise ZeroDivisionError("by nothing")
        if self.does == "gate":
            raise GateStopped("accuracy .51 is below .60: look at the data.")
        if self.does == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.does in ("sleep", "deaf") and not Path("fixed").exists():
            Path("asleep").touch()
            time.sleep(60)
        if self.does == "large":
            with (out.path / "large").open("wb", buffering=0) as file:
                for _ in range(0 if Path("fixed").exists() else 4096):
                    file.write(bytes(4096))
        out.write_rows([{"id": str(self.value), "prompt": []}])
        return Prompts(out.path)

    def verdict(self, path: Path) -> str | None:
        made = int((path / "log.txt").read_text().split("» value ")[1].split()[0])
        return f"{made} is below {self.bar}." if made < self.bar else None
"""

MAKER = """
import os
from typing import Any
from align.artifacts import Model
from align.settings import Stage


class Maker(Stage):
    value: int = 0
    model: Model | None = None

    def run(self, out: Any) -> Model:
        import torch

        (out.path / "model").mkdir()
        (out.path / "model" / "weights.txt").write_text(str(torch.rand(3).tolist()))
        (out.path / "model.json").write_text(
            '{"base": {"path": "model"}, "quantization": null, "adapter": false}'
        )
        out.say(f"parent {os.getppid()}")
        return Model(out.path)
"""

CHAIN = """
stages:
  first: {use: ./step.py, value: 1}
  second: {use: ./step.py, value: 2, data: first}
  third: {use: ./step.py, value: 3, data: second}
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's directory, with the stages above, is the working directory."""
    (tmp_path / "step.py").write_text(STEP)
    (tmp_path / "maker.py").write_text(MAKER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(text: str = CHAIN, *overrides: str) -> recipe.Plan:
    Path("chain.yaml").write_text(text)
    return recipe.read("chain.yaml", overrides)


def ran() -> list[str]:
    """The stages that ran since this was last asked."""
    file = Path("ran.txt")
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


Said = Callable[[], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: capsys.readouterr().err


# -- making --------------------------------------------------------------------------------------


def test_a_chain_is_made_in_order_and_once(said: Said) -> None:
    assert runner.run(plan()) == 0
    assert ran() == ["rows 1", "rows 2", "rows 3"]
    text = said()
    assert re.search(r"^first: step-[0-9a-f]{12}$", text, re.M)
    assert "  second: value 2\n" in text and re.search(r"^third: made in \d+\.\d s$", text, re.M)
    assert runner.run(plan()) == 0
    assert ran() == []
    assert "chain: 3 stages, 0 made now, in 0.0 s." in said()


def test_a_changed_setting_makes_that_stage_and_what_follows_again() -> None:
    runner.run(plan())
    ran()
    assert runner.run(plan(CHAIN, "stages.second.value=20")) == 0
    assert ran() == ["rows 20", "rows 3"]
    assert runner.run(plan()) == 0
    assert ran() == [], "the former ones are still there"


def test_links_show_the_recipe_as_it_is() -> None:
    first = plan()
    runner.run(first)
    links = {p.name: os.readlink(p) for p in Path("runs/chain").iterdir() if p.is_symlink()}
    assert links == {name: f"../{stage.artifact.key}" for name, stage in first.stages.items()}
    second = plan(CHAIN.replace("  third:", "  last:"), "stages.last.does=fail")
    assert runner.run(second) == 1
    assert not Path("runs/chain/third").is_symlink()
    assert os.readlink("runs/chain/last") == f"../{second.stages['last'].artifact.key}.partial"


def test_a_run_of_one_stage_keeps_the_links_of_what_was_made_after_it() -> None:
    first = plan()
    runner.run(first)
    other = plan(CHAIN, "stages.second.value=20")
    assert runner.run(other, ["second"]) == 0
    links = {p.name: os.readlink(p) for p in Path("runs/chain").iterdir() if p.is_symlink()}
    assert links["second"] == f"../{other.stages['second'].artifact.key}"
    assert links["third"] == f"../{first.stages['third'].artifact.key}", "the last that was made"
    shutil.rmtree(first.stages["third"].artifact.path)
    assert runner.run(other, ["second"]) == 0
    assert not Path("runs/chain/third").is_symlink()


def test_targets_are_names_or_kinds_and_bring_what_they_need() -> None:
    text = CHAIN.replace("stages:", "stages:\n  model: {use: ./maker.py}")
    assert runner.run(plan(text), ["second"]) == 0
    assert ran() == ["rows 1", "rows 2"]
    assert runner.run(plan(text), ["maker"]) == 0
    assert store.state(plan(text).stages["model"].artifact.path) == "done"
    assert ran() == []
    assert runner.run(plan(text), ["step"]) == 0
    assert ran() == ["rows 3"]


def test_a_target_needs_nothing_that_its_made_inputs_were_made_from() -> None:
    runner.run(plan())
    ran()
    here = plan()
    here.stages["first"].artifact.path.rename("elsewhere")
    here.stages["third"].artifact.path.rename("elsewhere too")
    assert runner.run(plan(), ["third"]) == 0
    assert ran() == ["rows 3"]


def test_a_word_that_is_no_stage_is_an_error() -> None:
    with pytest.raises(RecipeError) as error:
        runner.run(plan(), ["secnd", "nothing"])
    assert [problem.message for problem in error.value.problems] == [
        '"secnd" is no stage here. Did you mean "second"?',
        '"nothing" is no stage here. Stages are: first, second, third.',
    ]
    assert ran() == []


def test_what_could_not_be_checked_is_refused_before_any_work() -> None:
    from dataclasses import replace

    unsure = replace(plan(), not_checked=["stages.sft.data: $ALIGN_DATA is not set."])
    with pytest.raises(RecipeError, match="ALIGN_DATA is not set"):
        runner.run(unsure)
    assert ran() == [] and not Path("runs/chain").exists()


def test_a_finished_chain_is_seen_without_loading_torch() -> None:
    runner.run(plan())
    program = """
import sys
from align import recipe, runner
code = runner.run(recipe.read("chain.yaml"))
heavy = {"torch", "transformers", "datasets", "trl"} & set(sys.modules)
sys.exit(code or bool(heavy))
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_two_equal_stages_are_one_artifact() -> None:
    text = CHAIN.replace("stages:", "stages:\n  same: {use: ./step.py, value: 1}")
    assert runner.run(plan(text)) == 0
    assert ran() == ["rows 1", "rows 2", "rows 3"]


# -- warm ----------------------------------------------------------------------------------------

MODELS = """
stages:
  one: {use: ./maker.py, value: 1}
  two: {use: ./maker.py, value: 2, model: one}
"""


def test_stages_with_models_are_forked_from_one_warm_parent(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not processes.can_fork():
        pytest.skip("stages are forked on Linux without an accelerator")
    assert runner.run(plan(MODELS)) == 0
    warm = re.findall(r"parent (\d+)", said())
    assert len(warm) == 2 and len(set(warm)) == 1 and warm[0] != str(os.getpid())
    weights = [p.read_text() for p in Path("runs").glob("maker-*/model/weights.txt")]
    assert len(weights) == 2 and len(set(weights)) == 1, "both have the recipe's seed"
    monkeypatch.setattr(processes, "can_fork", lambda: False)
    subprocess.run(["rm", "-r", "runs"], check=True)
    assert runner.run(plan(MODELS)) == 0
    assert set(re.findall(r"parent (\d+)", said())) == {str(os.getpid())}
    assert weights == [p.read_text() for p in Path("runs").glob("maker-*/model/weights.txt")]


def test_where_forking_does_not_work_every_stage_gets_a_fresh_process(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork(self: Any, work: Path) -> Any:
        raise processes.Stuck("a forked stage did nothing for 15 s")

    monkeypatch.setattr(processes, "can_fork", lambda: True)
    monkeypatch.setattr(processes.Server, "fork", fork)
    assert runner.run(plan(MODELS)) == 0
    text = said()
    assert text.count("did nothing for 15 s: every stage gets a fresh process from here.") == 1
    assert set(re.findall(r"parent (\d+)", text)) == {str(os.getpid())}


# -- bad ends ------------------------------------------------------------------------------------


def test_a_stage_that_fails_is_said_in_its_own_words(said: Said) -> None:
    text = CHAIN.replace("value: 2", "value: 2, does: fail")
    assert runner.run(plan(text)) == 1
    work = store.partial(plan(text).stages["second"].artifact.path)
    assert said().endswith(
        "second: The step is too high. Lower it.\n"
        f"  log: {work}/log.txt\n"
        f"  this stage alone: {sys.executable} -m align.worker {work}\n"
        "  What was made is kept; the same command goes on from here.\n"
    )
    assert ran() == ["rows 1", "fail 2"]
    Path("fixed").touch()
    assert runner.run(plan(text)) == 0
    assert ran() == ["fail 2", "rows 3"]


def test_a_crash_shows_the_end_of_the_log(said: Said) -> None:
    assert runner.run(plan(CHAIN, "stages.third.does=crash")) == 1
    text = said()
    assert "  | ZeroDivisionError: by nothing\nthird: ended with exit code 1.\n" in text


def test_the_printed_command_makes_the_stage_alone(said: Said) -> None:
    here = plan(CHAIN, "stages.third.does=crash")
    assert runner.run(here) == 1
    command = re.search(r"this stage alone: (.*)", said())
    assert command
    Path("fixed").touch()
    subprocess.run(command[1], shell=True, check=True, capture_output=True)
    store.verify(here.stages["third"].artifact.path)


def test_a_gate_that_says_stop_says_so_every_time(said: Said) -> None:
    text = CHAIN.replace("value: 2", "value: 2, does: gate")
    for times in range(2):
        assert runner.run(plan(text)) == 3
        assert ran() == (["rows 1", "gate 2"] if times == 0 else [])
        assert "second: accuracy .51 is below .60: look at the data.\n" in said()
    store.verify(plan(text).stages["second"].artifact.path)
    assert runner.run(plan(text), ["first"]) == 0, "only what a target needs can stop it"


def test_a_target_is_stopped_by_the_gate_of_a_made_stage_it_comes_from() -> None:
    text = CHAIN.replace("value: 2", "value: 2, bar: 2")
    assert runner.run(plan(text)) == 0
    assert runner.run(plan(text + "  last: {use: ./step.py, value: 4, data: third}\n")) == 0
    ran()
    raised = text.replace("bar: 2", "bar: 3") + "  last: {use: ./step.py, value: 5, data: third}\n"
    assert runner.run(plan(raised), ["last"]) == 3
    assert ran() == []
    assert runner.run(plan(raised), ["first"]) == 0
    plan(raised).stages["second"].artifact.path.rename("elsewhere")
    assert runner.run(plan(raised), ["last"]) == 0, "what is gone is not made again to be judged"
    assert ran() == ["rows 5"]


def test_a_gate_is_judged_every_time_and_another_one_makes_nothing_again(said: Said) -> None:
    high, low = (CHAIN.replace("value: 2", f"value: 2, bar: {bar}") for bar in (3, 2))
    for expected in (["rows 1", "rows 2"], []):
        assert runner.run(plan(high)) == 3
        assert ran() == expected
        assert "second: 2 is below 3.\n" in said()
    made = plan(high).stages["second"].artifact.path
    assert runner.run(plan(low)) == 0
    assert ran() == ["rows 3"]
    assert plan(low).stages["second"].artifact.path == made
    assert runner.run(plan(high)) == 3, "raised again, it stops again"


def test_a_damaged_artifact_is_named_and_can_be_made_again(said: Said) -> None:
    here = plan()
    runner.run(here)
    ran()
    first = here.stages["first"].artifact.path
    (first / "data" / "rows.jsonl").write_text('{"id": "9"}\n')
    changed = plan(CHAIN, "stages.second.value=20")
    assert runner.run(changed) == 1
    assert f"{first.resolve()}/data/rows.jsonl is damaged" in said()
    assert ran() == []
    first.rename("runs/away")
    assert runner.run(plan(CHAIN, "stages.second.value=20")) == 0
    assert ran() == ["rows 1", "rows 20", "rows 3"]


def test_too_little_room_is_said_before_any_work(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "free", lambda path: 10 << 20)
    assert runner.run(plan()) == 1
    assert said() == (
        "runs needs 48 MiB for 3 stages and has 10 MiB free. Free some space: `align clean` lists "
        "what no recipe needs.\n"
    )
    assert ran() == []


@pytest.fixture
def small_disk() -> Iterator[None]:
    """`runs` is a file system of three megabytes."""
    Path("runs").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", "runs"]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not possible here: {mounted.stderr.strip()}")
    yield
    subprocess.run(["umount", "runs"], check=True)


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    small_disk: None, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    from align import space

    monkeypatch.setattr(space, "check", lambda *_: None)
    here = plan(CHAIN, "stages.third.does=large")
    assert runner.run(here) == 1
    assert "is full. Free some space" in said()
    for name in ("first", "second"):
        store.verify(here.stages[name].artifact.path)
    ran()
    (store.partial(here.stages["third"].artifact.path) / "large").unlink()
    Path("fixed").touch()
    assert runner.run(here) == 0
    assert ran() == ["large 3"]


# -- signals -------------------------------------------------------------------------------------

DRIVER = """
import sys
from align import recipe, runner
sys.exit(runner.run(recipe.read("chain.yaml")))
"""


def driver() -> subprocess.Popen[str]:
    """A run in a process of its own, as the command starts it; returns when a stage sleeps."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not Path("asleep").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_says_how_to_go_on(number: int) -> None:
    plan(CHAIN, "stages.second.does=sleep")
    text = CHAIN.replace("value: 2", "value: 2, does: sleep")
    here = plan(text)
    process = driver()
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "Stopping cleanly; once more kills it.\n" in said
    assert said.endswith("Stopped. What was made is kept; the same command goes on from here.\n")
    assert ran() == ["rows 1", "sleep 2"]
    assert store.state(here.stages["second"].artifact.path) == "partial"
    Path("fixed").touch()
    assert runner.run(plan(text)) == 0
    assert ran() == ["sleep 2", "rows 3"]


def test_a_second_signal_kills() -> None:
    plan(CHAIN.replace("value: 2", "value: 2, does: deaf"))
    process = driver()
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130


def test_a_second_run_of_a_recipe_is_refused_while_it_runs(said: Said) -> None:
    here = plan(CHAIN.replace("value: 2", "value: 2, does: sleep"))
    process = driver()
    assert runner.run(here) == 1
    assert said() == (
        f"chain is being run by process {process.pid}. Wait until it ends, or stop it with "
        f"`kill {process.pid}`.\n"
    )
    process.kill()
    process.communicate()
    Path("fixed").touch()
    assert runner.run(here) == 0, "at once after the kill"


def test_another_recipe_does_not_make_what_is_being_made(said: Said) -> None:
    text = CHAIN.replace("value: 2", "value: 2, does: sleep")
    plan(text)
    process = driver()
    Path("other.yaml").write_text(text)
    assert runner.run(recipe.read("other.yaml")) == 1
    assert re.search(r"second: step-\w+ is being made by process \d+\. Wait until", said())
    process.kill()
    process.communicate()


# -- status --------------------------------------------------------------------------------------


def test_status_says_how_far_every_stage_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = CHAIN.replace("value: 2", "value: 2, does: sleep")
    here = plan(text)
    process = driver()
    assert runner.status(here) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"first +done +step-\w{12}  \d\.\d s, made 20\S+", lines[0])
    assert re.fullmatch(r"second +running +step-\w{12}  1/2 rows", lines[1])
    assert re.fullmatch(r"third +absent +step-\w{12}", lines[2])
    process.kill()
    process.communicate()
    end = time.monotonic() + 5
    while store.state(here.stages["second"].artifact.path) == "running" and time.monotonic() < end:
        time.sleep(0.01)
    runner.status(here)
    assert re.search(r"^second +partial", capsys.readouterr().out, re.M)


def test_what_other_versions_made_is_known() -> None:
    here = plan()
    runner.run(here)
    assert runner.other_versions(here.stages.values()) == {}
    path = here.stages["second"].artifact.path / "artifact.json"
    about: dict[str, Any] = json.loads(path.read_text())
    about.pop("checksum")
    about["versions"]["trl"] = "1.15.0"
    path.write_text(json.dumps({**about, "checksum": store._checksum(about)}))
    now = about["versions"]["trl"], runner.other_versions(here.stages.values())["second"]["trl"][1]
    assert runner.other_versions(here.stages.values()) == {"second": {"trl": now}}


def test_a_terminal_gets_a_bar_that_moves() -> None:
    Path("slow.py").write_text(
        STEP.replace('out.progress(1, 2, "rows")', 'out.progress(1, 2, "rows"); time.sleep(0.5)')
    )
    plan("stages:\n  slow: {use: ./slow.py}\n")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the other end was closed
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    assert process.wait() == 0
    assert "━" in shown.decode() and b"1/2 rows" in shown
    assert b"slow: value 0" in shown and b"slow: made in" in shown


def test_progress_is_a_plain_line_now_and_then_in_a_log(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    from align import progress

    monkeypatch.setattr(progress, "EVERY", 0.0)
    Path("slow.py").write_text(
        STEP.replace('out.progress(1, 2, "rows")', 'out.progress(1, 2, "rows"); time.sleep(0.5)')
    )
    runner.run(plan("stages:\n  slow: {use: ./slow.py}\n"))
    assert "  slow: 1/2 rows\n" in said()


def test_progress_says_how_much_time_is_left_from_the_rate_since_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from align import progress
    from align.out import Out

    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stage = Out(tmp_path, tmp_path)

    def shown() -> str:
        return progress.in_words(json.loads((tmp_path / "progress.json").read_text()))

    stage.progress(4000, 12000, "answers")  # what an earlier run had made took no time now
    assert shown() == "4,000/12,000 answers"
    now += 60
    stage.progress(6000, 12000, "answers", "5,310 tokens/s")
    assert shown() == "6,000/12,000 answers, 5,310 tokens/s, 3 min left"
    now += 60
    stage.progress(11900, 12000, "answers")
    assert shown() == "11,900/12,000 answers, 2 s left"
    stage.progress(12000, 12000, "answers")
    assert shown() == "12,000/12,000 answers"
    now += 10
    stage.progress(0, 100, "steps")  # another kind of work has another rate
    now += 10
    stage.progress(40, 100, "steps")
    assert shown() == "40/100 steps, 15 s left"

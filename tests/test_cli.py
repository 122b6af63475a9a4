"""The command line: what it prints and how it ends."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recipe_world import world
from test_recipe import CHAIN

from align import recipe, runner, shelf
from align.cli import main
from align.errors import GateStopped, StageFailed

__all__ = ["world"]

ROOT = Path(__file__).parents[1]


@pytest.fixture
def chain(world: Path) -> Path:
    (world / "r.yaml").write_text(CHAIN)
    return world


def test_plan_shows_the_stages_and_what_is_next(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "r.yaml", "--set", "seed=8"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["sft", "tune", "Model", "to", "do"] in [row[:5] for row in rows]
    assert any(row[:5] == ["rate", "rate", "Scored", "draw,", "judge"] for row in rows)
    assert "seed 8" in out
    assert out.endswith("0 of 7 stages are done. Next: align run r.yaml --set seed=8\n")


def test_plan_shows_what_is_done_and_what_other_versions_made(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sft = recipe.read("r.yaml").stages["sft"].artifact.path
    sft.mkdir(parents=True)
    from align import store

    about: dict[str, Any] = {"versions": {"trl": "0.1", "python": sys.version.split()[0]}}
    store.publish(_partial(sft), about)
    assert main(["plan", "r.yaml"]) == 0
    out = capsys.readouterr().out
    assert "1 of 7 stages are done." in out
    assert "made by other versions" in out and "sft: trl 0.1 (now " in out


def _partial(path: Path) -> Path:
    work = path.with_name(path.name + ".partial")
    path.rename(work)
    (work / "model.json").write_text('{"base": {"path": "model"}, "adapter": false}')
    return work


def test_plan_ends_with_0_and_says_what_it_could_not_check(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "r.yaml", "--set", "base=org/model"]) == 0
    out = capsys.readouterr().out
    assert "not checked:\n  org/model is on the hub and not in the local cache: base\n" in out


@pytest.mark.parametrize("command", ["plan", "run", "status", "report"])
def test_a_wrong_recipe_ends_with_2_one_line_a_problem_and_no_traceback(
    command: str, chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--set", "stages.sft.batch_size=x", "--set", "stages.draw.n=y"]
    assert main([command, "r.yaml", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        '--set stages.sft.batch_size: "batch_size" must be a whole number, not "x".\n'
        '--set stages.draw.n: "n" must be a whole number, not "y".\n'
    )


def test_run_refuses_what_plan_could_not_check_and_makes_nothing(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "r.yaml", "--set", "base=org/model"]) == 2
    assert "org/model" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_run_hands_the_stages_over_wherever_they_stand(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def run(plan: recipe.Plan, targets: list[str]) -> int:
        calls.append((plan.seed, plan.store, targets, plan.attempts))
        return 3

    monkeypatch.setattr(runner, "run", run)
    assert main(["run", "r.yaml", "sft", "draw", "--set", "seed=9", "--store", "s"]) == 3
    assert main(["run", "r.yaml", "--set", "seed=9", "sft", "--again", "sft", "draw"]) == 3
    assert calls == [
        (9, Path("s"), ["sft", "draw"], {}),
        (9, Path("runs"), ["sft", "draw"], {"sft": 1}),
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [(StageFailed("It broke."), 1), (GateStopped("It lost."), 3), (KeyboardInterrupt(), 130)],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    chain: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(plan: recipe.Plan, targets: list[str]) -> int:
        raise error

    monkeypatch.setattr(runner, "run", run)
    assert main(["run", "r.yaml"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_status_says_how_far_every_stage_is(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "r.yaml"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 7


def test_a_recipe_that_is_nowhere(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("nowhere: There is no such recipe here. Shipped")


@pytest.mark.parametrize("origin", shelf.recipes())
def test_a_copied_recipe_plans_and_owns_its_files(
    origin: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "copy", "--from", origin]) == 0
    assert main(["plan", "copy"]) == 0
    text = Path("copy/recipe.yaml").read_text()
    assert f"recipes/{origin}/" not in text
    assert "align run copy" in text and f"align run {origin}" not in text
    (schema,) = [line.partition("$schema=")[2] for line in text.splitlines() if "$schema" in line]
    assert Path(schema).is_file()
    capsys.readouterr()
    assert main(["new", "copy", "--from", origin]) == 2
    assert capsys.readouterr().err == "copy: This exists already. Choose another name.\n"


def test_new_from_what_is_not_shipped(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "copy", "--from", "tiny-rael"]) == 2
    said = capsys.readouterr().err
    assert 'Did you mean "tiny-real"?' in said and "One of your own is copied as a folder" in said
    assert not Path("copy").exists()


def test_clean_shows_before_it_removes(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sft-aaaaaaaaaaaa", "sft-bbbbbbbbbbbb"):
        (Path("runs") / name).mkdir(parents=True)
        (Path("runs") / name / "stage.json").write_text('{"inputs": []}')
    assert main(["clean"]) == 0
    assert "sft-aaaaaaaaaaaa" in capsys.readouterr().out and Path("runs/sft-aaaaaaaaaaaa").exists()
    assert main(["clean", "--yes", "r.yaml"]) == 0
    assert not Path("runs/sft-aaaaaaaaaaaa").exists()


def test_help_names_every_command_and_every_command_has_examples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    names = ["plan", "run", "status", "report", "view", "new", "clean", "schema"]
    out = capsys.readouterr().out
    for name in names:
        assert f"  {name} " in out
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert f"examples:\n  align {name}" in capsys.readouterr().out


def test_run_needs_a_recipe_and_no_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run"])
    assert capsys.readouterr().err.endswith("the following arguments are required: RECIPE\n")


def test_a_command_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pln"]) == 2
    assert 'Did you mean "plan"?' in capsys.readouterr().err
    assert main([]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("align-recipes ")


def test_a_reader_that_stops_early_is_no_error(chain: Path) -> None:
    command = f"{sys.executable} -m align.cli plan r.yaml | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""

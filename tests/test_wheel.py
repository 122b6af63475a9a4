"""The wheel works where a user is: in a directory of their own, with packages of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the tree and installed into a directory by itself."""
    folder = tmp_path_factory.mktemp("wheel")
    run = [sys.executable, "-m"]
    build = [*run, "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    install = [*run, "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target"]
    subprocess.run([*install, str(target), str(wheel)], check=True, capture_output=True)
    return target


def align(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "align.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_wheel_installs_one_import_package(installed: Path) -> None:
    assert sorted(
        path.name for path in installed.iterdir() if path.is_dir() and "." not in path.name
    ) == [
        "align",
        "bin",
    ]


def test_the_wheel_holds_the_page_of_align_view(installed: Path) -> None:
    static = installed / "align" / "reporting" / "static"
    assert {file.name for file in static.iterdir()} == {
        "view.html",
        "view.css",
        "view.js",
        "rows.js",
    }


def test_the_installed_quickstart_plans_in_a_directory_with_its_own_eval_package(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "__init__.py").write_text("raise RuntimeError('not yours')\n")
    done = align(installed, tmp_path, "plan", "quickstart")
    assert done.returncode == 0, done.stderr
    assert "dpo" in done.stdout + done.stderr


def test_the_installed_quickstart_can_be_copied_and_planned(
    installed: Path, tmp_path: Path
) -> None:
    assert align(installed, tmp_path, "new", "mine", "--from", "quickstart").returncode == 0
    done = align(installed, tmp_path, "plan", "mine")
    assert done.returncode == 0, done.stderr

"""What the README says is true: its commands run, its tree and its errors are the real ones."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from align.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(program: str) -> list[str]:
    """The command lines of the README's code blocks that start with a program's name."""
    blocks = re.findall(r"^```\n(.*?)^```$", _others_out(README), flags=re.DOTALL | re.MULTILINE)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(program + " ")]


def _others_out(page: str) -> str:
    """A page without its blocks in a language."""
    return re.sub(r"^```\w+\n.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {shlex.split(line)[1] for line in commands("make")}
    assert {"align", "test"} <= named <= targets


def test_the_commands_of_the_readme_run_in_an_empty_directory(tmp_path: Path) -> None:
    """All but `align run`, which is planned instead, and what asks for something that is made."""
    found = commands("align")
    verbs = {line.split()[1] for line in found}
    assert {"new", "plan", "run", "eval", "view", "chat", "push"} <= verbs
    for line in found:
        arguments = shlex.split(line)[1:]
        if arguments[0] in ("eval", "view", "chat", "push"):
            arguments.append("--help")
        if arguments[0] == "run":
            arguments = ["plan", *arguments[1:]]
            arguments = [word for word in arguments if word not in ("dpo", "--again")]
        done = subprocess.run(
            [sys.executable, "-m", "align.cli", *arguments],
            cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_the_tree_in_the_readme_is_the_tree_on_disk() -> None:
    (tree,) = re.findall(r"## The tree\n\n```\n(.*?)```", README, flags=re.DOTALL)
    for line in tree.splitlines():
        name = line.split()[0]
        folder = ROOT / "align" / name if line.startswith(" ") else ROOT / name
        assert folder.is_dir(), line


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_every_link_of_the_readme_leads_somewhere(link: str) -> None:
    assert link.startswith("https://") or (ROOT / link).exists()


def test_the_recipe_of_the_readme_is_read_and_its_two_mistakes_are_found(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    (errors,) = re.findall(r"```\n(my\.yaml.*?)```", README, flags=re.DOTALL)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "held-out.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')

    def plan(text: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "my.yaml").write_text(text)
        return subprocess.run(
            [sys.executable, "-m", "align.cli", "plan", "my.yaml"],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip

    good = plan(recipe)
    assert good.returncode == 0, good.stderr
    bad = plan(recipe.replace("data: pairs, trainer: {beta:", "data: best, trainer: {betta:"))
    assert bad.returncode == 2
    for error in errors.splitlines():
        assert error in bad.stderr


def test_what_the_readme_shows_of_an_estimate_is_what_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (shown,) = re.findall(r"```\n(on 16 GiB a GPU:\n.*?)```", README, flags=re.DOTALL)
    assert main(["plan", "llama-3.1-8b", "--memory", "16GiB"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in shown.splitlines() if line not in printed] == []

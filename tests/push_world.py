"""A chain to push, for tests: sft and dpo on a base of the hub's cache, and an evaluation.

Beside it an adapter on a base that is on this machine alone, both as one, and a reward model.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BASE = "maker/tiny"

RECIPE = """# from raw talks to dpo
base: {path: maker/tiny}
seed: 7
defaults:
  sft: {lora: {r: 4, lora_alpha: 8, target_modules: all-linear}, batch_size: 4}
stages:
  reward:
    {use: reward_model, model: base, data: pairs.jsonl, lora: {r: 4}, holdout: 0.5, gate: null}
  aside: {use: sft, model: {path: local}, data: talks.jsonl, trainer: {max_steps: 1}}
  folded: {use: merge, model: aside}
  sft:
    model: base
    data: "${env:TALKS}"   # it is on this machine
    trainer: {num_train_epochs: 1, learning_rate: 1.0e-3}
  dpo: {model: sft, data: pairs.jsonl, batch_size: 4, trainer: {num_train_epochs: 1}}
  evaluate:
    models: [base, sft, dpo]
    tasks: [{use: echo.py, generation: {max_new_tokens: 4}}]
    gates: [{model: dpo, task: echo, against: sft, may_lose: 1.0}]
"""

ECHO = '''
from typing import ClassVar, Literal
from align.settings import Task

class Echo(Task):
    """Whether an answer holds a letter."""
    ask: ClassVar[Literal["answer"]] = "answer"

    def items(self):
        for i in range(12):
            yield {"id": i, "prompt": f"say {i}"}

    def grade(self, items, answers):
        return [{"has": float("e" in answer)} for answer in answers]
'''


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def build(folder: Path, model: Path) -> dict[str, str]:
    """Write the world's files; the environment in which the recipe is run."""
    cached = folder / "hub" / "models--maker--tiny"
    shutil.copytree(model, cached / "snapshots" / COMMIT)
    (cached / "snapshots" / COMMIT / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    shutil.copytree(model, folder / "local")
    talks = [[said("user", f"say {i}"), said("assistant", f"it is {i}")] for i in range(8)]
    pairs = [
        {"prompt": f"say {i}", "chosen": f"it is {i}", "rejected": f"no {i}"} for i in range(8)
    ]
    for name, rows in (("talks", [{"messages": talk} for talk in talks]), ("pairs", pairs)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "chain.yaml").write_text(RECIPE)
    (folder / "echo.py").write_text(ECHO)
    return {"HF_HUB_CACHE": str(folder / "hub"), "TALKS": str(folder / "talks.jsonl")}


@pytest.fixture(scope="session")
def made_chain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world after `align run chain.yaml`; tests take a copy of it (`chain`)."""
    folder = tmp_path_factory.mktemp("chain")
    env = build(folder, tiny_model)
    done = subprocess.run(
        [sys.executable, "-m", "align.cli", "run", "chain.yaml"],
        cwd=folder,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def chain(made_chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the made chain, as the working directory."""
    folder = tmp_path / "world"
    shutil.copytree(made_chain, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setenv("TALKS", str(folder / "talks.jsonl"))
    return folder

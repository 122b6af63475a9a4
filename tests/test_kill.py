"""SIGKILL anywhere: what goes on afterwards ends with the same bytes as what was never killed.

Nothing in the project knows about these tests. A `sitecustomize.py` on the PYTHONPATH of the run
under test listens to Python's audit events (`open`, `os.rename`, …) and sends the signal when a
named file is about to be touched, so a kill comes at the same instruction every time.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from align import recipe, store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans die on Linux only")

LISTENER = r"""
import os, re, signal, sys, time

os.environ.setdefault("KILL_RUNNER", str(os.getpid()))
whom, event, pattern = os.environ["KILL_AT"].split(" ", 2)


def listen(what, arguments):
    if what == event and re.search(pattern, " ".join(map(str, arguments[:2]))):
        done = os.environ["KILL_DONE"]
        if not os.access(done, os.F_OK):
            os.mkdir(done)
            pid = int(os.environ["KILL_RUNNER"]) if whom == "runner" else os.getpid()
            os.kill(pid, int(os.environ["KILL_WITH"]))
            if pid != os.getpid() and int(os.environ["KILL_WITH"]) == signal.SIGKILL:
                time.sleep(60)  # an orphan's last moment: the kernel kills it here


sys.addaudithook(listen)
"""

REWARD = '''
from align.settings import Reward


class Vowels(Reward):
    """The share of vowels."""

    def __call__(self, *, prompts, completions, **columns):
        texts = [completion[-1]["content"] for completion in completions]
        return [sum(c in "aeiou" for c in text) / (len(text) + 1) for text in texts]
'''

CHAIN = """
base: {path: tiny}
stages:
  sft:
    data: {path: conversations.jsonl}
    model: base
    batch_size: 4
    trainer: {max_steps: 6, save_steps: 2, learning_rate: 0.01}
  sample:
    model: sft
    prompts: {path: prompts.jsonl}
    n: 4
    shard: 2
    generation: {max_new_tokens: 6}
  score: {samples: sample, rewards: [{use: ./vowels.py}], shard: 2}
  pair: {scores: score, allow_cut: true}
  dpo:
    model: sft
    data: pair
    lora: {r: 2, target_modules: all-linear}
    batch_size: 2
    trainer: {max_steps: 4, save_steps: 2, learning_rate: 0.01}
"""


class At(NamedTuple):
    """When to kill whom: the process itself, or the runner it works for."""

    name: str
    whom: str
    event: str
    pattern: str
    number: int = signal.SIGKILL

    @property
    def done(self) -> str:
        """The directory that says it has happened."""
        return re.sub(r"\W+", "-", self.name)


POINTS = [
    At("before the first stage", "self", "open", r"sft-\w+\.partial/stage\.json\.tmp"),
    At("inside a checkpoint save", "self", "open", r"sft-.*/checkpoint-2/trainer_state\.json"),
    At("before a checkpoint is sealed", "self", "os.rename", r"sft-.*checkpoint-4/complete"),
    At("the runner, while it trains", "runner", "open", r"sft-.*/checkpoint-6/trainer_state"),
    At("before old checkpoints go", "self", "shutil.rmtree", r"sft-.*/checkpoint-"),
    At("while the model is written", "self", "open", r"sft-.*\.partial/model\.json"),
    At("before the manifest", "self", "open", r"sft-\w+\.partial/artifact\.json\.tmp"),
    At("while scratch is removed", "self", "shutil.rmtree", r"sft-\w+\.partial/checkpoints "),
    At("before the final rename", "self", "os.rename", r"/sft-\w+\.partial \S*/sft-\w+$"),
    At("the runner, before it links", "self", "os.symlink", r"sft-\w{12} "),
    At("inside a shard write", "self", "os.rename", r"sample-.*/shard-00001\.jsonl"),
    At("the runner, between shards", "runner", "open", r"sample-.*/shard-00002\.jsonl\.\S+tmp"),
    At("while scores are written", "self", "os.rename", r"score-.*/shard-00001\.jsonl"),
    At("while pairs are written", "self", "os.rename", r"pair-.*/data/.*\.jsonl"),
    At("inside a checkpoint of dpo", "self", "open", r"dpo-.*/checkpoint-2/trainer_state\.json"),
    At("before the last rename", "self", "os.rename", r"/dpo-\w+\.partial \S*/dpo-\w+$"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A user's directory with the chain above, and `sitecustomize.py` in a corner of it."""
    here = tmp_path_factory.mktemp("kill")
    (here / "tiny").symlink_to(tiny_model)
    (here / "chain.yaml").write_text(CHAIN)
    (here / "vowels.py").write_text(REWARD)
    (here / "listener").mkdir()
    (here / "listener" / "sitecustomize.py").write_text(LISTENER)
    words = ["aha", "oboe", "rhythm", "queue", "sky", "idea", "myth", "area", "fly", "eerie"]
    with (here / "conversations.jsonl").open("w") as file:
        for word in words:
            turns = [("user", f"say {word}"), ("assistant", word)]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    with (here / "prompts.jsonl").open("w") as file:
        for word in words[:6]:
            file.write(json.dumps({"prompt": f"say {word}"}) + "\n")
    return here


def run(
    project: Path, root: str, at: At | None = None, arguments: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """`align run` in a process of its own, to be killed at a point."""
    environment = dict(os.environ)
    if at is not None:
        environment |= {
            "PYTHONPATH": f"{project / 'listener'}:{os.environ.get('PYTHONPATH', '')}",
            "KILL_AT": f"{at.whom} {at.event} {at.pattern}",
            "KILL_DONE": str(project / at.done),
            "KILL_WITH": str(int(at.number)),
        }
    return subprocess.run(
        [sys.executable, "-m", "align.cli", "run", "chain.yaml", "--store", root, *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def made(project: Path, root: str, *overrides: str) -> dict[str, dict[str, str]]:
    """The hash of every file of every stage, but for those that tell the time."""
    found = {}
    before = Path.cwd()
    os.chdir(project)
    try:
        plan = recipe.read("chain.yaml", overrides, store=Path(root))
    finally:
        os.chdir(before)
    for name, stage in plan.stages.items():
        if not (project / stage.artifact.path).exists():
            continue
        files: dict[str, Any] = store.verify(project / stage.artifact.path)["files"]
        clocks = r"log\.txt|metrics\.jsonl?"
        found[name] = {f: v["sha256"] for f, v in files.items() if not re.fullmatch(clocks, f)}
    return found


@pytest.fixture(scope="module")
def uninterrupted(project: Path) -> dict[str, dict[str, str]]:
    done = run(project, "whole")
    assert done.returncode == 0, done.stderr
    return made(project, "whole")


def test_killed_at_every_point_and_gone_on_with_it_ends_with_the_same_bytes(
    project: Path, uninterrupted: dict[str, dict[str, str]]
) -> None:
    for at in POINTS:
        ended = run(project, "killed-often", at)
        assert (project / at.done).exists(), f"{at.name}: never came there\n{ended.stderr}"
        if at.whom == "runner":
            assert ended.returncode == -signal.SIGKILL, f"{at.name}: {ended.stderr}"
        elif ended.returncode != -signal.SIGKILL:
            assert ended.returncode == 1, f"{at.name}: {ended.stderr}"
            assert "was killed by SIGKILL" in ended.stderr, at.name
    done = run(project, "killed-often")
    assert done.returncode == 0, done.stderr
    assert made(project, "killed-often") == uninterrupted
    assert not list((project / "killed-often").glob("*.partial"))


def test_told_to_stop_a_training_saves_and_goes_on_from_there(project: Path) -> None:
    steps = "stages.sft.trainer.max_steps=150"
    only = ["sft", "--set", steps, "--set", "stages.sft.trainer.save_steps=1000"]
    at = At("told to stop", "runner", "open", r"sft-.*/metrics\.jsonl a", signal.SIGINT)
    assert run(project, "calm", arguments=only).returncode == 0
    ended = run(project, "stopped", at, only)
    assert ended.returncode == 130, ended.stderr
    assert "Stopping cleanly; once more kills it.\n" in ended.stderr
    assert ended.stderr.endswith("the same command goes on from here.\n")
    done = run(project, "stopped", arguments=only)
    assert done.returncode == 0, done.stderr
    assert re.search(r"sft: Going on from checkpoint-\d+\.", done.stderr)
    overrides = only[2], only[4]
    assert made(project, "stopped", *overrides) == made(project, "calm", *overrides) != {}


def test_what_is_compared_are_weights_data_and_scores(
    uninterrupted: dict[str, dict[str, str]],
) -> None:
    assert "model/model.safetensors" in uninterrupted["sft"]
    assert "adapter/adapter_model.safetensors" in uninterrupted["dpo"]
    for name in ("sample", "score", "pair"):
        assert any(file.startswith("data/") for file in uninterrupted[name])

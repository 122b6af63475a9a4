"""Whole chains through `align run`: the quickstart and the real model, cut short."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import environment, serve

from align import shelf

SHORT = {
    "quickstart": (
        "stages.text.rows=1500",
        "stages.demonstrations.rows=320",
        "stages.preferences.rows=320",
        "stages.prompts.rows=40",
        "stages.held_out.rows=10",
        "stages.held_out_pairs.rows=50",
        "stages.reward.gate=null",
        "stages.pairs.margin=0.0",
    ),
    "tiny-real": (
        "stages.sft.data.split=train[:96]",
        "stages.reward.data.split=train[:96]",
        "stages.judge.data.split=train[450:546]",
        "stages.reward.gate=null",
        "stages.judge.gate=null",
        "defaults.sft.trainer.num_train_epochs=1",
        "defaults.reward_model.trainer.num_train_epochs=1",
        "defaults.sample.prompts.split=train[:24]",
        "defaults.sample.n=4",
        "defaults.sample.generation.max_new_tokens=24",
        "stages.best.allow_cut=true",
        "stages.random.allow_cut=true",
        "stages.pairs.allow_cut=true",
        "stages.pairs.margin=0.0",
        "stages.evaluate.tasks.0.data.split=train[900:932]",
        "stages.evaluate.tasks.1.data.split=train[900:916]",
        "stages.evaluate.tasks.2.data.split=train[900:916]",
    ),
    "tiny-real/raw.yaml": (
        "stages.talk.data.0.split=train[:30]",
        "stages.talk.data.1.count=60",
        "stages.people.data.0.split=train[:30]",
        "stages.people.data.1.count=60",
        "defaults.curate.length.answer_words.at_most=80",
        "stages.evaluate.tasks.0.data.split=train[1900:1916]",
    ),
}


def run(cwd: Path, recipe: str, *more: str) -> subprocess.CompletedProcess[str]:
    """`align run` of the shortened recipe in a process of its own."""
    settings = [word for one in (*SHORT[recipe], *more) for word in ("--set", one)]
    command = [sys.executable, "-m", "align.cli", "run", recipe, *settings]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def report(cwd: Path, recipe: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cwd / "runs" / recipe / "report.json").read_text())
    return found


def test_the_quickstart_runs_and_its_second_run_makes_only_what_changed(tmp_path: Path) -> None:
    first = run(tmp_path, "quickstart")
    assert first.returncode == 0, first.stdout + first.stderr
    found = report(tmp_path, "quickstart")
    assert found["status"] == "done"
    scores = {(one["model"], one["task"]): one for one in found["scores"]}
    for model in ("sft", "sft_random", "sft_best", "dpo"):
        whole = scores[model, "world"]
        assert whole["n"] == 50
        assert whole["ci_low"] <= whole["mean"] <= whole["ci_high"]
    assert 40 <= scores["reward", "preferences"]["n"] <= 50  # a few answers are garbled to nothing
    roles = {(one["model"], one["against"], one["role"]) for one in found["comparisons"]}
    assert {("sft_best", "sft", "step"), ("sft_best", "sft_random", "control")} <= roles
    assert ("dpo", "sft_best", "step") in roles
    assert (tmp_path / "runs" / "quickstart" / "report.html").stat().st_size > 5000

    before = {path.name for path in (tmp_path / "runs").iterdir()}
    second = run(tmp_path, "quickstart")
    assert second.returncode == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == before

    third = run(tmp_path, "quickstart", "stages.dpo.trainer.beta=0.3")
    assert third.returncode == 0
    made = {path.name for path in (tmp_path / "runs").iterdir()} - before
    assert sorted(name.partition("-")[0] for name in made) == ["dpo", "evaluate"]


@pytest.mark.skipif("ALIGN_DATA" not in os.environ, reason="ALIGN_DATA is not set: no real data")
def test_the_chain_runs_on_a_real_model_and_real_data(tmp_path: Path) -> None:
    done = run(tmp_path, "tiny-real")
    assert done.returncode == 0, done.stdout + done.stderr
    found = report(tmp_path, "tiny-real")
    measured = {(one["model"], one["task"]) for one in found["scores"]}
    policies = ("sft", "sft_rand", "sft_best", "dpo")
    assert {(model, task) for model in policies for task in ("answers", "perplexity")} <= measured
    assert {("reward", "preferences"), ("judge", "preferences")} <= measured
    adapterless = json.loads((tmp_path / "runs" / "tiny-real" / "dpo" / "model.json").read_text())
    assert adapterless["adapter"] is False


@pytest.mark.skipif("ALIGN_DATA" not in os.environ, reason="ALIGN_DATA is not set: no real data")
def test_raw_files_become_an_adapter_on_the_hub(tmp_path: Path) -> None:
    done = run(tmp_path, "tiny-real/raw.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    found = report(tmp_path, "tiny-real-raw")
    counts = {one["name"]: one["counts"] for one in found["stages"]}
    assert counts["talk"]["dropped.length"]["n"] > 0 and counts["people"]["kept"]["n"] > 30
    assert not [one for one in found["overlap"] if one["exact"] or one["partial"]]
    (tmp_path / "hub").mkdir()
    with serve(tmp_path / "hub") as hub:
        words = ["push", "runs/tiny-real-raw/dpo", "me/kind", "--with-base", "me/stories"]
        pushed = subprocess.run(
            [sys.executable, "-m", "align.cli", *words],
            cwd=tmp_path,
            env=os.environ | environment(hub, tmp_path / "home"),
            capture_output=True,
            text=True,
        )
        assert pushed.returncode == 0, pushed.stdout + pushed.stderr
        files = hub.files("me/kind")
        base = hub.repositories["models/me/stories"].at("main")
    config = json.loads(files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/stories", base.sha)
    card = files["README.md"].decode()
    for fact in ("en_100_tree.jsonl", "harmless-base.test.jsonl.gz", "curate", "perplexity"):
        assert fact in card, fact
    text = shelf.recipe("tiny-real/raw.yaml").read_text()
    assert text[text.index("\nbase:") :] in card, "the recipe; paths in its head are shortened"

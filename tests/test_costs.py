"""What a plan will take, at the command line: columns, what fits, and what makes it fit."""

import re
import shlex
from pathlib import Path

import pytest

from align import recipe, shapes, store
from align.cli import main
from align.estimate import costs, effort, fit
from align.estimate.memory import GIB

RECIPE = """
base: {path: meta-llama/Llama-3.1-8B, chat_template: llama-3.1}
defaults:
  sft: {model: base, data: chats.jsonl, batch_size: 16}
stages:
  full: {use: sft}
  tuned: {use: sft, lora: &lora {r: 16, target_modules: all-linear}}
  reward: {use: reward_model, model: base, data: pairs.jsonl, lora: *lora}
  dpo: {model: tuned, data: pairs.jsonl, trainer: {gradient_checkpointing: false}, batch_size: 16}
  sample: {model: dpo, prompts: {path: org/prompts, split: "train[100:1100]"}, n: 4}
  score: {samples: sample, rewards: [{use: reward/model.py, model: reward}]}
  best: {use: reject, scores: score}
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe for an 8B model, on a machine without a GPU, a network or a cache."""
    chat = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    (tmp_path / "chats.jsonl").write_text(f"{chat}\n" * 50)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 50)
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", "r.yaml", *arguments]) == 0
    return capsys.readouterr().out


def test_a_plan_says_what_every_stage_will_take(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = {line.split()[0]: line for line in plan(capsys).splitlines() if line}
    assert re.search(r"memory +disk +tokens +time +directory$", lines["stage"])
    size = (world / "chats.jsonl").stat().st_size
    amounts = f"~{3 * size / effort.BYTES / 1000:.3g}k"
    assert re.search(rf"[\d.]+ GiB +[\d.]+ GiB +{amounts} +\? +sft-", lines["full"])
    assert re.search(r"GiB +- +4k rows +\? +sample-", lines["sample"])
    assert re.search(r"to do +- +- +\? +\? +reject-", lines["best"])


def test_a_model_that_is_not_known_is_not_guessed(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = plan(capsys, "--set", "base.path=org/model")
    assert "full " in out and re.search(r"to do +\? +- ", out)
    assert "memory is not known, because org/model is not in the hub's cache here" in out


@pytest.mark.parametrize("memory", ["24GiB", "80GB"])
def test_what_does_not_fit_fits_with_the_change_that_is_named(
    memory: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = plan(capsys, "--memory", memory)
    found = dict(re.findall(r"  (\w+): does not fit: .*\n    [\d.]+ GiB with (.*)\n", out))
    assert "full" in found and "nothing that is tried" not in found
    for name, words in found.items():
        again = plan(capsys, "--memory", memory, *shlex.split(words))
        assert f"  {name}: fits, with" in again
    assert "best:" not in out


def test_the_smallest_change_comes_first(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    enough = "stages.dpo.trainer.per_device_train_batch_size="
    peak = costs.Costs(recipe.read("r.yaml")).estimates["dpo"].peak
    assert peak is not None
    out = plan(capsys, "--memory", f"{peak / GIB - 0.1:.2f}GiB")
    (change,) = re.findall(r"  dpo: does not fit: .*\n    .* with (.*)\n", out)
    assert change == f"--set {enough}4"


def smallest(stage: str, memory: float, *overrides: str) -> list[str]:
    read = recipe.read("r.yaml", overrides)
    found = fit.smallest(read, read.stages[stage], memory * GIB)
    return found[0] if found else []


def test_a_change_that_cannot_be_is_not_tried(world: Path) -> None:
    rows = "defaults.sft.trainer={per_device_train_batch_size: 8}"
    assert smallest("full", 4, rows) == []  # on 4 devices each has fewer than 8 rows


def test_a_sharded_stage_is_not_asked_for_an_optimizer_that_cannot_be_sharded(world: Path) -> None:
    launch = "stages.full.launch={config_file: recipes/launch/fsdp2.yaml, num_processes: 8}"
    keys = [change.split("=")[0] for change in smallest("full", 7, launch)]
    assert keys == ["stages.full.trainer.per_device_train_batch_size", "stages.full.lora"]


def test_no_part_of_a_change_could_be_left_out(world: Path) -> None:
    keys = [change.split("=")[0] for change in smallest("reward", 12)]
    assert keys == [
        "stages.reward.trainer.per_device_train_batch_size",
        "stages.reward.quantization",
    ]


def test_the_example_of_the_documentation_is_what_is_printed(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs/estimate.md").read_text()
    out = plan(capsys, "--memory", "24GiB").splitlines()
    (example,) = re.findall(r"```\n(.*?)```", page, re.DOTALL)
    assert "fits" in example and set(example.splitlines()) <= set(out)


def test_a_stage_holds_the_largest_of_what_it_loads_one_after_the_other(world: Path) -> None:
    ask = "{use: eval/answers.py, data: pairs.jsonl, reward: {use: reward/model.py, model: reward}}"
    (world / "q.yaml").write_text(
        RECIPE + "  quiz: {use: evaluate, models: [dpo], rows: 1, tasks: [" + ask + "]}\n"
    )
    found = costs.Costs(recipe.read("q.yaml")).estimates
    eight = shapes.shape(shapes.table()["meta-llama/Llama-3.1-8B"])
    for name in ("score", "quiz"):  # reward models score in float32
        held = found[name].memory
        assert held is not None and held["weights"] == 4 * eight.parameters(head=True)


def test_curate_takes_what_its_rules_load(world: Path) -> None:
    scores = "{use: reward/model.py, model: reward}"
    stage = (
        "  {0}: {{use: curate, rows: preferences, data: {{path: pairs.jsonl, count: 20}}, "
        "decontaminate: [{{use: eval/answers.py, data: pairs.jsonl, reward: {1}}}]{2}}}\n"
    )
    quality = f", quality: {{reward: {scores}}}"
    (world / "c.yaml").write_text(
        RECIPE + stage.format("plain", scores, "") + stage.format("good", scores, quality)
    )
    found = costs.Costs(recipe.read("c.yaml"))
    assert found.cells("plain") == ("-", "-", "20 rows", "?")
    weights = [(found.estimates[name].memory or {}).get("weights") for name in ("good", "score")]
    assert weights[0] and weights[0] == weights[1]


def test_what_nothing_makes_fit_is_said(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = plan(capsys, "--memory", "2GiB")
    assert "makes it fit: take a smaller model\n" in out


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("stages.reward.seed=1", "quantize it there"),
        ("stages.reward.quantization={load_in_4bit: true}", "make a smaller one there"),
    ],
)
def test_the_stage_that_makes_a_model_that_is_too_large_is_named(
    override: str, remedy: str, world: Path
) -> None:
    planned = recipe.read("r.yaml", [override]).stages["score"]
    assert fit.remedy(planned) == f"the largest model is made by reward: {remedy}"


def test_a_size_that_is_none(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "r.yaml", "--memory", "much"]) == 2
    said = capsys.readouterr().err
    assert said == '--memory: "much" is no size. Write it as 24GiB or 80GB.\n'


def test_sizes_in_words() -> None:
    sizes = {"24GiB": 24 << 30, "24gi": 24 << 30, "80GB": 80e9, "80G": 80e9, "512 MiB": 512 << 20}
    assert {word: costs.size(word) for word in sizes} == sizes
    for word in ("", "GiB", "-1GiB", "24 GHz", "24", "0", "0GiB"):
        with pytest.raises(ValueError):
            costs.size(word)


def test_time_is_that_of_a_run_of_the_same_shape(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = recipe.read("r.yaml").stages["tuned"]
    work = store.partial(done.artifact.path)
    work.mkdir(parents=True)
    store.write_json(work / "stage.json", done.record)
    store.write_json(work / "metrics.json", {"tokens": 5000})
    store.write_json(
        work / "model.json",
        {"base": {"path": "meta-llama/Llama-3.1-8B"}, "quantization": None, "adapter": True},
    )
    store.publish(work, {"kind": "sft", "seconds": 100.0, "counts": {}})
    lines = {line.split()[0]: line for line in plan(capsys).splitlines() if line}
    assert re.search(r" 5k +2 min +sft-", lines["tuned"])
    again = recipe.read("r.yaml", ["stages.tuned.seed=7"])
    other = recipe.read("r.yaml", ["stages.tuned.lora.r=8"])
    found = effort.of(again.stages["tuned"])
    assert found.tokens is not None and found.like == done.artifact.key
    assert found.seconds == pytest.approx(100 * found.tokens / 5000)
    assert effort.of(other.stages["tuned"]).seconds is None

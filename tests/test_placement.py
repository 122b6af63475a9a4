"""Where a stage is trained makes no difference to what it learns, and what cannot be is refused."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import safetensors.torch

from align import checkpoints, launch, recipe, runner, shelf
from align.errors import RecipeError, StageFailed
from align.out import Out

LORA = {"lora": {"r": 4}}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
WORDS = ["red", "green", "blue", "one", "two", "three", "north", "south"]
Asked = dict[str, dict[str, Any]]
Train = Callable[[Asked, str | None], Path]


@pytest.fixture
def rows(write_rows: Callable[..., Path]) -> dict[str, str]:
    """Data by kind of stage."""
    dialogs = [
        {"prompt": f"Say {i}", "response": " ".join(WORDS[: 1 + i * 5 % 8])} for i in range(22)
    ]
    pairs = [
        {"prompt": f"Say {i}", "chosen": " ".join(WORDS[: 1 + i * 5 % 8]), "rejected": WORDS[i % 8]}
        for i in range(22)
    ]
    files = {"sft": write_rows("rows.jsonl", dialogs), "dpo": write_rows("pairs.jsonl", pairs)}
    return {kind: str(file) for kind, file in {**files, "reward_model": files["dpo"]}.items()}


@pytest.fixture
def train(tmp_path: Path, tiny_model: Path, rows: dict[str, str]) -> Train:
    """Train stages in this process, or in two with a profile; the directory that has theirs."""

    def run(stages: Asked, profile: str | None) -> Path:
        out = tmp_path / (profile or "one")
        asked = {
            name: {"model": str(tiny_model), "data": rows[each["kind"]], "settings": {}, **each}
            for name, each in stages.items()
        }
        if profile is None:
            for name, each in asked.items():
                (out / name).mkdir(parents=True)
                ranks.stage(**each).run(Out(out / name, out / "cache"))
            return out
        plan = tmp_path / f"{profile}.json"
        plan.write_text(json.dumps({"out": str(out), "stages": asked}))
        words = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
        words += ["--config_file", str(shelf.SHELF / f"recipes/launch/{profile}.yaml")]
        words += ["--main_process_port", "0", str(Path(ranks.__file__)), str(plan)]
        path = os.pathsep.join([str(Path(launch.__file__).parents[1]), *sys.path])
        # DeepSpeed takes the CPU for its device when it is told to
        env = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        env |= {"CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(words, env={**os.environ, **env}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return out

    return run


def losses(made: Path, name: str = "loss") -> list[float]:
    lines = (made / "metrics.jsonl").read_text().splitlines()
    return [found[name] for found in map(json.loads, lines) if name in found]


def weights(made: Path) -> dict[str, Any]:
    return dict(safetensors.torch.load_file(next(made.glob("*/*.safetensors"))))


def check_equal(one: Path, two: Path, loss: float, weight: float) -> None:
    """The same losses and weights, up to the order in which numbers are added up."""
    assert losses(two) == pytest.approx(losses(one), abs=loss) and len(losses(one)) == 4
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).abs().max() <= weight, name
    assert (one / "model.json").read_text() == (two / "model.json").read_text()


def test_two_processes_learn_what_one_does(train: Train) -> None:
    """Data parallel: `dpo` has this test in tests/stages/test_dpo.py."""
    stages: Asked = {
        "sft": {"kind": "sft", "settings": LORA},
        "reward": {"kind": "reward_model", "settings": {**LORA, "gate": None}},
        "qlora": {"kind": "sft", "settings": {**LORA, "quantization": NF4}},
    }
    one, two = train(stages, None), train(stages, "ddp")
    check_equal(one / "sft", two / "sft", 2e-5, 1e-5)
    check_equal(one / "reward", two / "reward", 2e-5, 1e-5)
    # adapters of a quantized base are in bfloat16, which has 8 bits: a step of 0.01 is off by one
    check_equal(one / "qlora", two / "qlora", 1e-3, 0.03)


DEEPSPEED = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="no deepspeed"),
]
SHARDED = ["fsdp2", *(pytest.param(name, marks=DEEPSPEED) for name in ("zero2", "zero3"))]


@pytest.mark.parametrize("profile", SHARDED)
def test_a_model_in_parts_learns_and_is_saved_as_a_whole_one(train: Train, profile: str) -> None:
    saving = {**LORA, "trainer": {"save_steps": 2}}
    wild = {"learning_rate": 0.3, "lr_scheduler_type": "constant", "eval_steps": 1}
    stages: Asked = {
        "lora": {"kind": "sft", "settings": saving},
        "full": {"kind": "reward_model", "settings": {"gate": None}},
        "dpo": {"kind": "dpo", "settings": LORA},
    }
    again: Asked = {"again": {"kind": "sft", "settings": saving, "again": "lora"}}
    best: Asked = {"best": {"kind": "sft", "settings": {"eval_data": True, "trainer": wild}}}
    one, two = train({**stages, **best}, None), train({**stages, **again, **best}, profile)
    for name in stages:
        check_equal(one / name, two / name, 2e-5, 1e-4)
    measured = losses(two / "best", "eval_loss")
    assert measured.index(min(measured)) == 2, "the best is not the last"
    check_equal(one / "best", two / "best", 5e-3, 5e-3)  # at this learning rate the last bits grow
    held_out = [json.loads((made / "full/metrics.json").read_text()) for made in (one, two)]
    assert held_out[0]["accuracy"] == held_out[1]["accuracy"]
    kept = [path.name for path in checkpoints.found(two / "again/checkpoints")]
    assert kept == ["checkpoint-4", "checkpoint-2"]
    assert losses(two / "again") == losses(two / "lora")
    for name, tensor in weights(two / "lora").items():
        assert (tensor == weights(two / "again")[name]).all(), name
    if profile == "fsdp2":  # the frozen base is in no checkpoint
        base = sum(weight.nbytes for weight in weights(two / "full").values())
        parts = [*two.glob("lora/checkpoints/checkpoint-4/pytorch_model_fsdp_0/*.distcp")]
        assert len(parts) == 2 and sum(part.stat().st_size for part in parts) < base / 3


def test_a_checkpoint_of_another_placement_is_not_read(
    tiny_model: Path, rows: dict[str, str], tmp_path: Path
) -> None:
    """`launch:` is no part of a stage's key, and the files of a checkpoint depend on it."""
    settings = {"lora": {"r": 4}, "trainer": {"save_steps": 4}}
    stage = ranks.stage("sft", str(tiny_model), rows["sft"], settings)
    out = Out(tmp_path / "made", tmp_path / "cache")
    out.path.mkdir()
    stage.run(out)
    (checkpoint,) = checkpoints.found(out.path / "checkpoints")
    (checkpoint / "placement.json").write_text('{"placement": "FSDP2"}')
    checkpoints.seal(checkpoint)
    message = "written with the weights FSDP2; now they are whole on each device. Set `launch:` as"
    with pytest.raises(StageFailed, match=message):
        stage.run(out)


NO_4_BIT = ["for pairs others report that it fails", "the same 4-bit base on every device"]
REFUSED: list[tuple[str, dict[str, Any], str, list[str]]] = [
    ("dpo", {**LORA, "quantization": NF4, "launch": "fsdp2"}, "launch", NO_4_BIT),
    ("reward_model", {**LORA, "quantization": NF4, "launch": "fsdp2"}, "launch", NO_4_BIT),
    (
        "sft",
        {**LORA, "quantization": {**NF4, "bnb_4bit_quant_storage": "uint8"}, "launch": "fsdp2"},
        "launch",
        ["4-bit weights stored as uint8 would become others"],
    ),
    (
        "sft",
        {**LORA, "quantization": {"load_in_8bit": True}, "launch": "fsdp2"},
        "launch",
        ["cannot divide 8-bit weights", "LoRA under FSDP2"],
    ),
    (
        "sft",
        {**LORA, "quantization": NF4, "launch": "zero3"},
        "launch",
        ["ZeRO-3 cannot divide quantized weights", "zero2.yaml"],
    ),
    ("sft", {"trainer": {"optim": "adamw_8bit"}, "launch": "fsdp2"}, "launch", ["adamw_8bit is"]),
    ("sft", {"launch": {"use_fsdp": True}}, "launch", ["This is FSDP 1"]),
    (
        "sft",
        {"launch": {"use_fsdp": True, "fsdp_version": 2, "fsdp_activation_checkpointing": True}},
        "launch.fsdp_activation_checkpointing",
        ["`trainer.gradient_checkpointing`"],
    ),
    (
        "sft",
        {"launch": {"num_processes": 2, "mixed_precision": "fp16"}},
        "launch.mixed_precision",
        ["mixed_precision is fp16", "`trainer: {bf16"],
    ),
    (
        "sft",
        {"launch": {"num_processes": 2, "mixed_precision": "bf16"}, "trainer": {"bf16": False}},
        "launch.mixed_precision",
        ["mixed_precision is bf16"],
    ),
    ("sft", {"launch": {"mixed_precision": "bf16"}}, "launch.mixed_precision", ["Leave it out"]),
    (
        "sft",
        {"launch": {"gradient_accumulation_steps": 4}},
        "launch.gradient_accumulation_steps",
        ["follows from `batch_size`"],
    ),
    (
        "sft",
        {"launch": {"use_deepspeed": True, "gradient_clipping": 0.5}},
        "launch.gradient_clipping",
        ["trainer.max_grad_norm is 1.0"],
    ),
    (
        "sft",
        {"launch": {"deepspeed_config_file": "mine.json"}},
        "launch.deepspeed_config_file",
        ["recipes/launch/zero3.yaml"],
    ),
    ("sft", {"launch": {"use_megatron_lm": True}}, "launch.use_megatron_lm", ["not supported"]),
]


@pytest.mark.parametrize(("kind", "settings", "key", "words"), REFUSED)
def test_what_does_not_work_is_refused_with_what_does(
    kind: str,
    settings: dict[str, Any],
    key: str,
    words: list[str],
    tiny_model: Path,
    rows: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if isinstance(settings["launch"], str):
        settings = {**settings, "launch": f"recipes/launch/{settings['launch']}.yaml"}
    find = importlib.util.find_spec
    there = importlib.util.find_spec("json")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: there if name == "deepspeed" else find(name)
    )
    found = list(ranks.stage(kind, str(tiny_model), rows[kind], settings).check())
    said = [message for place, message in found if place.startswith(key)]
    assert [message for message in said if all(word in message for word in words)], found


@pytest.mark.parametrize(
    "settings",
    [
        {**LORA, "quantization": NF4, "launch": "fsdp2"},
        {**LORA, "quantization": NF4, "launch": "ddp"},
        {**LORA, "launch": "fsdp2", "trainer": {"optim": "adamw_torch_fused"}},
    ],
)
def test_what_works_is_not_refused(
    settings: dict[str, Any], tiny_model: Path, rows: dict[str, str]
) -> None:
    profile = f"recipes/launch/{settings['launch']}.yaml"
    settings = {**settings, "launch": profile, "batch_size": 16}
    assert list(ranks.stage("sft", str(tiny_model), rows["sft"], settings).check()) == []


def test_a_base_that_is_4_bit_on_the_disk_is_refused_as_one_quantized_here(
    tiny_model: Path, rows: dict[str, str], tmp_path: Path
) -> None:
    packed = shutil.copytree(tiny_model, tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", **NF4}
    (packed / "config.json").write_text(json.dumps(config))
    settings = {**LORA, "launch": "recipes/launch/fsdp2.yaml"}
    found = list(ranks.stage("dpo", str(packed), rows["dpo"], settings).check())
    assert any("FSDP2 with a 4-bit base" in message for _, message in found), found


def test_zero_needs_deepspeed(
    tiny_model: Path, rows: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find(name)
    )
    settings = {"launch": "recipes/launch/zero2.yaml"}
    ((key, message),) = ranks.stage("sft", str(tiny_model), rows["sft"], settings).check()
    assert key == "launch" and "pip install 'align-recipes[deepspeed]'" in message


def test_a_recipe_for_other_machines_is_planned_here_and_not_run(
    tiny_model: Path, rows: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "devices", lambda: 0)
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"base: {{path: {tiny_model}}}\nlaunch: recipes/launch/fsdp2.yaml\n"
        f"stages:\n  sft: {{model: base, data: [{rows['sft']}]}}\n"
    )
    store = tmp_path / "runs"
    lack = "FSDP is for GPUs, and this machine has none"
    assert recipe.read(file, store=store).not_checked == [f"{lack}: stages.sft.launch"]
    plan = recipe.read(file, store=store, strict=True)
    with pytest.raises(RecipeError) as raised:
        runner.run(plan)
    (problem,) = raised.value.problems
    assert problem.path == "stages.sft.launch" and problem.message.startswith(lack)
    assert "`--set stages.sft.launch=null`" in problem.message
    assert not store.exists() or not [*store.glob("sft-*")], "nothing ran"
    here = recipe.read(file, ["stages.sft.launch=null"], store=store, strict=True)
    assert launch.lack(dict(here.stages["sft"].stage)) is None

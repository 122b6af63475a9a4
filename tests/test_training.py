"""The training core: order, checkpoints, numbers, a clean stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from align import checkpoints, ordered, training
from align.artifacts import Model, Preferences
from align.data import Source
from align.errors import StageFailed
from align.order import Order
from align.out import Out
from align.settings import Stage
from align.sources import splits
from align.stages.dpo import Dpo
from align.stages.reward_model import TrainRewardModel
from align.stages.sft import Sft

WORDS = ["red", "green", "blue", "one", "two", "three", "north", "south"]
TRAINER = {"max_steps": 6, "save_steps": 2, "learning_rate": 1e-2}


@pytest.fixture
def stage(tiny_model: Path, write_rows: Callable[[str, list[dict[str, Any]]], Path]) -> Sft:
    rows = [{"prompt": f"Say {i}", "response": " ".join(WORDS[: 1 + i * 5 % 8])} for i in range(22)]
    base = Model(tiny_model, spec={"base": {"path": str(tiny_model)}, "quantization": None})
    data = [Source(path=str(write_rows("rows.jsonl", rows)))]
    return Sft(model=base, data=data, batch_size=8, trainer=TRAINER, seed=7)


def changed(stage: Sft, **settings: Any) -> Sft:
    return Sft(**{**dict(stage), **settings})


def held_out(stage: Sft) -> list[Source]:
    """The same answers to other prompts."""
    (source,) = stage.data
    assert isinstance(source, Source)
    return [Source(path=source.path, columns={"prompt": "{prompt}?"})]


def weights(path: Path) -> bytes:
    return next(path.glob("*/*.safetensors")).read_bytes()


def new(path: Path) -> Out:
    path.mkdir(parents=True, exist_ok=True)
    return Out(path, path.parent / "cache")


def metrics(path: Path) -> list[dict[str, Any]]:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


class Killed(Exception):
    pass


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sft, Path, int], None]:
    """Run a stage until it is killed in that step, after its checkpoints."""

    def kill(stage: Sft, path: Path, step: int) -> None:
        def step_or_die(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == step:
                raise Killed
            return super(training.Ordered, self).training_step(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(training.Ordered, "training_step", step_or_die, raising=False)
            with pytest.raises(Killed):
                stage.run(new(path))

    return kill


# -- order ---------------------------------------------------------------------------------------


def test_an_epoch_has_every_row_and_fills_its_last_step_with_its_own_first_rows() -> None:
    order = Order(list(range(1, 23)), seed=3, batch=8)
    rows = order.rows(0).tolist()
    assert len(rows) == len(order) == 24 and order.repeated == 2
    assert set(rows) == set(range(22))
    assert rows != order.rows(1).tolist()
    assert rows == Order(list(range(1, 23)), seed=3, batch=8).rows(0).tolist()


def test_rows_of_a_step_are_of_like_length_and_the_longest_step_is_first() -> None:
    import numpy as np

    lengths = np.random.default_rng(0).integers(1, 1000, 4000)
    order = Order(lengths.tolist(), seed=0, batch=8)
    steps = lengths[order.rows(0)].reshape(-1, 8)
    padded = steps.max(axis=1).sum() * 8 / steps.sum()
    shuffled = lengths.reshape(-1, 8).max(axis=1).sum() * 8 / lengths.sum()
    assert padded < 1.05 and shuffled > 1.6
    assert steps[0].max() == lengths.max()


def test_tokens_are_counted_over_epochs() -> None:
    lengths = [3, 1, 4, 1, 5, 9]
    order = Order(lengths, seed=0, batch=4)
    assert order.tokens(0) == 0
    whole = [sum(lengths[row] for row in order.rows(epoch)) for epoch in range(3)]
    assert order.tokens(4) == whole[0] + whole[1]
    assert order.tokens(5) - order.tokens(4) == sum(lengths[row] for row in order.rows(2)[:4])


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_fewer_rows_than_a_step_are_repeated(n: int) -> None:
    rows = Order([1] * n, seed=0, batch=8).rows(0).tolist()
    assert len(rows) == 8 and set(rows) == set(range(n))


# -- equivalence ---------------------------------------------------------------------------------


def test_how_a_batch_is_cut_does_not_matter(stage: Sft, tmp_path: Path) -> None:
    losses = []
    for micro in (8, 4, 2, 1):
        path = tmp_path / str(micro)
        trainer = {**TRAINER, "save_strategy": "no", "per_device_train_batch_size": micro}
        changed(stage, trainer=trainer).run(new(path))
        losses.append([line["loss"] for line in metrics(path)])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], abs=2e-5)


def test_a_batch_that_cannot_be_cut_is_a_sentence(stage: Sft, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="cannot be cut into parts of 3. Set trainer.per_dev"):
        changed(stage, trainer={"per_device_train_batch_size": 3}).run(new(tmp_path / "a"))


TWO = """
import json, os, sys
from pathlib import Path
from accelerate import PartialState
from align.artifacts import Model
from align.data import Source
from align.out import Out
from align.stages.sft import Sft

base, rows, path = sys.argv[1:]
model = Model(Path(base), spec={"base": {"path": base}, "quantization": None})
out = Out(Path(path), Path(path).parent / "cache", main=os.environ["RANK"] == "0")
trainer = {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "save_steps": 2}
Sft(model=model, data=[Source(path=rows)], batch_size=8, trainer=trainer, seed=7).run(out)
assert os.environ["WORLD_SIZE"] == "2"
PartialState().wait_for_everyone()  # one that leaves early makes gloo abort the other
PartialState().destroy_process_group()
"""


def test_two_processes_learn_what_one_does(stage: Sft, tmp_path: Path) -> None:
    import safetensors.torch

    one, two = new(tmp_path / "one").path, new(tmp_path / "two").path
    trainer = {"max_steps": 4, "learning_rate": 1e-2}
    changed(stage, trainer=trainer).run(new(one))
    script = tmp_path / "two.py"
    script.write_text(TWO)
    rows = stage.data[0]
    assert isinstance(rows, Source)
    arguments = [str(script), str(stage.model.path), str(rows.path), str(two)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launch, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line["tokens"] for line in metrics(two)] == [line["tokens"] for line in metrics(one)]
    for ours, theirs in zip(metrics(one), metrics(two), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-5)
    weights = [safetensors.torch.load_file(path / "model/model.safetensors") for path in (one, two)]
    for name, weight in weights[0].items():
        assert (weight - weights[1][name]).abs().max() < 1e-4, name
    kept = checkpoints.found(two / "checkpoints")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {file.name for file in kept[0].iterdir()}


# -- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"r": 4, "lora_dropout": 0.1}])
@pytest.mark.parametrize("step", [3, 4])
def test_a_killed_stage_goes_on_to_the_same_bytes(
    stage: Sft,
    tmp_path: Path,
    killed_at: Callable[[Sft, Path, int], None],
    lora: dict[str, Any] | None,
    step: int,
) -> None:
    stage = changed(stage, lora=lora)
    stage.run(new(tmp_path / "whole"))
    killed_at(stage, tmp_path / "killed", step)
    stage.run(new(tmp_path / "killed"))
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert [line["step"] for line in metrics(tmp_path / "whole")] == [1, 2, 3, 4, 5, 6]


def test_a_stage_that_is_killed_while_it_saves_its_model_does_not_train_again(
    stage: Sft, tmp_path: Path
) -> None:
    stage.run(new(tmp_path / "whole"))
    before = weights(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole" / "model")
    (tmp_path / "whole" / "model.json").unlink()
    stage.run(new(tmp_path / "whole"))
    assert weights(tmp_path / "whole") == before
    assert len(metrics(tmp_path / "whole")) == 6
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["steps"] == 6


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two checkpoints like those of a training."""
    folder = tmp_path_factory.mktemp("saved")
    for step in (2, 4):
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir()
        for name in FILES:
            (checkpoint / name).write_bytes(os.urandom(100))
        (checkpoint / "trainer_state.json").write_text('{"best_model_checkpoint": null}')
        checkpoints.seal(checkpoint)
    return folder


@pytest.mark.parametrize("harm", [delete, truncate, flip])
@pytest.mark.parametrize("name", [*FILES, checkpoints.COMPLETE])
def test_a_damaged_checkpoint_is_set_aside_by_name_and_the_one_before_used(
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], None],
    name: str,
) -> None:
    """transformers takes the newest one without looking, and writes them in place."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    harm(folder / "checkpoint-4" / name)
    found = checkpoints.last(folder, new(tmp_path / "out"))
    assert found == folder / "checkpoint-2"
    assert (folder / "checkpoint-4.damaged").is_dir()
    said = capsys.readouterr().err
    assert "checkpoint-4 is not used: " in said and "checkpoint-4.damaged" in said
    assert checkpoints.last(folder, new(tmp_path / "out")) == found


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_a_lost_optimizer_or_random_state_does_not_change_the_result(
    stage: Sft, tmp_path: Path, killed_at: Callable[[Sft, Path, int], None], name: str
) -> None:
    """transformers goes on silently here, to other weights."""
    stage = changed(stage, lora={"r": 4, "lora_dropout": 0.1})
    stage.run(new(tmp_path / "whole"))
    killed_at(stage, tmp_path / "killed", 5)
    (tmp_path / "killed" / "checkpoints" / "checkpoint-4" / name).unlink()
    stage.run(new(tmp_path / "killed"))
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_a_checkpoint_whose_best_one_is_lost_is_not_used(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    state = {"best_model_checkpoint": str(folder / "checkpoint-2")}
    (folder / "checkpoint-4" / "trainer_state.json").write_text(json.dumps(state))
    checkpoints.seal(folder / "checkpoint-4")
    assert checkpoints.last(folder, new(tmp_path / "out")) == folder / "checkpoint-4"
    flip(folder / "checkpoint-2" / "model.safetensors")
    assert checkpoints.last(folder, new(tmp_path / "out")) is None


def test_the_best_checkpoint_is_found_after_the_store_was_moved(
    saved: Path, tmp_path: Path
) -> None:
    """transformers notes an absolute path, and forgets the best one where it leads nowhere."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    state = {"best_model_checkpoint": "/gone/checkpoints/checkpoint-2", "global_step": 4}
    (folder / "checkpoint-4" / "trainer_state.json").write_text(json.dumps(state))
    checkpoints.seal(folder / "checkpoint-4")
    shutil.copytree(saved / "checkpoint-4", folder / "checkpoint-3")
    for _ in range(2):
        assert checkpoints.last(folder, new(tmp_path / "out")) == folder / "checkpoint-4"
    noted = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    assert noted == state | {"best_model_checkpoint": str(folder / "checkpoint-2")}
    checkpoints.prune(folder)
    assert (folder / "checkpoint-2").is_dir()


def test_the_best_one_of_the_checkpoint_before_is_kept_too(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    for step, best in ((6, 2), (8, 8)):
        shutil.copytree(saved / "checkpoint-4", folder / f"checkpoint-{step}")
        state = {"best_model_checkpoint": str(folder / f"checkpoint-{best}")}
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
        checkpoints.seal(folder / f"checkpoint-{step}")
    checkpoints.prune(folder)
    assert [path.name[11:] for path in checkpoints.found(folder)] == ["8", "6", "2"]
    flip(folder / "checkpoint-8" / "optimizer.pt")
    assert checkpoints.last(folder, new(tmp_path / "out")) == folder / "checkpoint-6"


def test_the_last_two_checkpoints_are_kept(stage: Sft, tmp_path: Path) -> None:
    stage.run(new(tmp_path / "a"))
    kept = checkpoints.found(tmp_path / "a" / "checkpoints")
    assert [path.name for path in kept] == ["checkpoint-6", "checkpoint-4"]
    assert all(checkpoints.damage(path) is None for path in kept)


def test_checkpoints_come_by_time_where_the_recipe_says_nothing(
    stage: Sft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = changed(stage, trainer={"max_steps": 3})
    stage.run(new(tmp_path / "a"))
    assert checkpoints.found(tmp_path / "a" / "checkpoints") == []
    monkeypatch.setattr(ordered, "SAVE_SECONDS", 0)
    stage.run(new(tmp_path / "b"))
    kept = checkpoints.found(tmp_path / "b" / "checkpoints")
    assert [path.name for path in kept] == ["checkpoint-2", "checkpoint-1"]
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_a_full_disk_is_a_sentence(
    stage: Sft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(StageFailed, match="The disk is full: a checkpoint takes .* run again"):
        stage.run(new(tmp_path / "a"))


# -- stopping ------------------------------------------------------------------------------------


@pytest.fixture
def told_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    before = signal.getsignal(signal.SIGTERM)

    def tell(step: int, number: int) -> None:
        def step_and_tell(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == step:
                os.kill(os.getpid(), number)
            return super(training.Ordered, self).training_step(*args, **kwargs)

        monkeypatch.setattr(training.Ordered, "training_step", step_and_tell, raising=False)

    yield tell
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_a_checkpoint_and_goes_on_from_there(
    stage: Sft,
    tmp_path: Path,
    told_at: Callable[[int, int], None],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    stage = changed(stage, trainer={"max_steps": 5})
    told_at(2, number)
    with pytest.raises(KeyboardInterrupt):
        stage.run(new(tmp_path / "a"))
    kept = checkpoints.found(tmp_path / "a" / "checkpoints")
    assert [path.name for path in kept] == ["checkpoint-3"]
    monkeypatch.undo()
    stage.run(new(tmp_path / "a"))
    stage.run(new(tmp_path / "whole"))
    assert weights(tmp_path / "a") == weights(tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_with_a_sentence(
    stage: Sft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import SFTTrainer

    proper = SFTTrainer.compute_loss

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = proper(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", broken)
    with pytest.raises(
        StageFailed, match=r"The loss is not finite at step 4\. Lower trainer\.learning_"
    ):
        stage.run(new(tmp_path / "a"))
    assert checkpoints.found(tmp_path / "a" / "checkpoints")


def test_weights_that_are_not_finite_are_not_saved(
    stage: Sft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.optim import AdamW

    proper = AdamW.step

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        proper(self, *args, **kwargs)
        self.param_groups[0]["params"][0].data[0] = float("inf")

    monkeypatch.setattr(AdamW, "step", broken)
    with pytest.raises(StageFailed, match="is not finite after training"):
        changed(stage, trainer={"max_steps": 1}).run(new(tmp_path / "a"))


# -- evaluation ----------------------------------------------------------------------------------


def test_with_eval_data_the_best_checkpoint_becomes_the_model(stage: Sft, tmp_path: Path) -> None:
    import torch

    from align import models

    trainer = {
        "max_steps": 12,
        "learning_rate": 0.2,
        "eval_steps": 1,
        "lr_scheduler_type": "constant",
    }
    out = new(tmp_path / "a")
    made = changed(stage, eval_data=held_out(stage), patience=2, trainer=trainer).run(out)
    lines = metrics(out.path)
    losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    best = min(losses.values())
    assert list(losses.values())[-1] > best, "it must get worse, or the test shows nothing"
    assert len(losses) < 12 or list(losses.values())[-1] != best
    network = models.load(made)
    tokenizer = models.tokenizer(made)
    rows = list(changed(stage)._rows(held_out(stage), tokenizer, 256, new(tmp_path / "b")))
    total = count = 0.0
    with torch.no_grad():
        for row in rows:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            n = int((labels[:, 1:] != -100).sum())
            total += float(network(input_ids=ids, labels=labels).loss) * n
            count += n
    assert total / count == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("kind", [Sft, Dpo, TrainRewardModel])
def test_held_out_prompts_that_are_trained_on_are_refused_before_anything_is_loaded(
    kind: type[Stage], tmp_path: Path, write_rows: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    pairs = [{"prompt": f"Say {n}", "chosen": "yes", "rejected": "no"} for n in range(9)]
    asked = [{"prompt": f"say  {n}", "chosen": "ja", "rejected": "nein"} for n in (7, 8, 9, 10)]
    data = Source(path=str(write_rows("data.jsonl", pairs)))
    held = Source(path=str(write_rows("held.jsonl", asked)))
    nowhere = Model(tmp_path, spec={"base": {"path": "/nowhere"}, "quantization": None})
    message = r'2 prompts of eval_data are in data too, in 2 of its rows, .*"Say 7".*without: \['
    with pytest.raises(StageFailed, match=message):
        kind(model=nowhere, data=[data], eval_data=[held]).run(new(tmp_path / "a"))


def test_what_data_is_taken_from_is_in_the_remedy(
    tmp_path: Path, write_rows: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    said = {"chosen": "yes", "rejected": "no"}
    held = Source(path=str(write_rows("held.jsonl", [{"prompt": "Say 7", **said}])))
    dialogs = {key: [{"role": "assistant", "content": text}] for key, text in said.items()}
    row = {"id": "a", "prompt": [{"role": "user", "content": "Say 7"}], **dialogs}
    (tmp_path / "dpo-1" / "data").mkdir(parents=True)
    (tmp_path / "dpo-1" / "data" / "rows.jsonl").write_text(json.dumps(row) + "\n")
    clean = Preferences(tmp_path / "dpo-1")
    clean.name = "clean"
    for data in ([clean], [Source(stage=clean)]):
        with pytest.raises(StageFailed, match=r"data: \[{stage: clean, without: \[the source of"):
            splits.refuse_overlap(data, [held], Preferences, 0)


def test_a_killed_stage_stops_as_early_as_an_uninterrupted_one(
    stage: Sft, tmp_path: Path, killed_at: Callable[[Sft, Path, int], None]
) -> None:
    trainer = {**TRAINER, "max_steps": 12, "learning_rate": 0.2, "eval_steps": 1, "save_steps": 1}
    stage = changed(stage, eval_data=held_out(stage), patience=2, trainer=trainer)
    stage.run(new(tmp_path / "whole"))
    last = metrics(tmp_path / "whole")[-1]["step"]
    assert last < 12, "it must stop early, or the test shows nothing"
    killed_at(stage, tmp_path / "killed", last - 1)
    stage.run(new(tmp_path / "killed"))
    assert metrics(tmp_path / "killed")[-1]["step"] == last
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_every_key_a_recipe_may_not_set_is_one_that_a_trl_config_has() -> None:
    from dataclasses import fields

    from trl import DPOConfig, RewardConfig, SFTConfig

    known = {
        field.name for config in (SFTConfig, DPOConfig, RewardConfig) for field in fields(config)
    }
    assert set(training.OWNED) <= known

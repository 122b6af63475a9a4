"""The reference of `dpo`: which model it is; what is computed, kept and checked; against TRL."""

import json
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl import DPOConfig, DPOTrainer

from align import data, logprobs, models, training
from align.artifacts import Model, Preferences
from align.data import Source
from align.errors import StageFailed
from align.out import Out
from align.preference import PairCollator, pairs
from align.reference import Reference
from align.stages.dpo import Dpo

Make = Callable[..., Model]
QUICK = {"learning_rate": 1e-2, "max_steps": 3}
ONE = {"max_steps": 1}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


@pytest.fixture
def base(tiny_model: Path) -> Model:
    spec = {"base": {"path": str(tiny_model)}, "quantization": None, "adapter": False}
    return Model(tiny_model, spec=spec)


@pytest.fixture
def source(write_rows: Callable[..., Path]) -> Source:
    words = ["red", "green", "blue", "white", "black", "pink"]
    rows = [
        {"prompt": f"Name {word}.", "chosen": f"It is {word}, surely.", "rejected": f"No {i}"}
        for i, word in enumerate(words)
    ]
    return Source(path=str(write_rows("pairs.jsonl", rows)))


@pytest.fixture
def run(tmp_path: Path, base: Model, source: Source) -> Iterator[Make]:
    def make(name: str, **settings: Any) -> Model:
        out = Out(tmp_path / "runs" / name, tmp_path / "runs" / ".cache")
        out.path.mkdir(parents=True, exist_ok=True)
        out.cache.mkdir(exist_ok=True)
        settings = {"model": base, "data": [source], "batch_size": 6, **settings}
        return Dpo(**{**settings, "trainer": QUICK | settings.get("trainer", {})}).run(out)

    return make  # type: ignore[return-value]


@pytest.fixture
def tuned(run: Make) -> Model:
    """An earlier stage: an adapter on the base."""
    return run("tuned", lora=LORA)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs the reference has read, call by call."""
    calls: list[int] = []
    numbers = logprobs.Scorer.numbers

    def counting(self: Any, rows: Any, batches: list[list[int]]) -> Any:
        calls.append(sum(map(len, batches)))
        return numbers(self, rows, batches)

    monkeypatch.setattr(logprobs.Scorer, "numbers", counting)
    return calls


def steps(made: Model) -> list[dict[str, Any]]:
    lines = (made.path / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


def facts(made: Model) -> dict[str, Any]:
    numbers = json.loads((made.path / "metrics.json").read_text())
    return {name: value for name, value in numbers.items() if name.startswith("reference")}


def shards(tmp_path: Path) -> dict[Path, bytes]:
    return {
        file: file.read_bytes()
        for file in sorted((tmp_path / "runs" / ".cache" / "reference").rglob("*"))
        if file.is_file()
    }


# -- the same as TRL's ---------------------------------------------------------------------------


class Plain(DPOTrainer):
    """TRL's trainer as it is, on rows that are tokenised."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    batch = PairCollator(0)(examples)
    del batch["nll_mask"]
    return batch


def prepared(policy: Model, source: Source, path: Path) -> tuple[Out, Any, Any]:
    """Where to write, the config and the tokenised rows that the stage makes for TRL."""
    stage = Dpo(model=policy, data=[source], batch_size=6, trainer=QUICK)
    out = Out(path, path)
    args = training.arguments(DPOConfig, stage, out, False, remove_unused_columns=False)
    rows = pairs(data.mix([source], Preferences, 0, out), models.tokenizer(policy), 256, out)
    return out, args, training.dataset(rows)


def plain_trl(policy: Model, reference: Any, source: Source, path: Path) -> Any:
    """`trl.DPOTrainer` with an explicit `ref_model`, after training."""
    _, args, rows = prepared(policy, source, path)
    trainer = Plain(
        model=models.load(policy, train=True),
        ref_model=reference,
        args=args,
        data_collator=collate,
        train_dataset=rows,
        processing_class=models.tokenizer(policy),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("reference", ["incoming", "base", "an earlier stage", "other weights"])
def test_losses_and_weights_are_those_of_trl_with_an_explicit_reference(
    reference: str, base: Model, tuned: Model, source: Source, run: Make, tmp_path: Path
) -> None:
    named: Model | None = {"base": base, "an earlier stage": tuned}.get(reference)
    policy = tuned
    if reference == "an earlier stage":
        policy = run("further", model=tuned)
    if reference == "other weights":
        named = run("other", trainer={"max_steps": 1, "learning_rate": 1e-3})
    made = run("ours", model=policy, reference=named)

    frozen = models.load(named or policy)
    if models.describe(named or policy).adapter:
        frozen = frozen.merge_and_unload()
    theirs = plain_trl(policy, frozen, source, tmp_path)
    expected = [line["loss"] for line in theirs.state.log_history if "loss" in line]
    assert [step["loss"] for step in steps(made)] == pytest.approx(expected, abs=2e-6)
    assert (steps(made)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)) == (named is None)
    ours = models.load(made).state_dict()
    for name, weight in theirs.model.state_dict().items():
        assert torch.allclose(ours[name], weight, atol=1e-5), name
    assert facts(made)["reference"] == (named or policy).key


def test_an_adapter_of_any_kind_has_no_reward_as_it_comes_in(base: Model, run: Make) -> None:
    """PiSSA moves the base's weights, DoRA and `modules_to_save` are more than two matrices.

    With the adapter off, none of these is the model that came in.
    """
    kinds: dict[str, dict[str, Any]] = {
        "dora": {"use_dora": True},
        "saved": {"modules_to_save": ["embed_tokens"]},
        "pissa": {"init_lora_weights": "pissa"},
    }
    for name, options in kinds.items():
        first = run(name, lora=LORA | options, trainer=ONE)
        for made in (first, run(f"{name} again", model=first, trainer=ONE)):
            assert steps(made)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5), made
            assert abs(steps(made)[0]["rewards/chosen"]) < 1e-5


# -- one base in memory --------------------------------------------------------------------------


def test_there_are_never_two_models_in_memory(
    base: Model, tuned: Model, run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy's base wears the adapter of another; other weights are let go of first.

    So are adapters of which PEFT would leave something on the base.
    """
    load, loaded = models.load, list[weakref.ref[Any]]()

    def watched(*args: Any, **options: Any) -> Any:
        assert not [ref for ref in loaded if ref() is not None], "one is still there"
        network = load(*args, **options)
        loaded.append(weakref.ref(network))
        return network

    further = run("further", model=tuned, trainer=ONE)
    other = run("other", trainer=ONE)
    quantized = run("quantized", lora=LORA, quantization={"load_in_4bit": True}, trainer=ONE)
    saved = run("saved", lora=LORA | {"modules_to_save": ["embed_tokens"]}, trainer=ONE)
    monkeypatch.setattr(models, "load", watched)
    for name, policy, named, n in (
        ("base", tuned, base, 1),
        ("adapter", further, tuned, 1),
        ("4 bits", quantized, base, 1),
        ("full", other, None, 1),
        ("full on base", other, base, 2),
        ("apart", tuned, other, 2),
        ("saved", tuned, saved, 2),
    ):
        made = run(name, model=policy, reference=named, trainer={**ONE, "save_steps": 1})
        assert len(loaded) == n, name
        loaded.clear()
        written = {path.name for path in made.path.rglob("*")}
        assert not written & {"ref", "reference"}, "neither the model nor a checkpoint has another"


def test_an_adapter_worn_for_a_while_leaves_the_policy_as_it_was(
    base: Model, tuned: Model, run: Make, source: Source, tmp_path: Path
) -> None:
    """And gives the numbers that it gives on a base of its own."""
    worn = run("worn", lora=LORA | {"r": 2, "use_dora": True})
    out, args, rows = prepared(tuned, source, tmp_path)
    policy = models.load(tuned, train=True)
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    trained = [name for name, weight in policy.named_parameters() if weight.requires_grad]
    for named in (base, worn):
        how = {"lora": None, "quantization": "inherit"}
        reference = Reference(tuned, named, how, args, PairCollator(0), 256, out)
        assert not reference.own and not reference.apart
        measured = reference.on(policy, {"train_dataset": rows})["train_dataset"]
        with logprobs.scoring(models.load(named), args, PairCollator(0)) as scorer:
            expected = scorer.numbers(rows, [[i] for i in range(6)])
        numbers = np.stack([measured["ref_chosen_logps"], measured["ref_rejected_logps"]], axis=1)
        assert abs(numbers - expected).max() < 1e-4
        assert trained == [
            name for name, weight in policy.named_parameters() if weight.requires_grad
        ]
        assert list(policy.peft_config) == [policy.active_adapter] == ["default"]
        after = dict(policy.named_parameters())
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], weight) for name, weight in before.items())


# -- once ----------------------------------------------------------------------------------------


def test_a_sweep_computes_the_reference_once(
    base: Model, tuned: Model, run: Make, computed: list[int], tmp_path: Path
) -> None:
    """Another beta, loss, learning rate, seed or batch size reads the same numbers."""
    two = {"per_device_train_batch_size": 2}  # of which batches are made
    first = run("first", model=tuned, trainer=two)
    assert computed == [6] and facts(first)["reference_computed"] == 6
    kept = shards(tmp_path)
    sweep: list[dict[str, Any]] = [
        {"trainer": {**ONE, "beta": 0.5, "loss_type": ["ipo"], "learning_rate": 1e-3}},
        {"seed": 5, "batch_size": 2},
        {"reference": tuned, "lora": LORA, "trainer": ONE},
    ]
    for i, settings in enumerate(sweep):
        settings["trainer"] = two | settings.get("trainer", {})
        made = run(f"next {i}", **{"model": tuned, **settings})
        assert facts(made)["reference_computed"] == 0 and facts(made)["reference_cached"] == 6
    assert computed == [6], "no forward of the reference"
    assert shards(tmp_path) == kept
    further = run("further", model=tuned, trainer=two)
    other = run("other", model=further, reference=tuned, trainer=two | ONE)
    assert facts(other)["reference_cached"] == 6, "the same reference of another policy"
    assert computed == [6, 6], "of which the first batch is computed again, to be checked"


def test_what_the_numbers_depend_on_makes_others(
    base: Model, tuned: Model, run: Make, source: Source, write_rows: Callable[..., Path]
) -> None:
    rows = [json.loads(line) for line in Path(str(source.path)).read_text().splitlines()]
    rows[0]["chosen"] += "!"
    run("first")
    for name, settings in {
        "mask": {"mask_format": True, "trainer": ONE},
        "ld_alpha": {"trainer": {**ONE, "ld_alpha": 0.5}},
        "autocast": {"trainer": {**ONE, "bf16": True}},
        "reference": {"model": tuned, "trainer": ONE},
        "batches": {"trainer": {**ONE, "per_device_train_batch_size": 2}},
        "data": {"data": [Source(path=str(write_rows("other.jsonl", rows)))]},
        "quantization": {"lora": LORA, "quantization": {"load_in_4bit": True}},
    }.items():
        assert facts(run(name, **settings))["reference_cached"] == 0, name


def test_numbers_belong_to_pairs_and_not_to_places(
    base: Model, run: Make, source: Source, computed: list[int], write_rows: Callable[..., Path]
) -> None:
    """Rows in another order, and twice, are the same pairs."""
    run("first")
    rows = [json.loads(line) for line in Path(str(source.path)).read_text().splitlines()]
    shuffled = Source(path=str(write_rows("shuffled.jsonl", rows[::-1] + rows[:3])))
    made = run("second", data=[shuffled])
    assert steps(made)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert computed == [6] and facts(made)["reference_cached"] == 6


def test_a_short_run_computes_only_what_it_reaches(
    run: Make, source: Source, computed: list[int]
) -> None:
    held_out = Source(path=source.path, columns={"prompt": "{prompt}?"})
    made = run("short", batch_size=2, trainer={"max_steps": 2}, eval_data=[held_out])
    assert computed == [4, 6], "and all pairs that are held out"
    assert len(steps(made)) == 2


def test_the_reference_reads_no_more_tokens_at_once_than_a_step(
    base: Model, run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    numbers = logprobs.Scorer.numbers

    def watched(self: Any, rows: Any, batches: list[list[int]]) -> Any:
        widths = [logprobs.lengths(rows, "prompt_ids", f"{side}_ids") for side in logprobs.SIDES]
        longest = np.maximum(*widths)
        read.extend(2 * len(batch) * int(longest[batch].max()) for batch in batches)
        return numbers(self, rows, batches)

    monkeypatch.setattr(logprobs.Scorer, "numbers", watched)
    run("small", trainer={**ONE, "per_device_train_batch_size": 1, "max_length": 64})
    assert len(read) > 1 and max(read) <= 2 * 64


# -- kills, damage, lies -------------------------------------------------------------------------


def test_a_killed_pass_goes_on_with_the_next_shard_to_the_same_bytes(
    base: Model,
    run: Make,
    computed: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logprobs, "TOKENS", 1)
    monkeypatch.setattr(logprobs, "SHARD", 2)
    whole = run("whole")
    expected = shards(tmp_path)
    assert computed == [2, 2, 2] and len(expected) == 3
    for file in expected:
        file.unlink()
    numbers = logprobs.Scorer.numbers

    def die(self: Any, rows: Any, batches: Any) -> Any:
        if len(computed) == 5:
            raise MemoryError
        return numbers(self, rows, batches)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(logprobs.Scorer, "numbers", die)
        run("cut")
    assert shards(tmp_path).items() < expected.items() and len(shards(tmp_path)) == 2
    again = run("cut")
    assert computed == [2, 2, 2, 2, 2, 2] and shards(tmp_path) == expected
    assert facts(again) == {**facts(whole), "reference_computed": 2, "reference_cached": 4}
    assert [s["loss"] for s in steps(again)] == [s["loss"] for s in steps(whole)]


@pytest.mark.parametrize("size", [0, 100, None])
def test_a_damaged_shard_is_computed_again(
    size: int | None, run: Make, computed: list[int], tmp_path: Path
) -> None:
    run("first")
    [(file, content)] = shards(tmp_path).items()
    flipped = bytearray(content)
    flipped[content.index(np.load(file)["chosen"].tobytes())] ^= 1
    file.write_bytes(flipped if size is None else content[:size])
    run("second")
    assert computed == [6, 6] and shards(tmp_path) == {file: content}


@pytest.mark.parametrize("own", [True, False])
def test_numbers_of_another_model_stop_the_stage_before_it_trains(
    own: bool, base: Model, tuned: Model, run: Make, tmp_path: Path
) -> None:
    """Such as those of a model that was made again by other versions under its old name."""
    settings = {"model": base, "lora": LORA} if own else {"model": tuned, "reference": base}
    [file] = shards(tmp_path)  # of the base, which `tuned` had as its reference
    with np.load(file) as shard:
        lie = {name: shard[name] for name in shard.files}
    lie["chosen"] += 0.5
    np.savez(file, **lie)
    expected = r"not the model that came in" if own else r"log-probabilities are not the reference"
    with pytest.raises(StageFailed, match=rf"{expected}.*Nothing was trained.*runs/\.cache"):
        run("second", **settings)
    assert not list((tmp_path / "runs" / "second").rglob("*.safetensors"))


# -- what else a reference can be ----------------------------------------------------------------


def test_a_reference_that_follows_the_policy_stays_alive(
    base: Model, run: Make, computed: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    """TR-DPO (arXiv 2404.09656): copied into the reference at every step, no reward is left."""
    follow = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    made = run("follows", trainer=follow)
    assert [abs(step["rewards/margins"]) < 1e-6 for step in steps(made)] == [True] * 3
    assert computed == [] and facts(made) == {"reference": base.key}
    assert f"The reference is {base.key}; it computes at every step." in capfd.readouterr().err
    [(key, text)] = Dpo(model=base, data=[], lora=LORA, trainer=follow).check()
    assert key == "trainer.sync_ref_model" and "merge the model" in text


def test_another_template_of_the_reference_is_said(
    base: Model, run: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    named = Model(base.path, spec={**base.spec(), "base": {**base.spec()["base"]}})
    named.spec()["base"]["chat_template"] = "chatml"
    run("other", reference=named)
    said = capfd.readouterr().err
    assert "has another chat template than" in said
    assert f"The reference is {base.key}: 6 pairs computed, 0 from the cache." in said

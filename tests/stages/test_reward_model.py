"""The `reward_model` stage on a tiny model: what it learns, keeps, measures and refuses."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from align import models, records
from align.artifacts import Model, RewardModel
from align.data import Source
from align.errors import StageFailed
from align.out import Out
from align.preference import comparisons, hold_out
from align.scoring import scores
from align.stages.reward_model import Gate, TrainRewardModel

Write = Callable[[str, list[dict[str, Any]]], Path]
QUICK = {"learning_rate": 3e-3, "max_steps": 30, "per_device_train_batch_size": 8}
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def base(tiny_model: Path) -> Model:
    return Model(
        tiny_model, spec={"base": {"path": str(tiny_model)}, "quantization": None, "adapter": False}
    )


def polite(n: int) -> list[dict[str, Any]]:
    """Pairs that anybody can tell apart: the better answer says please."""
    return [
        {"prompt": f"Ask {i}", "chosen": f"Please {i}", "rejected": f"Do it {i}"} for i in range(n)
    ]


@pytest.fixture
def make(tmp_path: Path, tiny_model: Path, write_rows: Write) -> Callable[..., Any]:
    def make(rows: list[dict[str, Any]], name: str = "made", **settings: Any) -> Any:
        out = Out(tmp_path / "runs" / name, tmp_path / "runs" / ".cache")
        out.path.mkdir(parents=True)
        source = Source(path=str(write_rows(f"{name}.jsonl", rows)))
        settings = {"batch_size": 8, "trainer": QUICK, "model": base(tiny_model), **settings}
        settings.setdefault("seed", 7)  # a head that is not read back would be another one
        made: Any = TrainRewardModel(data=[source], **settings).run(out)
        made.counts = out.counts
        made.metrics = json.loads((out.path / "metrics.json").read_text())
        return made

    return make


def score(made: RewardModel, answers: list[str]) -> list[float | None]:
    network, tokenizer = scores.load(made)
    prompts = [[{"role": "user", "content": "Ask 7"}] for _ in answers]
    dialogs = [[{"role": "assistant", "content": answer}] for answer in answers]
    return scores.dialogs(network, tokenizer, prompts, dialogs, [None] * len(answers))


@pytest.mark.parametrize(
    "settings",
    [{}, {"lora": LORA}, {"lora": LORA, "quantization": NF4}],
    ids=["full", "lora", "4 bit"],
)
def test_it_learns_is_measured_and_read_back(
    settings: dict[str, Any], make: Callable[..., Any], tiny_model: Path
) -> None:
    """An adapter saved without its head reads back with a random one; a 4-bit base needs bf16."""
    before = {path: path.read_bytes() for path in tiny_model.iterdir()}
    made = make(polite(150), gate=Gate(accuracy=0.7), **settings)
    assert type(made) is RewardModel
    assert made.metrics["held_out"] == 15
    assert made.metrics["accuracy"] == 1.0 and made.metrics["accuracy_low"] > 0.75
    good, bad = score(made, ["Please 7", "Do it 7"])
    assert good is not None and bad is not None and good > bad
    assert score(made, ["Do it 7", "Do it now", "Please 7"])[0::2] == pytest.approx(
        [bad, good], abs=1e-2 if settings.get("quantization") else 1e-5
    )
    assert {path: path.read_bytes() for path in before} == before
    if settings:
        weights = load_file(made.path / "adapter" / "adapter_model.safetensors")
        assert any("score" in name for name in weights), "the head is part of the adapter"


@pytest.mark.parametrize("lora", [None, LORA])
def test_what_is_read_back_is_what_was_trained(
    lora: Any, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, Any] = {}
    save = models.save

    def keep(network: Any, *args: Any, **options: Any) -> None:
        trained["scores"] = scores.scores(network.eval(), [[1, 4, 70, 71, 6], [1, 4, 80, 6]])
        save(network, *args, **options)

    monkeypatch.setattr(models, "save", keep)
    made = make(polite(20), gate=None, lora=lora)
    network, _ = scores.load(made)
    again = scores.scores(network, [[1, 4, 70, 71, 6], [1, 4, 80, 6]])
    assert again == pytest.approx(trained["scores"], abs=1e-6)


def test_a_head_on_a_4_bit_base_is_trained_under_bfloat16(make: Callable[..., Any]) -> None:
    """TRL casts it to bfloat16; without autocast it cannot be multiplied (torch's own words)."""
    one = {**QUICK, "max_steps": 1}
    how: dict[str, Any] = {"lora": LORA, "quantization": NF4, "gate": None}
    assert math.isfinite(make(polite(10), trainer=one, **how).metrics["loss"])
    with pytest.raises(RuntimeError, match="same dtype"):
        make(polite(10), "without", trainer={**one, "bf16": False}, **how)


def test_a_head_and_an_adapter_learn_on_a_bfloat16_base(
    make: Callable[..., Any], tiny_model: Path
) -> None:
    """RewardTrainer without bf16 autocast cannot multiply a bfloat16 base by a float32 head."""
    spec = {"base": {"path": str(tiny_model), "dtype": "bfloat16"}, "quantization": None}
    made = make(polite(40), gate=None, lora=LORA, model=Model(tiny_model, spec=spec))
    assert made.metrics["loss"] < 0.5
    good, bad = score(made, ["Please 7", "Do it 7"])
    assert good is not None and bad is not None and good > bad


def test_a_reward_model_that_guesses_stops_the_chain_and_is_kept(
    make: Callable[..., Any], tmp_path: Path, tiny_model: Path
) -> None:
    coin = random.Random(0)
    rows = []
    for i in range(80):
        better, worse = coin.sample("ab", 2)
        rows.append({"prompt": f"Ask {i}", "chosen": better, "rejected": worse})
    made = make(rows, holdout=0.5)
    stage = TrainRewardModel(data=[], model=base(tiny_model))
    stop = stage.verdict(made.path)
    [judged] = stage.judged(made.path)
    assert (judged["key"], judged["at_least"]) == (made.key, 0.5)
    assert judged["verdict"] != "passed" and judged["n"] == 40
    assert stop is not None and "of 40 held-out pairs" in stop and "`gate:`" in stop
    for lower in (None, Gate(accuracy=0.1)):
        other = stage.model_copy(update={"gate": lower})
        assert other.verdict(made.path) is None
        contents = records.Contents(tmp_path)
        same = [records.key(one, "reward_model", 0, contents) for one in (stage, other)]
        assert same[0] == same[1], "another gate must not train another model"
    assert score(made, ["a"])[0] is not None
    numbers = json.loads((made.path / "metrics.json").read_text())
    assert numbers["accuracy_low"] < 0.5 and numbers["held_out"] == 40


def test_a_tie_is_one_half(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "scores", lambda _, rows, **__: [0.0] * len(rows))
    made = make(polite(20), gate=None)
    assert made.metrics["accuracy"] == 0.5
    assert made.metrics["length_correlation"] == 0.0


def test_length_is_measured(make: Callable[..., Any]) -> None:
    rows = [
        {"prompt": f"Ask {i}", "chosen": "yes " * (2 + i % 5), "rejected": "yes"} for i in range(80)
    ]
    made = make(rows, gate=None)
    assert made.metrics["accuracy_of_longer"] == 1.0
    assert made.metrics["length_correlation"] > 0.5


def test_a_margin_is_part_of_the_loss(make: Callable[..., Any], tiny_model: Path) -> None:
    """The loss of a step is that of the rows without margins, moved along log sigmoid by them."""
    first = {}
    for margin in (None, 0.0, 3.0):
        rows = [{**row, "margin": margin} if margin is not None else row for row in polite(9)]
        trainer = {**QUICK, "max_steps": 1, "learning_rate": 0.0}
        made = make(rows, str(margin), gate=None, trainer=trainer, holdout=0.1)
        first[margin] = json.loads((made.path / "metrics.jsonl").read_text().splitlines()[0])
    assert first[None]["loss"] == first[0.0]["loss"]
    assert first[0.0]["loss"] == pytest.approx(math.log(2), abs=0.1)
    assert first[3.0]["loss"] == pytest.approx(math.log1p(math.exp(3)), abs=0.15)


@pytest.mark.parametrize("margin", ["high", float("inf")])
def test_a_margin_must_be_a_number(margin: Any, make: Callable[..., Any]) -> None:
    rows = [{"id": f"row-{i}", **row, "margin": margin} for i, row in enumerate(polite(4))]
    with pytest.raises(StageFailed, match="margin"):
        make(rows, gate=None)


def test_a_ranking_is_all_its_pairs(make: Callable[..., Any]) -> None:
    ranked = [
        {"prompt": f"Ask {i}", "ranked": [f"Please, sir {i}", f"Please {i}", f"Do {i}"]}
        for i in range(10)
    ]
    made = make(ranked, gate=None)
    assert made.counts["pairs"]["n"] == 30
    assert made.metrics["held_out"] == 3, "all pairs of a prompt are on the same side"
    assert list(comparisons({"ranked": [1, 2, 3]})) == [(1, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize("lora", [None, LORA])
def test_four_at_once_or_one_by_one_is_the_same_training(
    lora: Any, make: Callable[..., Any]
) -> None:
    weights = []
    for micro in (4, 1):
        options = {
            "learning_rate": 1e-2,
            "optim": "sgd",
            "max_steps": 2,
            "per_device_train_batch_size": micro,
        }
        made = make(polite(9), str(micro), gate=None, lora=lora, batch_size=4, trainer=options)
        [file] = [f for f in made.path.glob("*/*.safetensors")]
        weights.append(load_file(file))
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-6), name


def test_prompts_are_held_out_whole_and_by_seed() -> None:
    prompts = [float(i // 3) for i in range(300)]
    rows = Dataset.from_dict({"prompt": prompts, "row": list(range(300))})
    train, held_out = hold_out(rows, 0.1, 7)
    assert held_out is not None and len(train) + len(held_out) == 300
    assert len(held_out) == 30
    assert not set(train["prompt"]) & set(held_out["prompt"])
    assert hold_out(rows, 0.1, 7)[1]["row"] == held_out["row"]  # type: ignore[index]
    assert hold_out(rows, 0.1, 8)[1]["row"] != held_out["row"]  # type: ignore[index]
    assert hold_out(rows, 0.0, 7)[1] is None
    many = Dataset.from_dict({"prompt": [float(i) for i in range(20_000)]})
    assert len(hold_out(many, 0.1, 7)[1]) == 1000  # type: ignore[arg-type]


def test_one_prompt_cannot_be_held_out(make: Callable[..., Any]) -> None:
    rows = [{"prompt": "Ask", "chosen": f"Please {i}", "rejected": f"Do {i}"} for i in range(8)]
    with pytest.raises(StageFailed, match="same prompt.*`eval_data:`.*`gate: null`"):
        make(rows)
    made = make(rows, "all", holdout=0.0, gate=None)
    assert "accuracy" not in made.metrics


def test_held_out_prompts_that_are_trained_on_are_refused(
    make: Callable[..., Any], write_rows: Write
) -> None:
    other = [{**row, "rejected": "No!"} for row in polite(12)]
    held_out = Source(path=str(write_rows("held_out.jsonl", other)))
    settings: dict[str, Any] = {"gate": None, "trainer": {**QUICK, "max_steps": 4}}
    with pytest.raises(StageFailed, match="8 prompts of eval_data are in data too, in 8 of its"):
        make(polite(8), "refused", eval_data=[held_out], **settings)
    apart = Source(path=held_out.path, columns={"prompt": "{prompt}?"})
    made = make(polite(8), eval_data=[apart], **settings)
    assert made.metrics["held_out"] == 12 and "eval_loss" in made.metrics
    assert made.counts["pairs"]["n"] == 8 and made.counts["eval.pairs"]["n"] == 12


def test_long_pairs_and_equal_answers_are_dropped_and_counted(make: Callable[..., Any]) -> None:
    """TRL drops long pairs without a word."""
    rows = polite(10)
    rows += [{"id": "long", "prompt": "Ask", "chosen": "Please " * 20, "rejected": "Do"}]
    rows += [{"id": "same", "prompt": "Ask", "chosen": "Please", "rejected": "Please"}]
    made = make(rows, gate=None, trainer={**QUICK, "max_steps": 1, "max_length": 64})
    assert made.counts["pairs"]["n"] == 10
    assert made.counts["dropped.too_long"]["examples"][0]["id"] == "long"
    assert sum(v["n"] for k, v in made.counts.items() if "equal" in k) == 1


def test_a_loss_that_is_not_a_number_stops_the_stage(make: Callable[..., Any]) -> None:
    options = {**QUICK, "learning_rate": 1e30, "max_grad_norm": 0.0}
    with pytest.raises(StageFailed, match="not finite|loss is nan"):
        make(polite(20), gate=None, trainer=options)


def test_a_gate_with_nothing_to_measure_it_on_is_a_problem_of_the_recipe(tiny_model: Path) -> None:
    settings: dict[str, Any] = {"model": base(tiny_model), "data": [Source(path="x.jsonl")]}
    [(key, text)] = TrainRewardModel(**settings, holdout=0.0).check()
    assert key == "gate" and "`eval_data:`" in text
    assert not list(TrainRewardModel(**settings, holdout=0.0, gate=None).check())
    assert not list(TrainRewardModel(**settings).check())

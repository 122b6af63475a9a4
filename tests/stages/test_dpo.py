"""The `dpo` stage on a tiny model: what is trained, what the reference is, what is refused."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align import models
from align.artifacts import Model
from align.data import Source
from align.errors import StageFailed
from align.out import Out
from align.preference import PairTrainer
from align.reference import Reference
from align.stages.dpo import Dpo

Make = Callable[..., Model]
QUICK = {"learning_rate": 1e-2, "max_steps": 3, "per_device_train_batch_size": 2}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def base(tiny_model: Path) -> Model:
    return Model(
        tiny_model, spec={"base": {"path": str(tiny_model)}, "quantization": None, "adapter": False}
    )


@pytest.fixture
def pairs(write_rows: Callable[..., Path]) -> Source:
    words = ["red", "green", "blue", "white", "black", "pink"]
    rows = [
        {"prompt": f"Name {word}.", "chosen": f"It is {word}, surely.", "rejected": f"No {i}"}
        for i, word in enumerate(words)
    ]
    return Source(path=str(write_rows("pairs.jsonl", rows)))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Make]:
    def make(name: str, **settings: Any) -> Model:
        out = Out(tmp_path / "runs" / name, tmp_path / "runs" / ".cache")
        out.path.mkdir(parents=True, exist_ok=True)
        out.cache.mkdir(exist_ok=True)
        made = Dpo(**{"batch_size": 4, "trainer": QUICK, **settings}).run(out)
        made.counts = out.counts  # type: ignore[attr-defined]
        return made

    return make  # type: ignore[return-value]


def steps(made: Model) -> list[dict[str, Any]]:
    lines = (made.path / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


def adapter(made: Model) -> dict[str, torch.Tensor]:
    return dict(load_file(made.path / "adapter" / "adapter_model.safetensors"))


def test_full_training_starts_at_ln_2_and_learns(
    tiny_model: Path, pairs: Source, run: Make
) -> None:
    made = run("full", model=base(tiny_model), data=[pairs])
    first, *_, last = steps(made)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["rewards/chosen"] == first["rewards/margins"] == 0
    assert first["rewards/accuracies"] == 0.5
    assert last["loss"] < 0.6
    assert models.describe(made).adapter is None


def test_a_new_adapter_is_measured_against_the_model_without_it(
    tiny_model: Path, pairs: Source, run: Make
) -> None:
    made = run("new", model=base(tiny_model), data=[pairs], lora=LORA)
    assert steps(made)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps(made)[-1]["loss"] < 0.65
    assert not (made.path / "adapter" / "ref").exists()


def test_one_adapter_travels(tiny_model: Path, pairs: Source, run: Make) -> None:
    """A second training goes on with the first one's adapter, and is measured against it."""
    first = run("first", model=base(tiny_model), data=[pairs], lora=LORA)
    before = {
        p: p.read_bytes() for p in [*tiny_model.glob("*"), *first.path.rglob("*")] if p.is_file()
    }
    second = run("second", model=first, data=[pairs])
    assert steps(second)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps(second)[0]["rewards/chosen"] == 0
    assert {path: path.read_bytes() for path in before} == before, "inputs are never changed"
    old, new = adapter(first), adapter(second)
    assert old.keys() == new.keys()
    assert any(not torch.equal(old[name], new[name]) for name in old)
    assert models.describe(second).base.path == str(tiny_model)
    assert not (second.path / "adapter" / "ref").exists()


def test_the_reference_is_never_looked_up_by_the_configs_path(
    tiny_model: Path, pairs: Source, run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL loads it from there, which for a merged model is the unmerged base."""
    tuned = run("tuned", model=base(tiny_model), data=[pairs], lora=LORA)
    models.load(tuned).merge_and_unload().save_pretrained(tmp_path / "merged")
    models.tokenizer(tuned).save_pretrained(tmp_path / "merged")
    load = models.load

    def with_the_bases_path(*args: Any, **options: Any) -> Any:
        network = load(*args, **options)
        network.config._name_or_path = str(tiny_model)
        return network

    monkeypatch.setattr(models, "load", with_the_bases_path)
    made = run("again", model=base(tmp_path / "merged"), data=[pairs])
    assert steps(made)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert steps(made)[0]["rewards/chosen"] == 0


def test_a_wrong_reference_stops_the_stage(
    tiny_model: Path, pairs: Source, run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = models.load(base(tiny_model))
    with torch.no_grad():
        other.lm_head.weight.add_(0.05 * torch.randn_like(other.lm_head.weight))
    monkeypatch.setattr(Reference, "on", lambda self, _, sets: self._measured(other, sets))
    with pytest.raises(StageFailed, match="not the model that came in"):
        run("wrong", model=base(tiny_model), data=[pairs])


def test_another_reference_may_carry_an_adapter(tiny_model: Path, pairs: Source, run: Make) -> None:
    tuned = run("tuned", model=base(tiny_model), data=[pairs], lora=LORA)
    made = run("far", model=base(tiny_model), data=[pairs], reference=tuned, lora=LORA)
    first = steps(made)[0]
    assert abs(first["rewards/chosen"]) > 1e-3, "measured against the tuned model"
    # the other way round, the rewards have the other sign
    back = run("back", model=tuned, data=[pairs], reference=base(tiny_model))
    assert steps(back)[0]["rewards/chosen"] == pytest.approx(-first["rewards/chosen"], rel=1e-3)


def test_a_reference_with_another_vocabulary_is_refused(
    tiny_model: Path, pairs: Source, run: Make, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<|new|>"])
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    with pytest.raises(StageFailed, match="another vocabulary.*made from the same base"):
        run("no", model=base(tiny_model), data=[pairs], reference=base(tmp_path / "wide"))


def test_long_pairs_are_dropped_and_counted_never_cut(
    tiny_model: Path, write_rows: Callable[..., Path], run: Make
) -> None:
    """TRL cuts answers silently, and drops a pair only when its prompt is too long."""
    rows = [
        {"id": "short", "prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        {"id": "long", "prompt": "Hi", "chosen": "Hello!", "rejected": "What? " * 20},
        {"id": "beyond", "prompt": "Hi " * 99, "chosen": "Hello!", "rejected": "What?"},
    ]
    source = Source(path=str(write_rows("long.jsonl", rows)))
    options = {**QUICK, "max_steps": 1, "max_length": 64}
    made: Any = run("cut", model=base(tiny_model), data=[source], trainer=options)
    assert made.counts["pairs"]["n"] == 1
    assert [each["id"] for each in made.counts["dropped.too_long"]["examples"]] == [
        "long",
        "beyond",
    ]
    with pytest.raises(StageFailed, match=r"None of 3 pairs.*8 tokens.*max_length"):
        run("none", model=base(tiny_model), data=[source], trainer={**options, "max_length": 8})


def test_the_models_context_is_a_limit_too(
    tiny_model: Path, write_rows: Callable[..., Path], run: Make
) -> None:
    rows = [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What? " * 50},
    ]
    source = Source(path=str(write_rows("long.jsonl", rows)))
    made: Any = run("context", model=base(tiny_model), data=[source])
    assert made.counts["dropped.too_long"]["n"] == 1


def test_the_best_checkpoint_on_held_out_pairs_becomes_the_model(
    tiny_model: Path, pairs: Source, run: Make
) -> None:
    held_out = Source(path=pairs.path, columns={"prompt": "{prompt}?"})
    for name, settings in (("full", {}), ("adapter", {"lora": LORA})):
        made = run(
            name,
            model=base(tiny_model),
            data=[pairs],
            eval_data=[held_out],
            trainer={**QUICK, "eval_steps": 1},
            **settings,
        )
        numbers = json.loads((made.path / "metrics.json").read_text())
        assert numbers["eval_loss"] < math.log(2)
    again = run("again", model=made, data=[pairs], eval_data=[held_out])
    assert steps(again)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert not (again.path / "adapter" / "ref").exists()


@pytest.mark.parametrize("kind", ["full", "new adapter", "its adapter"])
def test_a_killed_training_goes_on_to_the_same_bytes(
    kind: str, tiny_model: Path, pairs: Source, run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = base(tiny_model)
    if kind == "its adapter":
        model = run("first", model=model, data=[pairs], lora=LORA)
    settings: dict[str, Any] = {
        "model": model,
        "data": [pairs],
        "lora": LORA if kind == "new adapter" else None,
        "trainer": {**QUICK, "max_steps": 4, "save_steps": 1, "save_strategy": "steps"},
    }
    whole = run("whole", **settings)
    step, calls = PairTrainer.training_step, iter(range(100))

    def die(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == 5:  # in the middle of step 3: a step has two micro-batches
            raise MemoryError
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PairTrainer, "training_step", die)
    with pytest.raises(MemoryError):
        run("cut", **settings)
    monkeypatch.undo()
    again = run("cut", **settings)
    assert [line["step"] for line in steps(again)] == [1, 2, 3, 4]
    assert [line["loss"] for line in steps(again)] == [line["loss"] for line in steps(whole)]
    folder = "model" if kind == "full" else "adapter"
    for file in (whole.path / folder).glob("*.safetensors"):
        assert file.read_bytes() == (again.path / folder / file.name).read_bytes()


TWO = """
import json, os, sys
from pathlib import Path
from accelerate import PartialState
from align import logprobs
from align.artifacts import Model
from align.data import Source
from align.out import Out
from align.stages.dpo import Dpo

logprobs.TOKENS = 1  # a pair is a batch, so that both processes have some
base, rows, path, settings = sys.argv[1:]
model = Model(Path(base), spec={"base": {"path": base}, "quantization": None})
out = Out(Path(path), Path(path).parent / "cache", main=os.environ["RANK"] == "0")
Dpo(model=model, data=[Source(path=rows)], **json.loads(settings)).run(out)
PartialState().wait_for_everyone()  # one that leaves early makes gloo abort the other
PartialState().destroy_process_group()
"""


def test_two_processes_learn_what_one_does(
    tiny_model: Path, pairs: Source, run: Make, tmp_path: Path
) -> None:
    """Each computes the reference's numbers for a part of the pairs, and reads all of them."""
    settings = {
        "batch_size": 4,
        "lora": LORA,
        "trainer": {
            "max_steps": 3,
            "learning_rate": 1e-2,
            "loss_type": ["sigmoid", "sft"],
            "loss_weights": [1.0, 0.2],
        },
    }
    one = run("one", model=base(tiny_model), data=[pairs], **settings)
    two = Model(tmp_path / "two")
    for folder in (two.path, tmp_path / "cache"):
        folder.mkdir()
    (tmp_path / "two.py").write_text(TWO)
    arguments = [tmp_path / "two.py", tiny_model, pairs.path, two.path, json.dumps(settings)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, *map(str, arguments)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for ours, theirs in zip(steps(one), steps(two), strict=True):
        for name in ("loss", "nll", "rewards/margins", "rewards/accuracies"):
            assert ours[name] == pytest.approx(theirs[name], abs=2e-5), name
    facts = json.loads((two.path / "metrics.json").read_text())
    assert (facts["reference_computed"], facts["reference_cached"]) == (6, 0)
    weights = adapter(one), adapter(two)
    for name, weight in weights[0].items():
        assert (weight - weights[1][name]).abs().max() < 1e-4, name


def test_a_loss_that_is_not_a_number_stops_the_stage(
    tiny_model: Path, pairs: Source, run: Make
) -> None:
    with pytest.raises(StageFailed, match=r"loss is not finite.*learning_rate"):
        run(
            "nan",
            model=base(tiny_model),
            data=[pairs],
            trainer={**QUICK, "max_steps": 20, "learning_rate": 1e18, "max_grad_norm": 0.0},
        )


def test_4_bit_weights_learn_after_they_were_the_reference(
    tiny_model: Path, pairs: Source, run: Make
) -> None:
    """After a forward in eval mode, bitsandbytes' CPU kernels let no gradient through."""
    settings = {
        "model": base(tiny_model),
        "data": [pairs],
        "lora": LORA,
        "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    }
    after_it, without = run("after", **settings), run("cached", **settings)
    numbers = [json.loads((made.path / "metrics.json").read_text()) for made in (after_it, without)]
    assert [each["reference_computed"] for each in numbers] == [6, 0]
    assert steps(after_it)[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    for one, two in zip(steps(after_it), steps(without), strict=True):
        assert one["grad_norm"] == two["grad_norm"]


PROBLEMS: list[tuple[dict[str, Any], str]] = [
    ({"label_smoothing": 0.1}, "sigmoid does not read it"),
    ({"label_smoothing": 0.1, "loss_type": "robust"}, ""),
    ({"loss_type": ["exo_pair"]}, "exo_pair needs label_smoothing above 0"),
    ({"loss_type": ["sft"]}, "sft alone does not read the rejected answers"),
    ({"loss_type": "sft"}, "sft alone does not read the rejected answers"),
    ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "There are 2 losses"),
    ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}, ""),
]


@pytest.mark.parametrize(("trainer", "message"), PROBLEMS)
def test_what_trl_would_ignore_is_a_problem_of_the_recipe(
    trainer: dict[str, Any], message: str, tiny_model: Path
) -> None:
    """`label_smoothing` does nothing with the sigmoid loss; `sft` alone is no preference loss."""
    stage = Dpo(model=base(tiny_model), data=[Source(path="x.jsonl")], trainer=trainer)
    problems = [text for _, text in stage.check()]
    assert len(problems) == bool(message)
    assert all(message in text for text in problems)


def test_another_adapter_on_top_of_one_is_a_problem_of_the_recipe(tiny_model: Path) -> None:
    source = [Source(path="x.jsonl")]
    first = Dpo(model=base(tiny_model), data=source, lora=LORA)
    made = Model(Path("runs/dpo-1"), stage=first)
    assert not list(Dpo(model=made, data=source, lora=LORA).check())
    [(key, text)] = Dpo(model=made, data=source, lora={"r": 8}).check()
    assert key == "lora" and "carries an adapter already" in text


@pytest.mark.parametrize("profile", ["fsdp2", "zero3"])
def test_an_adapter_out_of_the_base_has_no_reference_where_it_is_divided(
    profile: str, tiny_model: Path
) -> None:
    """TRL would take its first weights out of the base a second time."""
    pissa = {**LORA, "init_lora_weights": "pissa"}

    def keys(name: str, lora: dict[str, Any]) -> list[str]:
        place = {"launch": f"recipes/launch/{name}.yaml", "batch_size": 8}
        stage = Dpo(model=base(tiny_model), data=[], lora=lora, **place)
        return [key for key, _ in stage.check() if key.startswith("lora")]

    assert keys(profile, pissa) == ["lora.init_lora_weights"]
    assert keys("ddp", pissa) == keys(profile, LORA) == []

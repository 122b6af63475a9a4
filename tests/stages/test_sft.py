"""Supervised fine-tuning."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import models
from align.artifacts import Model
from align.data import Source
from align.errors import StageFailed
from align.out import Out
from align.stages.sft import Sft

WORDS = ["red", "green", "blue", "one", "two", "three", "north", "south"]
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
FAST = {"max_steps": 4, "learning_rate": 1e-2}


def conversations(n: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Say {WORDS[i % 8]} {i}", "response": " ".join(WORDS[: 1 + i % 8])}
        for i in range(n)
    ]


def run(path: Path, **settings: Any) -> tuple[Model, Out]:
    path.mkdir(exist_ok=True)
    out = Out(path, path.parent / "cache")
    return Sft(**settings).run(out), out


@pytest.fixture
def base(tiny_model: Path) -> Model:
    return Model(tiny_model, spec={"base": {"path": str(tiny_model)}, "quantization": None})


@pytest.fixture
def rows(write_rows: Callable[[str, list[dict[str, Any]]], Path]) -> Source:
    return Source(path=str(write_rows("rows.jsonl", conversations(40))))


def test_training_makes_the_answers_likelier(tmp_path: Path, base: Model, rows: Source) -> None:
    made, out = run(
        tmp_path / "sft", model=base, data=[rows], batch_size=8, trainer={**FAST, "max_steps": 30}
    )
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(math.log(263), rel=0.02)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]


def test_a_uniform_model_has_the_loss_ln_v(
    tmp_path: Path, tiny_model: Path, base: Model, rows: Source
) -> None:
    import torch

    network = models.load(base)
    with torch.no_grad():
        network.lm_head.weight.zero_()
    (tmp_path / "flat").mkdir()
    models.save(network, models.tokenizer(base), None, Out(tmp_path / "flat", tmp_path))
    flat = Model(tmp_path / "flat")
    made, _ = run(tmp_path / "sft", model=flat, data=[rows], batch_size=8, trainer={"max_steps": 1})
    line = json.loads((made.path / "metrics.jsonl").read_text())
    assert line["loss"] == pytest.approx(math.log(263), abs=1e-5)


def test_what_the_assistant_did_not_say_is_not_learnt(
    tmp_path: Path, base: Model, write_rows: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    """The loss of the first step is the mean over the answers' tokens, computed by hand."""
    import torch

    from align import chat

    said = conversations(8)
    data = [Source(path=str(write_rows("few.jsonl", said)))]
    made, out = run(tmp_path / "sft", model=base, data=data, batch_size=8, trainer={"max_steps": 1})
    network, tokenizer = models.load(base), models.tokenizer(base)
    total = count = 0.0
    for row in said:
        dialog = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
        ]
        prompt, answer = chat.answer(tokenizer, dialog[:1], dialog[1:])
        ids = torch.tensor([prompt + answer.ids])
        with torch.no_grad():
            logps = network(input_ids=ids).logits.log_softmax(-1)[0]
        for place, (token, kind) in enumerate(zip(answer.ids, answer.kinds, strict=True)):
            if kind:
                total -= float(logps[len(prompt) + place - 1, token])
                count += 1
    line = json.loads((made.path / "metrics.jsonl").read_text())
    assert line["loss"] == pytest.approx(total / count, rel=1e-5)
    assert out.counts["tokens.learnt"]["n"] == count
    everything, _ = run(
        tmp_path / "all",
        model=base,
        data=data,
        batch_size=8,
        train_on="all",
        trainer={"max_steps": 1},
    )
    assert json.loads((everything.path / "metrics.jsonl").read_text())["loss"] != line["loss"]


def test_what_is_only_read_is_not_learnt_with_all(
    tmp_path: Path, base: Model, write_rows: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    turns = [("user", 1), ("assistant", 0), ("user", 1), ("assistant", 1)]
    dialog = [{"role": role, "content": "a", "weight": weight} for role, weight in turns]
    data = [Source(path=str(write_rows("few.jsonl", [{"messages": dialog}] * 2)))]
    with pytest.raises(StageFailed, match="has a message with the weight 0, which is only read"):
        run(tmp_path / "sft", model=base, data=data, train_on="all")


@pytest.mark.parametrize("quantization", [None, {"load_in_4bit": True}])
def test_an_adapter_changes_and_its_base_does_not(
    tmp_path: Path, base: Model, rows: Source, quantization: dict[str, Any] | None
) -> None:
    import safetensors.torch

    before = {file.name: file.read_bytes() for file in base.path.iterdir()}
    made, _ = run(
        tmp_path / "sft",
        model=base,
        data=[rows],
        batch_size=8,
        lora=LORA,
        quantization=quantization,
        trainer=FAST,
    )
    assert {file.name: file.read_bytes() for file in base.path.iterdir()} == before
    assert not (made.path / "model").exists()
    weights = safetensors.torch.load_file(made.path / "adapter" / "adapter_model.safetensors")
    assert all(float(w.abs().max()) > 0 for name, w in weights.items() if "lora_B" in name)
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_an_adapter_is_trained_further(tmp_path: Path, base: Model, rows: Source) -> None:
    how: dict[str, Any] = {"data": [rows], "batch_size": 8, "trainer": FAST}
    first, _ = run(tmp_path / "first", model=base, lora=LORA, **how)
    second, _ = run(tmp_path / "second", model=first, **how)
    losses = [
        [json.loads(line)["loss"] for line in (m.path / "metrics.jsonl").read_text().splitlines()]
        for m in (first, second)
    ]
    assert losses[1][0] < losses[0][0] and losses[1][-1] < losses[0][-1]
    spec = json.loads((second.path / "model.json").read_text())
    assert spec["lora"] == LORA and spec["adapter"]
    assert "first" not in spec["base"]["path"]


def test_rows_that_are_too_long_are_dropped_and_counted_never_cut(
    tmp_path: Path, base: Model, write_rows: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    """TRL would cut them without a word."""
    said = [
        *conversations(8),
        {"prompt": "x" * 300, "response": "y"},
        {"prompt": "x", "response": "y" * 60},
    ]
    data = [Source(path=str(write_rows("long.jsonl", said)))]
    _, out = run(tmp_path / "a", model=base, data=data, batch_size=8, trainer={"max_steps": 1})
    assert out.counts["dropped.too_long"]["n"] == 1, "the model's context is 256"
    assert out.counts["rows"]["n"] == 9
    trainer = {"max_steps": 1, "max_length": 64}
    _, out = run(tmp_path / "b", model=base, data=data, batch_size=8, trainer=trainer)
    assert out.counts["dropped.too_long"]["n"] == 2
    assert out.counts["dropped.too_long"]["examples"][0]["limit"] == 64
    with pytest.raises(StageFailed, match="Of 10 rows .* none can be learnt from .too long: 10"):
        run(tmp_path / "c", model=base, data=data, trainer={"max_length": 5})


def test_one_row_is_not_enough(
    tmp_path: Path, base: Model, write_rows: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    data = [Source(path=str(write_rows("one.jsonl", conversations(1))))]
    with pytest.raises(StageFailed, match="1 rows are left of the data, and 2 are needed"):
        run(tmp_path / "a", model=base, data=data)


def test_packed_rows_do_not_see_each_other(
    tmp_path: Path, base: Model, write_rows: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    """The same eight rows in one packed step and one padded step: the same loss and gradient."""
    data = [Source(path=str(write_rows("few.jsonl", conversations(8))))]
    lines = []
    for name, trainer in (("padded", {}), ("packed", {"packing": True, "max_length": 512})):
        made, _ = run(
            tmp_path / name,
            model=base,
            data=data,
            batch_size=8 if name == "padded" else 1,
            trainer={"max_steps": 1, **trainer},
        )
        lines.append(json.loads((made.path / "metrics.jsonl").read_text()))
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-5)
    assert lines[0]["grad_norm"] == pytest.approx(lines[1]["grad_norm"], rel=1e-4)


def test_two_sources_are_mixed_by_weight(
    tmp_path: Path, base: Model, write_rows: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    few = Source(path=str(write_rows("few.jsonl", conversations(4))), weight=3.0)
    more = Source(path=str(write_rows("more.jsonl", conversations(10))))
    _, out = run(
        tmp_path / "a", model=base, data=[few, more], batch_size=8, trainer={"max_steps": 1}
    )
    assert out.counts["rows"]["n"] == 22
    assert out.counts["rows.repeated_to_fill_a_step"]["n"] == 2


def test_a_base_without_a_template_is_a_sentence(
    tmp_path: Path, tiny_model: Path, rows: Source
) -> None:
    import shutil

    path = tmp_path / "bare"
    shutil.copytree(tiny_model, path)
    (path / "chat_template.jinja").unlink()
    bare = Model(path, spec={"base": {"path": str(path)}, "quantization": None})
    with pytest.raises(StageFailed, match="has no chat template. Name one: base: {chat_template"):
        run(tmp_path / "a", model=bare, data=[rows])
    spec = {"base": {"path": str(path), "chat_template": "plain"}, "quantization": None}
    made, _ = run(
        tmp_path / "b",
        model=Model(path, spec=spec),
        data=[rows],
        batch_size=8,
        trainer={"max_steps": 1},
    )
    assert "Assistant:" in models.tokenizer(made).chat_template

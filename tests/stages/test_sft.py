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
    print(lines[0], lines[-1], out.counts)
    assert lines[0]["loss"] == pytest.approx(math.log(263), rel=0.02)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]

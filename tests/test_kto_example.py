"""The stage of docs/write-a-stage.md trains, from the file that the page explains."""

import json
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import models, recipe, shelf
from align.artifacts import Model
from align.data import Source
from align.errors import RecipeError
from align.out import Out

ROOT = Path(__file__).parents[1]
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


@pytest.mark.parametrize("settings", [{}, {"lora": LORA}], ids=["full", "lora"])
def test_the_example_stage_trains(
    settings: dict[str, Any],
    tiny_model: Path,
    tmp_path: Path,
    write_rows: Callable[..., Path],
) -> None:
    kto = shelf.load(ROOT / "docs" / "examples" / "kto.py")
    pairs = [{"prompt": f"Ask {i}", "chosen": f"Yes {i}", "rejected": f"No! {i}"} for i in range(8)]
    source = Source(path=str(write_rows("pairs.jsonl", pairs)))
    base = Model(
        tiny_model, spec={"base": {"path": str(tiny_model)}, "quantization": None, "adapter": False}
    )
    out = Out(tmp_path, tmp_path)
    options = {"learning_rate": 3e-2, "max_steps": 8, "per_device_train_batch_size": 4}
    stage: Any = kto(
        model=base, data=[source], eval_data=[source], batch_size=8, trainer=options, **settings
    )
    made = stage.run(out)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] == pytest.approx(0.5, abs=1e-5), "1 - sigmoid(0): the policy is its reference"
    assert losses[-1] < 0.48 and math.isfinite(losses[-1])
    assert out.counts["pairs"]["n"] == 16
    assert models.load(made).config.vocab_size and not (made.path / "adapter" / "ref").exists()


def test_a_recipe_names_it_by_its_path(
    tiny_model: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    rows = write_rows("pairs.jsonl", [{"prompt": "Ask", "chosen": "Yes", "rejected": "No"}])
    file = ROOT / "docs" / "examples" / "kto.py"
    lines = f"""
        base: {tiny_model}
        stages:
          mine: {{use: {file}, model: base, data: {rows}, trainer: {{beta: 0.2}}}}
        """
    (tmp_path / "mine.yaml").write_text(textwrap.dedent(lines), encoding="utf-8")
    plan = recipe.read(tmp_path / "mine.yaml", store=tmp_path / "runs")
    planned = plan.stages["mine"]
    assert planned.kind == "kto" and type(planned.artifact) is Model
    stage: Any = recipe.restore(planned.record, tmp_path / "runs")
    assert stage.trainer == {"beta": 0.2}
    text = (tmp_path / "mine.yaml").read_text().replace("beta: 0.2", "betta: 0.2")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError, match='betta.*"beta"'):
        recipe.read(tmp_path / "mine.yaml", store=tmp_path / "runs")


def test_every_line_of_the_example_is_on_the_page() -> None:
    page = (ROOT / "docs" / "write-a-stage.md").read_text(encoding="utf-8")
    code = (ROOT / "docs" / "examples" / "kto.py").read_text(encoding="utf-8")
    shown = "\n".join(part.partition("\n")[2] for part in page.split("```")[1::2])
    missing = [line for line in code.splitlines() if line.strip() and line not in shown]
    assert not missing

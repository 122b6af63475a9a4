"""Loading and saving models."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import models
from align.artifacts import Model, RewardModel
from align.errors import StageFailed
from align.out import Out

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def base(path: Path, **keys: Any) -> Model:
    return Model(path, spec={"base": {"path": str(path), **keys}, "quantization": None})


@pytest.fixture
def out(tmp_path: Path) -> Out:
    (tmp_path / "made").mkdir()
    return Out(tmp_path / "made", tmp_path / "cache")


def logits(network: Any) -> Any:
    import torch

    with torch.no_grad():
        return network(input_ids=torch.arange(8, 40)[None]).logits


def test_a_new_adapter_changes_nothing(tiny_model: Path) -> None:
    plain = models.load(base(tiny_model))
    adapted = models.load(base(tiny_model), train=True, lora=LORA).eval()
    assert (logits(plain) - logits(adapted)).abs().max() == 0.0

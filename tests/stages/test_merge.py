"""An adapter folded into its base."""

import json
from pathlib import Path
from typing import Any

import pytest

from align import models
from align.artifacts import Model, RewardModel
from align.data import Source
from align.errors import StageFailed
from align.out import Out
from align.stages.merge import Merge

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def new(path: Path) -> Out:
    path.mkdir(parents=True)
    return Out(path, path.parent / "cache")


def adapted(
    tiny_model: Path, path: Path, head: bool = False, quantization: dict[str, Any] | None = None
) -> Model:
    """A model with an adapter that does something."""
    import torch

    base = Model(tiny_model, spec={"base": {"path": str(tiny_model)}, "quantization": None})
    how: dict[str, Any] = {"lora": LORA, "quantization": quantization}
    network = models.load(base, train=True, head=head, **how)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    models.save(network, models.tokenizer(base), base, new(path), **how)
    return (RewardModel if head else Model)(path)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("quantization", [None, NF4])
def test_the_merged_model_says_what_the_adapted_one_said(
    tiny_model: Path, tmp_path: Path, head: bool, quantization: dict[str, Any] | None
) -> None:
    import torch

    model = adapted(tiny_model, tmp_path / "sft", head, quantization)
    made = Merge(model=model).run(new(tmp_path / "merged"))
    assert type(made) is type(model)
    parity = json.loads((made.path / "metrics.json").read_text())
    assert parity["max_logit_difference"] < 2e-6 and parity["top_1_agreement"] == 1.0
    ids = torch.arange(8, 40)[None]
    with torch.no_grad():
        before = models.load(model, head=head, quantization=None)(input_ids=ids).logits
        after = models.load(made, head=head)(input_ids=ids).logits
        base = models.load(
            Model(tiny_model, spec={"base": {"path": str(tiny_model)}, "quantization": None}),
            head=head,
        )(input_ids=ids).logits
    assert (before - after).abs().max() < 2e-6
    assert (before - base).abs().max() > 1e-2
    spec = json.loads((made.path / "model.json").read_text())
    assert spec["adapter"] is False and spec["quantization"] is None


def test_it_is_compared_on_the_prompts_that_are_given(tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Say {i}"}) + "\n" for i in range(100)))
    model = adapted(tiny_model, tmp_path / "sft")
    made = Merge(model=model, prompts=[Source(path=str(rows))]).run(new(tmp_path / "merged"))
    assert json.loads((made.path / "metrics.json").read_text())["top_1_agreement"] == 1.0


def test_a_merge_that_does_not_agree_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    model = adapted(tiny_model, tmp_path / "sft")
    monkeypatch.setattr(
        PeftModel, "merge_and_unload", lambda self, safe_merge: self.unload(), raising=False
    )
    with pytest.raises(StageFailed, match="The merged model is not the adapted one"):
        Merge(model=model).run(new(tmp_path / "merged"))
    assert not (tmp_path / "merged" / "model.json").exists()


def test_a_model_without_an_adapter_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    base = Model(tiny_model, spec={"base": {"path": str(tiny_model)}, "quantization": None})
    with pytest.raises(StageFailed, match="has no adapter to merge"):
        Merge(model=base).run(new(tmp_path / "merged"))

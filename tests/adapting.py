"""What tests of adapters share: kinds of them, and stages and recipes that have one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import models, recipe
from align.artifacts import Model, RewardModel
from align.data import Source
from align.errors import RecipeError
from align.out import Out
from align.stages.sft import Sft

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
DORA = {**LORA, "use_dora": True}
PISSA = {**LORA, "init_lora_weights": "pissa"}
PISSA_RS = {**LORA, "init_lora_weights": "pissa_niter_4", "use_rslora": True}
OLORA = {**LORA, "init_lora_weights": "olora", "rank_pattern": {"q_proj": 8}}


def base(path: Path | str, **keys: Any) -> Model:
    spec = {"base": {"path": str(path), **keys}, "quantization": None}
    return Model(Path(path), spec=spec)


@pytest.fixture
def new(tmp_path: Path) -> Callable[[str], Out]:
    def make(name: str) -> Out:
        (tmp_path / name).mkdir(exist_ok=True)
        return Out(tmp_path / name, tmp_path / "cache")

    return make


def logits(network: Any) -> Any:
    import torch

    with torch.no_grad():
        return network(input_ids=torch.arange(8, 40)[None]).logits


def train(network: Any) -> Any:
    """Move all that is trained a little."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.05)
    return network.eval()


def adapted(source: Model, out: Out, head: bool = False, **how: Any) -> tuple[Any, Model]:
    """A network whose new adapter was moved, and the model that was saved of it."""
    network = train(models.load(source, train=True, head=head, **how))
    models.save(network, models.tokenizer(source), source, out, **how)
    return network, (RewardModel if head else Model)(out.path)


@pytest.fixture
def sft(
    tiny_model: Path, write_rows: Callable[[str, list[dict[str, Any]]], Path]
) -> Callable[..., Sft]:
    rows = [{"prompt": f"Say {i}", "response": "red green blue"[: 3 + i % 9]} for i in range(16)]
    data = [Source(path=str(write_rows("rows.jsonl", rows)))]

    def stage(**settings: Any) -> Sft:
        trainer = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-2}
        given = {"model": base(tiny_model), "data": data, "batch_size": 8, "trainer": trainer}
        return Sft(**{**given, **settings})

    return stage


@pytest.fixture
def foreign(tiny_model: Path, tmp_path: Path) -> Path:
    """An adapter as peft alone writes it: no tokenizer, no model.json."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(tiny_model)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    network = train(get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", **lora)))
    network.save_pretrained(tmp_path / "foreign")
    return tmp_path / "foreign"


@pytest.fixture
def planned(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """The problems of a recipe with one stage, which is only read."""
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c", "text": "a b"}
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")

    def plan(
        stage: str, use: str = "sft", model: str | Path = tiny_model, named: str = "base"
    ) -> list[str]:
        block = f"{{use: {use}, model: {named}, data: d.jsonl, {stage}}}"
        (tmp_path / "r.yaml").write_text(f"base: {model}\nstages:\n  one: {block}\n")
        try:
            recipe.read("r.yaml")
        except RecipeError as error:
            return [str(problem).partition(": ")[2] for problem in error.problems]
        return []

    return plan


def edit(path: Path, **changes: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

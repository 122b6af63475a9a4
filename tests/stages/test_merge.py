"""An adapter folded into its base."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from align import models, parity, recipe, weights
from align.artifacts import Model, RewardModel
from align.data import Source
from align.errors import RecipeError, StageFailed
from align.out import Out
from align.stages import merge
from align.stages.merge import Merge

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def new(path: Path) -> Out:
    path.mkdir(parents=True)
    return Out(path, path.parent / "cache")


def external(path: Path, **keys: Any) -> Model:
    return Model(path, spec={"base": {"path": str(path), **keys}, "quantization": None})


def adapted(
    base: Model,
    path: Path,
    head: bool = False,
    quantization: dict[str, Any] | None = None,
    lora: dict[str, Any] = LORA,
) -> Model:
    """A model with an adapter that does something."""
    import torch

    how: dict[str, Any] = {"lora": lora, "quantization": quantization}
    network = models.load(base, train=True, head=head, **how)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.1)
    models.save(network, models.tokenizer(base), base, new(path), **how)
    return (RewardModel if head else Model)(path)


@pytest.fixture
def tied(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with one matrix for embeddings and head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = shutil.copytree(tiny_model, tmp_path / "tied")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(path, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def logits(model: Model, **how: Any) -> Any:
    import torch

    network = models.load(model, head=isinstance(model, RewardModel), **how)
    with torch.no_grad():
        return network(input_ids=torch.arange(8, 40)[None]).logits


def numbers(made: Model) -> dict[str, float]:
    found: dict[str, float] = json.loads((made.path / "metrics.json").read_text())
    return found


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize(
    ("lora", "quantization"),
    [
        ({}, None),
        ({}, NF4),
        ({"use_rslora": True}, None),
        ({"use_dora": True}, None),
        ({"modules_to_save": ["embed_tokens"]}, None),
        ({"target_modules": ["embed_tokens", "q_proj"]}, None),
    ],
    ids=["lora", "qlora", "rslora", "dora", "modules-to-save", "embeddings"],
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied:UserWarning")
def test_the_merged_model_says_what_the_adapted_one_said(
    tied: Path,
    tmp_path: Path,
    head: bool,
    lora: dict[str, Any],
    quantization: dict[str, Any] | None,
) -> None:
    """On a base with tied embeddings, of which an adapter may change one side only."""
    base = external(tied)
    model = adapted(base, tmp_path / "sft", head, quantization, {**LORA, **lora})
    made = Merge(model=model).run(new(tmp_path / "merged"))
    assert type(made) is type(model)
    found = numbers(made)
    assert found["max_logit_difference"] < 2e-6 * max(1, found["max_logit"])
    assert found.get("same_answers", 1.0) == found.get("top_1_agreement", 1.0) == 1.0
    before, after = logits(model, quantization=None), logits(made)
    assert (before - after).abs().max() < 2e-6 * max(1, before.abs().max())
    if not head:
        assert (before - logits(base)).abs().max() > 1e-2
        assert found["same_tokens"] == 1.0 and abs(found["kl_per_token"]) < 1e-9
    spec = json.loads((made.path / "model.json").read_text())
    assert spec["adapter"] is False and spec["quantization"] is None
    assert ("as_trained_max_logit_difference" in found) == bool(quantization)


def test_the_distance_to_the_quantized_model_that_was_trained_is_measured(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against transformers' own forward of both models, at the tokens of the merged one's answers.

    In float32 these are the adapted model's, whose answers are what logits are compared along.
    """
    import torch

    model = adapted(external(tiny_model), tmp_path / "sft", quantization=NF4)
    made = Merge(model=model, seed=3).run(new(tmp_path / "merged"))
    found = numbers(made)
    tokenizer = models.tokenizer(model)
    batch = parity.prompts([], tokenizer, 3, new(tmp_path / "x"))
    network, trained = models.load(made), models.load(model)
    answers = parity.ask(network, tokenizer, batch, 3).answers
    gaps, kls = [], []
    for ids, answer in zip(batch, answers, strict=True):
        row = torch.tensor([ids + answer])
        with torch.no_grad():
            ours, theirs = (
                m(input_ids=row).logits[0, len(ids) - 1 : -1] for m in (network, trained)
            )
        gaps.append(float((ours - theirs).abs().max()))
        p, q = theirs.log_softmax(-1), ours.log_softmax(-1)
        kls += torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).tolist()
    assert found["as_trained_max_logit_difference"] == pytest.approx(max(gaps), rel=1e-4)
    assert found["as_trained_kl_per_token"] == pytest.approx(sum(kls) / len(kls), rel=1e-3)
    assert found["as_trained_max_logit_difference"] > 100 * found["max_logit_difference"]
    said = capsys.readouterr().err
    assert "The merged model differs from the quantized model that was trained: on the" in said


@pytest.mark.parametrize("asked", ["auto", "bfloat16"])
def test_it_is_added_in_float32_and_saved_in_the_bases_own_precision(
    tiny_model: Path, tmp_path: Path, asked: str
) -> None:
    """PEFT's own merge rounds the product to bfloat16 first."""
    import torch
    from transformers import AutoModelForCausalLM

    path = tiny_model
    if asked == "auto":
        path = shutil.copytree(tiny_model, tmp_path / "short")
        network = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        network.save_pretrained(path)
    model = adapted(external(path, dtype=asked), tmp_path / "sft")
    made = Merge(model=model).run(new(tmp_path / "merged"))
    saved = load_file(made.path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert json.loads((made.path / "model/config.json").read_text())["dtype"] == "bfloat16"
    assert models.describe(made).base.dtype == asked
    adapter = load_file(model.path / "adapter" / "adapter_model.safetensors")
    layer = "model.layers.0.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")
    own = load_file(path / "model.safetensors")[f"{layer}.weight"].bfloat16()
    assert saved[f"{layer}.weight"].equal((own.float() + 2.0 * b @ a).bfloat16())
    theirs = models.load(model, dtype="bfloat16").merge_and_unload(safe_merge=True)
    assert not saved[f"{layer}.weight"].equal(theirs.get_submodule(layer).weight)


def test_it_is_compared_on_the_prompts_that_are_given(tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Say {i}"}) + "\n" for i in range(100)))
    model = adapted(external(tiny_model), tmp_path / "sft")
    made = Merge(model=model, prompts=[Source(path=str(rows))]).run(new(tmp_path / "merged"))
    assert numbers(made)["prompts"] == parity.MOST
    assert numbers(made)["top_1_agreement"] == 1.0


@pytest.mark.parametrize("head", [False, True])
def test_a_merge_that_does_not_agree_is_refused_and_leaves_no_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bool
) -> None:
    """The adapter is lost between the sum and the disk: what was saved is what is looked at."""
    model = adapted(external(tiny_model), tmp_path / "sft", head)
    monkeypatch.setattr(
        weights, "folded", lambda model: models.load(model, head=head, dtype="float32").unload()
    )
    with pytest.raises(StageFailed, match="The merged model is not the adapted one: on the same"):
        Merge(model=model).run(new(tmp_path / "merged"))
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["metrics.json"]


def test_logits_that_are_no_numbers_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Wherever they are: Python's own maximum drops a NaN that is not the first."""
    import torch

    first, second = (parity.Said([], [torch.ones(1, 1) for _ in range(3)]) for _ in range(2))
    second.logits[1][0] = float("nan")
    problem = merge._problem(parity.compare(first, second), True)
    assert problem == "The logits of the merged model are not all finite numbers."
    model = adapted(external(tiny_model), tmp_path / "rm", head=True)
    file = model.path / "adapter" / "adapter_model.safetensors"
    save_file({name: weight * torch.inf for name, weight in load_file(file).items()}, file)
    with pytest.raises(StageFailed, match="are not all finite numbers: there is nothing to comp"):
        Merge(model=model).run(new(tmp_path / "merged"))


def test_scores_are_held_against_their_spread() -> None:
    """Scores of 10 +- 0.1 that move by 0.1 are others; all by the same rank as before."""
    import torch

    scores = 10 + torch.linspace(-0.1, 0.1, 8)
    first = parity.Said([], [score.view(1, 1) for score in scores])
    for moved, fine in ((scores + 0.1, True), (scores.flip(0), False)):
        second = parity.Said([], [score.view(1, 1) for score in moved])
        problem = merge._problem(parity.compare(first, second), False)
        assert (problem is None) == fine, problem


@pytest.mark.parametrize("given", [False, True])
def test_reward_models_are_compared_on_answers(
    tiny_model: Path, tmp_path: Path, given: bool
) -> None:
    rows = tmp_path / "prompts.jsonl"
    rows.write_text(json.dumps({"prompt": "Say it"}) + "\n")
    sources = [Source(path=str(rows))] if given else []
    tokenizer = models.tokenizer(external(tiny_model))
    batch = parity.prompts(sources, tokenizer, 0, new(tmp_path / "x"), head=True)
    assert len(batch) == (1 if given else len(parity.PROMPTS))
    for ids, answer in zip(batch, parity.ANSWERS, strict=False):
        assert answer in tokenizer.decode(ids)


def test_a_model_without_an_adapter_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="has no adapter to merge"):
        Merge(model=external(tiny_model)).run(new(tmp_path / "merged"))


@pytest.mark.parametrize(
    ("stage", "key"),
    [("merge: {model: sft}", "model"), ("average: {models: [base, sft]}", "models")],
)
def test_a_sum_with_a_quantized_base_is_refused_by_the_plan(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = shutil.copytree(tiny_model, tmp_path / "awq")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (path / "config.json").write_text(json.dumps(config))
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    (tmp_path / "r.yaml").write_text(
        f"base: ./awq\nstages:\n  sft: {{model: base, lora: {{r: 4}}, data: d.jsonl}}\n  {stage}\n"
    )
    with pytest.raises(RecipeError) as error:
        recipe.read("r.yaml")
    (problem,) = map(str, error.value.problems)
    assert problem.startswith("r.yaml:4:") and f".{key}: The base, " in problem
    assert "is quantized (awq): what is added to its weights would be rounded away" in problem

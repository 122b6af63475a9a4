"""The weighted average of models."""

import json
from pathlib import Path
from typing import Any

import pytest

from align import models, recipe, space
from align.adapters import carried
from align.artifacts import Model, RewardModel
from align.data import Source
from align.errors import RecipeError, StageFailed
from align.out import Out
from align.stages.average import Average
from align.stages.sft import Sft
from align.weights import folded

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def external(path: Path, kind: type[Model] = Model) -> Model:
    return kind(path, spec={"base": {"path": str(path)}, "quantization": None})


def disturb(network: Any, seed: int, part: str = "") -> None:
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if part in name and weight.requires_grad:
                weight.normal_(std=0.1)


def sibling(tiny_model: Path, path: Path, seed: int, head: bool = False) -> Model:
    """A model of the same shape with other random weights."""
    source = external(tiny_model)
    network = models.load(source, head=head, seed=seed)
    disturb(network, seed)
    out = new(path)
    models.save(network, models.tokenizer(source), None, out)
    return (RewardModel if head else Model)(path)


def adapted(
    tiny_model: Path,
    path: Path,
    seed: int,
    lora: dict[str, Any],
    *,
    head: bool = False,
    quantization: dict[str, Any] | None = None,
    dtype: str = "auto",
) -> Model:
    """The tiny model with an adapter of random numbers."""
    spec = {"base": {"path": str(tiny_model), "dtype": dtype}, "quantization": None}
    base, how = Model(tiny_model, spec=spec), {"lora": lora, "quantization": quantization}
    network = models.load(base, train=True, head=head, seed=seed, **how)
    disturb(network, seed)
    models.save(network, models.tokenizer(base), base, new(path), **how)
    return (RewardModel if head else Model)(path)


def new(path: Path) -> Out:
    path.mkdir(parents=True)
    return Out(path, path.parent / "cache")


def weights(model: Model) -> dict[str, Any]:
    return {name: weight.detach() for name, weight in folded(model).named_parameters()}


def average(path: Path, *made: Model, weights: list[float] | None = None) -> Model:
    return Average(models=list(made), weights=weights).run(new(path))


def is_adapter(model: Model) -> bool:
    return bool(json.loads((model.path / "model.json").read_text())["adapter"])


def off_by(model: Model, first: Model, second: Model, share: float) -> float:
    """The largest difference to the average of all weights, adapters folded in, in float64."""
    one, two, found = (weights(each) for each in (first, second, model))
    assert found.keys() == one.keys() == two.keys()
    assert any(not one[name].equal(two[name]) for name in one)
    return max(
        float((found[name] - share * one[name].double() - (1 - share) * two[name]).abs().max())
        for name in one
    )


# -- full weights --------------------------------------------------------------------------------


def test_the_average_of_a_model_with_itself_is_that_model(tiny_model: Path, tmp_path: Path) -> None:
    one = sibling(tiny_model, tmp_path / "one", 1)
    made = average(tmp_path / "a", *[one] * 7, weights=[0.3, 1, 2, 0.7, 1, 1, 5])
    for name, weight in weights(made).items():
        assert weight.equal(weights(one)[name]), name


def test_a_weight_of_one_and_zero_is_the_first_model(tiny_model: Path, tmp_path: Path) -> None:
    one, two = (sibling(tiny_model, tmp_path / str(i), i) for i in (1, 2))
    made = average(tmp_path / "a", one, two, weights=[1, 0])
    assert (made.path / "model/model.safetensors").read_bytes() == (
        one.path / "model/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("head", [False, True])
def test_weights_are_averaged_as_they_are_weighed(
    tiny_model: Path, tmp_path: Path, head: bool
) -> None:
    one, two = (sibling(tiny_model, tmp_path / str(i), i, head) for i in (1, 2))
    made = average(tmp_path / "a", one, two, weights=[3, 1])
    assert type(made) is type(one)
    assert ("score.weight" in weights(made)) == head
    assert off_by(made, one, two, 0.75) < 1e-7


def test_the_error_of_noisy_copies_falls_with_their_number(
    tiny_model: Path, tmp_path: Path
) -> None:
    copies = [sibling(tiny_model, tmp_path / str(i), i) for i in range(8)]
    made = weights(average(tmp_path / "a", *copies))
    variance = sum(float(weight.square().sum()) for weight in made.values())
    variance /= sum(weight.numel() for weight in made.values())
    assert variance == pytest.approx(0.1**2 / 8, rel=0.05)


def saved(path: Path, seed: int, dtype: str, **shape: Any) -> Model:
    """A Llama of another shape, as a stage saves it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(shape.pop("like"), **shape)
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    source = external(Path(config._name_or_path))
    models.save(network, models.tokenizer(source), None, new(path))
    return Model(path)


def test_an_average_in_bfloat16_is_rounded_once(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    made = [saved(tmp_path / str(i), i, "bfloat16", like=tiny_model) for i in range(3)]
    found = weights(average(tmp_path / "a", *made))
    parts = [weights(model) for model in made]
    for name, weight in found.items():
        exact = sum(part[name].double() for part in parts) / 3
        half_a_step = 2.0 ** (torch.frexp(exact.float()).exponent - 9)
        assert weight.dtype == torch.bfloat16
        assert ((weight - exact).abs() <= half_a_step * (1 + 1e-4)).all(), name


def test_tied_weights_are_averaged_once_and_stay_tied(tiny_model: Path, tmp_path: Path) -> None:
    """One of the two files holds them under both names, as some of the hub's do."""
    from safetensors.torch import load_file, save_file

    how = {"like": tiny_model, "tie_word_embeddings": True}
    one, two = (saved(tmp_path / str(i), i, "float32", **how) for i in (1, 2))
    file = two.path / "model" / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    twice = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(twice, file, metadata={"format": "pt"})
    made = average(tmp_path / "a", one, two)
    assert off_by(made, one, two, 0.5) < 1e-7
    network = models.load(made)
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(made.path / "model" / "model.safetensors")


def test_of_all_models_but_one_a_tensor_at_a_time_is_in_memory(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted: bytes of tensors that were read from files and are still alive."""
    import weakref

    from align.weights import Files

    made = [sibling(tiny_model, tmp_path / str(i), i) for i in range(4)]
    alive: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
    peak, read, of_file = 0, 0, Files.__getitem__

    def counted(self: Files, name: str) -> Any:
        nonlocal peak, read
        tensor = of_file(self, name)
        alive[id(tensor)] = tensor
        peak = max(peak, sum(each.nbytes for each in alive.values()))
        read += tensor.nbytes
        return tensor

    monkeypatch.setattr(Files, "__getitem__", counted)
    average(tmp_path / "a", *made)
    one = weights(made[0]).values()
    assert read == 3 * sum(weight.nbytes for weight in one)
    assert peak == 3 * max(weight.nbytes for weight in one)


# -- adapters ------------------------------------------------------------------------------------

ALL: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
QUERIES = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
PATTERNS = {
    "rank_pattern": {"q_proj": 7, "layers.1.mlp.up_proj": 3},
    "alpha_pattern": {"o_proj": 1},
}
HEAD = {"modules_to_save": ["lm_head"]}
WORDS = {"r": 3, "target_modules": ["embed_tokens", "down_proj"]}


@pytest.mark.parametrize(
    ("one", "two", "rank"),
    [
        (ALL, ALL, 8),
        (ALL, {**ALL, "r": 3, "use_rslora": True, "lora_dropout": 0.1}, 7),
        ({**ALL, **PATTERNS}, ALL, 11),
        (ALL, QUERIES, 6),
        (ALL | HEAD, QUERIES | HEAD, 6),
    ],
    ids=["alike", "ranks-and-scales", "patterns", "targets", "modules-to-save"],
)
@pytest.mark.parametrize("quantization", [None, NF4], ids=["", "nf4"])
def test_the_average_of_adapters_is_an_adapter_with_the_average_of_their_products(
    tiny_model: Path,
    tmp_path: Path,
    one: dict[str, Any],
    two: dict[str, Any],
    rank: int,
    quantization: dict[str, Any] | None,
) -> None:
    how = {"quantization": quantization}
    first = adapted(tiny_model, tmp_path / "1", 1, one, **how)
    second = adapted(tiny_model, tmp_path / "2", 2, two, **how)
    made = average(tmp_path / "a", first, second, weights=[3, 1])
    spec = models.describe(made)
    assert spec.adapter and spec.lora and spec.lora["r"] == spec.lora["lora_alpha"] == rank
    assert spec.base.path == str(tiny_model) and spec.quantization == quantization
    assert off_by(made, first, second, 0.75) < 1e-6


def test_an_average_of_adapters_on_one_is_that_one(tiny_model: Path, tmp_path: Path) -> None:
    first, second = (adapted(tiny_model, tmp_path / str(i), i, ALL) for i in (1, 2))
    made = average(tmp_path / "a", first, second, weights=[1, 0])
    assert off_by(made, first, second, 1.0) < 1e-6
    assert models.describe(made).lora == {**ALL, "lora_alpha": 4}


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
def test_biases_of_adapters_are_averaged(tiny_model: Path, tmp_path: Path) -> None:
    """The tiny model has none of its own, so that they cannot be folded in."""
    import torch

    first = adapted(tiny_model, tmp_path / "1", 1, {**ALL, "lora_bias": True})
    second = adapted(tiny_model, tmp_path / "2", 2, QUERIES)
    made = average(tmp_path / "a", first, second, weights=[1, 3])
    x = torch.randn(5, 32)
    for name in ("q_proj", "o_proj"):
        outputs = []
        for model in (first, second, made):
            network = models.load(model).base_model.model
            outputs.append(network.get_submodule(f"model.layers.0.self_attn.{name}")(x))
        one, two, found = outputs
        assert (found - 0.25 * one - 0.75 * two).abs().max() < 1e-6
    with pytest.raises(StageFailed, match="its base has no bias to add it to"):
        average(tmp_path / "b", first, sibling(tiny_model, tmp_path / "3", 3))


def test_heads_of_reward_models_are_averaged_beside_their_adapters(
    tiny_model: Path, tmp_path: Path
) -> None:
    made = [adapted(tiny_model, tmp_path / str(i), i, ALL, head=True) for i in (1, 2)]
    both = average(tmp_path / "a", *made, weights=[3, 1])
    assert isinstance(both, RewardModel) and is_adapter(both)
    assert off_by(both, *made, 0.75) < 1e-6
    assert not weights(both)["score.weight"].equal(weights(made[0])["score.weight"])


@pytest.mark.parametrize(
    ("one", "two", "quantization", "why"),
    [
        ({**ALL, "use_dora": True}, ALL, None, "not all are plain LoRA"),
        (ALL, ALL | HEAD, None, "not all are plain LoRA with the same whole modules"),
        (ALL, WORDS, None, "not all are plain LoRA"),
        (ALL, ALL, NF4, "their bases are quantized differently"),
        (None, ALL, NF4, "they are beside models without one"),
    ],
    ids=["dora", "modules-to-save", "embeddings", "quantization", "full"],
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_other_adapters_are_folded_into_full_weights(
    tiny_model: Path,
    tmp_path: Path,
    one: dict[str, Any] | None,
    two: dict[str, Any],
    quantization: dict[str, Any] | None,
    why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """DoRA, another set of whole modules, another quantization, or a model without an adapter."""
    first = adapted(tiny_model, tmp_path / "1", 1, one) if one else external(tiny_model)
    second = adapted(tiny_model, tmp_path / "2", 2, two, quantization=quantization)
    made = average(tmp_path / "a", first, second, weights=[3, 1])
    assert not is_adapter(made) and models.describe(made).quantization is None
    assert f"folded into full weights first: {why}" in capsys.readouterr().err
    assert off_by(made, first, second, 0.75) < 1e-6


def test_an_adapter_that_began_in_the_base_and_was_not_converted_is_folded(
    tiny_model: Path, tmp_path: Path
) -> None:
    """As PEFT alone saves PiSSA: its B A is for the base less the first B A."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(**ALL, init_lora_weights="pissa", task_type="CAUSAL_LM")
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora)
    disturb(network, 1)
    network.save_pretrained(tmp_path / "foreign")
    model = external(tmp_path / "foreign")
    made = weights(average(tmp_path / "a", model, model))
    for name, weight in weights(model).items():
        assert (made[name] - weight).abs().max() < 1e-6, name


def test_an_average_of_adapters_goes_on_as_one_adapter(tiny_model: Path, tmp_path: Path) -> None:
    made = [adapted(tiny_model, tmp_path / str(i), i, ALL) for i in (1, 2)]
    both = average(tmp_path / "a", *made)
    network = models.load(both, train=True)
    trained = {n: w.shape for n, w in network.named_parameters() if w.requires_grad}
    assert trained and all(8 in shape for shape in trained.values())
    with pytest.raises(StageFailed, match="carries an adapter already.*'r': 8"):
        models.load(both, train=True, lora=ALL)


@pytest.mark.parametrize(
    ("two", "bits", "problem"),
    [
        (ALL, NF4, "stages.dpo.lora: The model carries an adapter already ({'r': 8, "),
        (ALL | {"use_dora": True}, NF4, None),
        (ALL | HEAD, NF4, None),
        (ALL, None, None),
    ],
    ids=["plain", "dora", "modules-to-save", "quantization"],
)
def test_the_plan_knows_which_adapter_an_average_carries(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    two: dict[str, Any],
    bits: dict[str, Any] | None,
    problem: str | None,
) -> None:
    """Averages that are folded into full weights can take any adapter."""
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c"}
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    stages = {
        "one": {"use": "sft", "model": "base", "data": "d.jsonl", "lora": ALL, "quantization": NF4},
        "two": {
            "use": "sft",
            "model": "base",
            "data": "d.jsonl",
            "lora": two,
            "quantization": bits,
        },
        "average": {"models": ["one", "two"]},
        "dpo": {"model": "average", "data": "d.jsonl", "lora": ALL},
        "on": {"use": "dpo", "model": "average", "data": "d.jsonl"},
    }
    (tmp_path / "r.yaml").write_text(json.dumps({"base": str(tiny_model), "stages": stages}))
    found = []
    try:
        recipe.read("r.yaml")
    except RecipeError as error:
        found = [str(each) for each in error.problems]
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (ALL, ALL),
        (ALL | {"lora_dropout": 0.1, "rank_pattern": {"q_proj": 7}}, ALL | {"use_rslora": True}),
        (QUERIES, ALL | {"target_modules": ["v_proj", "up_proj"]}),
        (ALL | HEAD, QUERIES | HEAD),
        (ALL | {"init_lora_weights": "pissa"}, ALL),
    ],
    ids=["alike", "patterns", "targets", "modules-to-save", "pissa"],
)
def test_the_average_is_described_as_it_was_planned(
    tiny_model: Path, tmp_path: Path, one: dict[str, Any], two: dict[str, Any]
) -> None:
    trained, planned = [], []
    for i, lora in enumerate((one, two)):
        trained.append(adapted(tiny_model, tmp_path / str(i), i, lora))
        stage = Sft(model=external(tiny_model), data=[Source(path="d.jsonl")], lora=lora)
        planned.append(Model(tmp_path / "later", stage=stage))
    ahead = Model(tmp_path / "later", stage=Average(models=planned))
    assert carried(ahead)[0] == models.describe(average(tmp_path / "a", *trained)).lora


@pytest.mark.parametrize(
    ("loras", "shares", "written"),
    [
        ((None, ALL, ALL), None, 2),
        ((ALL, None, ALL), None, 1),
        ((None, ALL, ALL), [1, 1, 0], 1),
        ((ALL, ALL, ALL), None, 0),
        ((None, None), None, 0),
    ],
)
def test_the_models_that_an_average_folds_are_counted_on_the_disk(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loras: tuple[dict[str, Any] | None, ...],
    shares: list[float] | None,
    written: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    stages: dict[str, Any] = {
        f"s{i}": {"use": "sft", "model": "base", "data": "d.jsonl", "lora": lora}
        for i, lora in enumerate(loras)
    }
    stages["average"] = {"models": list(stages), "weights": shares}
    (tmp_path / "r.yaml").write_text(json.dumps({"base": str(tiny_model), "stages": stages}))
    stage = recipe.read("r.yaml").stages["average"]
    assert space.stays(stage) > 0
    assert space.passes(stage) == written * space.stays(stage)


# -- what is refused -----------------------------------------------------------------------------


def test_models_whose_tokens_differ_are_refused_before_weights_are_read(
    tiny_model: Path, tmp_path: Path
) -> None:
    one, two, three = (sibling(tiny_model, tmp_path / str(i), i) for i in range(3))
    for model in (one, two, three):
        (model.path / "model" / "model.safetensors").write_bytes(b"not read")
    template = two.path / "model" / "chat_template.jinja"
    template.write_text("x" + template.read_text())
    described = json.loads((two.path / "model.json").read_text())
    (two.path / "model.json").write_text(json.dumps({**described, "template": None}))
    with pytest.raises(StageFailed, match="different chat templates"):
        average(tmp_path / "a", one, two)
    file = three.path / "model" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(StageFailed, match="different vocabularies"):
        average(tmp_path / "b", one, three)


@pytest.mark.parametrize("shape", [{"num_hidden_layers": 3}, {"intermediate_size": 32}])
def test_models_of_different_shapes_are_refused(
    tiny_model: Path, tmp_path: Path, shape: dict[str, int]
) -> None:
    one = sibling(tiny_model, tmp_path / "one", 1)
    other = saved(tmp_path / "two", 2, "float32", like=tiny_model, **shape)
    with pytest.raises(StageFailed, match="different shapes"):
        average(tmp_path / "a", one, other)
    with pytest.raises(StageFailed, match="different shapes"):
        average(tmp_path / "b", other, one)


def test_what_is_wrong_with_the_settings_is_known_before(tiny_model: Path) -> None:
    one = external(tiny_model)
    score = external(tiny_model, RewardModel)
    assert list(Average(models=[one, one]).check()) == []
    assert [key for key, _ in Average(models=[one]).check()] == ["models"]
    assert [key for key, _ in Average(models=[one, score]).check()] == ["models"]
    assert [key for key, _ in Average(models=[one, one], weights=[1]).check()] == ["weights"]
    assert [key for key, _ in Average(models=[one, one], weights=[-1, 1]).check()] == ["weights"]

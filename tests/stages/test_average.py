"""The weighted average of models."""

import json
from pathlib import Path
from typing import Any

import pytest

from align import models
from align.artifacts import Model, RewardModel
from align.errors import StageFailed
from align.out import Out
from align.stages.average import Average


def external(path: Path, kind: type[Model] = Model) -> Model:
    return kind(path, spec={"base": {"path": str(path)}, "quantization": None})


def sibling(tiny_model: Path, path: Path, seed: int, head: bool = False) -> Model:
    """A model of the same shape with other random weights."""
    import torch

    source = external(tiny_model)
    network = models.load(source, head=head, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.1)
    out = new(path)
    models.save(network, models.tokenizer(source), None, out)
    return (RewardModel if head else Model)(path)


def new(path: Path) -> Out:
    path.mkdir(parents=True)
    return Out(path, path.parent / "cache")


def weights(model: Model) -> dict[str, Any]:
    network = models.load(model, head=isinstance(model, RewardModel))
    return {name: weight.detach() for name, weight in network.named_parameters()}


def average(path: Path, *made: Model, weights: list[float] | None = None) -> Model:
    return Average(models=list(made), weights=weights).run(new(path))


def test_the_average_of_a_model_with_itself_is_that_model(tiny_model: Path, tmp_path: Path) -> None:
    one = sibling(tiny_model, tmp_path / "one", 1)
    made = average(tmp_path / "a", one, one, one)
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
    first, second = weights(one), weights(two)
    assert ("score.weight" in first) == head
    for name, weight in weights(made).items():
        assert (weight - (0.75 * first[name] + 0.25 * second[name])).abs().max() < 1e-7


def test_the_error_of_noisy_copies_falls_with_their_number(
    tiny_model: Path, tmp_path: Path
) -> None:
    copies = [sibling(tiny_model, tmp_path / str(i), i) for i in range(8)]
    made = weights(average(tmp_path / "a", *copies))
    variance = sum(float(weight.square().sum()) for weight in made.values())
    variance /= sum(weight.numel() for weight in made.values())
    assert variance == pytest.approx(0.1**2 / 8, rel=0.05)


def test_adapters_are_folded_in_before(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    made = []
    for seed in (1, 2):
        network = models.load(external(tiny_model), train=True, lora={"r": 4}, seed=seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if "lora_B" in name:
                    weight.normal_()
        out = new(tmp_path / str(seed))
        models.save(
            network,
            models.tokenizer(external(tiny_model)),
            external(tiny_model),
            out,
            lora={"r": 4},
        )
        made.append(Model(out.path))
    both = weights(average(tmp_path / "a", *made))
    first, second = (dict(models.merged(model).named_parameters()) for model in made)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not first[name].equal(second[name])
    assert (both[name] - (first[name] + second[name]) / 2).abs().max() < 1e-6


def test_models_whose_tokens_differ_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    one, two, three = (sibling(tiny_model, tmp_path / str(i), i) for i in range(3))
    template = two.path / "model" / "chat_template.jinja"
    template.write_text("x" + template.read_text())
    with pytest.raises(StageFailed, match="different chat templates"):
        average(tmp_path / "a", one, two)
    file = three.path / "model" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(StageFailed, match="different vocabularies"):
        average(tmp_path / "b", one, three)


def test_models_of_different_shapes_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    one = sibling(tiny_model, tmp_path / "one", 1)
    config = AutoConfig.from_pretrained(tiny_model)
    config.num_hidden_layers = 3
    out = new(tmp_path / "two")
    network = AutoModelForCausalLM.from_config(config)
    models.save(network, models.tokenizer(one), None, out)
    with pytest.raises(StageFailed, match="different shapes"):
        average(tmp_path / "a", one, Model(out.path))


def test_what_is_wrong_with_the_settings_is_known_before(tiny_model: Path) -> None:
    one = external(tiny_model)
    score = external(tiny_model, RewardModel)
    assert list(Average(models=[one, one]).check()) == []
    assert [key for key, _ in Average(models=[one]).check()] == ["models"]
    assert [key for key, _ in Average(models=[one, score]).check()] == ["models"]
    assert [key for key, _ in Average(models=[one, one], weights=[1]).check()] == ["weights"]
    assert [key for key, _ in Average(models=[one, one], weights=[-1, 1]).check()] == ["weights"]

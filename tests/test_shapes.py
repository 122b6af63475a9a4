"""What a config.json says of a model's weights, against transformers and known counts."""

import dataclasses
import json
from pathlib import Path

import pytest

from align import shapes

KNOWN = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
}
"""Parameters that the models' pages on the hub name."""


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_are_the_published_ones(name: str) -> None:
    assert shapes.shape(shapes.table()[name]).parameters() == KNOWN[name]


def test_every_row_of_the_table_has_the_weights_that_transformers_makes_of_it() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    for row in json.loads(shapes.TABLE.read_text(encoding="utf-8")):
        config, shape = AutoConfig.for_model(**row["config"]), shapes.shape(row["config"])
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
            config.num_labels, config.num_hidden_layers = 1, 1
            scorer = AutoModelForSequenceClassification.from_config(config)
        assert shape.parameters() == sum(w.numel() for w in model.parameters()), row["names"]
        short = dataclasses.replace(shape, num_hidden_layers=1)
        assert short.parameters(head=True) == sum(w.numel() for w in scorer.parameters())
        linears = {
            name: (m.in_features, m.out_features, m.bias is not None)
            for name, m in model.named_modules()
            if isinstance(m, torch.nn.Linear) and name != "lm_head"
        }
        assert {n.name: (n.inputs, n.outputs, n.bias) for n in shape.linears()} == linears


def test_keys_and_values_of_a_token() -> None:
    sizes = {"8B": 131_072, "70B": 327_680, "405B": 516_096}
    for size, width in sizes.items():
        assert shapes.shape(shapes.table()[f"meta-llama/Llama-3.1-{size}"]).cached() == width


def test_a_directory_is_read_and_what_it_leaves_out_is_the_default_of_transformers(
    tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    for type_ in shapes.TYPES:
        given = {"model_type": type_, "hidden_size": 64, "num_hidden_layers": 1}
        (tmp_path / "config.json").write_text(json.dumps(given))
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**given)).to("meta")
        assert shapes.of(str(tmp_path)).parameters() == model.num_parameters(), type_
    assert shapes.of(str(tiny_model)).num_key_value_heads == 2


def test_a_model_in_the_hubs_cache_is_read_there(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--meta-llama--Llama-3.1-8B"
    (folder / "snapshots").mkdir(parents=True)
    (folder / "snapshots" / ("a" * 40)).symlink_to(tiny_model)
    assert shapes.of("meta-llama/Llama-3.1-8B").hidden_size == 4096
    assert shapes.of("meta-llama/Llama-3.1-8B", "a" * 40).hidden_size == 32


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "gpt2"}, 'architecture "gpt2" is not one of llama'),
        ({"model_type": "llama", "quantization_config": {}}, "quantized already"),
    ],
)
def test_what_is_not_known_is_not_guessed(config: dict[str, object], why: str) -> None:
    with pytest.raises(shapes.Unknown, match=why):
        shapes.shape(config)


def test_a_name_that_is_nowhere_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(shapes.Unknown, match="org/model is not in the hub's cache here"):
        shapes.of("org/model")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(shapes.Unknown, match="cannot be read"):
        shapes.of(str(tmp_path))

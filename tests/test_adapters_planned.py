"""What is wrong with an adapter or a quantization is said before a model is loaded."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapting import LORA, NF4, base, edit, foreign, logits, new, planned, sft
from ruamel.yaml import YAML
from safetensors.torch import load_file

from align import models, precision, recipe
from align.artifacts import Model
from align.errors import StageFailed
from align.out import Out
from align.stages.reward_model import TrainRewardModel
from align.stages.sft import Sft

__all__ = ["new", "sft", "foreign", "planned"]


# -- said before a model is loaded ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        ("target_modules: [q_proj, v_porj]", 'no linear layer "v_porj". Did you mean "v_proj"?'),
        ("target_modules: [attention]", "There are: down_proj, gate_proj, k_proj, o_proj, q_proj,"),
        ("target_modules: [norm]", 'no linear layer "norm".'),
        ("target_modules: [self_attn]", 'no linear layer "self_attn".'),
        ("target_modules: q_proj", "Write a list: [q_proj]."),
        ('target_modules: ".*[qv]_pro"', "as a whole, as model.layers.0.mlp.down_proj. There"),
        ('target_modules: "(q_proj"', "is no regular expression (missing )"),
        ("target_modules: [q_proj, lm_head]", "TRL reads lm_head's own weights, so an adapter on"),
        ('target_modules: ".*(head|q_proj)"', "TRL reads lm_head's own weights, so an adapter on"),
        ("layers_to_transform: [0, 2]", "no layer 2: they go from 0 to 1."),
        ("modules_to_save: [embed_token]", 'no module "embed_token". Did you mean "embed_tokens"'),
        ("init_lora_weights: false", '"false" begins with noise on the model'),
        ("target_modules: [q_proj], exclude_modules: [self_attn.q_proj]", "It leaves no module"),
        ('target_modules: [q_proj], exclude_modules: ".*"', "It leaves no module"),
        ("init_lora_weights: eva", '"eva" needs data or a quantization of its own first.'),
        (
            "init_lora_weights: pissa, target_modules: [k_proj], r: 20",
            "pissa takes 20 directions out of model.layers.0.self_",
        ),
        ("init_lora_weights: pissa, use_dora: true", '"pissa" with DoRA cannot be saved for'),
    ],
)
def test_an_adapter_that_fits_nothing_is_found_by_the_plan_and_by_the_stage(
    planned: Callable[..., list[str]], tiny_model: Path, lora: str, expected: str
) -> None:
    found = planned(f"lora: {{{lora}}}")
    assert len(found) == 1 and found[0].startswith("stages.one.lora.")
    assert expected in found[0]
    if "init" not in lora:
        block = YAML(typ="safe").load(f"{{{lora}}}")
        with pytest.raises(StageFailed, match=re.escape(expected)):
            models.load(base(tiny_model), train=True, lora=block)


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        ("target_modules: []", "It names no module."),
        ('target_modules: ""', "It names no module."),
        ("r: 0", "at least 1, and r is 0."),
        ("rank_pattern: {q_proj: -4}", "at least 1, and q_proj is -4."),
        ("lora_alpha: 0", "With lora_alpha 0 the adapter adds nothing."),
        ("alpha_pattern: {q_proj: 0}", "With q_proj 0 the adapter adds nothing."),
        ("lora_dropout: 1.5", "from 0 to below 1 is dropped, and this is 1.5."),
        ("init_lora_weights: pissax", 'no first weights "pissax". Did you mean "pissa"?'),
    ],
)
def test_values_that_no_adapter_can_have_are_found_by_the_plan(
    planned: Callable[..., list[str]], lora: str, expected: str
) -> None:
    (found,) = planned(f"lora: {{{lora}}}")
    assert found.startswith("stages.one.lora.") and expected in found


def test_what_fits_is_not_refused(planned: Callable[..., list[str]]) -> None:
    for lora in (
        "r: 64, target_modules: all-linear, modules_to_save: [embed_tokens, lm_head, norm]",
        'target_modules: ".*[.]1[.].*_proj"',
        "target_modules: [self_attn.q_proj, embed_tokens], layers_to_transform: 1",
        "target_modules: all-linear, exclude_modules: [q_proj]",
        "r: 4",
        "",
    ):
        assert planned(f"lora: {{{lora}}}") == [], lora
        assert planned(f"lora: {{{lora}}}, quantization: {{load_in_4bit: true}}") == [], lora
    assert planned("lora: {init_lora_weights: pissa_niter_4, target_modules: [q_proj]}") == []
    assert planned("lora: {target_modules: [q_proj, score]}", "reward_model") == []


def test_the_modules_of_a_known_model_are_known_without_its_files(
    planned: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    known = "meta-llama/Llama-3.1-8B"
    (found,) = planned("lora: {target_modules: [q_porj]}", model=known)
    assert 'no linear layer "q_porj". Did you mean "q_proj"?' in found
    assert planned("lora: {r: 16, modules_to_save: [embed_tokens, norm]}", model=known) == []
    (found,) = planned("lora: {layers_to_transform: [31, 32]}", model=known)
    assert "no layer 32: they go from 0 to 31." in found
    assert planned("lora: {target_modules: [q_porj]}", model="nobody/knows") == []


def test_a_reward_model_on_a_language_models_adapter_is_found_by_the_plan(
    planned: Callable[..., list[str]], foreign: Path, sft: Callable[..., Sft]
) -> None:
    (found,) = planned("seed: 1", "reward_model", foreign)
    assert found.startswith("stages.one.model: It carries an adapter of a language model, which")
    for lora, problems in ((LORA, 1), (None, 0)):
        tuned = Model(Path("sft-1"), stage=sft(lora=lora))
        stage = TrainRewardModel(model=tuned, data=[], lora=lora)
        assert len(list(models.check_adapter(stage, head=True))) == problems


@pytest.mark.parametrize("use", ["sft", "dpo", "reward_model"])
@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (
            "lora: {r: 4}, quantization: {load_in_4bit: true}, trainer: {bf16: false}",
            "trainer.bf16: TRL trains bfloat16 weights on a quantized model, which needs bf16.",
        ),
        (
            "lora: {r: 4}, quantization: {load_in_4bit: true}, trainer: {fp16: true}",
            "trainer.fp16: TRL trains bfloat16 weights on a quantized model, which needs bf16.",
        ),
        (
            "lora: {r: 4}, quantization: {load_in_4bit: true, load_in_8bit: true}",
            "quantization: load_in_4bit and load_in_8bit exclude each other. Keep one.",
        ),
        (
            "lora: {r: 4}, quantization: {bnb_4bit_quant_type: nf4}",
            "quantization: It quantizes nothing. Say `load_in_4bit: true` or `load_in_8bit: true`.",
        ),
        (
            "lora: {r: 4}, quantization: {}",
            "quantization: It quantizes nothing. Say `load_in_4bit: true` or `load_in_8bit: true`.",
        ),
        (
            "lora: {r: 4}, quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf5}",
            "quantization.bnb_4bit_quant_type: bitsandbytes has no nf5. Take one of: nf4, fp4.",
        ),
        (
            "lora: {r: 4}, quantization: {load_in_4bit: true, bnb_4bit_compute_dtype: float99}",
            "quantization.bnb_4bit_compute_dtype: bitsandbytes has no float99. Take one of: bfl",
        ),
        (
            "quantization: {load_in_4bit: true}",
            "quantization: Quantized weights cannot be trained. Train an adapter on them",
        ),
        (
            "lora: {r: 4, use_dora: true}, quantization: {load_in_8bit: true}",
            "lora.use_dora: bitsandbytes 0.50 loses the scale of 8-bit weights once DoRA has",
        ),
        (
            "lora: {r: 4, init_lora_weights: pissa}, quantization: {load_in_4bit: true}",
            'lora.init_lora_weights: "pissa" is made of the base\'s own weights. Leave it out, or',
        ),
    ],
)
def test_a_quantization_that_cannot_be_trained_on_is_found_by_the_plan(
    planned: Callable[..., list[str]], use: str, stage: str, expected: str
) -> None:
    (found,) = planned(stage, use)
    assert found.startswith(f"stages.one.{expected}")


def test_short_weights_are_not_all_trained(
    planned: Callable[..., list[str]], tiny_model: Path
) -> None:
    """In bfloat16 an update below 1/256 of a weight is lost."""
    short = f"{{path: {tiny_model}, dtype: bfloat16}}"
    (found,) = planned("seed: 1", model=short)
    assert found.startswith("stages.one.model: All weights are trained, and base.dtype holds them")
    assert planned("lora: {r: 4}", model=short) == []
    assert len(planned("seed: 1", "pretrain", short)) == 1


@pytest.mark.parametrize("method", ["gptq", "fp8", "bitsandbytes"])
def test_a_base_that_is_quantized_already_is_not_quantized_again(
    planned: Callable[..., list[str]], tiny_model: Path, tmp_path: Path, method: str
) -> None:
    path = tmp_path / "packed"
    shutil.copytree(tiny_model, path)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method}
    (path / "config.json").write_text(json.dumps(config))
    (found,) = planned("lora: {r: 4}, quantization: {load_in_4bit: true}", model=path)
    fact = f"stages.one.quantization: {path} is quantized already ({method}). Leave `quantization:`"
    assert found.startswith(fact)
    (found,) = planned("seed: 1", model=path)
    assert found.startswith("stages.one.model: Quantized weights cannot be trained.")
    assert planned("lora: {r: 4, target_modules: all-linear}", model=path) == []
    (found,) = planned("lora: {target_modules: [q_porj]}", model=path)
    assert 'Did you mean "q_proj"?' in found


def test_a_base_saved_in_4_bits_is_scored_sampled_and_trained_on(
    tiny_model: Path, tmp_path: Path, sft: Callable[..., Sft], new: Callable[[str], Out]
) -> None:
    import bitsandbytes

    models.load(base(tiny_model), quantization=NF4).save_pretrained(tmp_path / "packed")
    models.tokenizer(base(tiny_model)).save_pretrained(tmp_path / "packed")
    packed = base(tmp_path / "packed")
    network = models.load(packed)
    assert sum(isinstance(m, bitsandbytes.nn.Linear4bit) for m in network.modules()) == 14
    quantized = models.load(base(tiny_model), quantization=NF4)
    assert (logits(network) - logits(quantized)).abs().max() < 0.05
    stage = sft(model=packed, lora=LORA)
    assert list(stage.check()) == []
    assert models.half(packed, LORA)
    made = stage.run(new("made"))
    assert (logits(models.load(made)) - logits(network)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"base_model_name_or_path": None},
            "does not say whose adapter it is. Write its",
        ),
        (
            {"base_model_name_or_path": "./gone"},
            "an adapter of ./gone, which does not exist. ",
        ),
        ({"base_model_name_or_path": "."}, "an adapter of "),
        ({"peft_type": "IA3"}, '"peft_type" is IA3 and must be "LORA"'),
    ],
)
def test_an_adapter_without_its_base_is_a_sentence(
    foreign: Path, planned: Callable[..., list[str]], changes: dict[str, Any], expected: str
) -> None:
    edit(foreign, **changes)
    (found,) = planned("seed: 1", model=foreign)
    assert expected in found and str(foreign) in found
    with pytest.raises(StageFailed, match=re.escape(expected)):
        models.load(base(foreign))


def test_an_adapter_of_another_model_is_found_by_the_plan(
    foreign: Path, tiny_model: Path, planned: Callable[..., list[str]], tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    assert planned("seed: 1", model=foreign) == []
    remedy = f"Write the model it was trained on into {foreign}/adapter_config.json."
    for changes, fact in (
        ({"num_hidden_layers": 1}, "has weights for model.layers.1.self_attn.q_proj, which its"),
        ({"num_attention_heads": 2}, "for a model.layers.0.self_attn.q_proj of (32, 32), and its"),
    ):
        other = tmp_path / "other"
        LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_model, **changes)).save_pretrained(other)
        models.tokenizer(base(tiny_model)).save_pretrained(other)
        edit(foreign, base_model_name_or_path=str(other))
        (found,) = planned("seed: 1", model=foreign)
        assert fact in found and found.endswith(remedy)
    edit(foreign, base_model_name_or_path=str(tiny_model))
    tokenizer = models.tokenizer(base(tiny_model))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(foreign)
    (found,) = planned("seed: 1", model=foreign)
    assert f"tokenizer in {foreign} has 264 tokens, and the base {tiny_model} 263" in found


def test_an_adapter_on_a_base_saved_without_its_head_is_not_refused(
    foreign: Path, tmp_path: Path, tiny_model: Path, planned: Callable[..., list[str]]
) -> None:
    """Its weights are `layers.0…`, which transformers puts below `model.` as it loads them."""
    from transformers import AutoModel

    AutoModel.from_pretrained(tiny_model).save_pretrained(tmp_path / "bare")
    models.tokenizer(base(tiny_model)).save_pretrained(tmp_path / "bare")
    assert not any(
        name.startswith("model.") for name in load_file(tmp_path / "bare/model.safetensors")
    )
    edit(foreign, base_model_name_or_path=str(tmp_path / "bare"))
    assert planned("seed: 1", model=foreign) == []


def test_an_adapter_that_is_damaged_or_in_a_bin_file_is_refused(
    foreign: Path, planned: Callable[..., list[str]]
) -> None:
    weights = foreign / "adapter_model.safetensors"
    for damage in (weights.read_bytes()[:-1], b"", b"\xff" * 64):
        weights.write_bytes(damage)
        (found,) = planned("seed: 1", model=foreign)
        assert f"The weights in {foreign} cannot be read" in found
    weights.rename(foreign / "adapter_model.bin")
    (found,) = planned("seed: 1", model=foreign)
    assert "has no adapter_model.safetensors. Weights in .bin files can run code" in found
    (foreign / "adapter_model.bin").unlink()
    (found,) = planned("seed: 1", model=foreign)
    assert "has no adapter_model.safetensors. Fetch the whole adapter: `hf download`" in found


def test_an_adapter_of_another_rank_than_its_weights_is_found_by_the_plan(
    foreign: Path, planned: Callable[..., list[str]]
) -> None:
    for rank in (2, "4"):
        edit(foreign, r=rank)
        (found,) = planned("seed: 1", model=foreign)
        assert f"says rank {rank!r} of model.layers.0.self_attn." in found
    edit(foreign, r=2, rank_pattern={"[qv]_proj": 4})
    assert planned("seed: 1", model=foreign) == []


def test_another_base_under_an_adapter_is_another_key(
    foreign: Path, tiny_model: Path, planned: Callable[..., list[str]], tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "base")
    edit(foreign, base_model_name_or_path="../base")
    keys = []
    for text in ("", " "):
        file = tmp_path / "base" / "config.json"
        file.write_text(file.read_text() + text)
        assert planned("seed: 1", model=foreign) == []
        keys.append(recipe.read("r.yaml").stages["one"].artifact.key)
    assert keys[0] != keys[1]


# -- hardware -------------------------------------------------------------------------------------


def test_what_a_gpu_lacks_is_said_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    bits = {"load_in_4bit": True}
    asked = {**bits, "bnb_4bit_compute_dtype": "bfloat16"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla")
    for capability, quantization, fact in (
        ((5, 2), bits, "Tesla has compute capability 5.2, and bitsandbytes needs 6.0."),
        ((7, 5), asked, "Tesla has compute capability 7.5, and bfloat16 needs 8.0."),
        ((7, 5), bits, None),
        ((8, 0), asked, None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        if fact is None:
            precision.check(quantization, "cuda:0")
        else:
            with pytest.raises(StageFailed, match=re.escape(fact)):
                precision.check(quantization, "cuda:0")
        precision.check(quantization, "cpu")


def test_the_type_follows_the_hardware_and_quantized_weights_compute_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    for native, short in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=native: native or including_emulation,
        )
        assert precision.dtype("auto", "cuda:0", full=False) == short
        assert precision.dtype("auto", "cuda:0", full=True) == "float32"
        assert precision.dtype("auto", "cpu", full=False) == "float32"
        assert precision.autocast(half=False) == {"bf16": False}, "on a CPU"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert precision.autocast(half=False) == {"bf16" if native else "fp16": True}
        assert precision.autocast(half=True) == {"bf16": True}, "TRL trains bfloat16 on 4 bits"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        config = precision.bits({"load_in_4bit": True}, short)
        assert config.bnb_4bit_compute_dtype == getattr(torch, short)
        assert config.bnb_4bit_quant_storage == torch.uint8
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert (
        precision.bits({"load_in_4bit": True}, "bfloat16").bnb_4bit_quant_storage == torch.bfloat16
    )

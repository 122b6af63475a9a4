"""Bytes of weights, adapters and optimizers, against closed forms and the libraries' own."""

from typing import Any

import pytest

from align import shapes
from align.estimate import memory
from align.estimate.memory import GIB
from align.shapes import Linear, Shape

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
DOUBLE = {**NF4, "bnb_4bit_use_double_quant": True}

TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


def known(name: str) -> Shape:
    return shapes.shape(shapes.table()[name])


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("meta-llama/Llama-3.1-8B", 3.353 + 1.958),
        ("mistralai/Mistral-7B-v0.1", 3.84),
        ("meta-llama/Llama-3.1-70B", 36.8),
    ],
)
def test_nf4_weights_with_double_quantization(name: str, gib: float) -> None:
    assert sum(memory.weights(known(name), 2, DOUBLE).values()) / GIB == pytest.approx(
        gib, rel=2e-3
    )


def test_bits_of_a_quantized_weight() -> None:
    linear = Linear("down_proj", 14336, 4096, bias=False)
    tables = {False: 4 * 16, True: 4 * (16 + 256 + 1)}
    for double, bits in ((False, 4.5), (True, 4.126953125)):
        size = sum(memory.packed(linear, DOUBLE if double else NF4)) - tables[double]
        assert 8 * size / linear.weights == bits


@pytest.mark.parametrize("quantization", [NF4, DOUBLE, {"load_in_8bit": True}])
@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 72, "intermediate_size": 100}])
def test_bitsandbytes_packs_a_model_into_as_many_bytes(
    quantization: dict[str, Any],
    sizes: dict[str, int],
    tmp_path: Any,
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    config = {**TINY, **sizes}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(**quantization),
        device_map={"": "cpu"},
    )
    held: dict[int, int] = {}

    def count(tensor: Any) -> None:
        if tensor is not None:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

    for weight in model.parameters():
        count(weight.data)
        for name in ("CB", "SCB"):
            count(getattr(weight, name, None))
        if (state := getattr(weight, "quant_state", None)) is not None:
            count(state.absmax)
            count(state.code)
            if state.nested:
                for tensor in (state.offset, state.state2.absmax, state.state2.code):
                    count(tensor)
    predicted = memory.weights(shapes.shape(config), 2, quantization)
    assert sum(held.values()) == sum(predicted.values())


@pytest.mark.parametrize(
    ("name", "lora", "numbers"),
    [
        ("meta-llama/Llama-3.1-8B", {"r": 8, "target_modules": "all-linear"}, 20_971_520),
        ("meta-llama/Llama-3.1-8B", {"r": 16, "target_modules": "all-linear"}, 41_943_040),
        ("mistralai/Mistral-7B-v0.1", {"r": 64, "target_modules": "all-linear"}, 167_772_160),
        ("mistralai/Mistral-7B-v0.1", {"r": 128, "target_modules": "all-linear"}, 335_544_320),
        ("meta-llama/Llama-3.1-8B", {"r": 8}, 3_407_872),
        ("meta-llama/Llama-2-7b-hf", {"r": 64, "target_modules": "all-linear"}, 159_907_840),
        ("meta-llama/Llama-3.1-70B", {"r": 16, "target_modules": "all-linear"}, 207_093_760),
    ],
)
def test_numbers_of_well_known_adapters(name: str, lora: dict[str, Any], numbers: int) -> None:
    assert memory.adapter(known(name), lora) == numbers


@pytest.mark.parametrize("kind", shapes.TYPES)
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"r": 4, "target_modules": "all-linear"},
        {"target_modules": ["k_proj", "mlp.down_proj", "embed_tokens"]},
        {"target_modules": r".*layers\.[12]\..*(q|o)_proj"},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, r"layers\.0\.mlp.*": 3}},
        {"target_modules": ["up_proj"], "layers_to_transform": [0, 2], "use_dora": True},
        {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]},
    ],
)
def test_an_adapter_has_as_many_numbers_as_peft_gives_it(
    kind: str, head: bool, lora: dict[str, Any]
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = {**TINY, "model_type": kind}
    auto = AutoModelForSequenceClassification if head else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(**config, num_labels=1))
        task = "SEQ_CLS" if head else "CAUSAL_LM"
        adapted = get_peft_model(model, LoraConfig(task_type=task, **lora), low_cpu_mem_usage=True)
    trained = sum(w.numel() for w in adapted.parameters() if w.requires_grad)
    assert memory.adapter(shapes.shape(config), lora, head) == trained


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adamw_8bit", "lion_8bit"])
def test_an_optimizer_keeps_as_many_bytes_of_a_number(optim: str, tmp_path: Any) -> None:
    import torch
    from transformers import Trainer, TrainingArguments

    weight = torch.nn.Parameter(torch.ones(256, 256))
    given = TrainingArguments(str(tmp_path), optim=optim, use_cpu=True)
    cls, options = Trainer.get_optimizer_cls_and_kwargs(given)
    optimizer = cls([weight], **options)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    tables = ("step", "qmap1", "qmap2")  # one each, not one a number
    kept = [
        value.numel() * value.element_size()
        for name, value in optimizer.state[weight].items()
        if isinstance(value, torch.Tensor) and name not in tables
    ]
    assert memory.states(optim, 4) * weight.numel() == sum(kept)


def test_an_optimizer_that_is_not_counted_is_not_known() -> None:
    with pytest.raises(shapes.Unknown, match="galore_adamw keeps is not counted"):
        memory.states("galore_adamw", 4)

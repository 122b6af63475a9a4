"""Library options, read from the installed source: the same names the libraries really take."""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from align import options, yaml
from align.settings import Library
from align.signatures import model_types
from align.signatures import options as known

CLASSES = {
    "trl:SFTConfig": "trl.trainer.sft_config",
    "trl.trainer.dpo_config:DPOConfig": "trl.trainer.dpo_config",
    "trl:RewardConfig": "trl.trainer.reward_config",
    "peft:LoraConfig": "peft.tuners.lora.config",
}


def check(target: str, text: str, **owned: str) -> list[str]:
    node = yaml.load(text, "r", [])
    assert node is not None
    return [f"{place}: {message}" for place, message in options.check(Library(target, owned), node)]


@pytest.mark.parametrize("target", CLASSES)
def test_a_dataclass_has_the_fields_that_importing_it_shows(target: str) -> None:
    module = __import__(CLASSES[target], fromlist=["x"])
    real = getattr(module, target.partition(":")[2])
    fields = {field.name for field in dataclasses.fields(real) if field.init}
    assert {name for name in fields if not name.startswith("_")} == known(target).keys()


def test_bitsandbytes_and_load_dataset_take_what_their_signatures_say() -> None:
    from datasets import load_dataset
    from transformers import BitsAndBytesConfig

    for target, real in (
        ("transformers:BitsAndBytesConfig", BitsAndBytesConfig.__init__),
        ("datasets:load_dataset", load_dataset),
    ):
        parameters = inspect.signature(real).parameters.values()
        names = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self"}
        assert known(target).keys() == names


def test_generation_options_are_those_the_class_takes_out_of_its_keywords() -> None:
    from transformers import GenerationConfig

    real = set(vars(GenerationConfig()))
    names = known("transformers:GenerationConfig").keys()
    assert {"temperature", "top_k", "max_new_tokens", "stop_strings", "do_sample"} <= names
    assert {name for name in names if name not in real} == set()
    assert {name for name in real if not name.startswith("_")} <= set(names)


def test_the_configuration_of_a_model_type_has_its_own_and_inherited_fields() -> None:
    from transformers import LlamaConfig

    names = known(model_types()["llama"]).keys()
    assert {"hidden_size", "num_key_value_heads", "rope_parameters", "architectures"} <= names
    assert names <= {field.name for field in dataclasses.fields(LlamaConfig)}
    assert len(model_types()) > 200


def test_every_type_that_is_understood_accepts_the_default() -> None:
    from trl import DPOConfig, RewardConfig, SFTConfig

    for real in (SFTConfig, DPOConfig, RewardConfig):
        for field in dataclasses.fields(real):
            option = known(f"trl:{real.__name__}").get(field.name)
            if option is None or field.default is dataclasses.MISSING or field.name == "deepspeed":
                continue
            default = getattr(field.default, "value", field.default)
            if default is None:
                continue  # HF annotates some fields `str` whose default is None
            assert option.type.accepts(default), f"{field.name}: {option.type} and {default!r}"


@pytest.mark.parametrize(
    ("target", "text", "message"),
    [
        ("trl:DPOConfig", "{bata: 0.1}", """r:1:2: "bata" is no option of trl's DPOConfig. Did"""),
        ("trl:DPOConfig", "{beta: high}", """r:1:8: "beta" must be a number, not "high"."""),
        ("trl:DPOConfig", "{logging_steps: 1, warmup_steps: 0.1, beta: 1}", ""),
        ("trl:DPOConfig", "{loss_type: [sigmoid, sft], loss_weights: [1, 0.2]}", ""),
        ("trl:DPOConfig", "{loss_type: [sigmoid, 1]}", """"loss_type" must be"""),
        ("trl:DPOConfig", "{max_steps: 1.5}", """"max_steps" must be a whole number, not 1.5."""),
        ("trl:DPOConfig", "{bf16: 1}", """"bf16" must be true or false or null, not 1."""),
        ("trl:DPOConfig", "{optim: adamw}", """"optim" must be "adamw_torch", """),
        ("trl:DPOConfig", "{report_to: [wandb], eval_strategy: steps}", ""),
        ("trl:DPOConfig", "{output_dir: x}", """"output_dir" cannot be set here: every stage"""),
        ("trl:SFTConfig", "{packing_strategy: wrap}", """Did you mean "wrapped"?"""),
        ("peft:LoraConfig", "{target_modules: all-linear, r: 8, init_lora_weights: pissa}", ""),
        ("peft:LoraConfig", "{task_type: CAUSAL_LM, bias: all}", ""),
        ("peft:LoraConfig", "{target_modules: [q, 1]}", """"target_modules" must be"""),
        ("transformers:BitsAndBytesConfig", "{load_in_4bit: yes}", "must be true or false"),
        ("transformers:BitsAndBytesConfig", "{bnb_4bit_compute_dtype: bfloat16}", ""),
        ("transformers:GenerationConfig", "{temperature: 1, stop_strings: [a]}", ""),
        ("transformers:GenerationConfig", "{temperature: [1]}", """"temperature" must be a"""),
        ("transformers:AutoConfig", "{model_type: llama, hidden_size: 64}", ""),
        ("transformers:AutoConfig", "{model_type: llama, hidden_sise: 64}", "Did you mean"),
        ("trl:NoSuchConfig", "{}", "NoSuchConfig is not in the installed trl."),
        ("no_such_library:X", "{}", "X is not in the installed no_such_library."),
    ],
)
def test_a_block_of_options_is_checked(target: str, text: str, message: str) -> None:
    found = check(target, text)
    assert message in "\n".join(found) if message else not found


def test_an_owned_option_is_refused_with_its_reason_even_where_the_library_lost_it() -> None:
    assert check("trl:DPOConfig", "{gone: 1}", gone="it never worked.") == [
        'r:1:2: "gone" cannot be set here: it never worked.'
    ]


def test_a_file_of_ones_own_is_read_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_library").mkdir()
    (tmp_path / "own_library/__init__.py").write_text(
        "try:\n    from .deep import Config as Config\nexcept ImportError:\n    raise\n"
    )
    (tmp_path / "own_library/deep.py").write_text(
        "from dataclasses import dataclass, field\n"
        "from enum import Enum\n"
        "from typing import ClassVar, Literal, Optional\n"
        "class Color(str, Enum):\n    RED = 'red'\n    BLUE = 'blue'\n"
        "@dataclass\nclass Base:\n    a: int = 1\n    hidden: str = field(init=False)\n"
        "@dataclass\nclass Config(Base):\n    b: 'Optional[Color]' = None\n"
        "    c: Literal['x', 'y'] = 'x'\n    d: ClassVar[int] = 0\n    _e: int = 0\n"
        "def function(path: str, *, n: int = 1, f=None, **rest): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert check("own_library:Config", "{a: 2, b: red, c: y}") == []
    assert check("own_library:Config", "{b: green}") == [
        'r:1:5: "b" must be "red", "blue" or null, not "green".'
    ]
    assert known("own_library:Config").keys() == {"a", "b", "c"}
    assert known("own_library.deep:function").keys() == {"path", "n", "f"}


def test_nothing_is_imported() -> None:
    targets = [*CLASSES, "transformers:GenerationConfig", "transformers:BitsAndBytesConfig"]
    code = (
        "import sys; from align.signatures import options\n"
        f"for target in {targets + ['datasets:load_dataset']}:\n"
        "    [option.type for option in options(target).values()]\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

"""The page about using a pushed model: its Python runs, its server has the options it names."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The page's blocks of code in a language; "" for command lines."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def commands(program: str) -> list[list[str]]:
    """The words of the page's command lines after a program's name."""
    lines = [line for block in blocks("") for line in block.splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith(f"{program} ")]


def test_transformers_serve_has_the_options_that_the_page_names() -> None:
    from transformers.cli.transformers import app

    known = {option for one in app.commands["serve"].params for option in one.opts}
    found = commands("transformers serve")
    named = {word for line in found for word in line if word.startswith("--")}
    assert found and "--port" in named
    assert named | {"--continuous-batching"} <= known


def test_the_python_of_the_page_loads_base_adapter_and_template(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny_model)

    torch.manual_seed(0)
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(base(), config)
    adapted.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path)
    [code] = blocks("python")
    code = code.replace("me/my-adapter", str(tmp_path)).replace("BASE", str(tiny_model))
    exec(code, {})
    said = capsys.readouterr().out

    question = [{"role": "user", "content": "Who are you?"}]
    given = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    prompt = tokenizer.apply_chat_template(question, **given)

    def answer(network: Any) -> str:
        ids = network.generate(**prompt, max_new_tokens=200)[0, prompt["input_ids"].shape[1] :]
        return str(tokenizer.decode(ids, skip_special_tokens=True)) + "\n"

    assert said == answer(adapted.merge_and_unload().eval())
    assert said != answer(base())

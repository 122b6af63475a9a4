"""Chat templates: part of a model's identity, proven on public ones, the same at generation."""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from align import chat, models
from align.artifacts import Model
from align.data import Source
from align.errors import StageFailed
from align.out import Out
from align.stages.dpo import Dpo
from align.stages.merge import Merge
from align.stages.sft import Sft

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ALIGN_DATA", "/nowhere"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="ALIGN_DATA is not set")
LORA = {"r": 4, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def proof() -> ModuleType:
    """The script that writes the table of docs/templates.md."""
    spec = importlib.util.spec_from_file_location("templates", ROOT / "docs" / "templates.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def smollm(proof: ModuleType) -> Any:
    return proof.tokenizer()


def test_our_templates_are_those_that_the_page_names() -> None:
    written = (ROOT / "docs" / "templates.md").read_text("utf-8")
    assert all(f"`{path.stem}`" in written for path in models.TEMPLATES.glob("*.jinja"))


@needs_data
def test_the_masks_of_public_templates_are_proven_and_the_page_says_where(
    proof: ModuleType,
) -> None:
    """Anything that is neither right nor refused fails inside."""
    written = (ROOT / "docs" / "templates.md").read_text("utf-8")
    assert proof.page(written) == written, "run `python docs/templates.py`"


@needs_data
def test_where_a_template_marks_what_is_generated_the_mask_is_the_same(
    proof: ModuleType, smollm: Any
) -> None:
    """Their tags also hold what the generation prompt writes, and what follows the end.

    Their mask ends at the first of several tokens of a last letter, so emoji are not compared.
    """
    compared = 0
    for file in proof.FILES:
        if "generation %}" not in (text := proof.template(file)):
            continue
        smollm.chat_template = chat.dated(text)
        for kind, dialog in proof.dialogs([]).items():
            if kind in ("tools", "empty", "unicode"):
                continue
            try:
                encoded = chat.encode_one(smollm, dialog)
            except StageFailed:
                continue  # the page says why
            theirs = smollm.apply_chat_template(
                dialog, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            if theirs["input_ids"] != encoded.ids:  # an answer begins where its prompt ends
                assert smollm.decode(theirs["input_ids"]) == smollm.decode(encoded.ids)
                continue
            masks = zip(encoded.ids, encoded.kinds, theirs["assistant_masks"], strict=True)
            differ = [(token, kind) for token, kind, mask in masks if (kind > 0) != mask]
            assert all(kind == chat.CONTEXT for _, kind in differ), (file, kind)
            rest = {smollm.decode([token]).strip() for token, _ in differ}
            ask = [{"role": "user", "content": "U0q"}]
            header = chat.render(smollm, ask, prompt=True).rpartition("U0q")[2]
            written = {smollm.decode([token]).strip() for token in smollm(header).input_ids}
            assert rest <= {"", "<think>", "</think>", smollm.eos_token} | written, (file, kind)
            compared += 1
    assert compared > 60


@needs_data
def test_the_prompt_of_training_is_that_of_generation(proof: ModuleType, smollm: Any) -> None:
    """Ours and public ones, answers that begin with a newline too: transformers says so as well."""
    ours = [models.template(path.stem) for path in models.TEMPLATES.glob("*.jinja")]
    smollm.add_special_tokens({"additional_special_tokens": ["<|end|>", "<|user|>"]})
    names = ("trl/qwen3", "trl/qwen3_5_think", "llama.cpp/google-gemma-2-2b-it", "trl/llama3_1")
    public = [proof.template(DATA / "chat_templates" / f"{name}.jinja") for name in names]
    for template in (*ours, *public):
        smollm.chat_template = template
        for dialog in (proof.dialogs([])[kind] for kind in ("one", "several", "spaces")):
            prompt, answer = chat.answer(smollm, dialog[:-1], dialog[-1:])
            asked = smollm.apply_chat_template(dialog[:-1], add_generation_prompt=True)
            assert prompt == chat.prompt(smollm, dialog[:-1]) == asked["input_ids"]
            whole = smollm.apply_chat_template(dialog, tokenize=False)
            assert smollm.decode(prompt + answer.ids) == whole


def test_a_template_that_writes_todays_date_writes_the_same_one_every_day(tiny_model: Path) -> None:
    tokenizer = models.tokenizer(_base(tiny_model))
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    dialog = [{"role": "user", "content": "Hi"}]
    assert chat.render(tokenizer, dialog).startswith("26 Jul 2024<s>")
    tokenizer.chat_template = "{% set f = '%Y' %}{{ strftime_now(f) }}"
    with pytest.raises(StageFailed, match="writes today's date in a form of its own"):
        chat.render(tokenizer, dialog)


def test_a_template_that_leaves_the_system_prompt_out_is_refused(tiny_model: Path) -> None:
    tokenizer = models.tokenizer(_base(tiny_model))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"
    )
    dialog = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    with pytest.raises(chat.Refused, match="leaves the system prompt out"):
        chat.prompt(tokenizer, dialog)
    assert chat.prompt(tokenizer, dialog[1:])


def test_a_template_goes_through_a_chain_byte_for_byte(
    tmp_path: Path, tiny_model: Path, write_rows: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    """sft, dpo and merge save it, with its hash; then it is another one, and nobody loads it."""
    text = models.tokenizer(_base(tiny_model)).chat_template + "{# é \t #}\n\n"
    (tmp_path / "own.jinja").write_text(text + "\n", encoding="utf-8")  # read without its last
    said = [
        {"prompt": f"{i}?", "response": "yes", "chosen": "yes", "rejected": "no"} for i in range(4)
    ]
    rows = [Source(path=str(write_rows("rows.jsonl", said)))]
    how: dict[str, Any] = {"data": rows, "batch_size": 2, "trainer": {"max_steps": 1}}
    base = _base(tiny_model, chat_template=str(tmp_path / "own.jinja"))
    first = Sft(model=base, lora=LORA, **how).run(_out(tmp_path / "sft"))
    second = Dpo(model=first, **how).run(_out(tmp_path / "dpo"))
    merged = Merge(model=second).run(_out(tmp_path / "merge"))
    for made, folder in ((first, "adapter"), (second, "adapter"), (merged, "model")):
        assert (made.path / folder / "chat_template.jinja").read_bytes() == text.encode()
        tokenizer = models.tokenizer(made)
        described = json.loads((made.path / "model.json").read_text())
        assert described["template"] == models.template_hash(tokenizer)
        assert tokenizer.chat_template == text
    file = merged.path / "model" / "chat_template.jinja"
    file.write_text(text + " ", encoding="utf-8")
    with pytest.raises(StageFailed, match="is not the one that merge was made with: model.json"):
        models.tokenizer(merged)
    described["template"] = None
    (merged.path / "model.json").write_text(json.dumps(described))
    assert models.tokenizer(Model(merged.path)).chat_template == text + " "
    del described["template"]  # made before templates were part of a model
    (merged.path / "model.json").write_text(json.dumps(described))
    assert models.tokenizer(Model(merged.path)).chat_template == text + " "


def test_the_hash_is_of_the_template_as_it_is_read_back(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = models.tokenizer(_base(tiny_model))
    several = {"default": "{{ messages }}\r\n{# a #}", "tool_use": "{{ tools }}"}
    for template in ("a\r\nb\n", several, None):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / "saved")
        again = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert models.template_hash(again) == models.template_hash(tokenizer)
        for file in (tmp_path / "saved").rglob("*.jinja"):
            file.unlink()
    assert models.template_hash(tokenizer) is None


def _base(path: Path, **keys: str) -> Model:
    return Model(path, spec={"base": {"path": str(path), **keys}, "quantization": None})


def _out(path: Path) -> Out:
    path.mkdir()
    return Out(path, path.parent / "cache")

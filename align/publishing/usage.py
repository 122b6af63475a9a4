"""A card's section on use: how the model is loaded, and what belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from align.artifacts import read_json
from align.models import describe
from align.publishing.folder import GENERATION
from align.publishing.markdown import code, fenced
from align.rendering import TODAY
from align.tokenizing import template_hash

if TYPE_CHECKING:
    from align.publishing.card import Subject

TEMPLATE = "chat_template.jinja"

RANKS = 512
"""The highest rank that vLLM serves."""


def section(about: Subject) -> str:
    """Code for transformers and PEFT, a command for vLLM, template and end tokens."""
    return "\n\n".join(_parts(about))


def _parts(about: Subject) -> Iterator[str]:
    yield fenced("\n".join(_python(about)), "python")
    yield "`revision=` takes a tag of this repository, or a commit."
    yield from _vllm(about)
    yield from _llama(about)
    yield from _template(about)
    if about.adapter and (how := describe(about.model).quantization):
        settings = ", ".join(f"{key}={value!r}" for key, value in how.items())
        yield (
            "It was trained on the base in quantized weights: load the base with "
            f"{code(f'quantization_config=BitsAndBytesConfig({settings})')} to have what was "
            "trained; on unquantized weights it is slightly another model."
        )


def _python(about: Subject) -> Iterator[str]:
    kind = "SequenceClassification" if about.reward else "CausalLM"
    config = about.adapter
    if config is not None:
        yield "from peft import PeftModel"
    more = "" if about.reward else ", GenerationConfig"
    yield f"from transformers import AutoModelFor{kind}, AutoTokenizer{more}"
    yield ""
    yield f'tokenizer = AutoTokenizer.from_pretrained("{about.repo}")'
    head = ",\n    num_labels=1, pad_token_id=tokenizer.pad_token_id" if about.reward else ""
    if config is None:
        yield f'model = AutoModelFor{kind}.from_pretrained("{about.repo}", dtype="auto")'
    else:
        assert about.base is not None, "an adapter has a base"
        at = f', revision="{about.base.commit}"' if about.base.commit else ""
        yield f"base = AutoModelFor{kind}.from_pretrained("
        yield f'    "{about.base.repo}"{at}, dtype="auto"{head}'
        yield ")"
        yield f'model = PeftModel.from_pretrained(base, "{about.repo}")'
    yield ""
    yield from _call(about)


def _call(about: Subject) -> Iterator[str]:
    templated = (about.folder / TEMPLATE).is_file()
    if about.reward:
        yield 'dialog = [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'
        yield "inputs = tokenizer.apply_chat_template("
        yield '    dialog, return_tensors="pt", return_dict=True'
        yield ")"
        yield "score = model(**inputs).logits[0, 0]"
        return
    if templated:
        yield 'dialog = [{"role": "user", "content": "…"}]'
        yield "inputs = tokenizer.apply_chat_template("
        yield '    dialog, add_generation_prompt=True, return_tensors="pt", return_dict=True'
        yield ")"
    else:
        yield 'inputs = tokenizer("…", return_tensors="pt")'
    yield f'ends = GenerationConfig.from_pretrained("{about.repo}").eos_token_id'
    yield "ids = model.generate(**inputs, eos_token_id=ends, max_new_tokens=256)"
    yield "print(tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))"


def _vllm(about: Subject) -> Iterator[str]:
    if about.reward:
        return
    config, here = about.adapter, about.repo.partition("/")[2]
    if config is None:
        yield "With vLLM:"
        yield fenced(f"vllm serve {about.repo}", "bash")
        return
    if lacks := _beyond_vllm(config):
        yield f"vLLM serves no adapter with {lacks}: push it once more with `--merged`."
        return
    assert about.base is not None, "an adapter has a base"
    at = f" --revision {about.base.commit}" if about.base.commit else ""
    template = f" --chat-template {here}/{TEMPLATE}" if (about.folder / TEMPLATE).is_file() else ""
    yield "With vLLM, which reads template and end tokens of the base unless told:"
    lines = [
        f"hf download {about.repo} --local-dir {here}",
        f"vllm serve {about.base.repo}{at} \\",
        f"  --enable-lora --max-lora-rank {_room(config)} --lora-modules {here}=./{here} \\",
        f"  --generation-config ./{here}{template}",
    ]
    yield fenced("\n".join(lines), "bash")


def _beyond_vllm(config: dict[str, Any]) -> str:
    """What of an adapter vLLM does not know."""
    found = ["weight-decomposed matrices (DoRA)"] if config.get("use_dora") else []
    found += ["modules that are saved whole"] if config.get("modules_to_save") else []
    found += ["biases"] if config.get("lora_bias") or config.get("bias") != "none" else []
    found += [f"a rank above {RANKS}"] if _rank(config) > RANKS else []
    return " and ".join(found)


def _room(config: dict[str, Any]) -> int:
    """The rank that vLLM has to make room for: powers of two from 8."""
    return max(8, 1 << (_rank(config) - 1).bit_length())


def _rank(config: dict[str, Any]) -> int:
    """The highest of its ranks."""
    return int(max([config["r"], *(config.get("rank_pattern") or {}).values()]))


def _llama(about: Subject) -> Iterator[str]:
    """What llama.cpp's converter leaves out without a word."""
    config = about.adapter
    if about.reward or not config or not config.get("use_rslora"):
        return
    said = "llama.cpp's converter does not know rsLoRA, by which this adapter is scaled: "
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        yield f"{said}push it once more with `--merged` for a GGUF."
    else:
        times = f"--lora-scaled FILE.gguf:{config['r'] ** 0.5:.4g}"
        yield f"{said}give the GGUF as {code(times)}, the root of its rank, or merge it first."


def _template(about: Subject) -> Iterator[str]:
    file = about.folder / TEMPLATE
    if not file.is_file():
        yield "It has no chat template: it goes on with plain text."
        return
    from transformers import AutoTokenizer

    digest = template_hash(AutoTokenizer.from_pretrained(str(about.folder)))
    whose = "The chat template it was trained with" if about.lineage.steps else "Its chat template"
    said = f"{whose} is {code(TEMPLATE)} (sha256 {code(digest)})"
    generation = about.folder / GENERATION
    if generation.is_file():
        ends = read_json(generation)["eos_token_id"]
        said += f"; answers end at token {', '.join(map(str, ends))}"
    yield f"{said}."
    if "strftime_now" in file.read_text(encoding="utf-8"):
        yield (
            f"It writes the day's date; in training that was {TODAY:%d %b %Y} on every day. With "
            "another date the model reads prompts that it was not trained on."
        )

"""A model's tokenizer: special tokens and chat template, or a sentence about what it lacks."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from align import chat, headers
from align.artifacts import Model
from align.errors import StageFailed
from align.spec import Base, describe, is_adapter, sentences

TEMPLATES = Path(__file__).parent / "templates"
"""Templates that a recipe names: `chat_template: chatml`."""


def tokenizer(model: Model) -> Any:
    """The model's tokenizer, with the template and special tokens that belong to its base.

    A model made by a stage has all this in its own tokenizer files.

    Raises:
        StageFailed: it has no end token or no pad token, or one that is not in its vocabulary; its
            chat template is not the one that the model was made with.
    """
    from transformers import AutoTokenizer

    spec = describe(model)
    revision = spec.base.revision if spec.tokenizer == spec.base.path else None
    with sentences(spec.tokenizer):
        try:
            loaded = AutoTokenizer.from_pretrained(
                spec.tokenizer, revision=revision, trust_remote_code=False
            )
        except ValueError as error:
            raise StageFailed(_UNREAD.format(spec.tokenizer)) from error
    vocabulary = loaded.get_vocab()
    for key, wanted in (("pad_token", spec.base.pad_token), ("eos_token", spec.base.eos_token)):
        own = getattr(loaded, key)
        if problem := token_problem(spec.tokenizer, key, wanted, own, vocabulary):
            raise StageFailed(problem)
        if wanted is not None:
            setattr(loaded, key, wanted)
    if spec.base.chat_template is not None:
        use_template(loaded, spec.base.chat_template)
    if spec.template is not None and template_hash(loaded) != spec.template:
        raise StageFailed(
            f"The chat template in {spec.tokenizer} is not the one that {model.key} was made with: "
            f"model.json has {spec.template[:12]}, and it is {str(template_hash(loaded))[:12]}. "
            "Put chat_template.jinja back as it was, or make the model again."
        )
    return loaded


def template_hash(tokenizer: Any) -> str | None:
    """The SHA-256 of a tokenizer's chat template, 64 hex digits; None where it has none.

    Of its text as it is read back when it was saved, which makes all ends of lines alike; of
    several templates, of their sorted JSON.
    """
    template = tokenizer.chat_template
    if template is None:
        return None
    if isinstance(template, dict):
        alike = {name: _lines(text) for name, text in template.items()}
        template = json.dumps(alike, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(_lines(template).encode()).hexdigest()


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def token_problem(
    path: str, key: str, wanted: str | None, own: Any, vocabulary: Container[str]
) -> str | None:
    """Why a tokenizer cannot be used: it has no token of its own, or not the one named."""
    if wanted is not None:
        if wanted in vocabulary:
            return None
        return f'base.{key}: "{wanted}" is not in the vocabulary of {path}. Name a token that is.'
    if own is not None:
        return None
    example = next((word for word in _CANDIDATES[key] if word in vocabulary), "…")
    return (
        f"The tokenizer of {path} has no {key.replace('_', ' ')}. "
        f'Name one: base: {{{key}: "{example}"}}.'
    )


def check_template(model: Model) -> Iterator[tuple[str, str]]:
    """What a stage that renders dialogs yields from `check`: no tokenizer, or no template.

    Of a directory that no stage made; the hub's files are not here yet.
    """
    if model.stage is not None or (model.path / "model.json").is_file():
        return
    base = Base(**model.spec()["base"])
    folder = Path(base.path).expanduser()
    if is_adapter(folder):
        folder = Path(describe(model).tokenizer)
    config = folder / "tokenizer_config.json"
    if folder.is_dir() and not any(file for name in _FILES for file in folder.glob(name)):
        yield "model", _UNREAD.format(base.path)
    if base.chat_template is not None:
        yield from _unended(base, folder if folder.is_dir() else headers.folder(base))
        return
    if not config.is_file():
        return
    try:
        own = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    except (ValueError, AttributeError):
        return  # said where the recipe names the base
    if not own and not any(folder.glob("*chat_template*")):
        yield "model", chat.NO_TEMPLATE.format(base.path)


def _unended(base: Base, folder: Path | None) -> Iterator[tuple[str, str]]:
    """A template by name whose end of a turn, of the form `<|…|>`, is none of the tokenizer's.

    Said where the tokenizer's files are here and have it nowhere; the rest is seen when the stage
    loads them.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if folder is None or not (folder / "tokenizer.json").is_file():
        return
    compiler = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    dialog = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    try:
        text = compiler.from_string(template(base.chat_template or "")).render(messages=dialog)
    except (TemplateError, TypeError):
        return  # it uses what transformers adds to jinja, or cannot be rendered: the stage says it
    end = re.match(r"\s*(<\|[^|<>]+\|>)", text.rpartition("Hello")[2])
    if end is None:
        return
    known = "".join(file.read_text(encoding="utf-8") for file in folder.glob("*token*.json"))
    if end[1] not in known and json.dumps(end[1])[1:-1] not in known:
        yield (
            "model",
            f"The chat template {base.chat_template} ends a turn with {end[1]}, which is no token "
            f"of {base.path}. Name another: base: {{chat_template: plain}} works with every "
            "tokenizer.",
        )


def template(name: str) -> str:
    """The text of a chat template: a jinja file, or one that is shipped.

    Raises:
        StageFailed: there is neither.
    """
    for path in (Path(name).expanduser(), TEMPLATES / f"{name}.jinja"):
        if path.is_file():
            return path.read_text(encoding="utf-8").removesuffix("\n")
    names = ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
    raise StageFailed(
        f'chat_template: "{name}" is neither a file nor a template of ours ({names}).'
    )


def use_template(tokenizer: Any, name: str) -> None:
    """Give a tokenizer a template of ours or a file.

    One of ours begins with the begin-of-text token where the tokenizer begins every text with it.
    """
    text = template(name)
    begins = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    if begins and "bos_token" not in text and not Path(name).expanduser().is_file():
        text = "{{- bos_token }}" + text
    tokenizer.chat_template = text


_UNREAD = (
    "The tokenizer's files in {} are missing or cannot be read. Save it there once with its "
    "`save_pretrained`."
)

_FILES = ("tokenizer*", "*.model", "vocab*", "*.tiktoken", "tekken.json")
"""Names that tokenizers have, one of which a directory with a tokenizer has."""

_CANDIDATES = {
    "pad_token": ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|endoftext|>", "<unk>"),
    "eos_token": ("</s>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>"),
}

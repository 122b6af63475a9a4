"""What a model is made of: base, quantization, adapter, tokenizer and template as one thing.

A made model says in `model.json` what it is:

    {"base": {"path": "model"}, "quantization": null, "adapter": false, "lora": null,
     "template": "4f53…"}
    {"base": {"path": "../pretrain-ab12/model"}, "quantization": {…}, "adapter": true, "lora": {…},
     "template": "4f53…"}

Paths are relative to the model's own directory. `base` has `from_pretrained`'s keys; the tokenizer
with its chat template lies beside the weights that the model has of its own (`model/`, `adapter/`),
so that a consumer needs neither the template nor the special tokens of the recipe's `base:`.
`template` is the hash of that template: whoever loads the tokenizer sees that it is still the same.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from align import hub
from align.artifacts import Model, read_json
from align.errors import StageFailed
from align.settings import Library, Settings


class Base(Settings):
    """The model everything starts from: `from_pretrained`'s keys and what is part of it."""

    path: str
    """A hub id or a directory with safetensors."""

    revision: str | None = None
    """Hub revision: a commit, a tag or a branch (which is resolved to a commit)."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """In memory. `auto`: float32 on a CPU and where all weights are trained, else bfloat16."""

    attn_implementation: str | None = None

    chat_template: str | None = None
    """A jinja file or the name of a template this project ships; else the tokenizer's own."""

    pad_token: str | None = None
    eos_token: str | None = None


Lora = Annotated[
    dict[str, Any] | None,
    Library(
        "peft.tuners.lora.config:LoraConfig",
        owned={
            "task_type": "it follows from the stage",
            "inference_mode": "a stage trains, whoever consumes its model does not",
            "base_model_name_or_path": "it is the stage's model",
            "revision": "it is the stage's model's",
        },
    ),
]
"""A stage's `lora:`: the adapter it trains; None trains all weights, or the adapter there is."""

Quantization = Annotated[
    dict[str, Any] | None | Literal["inherit"],
    Library("transformers.utils.quantization_config:BitsAndBytesConfig"),
]
"""A stage's `quantization:`: as the model was trained unless told; null loads it unquantized."""


@dataclass(frozen=True)
class Spec:
    """What a model is made of, with absolute paths."""

    base: Base
    quantization: dict[str, Any] | None
    adapter: Path | None
    lora: dict[str, Any] | None
    """The `lora:` block that the adapter was made with; from elsewhere, its config."""

    tokenizer: str
    """A directory or hub id."""

    template: str | None = None
    """The hash of its chat template; None: there is none, or nobody wrote it down."""


def describe(model: Model) -> Spec:
    """What a model is made of.

    A directory that holds an adapter and nothing else is that adapter on the base it names.

    Raises:
        StageFailed: a directory is missing, or holds weights that are not safetensors.
    """
    spec = model.spec()
    base = Base(**spec["base"])
    home = model.path.resolve()
    made = (home / "model.json").is_file() and read_json(home / "model.json") == spec
    path = Path(os.path.normpath((home if made else Path.cwd()) / Path(base.path).expanduser()))
    if path.is_dir() or base.path.startswith((".", "/", "~")):
        base = base.model_copy(update={"path": str(path)})
        if not path.is_dir():
            raise StageFailed(f"{path} does not exist. Look at the path of `base:`.")
        if (path / "model.json").is_file():  # a model of the store, named by its path
            return describe(Model(path))
        if is_adapter(path):
            return _adapter(path, base)
    elif (cached := hub.snapshot("model", base.path, base.revision)) and is_adapter(cached):
        return _adapter(cached, base)
    adapter = home / "adapter" if made and spec["adapter"] else None
    if Path(base.path).is_dir():
        _check_weights(Path(base.path))
    own = home / ("adapter" if adapter else "model")
    lora = spec.get("lora")
    if lora is None and adapter and (adapter / "adapter_config.json").is_file():
        lora = _shown(adapter_config(adapter))
    return Spec(
        base=base,
        quantization=spec["quantization"],
        adapter=adapter,
        lora=lora,
        tokenizer=str(own) if made else base.path,
        template=spec.get("template") if made else None,
    )


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter, and no model."""
    return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()


def adapter_config(path: Path) -> dict[str, Any]:
    """The configuration of an adapter that no stage made.

    Raises:
        StageFailed: it cannot be read, or is of a kind that is not loaded here.
    """
    file = path / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageFailed(f"{file} cannot be read: {error}. Look at it.") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise StageFailed(f'"peft_type" is {kind} and must be "LORA" in {file}.')
    weights = path / "adapter_model.safetensors"
    if not weights.is_file() and not weights.with_suffix(".bin").is_file():
        raise StageFailed(
            f"{path} has no adapter_model.safetensors. Fetch the whole adapter: `hf download` and "
            "its name."
        )
    if not weights.is_file():
        raise StageFailed(
            f"{path} has no adapter_model.safetensors. Weights in .bin files can run code when "
            "they are loaded and are refused: load it with peft once, and save it again."
        )
    assert isinstance(config, dict)
    return config


def adapted_base(path: Path) -> str:
    """The base that an adapter names: a directory, or a hub id.

    Raises:
        StageFailed: it names none, or a directory that is not there.
    """
    named = adapter_config(path).get("base_model_name_or_path")
    remedy = f"Write its directory or hub id into {path / 'adapter_config.json'}."
    if not isinstance(named, str) or not named:
        raise StageFailed(f"{path} does not say whose adapter it is. {remedy}")
    beside = path / Path(named).expanduser()
    found = beside if beside.is_dir() else Path(named).expanduser()
    if found.is_dir():
        if not is_adapter(found):
            return str(found.resolve())
        raise StageFailed(
            f"{path} is an adapter of {found}, which is one itself. Merge that first."
        )
    if named.startswith((".", "/", "~")) or named.count("/") != 1:
        raise StageFailed(f"{path} is an adapter of {named}, which does not exist. {remedy}")
    return named


def _adapter(path: Path, asked: Base) -> Spec:
    config, named = adapter_config(path), adapted_base(path)
    base = asked.model_copy(update={"path": named, "revision": config.get("revision")})
    if Path(named).is_dir():
        _check_weights(Path(named))
    own = (path / "tokenizer_config.json").is_file()
    return Spec(base, None, path, _shown(config), str(path) if own else named)


def _shown(config: dict[str, Any]) -> dict[str, Any]:
    """An adapter's configuration without this machine's paths."""
    places = ("base_model_name_or_path", "revision")
    return {k: v for k, v in config.items() if v is not None and k not in places}


def _check_weights(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise StageFailed(
            f"{path} is no model: it has no config.json. Look at the path of `base:`."
        )
    if not any(path.glob("*.safetensors")):
        raise StageFailed(
            f"{path} has no safetensors. Weights in .bin or .pt files can run code when they are "
            "loaded and are refused; save the model with safetensors once and use that."
        )


@contextlib.contextmanager
def sentences(path: str) -> Iterator[None]:
    """Turn what transformers says about missing files into one sentence."""
    try:
        yield
    except OSError as error:
        fact = str(error).strip().splitlines()[0].rstrip(".")
        if Path(path).is_dir():
            raise StageFailed(f"{path} cannot be loaded: {fact}. Look at its files.") from error
        offline = "this machine is offline" if os.environ.get("HF_HUB_OFFLINE") == "1" else fact
        raise StageFailed(
            f'"{path}" is not in the hub\'s cache here, and {offline}. Fetch it while connected '
            f"(`hf download {path}`), or name a directory: base: {{path: ./model}}."
        ) from error

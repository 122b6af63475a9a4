"""Loading and saving models; what they are made of is in spec.py.

Whoever needs more of a model than its weights finds it here too: its tokenizer (tokenizing.py), and
what a stage checks about its adapter before anything is loaded (adapters.py).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from align import adapters, adapting, chat, headers, precision
from align.adapters import NOT_TRAINABLE, check_adapter, check_full
from align.artifacts import Model, RewardModel, read_json
from align.errors import StageFailed
from align.out import Out
from align.spec import Base, Lora, Quantization, Spec, describe, sentences
from align.targets import moves_base
from align.tokenizing import (
    TEMPLATES,
    check_template,
    template,
    template_hash,
    token_problem,
    tokenizer,
    use_template,
)

__all__ = [
    "TEMPLATES",
    "Base",
    "Lora",
    "Quantization",
    "Spec",
    "check_adapter",
    "check_full",
    "check_template",
    "describe",
    "device",
    "half",
    "load",
    "prepare",
    "save",
    "stop_at",
    "template",
    "template_hash",
    "token_problem",
    "tokenizer",
    "use_template",
]


def device() -> str:
    """Where models run: this process's GPU where there is one, else the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


_here = device


def load(
    model: Model,
    *,
    train: bool = False,
    head: bool = False,
    lora: dict[str, Any] | None = None,
    quantization: dict[str, Any] | str | None = "inherit",
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
) -> Any:
    """A `PreTrainedModel`, or a `PeftModel` around it where the model has an adapter.

    `train`: weights that can be trained, left where the trainer wants them (on the CPU unless they
    are quantized): the new adapter of `lora`, else the adapter the model has, else all of them (in
    float32, which is trained under bfloat16 autocast on a GPU). Otherwise in eval mode on `device`.
    `head`: with a one-number head instead of the vocabulary's: that of a RewardModel, or a new one
    drawn from `seed`, as are the weights of a new adapter. `dtype`: instead of what base and
    hardware make of it; "auto": as the weights are on the disk.

    Raises:
        StageFailed: see `describe`; a hub model is not here and there is no network; `lora` on a
            model with another adapter; quantized weights without an adapter to train.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    spec = describe(model)
    chosen = spec.quantization if isinstance(quantization, str) else quantization
    at = device or _here()
    full = train and lora is None and spec.adapter is None
    options: dict[str, Any] = {"dtype": dtype or precision.dtype(spec.base.dtype, at, full)}
    if spec.base.attn_implementation:
        options["attn_implementation"] = spec.base.attn_implementation
    if chosen:
        precision.check(chosen, at)
        options["quantization_config"] = precision.bits(chosen, options["dtype"])
    if quantized := bool(chosen or headers.quantized(spec.base)):
        options["device_map"] = {"": at}
    if head:
        options |= {"num_labels": 1, "pad_token_id": _pad(model)}
    if head and spec.adapter and not isinstance(model, RewardModel):
        raise StageFailed(
            f"{model.key} carries an adapter of a language model, which a reward model cannot "
            "go on from. Merge it first: a stage with `use: merge`."
        )
    disable_progress_bar()
    torch.manual_seed(seed)
    kind = AutoModelForSequenceClassification if head else AutoModelForCausalLM
    with sentences(spec.base.path):
        network = kind.from_pretrained(
            spec.base.path,
            revision=spec.base.revision,
            trust_remote_code=False,
            use_safetensors=True,
            **options,
        )
    if quantized and at == "cpu":
        precision.keep_unpacked(network)
    if network._hf_peft_config_loaded:
        raise StageFailed(
            f"{spec.base.path} is an adapter, which must be on this machine to be put on its base. "
            f"Fetch it (`hf download {spec.base.path}`) and run again."
        )
    if spec.adapter:
        with sentences(str(spec.adapter)):
            network = PeftModel.from_pretrained(
                network, str(spec.adapter), is_trainable=train, use_safetensors=True
            )
        network.peft_config["default"].base_model_name_or_path = spec.base.path  # was relative
    if train:
        return prepare(network, spec, lora, head=head, seed=seed)
    return network.eval() if quantized else network.to(at).eval()


def shape(model: Model) -> Any:
    """What a network of this model has without its weights: its `config`."""
    from transformers import AutoConfig

    base = describe(model).base
    with sentences(base.path):
        config = AutoConfig.from_pretrained(base.path, revision=base.revision)
    return SimpleNamespace(config=config)


def prepare(
    network: Any, spec: Spec, lora: dict[str, Any] | None, *, head: bool = False, seed: int = 0
) -> Any:
    """The loaded network, ready to train: with a new adapter, its own, or none. See `load`."""
    from peft import PeftModel

    if isinstance(network, PeftModel):
        for _, message in adapters.differences(spec.lora, lora):
            raise StageFailed(message)
        return adapting.in_float32(network)
    if lora is not None:
        return adapting.new(network, lora, head=head, seed=seed)
    if precision.quantized(network):
        raise StageFailed(NOT_TRAINABLE)
    return network


def save(
    network: Any,
    tokenizer: Any,
    model: Model | None,
    out: Out,
    *,
    lora: dict[str, Any] | None = None,
    quantization: dict[str, Any] | str | None = "inherit",
    state: dict[str, Any] | None = None,
) -> None:
    """Write `model.json` and the weights that are `network`'s own: `adapter/` or `model/`.

    `model` is what `network` was loaded from (None: made from nothing); `lora` and `quantization`
    are those of `load`. `state` has all weights where `network` holds a part of them only. Everyone
    can read the files; paths in them are relative.
    """
    from peft import PeftModel
    from transformers.utils.logging import disable_progress_bar

    if not out.main:
        return
    disable_progress_bar()
    spec = describe(model) if model else Spec(Base(path="model"), None, None, None, "model")
    adapted = isinstance(network, PeftModel)
    home = out.path / ("adapter" if adapted else "model")
    shutil.rmtree(home, ignore_errors=True)
    path = spec.base.path
    relative = os.path.relpath(os.path.realpath(path), os.path.realpath(out.path))
    base = {
        "path": (relative if Path(path).is_dir() else path) if adapted else "model",
        "dtype": spec.base.dtype,
        "attn_implementation": spec.base.attn_implementation,
    }
    if adapted:
        base["revision"] = spec.base.revision
        network.save_pretrained(str(home), selected_adapters=["default"], state_dict=state)
        (home / "README.md").unlink(missing_ok=True)
        if moves_base(lora or {}) and spec.adapter is None:
            adapting.for_the_base(home, network.first_weights)
        beside = os.path.join("..", relative)
        _scrub(home / "adapter_config.json", beside if Path(path).is_dir() else path, base)
    else:
        if network.can_generate():
            stop_at(network.generation_config, tokenizer)
        network.save_pretrained(str(home), state_dict=state)
    tokenizer.save_pretrained(str(home))
    for file in home.iterdir():
        file.chmod(0o644)  # safetensors writes 0600
    chosen = spec.quantization if isinstance(quantization, str) else quantization
    described = {
        "base": {key: value for key, value in base.items() if value is not None},
        "quantization": chosen if adapted else None,
        "adapter": adapted,
        "lora": (spec.lora if lora is None else lora) if adapted else None,
        "template": template_hash(tokenizer),
    }
    (out.path / "model.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def _scrub(file: Path, source: str, base: dict[str, Any]) -> None:
    """PEFT's config without this machine's paths, and the same bytes every time."""
    config = read_json(file)
    config |= {"base_model_name_or_path": source, "revision": base.get("revision")}
    for key in ("target_modules", "modules_to_save"):  # sets: their order changes from run to run
        if isinstance(config[key], list):
            config[key] = sorted(config[key])
    file.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def stop_at(config: Any, tokenizer: Any) -> None:
    """Let a model's generation config stop where its template ends a turn."""
    known = config.eos_token_id
    stops = [tokenizer.eos_token_id]
    if tokenizer.chat_template is not None:
        stops.append(chat.end_of_turn(tokenizer))
    stops += known if isinstance(known, list) else [known] if known is not None else []
    config.eos_token_id = list(dict.fromkeys(stops))
    config.pad_token_id = tokenizer.pad_token_id


def half(
    model: Model,
    lora: dict[str, Any] | None = None,
    quantization: dict[str, Any] | str | None = "inherit",
) -> bool:
    """Whether `load(model, train=True, …)` gives weights in bfloat16, or quantized ones."""
    spec = describe(model)
    chosen = spec.quantization if isinstance(quantization, str) else quantization
    if chosen or headers.quantized(spec.base):
        return True
    full = lora is None and spec.adapter is None
    return precision.dtype(spec.base.dtype, device(), full) == "bfloat16"


def _pad(model: Model) -> int:
    """The id of the pad token, which must be one of its own: the score is read before the padding.

    Raises:
        StageFailed: it is the end token, whose place the score would then miss.
    """
    loaded = tokenizer(model)
    if loaded.pad_token_id == loaded.eos_token_id:
        raise StageFailed(
            f'The pad token of {loaded.name_or_path} is its end token, "{loaded.eos_token}": a '
            "reward model would not see where an answer ends. Name another one: "
            "base: {pad_token: …}."
        )
    return int(loaded.pad_token_id)

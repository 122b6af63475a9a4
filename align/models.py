"""Loading and saving models: base, quantization, adapter, tokenizer and template as one thing.

A made model says in `model.json` what it is:

    {"base": {"path": "model"}, "quantization": null, "adapter": false, "lora": null}
    {"base": {"path": "../pretrain-ab12/model"}, "quantization": {…}, "adapter": true, "lora": {…}}

Paths are relative to the model's own directory. `base` has `from_pretrained`'s keys; the tokenizer
with its chat template lies beside the weights that the model has of its own (`model/`, `adapter/`),
so that a consumer needs neither the template nor the special tokens of the recipe's `base:`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from align import chat
from align.artifacts import Model, RewardModel, read_json
from align.errors import StageFailed
from align.out import Out
from align.settings import Library, Settings, Stage


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


TEMPLATES = Path(__file__).parent / "templates"
"""Templates that a recipe names: `chat_template: chatml`."""

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
    """The `lora:` block that the adapter was made with, where it was made by a stage."""

    tokenizer: str
    """A directory or hub id."""


def describe(model: Model) -> Spec:
    """What a model is made of.

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
    adapter = home / "adapter" if made and spec["adapter"] else None
    if Path(base.path).is_dir():
        _check_weights(Path(base.path))
    own = home / ("adapter" if adapter else "model")
    return Spec(
        base=base,
        quantization=spec["quantization"],
        adapter=adapter,
        lora=spec.get("lora"),
        tokenizer=str(own) if made else base.path,
    )


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


def tokenizer(model: Model) -> Any:
    """The model's tokenizer, with the template and special tokens that belong to its base.

    A model made by a stage has all this in its own tokenizer files.

    Raises:
        StageFailed: it has no end token or no pad token, or one that is not in its vocabulary.
    """
    from transformers import AutoTokenizer

    spec = describe(model)
    revision = spec.base.revision if spec.tokenizer == spec.base.path else None
    with _sentences(spec.tokenizer):
        loaded = AutoTokenizer.from_pretrained(
            spec.tokenizer, revision=revision, trust_remote_code=False
        )
    vocabulary = loaded.get_vocab()
    for key, wanted in (("pad_token", spec.base.pad_token), ("eos_token", spec.base.eos_token)):
        own = getattr(loaded, key)
        if problem := token_problem(spec.tokenizer, key, wanted, own, vocabulary):
            raise StageFailed(problem)
        if wanted is not None:
            setattr(loaded, key, wanted)
    if spec.base.chat_template is not None:
        use_template(loaded, spec.base.chat_template)
    return loaded


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
    """What a stage that renders dialogs yields from `check` where a directory has no template."""
    if model.stage is not None or (model.path / "model.json").is_file():
        return
    base = Base(**model.spec()["base"])
    folder = Path(base.path).expanduser()
    config = folder / "tokenizer_config.json"
    if base.chat_template is not None or not config.is_file():
        return
    try:
        own = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    except (ValueError, AttributeError):
        return  # said where the recipe names the base
    if not own and not any(folder.glob("*chat_template*")):
        yield "model", chat.NO_TEMPLATE.format(base.path)


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


_CANDIDATES = {
    "pad_token": ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|endoftext|>", "<unk>"),
    "eos_token": ("</s>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>"),
}


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
) -> Any:
    """A `PreTrainedModel`, or a `PeftModel` around it where the model has an adapter.

    `train`: weights that can be trained, left where the trainer wants them (on the CPU unless they
    are quantized): the new adapter of `lora`, else the adapter the model has, else all of them (in
    float32, which is trained under bfloat16 autocast on a GPU). Otherwise in eval mode on `device`.
    `head`: with a one-number head instead of the vocabulary's: that of a RewardModel, or a new one
    drawn from `seed`, as are the weights of a new adapter.

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
    options: dict[str, Any] = {"dtype": _dtype(spec, at, train and not (lora or spec.adapter))}
    if spec.base.attn_implementation:
        options["attn_implementation"] = spec.base.attn_implementation
    if chosen:
        options |= {"quantization_config": _bits(chosen, options["dtype"]), "device_map": {"": at}}
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
    with _sentences(spec.base.path):
        network = kind.from_pretrained(
            spec.base.path,
            revision=spec.base.revision,
            trust_remote_code=False,
            use_safetensors=True,
            **options,
        )
    if chosen and at == "cpu":
        _keep_unpacked(network)
    if spec.adapter:
        with _sentences(str(spec.adapter)):
            network = PeftModel.from_pretrained(
                network, str(spec.adapter), is_trainable=train, use_safetensors=True
            )
        network.peft_config["default"].base_model_name_or_path = spec.base.path  # was relative
    if train:
        return prepare(network, spec, lora, head=head, seed=seed)
    return network.to(at).eval() if not chosen else network.eval()


def prepare(
    network: Any, spec: Spec, lora: dict[str, Any] | None, *, head: bool = False, seed: int = 0
) -> Any:
    """The loaded network, ready to train: with a new adapter, its own, or none. See `load`."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(network, PeftModel):
        if lora is not None and lora != spec.lora:
            raise StageFailed(_OTHER_ADAPTER.format(spec.lora or spec.adapter, lora))
        return _trained_in_float32(network)
    if lora is None:
        if getattr(network, "is_quantized", False):
            raise StageFailed(
                "Quantized weights cannot be trained. Train an adapter on them (`lora: {}`) or set "
                "`quantization: null`."
            )
        return network
    torch.manual_seed(seed)
    task = "SEQ_CLS" if head else "CAUSAL_LM"  # SEQ_CLS trains and saves the head too
    return _trained_in_float32(get_peft_model(network, LoraConfig(task_type=task, **lora)))


def _trained_in_float32(network: Any) -> Any:
    """Small updates are lost in bfloat16. PEFT 0.21 casts adapters, but not `modules_to_save`.

    Not on quantized weights: TRL 1.16 makes all that is trained on those bfloat16 anyway.
    """
    if not getattr(network, "is_quantized", False):
        for weight in network.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    return network


def merged(model: Model) -> Any:
    """A model as full weights in float32 on the CPU, its adapter folded in."""
    from peft import PeftModel

    network = load(
        model, head=isinstance(model, RewardModel), quantization=None, device="cpu"
    ).float()
    return network.merge_and_unload(safe_merge=True) if isinstance(network, PeftModel) else network


_OTHER_ADAPTER = (
    "The model carries an adapter already ({}) and lora is {}. Leave `lora:` out to go on training "
    "the adapter, or merge it first: a stage with `use: merge`."
)


def check_lora(model: Model | None, lora: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """What a stage yields from `check` where its `lora:` is not the adapter that comes with it."""
    carried = _carried(model)
    if lora is not None and carried is not None and carried != lora:
        yield "lora", _OTHER_ADAPTER.format(carried, lora)


def _carried(model: Model | None) -> dict[str, Any] | None:
    """The `lora:` of the adapter that a model will carry, known before it is made."""
    settings = dict(model.stage) if model and isinstance(model.stage, Stage) else {}
    if "lora" not in settings:
        return None
    return settings["lora"] or _carried(settings.get("model"))


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
        beside = os.path.join("..", relative)
        _scrub(home / "adapter_config.json", beside if Path(path).is_dir() else path, base)
    else:
        if network.can_generate():
            _stop_at(network, tokenizer)
        network.save_pretrained(str(home), state_dict=state)
    tokenizer.save_pretrained(str(home))
    for file in home.iterdir():
        file.chmod(0o644)  # safetensors writes 0600
    chosen = spec.quantization if isinstance(quantization, str) else quantization
    described = {
        "base": {key: value for key, value in base.items() if value is not None},
        "quantization": chosen if adapted else None,
        "adapter": adapted,
        "lora": (lora or spec.lora) if adapted else None,
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


def _stop_at(network: Any, tokenizer: Any) -> None:
    """Let the model's own generation config stop where its template ends a turn."""
    known = network.generation_config.eos_token_id
    stops = [tokenizer.eos_token_id]
    if tokenizer.chat_template is not None:
        stops.append(chat.end_of_turn(tokenizer))
    stops += known if isinstance(known, list) else [known] if known is not None else []
    network.generation_config.eos_token_id = list(dict.fromkeys(stops))
    network.generation_config.pad_token_id = tokenizer.pad_token_id


def half(
    model: Model,
    lora: dict[str, Any] | None = None,
    quantization: dict[str, Any] | str | None = "inherit",
) -> bool:
    """Whether `load(model, train=True, …)` gives weights in bfloat16, or quantized ones."""
    spec = describe(model)
    chosen = spec.quantization if isinstance(quantization, str) else quantization
    return bool(chosen) or _dtype(spec, device(), not (lora or spec.adapter)) == "bfloat16"


def _dtype(spec: Spec, at: str, full: bool) -> str:
    import torch

    if spec.base.dtype != "auto":
        return spec.base.dtype
    short = at != "cpu" and torch.cuda.is_bf16_supported()
    return "bfloat16" if short and not full else "float32"


def _bits(quantization: dict[str, Any], dtype: str) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**{"bnb_4bit_compute_dtype": dtype, **quantization})


def _keep_unpacked(network: Any) -> None:
    """No repacking of 4-bit weights on a CPU with AVX512-BF16.

    bitsandbytes 0.50 repacks them at the first forward in eval mode, and gradients no longer flow
    through them afterwards, with a warning only (measured: other weights at the end).
    """
    from bitsandbytes.nn import Linear4bit

    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


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


@contextlib.contextmanager
def _sentences(path: str) -> Iterator[None]:
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

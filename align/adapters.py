"""Which adapter, on which base: what is wrong with them, said before a model is loaded.

What a base is made of is read from its files (headers.py); where these are not on this machine, the
stage's process says the rest from the modules themselves, before it trains.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align import headers
from align.artifacts import Model, RewardModel
from align.errors import StageFailed
from align.headers import Shapes
from align.options import nearest
from align.settings import Stage
from align.spec import Base, adapter_config, describe, is_adapter
from align.targets import HEADS, Problems, moves_base, targets

OTHER_ADAPTER = (
    "The model carries an adapter already ({}) and lora is {}. Leave `lora:` out to go on training "
    "the adapter, or merge it first: a stage with `use: merge`."
)

ADDS_UP = frozenset(
    {
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("init_lora_weights", "inference_mode", "base_model_name_or_path", "revision"),
        *("lora_bias", "peft_version"),
    }
)
"""Keys of `LoraConfig` that adapters may differ in while what they add to a layer is B A x + b.
Any other key that is not at its default may mean more: the average of such is not an adapter."""

PLACES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")

WHOLE = "modules_to_save"

NEED_DATA = ("eva", "corda", "lora_ga", "loftq")
"""`init_lora_weights` of PEFT 0.21 that want data or quantization of their own before training."""


INITS = (*NEED_DATA, "gaussian", "olora", "pissa", "pissa_niter_16", "orthogonal", "mica")
"""The words that `init_lora_weights` of PEFT 0.21 knows; pissa_niter_ takes any number."""

TYPES = {
    "bnb_4bit_quant_type": ("nf4", "fp4"),
    "bnb_4bit_compute_dtype": ("bfloat16", "float16", "float32"),
    "bnb_4bit_quant_storage": ("uint8", "int8", "bfloat16", "float16", "float32", "float64"),
}
"""What bitsandbytes 0.50 knows of its options that are any word to transformers."""


def check_adapter(stage: Any, *, head: bool = False) -> Problems:
    """What a training stage with `model`, `lora`, `quantization` and `trainer` yields from `check`.

    `head`: it trains a reward model.
    """
    lora, quantization = carried(stage.model)
    if head and lora is not None and not isinstance(stage.model, RewardModel):
        yield (
            "model",
            "It carries an adapter of a language model, which a reward model cannot go on from. "
            "Merge it first: a stage with `use: merge`.",
        )
        return
    yield from check_lora(stage.model, stage.lora)
    lora = lora if stage.lora is None else stage.lora
    if stage.quantization != "inherit":
        quantization = stage.quantization
        if quantization is not None:
            yield from _one_quantization(quantization)
    if quantization:
        yield from _quantized_training(stage, quantization)
    if stage.lora is not None:
        yield from _values(stage.lora)
        yield from _inits(stage.lora, quantization or {})
    base = root(stage.model)
    if base is None:
        return
    if stage.lora is not None and (modules := headers.modules(base)) is not None:
        yield from targets(stage.lora, modules, head=head)
    method = headers.quantized(base)
    if method and quantization:
        yield (
            "quantization",
            f"{base.path} is quantized already ({method}). Leave `quantization:` out, or name the "
            "model it was made from.",
        )
    if lora is None and quantization:
        yield "quantization", NOT_TRAINABLE
    elif lora is None:
        yield from check_full(stage.model)


def check_full(model: Model) -> Problems:
    """What a stage that trains all weights yields from `check`."""
    base = root(model)
    if base is None:
        return
    if headers.quantized(base):
        yield "model", NOT_TRAINABLE
    elif base.dtype in ("bfloat16", "float16"):
        yield (
            "model",
            f"All weights are trained, and base.dtype holds them in {base.dtype}, where an update "
            "below 1/256 of a weight is lost. Leave `dtype` out: it is float32 where all weights "
            "are trained, and short elsewhere.",
        )


NOT_TRAINABLE = (
    "Quantized weights cannot be trained. Train an adapter on them (`lora: {}`), or start from "
    "unquantized ones."
)


def check_lora(model: Model | None, lora: dict[str, Any] | None) -> Problems:
    """What a stage yields from `check` where its `lora:` is not the adapter that comes with it."""
    yield from differences(carried(model)[0], lora)


def differences(there: dict[str, Any] | None, lora: dict[str, Any] | None) -> Problems:
    """In what a stage's `lora:` is not the adapter that is there: see `carried`."""
    if lora is None or there is None:
        return
    if "peft_type" not in there:  # the block of a stage
        if lora != there:
            yield "lora", OTHER_ADAPTER.format(there, lora)
        return
    for key, wanted in lora.items():
        if not _alike(key, wanted, there.get(key)):
            has = f"{key}: {there.get(key)}"
            yield f"lora.{key}", OTHER_ADAPTER.format(has, f"{key}: {wanted}")


def _alike(key: str, wanted: Any, there: Any) -> bool:
    if key == "target_modules" and str(wanted).lower() == "all-linear":
        return isinstance(there, list)  # PEFT has written out which they were
    if isinstance(wanted, list) and isinstance(there, list):
        return set(wanted) == set(there)
    return bool(wanted == there)


def carried(model: Model | None) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """(lora, quantization) of a model, known before it is made; lora is None without an adapter.

    Of an adapter that no stage made, `lora` is its whole configuration, with `peft_type`.
    """
    if model is None:
        return None, None
    if not isinstance(model.stage, Stage):
        spec = describe(model)
        return spec.lora, spec.quantization
    settings = dict(model.stage)
    if "models" in settings:
        return _averaged(settings["models"], settings.get("weights"))
    if "lora" not in settings:
        return None, None
    lora, quantization = carried(settings.get("model"))
    lora = lora if settings["lora"] is None else settings["lora"]
    if settings.get("quantization", "inherit") != "inherit":
        quantization = settings["quantization"]
    return lora, None if lora is None else quantization


def _averaged(
    models: Sequence[Model], weights: list[float] | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What the average of such models carries: one adapter where `weights.joinable` will say so."""
    shares = weights or [1.0] * len(models)
    used = [model for model, share in zip(models, shares, strict=False) if share]
    parts = [carried(model) for model in used]
    blocks = [lora for lora, _ in parts if lora is not None and lora.keys() - ADDS_UP <= {WHOLE}]
    if not used or len(blocks) < len(used):
        return None, None
    kept = [
        (root(model), bits, lora.get(WHOLE))
        for model, (_, bits), lora in zip(used, parts, blocks, strict=True)
    ]
    if any(each != kept[0] for each in kept):
        return None, None
    return joint(blocks, sum(map(_most, blocks))), parts[0][1]


def joint(blocks: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
    """The `lora:` of the one adapter of this rank that plain adapters add up to.

    Where they are on different modules it is on those of all, as far as their blocks say which.
    """
    kept = [{key: block[key] for key in (*PLACES, WHOLE) if key in block} for block in blocks]
    found = kept[0]
    if any(each != found for each in kept):
        named = [block.get("target_modules") for block in blocks]
        found = {key: value for key, value in found.items() if key == WHOLE}
        if all(isinstance(modules, list) for modules in named):
            found["target_modules"] = sorted({name for modules in named for name in modules or ()})
        else:
            found["target_modules"] = "all-linear"
    return {"r": rank, "lora_alpha": rank, **found}


def _most(block: dict[str, Any]) -> int:
    """The largest rank of an adapter; one that began in the base's weights is saved with twice."""
    rank: int = max([block.get("r", 8), *(block.get("rank_pattern") or {}).values()])
    return 2 * rank if moves_base(block) else rank


def root(model: Model | None) -> Base | None:
    """The model from outside that a chain of stages began with; None where it began with none."""
    while model is not None and isinstance(model.stage, Stage):
        settings = dict(model.stage)
        model = settings.get("model") or next(iter(settings.get("models", ())), None)
    return None if model is None else describe(model).base


def unfoldable(model: Model | None) -> str | None:
    """Why an adapter cannot be folded into a model's weights, nor these be averaged."""
    base = root(model)
    method = headers.quantized(base) if base else None
    if base is None or method is None:
        return None
    return (
        f"The base, {base.path}, is quantized ({method}): what is added to its weights would be "
        "rounded away. Keep base and adapter apart, or start from the model that it was made from."
    )


def misfits(base: Base) -> Problems:
    """What is wrong with an adapter that a recipe names by its directory, against its own base."""
    home = headers.folder(base)
    if home is None or not is_adapter(home):
        return
    try:
        about = describe(Model(home, spec={"base": base.model_dump(), "quantization": None})).base
        weights = headers.tensors(home)
    except StageFailed as failure:
        yield "path", str(failure)
        return
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        yield "path", f"The weights in {home} cannot be read: {error}. Copy them again."
        return
    if wrong := list(_rank(home, weights)):
        yield from wrong
        return
    there = headers.modules(about)
    if there is None:
        return
    for module, sides in _trained(weights).items():
        if module.rpartition(".")[2] in HEADS[:2]:
            continue
        if module not in there:
            message = f"{base.path} has weights for {module}, which its base {about.path} lacks"
            yield "path", f"{message}: it is an adapter of another model. {_REBASE.format(home)}"
            return
        if there[module] and sorted(sides) != sorted(there[module]):
            message = f"{base.path} is made for a {module} of {sides}, and its base {about.path}"
            yield "path", f"{message} has one of {there[module]}. {_REBASE.format(home)}"
            return
    yield from _vocabulary(home, about, weights)


_REBASE = "Write the model it was trained on into {}/adapter_config.json."


def _rank(home: Path, weights: Shapes) -> Problems:
    """The rank that an adapter's configuration says must be that of its weights."""
    config = adapter_config(home)
    patterns = config.get("rank_pattern") or {}
    for name, shape in weights.items():
        module, _, part = name.removeprefix("base_model.model.").partition(".lora_")
        if not part.startswith(("A", "embedding_A")) or config.get("target_parameters"):
            continue
        own = (r for key, r in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
        said = next(own, config.get("r", 8))
        if said != shape[0]:
            yield (
                "path",
                f"{home}/adapter_config.json says rank {said!r} of {module}, and the weights there "
                f"have {shape[0]}. Copy both again from where they were trained.",
            )
            return


def _trained(weights: Shapes) -> Shapes:
    """Module -> (outputs, inputs) of the matrix that B A adds to, or of the one saved whole."""
    found: Shapes = {}
    for name, shape in weights.items():
        module, _, part = name.removeprefix("base_model.model.").partition(".lora_")
        if not part and len(shape) == 2:
            found[module.removesuffix(".weight")] = shape
        elif part.startswith(("A", "embedding_A")) and name.replace("_A", "_B") in weights:
            found[module] = (weights[name.replace("_A", "_B")][0], shape[1])
    return found


def _vocabulary(home: Path, about: Base, weights: Shapes) -> Problems:
    """An adapter's own tokenizer must not know more tokens than its base has rows for."""
    rows = headers.config(about).get("vocab_size")
    own = any("embed_tokens" in name for name in weights)
    known = headers.tokens(home)
    if not own and rows is not None and known > rows:
        yield (
            "path",
            f"The tokenizer in {home} has {known} tokens, and the base {about.path} {rows}: it is "
            f"another model's. Remove the tokenizer files there, or name the right base.",
        )


# -- quantization --------------------------------------------------------------------------------


def _one_quantization(quantization: dict[str, Any]) -> Problems:
    asked = [key for key in ("load_in_4bit", "load_in_8bit") if quantization.get(key)]
    if len(asked) == 2:
        yield "quantization", "load_in_4bit and load_in_8bit exclude each other. Keep one."
    elif not asked:
        yield (
            "quantization",
            "It quantizes nothing. Say `load_in_4bit: true` or `load_in_8bit: true`.",
        )
    for key, known in TYPES.items():
        if quantization.get(key) not in (None, *known):
            yield (
                f"quantization.{key}",
                f"bitsandbytes has no {quantization[key]}. Take one of: {', '.join(known)}.",
            )


def _quantized_training(stage: Any, quantization: dict[str, Any]) -> Problems:
    fact = "TRL trains bfloat16 weights on a quantized model"
    if stage.trainer.get("bf16") is False or stage.trainer.get("fp16"):
        key = "fp16" if stage.trainer.get("fp16") else "bf16"
        yield f"trainer.{key}", f"{fact}, which needs bf16. Leave `{key}` out."


def _values(lora: dict[str, Any]) -> Problems:
    """Values of the right type that no adapter can have."""
    if lora.get("target_modules") in ([], ""):
        yield (
            "lora.target_modules",
            "It names no module. Name some, or `all-linear`, or leave it out.",
        )
    for key, rank in {"r": lora.get("r", 8), **lora.get("rank_pattern", {})}.items():
        if rank < 1:
            where = "r" if key == "r" else "rank_pattern"
            yield f"lora.{where}", f"The rank of an adapter is at least 1, and {key} is {rank}."
    for key, alpha in {
        "lora_alpha": lora.get("lora_alpha", 8),
        **lora.get("alpha_pattern", {}),
    }.items():
        if alpha <= 0:
            where = "lora_alpha" if key == "lora_alpha" else "alpha_pattern"
            yield f"lora.{where}", f"With {key} {alpha} the adapter adds nothing. Give it a scale."
    if not 0 <= (dropout := lora.get("lora_dropout", 0.0)) < 1:
        yield "lora.lora_dropout", f"A share from 0 to below 1 is dropped, and this is {dropout}."
    word = lora.get("init_lora_weights")
    if isinstance(word, str) and not re.fullmatch(r"pissa_niter_\d+", word) and word not in INITS:
        hint = nearest(word, INITS) or f" There are: {', '.join(INITS)}."
        yield "lora.init_lora_weights", f'PEFT knows no first weights "{word}".{hint}'


def _inits(lora: dict[str, Any], quantization: dict[str, Any]) -> Problems:
    """First weights of an adapter that cannot be had here."""
    asked = lora.get("init_lora_weights", True)
    problem = ""
    if asked in NEED_DATA:
        problem = (
            "needs data or a quantization of its own first. Take pissa_niter_16, or leave it out"
        )
    elif not asked:
        asked = "false"
        problem = "begins with noise on the model, which is then no longer itself. Leave it out"
    elif quantization and asked not in (True, "gaussian"):
        problem = "is made of the base's own weights. Leave it out, or set `quantization: null`"
    elif lora.get("use_dora") and moves_base(lora):
        problem = "with DoRA cannot be saved for the base as it is. Leave one of the two out"
    if problem:
        yield "lora.init_lora_weights", f'"{asked}" {problem}.'
    if lora.get("use_dora") and quantization.get("load_in_8bit"):
        yield (
            "lora.use_dora",
            "bitsandbytes 0.50 loses the scale of 8-bit weights once DoRA has read them. Take "
            "load_in_4bit, or leave use_dora out.",
        )

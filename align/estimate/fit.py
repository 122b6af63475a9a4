"""The smallest change of a recipe with which a stage fits a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from align import launch, recipe, records
from align.artifacts import Model, RewardModel
from align.errors import RecipeError, StageFailed
from align.estimate import totals
from align.estimate.anatomy import Anatomy, anatomy
from align.generation.decoding import ROWS
from align.settings import Stage
from align.shapes import Unknown

if TYPE_CHECKING:
    from align.recipe import Plan, Planned

Change = dict[str, Any]
"""Keys of a stage, `trainer.optim` for one inside a block, with their new values."""

LORA = {"r": 16, "target_modules": "all-linear"}
NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}

PROFILE = "recipes/launch/fsdp2.yaml"

SHORTEST = 512
"""Tokens below which `max_length` is not lowered: most of a data set would be dropped."""


def smallest(plan: Plan, planned: Planned, memory: float) -> tuple[list[str], float] | None:
    """The overrides that make a stage fit so many bytes, and what it takes then.

    Each way is tried alone, then together with all before it, and those first that change the
    result least. What of it is not needed is left out. None: nothing makes it fit.
    """
    for change in _changes(planned, memory):
        taken = _checked(plan, planned, change, memory)
        if taken is None:
            continue
        for key in reversed(list(change)):
            fewer = {other: value for other, value in change.items() if other != key}
            less = _checked(plan, planned, fewer, memory)
            if less is not None:
                change, taken = fewer, less
        return _overrides(planned, change), taken
    return None


def remedy(planned: Planned) -> str:
    """What to do where nothing that is tried makes a stage fit, and in which stage."""
    use, what = planned.record["use"], planned.stage
    if use in totals.CONFIGS or use == "merge":  # 4-bit was tried, or is not kept by merging
        return "take a smaller model"
    held = {model: _held(model) for model in records.consumed(what) if isinstance(model, Model)}
    largest = max(held, key=lambda model: sum(held[model].parts.values()))
    made, maker = held[largest], largest.stage
    if not isinstance(maker, Stage):
        return "take a smaller model" + ("" if made.quantization else ", or one on 4-bit weights")
    said = f"the largest model is made by {largest.name}: "
    settings = dict(maker)
    adapts = made.lora and "quantization" in settings and not launch.shards(settings)
    if adapts and not made.quantization:
        return f"{said}quantize it there"
    return f"{said}make a smaller one there"


def _held(model: Model) -> Anatomy:
    """A model as it is held where it is used: reward models score in float32."""
    made = anatomy(model)
    scores = isinstance(model, RewardModel) and not made.quantization
    return replace(made, width=4) if scores else made


def _checked(plan: Plan, planned: Planned, change: Change, memory: float) -> float | None:
    """What a stage takes with a change, read as a whole recipe; None: too much, or it cannot be."""
    try:
        peak = totals.stage(_changed(planned, change)).peak
        if peak is None or peak > memory:
            return None
        read = recipe.read(plan.path, [*plan.overrides, *_overrides(planned, change)], plan.store)
    except (RecipeError, StageFailed):  # as rows that the devices cannot share equally
        return None
    peak = totals.stage(read.stages[planned.name]).peak
    return peak if peak is not None and peak <= memory else None


def _overrides(planned: Planned, change: Change) -> list[str]:
    return [f"stages.{planned.name}.{key}={_yaml(value)}" for key, value in change.items()]


def _changed(planned: Planned, change: Change) -> Planned:
    update: Change = {}
    for key, value in change.items():
        block, _, inner = key.partition(".")
        if inner:
            value = {**update.get(block, getattr(planned.stage, block)), inner: value}
        update[block] = value
    return replace(planned, stage=planned.stage.model_copy(update=update))


def _changes(planned: Planned, memory: float) -> Iterator[Change]:
    """Changes to try, in order."""
    use, what = planned.record["use"], planned.stage
    if use in ("sample", "evaluate", "ghost", "probe"):
        rows: int = what.rows or ROWS  # type: ignore[attr-defined]
        yield from ({"rows": rows >> halved} for halved in range(1, rows.bit_length()))
    if use not in totals.CONFIGS:
        return
    try:
        ways = list(_ways(what, use))
    except Unknown:
        return
    before: Change = {}
    for way in ways:
        yield from way
        if before:
            yield from ({**before, **change} for change in way)
        before |= way[-1] if way else {}
    yield from _devices(planned.stage, use)


def _ways(what: Any, use: str) -> Iterator[Sequence[Change]]:
    """Ways to take less memory, each with its steps, from those that change the result least."""
    step, trainer = totals.step(what, use), what.trainer
    processes = launch.processes({"launch": what.launch})
    share = what.batch_size // processes
    micro = step.sequences // (2 if use in ("dpo", "reward_model") else 1)
    fewer = [n for n in range(micro - 1, 0, -1) if share % n == 0]
    yield [{"trainer.per_device_train_batch_size": n} for n in fewer]
    if not step.checkpointing:
        yield [{"trainer.gradient_checkpointing": True}]
    small = [name for name in ("adamw_8bit", "paged_adamw_8bit") if name != step.optim]
    if not step.optim.startswith("paged") and not launch.shards({"launch": what.launch}):
        yield [{"trainer.optim": name} for name in small]
    if "lora" in type(what).model_fields:
        if step.lora is None:
            yield [{"lora": LORA}]
        if step.quantization is None and step.spread.weights == 1:
            yield [{"quantization": NF4} if step.lora else {"lora": LORA, "quantization": NF4}]
    lengths, length = [], step.length // 2
    while length >= SHORTEST and not trainer.get("packing"):
        lengths.append({"trainer.max_length": length})
        length //= 2
    yield lengths


def _devices(what: Any, use: str) -> Iterator[Change]:
    """Weights, gradients and states shared out by FSDP, which wants torch's own optimizer."""
    step, now = totals.step(what, use), launch.processes({"launch": what.launch})
    if step.quantization or step.spread.gathers or "adamw_torch" not in step.optim:
        return
    least = {"trainer.per_device_train_batch_size": 1, "trainer.gradient_checkpointing": True}
    for number in (2, 4, 8, 16, 32, 64):
        if number > now and what.batch_size % number == 0:
            more = {"launch": {"config_file": PROFILE, "num_processes": number}}
            yield more
            yield {**more, **least}


def _yaml(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)

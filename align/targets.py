"""The modules that `lora:` names, against those there are; nothing heavy is imported."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from typing import Any

from align.headers import Shapes
from align.options import nearest

Problems = Iterator[tuple[str, str]]
"""(key, message), as a stage's `check` yields them."""

HEADS = ("score", "classifier", "lm_head")
"""Modules that a model has or lacks with its head. PEFT saves a reward model's in any case."""


def moves_base(lora: dict[str, Any]) -> bool:
    """Whether a new adapter takes its first weights out of the base's: PiSSA and OLoRA do.

    Until it is saved, the base without the adapter is then not the base (arXiv 2404.02948, §3).
    """
    return str(lora.get("init_lora_weights", "")).lower().startswith(("pissa", "olora"))


def targets(lora: dict[str, Any], modules: Shapes, *, head: bool) -> Problems:
    """What is wrong with the modules that `lora:` names, against those there are."""
    matrices = {name: shape for name, shape in modules.items() if len(shape) in (0, 2)}
    layered = [name for name in matrices if re.search(r"\.\d+\.", name)]
    short = sorted({name.rpartition(".")[2] for name in layered})
    asked = lora.get("target_modules") or []
    hit: set[str] = set()
    if str(asked).lower() == "all-linear":
        hit.update(layered)
    elif isinstance(asked, str):
        yield from _by_pattern(asked, matrices, short, hit)
    else:
        for name in asked:
            found = _named(name, matrices)
            hit.update(found)
            if not found and not (head and name in HEADS):
                hint = nearest(name, short) or f" There are: {', '.join(short)}."
                yield "lora.target_modules", f'The base has no linear layer "{name}".{hint}'
    if hit and not (hit := _kept(hit, lora.get("exclude_modules") or [])):
        message = "It leaves no module of those that target_modules names. Name fewer."
        yield "lora.exclude_modules", message
    if "lm_head" in hit and not head:
        yield (
            "lora.target_modules",
            "TRL reads lm_head's own weights, so an adapter on it would not be trained. Leave it "
            "out, or train it whole: `modules_to_save: [lm_head]`.",
        )
    yield from _too_large(lora, {name: matrices[name] for name in hit})
    yield from _layers(lora, layered)
    for name in lora.get("modules_to_save") or ():
        if name not in HEADS and not any(f".{name}." in f".{other}." for other in modules):
            names = {part for other in modules for part in other.split(".") if not part.isdigit()}
            yield (
                "lora.modules_to_save",
                f'The base has no module "{name}".{nearest(name, names)}',
            )


def _named(name: str, modules: Collection[str]) -> list[str]:
    return [other for other in modules if other == name or other.endswith(f".{name}")]


def _by_pattern(pattern: str, matrices: Shapes, short: list[str], hit: set[str]) -> Problems:
    """PEFT reads a single string as a regular expression for a module's whole name."""
    try:
        hit.update(name for name in matrices if re.fullmatch(pattern, name))
    except re.error as error:
        message = f'"{pattern}" is no regular expression ({error}). Write a list of names.'
        yield "lora.target_modules", message
        return
    if hit:
        return
    message = f'No linear layer of the base has a name that "{pattern}" matches as a whole'
    if _named(pattern, matrices):
        yield "lora.target_modules", f"{message}. Write a list: [{pattern}]."
    else:
        example = min((name for name in matrices if name.endswith(tuple(short))), default="…")
        yield "lora.target_modules", f"{message}, as {example}. There are: {', '.join(short)}."


def _kept(hit: set[str], excluded: str | list[str]) -> set[str]:
    """What PEFT leaves of modules: a string is again a pattern for the whole name."""
    if isinstance(excluded, str):
        with contextlib.suppress(re.error):
            return {name for name in hit if not re.fullmatch(excluded, name)}
        return hit
    return hit.difference(*(_named(name, hit) for name in excluded))


def _too_large(lora: dict[str, Any], hit: Shapes) -> Problems:
    """PiSSA and OLoRA have no more directions to give than a matrix has."""
    sides = {name: min(shape) for name, shape in hit.items() if shape}
    rank = lora.get("r", 8)
    if moves_base(lora) and sides and rank > min(sides.values()):
        name = min(sorted(sides), key=lambda each: sides[each])
        yield (
            "lora.r",
            f"{lora['init_lora_weights']} takes {rank} directions out of {name}, which has "
            f"{sides[name]}. Lower r, or leave init_lora_weights out.",
        )


def _layers(lora: dict[str, Any], layered: list[str]) -> Problems:
    asked = lora.get("layers_to_transform")
    wanted = {asked} if isinstance(asked, int) else set(asked or ())
    numbers = {int(re.findall(r"\.(\d+)\.", name)[0]) for name in layered}
    if missing := sorted(wanted - numbers):
        yield (
            "lora.layers_to_transform",
            f"The base has no layer {', '.join(map(str, missing))}: they go from 0 to "
            f"{max(numbers, default=0)}.",
        )

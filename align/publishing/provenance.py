"""A card's section on how a model was made: stages, data, versions, costs, the recipe."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from align.publishing import lineage, plain
from align.publishing.lineage import Data, Step
from align.publishing.markdown import code, fenced, folded, table, yaml
from align.reporting import facts
from align.reporting.lineage import LOST

if TYPE_CHECKING:
    from align.publishing.card import Subject

Entry = dict[str, Any]


def section(about: Subject) -> str:
    """Every stage with its settings, its data and what it took."""
    if not about.lineage.steps:
        return "Not known: it was pushed from a directory that no stage of a recipe made."
    return "\n\n".join(_parts(about))


def _parts(about: Subject) -> Iterator[str]:
    steps = about.lineage.steps
    yield _stages(steps)
    seconds = sum(step.about["seconds"] for step in steps)
    devices = dict.fromkeys(map(_device, steps))
    yield f"All stages took {facts.duration(seconds)} on {', '.join(devices)}, without evaluation."
    if data := lineage.data(about.lineage):
        yield "Data from outside:"
        yield table(["data", "part", "which", "read by"], _data(data))
    yield "Every stage with its settings:"
    yield "\n\n".join(_settings(step) for step in steps)
    yield f"### Once more\n\n{_recipe(steps[-1])}"


def _data(data: list[Data]) -> Iterator[list[str]]:
    """Every part of a file, or of a data set of the hub, once, with the stages that read it.

    Not the whole file: one part may be learnt from, and another only kept out of it.
    """
    same: dict[tuple[str, str, str], list[Data]] = {}
    for one in data:
        same.setdefault((one.name, one.part, one.version), []).append(one)
    for (name, part, version), several in same.items():
        stages: dict[str, str] = {}  # which learn from it first
        for one in several:
            stages.setdefault(one.stage, f", {one.only}" if one.only else "")
        read = "; ".join(f"{code(stage)}{only}" for stage, only in stages.items())
        yield [code(name), part, version, read]


def _stages(steps: tuple[Step, ...]) -> str:
    rows = [
        [
            code(step.name),
            step.kind,
            ", ".join(code(name) for name in _inputs(step, steps)) or "outside",
            _counts(step, lost=False),
            _counts(step, lost=True) or "nothing",
            str(step.record["seed"]),
            facts.duration(step.about["seconds"]),
        ]
        for step in steps
    ]
    heads = ["stage", "kind", "from", "made of", "dropped, cut or changed", "seed", "time"]
    return table(heads, rows, (5, 6))


def _inputs(step: Step, steps: tuple[Step, ...]) -> Iterator[str]:
    names = {one.path.name: one.name for one in steps}
    return (names.get(key, key) for key in step.record["inputs"])


def _counts(step: Step, lost: bool) -> str:
    """Rows and tokens, or what became of others. No examples: they are people's texts."""
    return ", ".join(
        f"{count['n']:,} {re.sub(r'[._]', ' ', name.removeprefix('dropped.'))}"
        for name, count in step.about["counts"].items()
        if name.startswith((*LOST, "changed.")) == lost and (lost or "." not in name) and count["n"]
    )


def _device(step: Step) -> str:
    processes = step.about.get("world_size") or 1
    device = str(step.about["device"])
    return device if processes == 1 else f"{processes} × {device}"


def _settings(step: Step) -> str:
    about = step.about
    libraries = {n: version for n, version in about["versions"].items() if version != "absent"}
    versions = ", ".join(f"{name} {version}" for name, version in libraries.items())
    use = {} if step.record["use"] == step.name else {"use": step.record["use"]}
    block = {step.name: {**use, **plain.settings(step.record["settings"])}}
    facts_ = f"{code(step.path.name)}, made {about['made_at']} on {_device(step)}, by {versions}."
    kind = "" if step.kind == step.name else f" ({step.kind})"
    return folded(f"{step.name}{kind}", f"{facts_}\n\n{fenced(yaml(block), 'yaml')}")


def _recipe(step: Step) -> str:
    found = lineage.text(step)
    if isinstance(found, str):
        return (
            f"{found} The settings above, one block under the other below `stages:`, are a recipe "
            "that makes the same."
        )
    text, overrides = found
    sets = [word for setting in overrides for word in ("--set", setting)]
    command = shlex.join(["align", "run", "recipe.yaml", *sets])
    return (
        f"`{command}` with this recipe makes it again; of paths and addresses it has the last "
        "parts alone.\n\n" + folded("recipe.yaml", fenced(text, "yaml"))
    )

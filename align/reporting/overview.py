"""What `align plan` prints: every stage as a row, and what is worth knowing about the whole."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from align import glance, store
from align.estimate import costs
from align.reporting import facts

if TYPE_CHECKING:
    from align.recipe import Plan


def show(plan: Plan, asked: str, memory: float | None) -> Iterator[str]:
    """A plan as a table, and what is worth knowing about it, in lines."""
    from align import versions

    taken = costs.Costs(plan)
    names = {stage.artifact.key: name for name, stage in plan.stages.items()}
    head = ("stage", "kind", "makes", "from", "state", *costs.HEAD, "directory")
    rows: list[tuple[str, ...]] = [head]
    words = {"done": "done", "absent": "to do", "partial": "half done", "running": "running"}
    done, older = 0, []
    for name, stage in plan.stages.items():
        state = store.state(stage.artifact.path)
        made = type(stage.artifact).__name__
        inputs = [names.get(artifact.key, artifact.key) for artifact in stage.inputs]
        stopped = state == "done" and stage.stage.verdict(stage.artifact.path)
        word = "stopped (gate)" if stopped else words[state]
        about = (name, stage.kind, made, ", ".join(inputs), word)
        rows.append((*about, *taken.cells(name), stage.artifact.key))
        if state == "done":
            done += 1
            differing = versions.differing(store.manifest(stage.artifact.path))
            said = [f"{library} {then} (now {now})" for library, (then, now) in differing.items()]
            if said:
                older.append(f"  {name}: {', '.join(said)}")
    yield f"{plan.path}, seed {plan.seed}, store {plan.store}\n"
    yield from _table(rows)
    if older:
        yield "\nmade by other versions (--again makes them anew):"
        yield from older
    notes = {"data": list(_forms(plan)), "not checked": plan.not_checked}
    for title, lines in (notes | {"estimates": taken.notes()}).items():
        if lines:
            yield f"\n{title}:"
            yield from (f"  {line}" for line in lines)
    if memory is not None:
        yield ""
        yield from taken.fits(memory)
    left = len(plan.stages) - done
    again = f" Next: {facts.command(plan, asked)}" if left else ""
    yield f"\n{done} of {len(plan.stages)} stages are done.{again}"


def _forms(plan: Plan) -> Iterator[str]:
    """What the rows of local files are taken for."""
    for name, planned in plan.stages.items():
        for key, source, wanted in glance.sources(planned.stage, type(planned.artifact)):
            if words := glance.form_of(source, wanted, any_file=False):
                yield f"{name}.{key.partition('.')[0]}, {source.path}: {words}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    rows = [tuple(textwrap.shorten(cell, 36, placeholder=" …") for cell in row) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines

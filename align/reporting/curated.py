"""The report's section on curated data: which rule removed how many rows, and some of them."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Any

from align.reporting import drawing, facts

if TYPE_CHECKING:
    from align.recipe import Plan, Planned

Entry = dict[str, Any]

REMOVED = "removed.jsonl"
"""In an artifact: the rows that rules took out, `id`, `reason`, `facts`, `said`."""

DROPPED, CHANGED = "dropped.", "changed."

MOST = 300
"""Letters of a fact that are shown."""


def told(plan: Plan) -> set[tuple[str, str]]:
    """The stages and counts that are in this section."""
    return {
        (one.name, f"{DROPPED}{reason}")
        for one in _stages(plan)
        for source in facts.metrics(one)["sources"]
        for reason in source["dropped"]
    }


def section(plan: Plan) -> str:
    """Every such stage: rows in and out, by rule and by source, and what was changed."""
    parts = [_stage(one) for one in _stages(plan)]
    return f'<h2 id="curated">Curated data</h2>{"".join(parts)}' if parts else ""


def _stages(plan: Plan) -> list[Planned]:
    return [one for one in facts.made(plan) if (one.artifact.path / REMOVED).is_file()]


def _stage(one: Planned) -> str:
    counts, metrics = facts.manifest(one)["counts"], facts.metrics(one)
    read, sources = metrics["read"]["rows"], metrics["sources"]
    each = Counter[str]()
    for source in sources:
        each.update(source["dropped"])
    parts = [
        f"<h3>{escape(one.name)}</h3><p>Of {read:,} rows {_kept(metrics)} are kept: "
        f"{metrics['kept']['words']:,} of {metrics['read']['words']:,} words.</p>"
    ]
    if each:
        rows = [
            [_words(reason), f"{n:,}", _bar(n / read), _examples(counts, f"{DROPPED}{reason}")]
            for reason, n in each.most_common()
        ]
        parts.append(drawing.table(["removed by", "rows", "of all", ""], rows, numbers=(1,)))
    if len(sources) > 1:
        rows = [
            [escape(source["source"]), f"{source['read']['rows']:,}", _kept(source)]
            for source in sources
        ]
        parts.append(drawing.table(["source", "rows", "kept"], rows, numbers=(1, 2)))
    changed = [
        [_words(name.removeprefix(CHANGED)), f"{count['n']:,}", _examples(counts, name)]
        for name, count in counts.items()
        if name.startswith(CHANGED)
    ]
    if changed:
        parts.append(drawing.table(["changed", "n", ""], changed, numbers=(1,)))
    return "".join(parts)


def _kept(about: Entry) -> str:
    """`812 (81.2%)`, of a stage or a source."""
    kept, read = about["kept"]["rows"], about["read"]["rows"]
    return f"{kept:,} ({kept / read:.1%})" if read else "0"


def _words(reason: str) -> str:
    return escape(reason.replace("_", " "))


def _bar(share: float) -> str:
    return f'<span class="bar" style="width:{10 * share:.2f}rem"></span>&nbsp;{share:.1%}'


def _examples(counts: Entry, name: str) -> str:
    examples = counts.get(name, {}).get("examples", ())
    shown = "".join(f'<div class="code">{_told(example)}</div>' for example in examples)
    return f"<details><summary>examples</summary>{shown}</details>" if examples else ""


def _told(example: Any) -> str:
    """What is known of an example, each with its name; what is long is cut."""
    if not isinstance(example, dict):
        return escape(facts.short(str(example), MOST))
    return ", ".join(
        f'<span class="soft">{_words(str(name))}</span> {escape(facts.short(str(value), MOST))}'
        for name, value in example.items()
    )

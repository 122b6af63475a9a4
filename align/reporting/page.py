"""`report.html`: one file that opens offline, light, dark or printed, without scripts.

It is made for a person who has two minutes: the words first, then the picture, the numbers, and
further down what they rest on.
"""

from __future__ import annotations

import json
import re
from html import escape
from typing import TYPE_CHECKING, Any

from align.reporting import (
    chain,
    costs,
    curated,
    drawing,
    facts,
    gains,
    gates,
    lengths,
    lineage,
    plots,
    scores,
    summary,
)
from align.reporting.style import STYLE
from align.visible import visible

if TYPE_CHECKING:
    from align.recipe import Plan

Entry = dict[str, Any]


def render(report: Entry, plan: Plan) -> str:
    """The whole page."""
    return visible(_render(report, plan))


def _render(report: Entry, plan: Plan) -> str:
    written = lengths.answers(plan)
    parts = [
        chain.section(report, plan),
        scores.table(report),
        scores.gained(report),
        gates.section(report, plan),
        gains.section(facts.made(plan), report),
        lengths.section(plan, written),
        curated.section(plan),
        _training(plan),
        costs.section(plan),
        lineage.dropped(report, curated.told(plan)),
        lineage.asked(report),
        lineage.overlap(report),
        lineage.section(report, plan),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report['recipe'])}</title><style>{STYLE}</style></head>\n<body>\n"
        f"<header>{_head(report)}</header>\n<main>{summary.section(report, plan, written)}\n"
        f"{_contents(body)}\n{body}\n</main></body></html>\n"
    )


def _head(report: Entry) -> str:
    stages = report["stages"]
    made = [stage for stage in stages if stage["seconds"] is not None]
    seconds = sum(stage["seconds"] for stage in made)
    devices = sorted({stage["device"] for stage in made if stage["device"]})
    status = escape(report["status"])
    return (
        f'<h1>{escape(report["recipe"])} <span class="{status}">{status}</span></h1>'
        f'<p class="soft">{len(made)} of {len(stages)} stages made, in {facts.duration(seconds)} '
        f"of work{' on ' + escape(', '.join(devices)) if devices else ''}.</p>"
    )


def _contents(body: str) -> str:
    """Links to the sections that there are."""
    found = re.findall(r'<h2 id="(\w+)">([^<]+)</h2>', body)
    links = " ".join(f'<a href="#{name}">{title}</a>' for name, title in found)
    return f"<nav>{links}</nav>"


_CURVES = (
    ("loss", ("loss", "eval_loss")),
    ("accuracy", ("rewards/accuracies", "accuracy", "eval_accuracy", "eval_rewards/accuracies")),
    ("margin", ("rewards/margins", "margin", "eval_rewards/margins")),
)


def _training(plan: Plan) -> str:
    charts = []
    for one in facts.made(plan):
        file = one.artifact.path / "metrics.jsonl"
        said = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        logged = [entry for entry in map(json.loads, said) if "step" in entry]
        for title, names in _CURVES:
            series = {
                name: [
                    (float(e["step"]), float(e[name])) for e in logged if e.get(name) is not None
                ]
                for name in names
            }
            series = {name: points for name, points in series.items() if len(points) > 1}
            if series:
                caption = f'{escape(one.name)} <span class="soft">{title}</span>'
                drawn = plots.lines(series, "step", f"{one.name}: {title} by step")
                charts.append(drawing.figure(caption, drawn))
    if not charts:
        return ""
    return f'<h2 id="training">Training</h2><div class="grid small">{"".join(charts)}</div>'

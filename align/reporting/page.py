"""`report.html`: one file that opens offline, light or dark, without scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.reporting import drawing, gains
from align.reporting.wording import (
    adjusted,
    gate_sentence,
    interval,
    main_metrics,
    p_value,
    than,
    verdict,
)

if TYPE_CHECKING:
    from align.recipe import Plan, Planned

Entry = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #667085; --line: #d9dee6; --paper: #fff;
  --panel: #f6f7f9; --good: #0a7d4b; --bad: #b42318; --c0: #2563c9; --c1: #c2540a; --c2: #12805c;
  --c3: #8b3fb5; --c4: #b3261e; --c5: #5b6472; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #98a2b3; --line: #333b47;
  --paper: #14181e; --panel: #1c222b; --good: #4cc38a; --bad: #ff8a80; --c0: #7aa9ff; --c1: #ffab5e;
  --c2: #5fd3a5; --c3: #d29bf0; --c4: #ff8a80; --c5: #a7b0bd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; } .soft { color: var(--soft); }
table { border-collapse: collapse; font-size: .86rem; }
th, td { text-align: left; padding: .28rem .9rem .28rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll { overflow-x: auto; }
.better, .passed, .done { color: var(--good); font-weight: 600; }
.worse, .failed, .stopped { color: var(--bad); font-weight: 600; }
.tied, .inconclusive, .interrupted, .incomplete { color: var(--soft); font-weight: 600; }
.grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(25rem, 100%), 1fr)); }
figure { margin: 0; background: var(--panel); border-radius: 8px; padding: .8rem 1rem .6rem; }
figcaption { font-weight: 600; font-size: .9rem; } figcaption .soft { font-weight: 400; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, "DejaVu Sans", sans-serif; }
svg text { fill: var(--ink); } svg .soft { fill: var(--soft); }
svg .rule { stroke: var(--line); stroke-width: 1; }
code, .code { font: .82rem ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
details { margin: .3rem 0; } summary { cursor: pointer; }
"""


def render(report: Entry, plan: Plan) -> str:
    """The whole page."""
    parts = [
        _head(report),
        _scores(report),
        _comparisons(report),
        _gates(report),
        gains.section(_made(plan), report),
        _training(plan),
        _dropped(report),
        _lineage(report, plan),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report['recipe'])}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _head(report: Entry) -> str:
    stages = report["stages"]
    made = [stage for stage in stages if stage["seconds"] is not None]
    seconds = sum(stage["seconds"] for stage in made)
    devices = sorted({stage["device"] for stage in made if stage["device"]})
    status = escape(report["status"])
    return (
        f'<h1>{escape(report["recipe"])} <span class="{status}">{status}</span></h1>'
        f'<p class="soft">{len(made)} of {len(stages)} stages made, in {_duration(seconds)} of work'
        f"{' on ' + escape(', '.join(devices)) if devices else ''}. Intervals are 95 %.</p>"
    )


# -- numbers -------------------------------------------------------------------------------------


def _scores(report: Entry) -> str:
    if not report["scores"]:
        return ""
    metrics = main_metrics(report)
    charts, rows = [], []
    for task, metric in metrics.items():
        mine = [s for s in report["scores"] if (s["task"], s["metric"]) == (task, metric)]
        caption = f'{escape(task)} <span class="soft">{escape(metric)}, n = {mine[0]["n"]}</span>'
        charts.append(drawing.figure(caption, drawing.intervals(mine)))
    for score in report["scores"]:
        cells = [score["task"], score["metric"], score["model"]]
        rows.append([*map(escape, cells), f"{score['n']:,}", interval(score, "mean")])
    table = drawing.table(["task", "metric", "model", "n", "mean [95 %]"], rows, numbers=(3, 4))
    return (
        f'<h2>Scores</h2><div class="grid">{"".join(charts)}</div>'
        f"<details><summary>All numbers</summary>{table}</details>"
    )


def _comparisons(report: Entry) -> str:
    if not report["comparisons"]:
        return ""
    metrics = main_metrics(report)
    main = [c for c in report["comparisons"] if metrics.get(c["task"]) == c["metric"]]
    rows = []
    for one, p in zip(main, adjusted(main), strict=True):
        word = verdict(one)
        rows.append(
            [
                f'{escape(one["model"])} is <span class="{word}">{word}</span> {than(one)} '
                f"{escape(one['against'])}",
                one["role"],
                escape(one["task"]),
                f"{one['n']:,}",
                interval(one, "delta", sign="+"),
                escape(p_value(p)),
            ]
        )
    heads = ["on the same items", "role", "task", "n", "difference [95 %]", "p (Holm)"]
    note = (
        '<p class="soft">Tied: the interval covers 0. Step: against the model it was trained from, '
        "or the one before; control: against the control of the same size. p is adjusted by Holm "
        "over all rows.</p>"
    )
    return f"<h2>Differences</h2>{note}{drawing.table(heads, rows, numbers=(3, 4, 5))}"


def _gates(report: Entry) -> str:
    items = []
    for gate in report["gates"]:
        word, _, rest = gate_sentence(gate).partition(":")
        items.append(f'<p><span class="{word}">{word}</span>{escape(":" + rest)}</p>')
    return f"<h2>Gates</h2>{''.join(items)}" if items else ""


# -- stages --------------------------------------------------------------------------------------


_CURVES = (
    ("loss", ("loss", "eval_loss")),
    ("accuracy", ("rewards/accuracies", "accuracy", "eval_accuracy", "eval_rewards/accuracies")),
    ("margin", ("rewards/margins", "margin", "eval_rewards/margins")),
)


def _training(plan: Plan) -> str:
    charts = []
    for one in _made(plan):
        file = one.artifact.path / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        logged = [entry for entry in map(json.loads, lines) if "step" in entry]
        for title, names in _CURVES:
            series = {
                name: [(float(e["step"]), float(e[name])) for e in logged if name in e]
                for name in names
            }
            series = {name: points for name, points in series.items() if len(points) > 1}
            if series:
                caption = f'{escape(one.name)} <span class="soft">{title}</span>'
                charts.append(drawing.figure(caption, drawing.lines(series, "step")))
    return f'<h2>Training</h2><div class="grid">{"".join(charts)}</div>' if charts else ""


def _dropped(report: Entry) -> str:
    rows = []
    for stage in report["stages"]:
        for name, count in (stage["counts"] or {}).items():
            if not name.startswith(("dropped.", "failed.", "cut")):
                continue
            examples = "".join(
                f'<div class="code">{escape(json.dumps(example, ensure_ascii=False))}</div>'
                for example in count.get("examples", ())
            )
            shown = f"<details><summary>examples</summary>{examples}</details>" if examples else ""
            reason = name.removeprefix("dropped.").replace("_", " ")
            if name.startswith("failed."):
                reason = f"{name.removeprefix('failed.')} fails"
            rows.append([escape(stage["name"]), escape(reason), f"{count['n']:,}", shown])
    if not rows:
        return ""
    table = drawing.table(["stage", "why", "n", ""], rows, numbers=(2,))
    return f"<h2>Dropped, cut or failed</h2>{table}"


def _lineage(report: Entry, plan: Plan) -> str:
    names = {one.artifact.key: one.name for one in plan.stages.values()}
    rows = []
    for stage, one in zip(report["stages"], plan.stages.values(), strict=True):
        sources = [names.get(source.key, source.key) for source in one.inputs]
        seconds = "not made" if stage["seconds"] is None else _duration(stage["seconds"])
        counts = {
            name: count["n"]
            for name, count in (stage["counts"] or {}).items()
            if "." not in name and name != "cut"
        }
        facts = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())
        rows.append(
            [
                escape(stage["name"]),
                escape(", ".join(sources)) or '<span class="soft">outside</span>',
                f'<span class="code">{escape(stage["key"])}</span>',
                seconds,
                escape(facts),
            ]
        )
    heads = ["stage", "from", "artifact", "time", "made"]
    return f"<h2>How it was made</h2>{drawing.table(heads, rows, numbers=(3,))}"


def _made(plan: Plan) -> Iterable[Planned]:
    return (one for one in plan.stages.values() if one.artifact.path.is_dir())


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _json(path: Path) -> Entry:
    found: Entry = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found

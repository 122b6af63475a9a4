"""The report's numbers: every task on every model, and what each stage gained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations
from typing import Any

from align import stats
from align.reporting import drawing, subsets
from align.reporting.wording import (
    SURE,
    adjusted,
    interval,
    is_subset,
    main_metrics,
    number,
    p_value,
    than,
    verdict,
)

Entry = dict[str, Any]

NAMED = 3
"""So many models that are tied with the best are named."""


@dataclass(frozen=True)
class Rivals:
    """Who may be the best in a task."""

    best: str
    """The model with the highest mean."""

    tied: list[str]
    """Those that it cannot be told from."""

    above: list[str]
    """Those that it can be told from, though their means are above one that is tied."""


COLOURS = {"step": "c0", "control": "c1", "asked": "c3"}


def table(report: Entry) -> str:
    """Tasks and models with intervals; the best is marked only where it really is."""
    rows = _rows(report)
    if not rows:
        return ""
    rivals = _rivals(rows, report["comparisons"])
    groups: dict[tuple[str, ...], list[str]] = {}
    for task, scores in rows.items():
        groups.setdefault(tuple(scores), []).append(task)
    parts = []
    for models, tasks in groups.items():
        heads = ["task", *(["in words"] if len(models) > 1 else []), "n", *models]
        body = [[*_cells(task, rows[task], rivals[task])] for task in tasks]
        parts.append(
            drawing.table(heads, body, numbers=range(len(heads) - 1 - len(models), len(heads)))
        )
    note = (
        "In brackets the 95 % interval. <b>Bold</b>: better than every other model in its row, "
        "with all pairs of models in all rows taken together (Holm, p &lt; 0.05). Other models "
        "that may be as good are called tied. Models that were compared item by item are told "
        "apart by smaller differences than others."
    )
    return (
        f'<h2 id="scores">Tasks and models</h2><p class="soft">{note}</p>{"".join(parts)}'
        f"{subsets.section(report, compared(report)[1])}{_all(report)}"
    )


def compared(report: Entry) -> tuple[subsets.Compared, subsets.Compared]:
    """The comparisons of main metrics with their adjusted p: of whole tasks, and of subsets.

    Each of the two is a family of its own: 57 subsets take nothing from what the whole says.
    """
    metrics = main_metrics(report)
    main = [one for one in report["comparisons"] if metrics.get(one["task"]) == one["metric"]]
    families = (
        [one for one in main if is_subset(one["task"], metrics) == part] for part in (False, True)
    )
    whole, parts = (list(zip(family, adjusted(family), strict=True)) for family in families)
    return whole, parts


def _rows(report: Entry) -> dict[str, dict[str, Entry]]:
    """By task, by model: the main metric's score. Subsets are not among them."""
    metrics, rows = main_metrics(report), dict[str, dict[str, Entry]]()
    for score in report["scores"]:
        if metrics[score["task"]] == score["metric"] and not is_subset(score["task"], metrics):
            rows.setdefault(score["task"], {})[score["model"]] = score
    return rows


def _rivals(rows: dict[str, dict[str, Entry]], comparisons: Sequence[Entry]) -> dict[str, Rivals]:
    """By task the models that may be the best.

    Where two models were compared item by item that p counts; for other pairs the intervals are
    taken for independent, which asks for more than pairing does.
    """
    paired = {
        (one["task"], one["metric"], frozenset((one["model"], one["against"]))): one["p"]
        for one in comparisons
    }
    pairs, values = [], []
    for task, scores in rows.items():
        for a, b in combinations(scores.values(), 2):
            pairs.append((task, frozenset((a["model"], b["model"]))))
            known = paired.get((task, a["metric"], pairs[-1][1]))
            values.append(_apart(a, b) if known is None else known)
    holm = dict(zip(pairs, stats.holm(values), strict=True))
    found = {}
    for task, scores in rows.items():
        best = max(scores.values(), key=lambda score: float(score["mean"]))["model"]
        others = [name for name in scores if name != best]
        tied = [name for name in others if holm[task, frozenset((best, name))] >= SURE]
        least = min((float(scores[name]["mean"]) for name in tied), default=math.inf)
        above = [n for n in others if n not in tied and float(scores[n]["mean"]) > least]
        found[task] = Rivals(best, tied, above)
    return found


def _apart(a: Entry, b: Entry) -> float:
    """Two-sided p that two means are equal, from their intervals (normal, independent)."""
    if a["ci_low"] is None or b["ci_low"] is None:
        return 1.0
    errors = [(one["ci_high"] - one["ci_low"]) / (2 * stats.Z) for one in (a, b)]
    scale = math.hypot(*errors)
    difference = abs(a["mean"] - b["mean"])
    if scale == 0:
        return float(difference == 0)
    return math.erfc(difference / scale / math.sqrt(2))


def _cells(task: str, scores: dict[str, Entry], rivals: Rivals) -> Iterator[str]:
    metric = next(iter(scores.values()))["metric"]
    yield f'{escape(task)} <span class="soft">{escape(metric)}</span>'
    if len(scores) > 1:
        yield f'<span class="words">{drawing.broken(_in_words(rivals, len(scores)))}</span>'
    counts = sorted({score["n"] for score in scores.values()})
    yield "–".join(f"{n:,}" for n in {counts[0]: 0, counts[-1]: 0})
    for model, score in scores.items():
        mean, _, ends = interval(score, "mean").partition(" ")
        if model == rivals.best and len(scores) > 1 and not rivals.tied:
            mean = f'<span class="best">{mean}</span>'
        yield f'{mean}<span class="ci">{ends}</span>'


def _in_words(rivals: Rivals, models: int) -> str:
    """Which of several models is the best, if one is."""
    best, tied, above = rivals.best, rivals.tied, rivals.above
    if not tied:
        return f"{best} is the best"
    if len(tied) == models - 1 > 1:
        return "all are tied"
    if len(tied) > NAMED:
        said = f"{best} is tied with {len(tied)} others"
    else:
        said = f"{', '.join([best, *tied])} are tied"
    if not above:
        return said
    between = ", ".join(above) if len(above) <= NAMED else f"{len(above)} others"
    return f"{said}; {between}, though between them, can be told from the first"


def _all(report: Entry) -> str:
    rows = [
        [
            *map(escape, (score["task"], score["metric"], score["model"])),
            f"{score['n']:,}",
            interval(score, "mean"),
        ]
        for score in report["scores"]
    ]
    found = drawing.table(["task", "metric", "model", "n", "mean [95 %]"], rows, numbers=(3, 4))
    return f"<details><summary>All numbers ({len(rows):,})</summary>{found}</details>"


def gained(report: Entry) -> str:
    """What each stage gained, item by item, against the step before it and its control."""
    metrics = main_metrics(report)
    main, _ = compared(report)
    if not main:
        return ""
    charts, rows = [], []
    for task in dict.fromkeys(one["task"] for one, _ in main):
        marks = [_mark(one, p) for one, p in main if one["task"] == task]
        about = f"{task}: paired differences with 95 % intervals"
        caption = f'{escape(task)} <span class="soft">{escape(metrics[task])}</span>'
        charts.append(drawing.figure(caption, drawing.dots(marks, about, zero=True)))
    for one, p in main:
        word = verdict(one)
        won = one.get("won")
        seen = one.get("detectable")
        rows.append(
            [
                f'{escape(one["model"])} is <span class="{word}">{word}</span> {than(one)} '
                f"{escape(one['against'])}",
                one["role"],
                escape(one["task"]),
                f"{one['n']:,}",
                interval(one, "delta", sign="+"),
                escape(p_value(p)),
                "" if won is None else f"{won:,} / {one['lost']:,}",
                "" if seen is None else number(seen),
            ]
        )
    heads = ["on the same items", "role", "task", "n", "difference [95 %]", "p (Holm)"]
    heads += ["won / lost", "detectable"]
    shown = [i for i in range(len(heads)) if i < 6 or any(row[i] for row in rows)]
    numbers = drawing.table(
        [heads[i] for i in shown], [[row[i] for i in shown] for row in rows], numbers=range(3, 8)
    )
    note = (
        '<span style="color:var(--c0)">●</span> step: against the model it was trained from, or '
        'the one before; <span style="color:var(--c1)">●</span> control: against the control of '
        'the same size; <span style="color:var(--c3)">●</span> asked for in the recipe. Tied: the '
        "interval covers 0. p is adjusted by Holm over all of these; alone: a difference by "
        "itself, none with all of these together. Detectable: the smallest true difference that "
        "would be seen in 80 % of such comparisons."
    )
    return (
        f'<h2 id="gained">What each stage gained</h2><p class="soft">{note}</p>'
        f'<div class="grid">{"".join(charts)}</div>'
        f"<details><summary>As a table</summary>{numbers}</details>"
    )


def _mark(one: Entry, p: float) -> drawing.Mark:
    word, shown = verdict(one), p_value(p)
    sure = p < SURE or word == "tied"
    return drawing.Mark(
        label=one["model"],
        value=one["delta"],
        low=one["ci_low"],
        high=one["ci_high"],
        below=f"− {one['against']}, {one['role']}",
        said=interval(one, "delta", sign="+"),
        more=f"{word if sure else word + ' alone'}, p {'' if '<' in shown else '= '}{shown}",
        colour=COLOURS.get(one["role"], "c5"),
        tone={"better": "good", "worse": "bad"}.get(word, "soft") if sure else "soft",
    )

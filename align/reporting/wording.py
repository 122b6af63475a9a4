"""A report in words: the table a run ends with, and who is better than whom."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from align import stats

Entry = dict[str, Any]

SURE = 0.05
"""Below this adjusted p a difference is called one."""

SUBSETS = 12
"""A task with more of them has its subsets in the report only."""


def main_metrics(report: Entry) -> dict[str, str]:
    """Every task's main metric: its first. Subsets are tasks called `task/subset`."""
    found: dict[str, str] = {}
    for score in report["scores"]:
        found.setdefault(score["task"], score["metric"])
    return found


def is_subset(task: str, tasks: Mapping[str, str]) -> bool:
    """Whether `task/subset` is a subset of one of the tasks."""
    return "/" in task and task.partition("/")[0] in tasks


def table(report: Entry) -> str:
    """The end of a run: every task on every model, the differences, the gates."""
    if not report["scores"]:
        return ""
    metrics = main_metrics(report)
    lines = ["95 % intervals in brackets, n is the number of items", *_scores(report, metrics)]
    main = [c for c in report["comparisons"] if metrics.get(c["task"]) == c["metric"]]
    whole = [c for c in main if not is_subset(c["task"], metrics)]
    parts = [c for c in main if is_subset(c["task"], metrics)]
    if whole:
        lines += ["", "On the same items, main metrics (p adjusted by Holm over all of these):"]
        lines += _aligned([_row(c, p) for c, p in zip(whole, adjusted(whole), strict=True)])
    moved = [(c, p) for c, p in zip(parts, adjusted(parts), strict=True) if p < SURE]
    if parts:
        head = (
            f"Comparisons of subsets: {len(moved)} of {len(parts)} differ (p adjusted over these)"
        )
        lines += ["", head + (":" if moved else ".")]
        lines += _aligned([_row(c, p) for c, p in moved])
    if report["gates"]:
        lines += ["", *(f"Gate {gate_sentence(gate)}" for gate in report["gates"])]
    return "\n".join(lines)


def _scores(report: Entry, metrics: dict[str, str]) -> list[str]:
    """The means of main metrics; of a task with many subsets only the whole."""
    by_task: dict[str, list[Entry]] = {}
    for score in report["scores"]:
        if metrics[score["task"]] == score["metric"]:
            by_task.setdefault(score["task"], []).append(score)
    subsets = Counter(task.partition("/")[0] for task in by_task if is_subset(task, metrics))
    # Tasks that the same models did are one table: reward models have their own.
    groups: dict[tuple[str, ...], list[str]] = {}
    for task, scores in by_task.items():
        if not is_subset(task, metrics) or subsets[task.partition("/")[0]] <= SUBSETS:
            groups.setdefault(tuple(score["model"] for score in scores), []).append(task)
    lines = []
    for models, tasks in groups.items():
        rows = [["", "", "n", *models]]
        for task in tasks:
            cells = [interval(score, "mean") for score in by_task[task]]
            rows.append([task, metrics[task], str(by_task[task][0]["n"]), *cells])
        lines += ["", *_aligned(rows)]
    many = [f"the {n} subsets of {task}" for task, n in subsets.items() if n > SUBSETS]
    lines += [f"Not shown, but in the report: {', '.join(many)}."] if many else []
    return lines + _more_samples(report, metrics)


def _more_samples(report: Entry, metrics: dict[str, str]) -> list[str]:
    """How much narrower intervals would be with many more answers per item, where there are some.

    Their width goes with the square root of the variance (Miller 2024, arXiv 2411.00640).
    """
    found: dict[str, float] = {}
    for score in report["scores"]:
        task, share = score["task"], score.get("sampling_share")
        if share is not None and metrics[task] == score["metric"] and not is_subset(task, metrics):
            found[task] = max(share, found.get(task, 0.0))
    return [
        f"With many more answers per item the intervals of {task} would be "
        f"{1 - math.sqrt(1 - share):.0%} narrower at most."
        for task, share in found.items()
    ]


def learners(overlap: Entry) -> str:
    """The models that items of a task are found in what they learnt from, with how many of them
    where not all are in each."""
    by = overlap.get("by", {})  # earlier versions had none
    whole = overlap["exact"] + overlap["partial"]
    counts = {
        name: by[name]["exact"] + by[name]["partial"] if name in by else whole
        for name in overlap["models"]
    }
    each = "" if {*counts.values()} <= {whole} else " ({:,})"
    return ", ".join(name + each.format(n) for name, n in counts.items())


def _row(comparison: Entry, p: float) -> list[str]:
    """A comparison as the cells of a line; `p` is the adjusted one."""
    return [
        f"  {comparison['model']} is {verdict(comparison)} {than(comparison)} "
        f"{comparison['against']}",
        f"({comparison['role']})",
        comparison["task"],
        interval(comparison, "delta", sign="+"),
        f"p = {p_value(p)}".replace("= <", "<"),
        doubt(comparison, p),
    ]


def doubt(comparison: Entry, p: float) -> str:
    """What to bear in mind: what a tie could not have seen; what is one finding among many."""
    if verdict(comparison) == "tied":
        least = comparison.get("detectable")
        seen = "" if not least else number(least)
        return f"a difference below {seen} would not have been seen" if seen else ""
    alone = comparison["p"]
    if alone is not None and alone >= SURE:
        return "the interval says so, and the exact test does not confirm it"
    return "taken alone: not with all of these together" if p >= SURE else ""


def verdict(comparison: Entry) -> str:
    """`better`, `worse`, or `tied`: the interval covers 0."""
    low, high = comparison["ci_low"], comparison["ci_high"]
    if low is None or low <= 0 <= high:
        return "tied"
    return "better" if low > 0 else "worse"


def than(comparison: Entry) -> str:
    """The word that goes with the verdict."""
    return "with" if verdict(comparison) == "tied" else "than"


def adjusted(comparisons: list[Entry]) -> list[float]:
    """Holm's p of comparisons that are looked at together."""
    return stats.holm([1.0 if c["p"] is None else c["p"] for c in comparisons])


def interval(entry: Entry, name: str, sign: str = "") -> str:
    """`0.612 [0.570, 0.652]`."""
    if entry["ci_low"] is None:
        return f"{number(entry[name], sign)} [?]"
    low, high = number(entry["ci_low"], sign), number(entry["ci_high"], sign)
    return f"{number(entry[name], sign)} [{low}, {high}]"


def p_value(p: float) -> str:
    """`0.03`; `< 0.0001` below that, where more digits say nothing."""
    return f"{p:.2g}" if p >= 0.0001 else "< 0.0001"


def number(value: float, sign: str = "") -> str:
    """Three decimals; more where they would all be 0, for which side of 0 it is on matters."""
    if value == 0 or abs(value) >= 0.001:
        return f"{value:{sign}.3f}"
    places = -math.floor(math.log10(abs(value)))
    return f"{value:{sign}.{places}f}" if places <= 6 else f"{value:{sign}.0e}"


def counted(n: int, noun: str) -> str:
    """`1 item`, `1,319 items`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def gate_sentence(gate: Entry) -> str:
    """A gate in plain words."""
    if gate.get("problem"):
        return (
            f"failed: {gate['task']} of {gate['model']} cannot be judged. {gate['problem']} "
            "Correct the gate: nothing is asked again."
        )
    what = f"{gate['task']} {gate['metric']} of {gate['model']}"
    if gate["against"] is not None:
        what += f" minus that of {gate['against']}"
    flipped = gate.get("flipped")
    items = ""
    if flipped:
        items = f" {counted(flipped['n_lost'], 'item')} lost, {flipped['n_won']:,} won."
    return (
        f"{gate['verdict']}: {what} is {interval(gate, 'value')}; the lower end must reach "
        f"{_bar(gate):g}.{items}{_enough(gate)}"
    )


def gate_lines(gate: Entry) -> list[str]:
    """A gate that stops a chain: the sentence, and the first items that were lost under it."""
    flipped = gate.get("flipped")
    examples = flipped["examples"] if flipped else []
    lines = [f"Gate {gate_sentence(gate)}"]
    lines += [f"  lost {example['id']}: {example['prompt']}" for example in examples]
    if flipped and flipped["n_lost"] > len(examples):
        lines.append("  The other ids are in report.json.")
    return lines


def _bar(gate: Entry) -> float:
    return float(gate["at_least"] if gate["against"] is None else 0 - gate["may_lose"])


def _enough(gate: Entry) -> str:
    """How many items would decide a gate that is inconclusive, if its value is the true one."""
    if gate["verdict"] != "inconclusive" or gate["ci_low"] is None:
        return ""
    far = gate["value"] - _bar(gate)
    half = gate["value"] - gate["ci_low"] if far > 0 else gate["ci_high"] - gate["value"]
    needed = gate["n"] * (half / far) ** 2 if far else math.inf
    if needed > 1000 * gate["n"]:
        return ""
    many = round(float(f"{needed:.2g}"))
    return f" If that is the true value, about {counted(many, 'item')} would decide."


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join(row).rstrip() for row in padded]

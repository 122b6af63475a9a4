"""A report in words: the table a run ends with, and who is better than whom."""

from __future__ import annotations

from typing import Any

from align import stats

Entry = dict[str, Any]


def main_metrics(report: Entry) -> dict[str, str]:
    """Every task's main metric: its first. Subsets are tasks called `task/subset`."""
    found: dict[str, str] = {}
    for score in report["scores"]:
        found.setdefault(score["task"], score["metric"])
    return found


def table(report: Entry) -> str:
    """The end of a run: every task on every model, the differences, the gates."""
    if not report["scores"]:
        return ""
    metrics = main_metrics(report)
    by_task: dict[str, list[Entry]] = {}
    for score in report["scores"]:
        if metrics[score["task"]] == score["metric"]:
            by_task.setdefault(score["task"], []).append(score)
    # Tasks that the same models did are one table: reward models have their own.
    groups: dict[tuple[str, ...], list[str]] = {}
    for task, scores in by_task.items():
        groups.setdefault(tuple(score["model"] for score in scores), []).append(task)
    lines = ["95 % intervals in brackets, n is the number of items"]
    for models, tasks in groups.items():
        rows = [["", "", "n", *models]]
        for task in tasks:
            cells = [interval(score, "mean") for score in by_task[task]]
            rows.append([task, metrics[task], str(by_task[task][0]["n"]), *cells])
        lines += ["", *_aligned(rows)]
    main = [c for c in report["comparisons"] if metrics.get(c["task"]) == c["metric"]]
    if main:
        lines += ["", "On the same items, main metrics (p adjusted by Holm over all of these):"]
        lines += _aligned(
            [
                [
                    f"  {c['model']} is {verdict(c)} {than(c)} {c['against']}",
                    f"({c['role']})",
                    c["task"],
                    interval(c, "delta", sign="+"),
                    f"p = {p_value(p)}".replace("= <", "<"),
                ]
                for c, p in zip(main, adjusted(main), strict=True)
            ]
        )
    if report["gates"]:
        lines += ["", *(f"Gate {gate_sentence(gate)}" for gate in report["gates"])]
    return "\n".join(lines)


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
        return f"{_number(entry[name], sign)} [?]"
    low, high = _number(entry["ci_low"], sign), _number(entry["ci_high"], sign)
    return f"{_number(entry[name], sign)} [{low}, {high}]"


def p_value(p: float) -> str:
    """`0.03`; `< 0.0001` below that, where more digits say nothing."""
    return f"{p:.2g}" if p >= 0.0001 else "< 0.0001"


def _number(value: float, sign: str) -> str:
    return f"{value:{sign}.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:{sign}.0e}"


def gate_sentence(gate: Entry) -> str:
    """A gate in plain words."""
    what = f"{gate['task']} {gate['metric']} of {gate['model']}"
    bar = gate["at_least"]
    if gate["against"] is not None:
        what += f" minus that of {gate['against']}"
        bar = 0 - gate["may_lose"]
    return (
        f"{gate['verdict']}: {what} is {interval(gate, 'value')}; the lower end must reach {bar:g}."
    )


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join(row).rstrip() for row in padded]

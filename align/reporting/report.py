"""The result on disk: `report.json`, `report.html`, and the table a run ends with.

`report.json` is written at every end of a run, good or bad:

    schema       1
    recipe       the recipe's name
    status       done, failed, stopped (a gate), interrupted, incomplete
    stages       name, kind, key, seconds, device, counts (null where it is not made)
    scores       model, task, metric, n, mean, ci_low, ci_high
    comparisons  model, against, role (step, control, asked), task, metric, n, delta, ci_low,
                 ci_high, p (not adjusted)
    gates        model, task, metric, against, may_lose, at_least, n, value, ci_low, ci_high,
                 verdict (passed, inconclusive, failed)

Models are called by their names in the recipe. Intervals are 95 %.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.artifacts import Report, RewardModel, read_json
from align.reporting import page
from align.reporting.wording import table as table

if TYPE_CHECKING:
    from align.recipe import Plan, Planned

Entry = dict[str, Any]

_SCORE = ("model", "task", "metric", "n", "mean", "ci_low", "ci_high")
_DIFFERENCE = ("model", "against", "role", "task", "metric", "n", "delta", "ci_low", "ci_high", "p")
HELD_OUT = "held-out pairs"
"""What a `reward_model` stage measures itself on, as a task."""


def write(plan: Plan, status: str = "") -> Path:
    """Write `runs/<recipe>/report.json` and `report.html` from what is made; the page's path.

    Without a status it is `done` or `incomplete`.
    """
    folder = plan.store / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    report = compose(plan, status)
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    _replace(folder / "report.json", text)
    _replace(folder / "report.html", page.render(report, plan))
    return folder / "report.html"


def compose(plan: Plan, status: str = "") -> Entry:
    """The content of `report.json`."""
    made = [one for one in plan.stages.values() if one.artifact.path.is_dir()]
    report: Entry = {
        "schema": 1,
        "recipe": plan.name,
        "status": status or ("done" if len(made) == len(plan.stages) else "incomplete"),
        "stages": [_stage(one) for one in plan.stages.values()],
        "scores": [],
        "comparisons": [],
        "gates": [],
    }
    names = {one.artifact.key: one.name for one in plan.stages.values()}
    for one in made:
        if isinstance(one.artifact, Report):
            found = read_json(one.artifact.path / "report.json")
            for key, wanted in (("scores", _SCORE), ("comparisons", _DIFFERENCE)):
                report[key] += [_picked(entry, wanted, names) for entry in found[key]]
            gates = [_named(gate, names) for gate in found["gates"]]
            report["gates"] += [{k: v for k, v in g.items() if "key" not in k} for g in gates]
    for one in made:
        if isinstance(one.artifact, RewardModel):
            _held_out(one, report)
    return report


def _stage(one: Planned) -> Entry:
    about: Entry = {}
    if (one.artifact.path / "artifact.json").is_file():
        about = one.artifact.manifest()
    return {
        "name": one.name,
        "kind": one.kind,
        "key": one.artifact.key,
        **{name: about.get(name) for name in ("seconds", "device", "counts")},
    }


def _named(entry: Entry, names: dict[str, str]) -> Entry:
    """With the names the recipe uses now: the artifact may have been made under others."""
    renamed = {
        side: names[entry[key]]
        for side, key in (("model", "key"), ("against", "against_key"))
        if entry.get(key) in names
    }
    return {**entry, **renamed}


def _picked(entry: Entry, wanted: tuple[str, ...], names: dict[str, str]) -> Entry:
    renamed = _named(entry, names)
    return {name: renamed[name] for name in wanted}


def _held_out(one: Planned, report: Entry) -> None:
    """What a reward model's own stage measured, and its gate."""
    file = one.artifact.path / "metrics.json"
    metrics = read_json(file) if file.is_file() else {}
    if "accuracy_low" not in metrics:
        return
    score = {
        "model": one.name,
        "task": HELD_OUT,
        "metric": "accuracy",
        "n": metrics["held_out"],
        "mean": metrics["accuracy"],
        "ci_low": metrics["accuracy_low"],
        "ci_high": metrics["accuracy_high"],
    }
    report["scores"].append(score)
    gate = getattr(one.stage, "gate", None)
    if gate is not None:
        low, high, bar = score["ci_low"], score["ci_high"], gate.accuracy
        verdict = "passed" if low >= bar else "failed" if high < bar else "inconclusive"
        limits = {"against": None, "may_lose": None, "at_least": bar, "verdict": verdict}
        value = {("value" if name == "mean" else name): x for name, x in score.items()}
        report["gates"].append({**value, **limits})


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)

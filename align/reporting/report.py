"""The result on disk: `report.json`, `report.html`, and the table a run ends with.

`report.json` is written at every end of a run, good or bad:

    schema       1
    recipe       the recipe's name
    status       done, failed, stopped (a gate), interrupted, incomplete
    stages       name, kind, key, state (done, stopped, failed, running, half done, not made),
                 error (why it is stopped or failed), seconds, device, counts (null where it is not
                 made)
    tasks        task, file, n (items), settings, samples (answers per item)
    scores       model, task, metric, n, mean, ci_low, ci_high, sampling_share (of several
                 answers per item: the part of the variance that more of them could remove)
    comparisons  model, against, role (step, control, asked), task, metric, n, delta, ci_low,
                 ci_high, p (not adjusted), won, lost (items), detectable (the smallest difference
                 that would be seen in 80 % of such comparisons)
    gates        model, task, metric, against, may_lose, at_least, n, value, ci_low, ci_high,
                 verdict (passed, inconclusive, failed), flipped (lost, won: items' ids; n_lost,
                 n_won; examples), problem (why it cannot be judged)
    overlap      task, items, exact, partial (items that are in training data), models, examples,
                 not_read (by name, why data could not be compared), by (model: exact, partial,
                 not_read of what it learnt from itself)
    notes        sentences about what was found: a judge that goes by place or by length

Models are called by their names in the recipe. Intervals are 95 %.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.artifacts import Report, RewardModel, read_json
from align.asking.asked import name_of
from align.gates import HELD_OUT
from align.reporting import facts, page
from align.reporting.wording import table as table

if TYPE_CHECKING:
    from align.recipe import Plan, Planned

Entry = dict[str, Any]

_SCORE = ("model", "task", "metric", "n", "mean", "ci_low", "ci_high", "sampling_share")
_DIFFERENCE = (
    *("model", "against", "role", "task", "metric", "n", "delta", "ci_low", "ci_high", "p"),
    *("won", "lost", "detectable"),
)


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
        "tasks": [],
        "scores": [],
        "comparisons": [],
        "gates": [],
        "overlap": [],
        "notes": [],
    }
    names = {one.artifact.key: one.name for one in plan.stages.values()}
    for one in made:
        if isinstance(one.artifact, Report):
            found = read_json(one.artifact.path / "report.json")
            called = names | _outside(one, found)
            for key, wanted in (("scores", _SCORE), ("comparisons", _DIFFERENCE)):
                report[key] += [_picked(entry, wanted, called) for entry in found[key]]
            for key in ("tasks", "overlap", "notes"):  # earlier versions had none
                report[key] += found.get(key, [])
    for one in made:
        if isinstance(one.artifact, RewardModel):
            _held_out(one, report)
        gates = [_named(gate, names) for gate in one.stage.judged(one.artifact.path)]
        report["gates"] += [{k: v for k, v in g.items() if "key" not in k} for g in gates]
    return report


def _stage(one: Planned) -> Entry:
    about = facts.manifest(one)
    state, error = facts.state(one)
    return {
        "name": one.name,
        "kind": one.kind,
        "key": one.artifact.key,
        "state": state,
        "error": error,
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


def _outside(one: Planned, found: Entry) -> dict[str, str]:
    """What the models that an evaluation was made of are called now, by their keys there.

    By place: one from outside may lie elsewhere now. Earlier versions did not write the keys.
    """
    models = dict(one.stage).get("models", ())
    return dict(zip(found.get("models", ()), map(name_of, models), strict=False))


def _picked(entry: Entry, wanted: tuple[str, ...], names: dict[str, str]) -> Entry:
    renamed = _named(entry, names)
    return {name: renamed.get(name) for name in wanted}


def _held_out(one: Planned, report: Entry) -> None:
    """What a reward model's own stage measured."""
    file = one.artifact.path / "metrics.json"
    metrics = read_json(file) if file.is_file() else {}
    if "accuracy_low" not in metrics:
        return
    report["scores"].append(
        {
            "model": one.name,
            "task": HELD_OUT,
            "metric": "accuracy",
            "n": metrics["held_out"],
            "mean": metrics["accuracy"],
            "ci_low": metrics["accuracy_low"],
            "ci_high": metrics["accuracy_high"],
            "sampling_share": None,
        }
    )


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)

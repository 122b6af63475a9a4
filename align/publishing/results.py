"""What is measured of a model: for its card, and in the hub's own format."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from align import gates, stats, store
from align.artifacts import read_json
from align.gates import HELD_OUT
from align.publishing.lineage import on_hub
from align.publishing.markdown import yaml
from align.reporting.summary import LACKS, lost
from align.reporting.wording import is_subset, main_metrics
from align.results import read

Entry = dict[str, Any]

FOLDER = ".eval_results"
"""Where the hub looks for results."""


def measured(
    path: Path, name: str, root: Path, line: Collection[str] = (), merged: Path | None = None
) -> Entry:
    """What the store's reports say of a model, as one report.

    `scores` of it and of the models it was compared with, `comparisons` of it, `tasks`, `overlap`
    and `doubts`, the sentences of the evaluations about their answers; `gates` about it, from
    `gates.verdicts`. A task that several evaluations asked, in whatever way, is told from the
    latest alone.

    Args:
        path: the model's directory.
        name: what the model is called.
        root: the store that is searched.
        line: the models it was made from, by key or hub id: their scores are told beside it.
        merged: the model that was folded into this one: what was measured of it counts, too.
    """
    lists = ("scores", "comparisons", "tasks", "overlap", "gates", "doubts")
    found: Entry = {key: [] for key in lists}
    ours = {path, merged} - {None}
    for file in sorted(root.glob("*/report.json"), key=_made_at, reverse=True):
        if (file.parent / store.MANIFEST).is_file():
            _add(found, file, _Subject(name, root.resolve(), ours, line))
    told = {task["task"]: task["report"] for task in found["tasks"]}
    for one in sorted(filter(None, ours), reverse=True):
        for entry in gates.verdicts(root, one.name):
            found["gates"] += [
                gate
                for gate in (_called(gate, line) for gate in entry["gates"])
                if told.get(gate["task"].partition("/")[0], entry["report"]) == entry["report"]
                and gate not in found["gates"]  # two recipes with the same evaluation
            ]
        found["scores"] += _held_out(one, name)
    once = {(one["model"], one["task"], one["metric"]): one for one in found["scores"][::-1]}
    found["scores"] = list(once.values())[::-1]
    return found


def write(report: Entry, name: str, folder: Path, root: Path) -> list[Path]:
    """Write the main numbers on data sets of the hub as `.eval_results/<task>.yaml`.

    Only where the items came from the hub itself: a local copy may hold anything. `root` is the
    store, where the numbers of the items are.
    """
    metrics = main_metrics(report)
    written = []
    for task in report["tasks"]:
        source = task["settings"].get("data")
        source = source[0] if isinstance(source, list) and len(source) == 1 else source
        score = _score(report, name, task["task"], metrics)
        if not isinstance(source, dict) or not on_hub(source) or score is None:
            continue
        (folder / FOLDER).mkdir(exist_ok=True)
        file = folder / FOLDER / f"{task['task']}.yaml"
        share = _is_share(root / task["report"], score)
        entries = eval_result_entries_to_yaml([_entry(task, source, score, share)])
        file.write_text(yaml(entries), encoding="utf-8")
        written.append(file)
    return written


def error(score: Entry) -> float:
    """The standard error that an interval of 95 % stands for."""
    return float((score["ci_high"] - score["ci_low"]) / (2 * stats.Z))


def _made_at(file: Path) -> str:
    manifest = file.with_name(store.MANIFEST)
    return str(read_json(manifest).get("made_at", "")) if manifest.is_file() else ""


@dataclass(frozen=True)
class _Subject:
    """The model that is told of: its name, its store, its directories, what it was made from."""

    name: str
    root: Path
    ours: set[Path | None]
    line: Collection[str]


def _add(found: Entry, file: Path, about: _Subject) -> None:
    """What one report says of the model, but for tasks that are known from a later one."""
    report, of = read_json(file), {"made_at": _made_at(file), "report": file.parent.name}
    keys = {
        one["key"]
        for one in report["scores"]
        if {(about.root / one["key"]).resolve(), _at(one)} & about.ours
    }
    known = {task["task"] for task in found["tasks"]}
    nothing = {"file": "", "n": 0, "settings": {}}  # reports of earlier versions do not say how
    asked = report.get("tasks") or [{"task": task, **nothing} for task in tasks(report)]
    new = [task for task in asked if task["task"] not in known]
    names = {task["task"] for task in new}
    if not keys or not names:
        return

    def renamed(entry: Entry) -> Entry:
        mine = {"model": about.name} if entry["key"] in keys else {}
        return _called(entry, about.line) | mine

    compared = [
        renamed(one)
        for one in report["comparisons"]
        if one["key"] in keys and one["task"].partition("/")[0] in names
    ]
    beside = {one["against_key"] for one in compared} | keys | {*about.line}
    found["comparisons"] += compared
    found["scores"] += [
        renamed(one)
        for one in report["scores"]
        if one["key"] in beside and one["task"].partition("/")[0] in names
    ]
    found["tasks"] += [{**task, **of} for task in new]
    counts = read_json(file.with_name(store.MANIFEST)).get("counts") or {}
    shown = {
        one["model"]: renamed(one)["model"] for one in report["scores"] if one["key"] in beside
    }
    asked = {name: _of(count, shown) for name, count in counts.items() if _task(name) in names}
    found["doubts"] += lost({"name": file.parent.name, "counts": asked})
    found["doubts"] += report.get("notes", ())
    called = {one["model"] for one in report["scores"] if one["key"] in keys}
    found["overlap"] += [
        {**one, "found": bool(called & {*one["models"]})}
        for one in report.get("overlap", ())
        if one["task"] in names
    ]


def _called(entry: Entry, line: Collection[str]) -> Entry:
    """Models of the hub by their ids: `base` of which recipe, a reader cannot know."""
    ids = {
        side: entry[key]
        for side, key in (("model", "key"), ("against", "against_key"))
        if entry.get(key) in line and "/" in entry[key]
    }
    return {**entry, **ids}


def _of(count: Entry, shown: dict[str, str]) -> Entry:
    """A count by the models that the card shows, under their names there."""
    if "by" not in count:
        return count
    return {**count, "by": {shown[one]: n for one, n in count["by"].items() if one in shown}}


def _task(count: str) -> str:
    """The task of a count such as `dropped.gsm8k_no_room`."""
    task = count.partition(".")[2]
    return next((task.removesuffix(end) for end in LACKS if task.endswith(end)), task)


def _at(score: Entry) -> Path:
    """The directory of a model that was named by its path."""
    return Path(score["key"]).expanduser().resolve()


def _held_out(path: Path, name: str) -> Iterator[Entry]:
    """A reward model's accuracy on its own held-out pairs."""
    file = path / "metrics.json"
    metrics = read_json(file) if file.is_file() else {}
    if "accuracy_low" in metrics:
        low, high = metrics["accuracy_low"], metrics["accuracy_high"]
        about = {"model": name, "key": path.name, "task": HELD_OUT, "metric": "accuracy"}
        ends = {"mean": metrics["accuracy"], "ci_low": low, "ci_high": high}
        yield {**about, "n": metrics["held_out"], **ends}


def _score(report: Entry, name: str, task: str, metrics: dict[str, str]) -> Entry | None:
    mine = (one for one in report["scores"] if one["model"] == name and one["task"] == task)
    return next((one for one in mine if one["metric"] == metrics[task]), None)


def _is_share(evaluation: Path, score: Entry) -> bool:
    """Whether every item's number lies from 0 to 1; a number of all items together is none."""
    report = read_json(evaluation / "report.json")
    names = dict(zip(report.get("models", ()), report.get("files", ()), strict=True))
    file = evaluation / "items" / score["task"] / f"{names.get(score['key'])}.jsonl"
    values = [row.get(score["metric"]) for row in read(file)[1]] if file.is_file() else []
    known = [value for value in values if value is not None]
    return bool(known) and all(0 <= value <= 1 for value in known)


def _entry(task: Entry, source: Entry, score: Entry, share: bool) -> EvalResultEntry:
    """A number as the hub has it: shares in percent, as its benchmarks have them."""
    scale = 100 if share else 1
    notes = [f"{score['metric']}{' in %' if share else ''}", f"{score['n']:,} items"]
    if score["ci_low"] is not None:
        notes.append(f"standard error {scale * error(score):.2g}")
    shots = task["settings"].get("shots")
    notes += [f"{shots}-shot"] if shots is not None else []
    return EvalResultEntry(
        dataset_id=source["path"],
        task_id=task["task"],
        value=round(scale * score["mean"], 4),
        dataset_revision=source.get("revision"),
        date=task["made_at"][:10],
        notes=", ".join(notes),
    )


def tasks(report: Entry) -> list[str]:
    """The tasks that were asked, without their subsets."""
    metrics = main_metrics(report)
    return [task for task in metrics if not is_subset(task, metrics)]

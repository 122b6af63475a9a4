"""What is measured of a model: for its card, and in the hub's own format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
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

    `scores` of it and of the models it was compared with, `comparisons` of it, `tasks` that it has
    scores of, their `overlap` with what it learnt from, and `doubts`, the sentences of the
    evaluations about the answers; `gates` about it, from `gates.verdicts`. A task that several
    evaluations asked, in whatever way, is told from the latest alone.

    Args:
        path: the model's directory.
        name: what the model is called.
        root: the store that is searched.
        line: the models it was made from, by key or hub id: their scores are told beside it.
        merged: the model that was folded into this one: what was measured of it counts, too,
            where this one was not measured itself.
    """
    lists = ("scores", "comparisons", "tasks", "overlap", "gates", "doubts")
    found: Entry = {key: [] for key in lists}
    ours = [path] if merged is None else [path, merged]
    for file in sorted(root.glob("*/report.json"), key=_made_at, reverse=True):
        if (file.parent / store.MANIFEST).is_file():
            _add(found, file, _Subject(name, root.resolve(), ours, line))
    told = {task["task"]: task["report"] for task in found["tasks"]}
    for one in ours:
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
    """The model that is told of: its name, its store, its directory and that of the model folded
    into it, what it was made from."""

    name: str
    root: Path
    ours: list[Path]
    line: Collection[str]


def _add(found: Entry, file: Path, about: _Subject) -> None:
    """What one report says of the model, but for tasks that are known from a later one."""
    report, of = read_json(file), {"made_at": _made_at(file), "report": file.parent.name}
    scores, root = report["scores"], about.root
    keys = [one["key"] for path in about.ours for one in scores if _is_of(one, path, root)]
    known = {task["task"] for task in found["tasks"]}
    scores = [one for one in scores if _whole(one) not in known]
    speaks = _speaks(scores, keys, _whole)
    if not speaks:
        return

    def renamed(entry: Entry) -> Entry:
        mine = {"model": about.name} if speaks[_whole(entry)] == entry["key"] else {}
        return _called(entry, about.line) | mine

    asked = [one for one in report["comparisons"] if _whole(one) in speaks]
    compared = _speaks(asked, keys, _pair)
    asked = [one for one in asked if compared.get(_pair(one)) == one["key"]]
    named = {"model": about.name}
    found["comparisons"] += [_called(_role(one, about), about.line) | named for one in asked]
    beside = {one["against_key"] for one in asked} | {*about.line}
    shown: dict[str, dict[str, str]] = {task: {} for task in speaks}
    for one in scores:
        task = _whole(one)
        if task in speaks and (one["key"] in beside or one["key"] == speaks[task]):
            found["scores"].append(renamed(one))
            shown[task][one["model"]] = renamed(one)["model"]
    nothing = {"file": "", "n": 0, "settings": {}}  # reports of earlier versions do not say how
    told = report.get("tasks") or [{"task": task, **nothing} for task in tasks(report)]
    found["tasks"] += [{**task, **of} for task in told if task["task"] in speaks]
    counts = read_json(file.with_name(store.MANIFEST)).get("counts") or {}
    counts = {n: _of(count, shown[_task(n)]) for n, count in counts.items() if _task(n) in speaks}
    found["doubts"] += lost({"name": file.parent.name, "counts": counts})
    heads = tuple(f"{task} of {model}:" for task, models in shown.items() for model in models)
    found["doubts"] += [note for note in report.get("notes", ()) if note.startswith(heads)]
    names = {_whole(one): one["model"] for one in scores if one["key"] == speaks.get(_whole(one))}
    found["overlap"] += _overlap(report, names)


def _whole(entry: Entry) -> str:
    """The task of a score or a comparison, without its subset."""
    return str(entry["task"].partition("/")[0])


def _pair(comparison: Entry) -> tuple[str, str]:
    return _whole(comparison), comparison["role"]


def _speaks(entries: list[Entry], keys: list[str], group: Callable[[Entry], Any]) -> dict[Any, str]:
    """By group whose entries are told: the first of the keys that has any."""
    return {
        group(one): key for key in dict.fromkeys(keys[::-1]) for one in entries if one["key"] == key
    }


def _role(comparison: Entry, about: _Subject) -> Entry:
    """`step` only for what the model was made from: evaluations compare with what is listed before
    it where that is not among their models."""
    against = comparison["against_key"]
    made = (about.root / against / store.MANIFEST).is_file()
    strange = comparison["role"] == "step" and made and against not in about.line
    return {**comparison, "role": "asked"} if strange else comparison


def _overlap(report: Entry, names: dict[str, str]) -> Iterator[Entry]:
    """The overlap of tasks with what the model itself learnt from; `names`: its own, by task.

    Earlier versions counted for all models together: not more than that is this one's.
    """
    for one in report.get("overlap", ()):
        name = names.get(one["task"])
        if name is None:
            continue
        if "by" not in one:
            yield one if name in one["models"] else {**one, "exact": 0, "partial": 0}
        elif name in one["by"]:
            yield {**one, **one["by"][name]}


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


def _is_of(score: Entry, path: Path, root: Path) -> bool:
    """Whether a score is of the model in this directory.

    A made one is known by its key, of another store too, and by no path: links to stages lead
    elsewhere after another run.
    """
    if (path / "stage.json").is_file():
        return bool(score["key"] == path.name)
    return path in (root / score["key"], Path(score["key"]).expanduser().resolve())


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

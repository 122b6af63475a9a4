"""A card's sections on what was measured, and on what was not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants

from align.publishing.markdown import code, fenced, folded, plain, table, yaml
from align.publishing.plain import file, settings
from align.publishing.results import tasks
from align.reporting import scores
from align.reporting.subsets import Compared
from align.reporting.summary import lost, tied
from align.reporting.wording import (
    gate_sentence,
    interval,
    is_subset,
    main_metrics,
    p_value,
    than,
    verdict,
)

if TYPE_CHECKING:
    from align.publishing.card import Subject

Entry = dict[str, Any]

NONE = "–"


def section(about: Subject) -> str:
    """Scores with intervals, paired differences, gates."""
    report = about.measured
    if not report["scores"]:
        return "It was not evaluated: nothing here says that it is better than what it came from."
    return "\n\n".join(_parts(report, about.name))


def limits(about: Subject) -> str:
    """What the numbers do not say."""
    return "\n".join(f"* {said}" for said in _limits(about))


def _parts(report: Entry, name: str) -> Iterator[str]:
    several = len({one["model"] for one in report["scores"]}) > 1
    yield f"Means with 95 % intervals{', on the same items for all models' * several}."
    yield _scores(report, name)
    whole, _ = scores.compared(report)
    if whole:
        yield (
            "Differences item by item, with paired 95 % intervals; p is adjusted over these (Holm)."
        )
        yield _differences(whole)
    if report["gates"]:
        said = "\n".join(f"* {plain(gate_sentence(gate))}" for gate in report["gates"])
        yield f"Gates:\n\n{said}"
    yield from _others(report, name)
    asked = {task["task"]: settings(task["settings"]) for task in report["tasks"]}
    if any(asked.values()):
        yield folded("How the tasks were asked", fenced(yaml(asked), "yaml"))


def _scores(report: Entry, name: str) -> str:
    metrics = main_metrics(report)
    models = list(dict.fromkeys(one["model"] for one in report["scores"]))
    models = [*(model for model in models if model != name), name]
    cells = {(one["task"], one["metric"], one["model"]): one for one in report["scores"]}
    rows = []
    for task in tasks(report):
        scored = [cells.get((task, metrics[task], model)) for model in models]
        counts = sorted({one["n"] for one in scored if one})
        means = [interval(one, "mean") if one else NONE for one in scored]
        items = "–".join(f"{n:,}" for n in {counts[0]: 0, counts[-1]: 0})
        rows.append([plain(task), plain(metrics[task]), items, *means])
    heads = ["task", "metric", "items", *(code(model) for model in models[:-1]), f"**{name}**"]
    return table(heads, rows, range(2, len(heads)))


def _differences(whole: Compared) -> str:
    rows = [
        [
            f"{verdict(one)} {than(one)} {code(one['against'])}",
            ROLES.get(one["role"], ""),
            plain(one["task"]),
            f"{one['n']:,}",
            interval(one, "delta", sign="+"),
            p_value(p),
        ]
        for one, p in whole
    ]
    heads = ["this model is", "which is", "task", "items", "difference", "p"]
    return table(heads, rows, (3, 4, 5))


ROLES = {"step": "the step before", "control": "its control"}


def _others(report: Entry, name: str) -> Iterator[str]:
    """Other metrics and subsets of the model itself, folded."""
    metrics = main_metrics(report)
    rows = [
        [plain(one["task"]), plain(one["metric"]), f"{one['n']:,}", interval(one, "mean")]
        for one in report["scores"]
        if one["model"] == name
        and (one["metric"] != metrics[one["task"]] or is_subset(one["task"], metrics))
    ]
    if rows:
        found = table(["task", "metric", "items", "mean"], rows, (2, 3))
        yield folded(f"Other metrics and subsets ({len(rows):,})", found)


def _limits(about: Subject) -> Iterator[str]:
    report = about.measured
    asked = ", ".join(plain(task) for task in tasks(report))
    if asked:
        yield f"Measured was: {asked}. Of anything else, safety included, nothing is known here."
        yield (
            "Intervals say how sure the scores of this checkpoint are. Training again with another "
            "seed makes another one."
        )
        roles = {one["role"] for one in report["comparisons"]}
        if roles and "control" not in roles:
            yield (
                "No control of it was evaluated: some of what it gained on the step before may "
                "come of more training alone."
            )
        if about.merged or any(step.kind == "merge" for step in about.lineage.line[-1:]):
            yield (
                "What was measured may be the adapter on its base, before it was folded in: both "
                "were compared, and differ by rounding."
            )
    else:
        yield "Nothing was measured, safety included."
    for step in about.lineage.steps:
        yield from map(plain, lost({"name": step.name, "counts": step.about["counts"]}))
    yield from map(plain, (*report["doubts"], *tied(report)))
    yield from _overlap(report)
    if start := about.lineage.adapter:
        at = f"{constants.ENDPOINT}/{start.repo}"
        yield (
            f"It goes on from {code(start.repo)}: what that was trained with is told on "
            f"[its card]({at}), and was not compared with the tasks here."
        )
    if about.lineage.gone:
        keys = ", ".join(map(code, about.lineage.gone))
        yield f"Parts of its history are no longer in the store it was pushed from: {keys}."
    if not about.lineage.steps:
        yield "Data, settings and seeds of its training are not known here."


def _overlap(report: Entry) -> Iterator[str]:
    """What stands in the training data of what was asked."""
    clean, silent, unread = [], [], dict[str, None]()
    for one in report["overlap"]:
        own = "by" in one or len(one["models"]) < 2  # earlier versions: of all models together
        task, most = plain(one["task"]), "" if own else "up to "
        if both := one["exact"] + one["partial"]:
            said = (
                f"{most}{both:,} of {one['items']:,} items of {task} stand{'s' * (both == 1)} in "
                f"the training data, {most}{one['exact']:,} of them word for word: its score says "
                "less."
            )
            yield said[0].upper() + said[1:]
        else:
            clean.append(task)
        names = one.get("not_read", ())
        silent += [task] if one["task"] in names else []
        unread |= {name: None for name in names if name != one["task"]}
    for name in unread:
        yield f"Of {code(file(name))} it is not known whether tasks stand in it."
    if silent:
        yield f"Items without a text of their own were not looked for: {', '.join(silent)}."
    if clean:
        yield f"No item stands in the training data that was read: {', '.join(clean)}."

"""The report in words, for a person who has two minutes: what was made, gained and lost, and what
to distrust.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from align import leftout
from align.artifacts import Model, RewardModel
from align.asking.asked import name_of
from align.reporting import facts, lengths, scores
from align.reporting.wording import (
    SURE,
    counted,
    gate_sentence,
    interval,
    learners,
    number,
    p_value,
    than,
    verdict,
)

if TYPE_CHECKING:
    from align.recipe import Plan

Entry = dict[str, Any]

MUCH = 0.01
"""The share of items or rows from which what was cut, dropped or failed is told in the summary."""

STEPS = 8
"""More steps on the way to a model are not all named."""

LACKS = {"_not_graded": "could not be graded", "_no_room": "had no room after the prompt"}
"""What an evaluation drops items for, by how its counts end."""

NAMED = 4
"""So many differences of the main task are told."""

WORSE = {"step": "What fell", "control": "Worse than its control", "asked": "Worse"}
"""How losses are told, by what was compared."""

FALLEN = 6
"""So many losses are named; the others are counted."""


def section(report: Entry, plan: Plan, written: lengths.Written) -> str:
    """The words at the top of the page; `written`: how long answers are."""
    subject = _subject(report, plan)
    said = [
        " ".join(_ended(report)),
        f"{_made(report, subject, plan)} {_gained(report, subject)}",
        f"{_fell(report, subject)} {_gates(report)}",
    ]
    lead = "".join(f'<p class="lead">{part}</p>' for part in said if part.strip())
    doubts = [f"<li>{sentence}</li>" for sentence in _doubts(report, plan, subject, written)]
    if report["scores"]:
        doubts.append(
            "<li>Intervals say how sure the scores of these checkpoints are. Training again with "
            "another seed makes other checkpoints, and may give other scores.</li>"
        )
    what = f"<h3>What to distrust</h3><ul>{''.join(doubts)}</ul>" if doubts else ""
    return lead + what


def _subject(report: Entry, plan: Plan) -> Model | None:
    """The model that the report is about: the last that was made, evaluated if any was."""
    controls = {one["against"] for one in report["comparisons"] if one["role"] == "control"}
    scored = {score["model"] for score in report["scores"]}
    models = [
        made
        for one in facts.made(plan)
        if isinstance(made := one.artifact, Model) and not isinstance(made, RewardModel)
    ]
    evaluated = [one for one in models if one.name in scored and one.name not in controls]
    return next(iter([*evaluated[::-1], *models[::-1]]), None)


def _ended(report: Entry) -> Iterator[str]:
    """What went wrong, before anything else."""
    stages = report["stages"]
    left = sum(stage["seconds"] is None for stage in stages)
    for stage in stages:
        if stage.get("state") == "failed":
            why = escape(str(stage.get("error") or "")).partition("\n")[0]
            yield f'<span class="failed">{escape(stage["name"])} failed</span>: {why}'
    if left and report["status"] in ("stopped", "failed", "interrupted"):
        was = "" if report["status"] == "failed" else "was "
        yield f"The run {was}{report['status']} with {left} of {len(stages)} stages not made."
    elif left:
        yield f"{left} of {len(stages)} stages {'is' if left == 1 else 'are'} not made yet."


def _made(report: Entry, subject: Model | None, plan: Plan) -> str:
    if subject is None:
        evaluated = list(dict.fromkeys(escape(score["model"]) for score in report["scores"]))
        return f"Evaluated: <b>{', '.join(evaluated)}</b>." if evaluated else "No model was made."
    names = [name_of(model) for model in facts.lineage(subject)]
    kinds = {one.name: one.kind for one in plan.stages.values()}
    steps = [
        escape(name) if kinds.get(name, name) in name else f"{escape(name)} ({kinds[name]})"
        for name in names[1:]
    ]
    if len(steps) > STEPS:
        steps[2:-3] = [f"{len(steps) - 5} more"]
    if not steps:
        return f"<b>{escape(names[0])}</b> is the model that was made."
    return f"<b>{escape(names[-1])}</b> was made from {escape(names[0])}: {' → '.join(steps)}."


def _gained(report: Entry, subject: Model | None) -> str:
    """The scores in the main task, and the differences of the models on the subject's way."""
    if not report["scores"]:
        return (
            "Nothing was evaluated, so nothing here says that anything got better: add an "
            "<code>evaluate</code> stage."
        )
    first = next(
        (s for s in report["scores"] if subject is None or s["model"] == name_of(subject)), None
    )
    if first is None:
        return "It was not evaluated."
    task, metric = first["task"], first["metric"]
    mine = {s["model"]: s for s in report["scores"] if (s["task"], s["metric"]) == (task, metric)}
    way = [*mine] if subject is None else [name_of(model) for model in facts.lineage(subject)]
    said = f"On {escape(task)} ({escape(metric)}, {counted(first['n'], 'item')}) "
    if subject is not None:
        said += f"it reaches <b>{interval(first, 'mean')}</b>."
    else:
        reached = [f"{escape(name)} <b>{interval(mine[name], 'mean')}</b>" for name in way]
        said += (
            f"they reach: {', '.join(reached)}." if len(way) > 1 else f"it reaches {reached[0]}."
        )
    whole, _ = scores.compared(report)
    found = [(one, p) for one, p in whole if one["task"] == task and one["model"] in way]
    found.sort(key=lambda each: (-way.index(each[0]["model"]), each[0]["role"] == "control"))
    said += "".join(f" {_difference(one, p)}" for one, p in found[:NAMED])
    if found and not any(one["role"] == "control" for one, _ in found) and subject is not None:
        said += " No control was evaluated: some of a gain may come of more training alone."
    return said


def _difference(one: Entry, p: float) -> str:
    word = verdict(one)
    role = {"step": ", the step before", "control": ", its control"}.get(one["role"], "")
    alone = ""
    if word != "tied" and p >= SURE:
        alone = ", but not with all comparisons together"
        if one["p"] is not None and one["p"] >= SURE:
            alone = ", which the exact test does not confirm"
    return (
        f'{escape(one["model"])} is <span class="{word}">{word}</span> {than(one)} '
        f"{escape(one['against'])}{role}: {interval(one, 'delta', sign='+')}{alone}."
    )


def _fell(report: Entry, subject: Model | None) -> str:
    """What got worse, of everything that was compared.

    A control may be worse: that is told beside, unless it is on the subject's own way.
    """
    whole, parts = scores.compared(report)
    way = [] if subject is None else [name_of(model) for model in facts.lineage(subject)]
    controls = {one["against"] for one, _ in whole if one["role"] == "control"}.difference(way)
    fallen = [(o, p) for o, p in (*whole, *parts) if p < SURE and verdict(o) == "worse"]
    mine = [(one, p) for one, p in fallen if one["model"] not in controls]
    beside = [(one, p) for one, p in fallen if one["model"] in controls]
    said = [
        _named(head, [(one, p) for one, p in mine if one["role"] == role])
        for role, head in WORSE.items()
    ]
    compared = [one for one, _ in (*whole, *parts) if not beside or one["model"] not in controls]
    if compared and not mine:
        of = counted(len(compared), "comparison")
        left = ", without those of controls" if beside else ""
        said.append(f"Nothing fell that can be told from chance ({of}, Holm{left}).")
    said.append(_named("What fell among the controls", beside))
    return " ".join(filter(None, said))


def _named(head: str, fallen: list[tuple[Entry, float]]) -> str:
    """Losses by name under their head, the first of them."""
    if not fallen:
        return ""
    named = [
        f"{_loss(one)} ({one['delta']:+.3f}, {escape(f'p = {p_value(p)}'.replace('= <', '<'))})"
        for one, p in fallen[:FALLEN]
    ]
    more = f", and {len(fallen) - FALLEN} more" if len(fallen) > FALLEN else ""
    return f'<span class="worse">{head}</span>: {", ".join(named)}{more}.'


def _loss(one: Entry) -> str:
    """A loss by what it was compared with: a score falls only from one step to the next."""
    task, model, against = (escape(one[key]) for key in ("task", "model", "against"))
    if one["role"] == "step":
        return f"{task} from {against} to {model}"
    return f"{task} of {model} than of {against}"


def _gates(report: Entry) -> str:
    gates = report["gates"]
    if not gates:
        return "No gate watched over it." if report["comparisons"] else ""
    passed = sum(gate["verdict"] == "passed" for gate in gates)
    if passed == len(gates):
        return "The only gate passed." if passed == 1 else f"All {passed} gates passed."
    said = ""
    for gate in gates:
        word, _, rest = gate_sentence(gate).partition(":")
        if word != "passed":
            said += f' <span class="{word}">Gate {word}</span>:{escape(rest)}'
    count = f"{passed} of {len(gates)} gates passed." if len(gates) > 1 else ""
    return (count + said).strip()


# -- doubts --------------------------------------------------------------------------------------


def _doubts(
    report: Entry, plan: Plan, subject: Model | None, written: lengths.Written
) -> Iterator[str]:
    for stage in report["stages"]:
        yield from map(escape, lost(stage))
    yield from map(escape, report.get("notes", ()))
    unread = {name for one in report.get("overlap", ()) for name in one.get("not_read", {})}
    if unread:
        yield f"Overlap with {escape(', '.join(sorted(unread)))} is not known: it was not read."
    for one in report.get("overlap", ()):
        if touched := one["exact"] + one["partial"]:
            of, are = counted(one["items"], "item"), "is" if touched == 1 else "are"
            yield (
                f"<b>Overlap</b>: {touched:,} of {of} of {escape(one['task'])} {are} in what "
                f"{escape(learners(one))} learnt from, {one['exact']:,} of them word "
                "for word."
            )
    for said in tied(report):
        yield escape(said).replace("Tied", "<b>Tied</b>", 1)
    yield from map(escape, lengths.doubts(plan, subject, written))
    older = sorted({name for one in facts.made(plan) for name in facts.other_versions(one)})
    if older:
        yield f"Some stages were made by other versions of {escape(', '.join(older))} than today's."


def lost(stage: Entry) -> Iterator[str]:
    """Answers that were cut, items that were not graded, rows that were dropped, in plain text."""
    counts = stage["counts"] or {}
    nothing = {"n": 0}
    kept = next((one for one in ("pairs", "rows") if one in counts), None)
    for name, count in counts.items():
        kind, _, rest = name.partition(".")
        task = next((rest.removesuffix(end) for end in LACKS if rest.endswith(end)), rest)
        of = counts.get(f"items.{task}", counts.get("answers", nothing))
        if kind == "cut":
            of = counts.get(f"answers.{task}", of)  # of an item there may be several
            what = f"answers of {task or stage['name']} were cut at the limit of tokens"
        elif kind == "thought":
            of = counts.get(f"answers.{task}", of)
            what = f"answers of {task} began with a thought, which is not graded"
        elif kind == "truncated":
            what = f"prompts of {task} were longer than the model reads and lost their beginning"
        elif kind == "failed":
            what = f"answers of {stage['name']}: {rest} fails on them"
        elif kind == "dropped" and task != rest:
            what = f"items of {task} {LACKS[rest.removeprefix(task)]}"
        elif kind == "unscored":
            of = counts.get("read", nothing)
            what = f"rows of {stage['name']} could not be scored by {rest}"
        elif kind == "dropped" and rest in leftout.REASONS and kept:
            of = {"n": sum(counts.get(f"dropped.{one}", nothing)["n"] for one in leftout.REASONS)}
            of["n"] += counts[kept]["n"]
            what = f"{kept} of {stage['name']} were left out: {leftout.REASONS[rest][0]}"
        else:
            continue
        for n, total, whose in _shares(count, of):
            if total and n >= MUCH * total:
                yield f"{n:,} of {total:,} {what}{whose}."


def _shares(count: Entry, of: Entry) -> Iterator[tuple[int, int, str]]:
    """What was lost of how many, and for which models: those of the same numbers together.

    Evaluations of earlier versions know only the sums over all models.
    """
    if "by" not in count or "by" not in of:
        yield count["n"], of["n"], ""
        return
    same: dict[tuple[int, int], list[str]] = {}
    for model, n in count["by"].items():  # a model that had no room for anything has no items
        same.setdefault((n, of["by"].get(model, n)), []).append(model)
    several = len(count["by"].keys() | of["by"].keys()) > 1
    for (n, total), models in same.items():
        names = " and ".join(filter(None, [", ".join(models[:-1]), models[-1]]))
        yield n, total, f", for {names}" if several else ""


def tied(report: Entry) -> Iterator[str]:
    """What cannot be told apart, and how large a difference would have been seen, in plain text."""
    ties = [one for one, _ in scores.compared(report)[0] if verdict(one) == "tied"]
    if ties:
        names = [
            f"{one['model']} with {one['against']} on {one['task']}"
            + (f" (under {number(seen)} is not seen)" if (seen := one.get("detectable")) else "")
            for one in ties[:FALLEN]
        ]
        more = f", and {len(ties) - FALLEN} more" if len(ties) > FALLEN else ""
        yield f"Tied, not equal: {', '.join(names)}{more}."

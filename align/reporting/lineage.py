"""The report's end: what was dropped, how every task was asked, and how all of it was made."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.artifacts import Model, Rows
from align.records import Contents
from align.reporting import drawing, facts
from align.reporting.wording import learners
from align.shelf import SHELF

if TYPE_CHECKING:
    from align.recipe import Plan, Planned

Entry = dict[str, Any]


LOST = ("dropped.", "failed.", "cut", "shortened.", "truncated.", "thought.")
"""How the counts begin that say what is not in the numbers, or not whole."""


def dropped(report: Entry, told: Container[tuple[str, str]] = ()) -> str:
    """Rows, answers and items that are not in the numbers, with examples.

    `told` are stages and counts of which another section says more.
    """
    rows = []
    for stage in report["stages"]:
        for name, count in (stage["counts"] or {}).items():
            if not name.startswith(LOST) or not count["n"] or (stage["name"], name) in told:
                continue
            examples = "".join(
                f'<div class="code">{escape(_json(example))}</div>'
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
    return f'<h2 id="dropped">Dropped, cut or failed</h2>{table}'


def asked(report: Entry) -> str:
    """Every task's settings, as it was asked."""
    rows = [
        [
            escape(task["task"]),
            f"<code>{escape(str(task['file']))}</code>",
            f"{task['n']:,}",
            f"{task.get('samples', 1)}",
            _settings(task.get("settings") or {}),
        ]
        for task in report.get("tasks", ())
    ]
    if not rows:
        return ""
    heads = ["task", "file", "items", "answers each", "settings"]
    table = drawing.table(heads, rows, numbers=(2, 3))
    return f'<h2 id="asked">How the tasks were asked</h2>{table}'


def overlap(report: Entry) -> str:
    """Which items of the tasks the models have seen in training."""
    rows, unread = [], dict[str, str]()
    for one in report.get("overlap", ()):
        unread |= one.get("not_read", {})
        examples = "".join(
            f'<div class="code">{escape(_json(example))}</div>' for example in one["examples"]
        )
        rows.append(
            [
                escape(one["task"]),
                *(f"{one[key]:,}" for key in ("items", "exact", "partial")),
                escape(learners(one)),
                f"<details><summary>examples</summary>{examples}</details>" if examples else "",
            ]
        )
    if not rows:
        return ""
    told = "".join(
        f"<p>{escape(name)} was not read: {escape(why)}</p>" for name, why in unread.items()
    )
    table = drawing.table(
        ["task", "items", "exact", "partial", "in what these learnt from", ""], rows, range(1, 4)
    )
    note = (
        "Exact: the whole question stands in the training data. Partial: more than half of its "
        "words do, in runs of eight."
    )
    head = f'<h2 id="overlap">Overlap with training data</h2><p class="soft">{note}</p>'
    return f"{head}{table}{told}"


def _settings(values: Entry) -> str:
    said = [
        f"{name}: {value if isinstance(value, str) else _json(value)}"
        for name, value in values.items()
        if value not in (None, {}, [])
    ]
    return "<br>".join(f"<code>{escape(line)}</code>" for line in said)


def section(report: Entry, plan: Plan) -> str:
    """Stage by stage: from what, which artifact, how many rows; then everything else, folded."""
    rows, more = [], []
    contents, again = Contents(plan.store), facts.command(plan, _recipe(plan.path))
    for stage, one in zip(report["stages"], plan.stages.values(), strict=True):
        sources = [source.name or source.key for source in one.inputs]
        counts = {
            name: count["n"]
            for name, count in (stage["counts"] or {}).items()
            if "." not in name and name != "cut"
        }
        made = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())
        rows.append(
            [
                escape(stage["name"]),
                escape(", ".join(sources)) or '<span class="soft">outside</span>',
                f"<code>{escape(stage['key'])}</code>",
                escape(made) if stage["seconds"] is not None else "not made",
            ]
        )
        detail = "".join(f"<li>{line}</li>" for line in _details(one, contents))
        detail += f"<li>once more: <code>{escape(f'{again} --again {one.name}')}</code></li>"
        more.append(
            f"<details><summary>{escape(stage['name'])}</summary><ul>{detail}</ul></details>"
        )
    versions = ", ".join(f"{name} {version}" for name, version in _versions(plan).items())
    return (
        '<h2 id="lineage">How it was made</h2>'
        f"<p>What is missing is made, and the rest is checked, by <code>{escape(again)}</code></p>"
        f'<p class="soft">Seed {plan.seed}. An artifact\'s name is its kind and a hash of all that '
        "it was made of: settings, seed, data, code of your own, and the artifacts before it."
        f"{f' Made by {escape(versions)}.' if versions else ''}</p>"
        f"{drawing.table(['stage', 'from', 'artifact', 'made'], rows, numbers=())}"
        f"<details><summary>Every stage in full</summary>{''.join(more)}</details>"
    )


def _recipe(path: Path) -> str:
    """What `align run` takes: a shipped recipe by its name."""
    if not path.is_relative_to(SHELF / "recipes"):
        return str(path)
    return path.relative_to(SHELF / "recipes").as_posix().removesuffix("/recipe.yaml")


def _versions(plan: Plan) -> dict[str, str]:
    """Libraries of the last stage that was made; what others used is said there."""
    found: dict[str, str] = {}
    for one in facts.made(plan):
        found = facts.manifest(one).get("versions") or found
    return {name: version for name, version in found.items() if version != "absent"}


def _details(one: Planned, contents: Contents) -> Iterator[str]:
    """What else is known of a stage: when, with which seed, data, template and versions."""
    about = facts.manifest(one)
    yield f"kind {escape(one.kind)}, seed {one.stage.seed}"
    if about.get("made_at"):
        name, recipe = (escape(str(about.get(key))) for key in ("name", "recipe"))
        yield f"made at {escape(about['made_at'])} as {name} of the recipe {recipe}"
    for name, (then, now) in facts.other_versions(one).items():
        yield f"made by {escape(name)} {escape(then)}; now {escape(now)} is installed"
    for file, digest in (about.get("shelf") or {}).items():
        yield f"<code>{escape(file)}</code>, sha256 {escape(digest)}…"
    for source in _sources(one.record.get("settings")):
        yield f"data <code>{escape(_json(source))}</code>{_hash(source, contents)}"
    if isinstance(one.artifact, Model) and (one.artifact.path / "model.json").is_file():
        base = one.artifact.spec()["base"]
        yield f"base <code>{escape(_json(base))}</code>"
    rows = "data/" if isinstance(one.artifact, Rows) else "model.json"
    for file, written in (about.get("files") or {}).items():
        if file.startswith(rows) or file.endswith("chat_template.jinja"):
            yield f"<code>{escape(file)}</code>, sha256 {escape(written['sha256'][:12])}…"
    settings = escape(_json(one.record.get("settings", {}), indent=1))
    yield f'<details><summary>settings</summary><div class="code">{settings}</div></details>'


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)


def _sources(value: Any) -> Iterator[Entry]:
    """Data from outside that a stage's settings name."""
    if isinstance(value, list):
        for each in value:
            yield from _sources(each)
    if isinstance(value, dict):
        if "columns" in value and value.get("path"):
            yield {name: each for name, each in value.items() if each not in (None, {}, [])}
        else:
            yield from _sources(list(value.values()))


def _hash(source: Entry, contents: Contents) -> str:
    """Of local data as they are now: the artifact's name says if they were others then."""
    files = source.get("data_files") or source.get("path")
    if not isinstance(files, str) or not Path(files).is_file():
        return ""
    return f", sha256 {contents.of(Path(files))[:12]}…"

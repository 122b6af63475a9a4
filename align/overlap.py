"""Which items of a task also stand in what a model learnt from, or its chain before it.

By the rule that `curate` takes rows out by (curation/contamination.py). The items are in memory,
the training data is streamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from align import data, records
from align.artifacts import Artifact, Model, Rows, Samples, read_json
from align.asking.asked import identity, name_of, takes
from align.curation.contamination import RULES, Item, Questions, question, texts
from align.curation.words import Texts, lots
from align.data import Source
from align.errors import RecipeError, StageFailed
from align.out import EXAMPLES, Out
from align.reporting.wording import learners
from align.settings import Stage, Task
from align.sources.source import WHERE

Hits = dict[str, str]
"""By an item's id: "exact" or "partial"."""


def find(
    models: Sequence[Model], tasks: Sequence[tuple[str, Task, list[Item]]], out: Out
) -> list[dict[str, Any]]:
    """The report's `overlap`: one entry per task, said on the screen.

    `exact` and `partial` count the items that are found in the training data of one of the `models`
    it names, the first for those that are found both ways; `by` counts for each that learnt from
    anything; `not_read` says what is not known. What was found is kept by the content of the data
    and the questions.
    """
    learnt: dict[str, list[Rows | Source]] = {}
    not_read: dict[str, str] = {}
    for model in models:
        try:
            learnt[identity(model)] = list(_learnt(model))
        except (StageFailed, RecipeError) as error:
            learnt[identity(model)] = []
            not_read[name_of(model)] = str(error)
    sources = {_name(source): source for each in learnt.values() for source in each}
    contents = records.Contents(out.cache.parent)
    questions = {name: {str(i["id"]): question(i) for i in items} for name, _, items in tasks}
    found: dict[str, dict[str, Hits]] = {}
    for number, (name, source) in enumerate(sources.items()):
        try:
            found[name] = _in(source, questions, contents, out, (number, len(sources)))
        except (StageFailed, OSError) as error:
            not_read[name] = str(error)
    contents.save()
    report = []
    for task, about, _ in tasks:
        taking = [model for model in models if takes(about, model)]
        of = {name_of(model): [*map(_name, learnt[identity(model)])] for model in taking}
        hits = {m: {n: found[n][task] for n in names if n in found} for m, names in of.items()}
        silent = sum(not text.strip() for text in questions[task].values())
        fact = {task: f"{silent} items have no text of their own."} if silent else {}
        report.append(_entry(task, questions[task], hits, not_read | fact))
        report[-1]["by"] = {
            model: _count(_kinds([hits[model]]))
            | {"not_read": [n for n in (task, model, *names) if n in report[-1]["not_read"]]}
            for model, names in of.items()
            if names or model in not_read
        }
        if sources:
            out.say(_sentence(report[-1]))
    unread = {name: why for one in report for name, why in one["not_read"].items()}
    for name, why in unread.items():
        out.say(f"Overlap: {name} was not read: {why}")
    return report


def _entry(
    task: str,
    questions: dict[str, str],
    hits: dict[str, dict[str, Hits]],
    not_read: dict[str, str],
) -> dict[str, Any]:
    """From the hits by model and source."""
    kinds = _kinds(hits.values())
    examples = [
        {"id": item, "overlap": kind, "data": source, "question": questions[item][:200]}
        for item, (kind, source) in sorted(kinds.items(), key=lambda hit: hit[1][0])
    ]
    return {
        "task": task,
        "items": len(questions),
        **_count(kinds),
        "models": [model for model, of in hits.items() if any(of.values())],
        "examples": examples[:EXAMPLES],
        "not_read": not_read,
    }


def _kinds(hits: Iterable[dict[str, Hits]]) -> dict[str, tuple[str, str]]:
    """By item how it is found, and in which source first."""
    kinds: dict[str, tuple[str, str]] = {}
    for of in hits:
        for source, each in of.items():
            for item, kind in each.items():
                kinds[item] = min(kinds.get(item, (kind, source)), (kind, source))
    return kinds


def _count(kinds: dict[str, tuple[str, str]]) -> dict[str, Any]:
    count = [kind for kind, _ in kinds.values()].count
    return {"exact": count("exact"), "partial": count("partial")}


def _sentence(entry: dict[str, Any]) -> str:
    both, task = entry["exact"] + entry["partial"], entry["task"]
    if not both:
        return f"Overlap: no item of {task} stands in the training data that was read."
    example = entry["examples"][0]
    return (
        f"Overlap: {both} of {entry['items']} items of {task} stand in the training data of "
        f"{learners(entry)}, {entry['exact']} of them as they are; "
        f'for example item "{example["id"]}", in {example["data"]}.'
    )


# -- what a model learnt from --------------------------------------------------------------------


def _learnt(model: Model) -> Iterator[Rows | Source]:
    """The `data:` of every model that this one comes from, and the prompts that were answered.

    Of reward models, too, that chose what was learnt. What is held out (`eval_data`) is not.
    """
    ahead: list[Artifact] = [model]
    seen = set[Path]()
    while ahead:
        made = ahead.pop()
        stage = _stage(made)
        if stage is None or made.path in seen:
            continue
        seen.add(made.path)
        fields = {name: getattr(stage, name) for name in type(stage).model_fields}
        taught = fields.get("data" if isinstance(made, Model) else "prompts")
        if isinstance(made, Model) or type(made) is Samples:
            several = taught if isinstance(taught, list) else [taught]
            yield from (one for one in several if isinstance(one, (Rows, Source)))
        ahead += records.consumed([v for name, v in fields.items() if name != "eval_data"])


def _stage(made: Artifact) -> Stage | None:
    """What made an artifact; of a model that is named by its path, too."""
    if isinstance(made.stage, Stage):
        return made.stage
    folder = made.path.resolve()
    record = folder / "stage.json"
    if not record.is_file():
        return None
    try:
        return records.restore(read_json(record), folder.parent)
    except ValidationError:
        raise StageFailed(f"{record} is of another version, and cannot be read.") from None


def _name(source: Rows | Source) -> str:
    """What a person calls a source."""
    if isinstance(source, Rows):
        return source.name or source.key
    if source.stage is not None:
        return _name(source.stage)
    about = source.model_dump(include=WHERE, exclude_defaults=True)
    return " ".join(str(value) for value in about.values())


# -- looking for them ----------------------------------------------------------------------------


def _in(
    source: Rows | Source,
    questions: dict[str, dict[str, str]],
    contents: records.Contents,
    out: Out,
    place: tuple[int, int],
) -> dict[str, Hits]:
    """The hits in one source, by task: kept ones, and the others' in one pass over the rows."""
    content = _content(source, contents)
    files = {
        task: out.cache / "overlap" / f"{records.digest([content, RULES, each])[:24]}.json"
        for task, each in questions.items()
    }
    found = {task: read_json(file) for task, file in files.items() if file.is_file()}
    missing = {task: each for task, each in questions.items() if task not in found}
    if missing:
        found |= {task: {} for task in missing}
        looked = Questions(missing)
        rows = source.rows() if isinstance(source, Rows) else data.rows(source)
        number = 0
        for lot in lots(rows, texts):
            each = [list(texts(row)) for row in lot]
            of = [row for row, said in enumerate(each) for _ in said]
            for hits in looked.find(Texts(chain.from_iterable(each)), of).values():
                for hit in hits:
                    known = found[hit.task].get(hit.item, hit.overlap)
                    found[hit.task][hit.item] = min(known, hit.overlap)  # "exact" comes first
            number += len(lot)
            note = f"overlap with {_name(source)}, row {number:,}"
            out.progress(place[0], place[1], "sources", note)
        for task in missing:
            files[task].parent.mkdir(parents=True, exist_ok=True)
            temporary = files[task].with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(found[task]), encoding="utf-8")
            os.replace(temporary, files[task])
    return found


def _content(source: Rows | Source, contents: records.Contents) -> list[Any]:
    """What a source holds: hashes of its files, or the hub's name and commit."""
    made = source if isinstance(source, Rows) else source.stage
    if made is not None:
        if not made.path.is_dir():
            raise StageFailed(f"{made.path} is not in the store any more.")
        return [contents.of(made.path), {} if isinstance(source, Rows) else source.columns]
    assert isinstance(source, Source)
    files = records.data_files(source)
    files += [Path(str(source.path))] if Path(str(source.path)).exists() else []
    return [source.model_dump(include=WHERE | {"columns", "broken"}), *map(contents.of, files)]

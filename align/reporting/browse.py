"""What the page of `align view` asks for, as JSON: the chain, lists of rows, single rows.

Names that come from the page are only ever looked up in the plan: no path is made of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from align import store
from align.artifacts import Report, Rows, read_json
from align.errors import StageFailed
from align.reporting import listing, places, searching, view
from align.reporting.index import Asked, Index, Row
from align.reporting.listing import CANDIDATES, ITEMS
from align.reporting.places import Place, Places

if TYPE_CHECKING:
    from align.recipe import Plan, Planned

PAGE = 50
"""Rows of a list that are sent at once."""

SHARED = ("id", "prompt", "prefix", "answer", "choices", *listing.SIDES, "subset")
"""What every model's row of an item says again."""

TAKEN = {"messages": "kept", "chosen": "chosen", "rejected": "rejected"}
"""By column of the stage that took an answer: what it did."""


class Browser:
    """Answers questions about a recipe's artifacts, from any thread."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.places = Places(plan)
        self._names = {one.artifact.key: one.name for one in plan.stages.values()}
        self._selected = lru_cache(32)(self._select)
        self._saying = lru_cache(8)(self._search)

    def chain(self) -> Row:
        """The recipe's stages with their states, and what can be looked through of each."""
        stages = [self._stage(one) for one in self.plan.stages.values()]
        return {"recipe": self.plan.name, "page": PAGE, "stages": stages}

    def rows(self, asked: Mapping[str, str]) -> Row:
        """A page of a list: filtered, sorted, from `start` on or around the row called `id`."""
        place = self.places.of(asked.get("stage", ""), asked.get("task", ""))
        index = self.places.index(place)
        names = index.names()
        parts = [file.part for file in place.files if file.part]
        ours, theirs = self._pair(place, parts, asked)
        metrics = [name for name in names if name.startswith(listing.METRIC)]
        metric = asked.get("metric", "")
        metric = metric if metric in metrics else next(iter(metrics), "")
        sorts, subsets = place.form.sorted_by(names), index.subsets(ours)
        filter = _known(asked.get("filter", ""), place.form.filters)
        order = _known(asked.get("sort", ""), [*sorts, *[listing.DIFFERENCE] * bool(theirs)])
        subset = _known(asked.get("subset", ""), dict(subsets))
        picked = place.form.filters.get(filter, listing.ALL)
        about = (picked.where, picked.numbers, ours, theirs, metric)
        wanted = Asked(*about, subset, order, asked.get("up") == "1")
        found = self._selected(index, index.version(), wanted, asked.get("search", ""))
        start = _whole(asked.get("start", ""))
        if start >= len(found):  # a page of a longer list
            start = max(0, len(found) - 1) // PAGE * PAGE
        if (n := index.number(asked.get("id", ""), ours)) is not None and n in found:
            start = found.index(n) // PAGE * PAGE
        shown = [metric] if place.form is ITEMS else list(place.form.shown)
        rows = index.summaries(found[start : start + PAGE], [order, *shown] if order else shown)
        return {
            "form": place.form.name,
            "state": view.state(place.one),
            "notes": self.places.notes(place.one),
            "total": len(found),
            "start": start,
            "rows": list(rows),
            "filters": {name: one.words for name, one in place.form.filters.items()},
            "sorts": sorts,
            "subset": place.form.subset,
            "subsets": subsets,
            "parts": {part: self._names.get(part, part) for part in parts},
            "metrics": metrics,
            "taken": {
                **{"task": place.task, "filter": filter, "sort": order, "subset": subset},
                **{"ours": ours, "theirs": theirs, "metric": metric},
            },
        }

    def row(self, asked: Mapping[str, str]) -> Row:
        """One row of a list, by its number `n`."""
        place = self.places.of(asked.get("stage", ""), asked.get("task", ""))
        index = self.places.index(place)
        row = index.row(_whole(asked.get("n", "")))
        if row is None:
            raise StageFailed("This row is no longer there. Look again: r.")
        if place.form is CANDIDATES:
            return self._candidates(place.one, row)
        if place.form is ITEMS:
            told = index.of(str(row["id"]))
            shared = {name: one[name] for one in told.values() for name in SHARED if name in one}
            return {**shared, "models": {part: _answers(one) for part, one in told.items()}}
        return row

    def _stage(self, one: Planned) -> Row:
        found = store.state(one.artifact.path)
        counts = one.artifact.manifest().get("counts", {}) if found == "done" else {}
        told = [_counted(of["n"], name) for name, of in counts.items() if "." not in name]
        return {
            "name": one.name,
            "kind": one.kind,
            "state": found,
            "words": view.state(one) if found != "done" else ", ".join(told),
            "tasks": places.tasks(one),
            "trains": places.trains(one),
            "rows": places.trains(one) or isinstance(one.artifact, (Rows, Report)),
        }

    def _candidates(self, one: Planned, row: Row) -> Row:
        """A prompt with its answers, best first, and which stages took which of them."""
        answers = sorted(row["completions"], key=view.best_first)
        first: dict[str, int] = {}  # answers of the same text are one answer
        for answer in answers:
            first.setdefault(answer["text"], answer["index"])
        taken: dict[int | None, list[str]] = {}
        for taker in self.places.takers(one):
            index = self.places.index(self.places.rows(taker))
            for found in index.owned(str(row["id"])):
                _, _, place = str(found["id"]).rpartition(f"{row['id']}/")
                known = int(place) if "messages" in found and place.isdecimal() else None
                for side in TAKEN.keys() & found.keys():
                    at = first.get(view.said(found[side][-1])) if known is None else known
                    taken.setdefault(at, []).append(f"{TAKEN[side]} by {taker.name}")
        return {
            **row,
            "completions": [
                {k: v for k, v in answer.items() if k != "token_ids"}
                | {"tokens": len(answer["token_ids"]), "taken": taken.get(answer["index"], [])}
                for answer in answers
            ],
        }

    def _pair(self, place: Place, parts: list[str], asked: Mapping[str, str]) -> tuple[str, str]:
        """Two models to compare: those asked for, else the last step that the report compares."""
        if not parts:
            return "", ""
        ours, theirs = asked.get("ours", ""), asked.get("theirs", "")
        report = place.one.artifact.path / "report.json"
        if ours not in parts and report.is_file():
            found = read_json(report)["comparisons"]
            steps = [c for c in found if c["task"] == place.task and c["role"] != "control"]
            pairs = [
                (_file(c["key"], c["model"], parts), _file(c["against_key"], c["against"], parts))
                for c in steps
            ]
            ours, theirs = next((p for p in pairs[::-1] if {*p} <= {*parts}), ("", ""))
        ours = ours if ours in parts else parts[-1]
        others = [part for part in parts[::-1] if part != ours]
        return ours, theirs if theirs in others else next(iter(others), "")

    def _select(self, index: Index, version: int, asked: Asked, words: str) -> array[int]:
        """The numbers of the rows that are wanted; `version` is the index's, to remember by."""
        found = index.select(asked)
        if not words:
            return found
        told = self._saying(index, version, words)
        return array("q", (n for n in found if n in told))

    def _search(self, index: Index, version: int, words: str) -> set[int]:
        work = partial(searching.ids, index.files, index.normal, words)
        found: Iterable[str] = self.places.jobs.result(
            "searching", ("search", index.path, version, words), work
        )
        return index.numbers(found)


def _answers(row: Row) -> Row:
    """What one model did with an item."""
    left = {k: v for k, v in row.items() if k not in (*SHARED, *listing.ANSWERED)}
    return {"answers": listing.answered(row), **left}


def _file(key: str, name: str, parts: list[str]) -> str:
    """Whose file is meant: a made model's is called by its key, one from outside by its name."""
    return key if key in parts else name


def _known(name: str, names: Container[str]) -> str:
    """A name from the page, if there is such a one here: a link may be of an earlier recipe."""
    return name if name in names else ""


def _counted(n: int, names: str) -> str:
    return f"{n:,} {names.removesuffix('s') if n == 1 else names}"


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else 0

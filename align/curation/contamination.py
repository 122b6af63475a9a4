"""Which questions of a benchmark stand in a row: the one rule, for data and for evaluations.

* exact: all the words of a question are all the words of a message, or of a document (as Llama 3
  removes benchmark prompts from its data, arXiv 2407.21783, §4.2.3);
* partial: more than half of the question's own words lie in runs of 8 that also stand in one row
  (as Tulu 3 does, arXiv 2411.15124, §3.2). A question with less than 16 words of its own is looked
  for as it is only: one run is more than half of it.

Words are letters and digits, small (`words.Texts`). The question is the item's `question`, else the
last message of its prompt with those before it until there are 8 words. Runs that stand in many
items are the task's form (instructions, examples before the question, templates), and no item's
own: "I want to know: what is the colour of" is no leak.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from align import rewards
from align.curation.scripts import apart
from align.curation.words import FORM, Texts, runs
from align.settings import Task

RUN = 8
"""Words of a run."""

SHARE = 0.5
"""Of a question's own words, in shared runs; more is an overlap."""

COMMON = 0.005
"""Of a task's items: runs that stand in more of them, and in more than `FEW`, are its form. Each of
MMLU's subjects, with examples of its own, is more than that."""

FEW = 10

RULES = [RUN, SHARE, COMMON, FEW, FORM]

_BITS = np.uint64(22)
"""A table of 2^22 places says of most runs at once that no question has them."""

Item = dict[str, Any]


@dataclass(frozen=True)
class Hit:
    """A question that stands in a row."""

    task: str
    item: str
    overlap: Literal["exact", "partial"]
    gram: str
    """The first words that both have."""


def question(item: Item) -> str:
    """What an item asks, without the examples before it; of a document, its text.

    Of a dialog the last turn, and those before it until there is a run: many people say "Sure".
    """
    asked = item.get("question") or item.get("prompt") or item.get("completion", "")
    if not isinstance(asked, list):
        return " ".join(texts(asked))
    said: list[str] = []
    for message in reversed(asked):
        said = [*texts(message.get("content") or ""), *said]
        if len(apart(" ".join(said))) >= RUN:
            break
    return " ".join(said)


def questions(tasks: Sequence[Task]) -> dict[str, dict[str, str]]:
    """The questions of tasks by their names and their items' ids; of equal tasks, once."""
    different = [task for i, task in enumerate(tasks) if task not in tasks[:i]]
    return {
        name: {str(item["id"]): question(item) for item in task.items()}
        for name, task in zip(rewards.names(different), different, strict=True)
    }


def texts(value: Any) -> Iterator[str]:
    """Every text in a row, whatever its columns are called."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        if isinstance(value.get("instruction"), str) and value.get("input"):
            yield f"{value['instruction']} {value['input']}"
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list) and value and not isinstance(value[0], (int, float)):
        for inner in value:
            yield from texts(inner)


class Questions:
    """The questions of tasks, by their words: `find` those that stand in rows.

    Args:
        tasks: of every task the questions by their items' ids.
        share: of a question's own words; more of them in shared runs is an overlap. With 0 one run
            is enough.
    """

    def __init__(self, tasks: Mapping[str, Mapping[str, str]], share: float = SHARE) -> None:
        self._share = share
        self._places: list[tuple[str, str]] = []
        self._own: list[bytearray] = []
        """Of every question, which of its words are its own."""

        self._runs: list[list[int]] = []
        self._whole: dict[bytes, list[int]] = {}
        """Which questions have these words."""

        self._with: dict[int, list[int]] = {}
        """Which questions have this run, where few have."""

        for task, questions in tasks.items():
            self._add(task, questions)
        self._table = np.zeros(1 << int(_BITS), np.bool_)
        self._table[np.fromiter(self._with, np.uint64, len(self._with)) >> (64 - _BITS)] = True

    def _add(self, task: str, questions: Mapping[str, str]) -> None:
        read = Texts(questions.values())
        found, places = runs(read.numbers, read.lengths, RUN)
        firsts = np.searchsorted(places, read.starts)
        each = [part.tolist() for part in np.split(found, firsts[1:])]
        counts = Counter(run for one in each for run in set(one))
        most = max(FEW, COMMON * len(questions))
        least = RUN / self._share if self._share else RUN
        for i, name in enumerate(questions):
            own = bytearray(b"\1") * int(read.lengths[i])
            for start, run in enumerate(each[i]):
                if counts[run] > most:
                    own[start : start + RUN] = bytes(RUN)
            number = len(self._places)
            self._places.append((task, name))
            self._own.append(own)
            self._runs.append(each[i])
            if own:
                self._whole.setdefault(read.key(i), []).append(number)
            if sum(own) >= least:
                for run in set(each[i]):
                    if counts[run] <= most:
                        self._with.setdefault(run, []).append(number)

    def find(self, read: Texts, rows: Sequence[int]) -> dict[int, list[Hit]]:
        """By row: the questions that stand in it, those that are there as they are first.

        Args:
            read: the texts of several rows.
            rows: which row each of the texts is of, in order.
        """
        found: dict[int, dict[int, Hit]] = {}
        for i, row in enumerate(rows):
            for number in self._whole.get(read.key(i), ()):
                gram = read.run(int(read.starts[i]), min(RUN, int(read.lengths[i])))
                found.setdefault(row, {})[number] = Hit(*self._places[number], "exact", gram)
        for row, shared in self._shared(read, rows).items():
            for number in sorted({number for run in shared for number in self._with[run]}):
                if number not in found.get(row, ()) and self._stands(number, shared):
                    place = min(shared[run] for run in self._runs[number] if run in shared)
                    hit = Hit(*self._places[number], "partial", read.run(place, RUN))
                    found.setdefault(row, {})[number] = hit
        return {row: list(hits.values()) for row, hits in found.items()}

    def _shared(self, read: Texts, rows: Sequence[int]) -> dict[int, dict[int, int]]:
        """By row: the runs that a question has, too, and where each stands first."""
        values, places = runs(read.numbers, read.lengths, RUN)
        likely = np.flatnonzero(self._table[values >> (64 - _BITS)])
        of = np.searchsorted(read.starts, places[likely], side="right") - 1
        found: dict[int, dict[int, int]] = {}
        for text, place, run in zip(of, places[likely], values[likely].tolist(), strict=True):
            if run in self._with:
                found.setdefault(rows[int(text)], {}).setdefault(run, int(place))
        return found

    def _stands(self, number: int, shared: Mapping[int, int]) -> bool:
        """Whether enough of a question's own words lie in runs that are shared."""
        own = self._own[number]
        rest = bytearray(own)
        for start, run in enumerate(self._runs[number]):
            if run in shared:
                rest[start : start + RUN] = bytes(RUN)
        return sum(own) - sum(rest) > self._share * sum(own)

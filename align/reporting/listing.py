"""What can be looked through, and how its rows are told, filtered and sorted.

A list is a stage's rows, the rows it is trained on, or the items of one task of an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import NamedTuple

from align.artifacts import Preferences, Rows, Samples
from align.reporting.index import Facts, Row, finite
from align.reporting.view import said
from align.settings import Dialog

LONGEST = "longest"
CUT = "cut"
DISAGREEMENT = "disagreement"
DIFFERENCE = "difference"
APART = "apart."
"""Before the names of two rewards: by how much they disagree."""

METRIC = "numbers."
"""Before a task's own numbers, so that none of them has one of the names above."""


class Filter(NamedTuple):
    """Which rows are shown: a condition and the numbers it is about, as `index.Asked` has them."""

    words: str
    where: str
    numbers: tuple[str, ...] = ()


ALL = Filter("all", "")


@dataclass(frozen=True)
class Form:
    """How rows of one kind are looked at."""

    name: str
    """What the page draws."""

    facts: Callable[[Row], Facts]
    shown: tuple[str, ...]
    """The numbers a list shows; of several the first that there is."""

    filters: dict[str, Filter]

    sorts: dict[str, str]
    """What the numbers are called that rows are sorted by."""

    subset: str = "subset"
    """What the page calls the subsets of its rows."""

    def sorted_by(self, names: Sequence[str]) -> dict[str, str]:
        """Those of the numbers that there are; a task's own and those of two rewards, too."""
        found = {name: self.sorts[name] for name in names if name in self.sorts}
        for prefix, words in ((METRIC, ""), (APART, "disagreement of ")):
            own = [name for name in names if name.startswith(prefix)]
            found |= {name: words + name.removeprefix(prefix) for name in own}
        return found


def candidates(row: Row) -> Facts:
    """Of a prompt with its answers.

    `disagreement` of two rewards is the share of the pairs of answers that they order in opposite
    ways, Kendall's distance (Kendall 1938, https://doi.org/10.1093/biomet/30.1-2.81).
    """
    answers = row["completions"]
    numbers: dict[str, float | None] = {
        LONGEST: max((len(answer["token_ids"]) for answer in answers), default=0),
        CUT: sum(answer["finish"] == "length" for answer in answers),
    }
    scores = [answer["score"] for answer in answers if answer.get("score") is not None]
    if scores:
        spread = max(scores) - min(scores)
        numbers |= {"best": max(scores), "worst": min(scores), "spread": spread}
    if any("score" in answer for answer in answers):
        numbers["unscored"] = len(answers) - len(scores)
    apart = list(_disagreements(answers))
    numbers |= dict(apart[:20] if len(apart) > 1 else ())
    if apart:
        numbers[DISAGREEMENT] = max(value for _, value in apart)
    return Facts(_title(row["prompt"]), numbers, _subsets(row | row.get("columns", {})))


def _disagreements(answers: list[Row]) -> Iterator[tuple[str, float]]:
    import numpy as np

    scores = answers[0].get("scores", {}) if len(answers) > 1 else {}
    members = [name for name in scores if "." not in name]  # and no detail of one
    signs = {}
    for name in members:
        values = [finite(answer.get("scores", {}).get(name)) for answer in answers]
        each = np.array(values, dtype=float)  # None is nan
        signs[name] = np.sign(each[:, None] - each[None, :])
    for one, other in combinations(members, 2):
        opposite = np.count_nonzero(signs[one] * signs[other] < 0)
        pairs = len(answers) * (len(answers) - 1)
        yield f"{APART}{one} and {other}", float(opposite / pairs)


def pair(row: Row) -> Facts:
    """Of a chosen and a rejected answer, or of a ranking."""
    sides = [row["chosen"], row["rejected"]] if "chosen" in row else row.get("ranked")
    if sides is None:  # it has no form that a stage takes
        return Facts(_title(row["text"]), {})
    lengths = [_length(side) for side in sides]
    numbers: dict[str, float | None] = {LONGEST: max(lengths), "longer": lengths[0] - lengths[-1]}
    numbers |= _read(row)
    scores = row.get("chosen_score"), row.get("rejected_score")
    if scores[0] is not None and scores[1] is not None:
        numbers["margin"] = scores[0] - scores[1]
    elif row.get("margin") is not None:
        numbers["margin"] = row["margin"]
    return Facts(_title(row["prompt"]), numbers, _subsets(row))


def dialog(row: Row) -> Facts:
    """Of a conversation, a prompt or a text."""
    messages = row.get("messages") or row.get("prompt") or row.get("text", "")
    numbers: dict[str, float | None] = {LONGEST: _length(messages)}
    if not isinstance(messages, str):
        numbers["turns"] = len(messages)
    if "score" in row:
        numbers["score"] = row["score"]
    return Facts(_title(messages), numbers | _read(row), _subsets(row))


def _read(row: Row) -> dict[str, float | None]:
    """Of a row as a model is trained on it; nothing of others."""
    if (read := row.get("read")) is None:
        return {}
    numbers = {"tokens": read["tokens"], "learnt": read["learnt"], "left out": read["left_out"]}
    return numbers | {"shortened": bool(read["note"]) and not read["left_out"]}


def removed(row: Row) -> Facts:
    """Of a row that a rule removed; its reason is its subset."""
    numbers: dict[str, float | None] = {LONGEST: _length(row["messages"])}
    for name, value in row["facts"].items():
        if isinstance(value, (int, float)):
            numbers[METRIC + name] = value
    return Facts(_title(row["messages"]), numbers, [row["reason"]])


def item(row: Row) -> Facts:
    """Of what one model did with an item of a task."""
    numbers: dict[str, float | None] = {METRIC + k: v for k, v in row["numbers"].items()}
    told = answered(row)
    if told:
        numbers[LONGEST] = max(len(text) for text, _ in told)
        numbers[CUT] = sum(finish in ("length", "no room") for _, finish in told)
    return Facts(_title(row["prompt"]), numbers, _subsets(row))


ANSWERED = ("text", "finish", "texts", "finishes")
SIDES = ("chosen_text", "rejected_text")
"""What an item has that a reward model compares: a dialog or a text, or a list of them."""


def answered(row: Row) -> list[tuple[str, str]]:
    """A model's answers to an item, each with how it ended; one or several samples."""
    if "texts" in row:
        return list(zip(row["texts"], row["finishes"], strict=True))
    return [(row.get("text", ""), row["finish"])] if "finish" in row else []


CANDIDATES = Form(
    "candidates",
    candidates,
    ("best", LONGEST),
    {
        "disagree": Filter("rewards disagree on most pairs", "{0} > 0.5", (DISAGREEMENT,)),
        "cut": Filter("an answer was cut", "{0} > 0", (CUT,)),
        "tied": Filter("all scores are equal", "{0} = 0", ("spread",)),
        "not scored": Filter("an answer has no score", "{0} > 0", ("unscored",)),
    },
    {
        "best": "best score",
        "worst": "worst score",
        "spread": "spread of scores",
        LONGEST: "longest answer (tokens)",
        CUT: "answers cut",
        DISAGREEMENT: "disagreement of rewards",
    },
)
PAIRS = Form(
    "pair",
    pair,
    ("margin", LONGEST),
    {
        "chosen longer": Filter("chosen is longer", "{0} > 0", ("longer",)),
        "rejected longer": Filter("rejected is longer", "{0} < 0", ("longer",)),
        "wrong": Filter("rejected scores as much", "{0} <= 0", ("margin",)),
    },
    {
        "margin": "margin",
        LONGEST: "longest answer (characters)",
        "longer": "chosen minus rejected (characters)",
    },
)
DIALOGS = Form(
    "dialog",
    dialog,
    ("score", "turns", LONGEST),
    {"turns": Filter("several turns", "{0} > 2", ("turns",))},
    {"score": "score", "turns": "turns", LONGEST: "length (characters)"},
)
REMOVED = Form(
    "removed", removed, (LONGEST,), {}, {LONGEST: "length (characters)"}, subset="reason"
)
ITEMS = Form(
    "item",
    item,
    (),
    {
        "flipped": Filter("flipped", "{a} != {b}"),
        "won": Filter("flipped: won", "{a} > {b}"),
        "lost": Filter("flipped: lost", "{a} < {b}"),
        "disagree": Filter(
            "any models disagree", "EXISTS (SELECT 1 FROM rows o WHERE o.id = a.id AND {o} != {a})"
        ),
        "cut": Filter("the answer was cut", "{0} > 0", (CUT,)),
        "not graded": Filter("not graded", "{a} IS NULL"),
    },
    {LONGEST: "longest answer (characters)", CUT: "answers cut"},
)


def trained(kind: type[Rows]) -> Form:
    """How rows are looked at that a stage is trained on."""
    known = form(kind)
    return replace(
        known,
        shown=("tokens", *known.shown),
        filters=known.filters
        | {
            "left out": Filter("left out", "{0} > 0", ("left out",)),
            "shortened": Filter("shortened", "{0} > 0", ("shortened",)),
        },
        sorts=known.sorts | {"tokens": "tokens", "learnt": "tokens that are learnt"},
    )


def form(kind: type[Rows]) -> Form:
    """How rows of an artifact are looked at."""
    if issubclass(kind, Samples):
        return CANDIDATES
    return PAIRS if issubclass(kind, Preferences) else DIALOGS


def _title(dialog: str | Dialog | None) -> str:
    """What is asked: the last turn of the user; of examples in a long text what follows them."""
    if isinstance(dialog, str):
        text = dialog if len(dialog) < 1000 else dialog.rstrip().rpartition("\n\n")[2]
    else:
        asked = [message for message in dialog or () if message["role"] == "user"] or dialog
        text = said(asked[-1]) if asked else ""
    return " ".join(islice(text[:2000].split(), 60))


def _length(dialog: str | Dialog) -> int:
    """Characters."""
    return len(dialog) if isinstance(dialog, str) else sum(len(said(one)) for one in dialog)


def _subsets(row: Row) -> list[str]:
    found = row.get("subset") or []
    return [str(name) for name in (found if isinstance(found, list) else [found])]

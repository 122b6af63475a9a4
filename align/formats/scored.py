"""Several answers to a prompt with a score each: best of n, as UltraFeedback has them."""

from __future__ import annotations

import json
import math
from typing import Any

from align.formats.answers import asked, conversation_of
from align.formats.comparisons import compared
from align.formats.dialogs import Choice, Made, Row, Unusable, column, dialog, listed, loaded, shown
from align.settings import Dialog

ANSWERS = ("completions", "responses", "generations")
"""Columns of several answers to one prompt."""

SCORES = ("scores", "rewards")
"""Columns of their scores. Answers that are objects have their own: `overall_score` or `score`."""


def is_scored(row: Row) -> bool:
    """Whether the answers of a row have scores."""
    answers = loaded(row[column(row, *ANSWERS)])
    beside = any(key in row for key in SCORES)
    first = answers[0] if isinstance(answers, list) and answers else None
    inside = isinstance(first, dict) and ("overall_score" in first or "score" in first)
    return isinstance(answers, list) and (beside or inside)


def ranking_by_score(row: Row, _: Choice) -> Made:
    """All answers that have a score, best first; of equal scores one."""
    found = _scored(row)
    yield from (Unusable("no_score") for _place in range(len(_answers(row)) - len(found)))
    ranked: list[tuple[float, Dialog]] = []
    for score, answer in found:
        if ranked and ranked[-1][0] == score:
            yield Unusable("equal_score", score=score, answer=str(answer[-1]["content"])[:200])
        else:
            ranked.append((score, answer))
    if len(ranked) < 2:
        raise Unusable("nothing_to_compare")
    made = compared(asked(row), [answer for _score, answer in ranked], row)
    if "chosen" in made and len(ranked) == 2:
        made |= {"chosen_score": ranked[0][0], "rejected_score": ranked[1][0]}
    yield made


def best_of_n(row: Row, _: Choice) -> Made:
    """The answer with the highest score."""
    found = _scored(row)
    if not found:
        raise Unusable("no_score")
    yield conversation_of(row, asked(row), found[0][1])


def _answers(row: Row) -> list[Any]:
    where = column(row, *ANSWERS)
    return listed(row[where], where)


def _scored(row: Row) -> list[tuple[float, Dialog]]:
    """(score, answer) of what has a score, best first; of equal ones first what sorts first."""
    answers = _answers(row)
    own = next((listed(row[key], key) for key in SCORES if row.get(key) is not None), None)
    if own is not None and len(own) != len(answers):
        raise ValueError(f"it has {len(answers)} answers and {len(own)} scores")
    found = []
    for place, answer in enumerate(answers):
        score = own[place] if own is not None else None
        if isinstance(answer, dict):
            score = answer.get("overall_score", answer.get("score")) if own is None else score
            if "role" not in answer:
                answer = answer.get("response", answer.get("text"))
            else:
                marks = ("overall_score", "score")
                answer = {key: said for key, said in answer.items() if key not in marks}
        if (number := _number(score)) is not None:
            found.append((number, dialog(answer, "assistant", "answers")))
    return sorted(found, key=lambda one: (-one[0], json.dumps(one[1], sort_keys=True)))


def _number(score: Any) -> float | None:
    """A score; None for what is none, as null and UltraFeedback's "N/A"."""
    try:
        found = float("nan" if score is None else score)
    except TypeError:
        raise TypeError(f"a score is {shown(score)}, and must be a number") from None
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None

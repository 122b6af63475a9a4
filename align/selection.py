"""What `reject` and `pair` share: which answers may be chosen, and chance that is not an order."""

from __future__ import annotations

import hashlib
from typing import Any

from align.out import Out

Row = dict[str, Any]
"""A row of Scored."""

Answer = dict[str, Any]
"""A completion of such a row."""


def candidates(row: Row, allow_cut: bool, out: Out) -> list[Answer]:
    """The answers that may be chosen, in the order of their index; the others are counted.

    Answers without a score (no reward applied) and, unless allowed, those that were cut.
    """
    found = []
    for answer in sorted(row["completions"], key=lambda answer: answer["index"]):
        if answer["score"] is None:
            out.count("dropped.no_score", example={"id": row["id"], "index": answer["index"]})
        elif answer["finish"] == "length" and not allow_cut:
            out.count("dropped.cut", example={"id": row["id"], "end": answer["text"][-200:]})
        else:
            found.append(answer)
    return found


def chance(seed: int, prompt: str, index: int) -> bytes:
    """Sort by it to draw at random: depends on the seed, the prompt's id and the answer's index."""
    return hashlib.sha256(f"{seed}\n{index}\n{prompt}".encode()).digest()


def message(answer: Answer) -> dict[str, Any]:
    """An answer as the assistant's message."""
    return {"role": "assistant", "content": answer["text"]}


def short(row: Row) -> list[Answer]:
    """A row's answers in order, without the columns that fill the memory."""
    answers = sorted(row["completions"], key=lambda answer: answer["index"])
    return [{k: v for k, v in one.items() if k not in ("token_ids", "scores")} for one in answers]


def worth(rows: list[Row]) -> dict[str, Any]:
    """What more answers per prompt are worth, from all that have scores (cut ones included).

    `best_of` is the mean over prompts of E[best of k], k = 1..n; prompts that lack a score are left
    out of it. `equal` is the share of prompts whose answers all score the same.
    """
    import numpy as np

    from align import stats

    scores = [[answer["score"] for answer in row["completions"]] for row in rows]
    n = max(map(len, scores))
    full = [one for one in scores if len(one) == n and None not in one]
    if not full:
        return {}
    curve = stats.best_of(np.array(full)).mean(0)
    return {
        "best_of": [round(float(value), 6) for value in curve],
        "mean": float(curve[0]),
        "gain": float(curve[-1] - curve[0]),
        "equal": sum(len(set(one)) == 1 for one in full) / len(full),
    }

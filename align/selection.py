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

"""Dialogs that a model speaks turn by turn, under an instruction before everything it is told."""

from __future__ import annotations

from typing import Any

from align.generation import draws
from align.generation.draws import Ask, Draw, Row
from align.parallel.shards import Shard
from align.settings import Dialog


def given(row: Row, turn: int) -> Dialog:
    """What the model is given for its answer to a turn of the user.

    Args:
        row: `instruction`, the user's `turns`, and the model's `answers` so far.
        turn: which, from 0.
    """
    said: Dialog = []
    for k in range(turn + 1):
        said.append(message("user", f"{row['instruction']}\n\n{row['turns'][k]}"))
        said += [message("assistant", text) for text in row["answers"][k : k + 1] if k < turn]
    return said


def spoken(ask: Ask, draw: Draw, rows: list[Row], out: Shard) -> list[Row]:
    """Have the dialogs of a shard answered, those of a turn together.

    Adds to the rows' `answers`, and says in `ended` why there are no more: `cut` for an answer that
    had not ended at `max_new_tokens` (it is left out), `no_room` where there was none.
    """
    most = max(len(row["turns"]) for row in rows)
    for turn in range(most):
        going = [row for row in rows if turn < len(row["turns"]) and "ended" not in row]
        asked: list[Row] = [
            {"id": f"{row['id']}/{turn}", "prompt": given(row, turn), "columns": {}, "draws": [0]}
            for row in going
        ]
        found = draws.answers(ask, [draw], asked, out, (turn, most)) if asked else {}
        for row, answers in zip(going, found.values(), strict=True):
            if answers and answers[0]["finish"] == "stop":
                row["answers"].append(answers[0]["text"])
            else:
                row["ended"] = "cut" if answers else "no_room"
    return rows


def message(role: str, text: str) -> dict[str, Any]:
    """A message of a dialog."""
    return {"role": role, "content": text}

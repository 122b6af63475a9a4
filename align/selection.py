"""What `reject` and `pair` share: which answers may be chosen, in which order, and chance.

Every function looks at one prompt's row at a time, so that neither stage holds the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from align.artifacts import Scored
from align.errors import StageFailed
from align.out import Out

Row = dict[str, Any]
"""A row of Scored."""

Answer = dict[str, Any]
"""A completion of such a row."""

Ties = Literal["first", "shortest", "random"]


class Earlier:
    """The rows of an earlier round by prompt; only where each one lies is kept in memory."""

    def __init__(self, scored: Scored) -> None:
        self.key = scored.key
        self._places: dict[str, tuple[Path, int]] = {}
        for file in scored.files():
            at = 0
            with file.open("rb") as lines:
                for line in lines:
                    self._places[json.loads(line)["id"]] = file, at
                    at += len(line)

    def row(self, prompt: str) -> Row | None:
        """The row of the prompt of that id, None where it was not asked then."""
        if prompt not in self._places:
            return None
        file, at = self._places[prompt]
        with file.open("rb") as lines:
            lines.seek(at)
            found: Row = json.loads(lines.readline())
        return found


def merged(scored: Scored, bank: Sequence[Earlier], out: Out | None) -> Iterator[Row]:
    """The rows, the answers of earlier rounds after their own: numbered on, marked as `earlier`.

    Two files may number their prompts alike: answers to another prompt of that id are left out.

    Raises:
        StageFailed: an earlier round has prompts of the same ids, and all of them are others.
    """
    same, other = set[str](), set[str]()  # rounds, by what their prompts of these ids are
    for row in scored.rows():
        completions, differs = list(row["completions"]), False
        for one in bank:
            earlier = one.row(row["id"])
            if earlier is None:
                continue
            if earlier["prompt"] != row["prompt"]:
                other.add(one.key)
                differs = True
                continue
            same.add(one.key)
            start = 1 + max((answer["index"] for answer in completions), default=-1)
            for answer in earlier["completions"]:
                completions.append({**answer, "index": start + answer["index"], "earlier": True})
        if differs and out is not None:
            out.count("dropped.other_prompt", example={"id": row["id"]})
        yield {**row, "completions": completions}
    if strangers := sorted(other - same):
        raise StageFailed(
            f"{', '.join(strangers)} in the bank asked something else under every id it shares "
            f"with {scored.key}. Give every prompt an id of its own, the same one in all rounds."
        )


def candidates(row: Row, allow_cut: bool, out: Out | None) -> list[Answer]:
    """The answers that may be chosen, in the order of their index; the others are counted.

    Answers without a score (no reward applied) and, unless allowed, those that were cut.
    """
    found = []
    for answer in sorted(row["completions"], key=lambda answer: answer["index"]):
        if answer["score"] is None:
            why, example = "no_score", {"id": row["id"], "index": answer["index"]}
        elif answer["finish"] == "length" and not allow_cut:
            why, example = "cut", {"id": row["id"], "end": answer["text"][-200:]}
        else:
            found.append(answer)
            continue
        if out is not None:
            out.count(f"dropped.{why}", example=example)
    return found


def distinct(answers: Iterable[Answer]) -> list[Answer]:
    """The first answer of every text: white space at the ends makes no other answer."""
    found: dict[str, Answer] = {}
    for answer in answers:
        found.setdefault(answer["text"].strip(), answer)
    return list(found.values())


def ranked(row: Row, answers: list[Answer], ties: Ties, seed: int) -> list[Answer]:
    """The different answers, best score first; equal scores as `ties` says, then by index.

    Of answers with the same text the best is the one: white space may have changed the score.
    """

    def key(answer: Answer) -> tuple[float, int | bytes, int]:
        tie: int | bytes = 0
        if ties == "shortest":
            tie = length(answer)
        elif ties == "random":
            tie = chance(seed, row["id"], answer["index"])
        return -answer["score"], tie, answer["index"]

    return distinct(sorted(answers, key=key))


def shuffled(row: Row, answers: list[Answer], seed: int) -> list[Answer]:
    """The different answers in an order of chance: a text said twice comes early twice as often."""
    return distinct(sorted(answers, key=lambda a: chance(seed, row["id"], a["index"])))


def chance(seed: int, prompt: str, index: int) -> bytes:
    """Sort by it to draw at random: depends on the seed, the prompt's id and the answer's index."""
    return hashlib.sha256(f"{seed}\n{index}\n{prompt}".encode()).digest()


def length(answer: Answer) -> int:
    """An answer's tokens."""
    return len(answer["token_ids"])


def dropped(out: Out) -> str:
    """What was left out so far and how often: `cut: 3, no_score: 1`."""
    names = [name for name in out.counts if name.startswith("dropped.")]
    return ", ".join(f"{name.partition('.')[2]}: {out.counts[name]['n']}" for name in names)


def message(answer: Answer) -> dict[str, Any]:
    """An answer as the assistant's message."""
    return {"role": "assistant", "content": answer["text"]}


def conversation(row: Row, answer: Answer) -> dict[str, Any]:
    """A prompt and an answer as a row of Conversations; the prompt's own columns stay with it."""
    columns = {k: v for k, v in row["columns"].items() if k not in ("messages", "prompt_id")}
    return {
        "id": f"{row['id']}/{answer['index']}",
        "prompt_id": row["id"],
        "messages": [*row["prompt"], message(answer)],
        **columns,
        "score": answer["score"],
    }

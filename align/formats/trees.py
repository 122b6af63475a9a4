"""Conversation trees with human ranks, as Open-Assistant exports them (arXiv 2304.07327).

A tree is one nested row (`prompt` with `replies`), or its messages are rows of their own, each with
its `parent_id`. Rank 0 is the best of the replies to one message.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from align.formats.answers import check_words
from align.formats.comparisons import compared
from align.formats.dialogs import (
    KNOWN,
    ROLES,
    Choice,
    Made,
    Row,
    Unusable,
    answered,
    checked,
    dialog,
    role_of,
    shown,
)
from align.settings import Dialog

Thread = list[Row]
"""Messages from the root of a tree to one of them."""


def is_tree(row: Row) -> bool:
    """Whether a row is a tree, or a message of one."""
    if isinstance(row.get("prompt"), dict):
        return "replies" in row["prompt"]
    return all(name in row for name in ("message_id", "parent_id", "role", "text"))


# -- messages that stand apart -------------------------------------------------------------------


def gather(rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, Row | Exception]]:
    """Trees of messages, wherever in the file they stand; (row of the root, tree).

    The messages wait in a file that SQLite deletes: one tree at a time is in memory.
    """
    with closing(sqlite3.connect("")) as file:
        file.execute("PRAGMA journal_mode = OFF")
        file.execute(
            "CREATE TABLE messages (id TEXT PRIMARY KEY, parent TEXT, n INTEGER, row TEXT)"
        )
        for number, row in rows:
            if "message_id" not in row or row.get("replies"):
                yield number, row if "prompt" in row else {"prompt": row}
                continue
            key, parent = _key(row["message_id"]), _key(row.get("parent_id"))
            values = (key, parent, number, json.dumps(row, default=str))
            if not file.execute(
                "INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?)", values
            ).rowcount:
                yield number, Unusable("same_message", message=row["message_id"])
        file.execute("CREATE INDEX by_parent ON messages (parent)")
        reached = 0
        for number, root in file.execute(
            "SELECT n, row FROM messages WHERE parent IS NULL ORDER BY n"
        ):
            tree = json.loads(root)
            reached += _grow(tree, file)
            yield number, {"prompt": tree, "tree_state": tree.get("tree_state")}
        (total,) = file.execute("SELECT count(*) FROM messages").fetchone()
        for number, lost in file.execute(_LOST) if reached < total else ():
            yield number, Unusable("no_parent", message=lost)


_LOST = """
WITH RECURSIVE reached (id) AS (
    SELECT id FROM messages WHERE parent IS NULL
    UNION SELECT messages.id FROM messages JOIN reached ON messages.parent = reached.id
)
SELECT n, id FROM messages WHERE id NOT IN reached ORDER BY n
"""
"""The messages that are below no root."""


def _key(value: Any) -> str | None:
    """An id as a text, however it is written: pandas makes 1.0 of 1, and csv has no null."""
    if value is None or value == "" or value != value:
        return None
    text = str(value)
    return text[:-2] if re.fullmatch(r"\d+\.0", text) else text


def _grow(root: Row, file: sqlite3.Connection) -> int:
    """Hang all replies below a message; how many messages there are with it."""
    waiting, total = [root], 0
    while waiting:
        message = waiting.pop()
        found = file.execute(
            "SELECT row FROM messages WHERE parent = ? ORDER BY n", (_key(message["message_id"]),)
        )
        message["replies"] = [json.loads(row) for (row,) in found]
        waiting += message["replies"]
        total += 1
    return total


# -- what a tree becomes -------------------------------------------------------------------------


def conversations(row: Row, choice: Choice) -> Made:
    """Every path from the root to a last answer, as Open-Assistant's export for SFT has them.

    With `best`, only over replies whose rank is below it, or which are the only one.
    """
    for thread in _threads(row, choice.best):
        if isinstance(thread, Unusable):
            yield thread
        elif thread[-1]["role"] == "assistant" and not _goes_on(thread[-1], choice.best):
            yield _row(thread, lambda said: answered({"messages": said}))


def prompts(row: Row, _: Choice) -> Made:
    """The dialog up to every turn of a prompter; what a model wrote is left out."""
    for thread in _threads(row, human=True):
        if isinstance(thread, Unusable):
            yield thread
        elif thread[-1]["role"] == "prompter":
            yield _row(thread, lambda said: {"prompt": checked(said)})


def preferences(row: Row, _: Choice) -> Made:
    """The ranked replies to every turn of a prompter, of equal ranks one."""
    for thread in _threads(row, human=True):
        if isinstance(thread, Unusable):
            yield thread
        elif thread[-1]["role"] == "prompter" and thread[-1].get("replies"):
            yield from _ranking(thread)


def _ranking(thread: Thread) -> Made:
    replies = [reply for reply in thread[-1]["replies"] if _wrong(reply, human=True) is None]
    ranked: dict[float, Row] = {}
    for reply in sorted(replies, key=lambda reply: str(reply["message_id"])):
        if (rank := _rank(reply)) is None:
            yield Unusable("unranked", message=reply["message_id"])
        elif rank in ranked:
            yield Unusable("equal_rank", message=reply["message_id"], rank=reply["rank"])
        else:
            ranked[rank] = reply
    answers = [_dialog([ranked[rank]]) for rank in sorted(ranked)]
    if len(answers) < 2:
        yield Unusable("nothing_to_compare", message=thread[-1]["message_id"])
        return
    yield _row(thread, lambda said: compared(said, answers, {}))


def _row(thread: Thread, make: Callable[[Dialog], Row]) -> Row | Unusable:
    """What is made of a thread, with the id of its last message."""
    try:
        return {"id": thread[-1]["message_id"], **make(_dialog(thread))}
    except Unusable as why:
        return Unusable(str(why), message=thread[-1]["message_id"])


def _dialog(thread: Thread) -> Dialog:
    return dialog([{"role": one["role"], "content": one["text"]} for one in thread], "user", "tree")


def _threads(row: Row, best: int | None = None, human: bool = False) -> Iterator[Thread | Unusable]:
    """The thread to every message of a tree, and one `Unusable` for each that is left out."""
    state = row.get("tree_state") or "ready_for_export"
    if state != "ready_for_export":
        yield Unusable("tree_not_ready", tree_state=state)
        return
    if row["prompt"] is None:
        raise Unusable("null")
    check_words(row)
    waiting: list[Thread] = [[row["prompt"]]]
    while waiting:
        thread = waiting.pop()
        *above, message = thread
        _check(message)
        why = _wrong(message, human)
        if above and not _follows(above[-1], message, best):
            why = "lower_rank"
        if why is None:
            yield thread
            waiting += [[*thread, reply] for reply in reversed(message.get("replies") or ())]
        else:
            for lost in _messages(message):
                yield Unusable(why, message=lost["message_id"])


def _check(message: Row) -> None:
    """Refuse a message of nobody, and one about what a model of text cannot read."""
    check_words(message)
    if role_of(message) not in (*KNOWN, *ROLES):
        raise ValueError(
            f"a message of a tree has the role {shown(message['role'])}, and roles are prompter "
            "and assistant"
        )


def _wrong(message: Row, human: bool) -> str | None:
    """Why a message is not used; everything below it goes with it."""
    reasons = {
        "deleted": _word(message, "deleted") == "true",
        "review_failed": _word(message, "review_result") == "false",
        "synthetic": human and _word(message, "synthetic") == "true",
    }
    return next((why for why, true in reasons.items() if true), None)


def _word(message: Row, name: str) -> str:
    """ "true" or "false" for a mark, which in a table is a word or a number."""
    word = str(message.get(name)).lower().removesuffix(".0")
    return {"1": "true", "0": "false"}.get(word, word)


def _rank(reply: Row) -> float | None:
    """The rank of a reply; None where it has none, which in a table is an empty cell or NaN."""
    value = reply.get("rank")
    if value is None or value == "":
        return None
    try:
        rank = float(value)
    except ValueError:
        raise ValueError(f"a rank is {shown(value)}, and must be a number") from None
    return None if math.isnan(rank) else rank


def _follows(message: Row, reply: Row, best: int | None) -> bool:
    if best is None or message["role"] != "prompter":
        return True
    if (rank := _rank(reply)) is None:
        return len(message["replies"]) == 1
    return rank < best


def _goes_on(message: Row, best: int | None) -> bool:
    """Whether another answer follows below a message that is used."""
    for question in message.get("replies") or ():
        if _wrong(question, human=False) is None:
            for reply in question.get("replies") or ():
                if _wrong(reply, human=False) is None and _follows(question, reply, best):
                    return True
    return False


def _messages(root: Row) -> Iterator[Row]:
    waiting = [root]
    while waiting:
        message = waiting.pop()
        yield message
        waiting += reversed(message.get("replies") or ())

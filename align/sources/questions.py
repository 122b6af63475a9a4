"""What a row asks, as a number: by it, splits of data are kept apart."""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any

from align.errors import StageFailed
from align.settings import Dialog, Message

Row = dict[str, Any]

BEHAVES = 64
"""Words of a system message that says how to behave, at most: a longer one is a document."""


def asked(row: Row) -> Dialog:
    """The dialog of a row up to the assistant's first answer: every row of one conversation, or of
    one tree, asks the same. What the system says counts only where nobody else speaks, or where it
    is so long that the question is about it.

    Raises:
        StageFailed: it is a document, which asks nothing.
    """
    said = row.get("messages") or row.get("prompt")
    if said is None:
        raise StageFailed("Documents have no prompts by which they could be kept apart.")
    roles = [message["role"] for message in said]
    asks = said[: roles.index("assistant")] if "assistant" in roles else said
    return [message for message in asks if not _behaves(message)] or list(asks)


def _behaves(message: Message) -> bool:
    is_told = message["role"] in ("system", "developer")
    return is_told and len(str(message.get("content")).split()) <= BEHAVES


def number(row: Row) -> int:
    """64 bits of the hash of what a row asks, whatever the case, blanks and forms of letters."""
    texts = (f"{message['role']} {message.get('content')}" for message in asked(row))
    words = " ".join(unicodedata.normalize("NFKC", "\n".join(texts)).casefold().split())
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")


class Questions:
    """What rows ask, in 8 bytes each."""

    def __init__(self, rows: Iterable[Row]) -> None:
        import numpy as np

        self._numbers = array("Q", map(number, rows))
        np.frombuffer(self._numbers, np.uint64).sort()

    def __contains__(self, row: Row) -> bool:
        wanted = number(row)
        place = bisect_left(self._numbers, wanted)
        return place < len(self._numbers) and self._numbers[place] == wanted

    def without(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that ask something else."""
        return (row for row in rows if row not in self)

"""Personal data and secrets in texts, and what stands in their place."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field

from align.curation.rules import Row
from align.settings import Settings

Kind = Literal["email", "phone", "ip", "iban", "card", "key"]


class Pii(Settings):
    """Personal data gives way to placeholders: `<EMAIL_1>`, `<PHONE_2>` …

    They are numbered within a row, in the order in which they come: who is named twice stays one
    person, and what becomes of a row follows from the row alone. The row is kept.
    """

    kinds: list[Kind] = Field(["email", "phone", "ip", "iban", "card", "key"], min_length=1)
    """`ip`: public addresses; `iban`, `card`: numbers whose checksum is right; `key`: tokens of
    services, private keys, and what is assigned to a name like `api_key`."""

    def change(self, row: Row) -> tuple[Row, Counter[str]]:
        """The row with placeholders, and how many things of each kind were found in it."""
        raise NotImplementedError

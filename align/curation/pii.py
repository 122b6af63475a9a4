"""Personal data and secrets in rows, and what stands in their place."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal

from pydantic import Field

from align.curation import keys, personal
from align.curation.hashes import NAMES, SAYS
from align.curation.personal import Found
from align.curation.rules import Row, in_json
from align.rendering import THOUGHTS
from align.settings import Settings

Kind = Literal["email", "phone", "ip", "iban", "card", "key"]

_FINDERS: dict[Kind, Callable[[str, int], Iterable[Found]]] = {
    "key": keys.keys,  # first: a token may hold what looks like a number of another kind
    "email": personal.emails,
    "iban": personal.ibans,
    "card": personal.cards,
    "ip": personal.addresses,
    "phone": personal.phones,
}

_SAID = ("text", "content", *THOUGHTS)
"""What is learnt as it is written; of any other text that is JSON the strings are read."""

_JSON = re.compile(r"\s*[\[{]")

_PLACEHOLDER = re.compile(r"<([A-Z]{2,5})_([0-9]{1,9})>")


class Pii(Settings):
    """Personal data gives way to placeholders: `<EMAIL_1>`, `<PHONE_2>` …

    They are numbered within a row, in the order in which they come: who is named twice stays one
    person, and what becomes of a row follows from the row alone. The row is kept. Every text of it
    is changed but `id` and `source`: thoughts, tools and what they are called with, and the columns
    beside. Names and postal addresses are not looked for.
    """

    kinds: list[Kind] = Field(["email", "phone", "ip", "iban", "card", "key"], min_length=1)
    """`email`: but none at `example.com`; `phone`: but no toll-free ones; `ip`: public addresses;
    `iban`, `card`: numbers whose checksum is right; `key`: tokens of services, private keys, and
    random values with a name like `api_key`."""

    def change(self, row: Row) -> tuple[Row, Counter[str]]:
        """The row with placeholders, and how many things of each kind were found in it."""
        finders = [(kind, find) for kind, find in _FINDERS.items() if kind in self.kinds]
        names: defaultdict[Kind, dict[str, str]] = defaultdict(dict)
        taken: Counter[str] = Counter()
        counts: Counter[str] = Counter()

        def scrubbed(text: str) -> str:
            known = len(personal.digits(text))
            for kind, find in finders:
                if found := list(find(text, known)):
                    if not counts:
                        taken.update(_highest(row))
                    counts[kind] += len(found)
                    text = _replaced(text, kind, found, names[kind], taken[kind])
            return text

        new = _rewritten(row, scrubbed)
        return (new, counts) if counts else (row, counts)


def _rewritten(row: Row, change: Callable[[str], str]) -> Row:
    """A row with every text changed: first what it says, then the columns beside."""
    first = [key for key in SAYS if key in row]
    beside = [key for key in row if key not in (*SAYS, *NAMES)]
    return {**row, **{key: _changed(row[key], change, key) for key in first + beside}}


def _changed(value: Any, change: Callable[[str], str], key: str) -> Any:
    """A value of this name with its texts changed, at any depth; numbers and names stay."""
    if isinstance(value, dict):
        return {name: _changed(inner, change, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_changed(inner, change, key) for inner in value]
    if not isinstance(value, str):
        return value
    new = None
    if key not in _SAID and _JSON.match(value):
        new = in_json(value, lambda text: str(_changed(text, change, key)))
    return change(value) if new is None else new


def _highest(row: Row) -> dict[str, int]:
    """The last number of each kind in what a row holds already: who comes now is somebody else."""
    highest: dict[str, int] = {}

    def look(text: str) -> str:
        for kind, number in _PLACEHOLDER.findall(text):
            highest[kind.lower()] = max(int(number), highest.get(kind.lower(), 0))
        return text

    _rewritten(row, look)
    return highest


def _replaced(text: str, kind: Kind, found: list[Found], names: dict[str, str], taken: int) -> str:
    parts, at = [], 0
    for start, end, identity in found:
        name = names.setdefault(identity, f"<{kind.upper()}_{taken + len(names) + 1}>")
        parts += [text[at:start], name]
        at = end
    return "".join([*parts, text[at:]])

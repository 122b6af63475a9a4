"""What an option accepts, and how a message says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from align.yaml import show


@dataclass(frozen=True)
class Type:
    """What an option accepts: any of `kinds`; words only among `words` where there are some."""

    kinds: frozenset[str] = frozenset({"any"})
    words: tuple[str, ...] = ()
    item: Type | None = None
    """What the items of a list are."""

    def accepts(self, value: Any) -> bool:
        """Whether a YAML value fits. A whole number fits where a number does."""
        kinds = self.kinds
        if "any" in kinds:
            return True
        if value is None:
            return "none" in kinds
        if isinstance(value, bool):
            return "bool" in kinds or (value is False and "false" in kinds)
        if isinstance(value, int):
            return bool(kinds & {"int", "float"})
        if isinstance(value, float):
            return "float" in kinds
        if isinstance(value, str):
            return value in self.words or "str" in kinds
        if isinstance(value, list):
            item = self.item
            return "list" in kinds and (item is None or all(map(item.accepts, value)))
        return "dict" in kinds

    def __or__(self, other: Type) -> Type:
        """Either of two types."""
        item = self.item if other.item is None else other.item
        words = (*self.words, *(word for word in other.words if word not in self.words))
        return Type(self.kinds | other.kinds, words, item)

    def __str__(self) -> str:
        """The type in words, as a message says it."""
        names = {
            "bool": "true or false",
            "int": "a whole number",
            "float": "a number",
            "str": "a word",
            "list": "a list",
            "dict": "a block with keys",
            "none": "null",
            "false": "false",
        }
        kinds = self.kinds - ({"int"} if "float" in self.kinds else set())
        parts = [text for kind, text in names.items() if kind in kinds and kind != "none"]
        if self.item is not None and "any" not in self.item.kinds and "list" in kinds:
            parts[parts.index("a list")] = f"a list, each item {self.item}"
        if self.words and "str" not in kinds:
            shown = [*map(show, self.words[:MOST]), *(["…"] if len(self.words) > MOST else [])]
            parts = [*shown, *parts]
        parts += ["null"] if "none" in kinds and len(parts) > 0 else []
        if len(parts) < 2:
            return "".join(parts) or "null"
        return ", ".join(parts[:-1]) + " or " + parts[-1]


ANY = Type()

MOST = 12
"""Of more words than this a message names the first."""

"""How much better an answer is, in the four levels of Llama 3 (arXiv 2407.21783, §4.2.1)."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from align.formats.dialogs import Row, Unusable, shown

Level = Literal["significantly", "better", "slightly", "marginally"]

LEVELS = ("marginally", "slightly", "better", "significantly")
"""By the numbers 0 to 3, the scale of HelpSteer and (in thirds) of Llama 2's margins."""

SIGNED = ("preference_strength", "overall_preference")
"""Columns that say which of two answers is better, and by how much, as HelpSteer2's and 3's."""

COLUMNS = ("strength", *SIGNED)
"""Columns of a level: a word or a number."""

_WORDS = {name: name for name in LEVELS} | {"much": "significantly", "negligibly": "marginally"}
"""First words of levels: HelpSteer says "much better", Llama 2 "negligibly better / unsure"."""


def level(row: Row) -> str | None:
    """The level of a row's preference; None where no column says it.

    Raises:
        Unusable: it is null.
        ValueError: it is none of the four.
    """
    name = next((name for name in COLUMNS if name in row), None)
    if name is None:
        return None
    value = row[name]
    if value is None or value == "":
        raise Unusable("null")
    words = value.lower().replace("_", " ").split() if isinstance(value, str) else []
    if words and words[0] in _WORDS:
        return _WORDS[words[0]]
    value = _cell(value)
    if name in SIGNED and isinstance(value, (int, float)):
        value = abs(value)  # the sign says which is better, and here a column does
    try:
        return _of_number(value, name)
    except ValueError as error:
        remedy = f"To read every row as one level, write under `columns:` {name}: better"
        raise ValueError(f"{error}. {remedy}") from None


def signed(value: Any, name: str) -> tuple[bool, str]:
    """Whether the second of two answers is better, and the level, from a number of -3 to 3.

    Raises:
        Unusable: there is no preference, or it is null.
        ValueError: it is no such number.
    """
    if value is None or value == "":
        raise Unusable("null")
    value = _cell(value)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f'"{name}" is {shown(value)}, no number from -3 to 3')
    if value == 0:
        raise Unusable("no_preference")
    return value > 0, _of_number(abs(value), name)


def _cell(value: Any) -> Any:
    """A whole number that is a text, as in a csv file; anything else as it is."""
    is_number = isinstance(value, str) and re.fullmatch(r"\s*-?\d+(\.0*)?\s*", value)
    return float(value) if is_number else value


def _of_number(value: Any, name: str) -> str:
    if not isinstance(value, (int, float)) or value not in range(len(LEVELS)):
        raise ValueError(
            f'"{name}" is {shown(value)}, and levels are {", ".join(reversed(LEVELS))}, or 3 to 0'
        )
    return LEVELS[int(value)]

"""Rows that nearly say the same."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.settings import Settings


class Near(Settings):
    """Of rows that share most of their runs of five words one stays.

    MinHash finds them (Broder 1997), and each pair it finds is then compared word by word. Rows are
    one group if a chain of such pairs leads from one to the other; of a group the row with the
    highest score stays. System messages have no part in it: a long one that all rows share
    would make all of them alike; nor have tools, but rows with different tools are never near.
    """

    similarity: float = Field(0.8, ge=0.3, le=1)
    """The share of the runs of two rows that are in both (Jaccard) from which they are near."""

    of: Literal["all", "prompt"] = "all"
    """What is compared: all that a row says, or what comes before its answers."""

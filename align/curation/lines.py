"""Lines that many rows have in common: boilerplate, not content."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import Field

from align.curation.rules import Row, Why
from align.out import Out
from align.settings import Settings


class Lines(Settings):
    """Lines that stand in many rows are taken out of answers and documents, everywhere."""

    more_than: int = Field(6, ge=1)
    """Rows that a line may stand in (Llama 3, arXiv 2407.21783, §3.1.1)."""

    words: int = Field(8, ge=1)
    """Shorter lines stay in answers: "Yes." is said often, and rightly. Of documents all count."""

    def sift(self, rows: Callable[[], Iterator[Row]], out: Out) -> Iterator[tuple[Row, Why | None]]:
        """Every row in its order, changed; and why it is removed: `lines`, no answer is left."""
        raise NotImplementedError

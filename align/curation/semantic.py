"""Rows that say the same in other words, by the embeddings of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import Field

from align.artifacts import Model
from align.curation.rules import Row, Why
from align.out import Out
from align.settings import Settings


class Semantic(Settings):
    """Of rows that mean the same the best one stays (Llama 3, arXiv 2407.21783, §4.2.3).

    The best is that of the highest quality times difficulty, where there are such columns.
    """

    model: Model
    """What embeds: an encoder or a language model, a stage, a path or a hub id."""

    similarity: float = Field(0.9, gt=0, le=1)
    """The cosine to a row that was kept from which a row is removed; 0.9 is Deita's."""

    clusters: int | None = Field(None, ge=1)
    """Only rows of one cluster are compared. One for every 5,000 rows unless set."""

    def sift(self, rows: Callable[[], Iterator[Row]], out: Out) -> Iterator[tuple[Row, Why | None]]:
        """Every row in its order; and why it is removed: `semantic`, with the row that is kept."""
        raise NotImplementedError

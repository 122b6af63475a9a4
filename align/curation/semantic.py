"""Rows that say the same in other words, by the embeddings of a model."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator

from pydantic import Field

from align.artifacts import Model
from align.curation import hashes
from align.curation.rules import Row, Why
from align.curation.texts import tie
from align.out import Out
from align.settings import Settings

CLUSTER = 5000
"""Rows of a cluster, where their number is not set: a second's work to compare with each other."""


class Semantic(Settings):
    """Of rows that mean the same the best one stays (Llama 3, arXiv 2407.21783, §4.2.3).

    Rows are compared within clusters, best first: one goes if it is as similar as that to one that
    was kept before it. The best has the highest quality times difficulty, where there are such
    columns; else what the rows hold decides. Of preferences the chosen answer counts, of long rows
    the first 512 tokens; rows with different tools are not compared. After a kill it begins anew.
    """

    model: Model
    """What embeds, by the mean of its last hidden states: an encoder, or a language model."""

    similarity: float = Field(0.9, gt=0, le=1)
    """The cosine from which two rows mean the same; 0.9 is Deita's (arXiv 2312.15685). It depends
    on the model: language models find most texts alike."""

    clusters: int | None = Field(None, ge=1)
    """How many; one for every 5,000 rows unless set. Rows of two clusters are not compared."""

    def sift(self, rows: Callable[[], Iterator[Row]], out: Out) -> Iterator[tuple[Row, Why | None]]:
        """Every row in its order; and why it is removed: `semantic`, with the row that is kept."""
        import numpy as np

        from align.curation import clusters, embedding

        worth, ties, tools = array("d"), array("Q"), array("Q")
        for row in rows():
            worth.append(_worth(row))
            ties.append(tie(row))
            tools.append(hashes.tools(row))
        if not ties:
            return
        number = np.frombuffer(ties, np.uint64)
        found = embedding.vectors(self.model, rows, number, out)
        count = min(self.clusters or -(-len(ties) // CLUSTER), len(ties))
        repeats: dict[int, tuple[int, float]] = {}
        for members in clusters.clusters(found, np.argsort(number), count):
            best = members[np.lexsort((number[members], -np.frombuffer(worth)[members]))]
            having = np.frombuffer(tools, np.uint64)[best]
            for same in np.unique(having):
                for place, like, cosine in clusters.repeats(
                    found, best[having == same], self.similarity
                ):
                    repeats[place] = like, cosine
        kept = {like for like, _ in repeats.values()}
        names = {i: row["id"] for i, row in enumerate(rows()) if i in kept}
        for i, row in enumerate(rows()):
            why = None
            if i in repeats:
                like, cosine = repeats[i]
                why = Why("semantic", {"like": names[like], "similarity": round(cosine, 4)})
            yield row, why


def _worth(row: Row) -> float:
    """Quality times difficulty; what there is no number for is 1."""
    return math.prod(hashes.finite(row, ("quality", "difficulty")))

"""Vectors of length 1: clusters of like ones, and of like ones the first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from align.curation.embedding import Vectors

Places = NDArray[np.int64]

ROUNDS = 50
"""Of k-means at most; it ends when no row changes its cluster."""

CHUNK = 1 << 14
"""Vectors in memory at once, while centres are looked for."""

BLOCK = 256
"""Vectors that are compared with all that were kept, at once."""

EPSILON = 1e-6
"""What float32 makes of a cosine of 1."""


def clusters(vectors: Vectors, order: Places, count: int) -> Iterator[Places]:
    """The places of the vectors of each cluster, by k-means on the cosine (Lloyd, spherical).

    It begins with the first `count` vectors of `order` and goes through all in that order: where an
    order follows from what the rows hold, so do the clusters.
    """
    centres = np.array(vectors[order[:count]], np.float64)
    of = np.full(len(order), -1)
    for _ in range(ROUNDS if count > 1 else 1):
        sums, before = np.zeros_like(centres), of.copy()
        for at in range(0, len(order), CHUNK):
            part = vectors[order[at : at + CHUNK]]
            nearest = (part @ centres.T.astype(np.float32)).argmax(1)
            of[at : at + CHUNK] = nearest
            together = np.argsort(nearest, kind="stable")
            found, begins = np.unique(nearest[together], return_index=True)
            sums[found] += np.add.reduceat(part[together], begins, dtype=np.float64)
        if (of == before).all():
            break
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres)
    for cluster in range(count):
        yield order[of == cluster]


def repeats(
    vectors: Vectors, members: Places, similarity: float
) -> Iterator[tuple[int, int, float]]:
    """Of members in their order: (place, place of the one it is like, cosine) for each that goes.

    One goes if its cosine to one that was *kept* reaches `similarity`; what went keeps nobody out.
    So of a chain, a like b and b like c, but a unlike c, both ends stay. SemDeDup compares with all
    that came before (arXiv 2303.09540), where c goes, too; Llama 3's "seen so far" may mean either.
    """
    kept: list[int] = []
    for at in range(0, len(members), BLOCK):
        block = members[at : at + BLOCK]
        here = vectors[block]
        earlier = here @ vectors[kept].T if kept else np.full((len(block), 1), -np.inf)
        nearest, first = earlier.argmax(1), len(kept)
        among = here @ here.T
        new: list[int] = []
        for i, place in enumerate(block.tolist()):
            cosine, like = earlier[i, nearest[i]], int(nearest[i])
            if new and (best := among[i, new]).max() > cosine:
                cosine, like = best.max(), first + int(best.argmax())
            if cosine >= similarity - EPSILON:
                yield place, kept[like], float(cosine)
            else:
                new.append(i)
                kept.append(place)

"""Means, deviations and correlations of numbers that stream by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Moments:
    """Mean, deviation and correlation of several numbers, whose rows come bit by bit.

    Blocks are merged by the pairwise formula of Chan, Golub and LeVeque (1983,
    https://doi.org/10.1080/00031305.1983.10483115), which does not lose digits as sums of squares
    do.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = np.zeros(1)
        self._products = np.zeros((1, 1))

    def add(self, rows: Sequence[Sequence[float]]) -> None:
        """More rows of numbers, all equally many."""
        if not rows:
            return
        block = np.array(rows, float)
        mean = block.mean(0)
        apart, off = mean - self.mean, block - mean
        total = self.n + len(block)
        merged = off.T @ off + np.outer(apart, apart) * (self.n * len(block) / total)
        self._products = self._products + merged
        self.mean = self.mean + apart * (len(block) / total)
        self.n = total

    @property
    def sd(self) -> np.ndarray[Any, Any]:
        """The deviations (1/n), [width]; 0 for what is the same up to rounding."""
        found = np.sqrt(self._products.diagonal() / max(1, self.n))
        return np.where(found > 1e-12 * abs(self.mean), found, 0.0)

    def correlation(self) -> float | None:
        """Pearson's, of the first two numbers; None where one of them is always the same."""
        x, y = self.sd[:2]
        return float(self._products[0, 1] / (self.n * x * y)) if x and y else None

    def standard(self, row: Sequence[float]) -> np.ndarray[Any, Any]:
        """A row in deviations from the mean; 0 for what is always the same."""
        off, sd = np.asarray(row) - self.mean, self.sd
        return np.where(sd > 0, off, 0.0) / np.where(sd > 0, sd, 1.0)

"""Means with their uncertainty, paired differences, best-of-k.

Everything here is a pure function of numbers; tests compare it with scipy and closed forms.
Intervals are 95 % unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Numbers = Sequence[float] | np.ndarray[Any, Any]

Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A mean (or a difference of means) of `n` items with a 95 % interval.

    `low` and `high` are nan where the data say nothing about the uncertainty (one item). `p` is
    two-sided, against no difference; nan for a mean.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float = math.nan


def mean(values: Numbers) -> Estimate:
    """A mean with its interval: Wilson's where all values are 0 or 1, else Student's t."""
    x = np.asarray(values, float)
    if len(x) == 0:
        raise ValueError("the mean of no values")
    center = float(x.mean())
    if np.isin(x, (0.0, 1.0)).all():
        return Estimate(len(x), center, *wilson(int(x.sum()), len(x)))
    half = _half_width(x)
    return Estimate(len(x), center, center - half, center + half)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927); it is right for 0 of n, too.

    A tie may count as half a success: the interval is then a little too wide.
    """
    p, z2 = successes / n, Z * Z
    middle = p + z2 / (2 * n)
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = ((middle + side * half) / (1 + z2 / n) for side in (-1, 1))
    return (0.0 if successes == 0 else low, 1.0 if successes == n else high)


def paired(a: Numbers, b: Numbers) -> Estimate:
    """The mean of a - b over the same items, with its interval and p.

    Where all values are 0 or 1: the interval of Agresti and Min (2005,
    https://doi.org/10.1002/sim.1781; one half added to each cell of the 2 × 2 table, so that it
    has a width where the two never differ) and the exact McNemar test. Otherwise Student's t.
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"{len(x)} values cannot be paired with {len(y)}")
    difference = x - y
    n, delta = len(x), float(difference.mean())
    if np.isin(x, (0.0, 1.0)).all() and np.isin(y, (0.0, 1.0)).all():
        won, lost = int((difference > 0).sum()), int((difference < 0).sum())
        total = n + 2
        middle = (won - lost) / total
        spread = (won + lost + 1) / total - middle**2
        half = Z * math.sqrt(spread / total)
        return Estimate(n, delta, middle - half, middle + half, mcnemar(won, lost))
    half = _half_width(difference)
    if n == 1:
        return Estimate(n, delta, delta - half, delta + half)
    error = float(difference.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return Estimate(n, delta, delta, delta, 1.0 if delta == 0 else 0.0)
    p = 2 * (1 - t_cdf(abs(delta) / error, n - 1))
    return Estimate(n, delta, delta - half, delta + half, max(0.0, p))


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p that wins and losses among the items that differ are equally likely."""
    n = won + lost
    if n == 0:
        return 1.0
    k = np.arange(min(won, lost) + 1)
    log = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k])
    return min(1.0, 2 * float(np.exp(log - n * math.log(2)).sum()))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p (1979): below 0.05 means significant with all tests taken together."""
    adjusted = [0.0] * len(p)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def best_of(scores: Numbers) -> np.ndarray[Any, Any]:
    """The expected score of the best of k answers, k = 1..n: unbiased, from n scored answers.

    sum_i C(i-1, k-1) / C(n, k) * s_(i) over the ascending scores: the mean of the maximum over all
    subsets of k. With scores 0 and 1 it is pass@k (Chen et al. 2021, arXiv 2107.03374).

    Args:
        scores: [n], or [prompts, n] for a curve per prompt.
    """
    ordered = np.sort(np.asarray(scores, float), axis=-1)
    curve: np.ndarray[Any, Any] = ordered @ _best_of_weights(ordered.shape[-1])
    return curve


@lru_cache(maxsize=8)
def _best_of_weights(n: int) -> np.ndarray[Any, Any]:
    """[n, n]: of the i-th smallest score in the best of k. Whole-number binomials do not round."""
    rows = range(n)
    return np.array([[math.comb(i, k) / math.comb(n, k + 1) for k in rows] for i in rows])


def _half_width(x: np.ndarray[Any, Any]) -> float:
    if len(x) == 1:
        return math.nan
    return t_quantile(len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))


@lru_cache(maxsize=256)
def t_quantile(df: int) -> float:
    """The 97.5 % point of Student's t."""
    low, high = Z, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < 0.975 else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, df: int) -> float:
    """Student's t distribution function, for t >= 0.

    With t = sqrt(df) tan(a) the density is a constant times cos(a)^(df-1): Simpson's rule on
    [0, a], 2,000 steps, errors below 1e-10.
    """
    end = math.atan(t / math.sqrt(df))
    a = np.linspace(0.0, end, 2001)
    weights = np.ones(2001)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    area = float((weights * np.cos(a) ** (df - 1)).sum()) * end / 6000
    log_constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(math.pi) / 2
    return min(1.0, 0.5 + area * math.exp(log_constant))

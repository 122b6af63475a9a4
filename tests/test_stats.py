"""Intervals, tests and best-of-k against scipy, published values and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from align import stats


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (416, 541, 0.73161, 0.80249),
        (0, 10, 0, 0.27753),
        (10, 10, 0.72247, 1),
        (119, 164, 0.65274, 0.78815),
        (1, 4, 0.04559, 0.69936),
    ],
)
def test_wilson_has_the_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert stats.wilson(successes, n) == pytest.approx((low, high), abs=1e-5)
    theirs = scipy_stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert stats.wilson(successes, n) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("df", [1, 2, 3, 7, 30, 499, 14041])
def test_students_t_is_scipys(df: int) -> None:
    assert stats.t_quantile(df) == pytest.approx(scipy_stats.t.ppf(0.975, df), abs=1e-6)
    for t in (0.0, 0.3, 1.0, 2.5, 6.0):
        assert stats.t_cdf(t, df) == pytest.approx(scipy_stats.t.cdf(t, df), abs=1e-8)


def test_a_mean_has_students_interval() -> None:
    x = np.random.default_rng(0).normal(size=40)
    found = stats.mean(x)
    theirs = scipy_stats.t.interval(0.95, 39, x.mean(), scipy_stats.sem(x))
    assert (found.low, found.high) == pytest.approx(theirs)
    assert math.isnan(stats.mean([0.5]).low)


def test_a_paired_difference_is_scipys_paired_t() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 30))
    found = stats.paired(a + 0.3, b)
    theirs = scipy_stats.ttest_rel(a + 0.3, b)
    low, high = theirs.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, theirs.pvalue), abs=1e-7)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (5, 1), (10, 10), (3, 40), (400, 350)])
def test_mcnemar_is_the_exact_binomial_test(won: int, lost: int) -> None:
    n = won + lost
    expected = scipy_stats.binomtest(won, n).pvalue if n else 1.0
    assert stats.mcnemar(won, lost) == pytest.approx(expected, abs=1e-9)


def test_two_models_that_never_differ_are_tied_with_some_doubt() -> None:
    found = stats.paired([1.0] * 50, [1.0] * 50)
    assert found.mean == 0 and found.low < 0 < found.high and found.p == 1


def test_holm_is_the_textbook_step_down() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])


def test_best_of_k_is_the_mean_over_all_subsets() -> None:
    assert stats.best_of([1, 2, 3, 4])[1] == pytest.approx(10 / 3)
    assert stats.best_of([0.1, 0.5, 0.2, 0.9, 0.4])[2] == pytest.approx(0.73)
    scores = np.random.default_rng(0).normal(size=7)
    for k in range(1, 8):
        subsets = [max(s) for s in itertools.combinations(scores, k)]
        assert stats.best_of(scores)[k - 1] == pytest.approx(np.mean(subsets))


@pytest.mark.parametrize(
    ("n", "right", "k", "value"),
    [(10, 3, 1, 0.3), (10, 3, 5, 0.916667), (200, 13, 10, 0.497551), (200, 13, 100, 0.999919),
     (5, 2, 2, 0.7), (5, 4, 3, 1.0)],
)  # fmt: skip
def test_best_of_k_of_zeros_and_ones_is_pass_at_k(n: int, right: int, k: int, value: float) -> None:
    assert stats.best_of([1] * right + [0] * (n - right))[k - 1] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("n", "expected"), [(2, 0.56419), (4, 1.02938), (8, 1.42360)])
def test_best_of_k_is_unbiased_from_twice_as_many_normal_scores(n: int, expected: float) -> None:
    scores = np.random.default_rng(n).normal(size=(40000, 2 * n))
    curve = stats.best_of(scores)[:, n - 1]
    assert curve.mean() == pytest.approx(expected, abs=4 * curve.std() / 200)


@pytest.mark.parametrize("kind", ["normal", "coin", "paired coins"])
def test_intervals_cover_the_truth_as_often_as_they_say(kind: str) -> None:
    random = np.random.default_rng(0)
    hits, runs, n = 0, 2000, 100
    for _ in range(runs):
        if kind == "normal":
            found, truth = stats.mean(random.normal(1.0, 2.0, n)), 1.0
        elif kind == "coin":
            found, truth = stats.mean((random.random(n) < 0.9).astype(float)), 0.9
        else:
            luck = random.random((3, n))  # a shared part, so that the two are correlated
            a = np.where(luck[0] < 0.5, luck[1] < 0.6, luck[1] < 0.8)
            b = np.where(luck[0] < 0.5, luck[1] < 0.6, luck[2] < 0.7)
            found, truth = stats.paired(a.astype(float), b.astype(float)), 0.05
        hits += found.low <= truth <= found.high
    assert 0.925 <= hits / runs <= 0.975  # proportions are discrete: .936 is exact for .9 of 100

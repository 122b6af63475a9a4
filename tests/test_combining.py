"""Rules that make one score of several numbers, against numpy and closed forms."""

import numpy as np
import pytest

from align.scoring.combining import Combine, combined, inputs, logit, members
from align.scoring.moments import Moments

NAMES = ["helpful", "safe", "length"]
NUMBERS = {"helpful": 2.0, "safe": -1.0, "length": 4.0}


def test_moments_of_blocks_are_those_of_the_whole() -> None:
    numbers = np.random.default_rng(0)
    rows = numbers.normal(1e6, 1.0, (1000, 2))  # sums of squares would lose six digits
    rows[:, 1] += 2 * rows[:, 0]
    moments = Moments()
    for block in np.split(rows, [1, 5, 400, 400, 999]):
        moments.add(block.tolist())
    assert moments.n == 1000
    assert moments.mean == pytest.approx(rows.mean(0), rel=1e-12)
    assert moments.sd == pytest.approx(rows.std(0), rel=1e-9)
    assert moments.correlation() == pytest.approx(np.corrcoef(rows.T)[0, 1], rel=1e-9)
    assert moments.standard([*rows[7]]) == pytest.approx((rows[7] - rows.mean(0)) / rows.std(0))


def test_what_is_always_the_same_has_no_spread() -> None:
    moments = Moments()
    moments.add([[0.1, i] for i in range(3)])
    assert moments.sd[0] == 0 and moments.correlation() is None
    assert moments.standard([0.1, 1.0]).tolist() == [0.0, 0.0]


def test_weights_are_a_sum_and_min_is_the_smallest() -> None:
    weights = {"helpful": 1.0, "length": -0.5}
    assert combined(weights, inputs(weights, NAMES, NUMBERS, {})) == {"score": 0.0}
    low = Combine(rule="min", of=["helpful", "length"])
    assert combined(low, inputs(low, NAMES, NUMBERS, {})) == {"score": 2.0}
    assert combined(low, inputs(low, NAMES, {**NUMBERS, "length": None}, {})) == {"score": None}


def test_lower_is_the_mean_less_k_deviations_and_of_two_the_lower_one() -> None:
    numbers = np.random.default_rng(1)
    rows = numbers.normal([5, -3], [1, 100], (500, 2)).tolist()
    moments = Moments()
    moments.add(rows)
    z = (np.array(rows) - np.mean(rows, 0)) / np.std(rows, 0)
    for k in (0.0, 1.0, 2.5):
        rule = Combine(rule="lower", k=k)
        found = [combined(rule, row, moments) for row in rows]
        expected = z.mean(1) - k * z.std(1)
        assert [one["score"] for one in found] == pytest.approx(expected, abs=1e-12)
        assert [one["disagreement"] for one in found] == pytest.approx(z.std(1), abs=1e-12)
    lowest = [combined(Combine(rule="lower"), row, moments)["score"] for row in rows]
    assert lowest == pytest.approx(z.min(1), abs=1e-12)


@pytest.mark.parametrize(
    ("safe", "asked", "taken"),
    [(3.0, False, 2.0), (3.0, True, 3.0), (-1.74, False, -1.74), (-1.73, False, 2.0)],
)
def test_safety_comes_first_where_it_is_asked_about_or_in_doubt(
    safe: float, asked: bool, taken: float
) -> None:
    """Llama 2: R_s if IS_SAFETY(p) or R_s < 0.15 else R_h; 0.15 is a score of -1.7346."""
    rule = Combine(rule="safety_first", safety="safe", helpfulness="helpful", is_safety="risky")
    numbers = {**NUMBERS, "safe": safe}
    assert inputs(rule, NAMES, numbers, {"risky": asked}) == [taken]
    assert logit(0.15) == pytest.approx(-1.7346, abs=1e-4)


def test_keys_of_another_rule_are_refused() -> None:
    with pytest.raises(ValueError, match='"k" is not for the rule min'):
        Combine(rule="min", k=2.0)
    with pytest.raises(ValueError, match="needs two rewards"):
        Combine(rule="safety_first", safety="safe")


def test_members_are_all_rewards_unless_named() -> None:
    assert members(Combine(rule="lower"), NAMES) == NAMES
    assert members(Combine(rule="lower", of=["safe", "length"]), NAMES) == ["safe", "length"]
    assert members({"length": 1.0}, NAMES) == ["length"]

"""Known answers from SciPy and by hand."""

import math

import numpy as np
import pytest
import scipy.stats

from research.analysis.statistics import Estimate, mean_interval, paired_difference


@pytest.mark.parametrize("n", [2, 5, 10])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.995])
def test_the_interval_is_scipys(n, level):
    values = np.random.default_rng(n).normal(3.0, 0.2, n)
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(level)
    found = mean_interval(values, level)
    assert found.n == n
    interval = (found.mean - found.half_width, found.mean + found.half_width)
    assert interval == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_the_interval_by_hand():
    # sd 1, n 3, and t(0.975, 2) = 4.302653 from any printed table
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_95_percent_intervals_of_5_seeds_cover_95_percent():
    draws = np.random.default_rng(0).normal(0.0, 1.0, (2000, 5))
    covered = [abs(found.mean) <= found.half_width for found in map(mean_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)  # 3 standard errors


def test_one_value_has_no_interval():
    found = mean_interval([2.5])
    assert (found.mean, found.n) == (2.5, 1)
    assert math.isnan(found.half_width)


def test_equal_values_are_exact():
    assert mean_interval([0.1] * 3) == Estimate(mean=0.1, half_width=0.0, n=3)


def test_no_value_and_no_level_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
    with pytest.raises(ValueError, match="95, expected between 0 and 1"):
        mean_interval([1.0, 2.0], level=95)


def test_a_difference_is_paired_by_seed_and_not_by_place():
    a = {2: 3.3, 0: 1.0, 1: 2.1, 7: 100.0}
    b = {0: 0.5, 1: 1.5, 2: 2.5, 9: -100.0}
    differences = [0.5, 0.6, 0.8]
    expected = scipy.stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    found = paired_difference(a, b)
    assert found.n == 3
    assert found.mean == pytest.approx(np.mean(differences))
    assert found.half_width == pytest.approx((expected.high - expected.low) / 2)
    assert paired_difference(b, a).mean == -found.mean


def test_pairing_removes_what_seeds_share():
    seeds = {seed: float(seed) for seed in range(5)}
    shifted = {seed: value + 0.25 for seed, value in seeds.items()}
    assert paired_difference(shifted, seeds) == Estimate(mean=0.25, half_width=0.0, n=5)


def test_no_common_seed_is_refused():
    with pytest.raises(ValueError, match=r"\[0\] and \[1\]: none in common"):
        paired_difference({0: 1.0}, {1: 1.0})

"""Intervals against exact and normal ones, what is drawn together, and repeatability."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from research.analysis.resampling import (
    Interval,
    hierarchical_bootstrap,
    interquartile_mean,
    multi_bootstrap,
    paired_scores,
    probability_of_improvement,
)

both = pytest.mark.parametrize("bootstrap", [hierarchical_bootstrap, multi_bootstrap])
tables = arrays(np.float64, st.tuples(st.integers(1, 5), st.just(3)), elements=st.integers(-3, 3))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def by_seed(table):
    return dict(enumerate(table))


def spread(interval):
    """The standard deviation of a normal distribution with these percentiles."""
    return (interval.high - interval.low) / (2 * scipy.stats.norm.ppf(0.975))


@both
def test_seeds_are_drawn_alone_where_examples_agree(bootstrap):
    # means 0, 1 and 5 of three seeds: the 27 ways to draw three of them, listed
    scores = {seed: np.full(4, value) for seed, value in enumerate([0.0, 1.0, 5.0])}
    every = [np.mean(drawn) for drawn in itertools.product([0.0, 1.0, 5.0], repeat=3)]
    found = bootstrap(scores, level=0.8, draws=4000)
    assert found.value == pytest.approx(2)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(every, [0.1, 0.9])))


@both
def test_examples_are_drawn_alone_where_there_is_one_seed(bootstrap):
    scores = normal(0, 400)
    found = bootstrap({7: scores}, draws=3000)
    assert found.value == pytest.approx(scores.mean())
    assert spread(found) == pytest.approx(scores.std() / math.sqrt(400), rel=0.06)


def test_examples_of_a_seeds_own_average_out_and_common_ones_do_not():
    examples = normal(1, 100)
    own, common = (
        bootstrap(by_seed([examples] * 16), draws=3000)
        for bootstrap in (hierarchical_bootstrap, multi_bootstrap)
    )
    assert spread(common) == pytest.approx(examples.std() / math.sqrt(100), rel=0.06)
    assert spread(own) == pytest.approx(spread(common) / math.sqrt(16), rel=0.08)


def test_seeds_and_examples_add_up():
    seeds, examples = normal(2, 30, 1), normal(3, 1, 50)
    found = multi_bootstrap(by_seed(seeds + examples), draws=3000)
    assert spread(found) == pytest.approx(math.sqrt(seeds.var() / 30 + examples.var() / 50), rel=0.06)


def test_a_seed_with_more_examples_counts_as_much():
    scores = {0: [1.0] * 99, 1: [0.0]}
    assert hierarchical_bootstrap(scores).value == 0.5
    with pytest.raises(ValueError, match="expected the same examples for all; else use hierarchical"):
        multi_bootstrap(scores)


@both
def test_an_interval_is_a_function_of_its_arguments(bootstrap):
    scores = by_seed(normal(4, 5, 20))
    found = bootstrap(scores, draws=50, seed=3)
    assert bootstrap(dict(reversed(scores.items())), draws=50, seed=3) == found
    assert bootstrap(scores, draws=50, seed=4) != found
    assert bootstrap(scores, draws=50, seed=3, level=0.5).low > found.low


@both
def test_what_an_example_adds_to_both_arms_is_paired_away(bootstrap):
    hard, a = 10 * normal(5, 1, 40), 0.1 * normal(6, 5, 40)
    first, second = by_seed(a + hard + 1), by_seed(hard.repeat(6, axis=0))
    differences = paired_scores(first, second)
    assert list(differences) == [0, 1, 2, 3, 4]  # the second arm's sixth seed has no pair
    found = bootstrap(differences, draws=200)
    alone = bootstrap(first, draws=200)
    assert found.low < 1 < found.high
    assert spread(found) < spread(alone) / 10


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="none in common"):
        paired_scores({0: [1.0]}, {1: [1.0]})
    with pytest.raises(ValueError, match="seed 0: 2 and 1 examples"):
        paired_scores({0: [1.0, 2.0]}, {0: [1.0]})


def test_a_bootstrap_of_five_seeds_is_too_narrow():
    # what the module says of itself, and why verdicts rest on t intervals
    # 0.839 with all resamples listed
    studies = enumerate(normal(7, 250, 5, 1))
    found = [multi_bootstrap(by_seed(seeds), draws=150, seed=study) for study, seeds in studies]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert covered == pytest.approx(0.84, abs=0.07)  # 3 standard errors


@both
def test_what_cannot_be_drawn_is_refused(bootstrap):
    with pytest.raises(ValueError, match="of no seed"):
        bootstrap({})
    for scores in ([], [[1.0]], [1.0, math.nan]):
        with pytest.raises(ValueError, match="scores of seed 3: shape .* expected finite numbers"):
            bootstrap({3: scores})
    with pytest.raises(ValueError, match="level: 95"):
        bootstrap({0: [1.0]}, level=95)
    with pytest.raises(ValueError, match="draws: 0"):
        bootstrap({0: [1.0]}, draws=0)


def test_the_interquartile_mean_by_hand():
    # 1..8 with outliers: 3, 4, 5 and 6 are left
    assert interquartile_mean([[1, 8000, 3, 4], [5, 6, -7000, 2]]).value == (2 + 3 + 4 + 5) / 4
    # a quarter of 6 is 1.5: one is left out at either end
    assert interquartile_mean([[0, 2, 3], [5, 6, 90]]).value == 4
    assert interquartile_mean([[4.0]]) == Interval(value=4, low=4, high=4)


@given(tables)
def test_the_interquartile_mean_is_scipys(scores):
    assert interquartile_mean(scores, draws=1).value == pytest.approx(
        scipy.stats.trim_mean(scores, 0.25, axis=None)
    )


def test_runs_are_drawn_within_a_task():
    # a task at 0 and one at 100, both without spread, stay one half of all scores each
    found = interquartile_mean([[0.0, 100.0]] * 4, draws=100)
    assert found == Interval(value=50, low=50, high=50)


def test_each_task_draws_runs_of_its_own():
    # runs that are equal on all four tasks: drawn whole, they would be worth no more than one task
    runs = normal(12, 300, 1)
    one, four = (interquartile_mean(runs.repeat(tasks, axis=1), draws=1000) for tasks in (1, 4))
    assert spread(four) == pytest.approx(spread(one) / 2, rel=0.12)


def test_the_interval_of_an_interquartile_mean_has_its_known_width():
    # n times the variance of a trimmed mean is 4 (E[x^2; |x| < q] + q^2 / 2) for a symmetric distribution: here 1.19
    q = scipy.stats.norm.ppf(0.75)
    variance = 4 * (0.5 - 2 * q * scipy.stats.norm.pdf(q) + q**2 / 2)
    found = interquartile_mean(normal(8, 300, 4), draws=1000)
    assert spread(found) == pytest.approx(math.sqrt(variance / 1200), rel=0.12)


def test_the_probability_of_improvement_by_hand():
    # of task 1, 3 beats all of 0, 2, 2 and 2 beats one and ties with two; of task 2 all are equal
    x, y = [[3, 1], [2, 1]], [[0, 1], [2, 1], [2, 1]]
    assert probability_of_improvement(x, y, draws=1).value == pytest.approx(((3 + 2) / 6 + 0.5) / 2)
    never = probability_of_improvement([[0.0, 1.0]] * 5, [[1.0, 2.0]] * 3)
    assert never == Interval(value=0, low=0, high=0)


@settings(max_examples=50)
@given(tables, tables)
def test_one_side_improves_as_often_as_the_other_does_not(x, y):
    there = probability_of_improvement(x, y, draws=1).value
    assert probability_of_improvement(y, x, draws=1).value == pytest.approx(1 - there)
    assert probability_of_improvement(x, x, draws=1).value == pytest.approx(0.5)
    u = scipy.stats.mannwhitneyu(x, y, method="asymptotic").statistic  # of each task
    assert there == pytest.approx(np.mean(u) / (len(x) * len(y)))


def test_the_interval_of_a_probability_has_its_known_width():
    # with no difference the variance of U / n^2 is (2 n + 1) / (12 n^2)
    n, tasks = 40, 10
    found = probability_of_improvement(normal(9, n, tasks), normal(10, n, tasks), draws=1000)
    assert found.low < found.value < found.high
    assert spread(found) == pytest.approx(math.sqrt((2 * n + 1) / (12 * n**2) / tasks), rel=0.12)


@pytest.mark.parametrize(
    "aggregate", [interquartile_mean, lambda x, **options: probability_of_improvement(x, -x, **options)]
)
def test_an_aggregate_is_a_function_of_its_arguments(aggregate):
    scores = normal(11, 4, 3)
    found = aggregate(scores, draws=50, seed=3)
    assert aggregate(scores, draws=50, seed=3) == found
    assert aggregate(scores, draws=50, seed=4) != found


def test_what_is_no_table_is_refused():
    for scores in ([1.0], np.empty((0, 3)), [[math.inf]]):
        with pytest.raises(ValueError, match=r"scores: shape .* expected finite numbers \[runs tasks\]"):
            interquartile_mean(scores)
    with pytest.raises(ValueError, match=r"y: shape \(1,\)"):
        probability_of_improvement([[1.0]], [1.0])
    with pytest.raises(ValueError, match=r"\(1, 2\) and y \(1, 1\): expected .* the same tasks"):
        probability_of_improvement([[1.0, 2.0]], [[1.0]])

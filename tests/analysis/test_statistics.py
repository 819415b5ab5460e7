"""Known answers from SciPy and by hand, properties, and simulated studies in which nothing differs."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from research.analysis.statistics import (
    CensoredSummary,
    Estimate,
    benjamini_hochberg,
    censored_summary,
    equivalence,
    holm,
    mean_interval,
    minimum_detectable_effect,
    p_text,
    paired_difference,
    paired_test,
    prediction_interval,
    rank_test,
)

NAN = float("nan")
families = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.floats(0, 1), max_size=9)
losses = st.lists(st.integers(-1000, 1000), min_size=2, max_size=8)  # in halves, so that sums are exact


def by_seed(values):
    return dict(enumerate(values))


def simulated(study, *shape):
    return np.random.default_rng(study).normal(size=shape)


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


@pytest.mark.parametrize("found", [mean_interval, prediction_interval])
@pytest.mark.parametrize("values", [[1.0, NAN, NAN], [NAN], [math.inf, 2.0], [NAN, NAN]])
def test_what_is_not_finite_has_no_mean(found, values):
    with pytest.raises(ValueError, match="values: found (nan|inf) among .*, expected finite") as caught:
        found(values)
    assert "\n" not in str(caught.value)


def test_a_p_value_is_never_zero():
    assert [p_text(p) for p in (0.0, 0.00099, 0.001, 0.0456, 1.0)] == [
        "< 0.001",
        "< 0.001",
        "0.001",
        "0.046",
        "1.000",
    ]


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


def test_one_new_run_falls_into_the_prediction_interval():
    # sd 1, n 3: 2 ± 4.302653 * sqrt(4 / 3)
    assert prediction_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.968275, 2 + 4.968275), abs=1e-5)
    draws = simulated(1, 2000, 6)
    intervals = [prediction_interval(runs[:5]) for runs in draws]
    covered = [low <= runs[5] <= high for (low, high), runs in zip(intervals, draws, strict=True)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)  # 3 standard errors


def test_nothing_is_predicted_from_one_run():
    assert all(map(math.isnan, prediction_interval([1.0])))
    assert prediction_interval([0.1] * 3) == (0.1, 0.1)
    with pytest.raises(ValueError, match="at least one"):
        prediction_interval([])
    with pytest.raises(ValueError, match="0, expected between 0 and 1"):
        prediction_interval([1.0, 2.0], level=0)


@pytest.mark.parametrize("n", [2, 5, 10])
def test_the_paired_test_is_scipys(n):
    a, b = simulated(n, 2, n)
    expected = scipy.stats.ttest_rel(a, b)
    found = paired_test(by_seed(a), by_seed(b), level=0.9)
    interval = expected.confidence_interval(0.9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-10)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((interval.low, interval.high))
    assert found.n == found.estimate.n == n
    assert found.deviation == pytest.approx(np.std(a - b, ddof=1))
    assert found.detectable == pytest.approx(found.deviation * minimum_detectable_effect(n, alpha=0.1))


def test_the_paired_test_by_hand():
    # differences 1, 2, 3: t = 2 * sqrt(3) and, with two degrees of freedom, p = 1 - t / sqrt(t^2 + 2)
    found = paired_test({1: 2.0, 2: 4.0, 3: 6.0, 4: 9.0}, {1: 1.0, 2: 2.0, 3: 3.0, 5: 9.0})
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-12)
    assert (found.estimate.mean, found.deviation, found.n) == (2.0, 1.0, 3)
    assert found.detectable == pytest.approx(3.264, abs=1e-3)


def test_what_does_not_vary_is_certain_and_one_seed_tests_nothing():
    counted = by_seed([1000.0] * 5)
    assert paired_test(counted, by_seed([900.0] * 5)).p == 0
    assert paired_test(by_seed([900.0] * 5), counted).p == 0
    same = paired_test(counted, counted)
    assert (same.p, same.deviation, same.detectable) == (1, 0, 0)
    alone = paired_test({0: 2.0}, {0: 1.0})
    assert (alone.n, alone.estimate.mean) == (1, 1.0)
    assert all(map(math.isnan, (alone.p, alone.deviation, alone.detectable)))
    assert math.isnan(equivalence({0: 1.0}, {0: 1.0}, 0.02).p)
    assert not equivalence({0: 1.0}, {0: 1.0}, 0.02).equivalent


@pytest.mark.parametrize("test", [paired_test, lambda a, b: equivalence(a, b, 0.02)])
def test_runs_that_diverged_or_are_no_pairs_are_refused(test):
    for value in (NAN, math.inf):
        with pytest.raises(ValueError, match="seed 1: a difference of (nan|inf), expected finite"):
            test({0: 1.0, 1: value}, {0: 1.0, 1: 2.0})
    with pytest.raises(ValueError, match="none in common"):
        test({0: 1.0}, {1: 1.0})


@pytest.mark.parametrize(
    ("n", "expected", "strict"),  # at alpha 0.05 and 0.005
    [(3, 3.26, 10.35), (5, 1.68, 3.16), (8, 1.16, 1.81), (10, 1.00, 1.48), (20, 0.66, 0.91)],
)
def test_detectable_effects_of_a_few_seeds(n, expected, strict):
    assert minimum_detectable_effect(n) == pytest.approx(expected, abs=0.006)
    assert minimum_detectable_effect(n, alpha=0.005) == pytest.approx(strict, abs=0.006)


@pytest.mark.parametrize("n", [2, 5, 40])
@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.005])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.99])
def test_a_detectable_effect_has_its_power(n, alpha, power):
    # P(t > critical), by integrating over the deviation: quite another way than the noncentral t's series
    effect, critical = minimum_detectable_effect(n, alpha, power), scipy.stats.t.isf(alpha / 2, n - 1)
    quantiles = (np.arange(20_000) + 0.5) / 20_000
    deviations = np.sqrt(scipy.stats.chi2.ppf(quantiles, n - 1) / (n - 1))
    found = scipy.stats.norm.sf(critical * deviations - effect * math.sqrt(n)).mean()
    assert found == pytest.approx(power, abs=1e-4)


def test_a_detectable_effect_is_detected():
    effect = minimum_detectable_effect(5)
    rejected = [paired_test(by_seed(a + effect), by_seed([0.0] * 5)).p < 0.05 for a in simulated(2, 1000, 5)]
    assert np.mean(rejected) == pytest.approx(0.8, abs=0.04)  # 3 standard errors


def test_no_detectable_effect():
    with pytest.raises(ValueError, match="n: 1, expected at least two"):
        minimum_detectable_effect(1)
    for alpha, power in [(0.0, 0.8), (0.05, 1.0), (0.05, 0.02)]:
        with pytest.raises(ValueError, match="alpha .* and power"):
            minimum_detectable_effect(5, alpha, power)


def test_equivalence_is_two_of_scipys_one_sided_tests():
    a, b = simulated(3, 2, 6)
    found = equivalence(by_seed(a), by_seed(b), margin=0.7)
    above = scipy.stats.ttest_1samp(a - b, -0.7, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(a - b, 0.7, alternative="less").pvalue
    assert found.p == pytest.approx(max(above, below), rel=1e-10)
    assert found.estimate == paired_difference(by_seed(a), by_seed(b), level=0.9)
    assert found.margin == 0.7


def test_equivalence_of_what_does_not_vary():
    def equal_by(difference):
        return equivalence(by_seed([difference] * 3), by_seed([0.0] * 3), margin=0.5)

    assert (equal_by(0.25).p, equal_by(-0.25).equivalent) == (0, True)
    assert (equal_by(0.5).equivalent, equal_by(-0.5).equivalent) == (False, False)
    assert (equal_by(0.75).p, equal_by(-0.75).p) == (1, 1)


@pytest.mark.parametrize("margin", [0.0, -0.1, math.inf, NAN])
def test_no_margin_is_refused(margin):
    with pytest.raises(ValueError, match="margin: .* expected a positive number"):
        equivalence({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, margin)


def test_a_confidence_level_is_no_level_of_equivalence():
    with pytest.raises(ValueError, match="level: 0.95, expected between 0 and 0.5"):
        equivalence({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, 0.1, level=0.95)


@given(losses, losses, st.integers(1, 1000))
def test_equivalence_is_symmetric_and_says_where_the_interval_lies(first, second, margin):
    a, b = by_seed(value / 2 for value in first), by_seed(value / 2 for value in second)
    one, other = equivalence(a, b, margin), equivalence(b, a, margin)
    assert one.p == other.p
    assert one.estimate.mean == -other.estimate.mean
    inside = max(-one.estimate.low, one.estimate.high)
    if not math.isclose(inside, margin, rel_tol=1e-9):
        assert one.equivalent == (inside < margin)


@given(losses, losses, st.integers(-1000, 1000))
def test_a_shift_of_both_arms_changes_nothing_and_swapping_them_the_sign(first, second, shift):
    a, b = by_seed(value / 2 for value in first), by_seed(value / 2 for value in second)
    found = paired_test(a, b)
    shifted = ({seed: value + shift for seed, value in arm.items()} for arm in (a, b))
    assert paired_test(*shifted) == found
    swapped = paired_test(b, a)
    assert swapped.estimate.mean == -found.estimate.mean
    assert (swapped.p, swapped.deviation) == (found.p, found.deviation)
    outside = abs(found.estimate.mean) > found.estimate.half_width
    if not math.isclose(abs(found.estimate.mean), found.estimate.half_width, rel_tol=1e-9):
        assert (found.p < 0.05) == outside


def test_corrections_by_hand():
    p = {"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02}
    # Holm: 4 * 0.01, 3 * 0.02, 2 * 0.03, then 1 * 0.04 raised to 0.06
    assert holm(p) == pytest.approx({"d": 0.06, "a": 0.04, "c": 0.06, "b": 0.06})
    assert list(holm(p)) == list(p)
    # 4 * 0.04 / 4, then the smaller of that and 4 * 0.03 / 3, 4 * 0.02 / 2, 4 * 0.01
    assert benjamini_hochberg(p) == pytest.approx(dict.fromkeys(p, 0.04))
    assert holm({}) == benjamini_hochberg({}) == {}


@given(families)
def test_benjamini_and_hochbergs_correction_is_scipys(p):
    expected = scipy.stats.false_discovery_control(list(p.values())) if p else []
    assert list(benjamini_hochberg(p).values()) == pytest.approx(list(expected))


@given(families)
def test_corrections_are_in_order_and_between_bounds(p):
    strict, lenient = holm(p), benjamini_hochberg(p)
    assert strict.keys() == lenient.keys() == p.keys()
    for name, value in p.items():
        assert value <= lenient[name] * (1 + 1e-12)
        assert lenient[name] <= strict[name] * (1 + 1e-12)
        assert strict[name] <= min(1, len(p) * value)
    for one, other in itertools.permutations(p, 2):
        if p[one] <= p[other]:
            assert strict[one] <= strict[other]
            assert lenient[one] <= lenient[other]


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
@given(families, st.floats(0, 1))
def test_an_untested_member_keeps_its_place_and_no_result_of_it_is_worse(correct, p, value):
    found = correct(p | {"untested": NAN})
    assert math.isnan(found.pop("untested"))
    worst, later = correct(p | {"untested": 1.0}), correct(p | {"untested": value})
    assert found == {name: worst[name] for name in p}
    assert all(later[name] <= found[name] * (1 + 1e-12) for name in p)


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.inf])
def test_no_probability_is_refused(correct, value):
    with pytest.raises(ValueError, match="p of prefix: .* expected between 0 and 1"):
        correct({"prefix": value})


def test_studies_in_which_nothing_differs_reject_as_often_as_they_say():
    studies, contrasts = 1000, 6
    low, high = scipy.stats.binom.interval(0.99, studies, 0.05)
    shared = simulated(4, studies, 1, 1, 5)  # what a seed does to every arm
    arms = shared + 0.1 * simulated(5, studies, contrasts, 2, 5)
    p = [
        {place: paired_test(by_seed(a), by_seed(b)).p for place, (a, b) in enumerate(pairs)} for pairs in arms
    ]
    assert low <= sum(study[0] < 0.05 for study in p) <= high
    assert low <= sum(min(holm(study).values()) < 0.05 for study in p) <= high
    low, high = scipy.stats.binom.interval(0.99, studies, 1 - 0.95**contrasts)  # what the correction is for
    assert low <= sum(min(study.values()) < 0.05 for study in p) <= high


def test_contrasts_with_one_baseline_do_not_reject_more_often():
    studies = 1000
    _, high = scipy.stats.binom.interval(0.99, studies, 0.05)
    rejected = 0
    for baseline, *arms in simulated(6, studies, 7, 5):
        p = {str(place): paired_test(by_seed(arm), by_seed(baseline)).p for place, arm in enumerate(arms)}
        rejected += min(holm(p).values()) < 0.05
    assert 0 < rejected <= high


def test_arms_that_differ_by_the_margin_pass_as_equal_as_rarely_as_they_should():
    low, high = scipy.stats.binom.interval(0.99, 1000, 0.05)
    margin = 5.0  # far from zero in deviations, so that only one of the two tests is in doubt
    found = [equivalence(by_seed(a + margin), by_seed([0.0] * 5), margin) for a in simulated(7, 1000, 5)]
    assert low <= sum(one.equivalent for one in found) <= high


def test_the_median_of_what_was_not_reached_is_infinite():
    assert censored_summary([300, None, 100, 200]) == CensoredSummary(median=250.0, reached=3, n=4)
    assert censored_summary([300, None, 100]) == CensoredSummary(median=300.0, reached=2, n=3)
    assert censored_summary([300, None]) == CensoredSummary(median=math.inf, reached=1, n=2)
    assert censored_summary([math.inf, None]) == CensoredSummary(median=math.inf, reached=0, n=2)


def test_censored_values_have_to_be_there():
    with pytest.raises(ValueError, match="found none"):
        censored_summary([])
    with pytest.raises(ValueError, match="found none"):
        rank_test({0: 1.0}, {})
    with pytest.raises(ValueError, match="found nan"):
        rank_test({0: NAN}, {0: 1.0})


def test_ranks_by_hand():
    # the greatest of five against the least of five: one of 252 ways to choose 5 of 10, and its mirror image
    found = rank_test(by_seed([6.0, 7.0, 8.0, 9.0, None]), by_seed([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert found.superiority == 1
    assert found.p == pytest.approx(2 / 252)
    # none reached against all: the same though all of one side are equal
    found = rank_test(by_seed([1.0, 2.0, 3.0, 4.0, 5.0]), by_seed([None] * 5))
    assert found.superiority == 0
    assert found.p == pytest.approx(2 / 252)
    # 2 and a tie at 1 against 1: half of one pair and the other whole; p = 2 * 2 / 3, at most 1
    found = rank_test(by_seed([1.0, 2.0]), by_seed([1.0]))
    assert (found.superiority, found.p) == (0.75, 1.0)
    assert rank_test(by_seed([None] * 3), by_seed([None] * 5)).p == 1


@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 5), (3, 7), (10, 10)])
def test_ranks_without_ties_are_scipys(m, n):
    first, second = simulated(8, m) + 0.5, simulated(9, n)
    expected = scipy.stats.mannwhitneyu(first, second, method="exact")
    found = rank_test(by_seed(first), by_seed(second))
    assert found.superiority == pytest.approx(expected.statistic / (m * n))
    assert found.p == pytest.approx(expected.pvalue)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=4), st.lists(st.integers(0, 3), min_size=1, max_size=4)
)
def test_ranks_with_ties_are_every_way_to_divide_them(first, second):
    values, m = np.array(first + second), len(first)
    pairs = np.sign(values[:, None] - values)

    def wins(chosen):
        rest = [place for place in range(len(values)) if place not in chosen]
        return pairs[np.ix_(chosen, rest)].sum()

    every = np.array([wins(list(chosen)) for chosen in itertools.combinations(range(len(values)), m)])
    own = wins(list(range(m)))
    found = rank_test(by_seed(first), by_seed(second))
    assert found.p == pytest.approx(min(1, 2 * min(np.mean(every <= own), np.mean(every >= own))))
    assert found.superiority == pytest.approx(0.5 + own / (2 * m * len(second)))
    swapped = rank_test(by_seed(second), by_seed(first))
    assert swapped.p == pytest.approx(found.p)
    assert swapped.superiority == pytest.approx(1 - found.superiority)


def test_five_pairs_have_no_significant_signs():
    # what the docstring says of the test that is not there
    differences = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert scipy.stats.wilcoxon(differences, method="exact").pvalue == 2 / 2**5 > 0.05

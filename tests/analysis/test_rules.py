"""Rules on numbers whose verdict is known."""

import dataclasses
import math

import pytest
import scipy.stats

from research.analysis import statistics
from research.analysis.decisions import LEAST_SEEDS, ClaimError, Undecidable, Verdict
from research.analysis.rules import (
    Between,
    Contrast,
    Counted,
    Difference,
    Every,
    Explained,
    Interaction,
    Level,
    Matched,
    NotTestable,
    RankContrast,
    Trend,
)

JITTER = (0.004, -0.004, 0.002, -0.002, 0.0)  # over five seeds; its mean is zero
SEEDS = range(5)


def around(mean, jitter=JITTER, seeds=SEEDS):
    """Five seeds around a mean; what seeds share is large, so that only pairs tell arms apart."""
    return {seed: mean + 10.0 * seed + jitter[seed] for seed in seeds}


FLAT = (0.0,) * 5
WIDE = (0.4, -0.4, 0.3, -0.2, -0.1)


def decided(rule, values):
    found = rule.measure(values)
    return rule.judge(
        found, 1.0 if found.p is None else found.p, 1.0 if found.p_equal is None else found.p_equal
    )


def verdict(rule, values):
    return decided(rule, values).verdict


def contrast(first, second, **fields):
    rule = Contrast(metric="m", arm="a", baseline="b", **fields)
    return verdict(rule, {("a", "m"): first, ("b", "m"): second})


@pytest.mark.parametrize(
    ("difference", "expect", "expected"),
    [
        (-0.1, "less", Verdict.SUPPORTED),
        (+0.1, "greater", Verdict.SUPPORTED),
        (+0.1, "less", Verdict.REFUTED),
        (-0.1, "greater", Verdict.REFUTED),
        (0.0, "less", Verdict.REFUTED),  # equal within 0.02 is an answer
        (-0.01, "less", Verdict.REFUTED),  # significant with the expected sign, and equal
        (0.01, "greater", Verdict.REFUTED),
        (0.0, "equal", Verdict.SUPPORTED),
        (-0.01, "equal", Verdict.SUPPORTED),  # significant, and within the margin
        (0.1, "equal", Verdict.REFUTED),
        (0.0199, "equal", Verdict.INCONCLUSIVE),  # significant, within the margin, too close to it for TOST
    ],
)
def test_a_contrast_of_clear_numbers(difference, expect, expected):
    assert contrast(around(1.0 + difference), around(1.0, FLAT), expect=expect) == expected


@pytest.mark.parametrize("expect", ["less", "greater", "equal"])
def test_a_contrast_that_seeds_drown_is_inconclusive(expect):
    assert contrast(around(1.05, WIDE), around(1.0, FLAT), expect=expect) == Verdict.INCONCLUSIVE


def test_an_effect_below_the_least_does_not_support():
    fields = {"expect": "greater", "least": 0.5}
    assert contrast(around(1.6), around(1.0, FLAT), **fields) == Verdict.SUPPORTED
    assert contrast(around(1.5001), around(1.0, FLAT), **fields) == Verdict.INCONCLUSIVE  # not surely more
    assert contrast(around(1.4), around(1.0, FLAT), **fields) == Verdict.INCONCLUSIVE
    assert contrast(around(0.9), around(1.0, FLAT), **fields) == Verdict.REFUTED  # the other sign
    assert contrast(around(1.01), around(1.0, FLAT), **fields) == Verdict.REFUTED  # within the margin


def test_the_verdict_follows_the_corrected_p_and_not_the_raw_one():
    rule = Contrast(metric="m", arm="a", baseline="b", expect="greater")
    found = rule.measure({("a", "m"): around(1.1), ("b", "m"): around(1.0, FLAT)})
    assert found.p is not None
    assert found.p < 0.01
    decision = rule.judge(found, 0.06, 1.0)
    assert (decision.verdict, decision.reason) == (Verdict.INCONCLUSIVE, "not significant")


@pytest.mark.parametrize(
    ("difference", "expect", "by"),
    [
        (-0.1, "less", "difference"),
        (0.1, "less", "difference"),
        (0.0, "less", "equivalence"),
        (0.0, "equal", "equivalence"),
        (0.1, "equal", "difference"),
        (0.0199, "equal", "equivalence"),
    ],
)
def test_a_decision_names_the_family_whose_p_decided(difference, expect, by):
    rule = Contrast(metric="m", arm="a", baseline="b", expect=expect)
    values = {("a", "m"): around(1.0 + difference), ("b", "m"): around(1.0, FLAT)}
    assert decided(rule, values).by == by


def test_tiny_differences_with_one_sign_are_equal_and_support_nothing():
    shifts = (-0.0010, -0.0011, -0.0009, -0.0012, -0.0008)
    assert contrast(around(1.0, shifts), around(1.0, FLAT), expect="less") == Verdict.REFUTED


def one_sided(differences, bound, alternative):
    return scipy.stats.ttest_1samp(list(differences), bound, alternative=alternative).pvalue


@pytest.mark.parametrize("mean", [-0.05, 0.03, 0.08, 0.2])
@pytest.mark.parametrize(("expect", "bounds"), [("greater", (0.0, 0.06)), ("less", (-0.06, 0.0))])
def test_the_test_of_difference_is_of_more_than_the_least(mean, expect, bounds):
    noise = dict(zip(SEEDS, (0.03, -0.02, 0.01, -0.04, 0.02), strict=True))
    values = {("a", "m"): {seed: mean + noise[seed] for seed in SEEDS}, ("b", "m"): dict.fromkeys(SEEDS, 0.0)}
    found = Contrast(metric="m", arm="a", baseline="b", expect=expect, least=0.06).measure(values)
    differences = values["a", "m"].values()
    tails = one_sided(differences, bounds[0], "less"), one_sided(differences, bounds[1], "greater")
    assert found.p == pytest.approx(min(1.0, 2 * min(tails)))
    assert found.p_null == pytest.approx(scipy.stats.ttest_1samp(list(differences), 0.0).pvalue)


def test_equality_is_refuted_by_a_test_against_the_margin_and_not_by_the_estimate():
    noise = (0.03, -0.02, 0.01, -0.04, 0.02)
    assert contrast(around(1.03, noise), around(1.0, FLAT), expect="equal") == Verdict.INCONCLUSIVE
    rule = Contrast(metric="m", arm="a", baseline="b", expect="equal")
    values = {("a", "m"): around(1.1, (0.03, -0.02, 0.01, -0.04, 0.02)), ("b", "m"): around(1.0, FLAT)}
    found = rule.measure(values)
    assert found.p == pytest.approx(2 * one_sided([0.1 + one for one in noise], 0.02, "greater"))


def test_what_was_detectable_is_at_the_level_asked_and_beyond_the_least():
    values = {("a", "m"): around(1.1), ("b", "m"): around(1.0, FLAT)}
    deviation = statistics.paired_test(values["a", "m"], values["b", "m"]).deviation
    rule = Contrast(metric="m", arm="a", baseline="b", expect="greater", least=0.05)
    for level in (0.05, 0.005):
        expected = 0.05 + deviation * statistics.minimum_detectable_effect(5, alpha=level)
        assert rule.measure(values, level).detectable == pytest.approx(expected)
    equal = Contrast(metric="m", arm="a", baseline="b", expect="equal")
    assert math.isnan(equal.measure(values).detectable)


def test_a_contrast_of_two_metrics_of_one_arm():
    rule = Contrast(metric="metrics.loss.512", arm="a", baseline_metric="metrics.loss.64", expect="greater")
    assert rule.reads() == (("a", "metrics.loss.512"), ("a", "metrics.loss.64"))
    values = {("a", "metrics.loss.512"): around(3.0), ("a", "metrics.loss.64"): around(2.0, FLAT)}
    assert verdict(rule, values) == Verdict.SUPPORTED
    assert rule.measure(values).effect.mean == pytest.approx(1.0)


def test_nothing_is_compared_with_itself():
    with pytest.raises(ClaimError, match="m of a: compared with itself"):
        Contrast(metric="m", arm="a", expect="less")
    with pytest.raises(ClaimError, match="compared with itself"):
        Difference(metric="m", arm="a", baseline="a")


@pytest.mark.parametrize("kind", [Contrast, RankContrast])
def test_few_seeds_test_nothing(kind):
    rule = kind(metric="m", arm="a", baseline="b", expect="less")
    values = {("a", "m"): around(1.0), ("b", "m"): dict.fromkeys(range(LEAST_SEEDS - 1), 2.0)}
    with pytest.raises(Undecidable, match="^4 seeds, expected at least 5$") as caught:
        rule.measure(values)
    assert caught.value.verdict == Verdict.INCONCLUSIVE


@pytest.mark.parametrize("difference", [0.0, -0.001, 0.3])
def test_the_same_difference_at_every_seed_is_no_sample(difference):
    values = {("a", "m"): around(1.0 + difference), ("b", "m"): around(1.0)}
    rule = Contrast(metric="m", arm="a", baseline="b", expect="less")
    with pytest.raises(
        Undecidable, match="the same difference at every seed, so nothing is tested; use Counted"
    ):
        rule.measure(values)


def test_arms_of_more_and_of_fewer_seeds_are_paired_on_what_both_declare():
    rule = Contrast(metric="m", arm="a", baseline="b", expect="greater")
    first = {**around(1.5), 5: 900.0}
    assert rule.measure({("a", "m"): first, ("b", "m"): around(1.0, FLAT)}).effect.n == 5


@pytest.mark.parametrize(
    ("value", "expect", "expected"),
    [
        (16.0, "equal", Verdict.SUPPORTED),
        (15.0, "equal", Verdict.REFUTED),
        (15.0, "greater", Verdict.SUPPORTED),
        (17.0, "greater", Verdict.REFUTED),
    ],
)
def test_a_level_is_a_t_test_against_a_number(value, expect, expected):
    measured = dict(zip(SEEDS, (16.001, 15.999, 16.002, 15.998, 16.0), strict=True))
    rule = Level(metric="m", arm="a", value=value, expect=expect)
    assert verdict(rule, {("a", "m"): measured}) == expected


def test_a_level_has_the_p_of_scipy():
    measured = dict(zip(SEEDS, (0.6, 0.7, 0.55, 0.8, 0.65), strict=True))
    found = Level(metric="m", arm="a", value=0.5, expect="greater").measure({("a", "m"): measured})
    assert found.p == pytest.approx(scipy.stats.ttest_1samp(list(measured.values()), 0.5).pvalue)


def test_an_interaction_is_a_difference_of_differences():
    parts = Difference(metric="m", arm="a", baseline="b"), Difference(metric="m", arm="c", baseline="d")
    rule = Interaction(first=parts[0], second=parts[1], expect="greater")
    means = {"a": 1.5, "b": 1.0, "c": 1.1, "d": 1.0}
    values = {(arm, "m"): around(mean, JITTER if arm == "a" else FLAT) for arm, mean in means.items()}
    assert rule.measure(values).effect.mean == pytest.approx(0.4)
    assert verdict(rule, values) == Verdict.SUPPORTED
    swapped = Interaction(first=parts[1], second=parts[0], expect="greater")
    assert verdict(swapped, values) == Verdict.REFUTED


@pytest.mark.parametrize(
    ("means", "expect", "expected"),
    [
        ((1.0, 1.1, 1.2), "rising", Verdict.SUPPORTED),
        ((1.0, 1.1, 1.2), "falling", Verdict.REFUTED),
        ((1.2, 1.1, 1.0), "falling", Verdict.SUPPORTED),
        ((1.0, 1.3, 1.2), "rising", Verdict.INCONCLUSIVE),  # the ends rise, a step falls
        ((1.0, 1.0, 1.0), "rising", Verdict.REFUTED),
    ],
)
def test_a_trend_asks_for_every_step(means, expect, expected):
    arms = ("small", "middle", "large")
    values = {
        (arm, "m"): around(mean, FLAT if arm == "small" else JITTER)
        for arm, mean in zip(arms, means, strict=True)
    }
    assert verdict(Trend(metrics=("m",), arms=arms, expect=expect), values) == expected


def test_a_trend_over_the_metrics_of_one_arm():
    rule = Trend(metrics=("tp.1", "tp.2", "tp.3"), arms=("a",), expect="rising")
    assert rule.reads() == (("a", "tp.1"), ("a", "tp.2"), ("a", "tp.3"))


@pytest.mark.parametrize(
    ("metrics", "arms"), [(("m",), ("a",)), (("m", "n"), ("a", "b", "c")), ((), ("a", "b"))]
)
def test_a_trend_of_points_that_do_not_pair_is_refused(metrics, arms):
    with pytest.raises(ClaimError, match="expected as many of both"):
        Trend(metrics=metrics, arms=arms, expect="rising")


SWEEP = {"middle": (1.6, 0.7), "fast": (1.5, 0.9), "slow": (1.8, 0.5)}  # what was learnt, what was forgotten


def sweep(**further):
    values = {}
    for arm, (learnt, forgotten) in {**SWEEP, **further}.items():
        values[arm, "learnt"] = dict.fromkeys(SEEDS, learnt)
        values[arm, "forgotten"] = {seed: forgotten + JITTER[seed] * (arm in further) for seed in SEEDS}
    return values


def matched(**fields):
    return Matched(metric="forgotten", at="learnt", baseline=tuple(SWEEP), **{"expect": "less", **fields})


def test_a_remedy_is_compared_with_the_frontier_at_what_it_learnt():
    # The frontier forgets 0.8 at 1.55 and 0.6 at 1.7.
    shifts = matched(arms=("ewc",))
    assert verdict(shifts, sweep(ewc=(1.7, 0.4))) == Verdict.SUPPORTED
    assert shifts.measure(sweep(ewc=(1.7, 0.4))).effect.mean == pytest.approx(-0.2)
    assert verdict(shifts, sweep(ewc=(1.55, 0.8))) == Verdict.REFUTED  # it slides along


def test_two_frontiers_are_compared_at_a_declared_value():
    values = sweep(near=(1.5, 0.5), far=(1.7, 0.3))
    found = matched(arms=("near", "far"), at_value=1.6).measure(values)
    assert found.effect.mean == pytest.approx(0.4 - 0.7)


@pytest.mark.parametrize("learnt", [1.4, 1.9])
def test_a_frontier_is_not_extrapolated(learnt):
    with pytest.raises(
        Undecidable, match=r"not comparable: at seed 0 .* from 1\.5 to 1\.8, expected a range"
    ):
        matched(arms=("ewc",)).measure(sweep(ewc=(learnt, 0.4)))


def test_a_frontier_of_two_arms_at_one_place_is_none():
    with pytest.raises(Undecidable, match="at seed 0 two of middle, fast, slow measured the same learnt"):
        matched(arms=("ewc",)).measure(sweep(ewc=(1.6, 0.4), middle=(1.5, 0.7)))


def test_several_arms_are_matched_at_a_value_only():
    with pytest.raises(ClaimError, match="at_value"):
        matched(arms=("a", "b"))


def every(expect, **arms):
    """The verdict on the difference of each arm to its own baseline."""
    values = {}
    for arm, (mean, baseline) in arms.items():
        values[arm, "m"] = around(mean)
        values[f"{arm} base", "m"] = around(baseline, jitter=FLAT)
    of = tuple(Difference(metric="m", arm=arm, baseline=f"{arm} base") for arm in arms)
    rule = Every(of=of, expect=expect)
    assert set(rule.reads()) == set(values)
    return verdict(rule, values), rule.measure(values).effect.mean


def test_every_difference_has_the_sign_or_it_is_not_supported():
    assert every("greater", a=(2.0, 1.0), b=(1.3, 1.1)) == (Verdict.SUPPORTED, pytest.approx(0.2))
    assert every("less", a=(1.0, 2.0), b=(1.1, 1.3)) == (Verdict.SUPPORTED, pytest.approx(-0.2))
    assert every("greater", a=(2.0, 1.0), b=(1.1, 1.1))[0] == Verdict.REFUTED
    assert every("greater", a=(2.0, 1.0), b=(1.0, 1.3)) == (Verdict.REFUTED, pytest.approx(-0.3))
    with pytest.raises(ClaimError, match="Every of 1 differences"):
        Every(of=(Difference(metric="m", arm="a", baseline="b"),), expect="less")


def test_all_differences_are_equal_or_one_refutes_it():
    """Margin 0.02, jitter as in the other tests."""
    assert every("equal", a=(1.0, 1.0), b=(2.001, 2.0))[0] == Verdict.SUPPORTED
    refuted, effect = every("equal", a=(1.0, 1.0), b=(1.7, 2.0))
    assert (refuted, effect) == (Verdict.REFUTED, pytest.approx(-0.3))
    assert every("equal", a=(1.0, 1.0), b=(2.02, 2.0))[0] == Verdict.INCONCLUSIVE


def test_every_equal_takes_the_greatest_p_of_equivalence_and_the_least_of_difference():
    values = {("a", "m"): around(1.001), ("b", "m"): around(1.2), ("c", "m"): around(1.0, jitter=FLAT)}
    of = tuple(Difference(metric="m", arm=arm, baseline="c") for arm in "ab")
    found = Every(of=of, expect="equal").measure(values)
    near, far = (Contrast(metric="m", arm=arm, baseline="c", expect="equal").measure(values) for arm in "ab")
    assert found.p == pytest.approx(2 * far.p)
    assert near.p > far.p
    assert found.p_equal == far.p_equal > near.p_equal
    assert found.effect == far.effect


def test_every_takes_differences_of_differences_as_interactions_are_tested():
    values = {
        ("a", "m"): around(3.0),
        ("b", "m"): around(2.0),
        ("c", "m"): around(1.5, WIDE),
        ("d", "m"): around(1.0),
    }
    values["e", "m"] = around(1.0, jitter=FLAT)
    ab, cd, ce = (Difference(metric="m", arm=pair[0], baseline=pair[1]) for pair in ("ab", "cd", "ce"))
    rule = Every(of=(Between(first=ab, second=cd), Between(first=ab, second=ce)), expect="greater")
    assert set(rule.reads()) == set(values)
    assert verdict(rule, values) == Verdict.SUPPORTED
    assert rule.measure(values).effect.mean == pytest.approx(0.5, abs=0.01)
    assert "(m of a minus m of b) minus (m of c minus m of e)" in rule.explain()
    equal = dataclasses.replace(rule, expect="equal").measure(values)
    alone = [Interaction(first=ab, second=part, expect="equal").measure(values) for part in (cd, ce)]
    assert equal.p == pytest.approx(2 * min(one.p for one in alone))
    assert equal.p_equal == max(one.p_equal for one in alone)


def test_a_line_explains_a_share_of_the_variance_over_arms():
    arms = tuple("abcd")
    rule = Explained(metric="y", by="x", arms=arms, value=0.5, expect="greater")
    values = {(arm, "x"): dict.fromkeys(SEEDS, float(place)) for place, arm in enumerate(arms)}
    close = {
        (arm, "y"): {seed: 3.0 * place + WIDE[seed] * place**2 for seed in SEEDS}
        for place, arm in enumerate(arms)
    }
    assert verdict(rule, values | close) == Verdict.SUPPORTED
    bent = {
        (arm, "y"): {seed: height + 0.1 * JITTER[seed] * place for seed in SEEDS}
        for place, (arm, height) in enumerate(zip(arms, (0.0, 1.0, 1.0, 0.0), strict=True))
    }
    found = rule.measure(values | bent)
    expected = scipy.stats.linregress(range(4), [bent[arm, "y"][0] for arm in arms]).rvalue ** 2
    assert found.effect.mean + 0.5 == pytest.approx(expected, abs=1e-3)
    assert verdict(rule, values | bent) == Verdict.REFUTED
    with pytest.raises(Undecidable, match="at seed 0 all arms measured the same"):
        rule.measure(values | {(arm, "y"): dict.fromkeys(SEEDS, 1.0) for arm in arms})
    with pytest.raises(ClaimError, match="over 3 arms: expected at least 4"):
        Explained(metric="y", by="x", arms=arms[:3], value=0.5, expect="greater")


def test_censored_values_are_compared_by_rank_with_the_share_that_reached():
    rule = RankContrast(metric="steps", arm="a", baseline="b", expect="less", censored=(1000.0,))
    a = dict(enumerate((100.0, 200.0, 150.0, 120.0, 110.0)))
    b = dict(enumerate((900.0, 1000.0, math.inf, 800.0, math.inf)))  # two of them were never reached
    found = rule.measure({("a", "steps"): a, ("b", "steps"): b})
    assert found.effect.mean == -0.5  # all of a below all of b
    assert math.isnan(found.effect.half_width)
    assert found.p == pytest.approx(2 / 252)
    assert "medians 120 and 1000; reached by 5 of 5 and 2 of 5" in found.note
    assert verdict(rule, {("a", "steps"): a, ("b", "steps"): b}) == Verdict.SUPPORTED
    assert verdict(rule, {("a", "steps"): b, ("b", "steps"): a}) == Verdict.REFUTED
    assert verdict(rule, {("a", "steps"): a, ("b", "steps"): a}) == Verdict.INCONCLUSIVE
    assert rule.unreached() == rule.reads()
    asked = RankContrast(metric="steps", arm="a", baseline="b", expect="less", least=0.45)
    assert verdict(asked, {("a", "steps"): a, ("b", "steps"): b}) == Verdict.SUPPORTED
    nearly = {**b, 0: 150.0}
    assert verdict(asked, {("a", "steps"): a, ("b", "steps"): nearly}) == Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("flops", "expect", "expected"),
    [
        (16.0, "equal", Verdict.SUPPORTED),
        (16.1, "equal", Verdict.REFUTED),
        (16.0, "less", Verdict.REFUTED),
        (15.99, "less", Verdict.REFUTED),  # equal within the margin
        (12.0, "less", Verdict.SUPPORTED),
    ],
)
def test_what_is_counted_is_compared_without_a_test(flops, expect, expected):
    rule = Counted(of=Level(metric="budget.flops", arm="a", value=16.0, expect=expect))
    assert rule.measure({("a", "budget.flops"): {0: flops}}).p is None
    assert verdict(rule, {("a", "budget.flops"): dict.fromkeys(SEEDS, flops)}) == expected


def test_what_seeds_disagree_on_is_not_counted():
    rule = Counted(of=Level(metric="budget.flops", arm="a", value=16.0, expect="equal"))
    with pytest.raises(Undecidable, match="not the same at every seed"):
        rule.measure({("a", "budget.flops"): {0: 16.0, 1: 16.5}})


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (
            Level(metric="metrics.loss", arm="a", value=2.0, expect="less"),
            "Counted on metrics.loss of a: expected a",
        ),
        (
            Contrast(metric="budget.flops", arm="a", baseline_metric="metrics.flops", expect="less"),
            "Counted on metrics.flops of a",
        ),
        (
            Trend(metrics=("budget.flops",), arms=("a", "b"), expect="rising"),
            "Counted.of = Trend: expected a Contrast or a Level",
        ),
    ],
)
def test_what_is_sampled_is_not_counted(of, message):
    with pytest.raises(ClaimError, match=message):
        Counted(of=of)


def test_what_is_not_testable_says_why():
    with pytest.raises(Undecidable, match="needs 175 B parameters") as caught:
        NotTestable(reason="needs 175 B parameters").measure({})
    assert caught.value.verdict == Verdict.NOT_TESTABLE


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            Contrast(metric="m", arm="a", baseline="b", expect="less", least=0.1),
            "m of a is less than m of b by more than 0.1; equal within 0.02 refutes",
        ),
        (
            Contrast(metric="m", arm="a", baseline="b", expect="equal", margin=0.5),
            "m of a equals m of b within 0.5",
        ),
        (Level(metric="m", arm="a", value=0.9, expect="greater"), "m of a is greater than 0.9"),
        (
            matched(arms=("ewc",)),
            "at ewc's learnt: forgotten of ewc is less than forgotten of middle, fast, slow",
        ),
        (
            Trend(metrics=("m",), arms=("a", "b"), expect="rising"),
            "m of a, b, in this order: rising; ends equal",
        ),
        (
            Trend(metrics=("m",), arms=("a", "b"), expect="rising", least=0.1),
            "m of a, b, in this order: rising by more than 0.1 from end to end; ends equal within 0.02 refute",
        ),
        (
            RankContrast(metric="m", arm="a", baseline="b", expect="less", least=0.3),
            "m of a tends to be less than m of b, by rank, P(greater) estimated 0.3 or more from 1/2",
        ),
        (
            Counted(of=Level(metric="budget.m", arm="a", value=16, expect="equal")),
            "budget.m of a equals 16 within 0.02; counted",
        ),
    ],
)
def test_rules_in_words(rule, words):
    assert rule.explain().startswith(words)

"""What helps at no cost, what costs too much, and what does not help."""

import dataclasses

import pytest

from research.analysis.costs import AtNoCost
from research.analysis.decisions import ClaimError, Undecidable, Verdict
from research.analysis.rules import Contrast, Difference

RULE = AtNoCost(
    benefit=Contrast(metric="loops", arm="a", baseline="b", expect="less"),
    cost=Difference(metric="loss", arm="a", baseline="b"),
    most=0.1,
)
NOISE = (0.02, -0.01, 0.015, -0.02, 0.01)


def found(loops, loss, noise=1.0):
    values = {
        ("a", "loops"): {seed: seed + loops + noise * NOISE[seed] for seed in range(5)},
        ("b", "loops"): {seed: float(seed) for seed in range(5)},
        ("a", "loss"): {seed: 3 * seed + loss - noise * NOISE[seed] for seed in range(5)},
        ("b", "loss"): {seed: 3.0 * seed for seed in range(5)},
    }
    assert set(RULE.reads()) == set(values)
    measured = RULE.measure(values)
    return RULE.judge(measured, measured.p, 1.0).verdict, measured, values


@pytest.mark.parametrize(
    ("loops", "loss", "verdict"),
    [
        (-0.5, 0.0, Verdict.SUPPORTED),
        (-0.5, -1.0, Verdict.SUPPORTED),  # better in both
        (-0.5, 0.2, Verdict.REFUTED),  # it costs more than is allowed
        (0.5, 0.0, Verdict.REFUTED),  # it harms
        (0.5, 0.5, Verdict.REFUTED),
        (-0.5, 0.1, Verdict.INCONCLUSIVE),  # just what is allowed
        (0.0, 0.0, Verdict.INCONCLUSIVE),  # no benefit to speak of
    ],
)
def test_it_takes_a_benefit_and_a_small_cost(loops, loss, verdict):
    decided, measured, _ = found(loops, loss)
    assert decided == verdict
    assert measured.effect.mean == pytest.approx(loops + 0.003)
    assert f"cost {loss - 0.003:+.4g}" in measured.note


def test_the_weaker_of_both_decides_what_supports_and_the_stronger_what_refutes():
    weak, strong = found(-0.5, 0.08)[1], found(-0.5, -0.5)[1]
    assert weak.p > strong.p
    assert found(-0.05, -0.5)[1].p > strong.p
    harm, dear = found(0.5, 0.0)[1].p, found(-0.5, 0.5)[1].p
    assert found(0.5, 0.5)[1].p == pytest.approx(2 * min(harm, dear))


def test_what_seeds_drown_is_inconclusive():
    assert found(-0.1, 0.0, noise=30.0)[0] == Verdict.INCONCLUSIVE


def test_a_benefit_below_the_least_does_not_support():
    rule = dataclasses.replace(RULE, benefit=dataclasses.replace(RULE.benefit, least=0.6))
    values = found(-0.5, 0.0)[2]
    measured = rule.measure(values)
    assert rule.judge(measured, measured.p, 1.0).verdict == Verdict.INCONCLUSIVE


def test_what_fails_is_named():
    for loops, reason in ((-0.5, "it costs more than 0.1"), (0.5, "the difference has the other sign")):
        measured = found(loops, 0.5)[1]
        assert RULE.judge(measured, measured.p, 1.0).reason == reason


@pytest.mark.parametrize(
    "fields", [{"most": float("nan")}, {"benefit": dataclasses.replace(RULE.benefit, expect="equal")}]
)
def test_what_has_no_direction_or_no_bound_is_refused(fields):
    with pytest.raises(ClaimError, match="AtNoCost: benefit.expect = "):
        dataclasses.replace(RULE, **fields)


def test_it_says_both_in_words():
    assert (
        RULE.explain() == "loops of a is less than loops of b, and loss of a is less than 0.1 above loss of b"
    )
    assert RULE.direction() == "less"


def test_what_never_varies_is_not_tested():
    with pytest.raises(Undecidable, match="the same difference at every seed"):
        found(-0.5, 0.0, noise=0.0)

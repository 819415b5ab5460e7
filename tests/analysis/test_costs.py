"""What helps at no cost, what costs too much, and what does not help."""

import pytest

from research.analysis.costs import AtNoCost
from research.analysis.decisions import Undecidable, Verdict
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
    return RULE.judge(measured, measured.p, 1.0).verdict, measured


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
    decided, measured = found(loops, loss)
    assert decided == verdict
    assert measured.effect.mean == pytest.approx(loops + 0.003)
    assert f"cost {loss - 0.003:+.4g}" in measured.note


def test_the_weaker_of_both_decides_what_supports_and_the_stronger_what_refutes():
    weak, strong = found(-0.5, 0.08)[1], found(-0.5, -0.5)[1]
    assert weak.p > strong.p
    assert found(-0.05, -0.5)[1].p > strong.p
    assert found(0.5, 0.5)[1].p < 2 * max(found(0.5, 0.0)[1].p, found(-0.5, 0.5)[1].p)


def test_what_seeds_drown_is_inconclusive():
    assert found(-0.1, 0.0, noise=30.0)[0] == Verdict.INCONCLUSIVE


def test_it_says_both_in_words():
    assert (
        RULE.explain() == "loops of a is less than loops of b, and loss of a is less than 0.1 above loss of b"
    )
    assert RULE.direction() == "less"


def test_what_never_varies_is_not_tested():
    with pytest.raises(Undecidable, match="the same difference at every seed"):
        found(-0.5, 0.0, noise=0.0)

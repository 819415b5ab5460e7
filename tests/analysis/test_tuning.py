"""A grid chooses the rate of the least loss, and grows where that is at its edge."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.analysis import tuning
from research.analysis.tuning import Choice

RATES = (0.001, 0.003, 0.01)


def choice(*losses, rates=RATES):
    return Choice(losses=dict(zip(rates, losses, strict=True)))


@pytest.mark.parametrize(
    ("losses", "rate", "edge"),
    [
        ((3.0, 2.0, 2.5), 0.003, 0),
        ((1.0, 2.0, 2.5), 0.001, -1),
        ((3.0, 2.0, 1.5), 0.01, 1),
        ((3.0, 2.0, None), 0.003, 0),  # beyond it diverged, so nothing better lies there
        ((None, None, 9.0), 0.01, 1),
        ((None, None, None), None, 0),
    ],
)
def test_the_least_known_loss_is_chosen(losses, rate, edge):
    found = choice(*losses)
    assert (found.rate, found.edge) == (rate, edge)


def test_an_edge_is_one_of_the_rates_and_not_of_their_order():
    found = Choice(losses={0.01: 3.0, 0.001: 2.0, 0.003: 1.0})
    assert (found.rate, found.edge) == (0.003, 0)


@pytest.mark.parametrize(
    ("rates", "choices", "expected"),
    [
        (RATES, [(3.0, 2.0, 2.5)], RATES),
        (RATES, [(1.0, 2.0, 2.5)], (0.00033, *RATES)),
        (RATES, [(3.0, 2.0, 1.5)], (*RATES, 0.033)),
        (RATES, [(3.0, 2.0, 2.5), (3.0, 2.0, 1.5)], (*RATES, 0.033)),
        (RATES, [(1.0, 2.0, 2.5), (3.0, 2.0, 1.5)], (0.00033, *RATES, 0.033)),
        (
            (0.01, 0.001, 0.005),
            [(3.0, 2.0, 2.5)],
            (0.0002, 0.001, 0.005, 0.01),
        ),  # each end has its own factor
        ((0.001, 0.002, 0.01), [(3.0, 2.0, 1.5)], (0.001, 0.002, 0.01, 0.05)),
        (RATES, [(None, None, None)], RATES),
    ],
)
def test_a_grid_grows_where_some_arm_has_its_best(rates, choices, expected):
    arms = {f"arm {i}": choice(*losses, rates=rates) for i, losses in enumerate(choices)}
    assert tuning.extended(rates, arms) == expected


@given(
    st.floats(1e-6, 1.0),
    st.floats(1.2, 20.0),
    st.integers(3, 6),
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
)
def test_a_longer_grid_rises_and_has_the_shorter_one_inside(first, factor, count, best):
    rates = tuple(first * factor**i for i in range(count))
    arms = {
        str(i): choice(*(abs(j - place % count) for j in range(count)), rates=rates)
        for i, place in enumerate(best)
    }
    longer = tuning.extended(rates, arms)
    assert list(longer) == sorted(set(longer))
    assert set(rates) <= set(longer)
    at_an_edge = {place % count for place in best} & {0, count - 1}
    assert len(longer) - len(rates) == len(at_an_edge)
    assert not any(arm.rate in (longer[0], longer[-1]) for arm in arms.values())


def test_the_table_has_every_rate_of_any_arm_and_marks_the_chosen():
    found = {"causal": choice(3.0, 2.0, None), "prefix": Choice(losses={0.003: 1.25, 0.033: 1.5})}
    assert tuning.markdown(found, seed=1000) == (
        "| arm | 0.001 | 0.003 | 0.01 | 0.033 |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| causal | 3.0000 | **2.0000** | none | none |\n"
        "| prefix | none | **1.2500** | none | 1.5000 |\n"
        "\nHeld-out loss of validation by learning rate, seed 1000, which no table uses. Bold: chosen.\n"
    )

"""Mixtures: proportions that are exact, spread evenly, and the same wherever one begins to read."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.corpora import Factbook, StandardLibrary
from research.data.mixing import CYCLE, Mixture, Order, Part, cycle


def mixture(*weights, **changes):
    parts = (Part(corpus=Factbook(), weight=weight, name=str(i)) for i, weight in enumerate(weights))
    return Mixture(parts=tuple(parts), **changes)


def test_replay_of_a_twentieth_is_every_twentieth_example():
    turns = cycle(mixture(0.95, 0.05).shares([1000, 1000]))
    assert len(turns) == 20
    assert np.bincount(turns).tolist() == [19, 1]


@settings(max_examples=50)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_proportions_are_exact_over_a_cycle_and_even_within_it(weights):
    shares = mixture(*map(float, weights)).shares([1] * len(weights))
    assert sum(shares) == 1
    turns = cycle(shares)
    assert np.bincount(turns, minlength=len(weights)).tolist() == [share * len(turns) for share in shares]
    for part, share in enumerate(shares):
        drawn = np.cumsum(turns == part)
        assert np.abs(drawn - float(share) * np.arange(1, len(turns) + 1)).max() <= len(weights)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=5))
def test_shares_without_a_short_cycle_are_rounded_and_none_is_lost(sizes):
    turns = cycle([Fraction(size, sum(sizes)) for size in sizes])
    assert len(turns) <= CYCLE + len(sizes)
    counts = np.bincount(turns, minlength=len(sizes))
    assert counts.min() >= 1
    assert np.abs(counts / len(turns) - np.array(sizes) / sum(sizes)).max() <= 2 / CYCLE * len(sizes)


def test_temperature_goes_from_proportional_to_equal():
    sizes = [900, 100]
    assert mixture(None, None).shares(sizes) == (Fraction(9, 10), Fraction(1, 10))
    tempered = mixture(None, None, temperature=2.0).shares(sizes)
    assert [float(share) for share in tempered] == pytest.approx([0.75, 0.25])
    assert [float(s) for s in mixture(None, None, temperature=1e6).shares(sizes)] == pytest.approx(
        [0.5, 0.5], abs=1e-5
    )
    assert mixture(None, None, limit=100).shares(sizes) == (Fraction(1, 2), Fraction(1, 2))


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=3),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.integers(0, 9),
)
def test_each_part_is_read_epoch_by_epoch(weights, sizes, seed):
    sizes = sizes[: len(weights)]
    order = Order(sizes, cycle(mixture(*map(float, weights)).shares(sizes)), seed)
    draws = [order[i] for i in range(200)]
    assert order.first(200).tolist() == [[draw.part, draw.window] for draw in draws]
    for part, size in enumerate(sizes):
        mine = [draw for draw in draws if draw.part == part]
        for i, draw in enumerate(mine):
            assert draw.epoch == i // size
        for epoch in range(len(mine) // size):
            assert sorted(draw.window for draw in mine if draw.epoch == epoch) == list(range(size))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: mixture(), "at least one part"),
        (lambda: mixture(1.0, None), "a weight for each or none"),
        (lambda: mixture(1.0, 1.0, temperature=2.0), r"set Part\.weight = None"),
        (lambda: mixture(None, None, temperature=0.0), "temperature = 0.0"),
        (lambda: Part(corpus=Factbook(), weight=-1.0), r"Part\.weight = -1\.0"),
        (lambda: Part(corpus=Factbook(), loss_weight=-1.0), r"Part\.loss_weight = -1\.0"),
        (lambda: Mixture(parts=(Part(corpus=Factbook()), Part(corpus=Factbook()))), r"set Part\.name"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_parts_are_named_by_their_corpora():
    parts = (Part(corpus=Factbook()), Part(corpus=StandardLibrary()))
    assert Mixture(parts=parts).names == ("factbook", "standardlibrary")

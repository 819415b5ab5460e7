"""Blocks: what a rule says of intervals is true of every pair in them."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.attention import masks
from research.attention.masks import Slots

N = 48

small = st.integers(1, 20)
primitives = st.one_of(
    st.sampled_from([masks.Full(), masks.Causal(), masks.Prefix(), masks.Same()]),
    st.builds(masks.Window, small),
    st.builds(masks.SymmetricWindow, small),
    st.builds(masks.Chunk, small),
    st.builds(masks.Sinks, small),
    st.builds(masks.Dilated, small, st.integers(1, 5)),
)
expressions = st.recursive(
    primitives,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: two[0] & two[1]),
        st.tuples(inner, inner).map(lambda two: two[0] | two[1]),
        inner.map(lambda one: ~one),
    ),
    max_leaves=4,
)


@st.composite
def packed(draw):
    """A row of examples with prefixes, positions restarting, padding at the end."""
    lengths = draw(st.lists(st.integers(1, 24), min_size=1, max_size=5))
    position, segment, prefix = (np.zeros(N, int) for _ in range(3))
    place = 0
    for index, length in enumerate(lengths):
        length = min(length, N - place)
        position[place : place + length] = np.arange(length)
        segment[place : place + length] = index + 1
        prefix[place : place + draw(st.integers(0, length))] = 1
        place += length
    prefix &= segment > 0
    return Slots(position, segment, prefix.astype(bool), start=0)


@st.composite
def arbitrary(draw):
    """Any clock, segment and prefix: no promise at all."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return Slots(rng.integers(0, 60, N), rng.integers(0, 3, N), rng.integers(0, 2, N).astype(bool))


rows = st.one_of(packed(), arbitrary(), st.just(Slots.arange(N)))


def tiles(mask, q, k, a, b):
    """Whether any and whether all pairs of each block are visible, by looking at every pair."""
    visible = np.asarray((mask & masks.Same())(q, k))
    cut = lambda size: range(0, N, size)  # noqa: E731
    some = np.array([[visible[i : i + a, j : j + b].any() for j in cut(b)] for i in cut(a)])
    every = np.array([[visible[i : i + a, j : j + b].all() for j in cut(b)] for i in cut(a)])
    return some, every


def read(mask, q, k, a, b):
    truth = masks.visibility(mask, masks.blocks(q, a), masks.blocks(k, b))
    shape = (-(-N // a), -(-N // b))
    return np.broadcast_to(truth.may, shape), np.broadcast_to(truth.must, shape)


@settings(max_examples=300)
@given(expressions, rows, st.integers(1, 20), st.integers(1, 20))
def test_visibility_is_sound(mask, slots, a, b):
    some, every = tiles(mask, slots, slots, a, b)
    may, must = read(mask, slots, slots, a, b)
    assert not (some & ~may).any()  # never NONE where something is visible
    assert not (must & ~every).any()  # never ALL where something is hidden


@settings(max_examples=20)
@given(expressions, rows, st.sampled_from([7, 16]))
def test_traced_visibility_is_the_same(mask, slots, size):
    traced = jax.jit(lambda s: masks.visibility(mask, masks.blocks(s, size), masks.blocks(s, size)).may * 1)
    may, _ = read(mask, slots, slots, size, size)
    assert (np.broadcast_to(traced(slots), may.shape) == may).all()


@settings(max_examples=200)
@given(expressions, st.integers(1, 20), st.integers(1, 20), st.integers(0, 50))
def test_places_alone_are_sound(mask, a, b, start):
    slots = Slots.arange(N, start=start)
    some, every = tiles(mask, slots, slots, a, b)
    truth = masks.visibility(mask, masks.places(N, a), masks.places(N, b))
    assert not (some & ~np.broadcast_to(truth.may, some.shape)).any()
    assert not (np.broadcast_to(truth.must, every.shape) & ~every).any()


@settings(max_examples=100)
@given(expressions)
def test_extendable_and_causal_say_what_the_matrix_says(mask):
    slots = Slots.arange(N)
    later = np.triu(np.ones((N, N), bool), 1)
    if mask.extendable:
        assert not (np.asarray((mask & masks.Same())(slots, slots)) & later).any()
    if mask.causal:
        filled = Slots(slots.position, slots.segment, np.ones(N, bool))
        assert not (np.asarray((mask & masks.Same())(filled, filled)) & later).any()


def test_at_least_80_percent_of_the_empty_tiles_are_found():
    empty = found = 0
    rng = np.random.default_rng(0)
    for _ in range(60):
        ends = np.sort(rng.choice(np.arange(1, N), 3, replace=False))
        segment = np.searchsorted(ends, np.arange(N), side="right") + 1
        position = np.concatenate([np.arange(n) for n in np.diff([0, *ends, N])])
        slots = Slots(position, segment, position < rng.integers(0, 6), start=0)
        for mask in (
            masks.Full(),
            masks.Causal(),
            masks.Prefix(),
            masks.Window(5),
            masks.Chunk(6),
            masks.Dilated(3, 4),
            masks.Causal() & (masks.Sinks(2) | masks.Window(4)),
            masks.Prefix() & masks.SymmetricWindow(6),
        ):
            some, _ = tiles(mask, slots, slots, 8, 8)
            may, _ = read(mask, slots, slots, 8, 8)
            empty, found = empty + (~some).sum(), found + (~may).sum()
    assert found / empty >= 0.8


@pytest.mark.parametrize("mask", [masks.Causal() & (masks.Sinks(4) | masks.Window(8)), ~masks.Chunk(3)])
def test_a_mask_is_a_value_that_its_repr_builds(mask):
    assert eval(repr(mask), vars(masks)) == mask
    assert hash(mask) == hash(eval(repr(mask), vars(masks)))
    assert "\n" not in mask.explain()

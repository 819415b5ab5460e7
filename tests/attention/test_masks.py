"""Masks against matrices written by hand."""

import numpy as np
import pytest

from research.attention.masks import (
    Causal,
    Chunk,
    Dilated,
    Prefix,
    Same,
    Sinks,
    Slots,
    SymmetricWindow,
    Window,
)


def matrix(mask, n):
    slots = Slots.arange(n)
    return np.asarray((mask & Same())(slots, slots)).astype(int).tolist()


def test_causal_diagonal_is_visible():
    assert matrix(Causal(), 3) == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_window_counts_the_query_itself():
    assert matrix(Window(1), 3) == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert matrix(Window(2), 3) == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_chunk_and_sinks():
    assert matrix(Chunk(2), 3) == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert matrix(Causal() & (Sinks(1) | Window(1)), 3) == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]


def test_prefix_sees_itself_in_both_directions():
    plain = Slots.arange(3)
    slots = Slots(plain.position, plain.segment, np.array([True, True, False]))
    assert np.asarray(Prefix()(slots, slots)).astype(int).tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize(("mask", "extendable"), [(Causal(), True), (Prefix(), True), (Chunk(2), False)])
def test_extendable_is_derived_from_the_rule(mask, extendable):
    assert mask.extendable == extendable


def test_packed_examples_have_their_own_prefixes_and_padding_is_nobodys_key():
    slots = Slots(
        position=np.array([0, 1, 2, 0, 1, 2, 0]),
        segment=np.array([1, 1, 1, 2, 2, 2, 0]),
        prefix=np.array([True, True, False, True, False, False, False]),
        start=0,
    )
    assert np.asarray((Prefix() & Same())(slots, slots)).astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


def test_unequal_lengths_are_decided_by_positions_not_by_index():
    keys, query = Slots.arange(5), Slots.arange(1, start=3)
    assert np.asarray(Causal()(query, keys)).astype(int).tolist() == [[1, 1, 1, 1, 0]]


def test_a_windowed_prefix_is_written_out():
    plain = Slots.arange(4)
    slots = Slots(plain.position, plain.segment, np.array([True, True, True, False]))
    mask = Prefix() & SymmetricWindow(2)
    assert np.asarray(mask(slots, slots)).astype(int).tolist() == [
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


def test_dilated_counts_its_keys_and_its_stride():
    assert matrix(Dilated(2, 2), 5)[4] == [0, 0, 1, 0, 1]


@pytest.mark.parametrize("make", [Window, SymmetricWindow, Chunk, Sinks])
def test_a_size_below_one_is_refused_in_one_line(make):
    with pytest.raises(ValueError, match=r"= 0: expected an integer of at least 1$"):
        make(0)

"""Masks against matrices written by hand."""

import numpy as np
import pytest

from research.attention.masks import Causal, Chunk, Prefix, Same, Sinks, Slots, Window


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

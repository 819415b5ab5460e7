"""Position schemes against their published definitions."""

import jax
import numpy as np
import pytest

from research.attention import positions
from research.attention.masks import Slots


def build(scheme, causal=True):
    return scheme.build(width=8, heads=4, head_dim=8, causal=causal, key=jax.random.key(0))


def test_rotary_scores_depend_on_distance_alone_and_rotate_half():
    x = jax.random.normal(jax.random.key(0), (2, 5, 1, 8))
    near = [build(positions.Rotary()).query(x, Slots.arange(5, (2,), start)) for start in (0, 700)]
    dots = [np.einsum("bqhd,bkhd->bqk", turned, turned) for turned in near]
    np.testing.assert_allclose(dots[0], dots[1], atol=2e-3)
    one = positions.rotate(jax.numpy.eye(8)[None, :1, None], np.array([[1]]), 10_000.0)[0, 0, 0]
    np.testing.assert_allclose(one, [np.cos(1), 0, 0, 0, np.sin(1), 0, 0, 0], atol=1e-6)


def test_alibi_slopes_are_the_published_ones():
    assert positions.alibi_slopes(8) == tuple(2.0**-i for i in range(1, 9))
    between = (2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5)
    np.testing.assert_allclose(positions.alibi_slopes(12), (*positions.alibi_slopes(8), *between))


def test_t5_buckets_by_hand():
    ahead = np.array([0, -1, -7, -8, -16, -127, -500, 1, 20])
    causal = positions.t5_bucket(jax.numpy.asarray(ahead), buckets=32, distance=128, bidirectional=False)
    assert causal.tolist() == [0, 1, 7, 8, 16, 31, 31, 0, 0]
    both = positions.t5_bucket(jax.numpy.asarray(ahead), buckets=32, distance=128, bidirectional=True)
    assert both.tolist() == [0, 1, 7, 8, 10, 15, 15, 17, 26]


@pytest.mark.parametrize(("causal", "differ"), [(True, False), (False, True)])
def test_t5_bias_tells_later_keys_apart_only_where_they_are_seen(causal, differ):
    bias = build(positions.T5Bias(buckets=8, distance=16), causal=causal).bias
    table = np.asarray(bias(Slots.arange(6), Slots.arange(6)))
    assert table.shape == (4, 6, 6)
    assert (np.abs(table[:, 0, 1] - table[:, 0, 0]) > 0).any() == differ


def test_a_learned_table_gives_nan_past_its_end():
    x = np.zeros((1, 4, 8), np.float32)
    out = build(positions.Learned(length=3)).embed(jax.numpy.asarray(x), Slots.arange(4, (1,)))
    assert np.isfinite(np.asarray(out)[0, :3]).all()
    assert np.isnan(np.asarray(out)[0, 3]).all()


def test_geometry_is_read_from_coords_and_the_clock_is_not():
    plain = Slots.arange(4)
    moved = Slots(plain.position, plain.segment, plain.prefix, coords=np.array([[9.0], [1.0], [5.0], [0.0]]))
    x = jax.random.normal(jax.random.key(0), (4, 1, 8))
    rotary = build(positions.Rotary())
    by_hand = positions.rotate(x, np.array([9.0, 1.0, 5.0, 0.0]), 10_000.0)
    np.testing.assert_array_equal(rotary.query(x, moved), by_hand)

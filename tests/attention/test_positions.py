"""Position schemes against their published definitions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import positions
from research.attention.core import attend
from research.attention.masks import Causal, Full, Prefix, Slots
from research.attention.rotary import frequencies


def build(scheme, causal=True):
    return scheme.build(width=8, heads=4, head_dim=8, causal=causal, key=jax.random.key(0))


def test_rotary_scores_depend_on_distance_alone_and_rotate_half():
    x = jax.random.normal(jax.random.key(0), (2, 5, 1, 8))
    near = [build(positions.Rotary()).query(x, Slots.arange(5, (2,), start)) for start in (0, 700)]
    dots = [np.einsum("bqhd,bkhd->bqk", turned, turned) for turned in near]
    np.testing.assert_allclose(dots[0], dots[1], atol=2e-3)
    one = positions.rotate(jnp.eye(8)[None, :1, None], np.array([[1]]), frequencies(8, 10_000.0))[0, 0, 0]
    np.testing.assert_allclose(one, [np.cos(1), 0, 0, 0, np.sin(1), 0, 0, 0], atol=1e-6)


def test_alibi_slopes_are_the_published_ones():
    assert positions.alibi_slopes(8) == tuple(2.0**-i for i in range(1, 9))
    between = (2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5)
    np.testing.assert_allclose(positions.alibi_slopes(12), (*positions.alibi_slopes(8), *between))


def test_t5_buckets_by_hand():
    ahead = np.array([0, -1, -7, -8, -16, -127, -500, 1, 20])
    causal = positions.t5_bucket(jnp.asarray(ahead), buckets=32, distance=128, bidirectional=False)
    assert causal.tolist() == [0, 1, 7, 8, 16, 31, 31, 0, 0]
    both = positions.t5_bucket(jnp.asarray(ahead), buckets=32, distance=128, bidirectional=True)
    assert both.tolist() == [0, 1, 7, 8, 10, 15, 15, 17, 26]


@pytest.mark.parametrize(("causal", "differ"), [(True, False), (False, True)])
def test_t5_bias_tells_later_keys_apart_only_where_they_are_seen(causal, differ):
    bias = build(positions.T5Bias(buckets=8, distance=16), causal=causal).bias
    table = np.asarray(bias(Slots.arange(6), Slots.arange(6)))
    assert table.shape == (4, 6, 6)
    assert (np.abs(table[:, 0, 1] - table[:, 0, 0]) > 0).any() == differ


def test_a_learned_table_gives_nan_past_its_end():
    x = np.zeros((1, 4, 8), np.float32)
    out = build(positions.Learned(length=3)).embed(jnp.asarray(x), Slots.arange(4, (1,)))
    assert np.isfinite(np.asarray(out)[0, :3]).all()
    assert np.isnan(np.asarray(out)[0, 3]).all()


def test_geometry_is_read_from_coords_and_the_clock_is_not():
    plain = Slots.arange(4)
    moved = Slots(plain.position, plain.segment, plain.prefix, coords=np.array([[9.0], [1.0], [5.0], [0.0]]))
    x = jax.random.normal(jax.random.key(0), (4, 1, 8))
    rotary = build(positions.Rotary())
    by_hand = positions.rotate(x, np.array([9.0, 1.0, 5.0, 0.0]), frequencies(8, 10_000.0))
    np.testing.assert_array_equal(rotary.query(x, moved), by_hand)


def their_relative_scores(terms, q, k, q_place, k_place):
    """Dai et al. 2019, section 3.3, literally: R from a table of every distance i - j. Scores [b h q k], unscaled."""
    groups = q.shape[-2] // k.shape[-2]
    k = jnp.repeat(k, groups, axis=-2)
    width = terms.projection.shape[0]
    inverse = 10_000.0 ** (-np.arange(0, width, 2) / width)
    angles = (q_place[:, None] - k_place[None, :])[..., None] * inverse
    table = jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], -1), jnp.float32)
    r = jnp.einsum("qkm,mhd->qkhd", table, terms.projection[...])
    content = jnp.einsum("bqhd,bkhd->bhqk", q + terms.content[...], k)
    return content + jnp.einsum("bqhd,qkhd->bhqk", q + terms.position[...], r)


@pytest.mark.parametrize("backend", ["dense", "blockwise"])
@pytest.mark.parametrize("mask", [Causal(), Full()], ids=str)
@pytest.mark.parametrize("memory", [0, 5])
def test_widened_rotation_equals_the_literal_relative_shift(memory, mask, backend):
    n, width, heads, d = 7, 16, 4, 8
    scheme = positions.Relative()
    terms = scheme.build(width=width, heads=heads, head_dim=d, causal=True, key=jax.random.key(3))
    terms.content[...], terms.position[...] = jax.random.normal(jax.random.key(4), (2, heads, d))
    x = [jax.random.normal(key, (2, n + memory, heads, d)) for key in jax.random.split(jax.random.key(5), 3)]
    q, k, v = x[0][:, memory:], x[1][:, :, :2], x[2][:, :, :2]
    line, keys = Slots.arange(n, (2,)), Slots.arange(n + memory, (2,), -memory)

    def widened(terms):
        return attend(
            terms.query(q, line),
            terms.key(k, keys),
            v,
            mask=mask,
            q_slots=line,
            k_slots=keys,
            scale=d**-0.5,
            backend=backend,
        )

    def literal(terms):
        scores = their_relative_scores(terms, q, k, line.position[0], keys.position[0]) * d**-0.5
        shares = jax.nn.softmax(jnp.where(mask(line, keys)[:, None], scores, -jnp.inf))
        return jnp.einsum("bhqk,bkhd->bqhd", shares, jnp.repeat(v, 2, axis=-2))

    def value_and_gradients(run):
        return jax.jit(run)(terms), jax.jit(jax.grad(lambda terms: jnp.sin(run(terms)).sum()))(terms)

    (out, gradient), (expected, wanted) = value_and_gradients(widened), value_and_gradients(literal)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for name in ("content", "position", "projection"):
        ours, theirs = np.asarray(getattr(gradient, name)[...]), np.asarray(getattr(wanted, name)[...])
        assert np.abs(theirs).max() > 1e-2
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("scheme", [positions.Rotary(fraction=0.5), positions.Relative()], ids=str)
def test_scores_depend_on_differences_of_coordinates_alone(scheme):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 6, 4, 8))

    def scores(start):
        slots = Slots.arange(6, (1,), start)
        built = build(scheme)
        return jnp.einsum("bqhd,bkhd->bhqk", built.query(q, slots), built.key(k, slots))

    np.testing.assert_allclose(scores(0), scores(40), atol=1e-4)
    assert np.abs(np.diff(np.asarray(build(scheme).query(q, Slots.arange(6, (1,)))), axis=1)).max() > 0.1


def test_relative_keeps_the_dtype_and_widens_by_the_stack():
    x = jnp.ones((1, 3, 4, 8), jnp.bfloat16)
    built = build(positions.Relative())
    for turned in (built.query(x, Slots.arange(3, (1,))), built.key(x[:, :, :1], Slots.arange(3, (1,)))):
        assert turned.dtype == jnp.bfloat16
        assert turned.shape[-1] == 8 + 8


def test_partial_rotary_leaves_the_rest_of_a_head_as_it_is():
    x = jax.random.normal(jax.random.key(0), (1, 5, 2, 16))
    slots = Slots.arange(5, (1,), 3)
    out = positions.Rotary(fraction=0.25).query(x, slots)
    np.testing.assert_array_equal(out[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(out[..., :4], positions.Rotary().query(x[..., :4], slots))


def test_each_axis_turns_its_own_share_of_the_features():
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 16))
    coords = np.array([[[0, 0], [5, 1], [5, 2], [2, 9]]])
    slots = dataclasses.replace(Slots.arange(4, (1,)), coords=coords)
    out = positions.Rotary(axes=(0, 1)).query(x, slots)
    inverse = frequencies(8, 10_000.0)
    np.testing.assert_array_equal(out[..., :8], positions.rotate(x[..., :8], coords[..., 0], inverse))
    np.testing.assert_array_equal(out[..., 8:], positions.rotate(x[..., 8:], coords[..., 1], inverse))
    partial = positions.Rotary(axes=(1,), fraction=0.5).query(x, slots)
    np.testing.assert_array_equal(partial[..., :8], positions.rotate(x[..., :8], coords[..., 1], inverse))
    np.testing.assert_array_equal(partial[..., 8:], x[..., 8:])


def test_glms_two_dimensional_coords_with_a_plain_prefix_mask_leak_nothing():
    """Blank infilling (Du et al. 2022, section 2.1): a corrupted text A with masks at 1 and 4, then its spans in
    another order, each begun by a start token; the clock is the place in this rearranged line.
    """
    a, spans = 6, [(4, 3), (1, 4)]  # (place of the mask in A, length of the span with its start token)
    places = [*range(a), *(place for place, length in spans for _ in range(length))]
    inside = [0] * a + [i + 1 for _, length in spans for i in range(length)]
    n = len(places)
    line = Slots.arange(n)
    coords = np.stack([places, inside], -1)
    slots = dataclasses.replace(line, prefix=line.position < a, coords=coords)
    rotary = build(positions.Rotary(axes=(0, 1)))
    weights = jax.random.normal(jax.random.key(1), (2, 3, 8, 4, 8)) * 0.5

    def two_layers(x):
        for layer in weights:
            q, k, v = jnp.einsum("nm,smhd->snhd", x, layer)
            q, k = rotary.query(q, slots), rotary.key(k, slots)
            x = x + attend(q, k, v, mask=Prefix(), q_slots=slots, k_slots=slots).mean(-2)
        return x

    x = jax.random.normal(jax.random.key(0), (n, 8))
    depends = np.abs(np.asarray(jax.jit(jax.jacobian(two_layers))(x))).max((1, 3)) > 0
    i, j = np.indices((n, n))
    np.testing.assert_array_equal(depends, (j < a) | ((i >= a) & (j <= i)))
    moved = dataclasses.replace(slots, coords=coords + np.where(np.arange(n) == n - 1, 3, 0)[:, None])
    assert (
        np.abs(np.asarray(rotary.query(x[:, None], moved) - rotary.query(x[:, None], slots)))[-1].max() > 0.1
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: positions.Rotary(fraction=1.5), "Rotary.fraction = 1.5: expected more than 0 and at most 1"),
        (lambda: positions.Rotary(axes=()), r"Rotary.axes = \(\): expected at least one"),
        (lambda: build(positions.Rotary(fraction=0.4)), "turns 3 of it, expected a multiple of 2;"),
        (lambda: build(positions.Rotary(fraction=0.1)), "turns 0 of it"),
        (
            lambda: build(positions.Rotary(axes=(0, 1), fraction=0.75)),
            r"turns 6 of it, expected a multiple of 2 \* 2 Rotary.axes",
        ),
        (
            lambda: positions.Rotary(axes=(0, 1)).query(jnp.ones((1, 2, 1, 8)), Slots.arange(2, (1,))),
            r"coords have 1 component\(s\); give Slots.coords \[\*b n 2\]",
        ),
        (
            lambda: positions.Relative().build(
                width=7, heads=1, head_dim=8, causal=True, key=jax.random.key(0)
            ),
            "StackConfig.width = 7: Relative positions need an even width",
        ),
    ],
)
def test_what_is_wrong_with_a_scheme_is_said_in_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("buckets", "distance"), [(32, 16), (2, 128)])
def test_t5_buckets_that_make_no_sense_are_refused_in_one_line(buckets, distance):
    with pytest.raises(
        ValueError, match=f"T5Bias.buckets = {buckets}, T5Bias.distance = {distance}: expected"
    ):
        positions.T5Bias(buckets=buckets, distance=distance)

"""The blockwise backend equals the dense one, whatever the mask, the shapes and the schedule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from research.attention import blockwise, masks, positions
from research.attention.core import attend
from research.attention.masks import Causal, Full, Prefix, Sinks, Slots, Window
from research.attention.platforms import compiling_for

H, G, D, E = 4, 2, 8, 6

SCHEDULES = {
    "dynamic": functools.partial(blockwise.attend, schedule=functools.partial(blockwise.dynamic, size=16)),
    "spans": functools.partial(
        blockwise.attend, schedule=functools.partial(blockwise.dynamic, size=8, span=3)
    ),
    "static": functools.partial(blockwise.attend, schedule=functools.partial(blockwise.static, size=16)),
}


def packed(rng, rows, n, start=0):
    """Rows of examples of random lengths, a prefix in each, padding at the end."""
    position, segment = np.zeros((rows, n), np.int32), np.zeros((rows, n), np.int32)
    prefix = np.zeros((rows, n), bool)
    for row in range(rows):
        place, index = 0, 1
        while place < n - int(rng.integers(0, n)):
            length = min(int(rng.integers(1, n + 1)), n - place)
            part = np.s_[row, place : place + length]
            position[part], segment[part] = np.arange(length), index
            prefix[row, place : place + int(rng.integers(0, length + 1))] = True
            place, index = place + length, index + 1
    return Slots(position, segment, prefix, start=start)


def inputs(rng, rows, queries, keys, groups=G, dtype=np.float32):
    shapes = (rows, queries, H, D), (rows, keys, groups, D), (rows, keys, groups, E)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@functools.partial(jax.jit, static_argnames=("mask", "backend", "softcap", "rate"))
def both_ways(q, k, v, bias, sinks, q_slots, k_slots, weights, *, mask, backend, softcap=None, rate=0.0):
    """Output, log-sum-exp, and the gradients of a function of both."""

    def call(q, k, v, bias, sinks):
        return attend(
            q,
            k,
            v,
            mask=mask,
            q_slots=q_slots,
            k_slots=k_slots,
            bias=bias,
            sinks=sinks,
            softcap=softcap,
            dropout=(rate, jax.random.bits(jax.random.key(7), (q.shape[0], H))) if rate else None,
            backend=backend,
            return_lse=True,
        )

    def scalar(*args):
        out, lse = call(*args)
        return jnp.sum(out * weights) + jnp.sum(jnp.where(lse > -1e29, jnp.sin(lse), 0)), (out, lse)

    gradients, (out, lse) = jax.grad(scalar, (0, 1, 2, 3, 4), has_aux=True, allow_int=True)(
        q, k, v, bias, sinks
    )
    floats = [g for g in jax.tree.leaves(gradients) if g.dtype != jax.dtypes.float0]
    return out, lse, floats


def assert_equal(q, k, v, q_slots, k_slots, mask, backend, bias=None, sinks=None, **options):
    weights = jnp.cos(jnp.arange(q.shape[0] * q.shape[1] * H * E).reshape(*q.shape[:-1], E))
    args = (q, k, v, bias, sinks, q_slots, k_slots, weights)
    out, lse, gradients = both_ways(*args, mask=mask, backend=backend, **options)
    expected, expected_lse, expected_gradients = both_ways(*args, mask=mask, backend="dense", **options)
    np.testing.assert_allclose(out, expected, atol=2e-6, rtol=0)
    np.testing.assert_allclose(lse, expected_lse, atol=4e-6, rtol=1e-6)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        largest = max(float(jnp.abs(wanted).max()), 1e-3)
        np.testing.assert_allclose(gradient, wanted, atol=2e-5 * largest, rtol=0)


MASKS = [
    Full(),
    Causal(),
    Prefix(),
    Window(9),
    masks.SymmetricWindow(5),
    masks.Chunk(12),
    masks.Dilated(3, 4),
    masks.Same(),
    Causal() & (Sinks(3) | Window(7)),
    Prefix() & ~masks.Chunk(6),
    Sinks(2) & ~masks.Same(),
]


@pytest.mark.parametrize("backend", SCHEDULES)
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_every_mask_on_packed_rows(mask, backend):
    rng = np.random.default_rng(0)
    slots = packed(rng, 3, 53)
    assert_equal(*inputs(rng, 3, 53, 53), slots, slots, mask, SCHEDULES[backend])


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_the_best_schedule_of_small_tiles(mask, monkeypatch):
    """`best` as long lines see it: tiles chosen by work, spans among them."""
    small = blockwise.Tiling(shapes=((16, 16), (8, 16), (8, 24)), overhead=64)
    monkeypatch.setitem(blockwise.TILINGS, jax.default_backend(), small)
    rng = np.random.default_rng(7)
    slots = packed(rng, 2, 61)
    backend = functools.partial(blockwise.attend, schedule=lambda *line: blockwise.best(*line))
    assert_equal(*inputs(rng, 2, 61, 61), slots, slots, mask, backend)


primitives = st.one_of(
    st.sampled_from([Full(), Causal(), Prefix()]),
    st.builds(Window, st.integers(1, 20)),
    st.builds(masks.Chunk, st.integers(1, 20)),
    st.builds(Sinks, st.integers(1, 20)),
    st.builds(masks.Dilated, st.integers(1, 6), st.integers(1, 5)),
)
expressions = st.recursive(
    primitives,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: two[0] & two[1]),
        st.tuples(inner, inner).map(lambda two: two[0] | two[1]),
        inner.map(lambda one: ~one),
    ),
    max_leaves=3,
)


@settings(max_examples=12)
@given(
    expressions,
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(1, 2),
    st.sampled_from([1, 5, 16, 33]),
    st.sampled_from([1, 17, 32, 49]),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 1000),
)
def test_any_mask_any_shape_any_groups(mask, backend, rows, queries, keys, groups, seed):
    """Queries and keys of different lines, as in cross-attention and decoding."""
    rng = np.random.default_rng(seed)
    q_slots, k_slots = packed(rng, rows, queries, None), packed(rng, rows, keys, None)
    assert_equal(*inputs(rng, rows, queries, keys, groups), q_slots, k_slots, mask, SCHEDULES[backend])


@pytest.mark.parametrize("backend", SCHEDULES)
def test_soft_cap_sinks_dropout_and_biases(backend):
    rng = np.random.default_rng(1)
    slots = packed(rng, 2, 40)
    options = {"width": 8, "heads": H, "head_dim": D, "causal": True, "key": jax.random.key(0)}
    sinks = jnp.asarray([-1.0, 0.0, 1.0, 2.0])
    for scheme in (positions.ALiBi(), positions.T5Bias(buckets=8, distance=20)):
        assert_equal(
            *inputs(rng, 2, 40, 40),
            slots,
            slots,
            Causal(),
            SCHEDULES[backend],
            bias=scheme.build(**options).bias,
            sinks=sinks,
            softcap=2.0,
            rate=0.3,
        )


@pytest.mark.parametrize("backend", SCHEDULES)
def test_bfloat16_is_as_close_to_dense_as_its_rounding(backend):
    rng = np.random.default_rng(2)
    q, k, v = inputs(rng, 2, 40, 40, dtype=jnp.bfloat16)
    slots = packed(rng, 2, 40)
    call = functools.partial(attend, q, k, v, mask=Causal(), q_slots=slots, k_slots=slots)
    out = call(backend=SCHEDULES[backend])
    assert out.dtype == jnp.bfloat16
    expected = np.asarray(jax.jit(lambda: call(backend="dense"))(), np.float32)
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=2e-2)


def test_gradients_in_float64_against_finite_differences():
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        q, k, v = inputs(rng, 1, 21, 21, dtype=np.float64)
        slots = packed(rng, 1, 21)
        bias = positions.BucketBias(8, 10, False, H, jax.random.key(0))
        bias = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), bias)

        def call(q, k, v, bias, sinks):
            options = {"mask": Prefix(), "q_slots": slots, "k_slots": slots, "softcap": 3.0}
            return attend(
                q,
                k,
                v,
                bias=bias,
                sinks=sinks,
                dropout=(0.2, jax.random.bits(jax.random.key(1), (1, H))),
                backend=SCHEDULES["dynamic"],
                **options,
            )

        args = (q, k, v, bias, jnp.zeros(H, jnp.float64))
        check_grads(jax.jit(call), args, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def visits(mask, q, k, size):
    return blockwise.dynamic(mask, q, k, size=size).count


def test_blocks_that_nobody_sees_are_never_visited():
    line = Slots.arange(64, (1,))
    assert visits(Causal(), line, line, 16).tolist() == [1, 2, 3, 4]
    assert visits(Window(16), line, line, 16).tolist() == [1, 2, 2, 2]
    segment = np.repeat([[1, 2, 3, 0]], 16, axis=1)
    documents = Slots(line.position, segment, line.prefix, start=0)
    assert visits(Causal(), documents, documents, 16).tolist() == [1, 1, 1, 0]
    union = Slots(*(np.concatenate([a, b]) for a, b in ((line.position,) * 2, (segment, segment * 0 + 1))),
                  np.zeros((2, 64), bool))  # fmt: skip
    assert visits(Causal(), union, union, 16).tolist() == [1, 2, 3, 4]
    runs = blockwise.static(Causal() & (Sinks(4) | Window(16)), line, line, size=16).runs
    assert runs[3] == ((0, 64),)  # static: Sinks is known by place only where the values are


def test_a_hidden_value_that_is_not_a_number_in_a_skipped_block_does_not_matter():
    """The proof that skipped blocks are not read: dense multiplies their values by zero, which gives NaN."""
    q, k, v = inputs(np.random.default_rng(4), 1, 64, 64)
    v = v.at[:, 40].set(jnp.nan)
    slots = Slots.arange(64, (1,))
    out = attend(q, k, v, mask=Causal(), q_slots=slots, k_slots=slots, backend=SCHEDULES["dynamic"])
    assert np.isfinite(np.asarray(out)[:, :32]).all()


def test_skipping_survives_vmap():
    """Replicas with documents of their own: each equals its solo run, and NaN in a skipped block stays unread."""
    rng = np.random.default_rng(5)
    q, k, v = (jnp.stack([x, x + 1]) for x in inputs(rng, 1, 64, 64))
    v = v.at[:, :, 63].set(jnp.nan)
    segment = np.stack([np.repeat([[1, 2, 3, 4]], 16, axis=1), np.repeat([[1, 1, 2, 3]], 16, axis=1)])
    position = np.tile(np.arange(64, dtype=np.int32), (2, 1, 1))

    def call(q, k, v, segment, position):
        slots = Slots(position, segment, position < 0, start=0)
        return attend(q, k, v, mask=Causal(), q_slots=slots, k_slots=slots, backend=SCHEDULES["dynamic"])

    together = jax.jit(jax.vmap(call))(q, k, v, segment, position)
    for i in range(2):
        alone = call(q[i], k[i], v[i], segment[i], position[i])
        np.testing.assert_allclose(together[i], alone, atol=2e-6)
    assert np.isfinite(np.asarray(together)[:, :, :48]).all()


def test_dropout_is_the_same_for_every_tile_size():
    rng = np.random.default_rng(6)
    q, k, v = inputs(rng, 2, 40, 40)
    slots = Slots.arange(40, (2,))

    def call(size):
        schedule = functools.partial(blockwise.dynamic, size=size)
        backend = functools.partial(blockwise.attend, schedule=schedule)
        return attend(
            q,
            k,
            v,
            mask=Causal(),
            q_slots=slots,
            k_slots=slots,
            dropout=(0.5, jax.random.bits(jax.random.key(0), (2, H))),
            backend=backend,
        )

    for size in (8, 24):
        np.testing.assert_allclose(call(size), call(40), atol=2e-6)


def test_nothing_of_size_q_times_k_is_stored():
    def temporaries(backend, n):
        slots = Slots.arange(n, (1,))
        shape = jax.ShapeDtypeStruct((1, n, 2, 16), jnp.float32)

        def loss(q, k, v):
            return attend(q, k, v, mask=Causal(), q_slots=slots, k_slots=slots, backend=backend).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = (temporaries(SCHEDULES["dynamic"], n) for n in (1024, 4096))
    assert large < 4.5 * small  # linear: dense grows by 16
    assert large < temporaries("dense", 4096) / 20


def test_spans_start_at_the_first_key_that_is_seen():
    line = Slots.arange(64, (1,))
    plan = blockwise.dynamic(Window(8), line, line, size=8, span=2)
    assert plan.count.tolist() == [1] * 8
    assert plan.starts[:, 0].tolist() == [0, 0, 8, 16, 24, 32, 40, 48]


@pytest.mark.parametrize(
    ("mask", "n", "kind"),
    [(Causal(), 256, "Static"), (Causal(), 4096, "Dynamic"), (Window(64), 4096, "Dynamic")],
)
def test_the_schedule_is_chosen_by_length_and_mask(mask, n, kind):
    line = Slots.arange(n)
    with compiling_for("cpu"):
        plan = blockwise.best(mask, line, line)
    assert type(plan).__name__ == kind
    assert plan.q_length == n
    if kind == "Dynamic":  # a narrow window pays for narrower tiles
        assert (plan.q_size, plan.k_size) == ((512, 512) if mask == Causal() else (256, 512))

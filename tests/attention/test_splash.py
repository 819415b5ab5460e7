"""The splash backend equals the dense one where it does not refuse; the kernel is interpreted here."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import core, masks, positions, splash
from research.attention.core import attend
from research.attention.masks import Causal, Full, Prefix, Sinks, Slots, Window

H, D, E = 4, 8, 6


def slow(*values):
    """The interpreted kernel takes seconds to compile."""
    return pytest.param(*values, marks=pytest.mark.slow)


def packed(rng, rows, n):
    """Rows of three examples of random lengths, padding in front of the last one and at the end."""
    position, segment = np.zeros((rows, n), np.int32), np.zeros((rows, n), np.int32)
    for row in range(rows):
        a, b, c, d = np.sort(rng.choice(np.arange(1, n), 4, replace=False))
        for index, (first, last) in enumerate(((0, a), (a, b), (c, d)), 1):
            position[row, first:last], segment[row, first:last] = np.arange(last - first), index
    return Slots(position, segment, np.zeros((rows, n), bool), start=0)


def inputs(rng, rows, queries, keys, groups=2, dtype=np.float32):
    shapes = (rows, queries, H, D), (rows, keys, groups, D), (rows, keys, groups, E)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def assert_equal_to_dense(q, k, v, mask, q_slots, k_slots, traced=True, **options):
    """Output, log-sum-exp and every gradient; `traced` slots are arguments of the compiled function."""

    def both_ways(backend, q, k, v, sinks, q_slots, k_slots):
        def scalar(q, k, v, sinks):
            call = {"mask": mask, "q_slots": q_slots, "k_slots": k_slots, "backend": backend, **options}
            out, lse = attend(q, k, v, sinks=sinks, return_lse=True, **call)
            weighted = jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape))
            return weighted + jnp.sum(jnp.where(lse > -1e29, jnp.sin(lse), 0)), (out, lse)

        return jax.grad(scalar, (0, 1, 2, 3), has_aux=True)(q, k, v, sinks)

    def run(backend):
        args = (q, k, v, jnp.asarray([-1.0, 0.0, 1.0, 2.0]))
        if traced:
            return jax.jit(functools.partial(both_ways, backend))(*args, q_slots, k_slots)
        return jax.jit(lambda *args: both_ways(backend, *args, q_slots, k_slots))(*args)

    (gradients, (out, lse)), (wanted, (wanted_out, wanted_lse)) = run("splash"), run("dense")
    np.testing.assert_allclose(out, wanted_out, atol=1e-6, rtol=0)
    np.testing.assert_allclose(lse, wanted_lse, atol=2e-6, rtol=1e-6)
    for gradient, reference in zip(gradients, wanted, strict=True):
        largest = max(float(jnp.abs(reference).max()), 1e-3)
        np.testing.assert_allclose(gradient, reference, atol=1e-4 * largest, rtol=0)
    return out, gradients


@pytest.mark.parametrize(
    "mask",
    [
        slow(Full()),
        Causal(),
        slow(Window(9)),
        slow(masks.SymmetricWindow(5)),
        masks.Dilated(3, 4),
        slow(masks.Same()),
        Full() & ~Causal(),
        Causal() & ~Window(4) | masks.Dilated(2, 7),
    ],
    ids=str,
)
def test_masks_of_differences_on_packed_rows(mask):
    """Padding and the first slots of an example under `~Causal()` see nothing."""
    rng = np.random.default_rng(0)
    slots = packed(rng, 2, 100)
    out, gradients = assert_equal_to_dense(*inputs(rng, 2, 100, 100), mask, slots, slots)
    padding = slots.segment == 0
    assert not np.asarray(out)[padding].any()
    for gradient in gradients[:3]:
        assert not np.asarray(gradient)[padding].any()


@pytest.mark.parametrize(
    "mask",
    [Prefix(), slow(masks.Chunk(12)), slow(Causal() & (Sinks(3) | Window(7))), Prefix() & ~masks.Chunk(40)],
    ids=str,
)
def test_any_mask_on_rows_of_one_known_segment(mask):
    """Left and right padding, positions that start anywhere, one prefix."""
    rng = np.random.default_rng(1)
    place = np.tile(np.arange(100, dtype=np.int32), (2, 1))
    real = (place >= 3) & (place < 90)
    slots = Slots(place - 3, np.where(real, [[1], [7]], 0), real & (place < 40), start=0)
    assert_equal_to_dense(*inputs(rng, 2, 100, 100), mask, slots, slots, traced=False)


@pytest.mark.parametrize("groups", [1, slow(4)])
def test_soft_cap_groups_and_several_blocks(groups):
    rng = np.random.default_rng(2)
    slots = packed(rng, 2, 700)
    assert splash._size(700) == 384
    assert_equal_to_dense(*inputs(rng, 2, 700, 700, groups), Window(300), slots, slots, softcap=2.0)


def test_queries_at_the_end_of_the_keys():
    rng = np.random.default_rng(3)
    q_slots, k_slots = Slots.arange(30, (1,), start=170), Slots.arange(200, (1,))
    assert_equal_to_dense(*inputs(rng, 1, 30, 200), Window(50), q_slots, k_slots)
    assert_equal_to_dense(*inputs(rng, 1, 30, 200), masks.Chunk(45), q_slots, k_slots, traced=False)


def test_replicas_with_segments_of_their_own():
    rng = np.random.default_rng(4)
    rows = [packed(rng, 1, 60) for _ in range(2)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    args = [jnp.stack([x, x + 1]) for x in inputs(rng, 1, 60, 60)]

    def call(q, k, v, slots):
        return attend(q, k, v, mask=Causal(), q_slots=slots, k_slots=slots, backend="splash")

    together = jax.jit(jax.vmap(call))(*args, stacked)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(together[i], call(*(x[i] for x in args), row), atol=1e-6)


def test_bfloat16_is_as_close_to_dense_as_its_rounding():
    rng = np.random.default_rng(5)
    q, k, v = inputs(rng, 2, 40, 40, dtype=jnp.bfloat16)
    slots = packed(rng, 2, 40)

    def call(backend):
        out = jax.jit(lambda: attend(q, k, v, mask=Causal(), q_slots=slots, k_slots=slots, backend=backend))()
        assert out.dtype == jnp.bfloat16
        return np.asarray(out, np.float32)

    np.testing.assert_allclose(call("splash"), call("dense"), atol=2e-2)


LINE = Slots.arange(40, (2,))
DOCUMENTS = Slots(LINE.position % 20, LINE.position // 20 + 1, LINE.position % 20 < 5, start=0)
HALF = dataclasses.replace(LINE, prefix=LINE.position < [[5], [6]])

REFUSED = {
    "a bias": {
        "bias": positions.ALiBi().build(width=8, heads=H, head_dim=D, causal=True, key=jax.random.key(0)).bias
    },
    "dropout = 0.1": {"dropout": (0.1, jax.random.bits(jax.random.key(0), (2, H)))},
    "float16": {"dtype": np.float16},
    "start = None": {"slots": dataclasses.replace(LINE, start=None)},
    "Prefix()": {"mask": Prefix(), "slots": DOCUMENTS},
    "Chunk(c=3)": {"mask": masks.Chunk(3), "slots": DOCUMENTS},
    "Causal() | ": {"mask": Causal() & Prefix() & ~Causal(), "slots": HALF},
    "hides every pair": {"mask": Causal() & ~Causal()},
}


@pytest.mark.parametrize("found", REFUSED)
def test_what_it_cannot_honour_is_refused_in_one_line(found):
    call = {"mask": Causal(), "slots": LINE, "dtype": np.float32, **REFUSED[found]}
    slots = call.pop("slots")
    q, k, v = inputs(np.random.default_rng(6), 2, 40, 40, dtype=call.pop("dtype"))
    with pytest.raises(ValueError, match="attention backend 'splash'") as error:
        attend(q, k, v, q_slots=slots, k_slots=slots, backend="splash", **call)
    line = str(error.value)
    assert "\n" not in line
    assert "StackConfig.backend" in line
    assert found.split(" | ")[0] in line


def test_auto_takes_the_next_backend(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert core.resolved_name("auto") == "blockwise"
    with jax.set_mesh(
        jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
    ):  # attention is shared out
        assert core.resolved_name("auto") == "splash, blockwise"
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert core.resolved_name("auto") == "splash, blockwise"
    q, k, v = inputs(np.random.default_rng(7), 2, 40, 40)
    facts = {"q": q, "k": k, "v": v, "q_slots": DOCUMENTS, "k_slots": DOCUMENTS}
    assert core.choose("auto", mask=Causal(), needs_lse=True, **facts) is splash.attend
    assert core.choose("auto", mask=Prefix(), **facts) is core.BACKENDS["blockwise"]
    with pytest.raises(ValueError, match="expected one of"):
        core.choose("flash", mask=Causal(), **facts)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert core.resolved_name("auto") == "blockwise"

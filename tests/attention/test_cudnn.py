"""The cuDNN backend: lowered for CUDA without a GPU, and compared with dense where there is one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from research.attention import core, cudnn, masks, positions
from research.attention.core import attend
from research.attention.masks import Causal, Full, Prefix, Slots, Window

H, D = 4, 16
LINE = Slots.arange(40, (2,))
DOCUMENTS = Slots(
    LINE.position % 20, LINE.position // 20, LINE.position % 20 < 5, start=0
)  # the first is padding

needs_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU; `make test-gpu` needs one")


def inputs(groups=2, length=40, width=D, v_width=None, dtype=jnp.bfloat16):
    rng = np.random.default_rng(0)
    shapes = (2, length, H, width), (2, length, groups, width), (2, length, groups, v_width or width)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def output_and_gradients(backend, mask, slots, q, k, v):
    def scalar(q, k, v):
        out = attend(q, k, v, mask=mask, q_slots=slots, k_slots=slots, backend=backend)
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    return jax.grad(scalar, (0, 1, 2), has_aux=True)(q, k, v)


@pytest.fixture
def as_if_cudnn(monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda capability: True)


@pytest.mark.parametrize("groups", [H, 2, 1])
@pytest.mark.parametrize(
    ("mask", "slots", "kind", "window", "explicit"),
    [
        (Full(), LINE, "NO_MASK", 0, False),
        (Causal(), LINE, "CAUSAL", 0, False),
        (Window(7), LINE, "CAUSAL", 7, False),
        (masks.Chunk(8), LINE, "NO_MASK", 0, True),
        (Causal(), DOCUMENTS, "NO_MASK", 0, True),
        (Prefix(), DOCUMENTS, "NO_MASK", 0, True),
    ],
    ids=["full", "causal", "window", "chunk", "packed", "prefix"],
)
def test_the_kernels_mask_is_ours(mask, slots, kind, window, explicit, groups, as_if_cudnn):
    """Forward and backward are one cuDNN call each, with its own mask where it has one."""
    call = jax.jit(functools.partial(output_and_gradients, "cudnn", mask, slots))
    text = call.trace(*inputs(groups)).lower(lowering_platforms=("cuda",)).as_text().replace("\\22", '"')
    name = "__cudnn$fmhaScaleBiasSoftmax" if explicit else "__cudnn$fmhaSoftmax"
    assert f"@{name}(" in text
    assert f"@{name}Backward(" in text
    assert text.count(f'"mask_type": "{kind}"') == 2
    assert text.count(f'"sliding_window_length": {window},') == 2


REFUSED = {
    "float32": {"dtype": jnp.float32},
    "a bias": {"bias": positions.ALiBi().build(width=8, heads=H, head_dim=D, causal=True, key=jax.random.key(0)).bias},
    "softcap = 2.0": {"softcap": 2.0},
    "dropout = 0.1": {"dropout": (0.1, jax.random.bits(jax.random.key(0), (2, H)))},
    "learned sinks or return_lse": {"return_lse": True},
    "log-sum-exp": {"sinks": jnp.zeros(H)},
    "values of width 24": {"v_width": 24},
    "heads of width 12": {"width": 12},
    "heads of width 256": {"width": 256},
    "39 queries and 39 keys": {"mask": masks.Chunk(3), "length": 39},
}  # fmt: skip


@pytest.mark.parametrize("found", REFUSED)
def test_what_it_cannot_honour_is_refused_in_one_line(found):
    call = {"mask": Causal(), **REFUSED[found]}
    shape = {name: call.pop(name) for name in ("dtype", "width", "v_width", "length") if name in call}
    q, k, v = inputs(**shape)
    slots = Slots.arange(q.shape[1], (2,))
    with pytest.raises(ValueError, match="attention backend 'cudnn'") as error:
        attend(q, k, v, q_slots=slots, k_slots=slots, backend="cudnn", **call)
    line = str(error.value)
    assert "\n" not in line
    assert "StackConfig.backend" in line
    assert found in line


def test_auto_takes_the_next_backend(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert core.resolved_name("auto") == "cudnn, blockwise"
    q, k, v = inputs()
    facts = {"q": q, "k": k, "v": v, "mask": Causal(), "q_slots": LINE, "k_slots": LINE}
    assert core.choose("auto", **facts) is cudnn.attend
    assert core.choose("auto", needs_lse=True, **facts) is core.BACKENDS["blockwise"]


@pytest.mark.parametrize(
    ("flags", "taken"),
    [
        ("--xla_gpu_deterministic_ops=true", "blockwise"),
        ("--xla_a=1 --xla_gpu_exclude_nondeterministic_ops", "blockwise"),
        ("--xla_gpu_deterministic_ops=false", "cudnn"),
        ("--xla_gpu_deterministic_ops_of_another_kind=true", "cudnn"),
    ],
)
def test_sums_in_one_order_are_left_to_blockwise(monkeypatch, flags, taken):
    """XLA loses the second of two equal backward passes where it is told to be deterministic."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_FLAGS", flags)
    q, k, v = inputs()
    facts = {"q": q, "k": k, "v": v, "mask": Causal(), "q_slots": LINE, "k_slots": LINE}
    assert core.choose("auto", **facts) is core.BACKENDS[taken]
    if taken == "blockwise":
        with pytest.raises(
            ValueError, match=f"XLA_FLAGS has {flags.split()[-1]} .*; set StackConfig.backend to"
        ):
            core.choose("cudnn", **facts)


@needs_gpu
@pytest.mark.parametrize("groups", [H, 1])
@pytest.mark.parametrize("slots", [LINE, DOCUMENTS], ids=["line", "documents"])
@pytest.mark.parametrize(
    "mask", [Full(), Causal(), Window(7), Prefix(), masks.Chunk(8), Full() & ~Causal()], ids=str
)
def test_equals_dense(mask, slots, groups):
    args = inputs(groups)
    gradients, out = jax.jit(functools.partial(output_and_gradients, "cudnn", mask, slots))(*args)
    wide = [x.astype(jnp.float32) for x in args]
    wanted, wanted_out = jax.jit(functools.partial(output_and_gradients, "dense", mask, slots))(*wide)
    np.testing.assert_allclose(np.asarray(out, np.float32), wanted_out, atol=2e-2)
    unseen = ~np.asarray((mask & masks.Same())(slots, slots)).any(-1)
    assert not np.asarray(out, np.float32)[unseen].any()
    for gradient, reference in zip(gradients, wanted, strict=True):
        largest = float(jnp.abs(reference).max())
        np.testing.assert_allclose(np.asarray(gradient, np.float32), reference, atol=2e-2 * largest)


def test_a_plain_row_is_one_segment_from_one_position_without_padding():
    shifted = Slots.arange(40, (2,), start=5)
    assert cudnn._plain(LINE, LINE)
    assert cudnn._plain(shifted, shifted)
    assert not cudnn._plain(LINE, shifted)
    assert not cudnn._plain(DOCUMENTS, DOCUMENTS)
    assert not cudnn._plain(LINE, dataclasses.replace(LINE, segment=LINE.segment + 1))
    assert not cudnn._plain(dataclasses.replace(LINE, segment=jnp.asarray(LINE.segment)), LINE)

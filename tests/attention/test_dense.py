"""The dense backend against literal formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import core, positions
from research.attention.dense import kept
from research.attention.masks import Causal, Full, Slots

B, N, H, G, D = 2, 7, 4, 2, 6
attend = functools.partial(core.attend, backend="dense")


def inputs(seed=0, groups=G):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = (B, N, H, D), (B, N, groups, D), (B, N, groups, 5)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def slots(segment=None):
    plain = Slots.arange(N, (B,))
    return plain if segment is None else Slots(plain.position, np.asarray(segment), plain.prefix)


def literal(q, k, v, visible, *, scale=D**-0.5, softcap=None, bias=0.0, sinks=None):
    """Row by row in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros((B, N, H, v.shape[-1]))
    bias = np.broadcast_to(bias, (B, H, N, N))
    for b, h, i in np.ndindex(B, H, N):
        g = h // (H // k.shape[2])
        seen = np.flatnonzero(visible[b, i])
        if not len(seen):
            continue
        scores = k[b, seen, g] @ q[b, i, h] * scale
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        shares = np.exp(scores + bias[b, h, i, seen])
        total = shares.sum() + (0 if sinks is None else np.exp(sinks[h]))
        out[b, i, h] = (shares / total) @ v[b, seen, g]
    return out


CAUSAL = np.broadcast_to(np.tril(np.ones((N, N), bool)), (B, N, N))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_queries_share_keys_without_repeating_them(groups):
    q, k, v = inputs(groups=groups)
    out = attend(q, k, v, mask=Causal(), q_slots=slots(), k_slots=slots())
    np.testing.assert_allclose(out, literal(q, k, v, CAUSAL), atol=1e-6)


def test_soft_cap_scale_bias_and_sinks():
    q, k, v = inputs()
    sinks = np.array([-1.0, 0.0, 1.0, 2.0], np.float32)
    bias = positions.LinearBias(jnp.asarray([0.5, 0.25, 0.1, 0.0]))
    out = attend(
        q,
        k,
        v,
        mask=Causal(),
        q_slots=slots(),
        k_slots=slots(),
        bias=bias,
        scale=0.7,
        softcap=2.0,
        sinks=jnp.asarray(sinks),
    )
    distance = np.abs(np.arange(N)[:, None] - np.arange(N))
    added = -np.array([0.5, 0.25, 0.1, 0.0])[:, None, None] * distance
    expected = literal(q, k, v, CAUSAL, scale=0.7, softcap=2.0, bias=added, sinks=sinks)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_a_row_with_nothing_to_see_gives_zeros_and_zero_gradients():
    q, k, v = inputs()
    alone = np.ones((B, N), np.int32)
    alone[:, 3] = 0  # padding

    def call(q, k, v):
        return attend(q, k, v, mask=Full(), q_slots=slots(alone), k_slots=slots(alone), return_lse=True)

    out, lse = call(q, k, v)
    assert (np.asarray(out)[:, 3] == 0).all()
    assert (np.asarray(lse)[..., 3] < -1e29).all()
    sinks = jnp.zeros(H)
    gradients = jax.grad(
        lambda q, k, v, sinks: jnp.sum(
            attend(q, k, v, mask=Full(), q_slots=slots(alone), k_slots=slots(alone), sinks=sinks)[:, 3]
        ),
        (0, 1, 2, 3),
    )(q, k, v, sinks)
    assert all((np.asarray(gradient) == 0).all() for gradient in gradients)


def test_log_sum_exp_is_of_the_visible_scores():
    q, k, v = inputs(groups=H)
    _, lse = attend(q, k, v, mask=Causal(), q_slots=slots(), k_slots=slots(), return_lse=True)
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * D**-0.5
    expected = np.log(np.where(CAUSAL[:, None], np.exp(scores), 0).sum(-1))
    np.testing.assert_allclose(lse, expected, atol=1e-5)


def test_dropout_drops_its_share_and_keeps_the_mean():
    word = jnp.asarray(np.arange(400, dtype=np.uint32)[:, None, None] * np.uint32(2654435761))
    rows, columns = jnp.arange(32)[:, None], jnp.arange(32)
    share = np.asarray(kept(word, rows, columns, 0.3)).mean()
    assert abs(share - 0.7) < 0.005  # 409,600 draws: 7 standard deviations
    q, k, v = inputs()

    def mean(rate):
        words = jax.random.bits(jax.random.key(1), (400, B, H))
        call = lambda word: attend(  # noqa: E731
            q, k, v, mask=Causal(), q_slots=slots(), k_slots=slots(), dropout=(rate, word)
        )
        return jax.vmap(call)(words)

    plain = attend(q, k, v, mask=Causal(), q_slots=slots(), k_slots=slots())
    np.testing.assert_allclose(mean(0.0)[0], plain, atol=1e-6)
    assert np.abs(np.asarray(mean(0.2).mean(0) - plain)).mean() < 0.03


def test_softmax_of_bfloat16_inputs_is_in_float32():
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs())
    out, lse = attend(q, k, v, mask=Causal(), q_slots=slots(), k_slots=slots(), return_lse=True)
    assert out.dtype == jnp.bfloat16
    assert lse.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(out, np.float64), literal(q, k, v, CAUSAL), atol=0.03)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"backend": "densest"}, "expected one of"), ({"k_slots": Slots.arange(3, (B,))}, "its slots have 3")],
)
def test_what_cannot_be_attended_is_refused_in_one_line(change, said):
    q, k, v = inputs()
    call = {"mask": Causal(), "q_slots": slots(), "k_slots": slots(), **change}
    with pytest.raises(ValueError, match=said):
        attend(q, k, v, **call)

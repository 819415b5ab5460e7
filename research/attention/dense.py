"""The reference backend: every score of every pair, softmax in float32 or wider."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from research.attention.masks import Mask, Same, Slots

FLOOR = -1e30  # finite, so that a row with nothing to see has exp(-inf - FLOOR) = 0 everywhere, not NaN


def attend(
    q: Float[Array, "*b q h d"],
    k: Float[Array, "*b k g d"],
    v: Float[Array, "*b k g e"],
    *,
    mask: Mask,
    q_slots: Slots,
    k_slots: Slots,
    bias: Any = None,
    scale: float,
    softcap: float | None = None,
    dropout: tuple[float, UInt[Array, "*b h"]] | None = None,
) -> tuple[Float[Array, "*b q h e"], Float[Array, "*b h q"]]:
    """Attention output and log-sum-exp of the scores; see `core.attend` for the arguments.

    A row with nothing to see gives zeros, zero gradients and a log-sum-exp of about -1e30.
    """
    *batch, queries, heads, width = q.shape
    keys, groups = k.shape[-3:-1]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    # Heads before positions: every product below is then a plain batched matrix product.
    q = jnp.moveaxis(q * scale, -2, -3).reshape(*batch, groups, heads // groups, queries, width)
    k, v = jnp.moveaxis(k, -2, -3), jnp.moveaxis(v, -2, -3)

    scores = jnp.einsum("...grqd,...gkd->...grqk", q, k, preferred_element_type=wide)
    scores = scores.reshape(*batch, heads, queries, keys)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias(q_slots, k_slots).astype(wide)

    visible = (mask & Same())(q_slots, k_slots)[..., None, :, :]
    scores = jnp.where(visible, scores, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.maximum(scores.max(-1, keepdims=True), FLOOR))
    shares = jnp.exp(scores - top)
    total = jnp.maximum(shares.sum(-1, keepdims=True), jnp.finfo(wide).tiny)

    if dropout is not None:
        rate, word = dropout
        survive = kept(word[..., None, None], jnp.arange(queries)[:, None], jnp.arange(keys), rate)
        shares = jnp.where(survive, shares / (1 - rate), 0)

    shares = shares.astype(v.dtype).reshape(*batch, groups, heads // groups, queries, keys)
    out = jnp.einsum("...grqk,...gke->...grqe", shares, v, preferred_element_type=wide)
    out = out.reshape(*batch, heads, queries, v.shape[-1]) / total
    return jnp.moveaxis(out, -3, -2), (top + jnp.log(total))[..., 0]


def kept(
    word: UInt[Array, "..."], q_index: Int[Array, "..."], k_index: Int[Array, "..."], rate: float
) -> Bool[Array, "..."]:
    """Which (query, key) pairs dropout keeps: an integer hash (Murmur3's finaliser) of a random word and the
    pair's indices, so that every backend and every tile size drops the same entries.
    """
    bits = _mix(advanced(word, q_index)) ^ (k_index.astype(jnp.uint32) * jnp.uint32(0x85EBCA77))
    return _mix(bits) >= jnp.uint32(min(int(rate * 2**32), 2**32 - 1))


def advanced(word: UInt[Array, "..."], queries: Int[Array, "..."]) -> UInt[Array, "..."]:
    """The word with which `kept` finds at query i what it finds at query i + `queries` with the one given."""
    return word + queries.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)


def _mix(bits: Array) -> Array:
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)

"""The loss: a sum over weighted tokens, to be divided once by the weight of the whole optimiser step."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from research.attention.platforms import platform

# How many logits a device holds at a time. A CPU keeps them in its cache; an accelerator wants large products.
LOGITS = {"cpu": 2**22}
LOGITS_ELSEWHERE = 2**27


# The greatest p of log(1 - p), so that what is certain has a finite loss and no gradient.
CERTAIN = 1 - 1e-5


def token_loss(
    logits: Callable[[Any, Array], Array],
    head: Any,
    hidden: Float[Array, "*b t m"],
    labels: Int[Array | np.ndarray, "*b t"],
    weights: Float[Array | np.ndarray, "*b t"],
    *,
    vocab: int,
    z_loss: Any = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of the cross-entropies in nats, and the sum of the weights, both float32.

    The vocabulary projection runs over chunks of the tokens, so the array [b t v] never exists. The gradient of a chunk
    is taken together with its loss: logits are neither stored for the backward pass nor computed a second time.

    Args:
      logits: parameters and [b n m] to scores [b n v].
      head: its parameters.
      hidden, labels, weights: states, what they should predict, and with which weight.
      vocab: v.
      z_loss: c in c * log(Z)^2, which keeps the normaliser Z near one (PaLM, Chowdhery et al. 2022, section 5).
    """
    length = hidden.shape[-2]
    states, targets, shares = (
        line.reshape(-1, length, *rest)
        for line, rest in ((hidden, hidden.shape[-1:]), (jnp.asarray(labels), ()), (jnp.asarray(weights), ()))
    )
    chunks = _chunks(targets.size * vocab, length)
    z_loss = jnp.asarray(z_loss, jnp.float32)
    total = _chunked(logits, chunks, head, states, targets, shares.astype(jnp.float32), z_loss)
    return total, jnp.sum(shares, dtype=jnp.float32)


def token_divergence(
    base: Callable[[Array], Array],
    model: Callable[[Array], Array],
    base_hidden: Float[Array, "b t m"],
    hidden: Float[Array, "b t n"],
    weights: Float[Array, "b t"],
) -> Float[Array, ""]:
    """Weighted sum over tokens of KL(base || model) in nats, chunk by chunk as in `token_loss`.

    Scores of a chunk are computed again for the backward pass, so [b t v] never exists.

    Args:
      base, model: hidden states to log-probabilities [b n v].
      base_hidden, hidden: what each of them reads.
      weights: of the tokens.
    """
    chunks = _chunks(jax.eval_shape(model, hidden).shape[-1] * weights.size, hidden.shape[1])

    @jax.checkpoint
    def one(total: Array, chunk: Any) -> tuple[Array, None]:
        then, now, shares = chunk
        expected = base(then)
        more = model(now) - expected
        # Its terms of first order sum to zero and are left out: they would hide a small divergence by rounding.
        each = jnp.sum(jnp.exp(expected) * (jnp.expm1(more) - more), axis=-1)
        return total + jnp.sum(each * shares), None

    total, _ = jax.lax.scan(one, jnp.float32(0), _split(chunks, base_hidden, hidden, weights))
    return total


def token_unlikelihood(
    model: Callable[[Array], Array],
    hidden: Float[Array, "b t m"],
    read: Int[Array, "b t"],
    segments: Int[Array, "b t"],
    labels: Int[Array, "b t"],
    weights: Float[Array, "b t"],
) -> Float[Array, ""]:
    """Weighted sum over tokens of -log(1 - p(c)), summed over the different tokens c that were read up to there in the
    same segment and are not the label, in nats (Welleck et al. 2020, equations 3 and 4), chunk by chunk as above.

    Args:
      model: hidden states to log-probabilities [b n v].
      hidden: what it reads.
      read, segments: the tokens that the model reads, and of which text each is.
      labels, weights: of the tokens.
    """
    rows, length = weights.shape
    chunks = _chunks(max(jax.eval_shape(model, hidden).shape[-1], length) * weights.size, length)
    place = jnp.broadcast_to(jnp.arange(length), (rows, length))
    first = _first_of_kind(read, segments)

    @jax.checkpoint
    def one(total: Array, chunk: Any) -> tuple[Array, None]:
        states, wanted, shares, here, segment = chunk
        asked = jnp.broadcast_to(read[:, None], (*here.shape, length))
        unlikely = log_not(jnp.take_along_axis(model(states), asked, axis=-1))
        before = (place[:, None] <= here[..., None]) & (segments[:, None] == segment[..., None])
        candidate = first[:, None] & before & (asked != wanted[..., None])
        return total - jnp.sum(shares * jnp.sum(jnp.where(candidate, unlikely, 0), axis=-1)), None

    total, _ = jax.lax.scan(
        one, jnp.float32(0), _split(chunks, hidden, labels, weights.astype(jnp.float32), place, segments)
    )
    return total


def label_log_probabilities(
    model: Callable[[Array], Array], hidden: Float[Array, "b t m"], labels: Int[Array, "b t"]
) -> Float[Array, "b t"]:
    """Of each label, chunk by chunk as above; `model`: hidden states to log-probabilities [b n v]."""
    chunks = _chunks(jax.eval_shape(model, hidden).shape[-1] * labels.size, labels.shape[1])

    @jax.checkpoint
    def one(_: None, chunk: tuple[Array, Array]) -> tuple[None, Array]:
        states, wanted = chunk
        return None, jnp.take_along_axis(model(states), wanted[..., None], axis=-1)[..., 0]

    _, found = jax.lax.scan(one, None, _split(chunks, hidden, labels))
    return _join(found, labels.shape[1])


def log_not(log_p: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log(1 - p), where p is at most `CERTAIN`."""
    return jnp.log1p(-jnp.minimum(jnp.exp(log_p), CERTAIN))


def _first_of_kind(ids: Int[Array, "b t"], segments: Int[Array, "b t"]) -> Bool[Array, "b t"]:
    """Where a token comes for the first time in its segment."""

    def row(ids: Array, segments: Array) -> Array:
        order = jnp.lexsort((ids, segments))  # stable: equal ones stay in order
        kinds = jnp.stack([ids, segments])[:, order]
        new = jnp.any(kinds[:, 1:] != kinds[:, :-1], axis=0)
        return jnp.zeros(len(ids), bool).at[order].set(jnp.concatenate([jnp.ones(1, bool), new]))

    return jax.vmap(row)(ids, segments)


def _chunks(size: int, length: int) -> int:
    """Into how many parts a line is cut so that so many numbers are held a part at a time."""
    budget = LOGITS.get(platform(), LOGITS_ELSEWHERE) * _devices()
    return min(-(-size // budget), length)


def _devices() -> int:
    """How many devices share the tokens of a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in ("data", "fsdp", "sequence"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(
    logits: Callable[[Any, Array], Array],
    chunks: int,
    head: Any,
    hidden: Array,
    labels: Array,
    weights: Array,
    z_loss: Array,
) -> Array:
    def one(total: Array, chunk: Any) -> tuple[Array, None]:
        return total + _loss(logits, head, *chunk, z_loss)[0], None

    total, _ = jax.lax.scan(one, jnp.float32(0), _split(chunks, hidden, labels, weights))
    return total


def _loss(
    logits: Callable[[Any, Array], Array],
    head: Any,
    hidden: Array,
    labels: Array,
    weights: Array,
    z_loss: Array,
) -> tuple[Array, tuple[Array, Array]]:
    """Summed loss of a chunk, and of each token its loss and log(Z)^2."""
    scores = logits(head, hidden).astype(jnp.float32)
    log_z = jax.nn.logsumexp(scores, axis=-1)
    right = jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
    each, square = log_z - right, log_z**2
    return jnp.sum((each + z_loss * square) * weights), (each, square)


def _save(
    logits: Callable[[Any, Array], Array],
    chunks: int,
    head: Any,
    hidden: Array,
    labels: Array,
    weights: Array,
    z: Array,
) -> tuple[Array, Any]:
    def one(state: Any, chunk: Any) -> tuple[Any, Any]:
        total, d_head = state
        states, targets, shares = chunk
        value, pull, (each, square) = jax.vjp(
            lambda head, states: _loss(logits, head, states, targets, shares, z), head, states, has_aux=True
        )
        d_own, d_states = pull(jnp.float32(1))
        d_head = jax.tree.map(jnp.add, d_head, d_own)
        return (total + value, d_head), (d_states, each + z * square, jnp.sum(square * shares))

    zeros = jax.tree.map(jnp.zeros_like, head)
    (total, d_head), (d_hidden, d_weights, d_z) = jax.lax.scan(
        one, (jnp.float32(0), zeros), _split(chunks, hidden, labels, weights)
    )
    length = hidden.shape[1]
    return total, (d_head, _join(d_hidden, length), _join(d_weights, length), jnp.sum(d_z))


def _scaled(_: Any, __: int, saved: Any, cotangent: Array) -> tuple[Any, ...]:
    """The loss is linear in its cotangent, so the gradients of the forward pass only have to be scaled."""
    scaled = lambda tree: jax.tree.map(lambda leaf: (leaf * cotangent).astype(leaf.dtype), tree)  # noqa: E731
    d_head, d_hidden, d_weights, d_z = saved
    return scaled(d_head), scaled(d_hidden), None, scaled(d_weights), scaled(d_z)


_chunked.defvjp(_save, _scaled)


def _split(chunks: int, *lines: Array) -> tuple[Array, ...]:
    """Lines [b t ...] as [chunks b t / chunks ...]: every chunk has tokens of every row and of every part of a row, so
    that rows and parts that live on different devices stay where they are.
    """

    def split(line: Array) -> Array:
        rows, length, *rest = line.shape
        size = -(-length // chunks)
        padded = jnp.pad(line, [(0, 0), (0, size * chunks - length)] + [(0, 0)] * len(rest))
        return jnp.moveaxis(padded.reshape(rows, size, chunks, *rest), 2, 0)

    return tuple(split(line) for line in lines)


def _join(chunked: Array, length: int) -> Array:
    """The inverse of `_split`."""
    line = jnp.moveaxis(chunked, 0, 2)
    return line.reshape(line.shape[0], -1, *line.shape[3:])[:, :length]

"""`attend`: the one door to masked attention. Every family, mask and position scheme goes through it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt

from research.attention import blockwise, cudnn, dense, sharded, splash
from research.attention.masks import Mask, Slots
from research.attention.platforms import platform

Backend = Callable[..., tuple[Array, Any]]

BACKENDS: dict[str, Backend] = {
    "dense": dense.attend,
    "blockwise": blockwise.attend,
    "splash": splash.attend,
    "cudnn": cudnn.attend,
}
REFUSALS: dict[str, Callable[..., str | None]] = {"splash": splash.refuses, "cudnn": cudnn.refuses}
AUTO = {
    "tpu": ("splash", "blockwise"),
    "gpu": ("cudnn", "blockwise"),
}  # elsewhere blockwise; dense for one query


def choose(backend: str | Backend, **facts: Any) -> Backend:
    """The backend of that name; of "auto" the first one here that can honour the call, and for a single query, which
    has no matrix of scores, the plain products. A callable stands for itself.

    Args:
      facts: the call, as the backends' `refuses` takes it.

    Raises:
      ValueError: no backend has that name, or the named one cannot honour the call.
    """
    if not isinstance(backend, str):
        return backend
    if backend == "auto" and facts["q"].shape[-3] == 1:
        return dense.attend
    reason = None
    for name in _names(backend):
        reason = REFUSALS[name](**facts) if name in REFUSALS else None
        if reason is None:
            return BACKENDS[name]
    raise ValueError(reason)


def resolved_name(backend: str) -> str:
    """The name a row of results records: what "auto" tries on this machine, in order."""
    return ", ".join(_names(backend))


def _names(backend: str) -> tuple[str, ...]:
    if backend == "auto":
        here = platform()
        if here == "tpu" and jax.device_count() > 1 and jax.sharding.get_abstract_mesh().empty:
            return ("blockwise",)  # without a mesh no `shard_map` does for splash what XLA cannot
        return AUTO.get(here, ("blockwise",))
    if backend not in BACKENDS:
        raise ValueError(
            f"attention backend {backend!r}: expected one of {['auto', *BACKENDS]}; set StackConfig.backend"
        )
    return (backend,)


def attend(
    q: Float[Array, "*b q h d"],
    k: Float[Array, "*b k g d"],
    v: Float[Array, "*b k g e"],
    *,
    mask: Mask,
    q_slots: Slots,
    k_slots: Slots,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Array, "h"] | None = None,
    dropout: tuple[float, UInt[Array, "*b h"]] | None = None,
    backend: str | Backend = "auto",
    return_lse: bool = False,
) -> Float[Array, "*b q h e"] | tuple[Float[Array, "*b q h e"], Float[Array, "*b h q"]]:
    """Masked attention, softmax in float32 or wider; over the devices of the ambient mesh, see `sharded`.

    Args:
      q, k, v: queries, keys and values; h % g == 0 (grouped queries), v's width may differ from k's.
      mask: which keys a query sees; `Same()` (same segment, no padding) is always added.
      q_slots, k_slots: what the mask and the bias know of the queries and of the keys.
      bias: a pytree called as `bias(q_slots, k_slots) -> [*b h q k]`, added to the scores after the soft cap; its
        leaves end in the axis of heads.
      scale: of the scores; 1 / sqrt(d) where None.
      softcap: c * tanh(score / c) (Gemma 2).
      sinks: one learned logit a head that takes part in the softmax with a value of zero.
      dropout: of the probabilities, (rate, a random word for each row and head); see `dense.kept`.
      backend: "auto", a name of BACKENDS, or a callable with `dense.attend`'s signature.
      return_lse: also return the log-sum-exp of the scores, without the sinks.

    Returns:
      [*b q h e] in q's dtype; zeros (with zero gradients) for a query that sees nothing.

    Raises:
      ValueError: shapes that do not belong together, or no such backend, or a named one that cannot do it.
    """
    heads, groups = q.shape[-2], k.shape[-2]
    if heads % groups:
        raise ValueError(
            f"attend: {heads} query heads do not divide into {groups} key-value heads; "
            "set StackConfig.heads to a multiple of StackConfig.kv_heads"
        )
    for name, length, slots in (("q", q.shape[-3], q_slots), ("k", k.shape[-3], k_slots)):
        if length != slots.length:
            raise ValueError(f"attend: {name} has {length} positions but its slots have {slots.length}")
    out, lse = sharded.attend(
        functools.partial(_run, backend, sinks is not None or return_lse),
        q,
        k,
        v,
        mask=mask,
        q_slots=q_slots,
        k_slots=k_slots,
        bias=bias,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        softcap=softcap,
        dropout=dropout,
    )
    if sinks is not None:  # a sink only adds exp(sink) to the denominator
        share = jax.nn.sigmoid(lse - sinks[:, None])
        out = out * share.swapaxes(-1, -2)[..., None]
    out = out.astype(q.dtype)
    return (out, lse) if return_lse else out


def _run(
    backend: str | Backend, needs_lse: bool, q: Array, k: Array, v: Array, *, scale: float, **call: Any
) -> tuple[Array, Any]:
    run = choose(backend, q=q, k=k, v=v, needs_lse=needs_lse, **call)
    return run(q, k, v, scale=scale, **call)


def received(
    q: Float[Array, "*b q h d"],
    k: Float[Array, "*b k g d"],
    *,
    q_slots: Slots,
    bias: Any = None,
    sinks: Float[Array, "h"] | None = None,
    **line: Any,
) -> Float[Array, "*b k"]:
    """The attention each key receives, averaged over heads and real queries; no gradient flows through it.

    It is the gradient of the summed output in values of one number, so no [q k] matrix is stored; `line`: the
    rest of `attend`'s arguments.
    """
    q, k, bias, sinks = jax.lax.stop_gradient((q, k, bias, sinks))

    def total(v: Array) -> Array:
        out: Any = attend(q, k, v, q_slots=q_slots, bias=bias, sinks=sinks, **line)
        return jnp.sum(out)

    mass = jax.grad(total)(jnp.ones((*k.shape[:-1], 1), k.dtype))[..., 0].sum(-1)
    queries = jnp.maximum((jnp.asarray(q_slots.segment) != 0).sum(-1, keepdims=True), 1)
    return mass.astype(jnp.float32) / (q.shape[-2] * queries)

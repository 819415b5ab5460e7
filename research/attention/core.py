"""`attend`: the one door to masked attention. Every family, mask and position scheme goes through it."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from research.attention import blockwise, dense
from research.attention.masks import Mask, Slots

Backend = Callable[..., tuple[Array, Array]]

BACKENDS: dict[str, Backend] = {"dense": dense.attend, "blockwise": blockwise.attend}


def resolve(backend: str | Backend) -> Backend:
    """The backend of that name; "auto" is the best one here. A callable stands for itself.

    Raises:
      ValueError: no backend has that name.
    """
    if not isinstance(backend, str):
        return backend
    name = resolved_name(backend)
    if name not in BACKENDS:
        raise ValueError(
            f"attention backend {backend!r}: expected one of {['auto', *BACKENDS]}; set StackConfig.backend"
        )
    return BACKENDS[name]


def resolved_name(backend: str) -> str:
    """The name a row of results records: what "auto" means on this machine."""
    return "blockwise" if backend == "auto" else backend


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
    dropout: tuple[float, Array] | None = None,
    backend: str | Backend = "auto",
    return_lse: bool = False,
) -> Float[Array, "*b q h e"] | tuple[Float[Array, "*b q h e"], Float[Array, "*b h q"]]:
    """Masked attention, softmax in float32 or wider.

    Args:
      q, k, v: queries, keys and values; h % g == 0 (grouped queries), v's width may differ from k's.
      mask: which keys a query sees; `Same()` (same segment, no padding) is always added.
      q_slots, k_slots: what the mask and the bias know of the queries and of the keys.
      bias: a pytree called as `bias(q_slots, k_slots) -> [*b h q k]`, added to the scores after the soft cap.
      scale: of the scores; 1 / sqrt(d) where None.
      softcap: c * tanh(score / c) (Gemma 2).
      sinks: one learned logit a head that takes part in the softmax with a value of zero.
      dropout: (rate, key) on the probabilities; see `dense.kept`.
      backend: "auto", a name of BACKENDS, or a callable with `dense.attend`'s signature.
      return_lse: also return the log-sum-exp of the scores, without the sinks.

    Returns:
      [*b q h e] in q's dtype; zeros (with zero gradients) for a query that sees nothing.

    Raises:
      ValueError: shapes that do not belong together, or an unknown backend.
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
    out, lse = resolve(backend)(
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

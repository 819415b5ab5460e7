"""The blockwise backend: exact attention in O(q + k) memory, forward and backward, that skips what nobody sees.

Queries and keys are cut into blocks. A *schedule* says which key blocks each query block visits (the mask's own
rule, read on blocks, leaves out the rest); a *tile* is one visit: scores, online softmax (Milakov and Gimelshein
2018) and a product with the values. The backward pass visits the same tiles and computes the probabilities again
from the saved log-sum-exp (Dao et al. 2022, algorithm 4), so nothing of size q x k is ever stored.

Scores are key-major, [b g k r q] with the r = h / g query heads of a group beside the queries: grouped keys are
never repeated, and no product but one needs a transposed left side, which is the slow case of XLA:CPU.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from research.attention.dense import FLOOR, kept
from research.attention.intervals import numpy_of
from research.attention.masks import Mask, Same, Slots, blocks, key_major, places, visibility
from research.attention.platforms import platform


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a platform likes its tiles.

    Attributes:
      shapes: (queries, keys) of a tile to choose from; keys are a multiple of queries.
      overhead: what starting a tile costs, in (query, key) pairs.
      unrolled: the longest line of keys for which static chunks beat the loop of the dynamic schedule.
    """

    shapes: tuple[tuple[int, int], ...]
    overhead: int
    unrolled: int = 0


# CPU: measured by benchmarks/attention.py. Accelerators: tiles that fill the matrix units and fit on the chip.
TILINGS = {
    "cpu": Tiling(shapes=((512, 512), (256, 512), (256, 256), (128, 256)), overhead=256**2, unrolled=1024),
    "gpu": Tiling(shapes=((512, 512), (256, 512), (128, 256)), overhead=128**2),
    "tpu": Tiling(shapes=((1024, 1024), (512, 1024), (256, 512)), overhead=256**2),
}
CHUNKS = 4  # of a static schedule: more save little and compile slower


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
    schedule: Callable[..., Any] | None = None,
) -> tuple[Float[Array, "*b q h e"], Float[Array, "*b h q"]]:
    """Attention output and log-sum-exp of the scores; see `core.attend` for the arguments.

    Args:
      schedule: `dynamic` or `static` with its block sizes, e.g. `partial(dynamic, size=128)`; None: the best
        for this platform and mask.
    """
    *batch, queries, heads, width = q.shape
    keys, groups = k.shape[-3:-1]
    rows, repeats = math.prod(batch), heads // groups
    q_slots, k_slots = _flat(q_slots, batch), _flat(k_slots, batch)
    plan = (schedule or best)(mask, q_slots, k_slots)

    def heads_first(x: Array, *split: int) -> Array:
        return jnp.moveaxis(x.reshape(rows, x.shape[-3], *split, x.shape[-1]), 1, -2)

    word = None
    if dropout is not None:
        word = dropout[1].reshape(rows, groups, 1, repeats, 1)
    out, lse = _attend(
        _Rule(mask & Same(), softcap, 0.0 if dropout is None else dropout[0]),
        _pad(heads_first(q * scale, groups, repeats), -2, plan.q_length),
        _pad(heads_first(k, groups), -2, plan.k_length),
        _pad(heads_first(v, groups), -2, plan.k_length),
        bias,
        _padded(q_slots, plan.q_length),
        _padded(k_slots, plan.k_length),
        word,
        plan,
    )
    out = jnp.moveaxis(out[..., :queries, :], -2, 1)
    return out.reshape(*batch, queries, heads, -1), lse[..., :queries].reshape(*batch, heads, queries)


# Schedules: which tiles are visited, in which order.


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["starts", "count"],
    meta_fields=["q_size", "k_size", "k_length"],
)
@dataclasses.dataclass(frozen=True)
class Dynamic:
    """Query block i visits `k_size` keys from each of `starts[i, :count[i]]`, in a loop whose length is a value,
    not a shape: what the segments of this very batch hide is skipped, and compile time hardly grows with length.
    """

    starts: Any  # i32[nq turns]
    count: Any  # i32[nq]
    q_size: int
    k_size: int
    k_length: int

    @property
    def q_length(self) -> int:
        """Queries, padding to whole blocks included."""
        return self.starts.shape[0] * self.q_size

    def rows(self, row: Callable, carry: Any) -> tuple[Any, Any]:
        """`row(carry, start, visit) -> carry, out` for each query block; `visit(tile, c)` folds
        `tile(c, start, size)` over the keys it visits. The outs are stacked.
        """

        def step(carry: Any, i: Array) -> tuple[Any, Any]:
            def visit(tile: Callable, state: Any) -> Any:
                turn = lambda t, state: tile(state, self.starts[i, t], self.k_size)  # noqa: E731
                return jax.lax.fori_loop(0, self.count[i], turn, state)

            return row(carry, i * self.q_size, visit)

        return jax.lax.scan(step, carry, jnp.arange(self.starts.shape[0]))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """Query block i visits the runs of keys `runs[i]`, (start, size) each, unrolled at compile time: fewer and
    wider tiles where the mask alone decides, at the price of a program that grows with the length.
    """

    runs: tuple[tuple[tuple[int, int], ...], ...]
    q_size: int
    k_length: int

    @property
    def q_length(self) -> int:
        """Queries, padding to whole blocks included."""
        return len(self.runs) * self.q_size

    def rows(self, row: Callable, carry: Any) -> tuple[Any, Any]:
        """As `Dynamic.rows`."""
        outs = []
        for i, runs in enumerate(self.runs):

            def visit(tile: Callable, state: Any, runs: Any = runs) -> Any:
                for start, size in runs:
                    state = tile(state, start, size)
                return state

            carry, out = row(carry, i * self.q_size, visit)
            outs.append(out)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)


def dynamic(mask: Mask, q: Slots, k: Slots, *, size: int, span: int = 1) -> Dynamic:
    """The schedule that looks at the slots of the batch (the union of its rows): blocks of `size`, visited
    `span` key blocks at a time.
    """
    q_size, k_size = _even(q.length, size), _even(k.length, size)
    live = visibility(mask, blocks(q, q_size), blocks(k, k_size)).may
    xp = numpy_of(live)
    live = xp.broadcast_to(live, (*np.shape(live)[:-2], -(-q.length // q_size), -(-k.length // k_size)))
    first, visited = _spans(live.reshape(-1, *live.shape[-2:]).any(0), span)
    order = xp.argsort(~visited, axis=1, stable=True)
    starts = (first[:, None] + span * order) * k_size
    return Dynamic(
        jnp.asarray(starts, jnp.int32),
        jnp.asarray(visited.sum(1), jnp.int32),
        q_size,
        span * k_size,
        (live.shape[-1] + span - 1) * k_size,
    )


def static(mask: Mask, q: Slots, k: Slots, *, size: int) -> Static:
    """The schedule known before any value is, from places alone; all keys where the slots keep no promise."""
    q_size, k_size = _even(q.length, size), _even(k.length, size)
    runs = []
    for row in _by_place(mask, q, k, q_size, k_size):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(int), [0]))))
        runs.append(tuple((int(a) * k_size, int(b - a) * k_size) for a, b in edges.reshape(-1, 2)))
    return Static(tuple(runs), q_size, -(-k.length // k_size) * k_size)


def best(mask: Mask, q: Slots, k: Slots) -> Dynamic | Static:
    """The schedule with the least work on this platform, counting what it costs to start a tile."""
    tiling = TILINGS.get(platform(), TILINGS["gpu"])
    if k.length <= tiling.unrolled:
        return static(mask, q, k, size=max(64, -(-k.length // CHUNKS)))

    def work(shape: tuple[int, int]) -> int:
        size, wide = shape
        q_size, k_size = _even(q.length, size), _even(k.length, size)
        _, visited = _spans(_by_place(mask, q, k, q_size, k_size), wide // size)
        return int(visited.sum()) * (tiling.overhead + q_size * k_size * (wide // size))

    size, wide = min(tiling.shapes, key=work)
    return dynamic(mask, q, k, size=size, span=wide // size)


def _spans(live: Any, span: int) -> tuple[Any, Any]:
    """The first live key block of each row of [nq nk], and which spans of blocks counted from it hold any."""
    xp = numpy_of(live)
    first = live.argmax(1)
    index = first[:, None] + np.arange(-(-live.shape[1] // span) * span)
    beyond = index >= live.shape[1]
    shifted = xp.take_along_axis(live, xp.where(beyond, 0, index), axis=1) & ~beyond
    return first, shifted.reshape(live.shape[0], -1, span).any(-1)


def _by_place(mask: Mask, q: Slots, k: Slots, q_size: int, k_size: int) -> np.ndarray:
    """bool[nq nk]: blocks that may be visible by their places."""
    shape = -(-q.length // q_size), -(-k.length // k_size)
    if q.start is None or k.start is None:
        return np.ones(shape, bool)
    live = visibility(mask, places(q.length, q_size, q.start), places(k.length, k_size, k.start)).may
    return np.broadcast_to(live, shape)


def _even(length: int, size: int) -> int:
    """The block size at most `size` that cuts the length into equal blocks with the least padding."""
    even = -(-length // -(-length // size))
    return even if even <= 8 else -(-even // 8) * 8


# Tiles.


@dataclasses.dataclass(frozen=True)
class _Rule:
    """What every tile applies to its scores."""

    mask: Mask
    softcap: float | None
    rate: float


def _logits(rule: _Rule, raw: Array, bias: Any, q_slots: Slots, k_slots: Slots) -> Array:
    """Scores after soft cap, bias and mask, from raw products [b g k r q]."""
    b, groups, keys, repeats, queries = raw.shape
    scores = raw if rule.softcap is None else rule.softcap * jnp.tanh(raw / rule.softcap)
    if bias is not None:
        tile = jnp.moveaxis(bias(q_slots, k_slots).astype(raw.dtype), -1, -3)  # [*b k h q]
        tile = tile.reshape(-1, keys, groups, repeats, queries)
        scores = scores + jnp.moveaxis(tile, 2, 1)
    visible = key_major(rule.mask, q_slots, k_slots)
    return jnp.where(visible[:, None, :, None, :], scores, -jnp.inf)


def _survivors(rule: _Rule, word: Array, q_start: Any, k_start: Any, raw: Array) -> Array:
    """Dropout's factor of each probability [b g k r q]: 0 or 1 / (1 - rate)."""
    keys, _, queries = raw.shape[-3:]
    at_q, at_k = q_start + jnp.arange(queries), k_start + jnp.arange(keys)[:, None, None]
    return kept(word, at_q, at_k, rule.rate) / jnp.asarray(1 - rule.rate, raw.dtype)


@functools.partial(jax.jit, static_argnums=0)
def _forward(
    rule: _Rule,
    q: Any,
    k: Any,
    v: Any,
    bias: Any,
    q_slots: Slots,
    k_slots: Slots,
    word: Any,
    schedule: Any,
) -> tuple[Array, Array]:
    """(out [b g r q e], lse [b g r q]) of padded, head-major q [b g r q d], k [b g k d], v [b g k e]."""
    b, groups, repeats, _, _ = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)
    size = schedule.q_size

    def row(_: None, start: Any, visit: Callable) -> tuple[None, tuple[Array, Array]]:
        own, own_slots = _cut(q, -2, start, size), _cut_slots(q_slots, start, size)

        def tile(state: tuple[Array, Array, Array], at: Any, length: int) -> tuple[Array, Array, Array]:
            top, total, acc = state
            raw = _product("bgkd,bgrqd->bgkrq", _cut(k, -2, at, length), own, wide)
            scores = _logits(rule, raw, bias, own_slots, _cut_slots(k_slots, at, length))
            higher = jnp.maximum(top, scores.max(2))
            shares = jnp.exp(scores - higher[:, :, None])
            shrink = jnp.exp(top - higher)
            total = total * shrink + shares.sum(2)
            if word is not None:
                shares = shares * _survivors(rule, word, start, at, raw)
            read = _product("bgke,bgkrq->bgerq", _cut(v, -2, at, length), shares.astype(v.dtype), wide)
            return higher, total, acc * shrink[:, :, None] + read

        empty = jnp.zeros((b, groups, repeats, size), wide)
        state = (empty + FLOOR, empty, jnp.zeros((b, groups, v.shape[-1], repeats, size), wide))
        top, total, acc = visit(tile, state)
        total = jnp.maximum(total, jnp.finfo(wide).tiny)
        return None, (jnp.moveaxis(acc / total[:, :, None], 2, -1), top + jnp.log(total))

    _, (out, lse) = schedule.rows(row, None)
    return _joined(out, -2), _joined(lse, -1)


def _save(rule: _Rule, *args: Any) -> tuple[tuple[Array, Array], Any]:
    out, lse = _forward(rule, *args)
    return (out, lse), (args, out, lse)


def _backward(rule: _Rule, saved: Any, cotangent: tuple[Array, Array]) -> tuple[Any, ...]:
    return (*_gradients(rule, *saved, *cotangent), None, None, None, None)


@functools.partial(jax.jit, static_argnums=0)
def _gradients(rule: _Rule, args: Any, out: Array, lse: Array, d_out: Array, d_lse: Array) -> tuple[Any, ...]:
    q, k, v, bias, q_slots, k_slots, word, schedule = args
    wide, size = out.dtype, schedule.q_size
    delta = (d_out * out).sum(-1) - d_lse
    d_out = d_out.astype(v.dtype)

    def row(state: Any, start: Any, visit: Callable) -> tuple[Any, Array]:
        own, own_slots = _cut(q, -2, start, size), _cut_slots(q_slots, start, size)
        own_out = _cut(d_out, -2, start, size)
        own_lse, own_delta = (_cut(x, -1, start, size)[:, :, None] for x in (lse, delta))

        def tile(state: Any, at: Any, length: int) -> Any:
            dq, dk, dv, d_bias = state
            keys, values = _cut(k, -2, at, length), _cut(v, -2, at, length)
            key_slots = _cut_slots(k_slots, at, length)
            raw = _product("bgkd,bgrqd->bgkrq", keys, own, wide)
            scores, pull = jax.vjp(lambda s, b: _logits(rule, s, b, own_slots, key_slots), raw, bias)
            shares = jnp.exp(scores - own_lse)
            d_shares = _product("bgke,bgrqe->bgkrq", values, own_out, wide)
            read = shares
            if word is not None:
                survivors = _survivors(rule, word, start, at, raw)
                read, d_shares = shares * survivors, d_shares * survivors
            d_raw, d_tile = pull(shares * (d_shares - own_delta))
            d_raw = d_raw.astype(k.dtype)
            dv = _add(dv, at, length, _product("bgkrq,bgrqe->bgke", read.astype(v.dtype), own_out, wide))
            dk = _add(dk, at, length, _product("bgkrq,bgrqd->bgkd", d_raw, own, wide))
            dq = dq + _product("bgkd,bgkrq->bgdrq", keys, d_raw, wide)
            return dq, dk, dv, jax.tree.map(_accumulate, d_bias, d_tile)

        b, groups, repeats, _, width = q.shape
        dq = jnp.zeros((b, groups, width, repeats, size), wide)
        dq, *state = visit(tile, (dq, *state))
        return tuple(state), jnp.moveaxis(dq, 2, -1)

    state = (jnp.zeros(k.shape, wide), jnp.zeros(v.shape, wide), jax.tree.map(jnp.zeros_like, bias))
    (dk, dv, d_bias), dq = schedule.rows(row, state)
    return _joined(dq, -2).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), d_bias


_attend = jax.custom_vjp(_forward, nondiff_argnums=(0,))
_attend.defvjp(_save, _backward)


# Cutting and joining.


def _product(spec: str, x: Array, y: Array, wide: Any) -> Array:
    product = functools.partial(jnp.einsum, spec, preferred_element_type=wide)
    if x.dtype == wide:
        return product(x, y)
    # XLA:CPU has no narrow product with a wide sum for every layout; wide operands give the same numbers.
    widened = lambda x, y: product(x.astype(wide), y.astype(wide))  # noqa: E731
    return jax.lax.platform_dependent(x, y, cpu=widened, default=product)


def _cut(x: Array, axis: int, start: Any, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, x.ndim + axis)


def _cut_slots(slots: Slots, start: Any, size: int) -> Slots:
    coords = None if slots.coords is None else _cut(slots.coords, -2, start, size)
    position, segment, prefix = (
        _cut(x, -1, start, size) for x in (slots.position, slots.segment, slots.prefix)
    )
    return Slots(position, segment, prefix, coords)


def _add(x: Array, start: Any, size: int, part: Array) -> Array:
    axis = x.ndim - 2
    return jax.lax.dynamic_update_slice_in_dim(x, _cut(x, -2, start, size) + part, start, axis)


def _accumulate(total: Array, part: Array) -> Array:
    return total if part.dtype == jax.dtypes.float0 else total + part


def _joined(blocked: Array, axis: int) -> Array:
    """[nq ... size ...] to [... nq * size ...], the size at `axis`."""
    line = jnp.moveaxis(blocked, 0, axis - 1)
    place = line.ndim + axis
    return line.reshape(*line.shape[: place - 1], -1, *line.shape[place + 1 :])


def _pad(x: Array, axis: int, length: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, length - x.shape[axis])
    return x if length == x.shape[axis] else jnp.pad(x, widths)


def _padded(slots: Slots, length: int) -> Slots:
    """The slots with padding (segment 0) at the end, as arrays."""
    coords = None if slots.coords is None else _pad(jnp.asarray(slots.coords), -2, length)
    position, segment, prefix = (
        _pad(jnp.asarray(x), -1, length) for x in (slots.position, slots.segment, slots.prefix)
    )
    return Slots(position, segment, prefix, coords)


def _flat(slots: Slots, batch: list[int]) -> Slots:
    """Slots with one batch axis, of size 1 where all rows are the same line."""

    def flat(x: Any, inner: int) -> Any:
        outer = x.shape[: x.ndim - inner]
        if math.prod(outer) == 1:
            return x.reshape(1, *x.shape[x.ndim - inner :])
        x = numpy_of(x).broadcast_to(x, (*batch, *x.shape[x.ndim - inner :]))
        return x.reshape(-1, *x.shape[x.ndim - inner :])

    return Slots(
        flat(slots.position, 1),
        flat(slots.segment, 1),
        flat(slots.prefix, 1),
        None if slots.coords is None else flat(slots.coords, 2),
        slots.start,
    )

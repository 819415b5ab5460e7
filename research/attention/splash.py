"""The splash backend: JAX's Pallas flash attention for TPUs, told by our own masks which blocks to visit.

The kernel wants to know its mask before any value is, so this backend takes what `Slots.start` promises: inside a
segment the places of two slots decide, and the segments, which are values, are compared inside the kernel. A mask
that reads more than differences of positions (prefixes, chunks, sinks) needs rows that are one known segment.
Blocks hidden by the mask are skipped; blocks hidden by the segments alone are computed and masked.

The forward pass and its block lists come from `make_splash_mha`. Its own gradient knows no log-sum-exp, so the
backward pass calls the two gradient kernels with `delta = out . d_out - d_lse`, as blockwise does (Dao et al. 2022,
algorithm 4); they are private, and tests/attention/test_splash.py says when a new JAX changes them.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jaxtyping import Array, Bool, Float, Int, UInt

from research.attention.dense import FLOOR
from research.attention.intervals import FAR, UNKNOWN, Interval, as_truth
from research.attention.masks import Mask, Slots, View
from research.attention.platforms import platform

LANES = 128  # every block is a multiple of a TPU's vector lanes
BLOCK = 512  # the longest block of queries and of keys
DTYPES = ("float32", "bfloat16")


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
    interpret: bool | None = None,
) -> tuple[Float[Array, "*b q h e"], Float[Array, "*b h q"]]:
    """Attention output and log-sum-exp of the scores; see `core.attend` for the arguments.

    Args:
      interpret: run the kernel as plain JAX, for tests; None: wherever there is no TPU.

    Raises:
      ValueError: what `refuses` says.
    """
    reason = refuses(
        mask=mask,
        q=q,
        k=k,
        v=v,
        q_slots=q_slots,
        k_slots=k_slots,
        bias=bias,
        softcap=softcap,
        dropout=dropout,
    )
    line = _line(mask, q_slots, k_slots)
    if reason is not None or isinstance(line, str):
        raise ValueError(reason)
    *batch, queries, heads, _ = q.shape
    rows, wide = math.prod(batch), jnp.promote_types(q.dtype, jnp.float32)
    kernel = _Kernel(line, softcap, platform() != "tpu" if interpret is None else interpret)

    def heads_first(x: Array, length: int) -> Array:
        x = jnp.moveaxis(x.reshape(rows, *x.shape[-3:]), 1, 2)
        return jnp.pad(x, [(0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)])

    def segments(slots: Slots, length: int) -> Array:
        flat = jnp.broadcast_to(slots.segment, (*batch, slots.length)).reshape(rows, -1)
        return jnp.pad(flat, [(0, 0), (0, length - slots.length)])

    k_segment = segments(k_slots, line.keys)
    out, lse = _attend(
        kernel,
        heads_first(q * scale, line.queries),
        heads_first(k, line.keys),
        heads_first(v, line.keys),
        segments(q_slots, line.queries),
        jnp.where(k_segment == 0, -1, k_segment),  # the kernel shows equal segments; padding equals none
    )
    out = jnp.moveaxis(out[:, :, :queries], 2, 1).astype(wide)
    return out.reshape(*batch, queries, heads, -1), lse[..., :queries].reshape(*batch, heads, queries)


def refuses(
    *,
    mask: Mask,
    q: Array,
    k: Array,
    v: Array,
    q_slots: Slots,
    k_slots: Slots,
    bias: Any = None,
    softcap: float | None = None,
    dropout: tuple[float, UInt[Array, "*b h"]] | None = None,
    needs_lse: bool = False,
) -> str | None:
    """Why this backend cannot honour a call, in one line; None where it can."""
    del softcap, needs_lse  # both are honoured, gradients included
    line = _line(mask, q_slots, k_slots)
    dtypes = {x.dtype.name for x in (q, k, v)}
    if bias is not None:
        found = f"a bias {type(bias).__name__}, expected None"
    elif dropout is not None:
        found = f"dropout = {dropout[0]}, expected None"
    elif len(dtypes) > 1 or not dtypes <= set(DTYPES):
        found = f"{' and '.join(sorted(dtypes))}, expected one of {' or '.join(DTYPES)}"
    elif isinstance(line, str):
        found = line
    else:
        return None
    return f"attention backend 'splash': {found}; set StackConfig.backend to 'auto' or 'blockwise'"


# The mask as the kernel reads it.


@dataclasses.dataclass(frozen=True)
class _Line(splash_attention.Mask):
    """The mask inside one segment, by places: our rule on NumPy slots, a block at a time, as the kernel asks.

    Attributes:
      queries, keys: lengths, padding to whole blocks included.
      q_start, k_start: places of the first query and of the first key.
      origin: the position at place 0; any number where the mask reads nothing but differences.
      prefix: slots at places below it are prefix tokens.
    """

    mask: Mask
    queries: int
    keys: int
    q_start: int
    k_start: int
    origin: int = 0
    prefix: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.queries, self.keys

    def __getitem__(self, idx: tuple[slice, slice]) -> Bool[np.ndarray, "q k"]:
        q = self._slots(self.q_start + np.arange(self.queries)[idx[0]])
        k = self._slots(self.k_start + np.arange(self.keys)[idx[1]])
        with jax.ensure_compile_time_eval():
            return np.asarray(self.mask(q, k))

    def _slots(self, place: Int[np.ndarray, "n"]) -> Slots:
        return Slots(self.origin + place, np.ones_like(place), place < self.prefix)


def _line(mask: Mask, q: Slots, k: Slots) -> _Line | str:
    """The mask by places, or what keeps places from deciding it."""
    if q.start is None or k.start is None:
        return (
            f"start = {q.start} of the queries' and {k.start} of the keys' slots, expected contiguous slots"
        )
    line = _Line(mask, _padded(q.length), _padded(k.length), q.start, k.start)
    if not _differences_decide(mask, q.start - k.start - k.length + 1, q.start - k.start + q.length):
        known = _origin_and_prefix(line, q, k)
        if known is None:
            return f"{mask!r}, expected a mask of q - k alone, or rows of one known segment with one prefix"
        line = dataclasses.replace(line, origin=known[0], prefix=known[1])
    return line if _shows_something(line) else f"{mask!r} hides every pair, expected a mask that shows one"


def _differences_decide(mask: Mask, least: int, beyond: int) -> bool:
    """Whether the rule, read on slots of one segment of which only q - k is known, is decided for each q - k of
    [least, beyond).
    """

    def view(place: Any) -> View:
        anywhere = Interval(np.int64(-FAR), np.int64(FAR), (place, place))
        return View(anywhere, Interval(np.int64(1), np.int64(1)), UNKNOWN, as_truth(True))

    truth = as_truth(mask.rule(view(np.arange(least, beyond)), view(np.int64(0))))
    return bool(np.all(truth.may == truth.must))


def _origin_and_prefix(line: _Line, q: Slots, k: Slots) -> tuple[int, int] | None:
    """(position at place 0, length of the prefix in places) where every row is the same known segment."""
    leaves = (q.position, q.segment, q.prefix, k.position, k.segment, k.prefix)
    if not all(isinstance(leaf, np.ndarray) for leaf in leaves):
        return None
    origins, prefixes, rests = set(), [0], []
    for slots, start in ((q, line.q_start), (k, line.k_start)):
        position, segment, prefix = np.broadcast_arrays(slots.position, slots.segment, slots.prefix)
        real = segment != 0
        place = np.broadcast_to(start + np.arange(slots.length), position.shape)
        if np.any(real & (segment != segment.max(-1, keepdims=True))):
            return None
        origins |= set(np.unique((position - place)[real]).tolist())
        prefixes += (place + 1)[real & prefix].tolist()
        rests += place[real & ~prefix].tolist()
    if len(origins) != 1 or max(prefixes) > min(rests, default=FAR):
        return None
    return origins.pop(), max(prefixes)


@functools.lru_cache(maxsize=64)
def _shows_something(line: _Line) -> bool:
    """Whether the kernel has a block to visit: with none it fails."""
    return any(line[i : i + BLOCK, :].any() for i in range(0, line.queries, BLOCK))


def _size(length: int) -> int:
    """The block size that cuts the length into equal blocks with the least padding."""
    return -(-length // -(-length // BLOCK) // LANES) * LANES


def _padded(length: int) -> int:
    size = _size(length)
    return -(-length // size) * size


# The kernel.


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """What a call to the kernels knows before any value is."""

    line: _Line
    softcap: float | None
    interpret: bool


@functools.lru_cache(maxsize=64)
def _forward_kernel(kernel: _Kernel) -> splash_attention_kernel.SplashAttentionKernel:
    """The kernel with its lists of blocks to visit, forward and backward, as NumPy arrays: no tracer is cached."""
    q_size, k_size = _size(kernel.line.queries), _size(kernel.line.keys)
    sizes = splash_attention.BlockSizes(
        block_q=q_size,
        block_kv=k_size,
        block_q_dkv=q_size,
        block_kv_dkv=k_size,
        block_q_dq=q_size,
        block_kv_dq=k_size,
    )

    def make() -> splash_attention_kernel.SplashAttentionKernel:
        made = splash_attention.make_splash_mha_single_device(
            splash_attention.MultiHeadMask((kernel.line,)),  # one list for all heads
            block_sizes=sizes,
            save_residuals=True,
            attn_logits_soft_cap=kernel.softcap,
            interpret=kernel.interpret,
        )
        return jax.tree.map(np.asarray, made)

    # It computes, so it must know neither the trace nor the mesh around us: a new thread does not.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    kernel: _Kernel,
    q: Float[Array, "n h q d"],
    k: Float[Array, "n g k d"],
    v: Float[Array, "n g k e"],
    q_segment: Int[Array, "n q"],
    k_segment: Int[Array, "n k"],
) -> tuple[Float[Array, "n h q e"], Float[Array, "n h q"]]:
    def row(q: Array, k: Array, v: Array, *segments: Array) -> Any:
        return _forward_kernel(kernel)(q, k, v, splash_attention.SegmentIds(*segments))

    with _precision(q.dtype):
        out, (lse,) = jax.vmap(row)(q, k, v, q_segment, k_segment)
    seen = lse > FLOOR  # of a row with nothing to see the kernel makes a mean of something, or 0 / 0
    return jnp.where(seen[..., None], out, 0), jnp.where(seen, lse, FLOOR)


def _save(kernel: _Kernel, *args: Array) -> tuple[Any, Any]:
    out, lse = _attend(kernel, *args)
    return (out, lse), (args, out, lse)


def _backward(kernel: _Kernel, saved: Any, cotangent: tuple[Array, Array]) -> tuple[Any, ...]:
    args, out, lse = saved
    d_out, d_lse = cotangent
    delta = (out.astype(lse.dtype) * d_out.astype(lse.dtype)).sum(-1) - d_lse
    forward: Any = _forward_kernel(kernel)
    sizes = forward.kwargs["block_sizes"]
    options: dict[str, Any] = {
        "is_mqa": False,
        "mask_value": forward.kwargs["mask_value"],
        "attn_logits_soft_cap": kernel.softcap,
        "q_layout": sizes.q_layout,
        "k_layout": sizes.k_layout,
        "v_layout": sizes.v_layout,
        "mask_function": None,
        "interpret": kernel.interpret,
    }

    def row(q: Array, k: Array, v: Array, q_segment: Array, k_segment: Array, *rest: Array) -> Any:
        both = (q, k, v, splash_attention.SegmentIds(q_segment, k_segment), None, *rest)
        dq = splash_attention_kernel._splash_attention_bwd_dq(
            *both, bq=sizes.block_q_dq, bkv=sizes.block_kv_dq, mask_info=forward.dq_mask_info, **options
        )
        _, dk, dv = splash_attention_kernel._splash_attention_bwd_dkv(
            *both,
            bq=sizes.block_q_dkv,
            bkv=sizes.block_kv_dkv,
            bkv_compute=sizes.block_kv_dkv_compute,
            mask_info=forward.dkv_mask_info,
            use_fused_bwd_kernel=False,
            **options,
        )
        return dq, dk, dv

    with _precision(args[0].dtype):
        return (*jax.vmap(row)(*args, lse, d_out, delta), None, None)


def _precision(dtype: Any) -> contextlib.AbstractContextManager:
    """Products of bfloat16 are exact in float32 already, and Mosaic refuses to be asked for more."""
    narrow = dtype == jnp.bfloat16
    return jax.default_matmul_precision("default") if narrow else contextlib.nullcontext()


_attend.defvjp(_save, _backward)

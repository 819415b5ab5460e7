"""The cuDNN backend: fused attention on NVIDIA GPUs, in half precision, through `jax.nn.dot_product_attention`.

Where every row is one known segment from the same position, `Full`, `Causal` and `Window` are the kernel's own and
skip what they hide. Any other mask is handed over pair by pair, in q's dtype: 2 q k bytes a row of the batch, and
nothing is skipped.

The log-sum-exp is not offered: jax.nn rounds it to half precision and drops its gradient without a word.
"""

import math
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from research.attention.masks import Causal, Full, Mask, Same, Slots, Window

DTYPES = ("bfloat16", "float16")
WIDEST = 128  # features a head: what every cuDNN GPU can do
# XLA writes what these ask for into the first of several equal backward passes only and then cannot find the others:
# "IndexError: raw_hash_map<>::at" (openxla/xla pull request 46500).
DETERMINISTIC = r"--xla_gpu_(?:deterministic_ops|exclude_nondeterministic_ops)(?:=(?:true|1))?(?:\s|$)"


def attend(
    q: Float[Array, "*b q h d"],
    k: Float[Array, "*b k g d"],
    v: Float[Array, "*b k g d"],
    *,
    mask: Mask,
    q_slots: Slots,
    k_slots: Slots,
    bias: Any = None,
    scale: float,
    softcap: float | None = None,
    dropout: tuple[float, UInt[Array, "*b h"]] | None = None,
) -> tuple[Float[Array, "*b q h d"], None]:
    """Attention output, and None for the log-sum-exp; see `core.attend` for the arguments.

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
    if reason is not None:
        raise ValueError(reason)
    *batch, queries, heads, width = q.shape
    own = _own_mask(mask, q_slots, k_slots)
    is_causal, window = own or (False, None)
    visible = None
    if own is None:
        visible = jnp.asarray((mask & Same())(q_slots, k_slots))
        visible = jnp.broadcast_to(visible, (*batch, *visible.shape[-2:])).reshape(-1, 1, *visible.shape[-2:])
    q, k, v = (x.reshape(math.prod(batch), *x.shape[-3:]) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=visible,
        scale=scale,
        is_causal=is_causal,
        local_window_size=window,
        implementation="cudnn",
    )
    if visible is not None:  # of a row with nothing to see the kernel makes a mean of the values
        out = jnp.where(visible.any(-1).swapaxes(1, 2)[..., None], out, 0)
    out = out.reshape(*batch, queries, heads, width)
    return out.astype(jnp.promote_types(out.dtype, jnp.float32)), None


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
    dtypes = {x.dtype.name for x in (q, k, v)}
    width, v_width, queries, keys = q.shape[-1], v.shape[-1], q.shape[-3], k.shape[-3]
    if asked := re.search(DETERMINISTIC, os.environ.get("XLA_FLAGS", "")):
        found = f"XLA_FLAGS has {asked[0].strip()} (train.deterministic sets it), expected none: XLA then loses kernels"
    elif len(dtypes) > 1 or not dtypes <= set(DTYPES):
        found = f"{' and '.join(sorted(dtypes))}, expected one of {' or '.join(DTYPES)}"
    elif bias is not None:
        found = f"a bias {type(bias).__name__}, expected None"
    elif softcap is not None:
        found = f"softcap = {softcap}, expected None"
    elif dropout is not None:
        found = f"dropout = {dropout[0]}, expected None"
    elif needs_lse:
        found = "learned sinks or return_lse, expected neither: its log-sum-exp has no gradient"
    elif v_width != width:
        found = f"values of width {v_width}, expected the keys' {width}"
    elif width % 8 or width > WIDEST:
        found = f"heads of width {width}, expected a multiple of 8 up to {WIDEST}"
    elif (queries % 2 or keys % 2) and _own_mask(mask, q_slots, k_slots) is None:
        found = (
            f"{queries} queries and {keys} keys under {mask!r}, expected even numbers for an explicit mask"
        )
    else:
        return None
    return f"attention backend 'cudnn': {found}; set StackConfig.backend to 'auto' or 'blockwise'"


def _own_mask(mask: Mask, q: Slots, k: Slots) -> tuple[bool, tuple[int, int] | None] | None:
    """(is_causal, local_window_size) of jax.nn that are this mask, or None: it must be spelled out."""
    if not _plain(q, k):
        return None
    if mask == Full():
        return False, None
    if mask == Causal():
        return True, None
    if type(mask) is Window:
        return True, (mask.w - 1, 0)
    return None


def _plain(q: Slots, k: Slots) -> bool:
    """Whether all rows, queries and keys alike, are one known segment without padding from one known position."""
    leaves = (q.position, q.segment, k.position, k.segment)
    if not all(isinstance(leaf, np.ndarray) for leaf in leaves):
        return False
    origins = {x for slots in (q, k) for x in np.unique(slots.position - np.arange(slots.length)).tolist()}
    numbers = {x for slots in (q, k) for x in np.unique(slots.segment).tolist()}
    return len(origins) == 1 and len(numbers) == 1 and 0 not in numbers

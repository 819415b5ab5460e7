"""Attention over a mesh of devices: rows over "data" and "fsdp", heads over "tensor", queries over "sequence".

Each device attends for its own rows, heads and queries, to every key of its rows, so that inside a backend runs as it
does on one device; XLA could not cut a kernel. Keys and values are gathered over "sequence" first, the simplest form of
context parallelism (Llama Team 2024, arXiv 2407.21783, section 3.3.2). Under a causal mask the device that has the last
queries has the most to do.

The mesh is the ambient one (`jax.set_mesh`). What does not divide by an axis is whole on each of its devices.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, UInt

from research.attention.dense import advanced
from research.attention.masks import Slots

ROWS, HEADS, SEQUENCE = ("data", "fsdp"), ("tensor",), ("sequence",)

Run = Callable[..., tuple[Array, Any]]


def attend(
    run: Run,
    q: Float[Array, "*b q h d"],
    k: Float[Array, "*b k g d"],
    v: Float[Array, "*b k g e"],
    *,
    q_slots: Slots,
    k_slots: Slots,
    bias: Any = None,
    dropout: tuple[float, UInt[Array, "*b h"]] | None = None,
    **rule: Any,
) -> tuple[Float[Array, "*b q h e"], Any]:
    """`run(q, k, v, ...)`, which has the signature of a backend, on each device's part; without a mesh on all of it.

    A device that has a part of the queries calls it with slots that promise no `start`.
    """
    if not axes():
        return run(q, k, v, q_slots=q_slots, k_slots=k_slots, bias=bias, dropout=dropout, **rule)
    *batch, queries, _, _ = q.shape
    keys, groups = k.shape[-3:-1]
    rows = (split(batch[0], ROWS), *(None,) * (len(batch) - 1)) if batch else ()
    heads, own = split(groups, HEADS), split(queries, SEQUENCE)
    gathered = own and split(keys, SEQUENCE)
    if own:
        q_slots, k_slots = (dataclasses.replace(slots, start=None) for slots in (q_slots, k_slots))
    rate, word = dropout or (0.0, None)

    def local(q: Array, k: Array, v: Array, q_slots: Slots, k_slots: Slots, bias: Any, word: Any) -> Any:
        if gathered:
            k, v = (jax.lax.all_gather(x, gathered, axis=x.ndim - 3, tiled=True) for x in (k, v))
        if own and word is not None:
            word = advanced(word, jax.lax.axis_index(own) * q.shape[-3])
        dropout = None if word is None else (rate, word)
        return run(q, k, v, q_slots=q_slots, k_slots=k_slots, bias=bias, dropout=dropout, **rule)

    def along(slots: Slots, tokens: Any) -> Slots:
        def spec(leaf: Any, *features: None) -> PartitionSpec:
            outer = leaf.shape[: leaf.ndim - 1 - len(features)]
            return PartitionSpec(
                *(rows if outer == tuple(batch) else (None,) * len(outer)), tokens, *features
            )

        return Slots(
            spec(slots.position),
            spec(slots.segment),
            spec(slots.prefix),
            None if slots.coords is None else spec(slots.coords, None),
            slots.start,
        )

    line = PartitionSpec(*rows, gathered, heads, None)
    biases = jax.tree.map(lambda leaf: PartitionSpec(*(None,) * (leaf.ndim - 1), heads), bias)
    return jax.shard_map(
        local,
        in_specs=(
            PartitionSpec(*rows, own, heads, None),
            line,
            line,
            along(q_slots, own),
            along(k_slots, None),
            biases,
            None if word is None else PartitionSpec(*rows, heads),
        ),
        out_specs=(PartitionSpec(*rows, own, heads, None), PartitionSpec(*rows, heads, own)),
        axis_names=_automatic(),  # all of them: a kernel wants nothing left to XLA
        check_vma=False,  # kernels and loops do not say over which axes their results vary
    )(q, k, v, q_slots, k_slots, bias, word)


def axes() -> dict[str, int]:
    """The axes of the ambient mesh that attention uses, with their sizes: of more than one device, and not yet in the
    hands of a `shard_map`.
    """
    mesh, automatic = jax.sharding.get_abstract_mesh(), _automatic()
    return {
        name: size
        for name, size in zip(mesh.axis_names, mesh.axis_sizes, strict=True)
        if name in ROWS + HEADS + SEQUENCE and name in automatic and size > 1
    }


def split(size: int, names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Those of the named axes in use, where an array dimension of that size divides by all of them; else None."""
    sizes = axes()
    used = tuple(name for name in names if name in sizes)
    return None if not used or size % math.prod(sizes[name] for name in used) else used


def placed(x: Float[Array, "..."], *dims: tuple[str, ...]) -> Float[Array, "..."]:
    """x with each dimension split over the axes named for it, where they are in use and it divides."""
    if not axes():
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*map(split, x.shape, dims)))


def _automatic() -> set[str]:
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in kinds if kind == AxisType.Auto}

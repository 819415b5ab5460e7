"""Checksums: whether what was read is what was written."""

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from research.models.paths import named


def checksums(tree: Any) -> dict[str, Array]:
    """A checksum u32[] of every array of a tree, by path: the same however an array is split over devices.

    The sum, modulo 2^32, of the array's 32-bit words, each times an odd number that depends on its index. An odd number
    has an inverse modulo 2^32, so no change within one word leaves the sum as it was: a flipped bit is always found. Of
    changes in several words one in 2^32 goes unseen. Unlike `zlib.crc32`, which reads bytes in order, each device sums
    its own part where it lies: nothing is copied to the host, or gathered from devices or processes.
    """
    # One at a time: of many at once, collectives of several XLA:CPU processes stand still for ever.
    return {name: jax.block_until_ready(_checksum(leaf)) for name, leaf in named(tree).items()}


@jax.jit  # of one leaf, not of the tree: it is compiled once for parameters, moments and averages, saved or restored
def _checksum(leaf: Any) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype.itemsize > 4:
        words = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)  # 8 bytes: two words
        leaf = jax.lax.bitcast_convert_type(leaf, words)
    index = jnp.uint32(0)
    for axis, size in enumerate(leaf.shape):
        index = index * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    # The finalizer of MurmurHash3 (Appleby): of 2 * index + 1 many swapped words would cancel.
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        index = (index ^ (index >> shift)) * jnp.uint32(factor)
    return jnp.sum(leaf.astype(jnp.uint32) * (index ^ (index >> 16) | 1), dtype=jnp.uint32)


def crc32(content: Any) -> int:
    """Of a JSON value."""
    # As it reads back: JSON has no tuples, and no keys but strings.
    return zlib.crc32(json.dumps(json.loads(json.dumps(content))).encode())

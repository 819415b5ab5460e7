"""Position schemes: how attention knows where a token is. They read `Slots.coords`, never an index.

A *scheme* is a frozen value that a config holds; `scheme.build(...)` gives what the stack calls:

    embed(x, slots)     adds to the input of the stack        learned, sinusoidal
    query(q, slots)     rotates (or widens) the queries       rotary
    key(k, slots)       the same for the keys
    bias                None, or a pytree called as bias(q_slots, k_slots) -> [*b h q k]    ALiBi, T5

One built scheme serves all layers of a stack that name it.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from research.attention.masks import Slots


class Positions:
    """The interface of a built scheme, doing nothing: what `NoPosition` is."""

    bias: Any = None

    def embed(self, x: Float[Array, "*b n m"], slots: Slots) -> Float[Array, "*b n m"]:
        """The stack's input with positions added."""
        return x

    def query(self, q: Float[Array, "*b n h d"], slots: Slots) -> Float[Array, "*b n h d"]:
        """Queries that know their place."""
        return q

    def key(self, k: Float[Array, "*b n g d"], slots: Slots) -> Float[Array, "*b n g d"]:
        """Keys that know their place."""
        return k


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """A position scheme as a config holds it."""

    @property
    def limit(self) -> int | None:
        """Number of positions it can tell apart, or None where there is no end."""
        return None

    def build(self, *, width: int, heads: int, head_dim: int, causal: bool, key: Array) -> Positions:
        """The scheme for a stack of that width and those heads; `causal`: no query sees a later key."""
        raise TypeError(f"{type(self).__name__} defines no build(); every Scheme must")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoPosition(Scheme, Positions):
    """No positions at all (NoPE): the mask is the only order there is."""

    def build(self, *, width: int, heads: int, head_dim: int, causal: bool, key: Array) -> Positions:
        return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sinusoidal(Scheme, Positions):
    """Fixed sinusoids added to the input (Vaswani et al. 2017, section 3.5)."""

    base: float = 10_000.0

    def build(self, *, width: int, heads: int, head_dim: int, causal: bool, key: Array) -> Positions:
        if width % 2:
            raise ValueError(f"StackConfig.width = {width}: Sinusoidal positions need an even width")
        return self

    def embed(self, x: Float[Array, "*b n m"], slots: Slots) -> Float[Array, "*b n m"]:
        return x + sinusoid(slots.coordinate(), x.shape[-1], self.base).astype(x.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned(Scheme):
    """A learned vector for each position up to `length`; a position past it gives NaN, never another's row."""

    length: int

    @property
    def limit(self) -> int | None:
        return self.length

    def build(self, *, width: int, heads: int, head_dim: int, causal: bool, key: Array) -> Positions:
        return LearnedTable(self.length, width, key)


class LearnedTable(nnx.Module, Positions):
    """The table of `Learned`, scaled like the token embedding it is added to."""

    def __init__(self, length: int, width: int, key: Array):
        self.table = nnx.Param(jax.random.normal(key, (length, width)) * width**-0.5)

    def embed(self, x: Float[Array, "*b n m"], slots: Slots) -> Float[Array, "*b n m"]:
        rows = jnp.take(self.table[...], slots.coordinate(), axis=0, mode="fill", fill_value=jnp.nan)
        return x + (rows * x.shape[-1] ** 0.5).astype(x.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary(Scheme, Positions):
    """Rotary positions (Su et al. 2021), rotate-half: feature i turns with feature i + d/2."""

    base: float = 10_000.0

    def build(self, *, width: int, heads: int, head_dim: int, causal: bool, key: Array) -> Positions:
        if head_dim % 2:
            raise ValueError(f"StackConfig.head_dim = {head_dim}: Rotary positions need an even one")
        return self

    def query(self, q: Float[Array, "*b n h d"], slots: Slots) -> Float[Array, "*b n h d"]:
        return rotate(q, slots.coordinate(), self.base)

    def key(self, k: Float[Array, "*b n g d"], slots: Slots) -> Float[Array, "*b n g d"]:
        return rotate(k, slots.coordinate(), self.base)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ALiBi(Scheme):
    """Scores fall linearly with distance, one fixed slope a head (Press et al. 2022)."""

    def build(self, *, width: int, heads: int, head_dim: int, causal: bool, key: Array) -> Positions:
        return Biased(LinearBias(alibi_slopes(heads)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Bias(Scheme):
    """A learned bias for each head and bucket of relative distance (Raffel et al. 2020).

    `bidirectional` spends half the buckets on later keys; None: where the stack's mask shows any.
    """

    buckets: int = 32
    distance: int = 128
    bidirectional: bool | None = None

    def build(self, *, width: int, heads: int, head_dim: int, causal: bool, key: Array) -> Positions:
        bidirectional = not causal if self.bidirectional is None else self.bidirectional
        return Biased(BucketBias(self.buckets, self.distance, bidirectional, heads, key))


class Biased(nnx.Module, Positions):
    """A scheme that is nothing but a bias."""

    def __init__(self, bias: Any):
        self.bias = bias


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LinearBias:
    """ALiBi's bias: minus the head's slope times the distance, in either direction."""

    slopes: tuple[float, ...]

    def __call__(self, q: Slots, k: Slots) -> Float[Array, "*b h q k"]:
        """The bias of every pair."""
        distance = jnp.abs(q.coordinate()[..., :, None] - k.coordinate()[..., None, :])
        slopes = jnp.asarray(self.slopes, jnp.float32)[:, None, None]
        return -slopes * distance[..., None, :, :].astype(jnp.float32)


class BucketBias(nnx.Module):
    """T5's table of biases by bucket of relative distance."""

    def __init__(self, buckets: int, distance: int, bidirectional: bool, heads: int, key: Array):
        self.distance, self.bidirectional = distance, bidirectional
        self.table = nnx.Param(jax.random.normal(key, (buckets, heads)) * heads**-0.5)

    def __call__(self, q: Slots, k: Slots) -> Float[Array, "*b h q k"]:
        """The bias of every pair; about the cost of one more attention, since it gathers for each pair."""
        ahead = k.coordinate()[..., None, :] - q.coordinate()[..., :, None]
        bucket = t5_bucket(
            jnp.asarray(ahead),
            buckets=self.table.shape[0],
            distance=self.distance,
            bidirectional=self.bidirectional,
        )
        return jnp.moveaxis(self.table[...][bucket], -1, -3)


def sinusoid(
    coordinate: Float[Array | np.ndarray, "*b n"] | Int[Array | np.ndarray, "*b n"], width: int, base: float
) -> Float[Array, "*b n {width}"]:
    """[sin, cos] of the coordinate at width / 2 frequencies from 1 down to about 1 / base, in float32."""
    angles = _angles(coordinate, width, base)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotate(
    x: Float[Array, "*b n h d"],
    coordinate: Float[Array | np.ndarray, "*b n"] | Int[Array | np.ndarray, "*b n"],
    base: float,
) -> Float[Array, "*b n h d"]:
    """x with the feature pairs (i, i + d/2) turned by coordinate * base^(-2i/d); angles in float32."""
    angles = _angles(coordinate, x.shape[-1], base)[..., None, :]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def _angles(coordinate: Any, width: int, base: float) -> Float[Array, "*b n half"]:
    frequencies = base ** (-np.arange(0, width, 2, dtype=np.float32) / width)
    return jnp.asarray(coordinate, jnp.float32)[..., None] * frequencies


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """The published slopes: a geometric series for a power of two, else the next lower power's, then every
    other one of the next higher power's (Press et al. 2022, released code).
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * power, 2)]
    return tuple(slopes + between[: heads - power])


def t5_bucket(
    ahead: Float[Array, "..."] | Int[Array, "..."], *, buckets: int, distance: int, bidirectional: bool
) -> Int[Array, "..."]:
    """Bucket of a key `ahead` positions after its query: exact near by, logarithmic up to `distance`, one
    bucket for all that is farther. Without `bidirectional` later keys share bucket 0.
    """
    if bidirectional:
        buckets //= 2
        later = buckets * (ahead > 0)
        steps = jnp.abs(ahead)
    else:
        later = jnp.zeros(ahead.shape, jnp.int32)
        steps = jnp.maximum(-ahead, 0)
    exact = buckets // 2
    octaves = jnp.log(jnp.maximum(steps, exact) / exact) / math.log(distance / exact)
    far = jnp.minimum(exact + (octaves * (buckets - exact)).astype(jnp.int32), buckets - 1)
    return later + jnp.where(steps < exact, steps.astype(jnp.int32), far)

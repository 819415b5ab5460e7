"""Position schemes: how attention knows where a token is. They read `Slots.coords`, never an index.

A *scheme* is a frozen value that a config holds; `scheme.build(...)` gives what the stack calls:

    embed(x, slots)     adds to the input of the stack        learned, sinusoidal
    query(q, slots)     rotates or widens the queries         rotary, Transformer-XL's relative
    key(k, slots)       the same for the keys
    bias                None, or a pytree called as bias(q_slots, k_slots) -> [*b h q k]    ALiBi, T5
                        whose leaves end in the axis of heads, so that devices can share them out
    reindexes           whether keys depend on later coordinates    rotary under DynamicNTK

One built scheme serves all layers of a stack that name it. Scores are scaled by the width of a head before any
widening, d^-1/2, so whoever calls `attend` gives it the scale.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from research.attention.masks import Slots
from research.attention.rotary import DynamicNTK as DynamicNTK
from research.attention.rotary import Interpolation as Interpolation
from research.attention.rotary import Llama3 as Llama3
from research.attention.rotary import Scaling, frequencies, rotate, sinusoid
from research.attention.rotary import YaRN as YaRN


class Positions:
    """The interface of a built scheme, doing nothing: what `NoPosition` is."""

    @property
    def bias(self) -> Any:
        """What `attend` adds to the scores, or None."""
        return None

    @property
    def reindexes(self) -> bool:
        """Keys depend on later coordinates: a cache must hold them unrotated, and reading token by token does not
        equal one pass over the whole line.
        """
        return False

    def embed(self, x: Float[Array, "*b n m"], slots: Slots) -> Float[Array, "*b n m"]:
        """The stack's input with positions added."""
        return x

    def with_layer(self, own: Any) -> "Positions":
        """The scheme as a layer reads it whose own part, made by `Scheme.layer`, is `own`."""
        return self

    def query(self, q: Float[Array, "*b n h d"], slots: Slots) -> Float[Array, "*b n h e"]:
        """Queries that know their place; e >= d where the scheme widens them."""
        return q

    def key(self, k: Float[Array, "*b n g d"], slots: Slots) -> Float[Array, "*b n g e"]:
        """Keys that know their place, as wide as the queries."""
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

    def layer(self, *, width: int, heads: int, head_dim: int, key: Array) -> Any:
        """What each layer has for itself, a module, or None."""
        return None


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
    """A learned vector for each position up to `length`; a position past it gives NaN, never another's row.

    Attributes:
      length: positions there are.
      scale: what a row is multiplied by; None: sqrt(m), as a row of the token table is by default.
      axes: components of the coords, each with a table of its own, all added. (0, 1) is GLM's: place in the
        corrupted text, place inside the span (Du et al. 2022).
    """

    length: int
    scale: float | None = None
    axes: tuple[int, ...] = (0,)

    def __post_init__(self):
        if not self.axes or min(self.axes) < 0:
            raise ValueError(f"Learned.axes = {self.axes}: expected at least one component of coords, from 0")

    @property
    def limit(self) -> int | None:
        return self.length

    def build(self, *, width: int, heads: int, head_dim: int, causal: bool, key: Array) -> Positions:
        return LearnedTable(self, width, key)


class LearnedTable(nnx.Module, Positions):
    """The table of `Learned`, [length m]; of several axes [axes length m]."""

    def __init__(self, spec: Learned, width: int, key: Array):
        self.axes = spec.axes
        self.scale = width**0.5 if spec.scale is None else spec.scale
        shape = (spec.length, width) if len(spec.axes) == 1 else (len(spec.axes), spec.length, width)
        self.table = nnx.Param(jax.random.normal(key, shape) * width**-0.5)

    def embed(self, x: Float[Array, "*b n m"], slots: Slots) -> Float[Array, "*b n m"]:
        components = 1 if slots.coords is None else slots.coords.shape[-1]
        if max(self.axes) >= components:
            raise ValueError(
                f"Learned.axes = {self.axes}: the slots' coords have {components} component(s); give "
                f"Slots.coords [*b n {max(self.axes) + 1}] or change Learned.axes"
            )
        table = self.table[...]
        for place, axis in enumerate(self.axes):
            rows = table if len(self.axes) == 1 else table[place]
            at = jnp.asarray(slots.coordinate(axis))
            at = jnp.where(at < 0, rows.shape[0], at)  # a negative index would count from the end
            x = x + (self.scale * jnp.take(rows, at, axis=0, mode="fill", fill_value=jnp.nan)).astype(x.dtype)
        return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary(Scheme, Positions):
    """Rotary positions (Su et al. 2021), rotate-half: feature i turns with feature i + d/2.

    Attributes:
      base: of the frequencies base^(-2i/d).
      fraction: of a head's features that turn, the leading ones; the rest passes through (GPT-NeoX).
      scaling: to reach further than the trained length, or None.
      axes: components of the coords; the features that turn are split evenly over them, in order. (0, 1) is
        GLM's two-dimensional scheme: place in the corrupted text, place inside the span (ChatGLM-6B).
    """

    base: float = 10_000.0
    fraction: float = 1.0
    scaling: Scaling | None = None
    axes: tuple[int, ...] = (0,)

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(f"Rotary.fraction = {self.fraction}: expected more than 0 and at most 1")
        if not self.axes or min(self.axes) < 0:
            raise ValueError(f"Rotary.axes = {self.axes}: expected at least one component of coords, from 0")

    @property
    def reindexes(self) -> bool:
        return self.scaling is not None and self.scaling.reindexes

    def build(self, *, width: int, heads: int, head_dim: int, causal: bool, key: Array) -> Positions:
        turning, parts = int(head_dim * self.fraction), len(self.axes)
        if not turning or turning % (2 * parts):
            axes = "" if parts == 1 else f" * {parts} Rotary.axes"
            raise ValueError(
                f"StackConfig.head_dim = {head_dim}: Rotary.fraction = {self.fraction} turns {turning} of it, "
                f"expected a multiple of 2{axes}; change one of them"
            )
        if isinstance(self.scaling, DynamicNTK) and turning // parts < 4:
            raise ValueError(
                f"StackConfig.head_dim = {head_dim}: DynamicNTK needs at least 4 turning features for each of "
                f"Rotary.axes, not {turning // parts}"
            )
        return self

    def query(self, q: Float[Array, "*b n h d"], slots: Slots) -> Float[Array, "*b n h d"]:
        return self._turn(q, slots)

    def key(self, k: Float[Array, "*b n g d"], slots: Slots) -> Float[Array, "*b n g d"]:
        return self._turn(k, slots)

    def _turn(self, x: Array, slots: Slots) -> Array:
        components = 1 if slots.coords is None else slots.coords.shape[-1]
        if max(self.axes) >= components:
            raise ValueError(
                f"Rotary.axes = {self.axes}: the slots' coords have {components} component(s); give "
                f"Slots.coords [*b n {max(self.axes) + 1}] or change Rotary.axes"
            )
        each = int(x.shape[-1] * self.fraction) // len(self.axes)
        plain = frequencies(each, self.base)
        parts = []
        for place, axis in enumerate(self.axes):
            inverse, factor = plain, 1.0
            if self.scaling is not None:
                length = _length(slots, axis) if self.reindexes else None
                inverse, factor = self.scaling(plain, base=self.base, length=length)
            part = x[..., place * each : (place + 1) * each]
            parts.append(rotate(part, slots.coordinate(axis), inverse, factor))
        return jnp.concatenate([*parts, x[..., each * len(self.axes) :]], axis=-1)


def _length(slots: Slots, axis: int) -> Array:
    """The greatest coordinate of each row's real tokens, plus one, [*b 1]."""
    return jnp.where(slots.segment != 0, slots.coordinate(axis), 0).max(-1, keepdims=True) + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relative(Scheme):
    """Transformer-XL's relative positions (Dai et al. 2019, section 3.3):

        score(i, j) = (q_i + u) . k_j + (q_i + v) . W_r R_{i-j}

    R are sinusoids of the distance, as wide as the stack, with either sign. Scores depend on the query's content
    times distance, so they are no bias of [h q k]; queries and keys are widened instead, see `RelativeTerms`.
    The original's `clamp_len`, which reads distances beyond a limit as that limit, is left out: a clamped distance is
    no rotation.

    Attributes:
      base: of the sinusoids' frequencies.
      layers: what every layer has for itself and does not share with the others: "nothing", "projection" (W_r, as
        released for PyTorch) or "everything" (u and v too, `untie_r`).
    """

    base: float = 10_000.0
    layers: Literal["nothing", "projection", "everything"] = "nothing"

    def build(self, *, width: int, heads: int, head_dim: int, causal: bool, key: Array) -> Positions:
        if width % 2:
            raise ValueError(f"StackConfig.width = {width}: Relative positions need an even width")
        return RelativeTerms(self, width, heads, head_dim, key, layer=False)

    def layer(self, *, width: int, heads: int, head_dim: int, key: Array) -> Any:
        if self.layers == "nothing":
            return None
        return RelativeTerms(self, width, heads, head_dim, key, layer=True)


class RelativeTerms(nnx.Module, Positions):
    """The parameters of `Relative`, and its scores as one product of queries and keys d + m wide.

    With a = W_r^T (q + v), [m] of sine and cosine halves, a . R_{i-j} = (a turned by i) . (sinusoids of j), since
    sin and cos of a difference are products of those of its ends. So every backend computes it, at (d + m) / d
    times the cost of the scores, and keys know nothing of their queries.

    Attributes:
      content, position: u and v, [h d].
      projection: W_r, [m h d]. Of these the stack and each `layer` have None for what the other has.
    """

    def __init__(self, spec: Relative, width: int, heads: int, head_dim: int, key: Array, *, layer: bool):
        self.base, self.width = spec.base, width
        content, position, projection = jax.random.split(key, 3)

        def normal(key: Array, scale: float, *shape: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(key, shape) * scale)

        own = (spec.layers == "everything") == layer
        self.content = normal(content, 0.02, heads, head_dim) if own else None
        self.position = normal(position, 0.02, heads, head_dim) if own else None
        own = (spec.layers != "nothing") == layer
        self.projection = normal(projection, width**-0.5, width, heads, head_dim) if own else None

    def with_layer(self, own: Any) -> Positions:
        if own is None:
            return self
        leaves, structure = jax.tree.flatten(self)
        whole = jax.tree.unflatten(structure, leaves)
        for name in ("content", "position", "projection"):
            if getattr(self, name) is None:
                setattr(whole, name, nnx.data(getattr(own, name)))
        return whole

    def query(self, q: Float[Array, "*b n h d"], slots: Slots) -> Float[Array, "*b n h e"]:
        parameters: Any = (self.content, self.position, self.projection)
        u, v, projection = (leaf[...].astype(q.dtype) for leaf in parameters)
        a = jnp.einsum("...nhd,mhd->...nhm", q + v, projection, preferred_element_type=jnp.float32)
        a_sin, a_cos = jnp.split(a, 2, axis=-1)
        own = sinusoid(slots.coordinate(), a.shape[-1], self.base)[..., None, :]
        sin, cos = jnp.split(own, 2, axis=-1)
        turned = jnp.concatenate([a_cos * sin - a_sin * cos, a_sin * sin + a_cos * cos], axis=-1)
        return jnp.concatenate([q + u, turned.astype(q.dtype)], axis=-1)

    def key(self, k: Float[Array, "*b n g d"], slots: Slots) -> Float[Array, "*b n g e"]:
        own = sinusoid(slots.coordinate(), self.width, self.base).astype(k.dtype)
        own = jnp.broadcast_to(own[..., None, :], (*k.shape[:-1], own.shape[-1]))
        return jnp.concatenate([k, own], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ALiBi(Scheme):
    """Scores fall linearly with distance, one fixed slope a head (Press et al. 2022)."""

    def build(self, *, width: int, heads: int, head_dim: int, causal: bool, key: Array) -> Positions:
        return Sloped(alibi_slopes(heads))


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Bias(Scheme):
    """A learned bias for each head and bucket of relative distance (Raffel et al. 2020).

    `bidirectional` spends half the buckets on later keys; None: where the stack's mask shows any.
    """

    buckets: int = 32
    distance: int = 128
    bidirectional: bool | None = None

    def __post_init__(self):
        if self.buckets < 4 or self.distance <= self.buckets // 2:
            raise ValueError(
                f"T5Bias.buckets = {self.buckets}, T5Bias.distance = {self.distance}: expected at least 4 buckets and "
                "a distance of more than half as many, since the nearest half are one position each"
            )

    def build(self, *, width: int, heads: int, head_dim: int, causal: bool, key: Array) -> Positions:
        bidirectional = not causal if self.bidirectional is None else self.bidirectional
        return Bucketed(BucketBias(self.buckets, self.distance, bidirectional, heads, key))


@dataclasses.dataclass(frozen=True)
class Sloped(Positions):
    """ALiBi built: its slopes are no parameters, so they are no leaves of the model."""

    slopes: tuple[float, ...]

    @property
    def bias(self) -> "LinearBias":
        return LinearBias(jnp.asarray(self.slopes, jnp.float32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearBias:
    """ALiBi's bias: minus the head's slope times the distance, in either direction. `slopes`: f32[h], never learned."""

    slopes: Any

    def __call__(self, q: Slots, k: Slots) -> Float[Array, "*b h q k"]:
        """The bias of every pair."""
        distance = jnp.abs(q.coordinate()[..., :, None] - k.coordinate()[..., None, :])
        slopes = jax.lax.stop_gradient(self.slopes)[:, None, None]
        return -slopes * distance[..., None, :, :].astype(jnp.float32)


class Bucketed(nnx.Module, Positions):
    """T5's scheme built: nothing but its bias."""

    bias: Any = None

    def __init__(self, bias: "BucketBias"):
        self.bias = bias


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

"""Frequencies and rotations: what rotary, sinusoidal and Transformer-XL positions are made of.

A width of d has d / 2 *inverse frequencies* f, radians for each unit of a coordinate, from 1 down to about
1 / base. A *scaling* changes them so that a model reads further than it was trained for; the published ones give
the numbers of transformers' `modeling_rope_utils.py`.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def frequencies(width: int, base: float) -> Float[np.ndarray, "half"]:
    """base^(-2i / width) for the width / 2 pairs i, in float32 (Vaswani et al. 2017, section 3.5)."""
    return 1 / base ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))


def sinusoid(
    coordinate: Float[Array | np.ndarray, "*b n"] | Int[Array | np.ndarray, "*b n"], width: int, base: float
) -> Float[Array, "*b n {width}"]:
    """[sin, cos] of the coordinate at width / 2 frequencies from 1 down to about 1 / base, in float32."""
    angles = _angles(coordinate, frequencies(width, base))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotate(
    x: Float[Array, "*b n h d"],
    coordinate: Float[Array | np.ndarray, "*b n"] | Int[Array | np.ndarray, "*b n"],
    inverse: Float[Array | np.ndarray, "*c half"],
    factor: float = 1.0,
) -> Float[Array, "*b n h d"]:
    """x with the feature pairs (i, i + d/2) turned by coordinate * f_i and stretched by `factor`.

    Args:
      x: queries or keys; d is twice the number of frequencies.
      coordinate: of each token.
      inverse: frequencies f, [d/2] or, where rows differ, [*b 1 d/2]; angles are in float32.
      factor: of cos and sin alike.
    """
    angles = _angles(coordinate, inverse)[..., None, :]
    # Left to itself XLA:CPU fuses cos and sin into all that reads them and computes them again for each head of each
    # layer, forward and backward. It fuses nothing into or out of a product.
    stretch = factor * jnp.eye(angles.shape[-1])
    cos, sin = (
        jnp.matmul(turn(angles), stretch, precision="highest").astype(x.dtype) for turn in (jnp.cos, jnp.sin)
    )
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def _angles(coordinate: Any, inverse: Any) -> Float[Array, "*b n half"]:
    return jnp.asarray(coordinate, jnp.float32)[..., None] * inverse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
    """How rotary frequencies change to reach further than the trained length.

    A subclass with a `factor` (how many times further) or a `trained` length (in units of the coordinate) has them
    checked here. Base of the types in configs: `Rotary.scaling = @positions.YaRN()`.
    """

    def __post_init__(self):
        for name, least in (("factor", 1), ("trained", 1)):
            value = getattr(self, name, least)
            if value < least:
                raise ValueError(f"{type(self).__name__}.{name} = {value!r}: expected at least {least}")

    @property
    def reindexes(self) -> bool:
        """Whether the frequencies depend on how long the line is by now."""
        return False

    def __call__(
        self, inverse: Float[np.ndarray, "half"], *, base: float, length: Array | np.ndarray | None = None
    ) -> tuple[Float[Array | np.ndarray, "*c half"], float]:
        """The frequencies to rotate by and the factor of cos and sin.

        Args:
          inverse: the plain frequencies.
          base: they were computed with.
          length: of each line, [*b 1]; only read where `reindexes`.
        """
        raise TypeError(
            f"{type(self).__name__} defines no __call__(inverse, base, length); every Scaling must"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolation(Scaling):
    """Position Interpolation, "linear" in transformers: every frequency divided by `factor` (Chen et al. 2023,
    section 2.3).
    """

    factor: float

    def __call__(
        self, inverse: Float[np.ndarray, "half"], *, base: float, length: Array | np.ndarray | None = None
    ) -> tuple[Float[Array | np.ndarray, "*c half"], float]:
        return inverse / self.factor, 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicNTK(Scaling):
    """A larger base as soon as the line is longer than `trained`: the slowest pair turns
    1 + factor (length / trained - 1) times slower, the fastest as before (emozilla 2023; Peng et al. 2024).

    The length is the greatest coordinate of a row's real tokens plus one, row by row (transformers takes the
    batch's). It grows while a row is decoded, and with it the rotation of *every* key: a full pass over n tokens
    turns the first of them by the base of length n, step by step they were read with that of their own length.
    A cache must therefore hold keys unrotated, and even so prefill and extend give what recomputing at each length
    gives (as in transformers), not what one full pass over the final length gives; `reindexes` says so.
    """

    factor: float
    trained: int

    @property
    def reindexes(self) -> bool:
        return True

    def __call__(
        self, inverse: Float[np.ndarray, "half"], *, base: float, length: Array | np.ndarray | None = None
    ) -> tuple[Float[Array | np.ndarray, "*c half"], float]:
        # base * growth^(d / (d - 2)) for the base is growth^(-2i / (d - 2)) for pair i.
        growth = 1 + self.factor * jnp.maximum(jnp.asarray(length, jnp.float32) / self.trained - 1, 0)
        share = np.arange(inverse.size, dtype=np.float32) / np.float32(inverse.size - 1)
        return inverse * growth[..., None] ** -share, 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class YaRN(Scaling):
    """Slow pairs interpolated, fast ones left alone, a ramp between; scores sharpened (Peng et al. 2024).

    Attributes:
      factor, trained: how many times further than the length it was trained at.
      beta_fast, beta_slow: turns within `trained` above which a pair is left alone, below which it is interpolated.
      attention_factor: of cos and sin; None: 0.1 ln(factor) + 1 (as the paper recommends), or with both `mscale` and
        `mscale_all_dim` (DeepSeek) the ratio of 0.1 mscale ln(factor) + 1 for the two.
      truncate: ends of the ramp rounded outwards to whole pairs.
    """

    factor: float
    trained: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.beta_slow < self.beta_fast:
            raise ValueError(
                f"YaRN.beta_slow = {self.beta_slow}: expected more than 0 and less than YaRN.beta_fast = "
                f"{self.beta_fast}"
            )

    def __call__(
        self, inverse: Float[np.ndarray, "half"], *, base: float, length: Array | np.ndarray | None = None
    ) -> tuple[Float[Array | np.ndarray, "*c half"], float]:
        def pair_that_turns(turns: float) -> float:
            return inverse.size * math.log(self.trained / (turns * 2 * math.pi)) / math.log(base)

        low, high = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * inverse.size - 1)
        span = (high - low) or 0.001
        ramp = np.clip((np.arange(inverse.size, dtype=np.float32) - low) / span, 0, 1)
        return inverse / self.factor * ramp + inverse * (1 - ramp), self._stretch()

    def _stretch(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return (1 + self.mscale * self._gain()) / (1 + self.mscale_all_dim * self._gain())
        return 1 + self._gain()

    def _gain(self) -> float:
        return 0.1 * math.log(self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3(Scaling):
    """Pairs with fewer than `low` turns within `trained` interpolated, those with more than `high` left alone, a
    ramp in turns between them (Llama 3.1, released code).
    """

    factor: float
    low: float = 1.0
    high: float = 4.0
    trained: int

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.low < self.high:
            raise ValueError(
                f"Llama3.low = {self.low}: expected more than 0 and less than Llama3.high = {self.high}"
            )

    def __call__(
        self, inverse: Float[np.ndarray, "half"], *, base: float, length: Array | np.ndarray | None = None
    ) -> tuple[Float[Array | np.ndarray, "*c half"], float]:
        turns = self.trained * inverse / (2 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return (1 - kept) * inverse / self.factor + kept * inverse, 1.0

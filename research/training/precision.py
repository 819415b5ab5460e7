"""Loss scaling, for computation in float16; bfloat16 has the range of float32 and needs none."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool


class Scale(NamedTuple):
    """The state of a loss scale: its value f32[], and the steps i32[] since it last changed."""

    value: Any
    steps: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, section 3.2): the loss is multiplied so that small gradients
    survive float16; a step whose gradient overflows is left out and halves the scale.

    Attributes:
      initial: the first scale.
      growth: steps without an overflow after which the scale doubles.
    """

    initial: float = 2.0**15
    growth: int = 2000

    def __post_init__(self):
        if self.initial < 1 or self.growth < 1:
            raise ValueError(
                f"LossScale.initial = {self.initial}, growth = {self.growth}: expected both to be at least 1"
            )

    def start(self) -> Scale:
        """The state before the first step."""
        return Scale(jnp.float32(self.initial), jnp.int32(0))

    def after(self, scale: Scale, finite: Bool[Array, ""]) -> Scale:
        """The state after a step whose gradient was finite or not."""
        grows = scale.steps + 1 >= self.growth
        value = jnp.where(finite, jnp.where(grows, 2, 1), 0.5) * scale.value
        return Scale(jnp.maximum(value, 1.0), jnp.where(finite & ~grows, scale.steps + 1, 0))

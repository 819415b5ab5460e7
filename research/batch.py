"""What data makes and models take."""

import dataclasses
from typing import Any

import jax

from research.attention.masks import Slots


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """A line of tokens: `ids` i32[*b n] and the `slots` that say where they are.

    `types`: i32[*b n], the kind of each token for models that tell kinds apart; None: all of kind 0.
    """

    ids: Any
    slots: Slots
    types: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch of every family (fields `Any`: a pytree is also built of tracers and shapes).

    Attributes:
      target: the tokens that the decoder (or the only stack) reads.
      labels: i32[*b t], the token that position t predicts.
      weights: f32[*b t], its share in the loss; 0 where nothing is predicted. For a decoder, `weights[t] = 1`
        iff token t + 1 is a target of the same segment: the last prefix token, itself `prefix=True`, carries
        the first target's loss.
      source: the tokens that an encoder reads, or None.
    """

    target: Tokens
    labels: Any
    weights: Any
    source: Tokens | None = None

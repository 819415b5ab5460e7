"""Noise on the vectors of the tokens that a model reads, so that it leaves a loop (the noise of S7's remedies)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.batch import Tokens
from research.generation.contrast import Contrast
from research.models.families import Model
from research.models.layers import child
from research.models.stack import copied
from research.models.vocabulary import Embedding, TokenVectors


class NoisyEmbedding(Embedding):
    """An embedding whose vectors are off by a normal draw; logits of a tied table are not."""

    def __init__(self, plain: TokenVectors, keys: Any, scale: float):
        self.plain, self.keys, self.scale = plain, keys, scale

    def __call__(self, tokens: Tokens) -> Float[Array, "b n m"]:
        """Vectors of the tokens. A draw depends on the row's key, the token and its position, whenever it is read."""
        x = self.plain(tokens)
        position, ids = (jnp.broadcast_to(leaf, x.shape[:2]) for leaf in (tokens.slots.position, tokens.ids))
        draw = jax.vmap(jax.vmap(_normal, (None, 0, 0, None)), (0, 0, 0, None))
        size = jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True))
        return x + (self.scale * size * draw(self.keys, position, ids, x.shape[-1])).astype(x.dtype)

    def logits(self, hidden: Float[Array, "*b m"]) -> Float[Array, "*b v"]:
        """Scores of every token, by the table as it is."""
        return self.plain.logits(hidden)


def noisy(model: Model | Contrast, keys: Any, scale: float) -> Any:
    """The model with noise on all token vectors that it reads, those of a source too; of a contrast both models.

    Args:
      model: stays as it is.
      keys: one for each row.
      scale: the noise's root mean square in units of each vector's own.
    """
    if isinstance(model, Contrast):
        pair = {name: noisy(getattr(model, name), keys, scale) for name in ("expert", "amateur")}
        return dataclasses.replace(model, **pair)
    changed: Any = copied(model)
    # Keys of their own: the row's, with a place folded in, may be one that a token is drawn with.
    for name in ("embedding", "source_embedding"):
        if getattr(model, name, None) is not None:
            setattr(changed, name, NoisyEmbedding(getattr(model, name), child(keys, "noise"), scale))
    return changed


def _normal(key: Array, position: Array, token: Array, size: int) -> Array:
    # The token too: those of a source and of a target have the same positions.
    return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, position), token), (size,))

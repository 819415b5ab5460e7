"""Replay without the earlier text: the model that tuning begins with writes it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from research.attention.masks import Slots
from research.batch import Batch, Tokens
from research.models.families import Decoder, Encoder, Model
from research.training.remedies import Base, Params, Remedy, Step

CHUNK = 64  # rows that are written at a time
ROWS = 2**31 - 1  # folded into the key of a step: dropout folds in the numbers of rows, which are less


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerativeReplay(Remedy):
    """Generative replay (Shin et al. 2017, section 3; for language models Sun et al. 2020): before the first step the
    base writes text, and in each step the model's loss on some rows of it is added, `strength` times the mean in nats
    per token. Nothing of the earlier text is read.

    Of decoders alone: an encoder-decoder would have to be given sources.

    Attributes:
      examples: rows that are written, each from BOS on.
      length: tokens of a row.
      rows: that are read in a step, drawn with its key.
      temperature: that the base writes at.
    """

    examples: int = 256
    length: int = 64
    rows: int = 4
    temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("examples", "length", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"GenerativeReplay.{name} = {getattr(self, name)}: expected at least 1")
        if not self.temperature > 0:
            raise ValueError(f"GenerativeReplay.temperature = {self.temperature}: expected a number above 0")

    def rehearsed(self, examples: int) -> "GenerativeReplay":
        """The same, of at most so many written rows."""
        return dataclasses.replace(self, examples=min(examples, self.examples))

    def prepare(self, base: Base) -> Any:
        """The rows, i32[examples length + 1], each begun with BOS.

        Raises:
          ValueError: the model is no decoder.
        """
        model = base.model(base.params)
        if not isinstance(model, Decoder) or isinstance(model, Encoder):
            raise ValueError(
                f"GenerativeReplay of {type(model).__name__}: expected a Decoder, which writes text from nothing; "
                "leave it out of Recipe.remedies"
            )
        keys = jax.random.split(jax.random.fold_in(jax.random.key(base.seed), 3), -(-self.examples // CHUNK))
        bos = base.text.tokenizer.bos
        written = [
            _written(
                base.model, base.params, key, min(CHUNK, self.examples), self.length, bos, self.temperature
            )
            for key in keys
        ]
        return jnp.concatenate(written)[: self.examples]

    def blank(self, params: Params) -> Any:
        """As many zeros."""
        return jnp.zeros((self.examples, self.length + 1), jnp.int32)

    def penalty(self, kept: Any, step: Step) -> Float[Array, ""]:
        """The mean loss of some rows."""
        rows = jax.random.randint(jax.random.fold_in(step.key, ROWS), (self.rows,), 0, self.examples)
        total, weight = step.loss(step.params, _batch(kept[rows]))
        return self.strength * step.share * total / weight


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _written(
    model: Any, params: Params, key: Array, rows: int, length: int, bos: int, temperature: Any
) -> Int32[Array, "b n"]:
    """Rows written from BOS on, place by place; each reads the whole row, which at these lengths is cheap enough."""
    writer: Model = model(params)

    def write(place: Any, ids: Array) -> Array:
        hidden = writer.apply(_batch(ids)).hidden[:, place]
        logits = writer.outputs.logits(hidden).astype(jnp.float32) / temperature
        return ids.at[:, place + 1].set(jax.random.categorical(jax.random.fold_in(key, place), logits))

    return jax.lax.fori_loop(0, length, write, jnp.full((rows, length + 1), bos, jnp.int32))


def _batch(ids: Int32[Array, "b n"]) -> Batch:
    """Rows of which every token but the first is a target."""
    rows, length = ids.shape[0], ids.shape[1] - 1
    weights = jnp.ones((rows, length), jnp.float32)
    return Batch(Tokens(ids[:, :-1], Slots.arange(length, (rows,))), ids[:, 1:], weights)

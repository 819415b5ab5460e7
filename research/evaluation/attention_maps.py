"""Where a trained model attends: the shares of every query, for texts so short that they can all be held."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.attention import dense
from research.attention.masks import Mask
from research.batch import Batch
from research.models.families import EncoderDecoderConfig
from research.training.step import Trainer


def attention_maps(trainer: Trainer, params: Any, batch: Batch) -> tuple[Float[Array, "b h t t"], ...]:
    """The self-attention of each layer of the stack that writes, by row, head, query and key, without dropout; a
    learned sink takes nothing from these shares.

    The same model runs with dense attention, of which the shares are the output for values that are unit vectors. Not
    for models that devices share.

    Raises:
      ValueError: one stack reads source and target, both causally, so that its layers cannot be told apart.
    """
    return _watched(trainer)(params, batch)


@functools.lru_cache(maxsize=8)
def _watched(trainer: Trainer) -> Callable[[Any, Batch], tuple[Array, ...]]:
    seen: list[Array] = []
    two_stacks = isinstance(trainer.config, EncoderDecoderConfig)

    def watch(q: Array, k: Array, v: Array, *, mask: Mask, **call: Any) -> tuple[Array, Array]:
        if mask.causal or not two_stacks:  # neither within a source nor to one
            units = jnp.eye(k.shape[-3], dtype=k.dtype)[:, None]
            units = jnp.broadcast_to(units, (*k.shape[:-1], units.shape[-1]))
            seen.append(dense.attend(q, k, units, mask=mask, **call)[0])
        return dense.attend(q, k, v, mask=mask, **call)

    if two_stacks and trainer.config.encoder_mask.causal:
        raise ValueError(
            f"attention of an encoder-decoder whose source is read under {trainer.config.encoder_mask}: its layers "
            "cannot be told from those of the decoder; leave SelfReinforcement out"
        )

    def watched(stack: Any) -> Any:
        return dataclasses.replace(stack, backend=watch, remat="none")

    names = ("encoder", "decoder") if two_stacks else ("stack",)
    stacks = {name: watched(getattr(trainer.config, name)) for name in names}
    functions = trainer.of(dataclasses.replace(trainer.config, **stacks))

    @jax.jit
    def maps(params: Any, batch: Batch) -> tuple[Array, ...]:
        seen.clear()
        functions.model(params).unstacked().apply(batch)  # no scan, so that what is seen can be returned
        return tuple(jnp.moveaxis(each, -2, -3) for each in seen)

    return maps

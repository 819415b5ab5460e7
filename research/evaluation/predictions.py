"""What a model finds likeliest at each held-out token, and how much of that is what stood there before."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from research.batch import Batch
from research.evaluation import repetition
from research.evaluation.trained import Scores, Trained, require_tokens
from research.training.step import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """Repetition of single predictions (Welleck et al. 2020, section 6.1), which needs no samples.

    Attributes:
      last: the numbers l of targets before the place that are looked at.
    """

    last: tuple[int, ...] = (16, 32)

    def __post_init__(self):
        if not self.last or min(self.last) < 1:
            raise ValueError(f"Predictions.last = {self.last}: expected numbers of tokens, at least one")

    def __call__(self, trained: Trained) -> Scores:
        """Of the targets of the test split: `rep` and `wrep` by l, `uniq` different predictions and `uniq_human`
        different targets, and `accuracy`.

        Raises:
          ValueError: the model tells classes.
        """
        require_tokens(trained, "Predictions")
        predicted, gold = [], []
        batches = trained.text.held_out("test")
        for batch, placed in zip(batches, trained.place(batches), strict=True):
            found = jax.device_get(_likeliest(trained.trainer, trained.params, placed))
            for ids, labels, weights in zip(found, batch.labels, batch.weights, strict=True):
                places = np.flatnonzero(weights)
                predicted.append(np.asarray(ids)[places])
                gold.append(np.asarray(labels)[places])
        return {
            "rep": {str(n): repetition.rep_l(predicted, gold, n) for n in self.last},
            "wrep": {str(n): repetition.wrep_l(predicted, gold, n) for n in self.last},
            "uniq": repetition.unique(predicted),
            "uniq_human": repetition.unique(gold),
            "accuracy": float(np.mean(np.concatenate(predicted) == np.concatenate(gold))),
        }


@functools.partial(jax.jit, static_argnums=0)
def _likeliest(trainer: Trainer, params: Any, batch: Batch) -> Int[Array, "b t"]:
    model = trainer.model(params)
    hidden = model.apply(batch).hidden
    return jax.lax.map(lambda states: jnp.argmax(model.outputs.logits(states), axis=-1), hidden)

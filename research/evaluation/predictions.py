"""What a model finds likeliest at each held-out token, and how much of that is what stood there before."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

from research.batch import Batch
from research.evaluation import repetition
from research.evaluation.trained import Scores, Trained, require_tokens
from research.training.step import Trainer

NONE = -1  # no token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """Repetition of single predictions (Welleck et al. 2020, section 6.1), which needs no samples.

    Attributes:
      last: the numbers l of tokens before the place that are looked at, those that are given among them.
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
        batches = trained.text.held_out("test")
        lines = [
            line
            for batch, placed in zip(batches, trained.place(batches), strict=True)
            for line in _lines(batch, np.asarray(likeliest(trained.trainer, trained.params, placed)))
        ]
        predicted, gold = [line.predicted for line in lines], [line.gold for line in lines]
        guesses = [line.predicted[line.predicted != NONE] for line in lines]
        targets = [line.gold[line.predicted != NONE] for line in lines]
        all_of = sum(map(len, gold)) / sum(map(len, targets))  # what is given is in no share
        return {
            "rep": {str(n): all_of * repetition.rep_l(predicted, gold, n) for n in self.last},
            "wrep": {str(n): all_of * repetition.wrep_l(predicted, gold, n) for n in self.last},
            "uniq": repetition.unique(guesses),
            "uniq_human": repetition.unique(targets),
            "accuracy": float(np.mean(np.concatenate(guesses) == np.concatenate(targets))),
        }


@dataclasses.dataclass(frozen=True)
class _Line:
    """The tokens of a text, given ones first, and what is likeliest at each that is a target; NONE at others."""

    predicted: Int32[np.ndarray, " n"]
    gold: Int32[np.ndarray, " n"]


def _lines(batch: Batch, likeliest: Int[np.ndarray, "b t"]) -> Iterator[_Line]:
    segments, labels = np.asarray(batch.target.slots.segment), np.asarray(batch.labels)
    chosen = np.where(np.asarray(batch.weights) > 0, likeliest, NONE)
    for row, segment in enumerate(segments):
        for one in np.unique(segment[chosen[row] != NONE]):
            given = labels[row][:0]
            if batch.source is not None:
                given = np.asarray(batch.source.ids[row])[np.asarray(batch.source.slots.segment[row]) == one]
            own = segment == one
            yield _Line(
                predicted=np.concatenate([np.full(len(given), NONE), chosen[row][own]]).astype(np.int32),
                gold=np.concatenate([given, labels[row][own]]).astype(np.int32),
            )


@functools.partial(jax.jit, static_argnums=0)
def likeliest(trainer: Trainer, params: Any, batch: Batch) -> Int[Array, "b t"]:
    """The token with the highest score at each place, without dropout; scores of one row exist at a time."""
    model = trainer.model(params)
    hidden = model.apply(batch).hidden
    return jax.lax.map(lambda states: jnp.argmax(model.outputs.logits(states), axis=-1), hidden)

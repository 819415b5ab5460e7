"""Held-out loss by where a token stands in its target."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from research.batch import Batch
from research.evaluation.trained import Scores, Trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByPosition:
    """Nats per token over the first tokens of every target of the test split, `loss.first_4` and so on, and over all of
    them, `loss.all`. A decoder without local context shows in the first ones.

    Attributes:
      first: how many tokens of a target; each a number of its own.
    """

    first: tuple[int, ...] = (4, 16)

    def __post_init__(self):
        if not self.first or min(self.first) < 1:
            raise ValueError(f"ByPosition.first = {self.first}: expected numbers of tokens, at least 1 each")

    def __call__(self, trained: Trained) -> Scores:
        """The losses, `{"loss": {"first_4": nats, ..., "all": nats}}`.

        Raises:
          ValueError: no batch has a target.
        """
        batches = trained.text.held_out("test")
        parts: dict[str, int | None] = {f"first_{count}": count for count in self.first}
        return {
            "loss": {
                name: trained.trainer.evaluate(trained.params, trained.place(limited(batches, count)))
                for name, count in {**parts, "all": None}.items()
            }
        }


def limited(batches: Sequence[Batch], count: int | None) -> list[Batch]:
    """The batches with the weights of all but the first `count` tokens of each segment's target set to zero."""
    if count is None:
        return list(batches)
    kept = []
    for batch in batches:
        weights = np.asarray(batch.weights)
        target, segment = weights > 0, np.asarray(batch.target.slots.segment)
        rank = np.zeros(weights.shape, int)
        for each in np.unique(segment[segment > 0]):
            own = target & (segment == each)
            rank += np.where(own, own.cumsum(axis=-1), 0)
        kept.append(dataclasses.replace(batch, weights=np.where(rank <= count, weights, np.float32(0))))
    return kept

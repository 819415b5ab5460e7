"""Held-out likelihood."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from research.batch import Batch
from research.data.tokenizers import Tokenizer
from research.evaluation.trained import Scores, Trained
from research.models.families import Encoder
from research.training.step import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood:
    """How likely the model finds a held-out split: see `held_out`.

    Attributes:
      split: which.
    """

    split: Literal["test", "validation"] = "test"

    def __call__(self, trained: Trained) -> Scores:
        """`loss` and, where targets are text, `bits_per_byte`.

        Raises:
          ValueError: no batch has a target.
        """
        model = trained.trainer.model(trained.params)
        of_classes = isinstance(model, Encoder) and model.classes is not None
        return held_out(
            trained.trainer,
            trained.params,
            trained.text.held_out(self.split),
            None if of_classes else trained.text.tokenizer,
            place=trained.place,
        )


def held_out(
    trainer: Trainer,
    params: Any,
    batches: Sequence[Batch],
    tokenizer: Tokenizer | None,
    *,
    place: Callable[[Sequence[Batch]], Sequence[Batch]] = lambda batches: batches,
) -> dict[str, float]:
    """`loss`: nats per target token; `bits_per_byte`: bits for each byte of text among the targets, if there is any.

    `tokenizer`: of the labels; None: they are classes, not text. `place`: puts batches on the devices.
    """
    loss = trainer.evaluate(params, place(batches))
    if tokenizer is None:
        return {"loss": loss}
    targets = sum(float(batch.weights.sum()) for batch in batches)
    scored = [np.asarray(batch.labels)[np.asarray(batch.weights) > 0] for batch in batches]
    text = sum(tokenizer.byte_count(labels) for labels in scored)
    return {"loss": loss, **({"bits_per_byte": loss * targets / text / math.log(2)} if text else {})}

"""Held-out likelihood."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from research.batch import Batch
from research.data.tokenizers import Tokenizer
from research.training.step import Trainer


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

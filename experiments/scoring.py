"""What is measured of a run's parameters: its held-out splits, and evaluations beside them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments import replays
from experiments.experiment import Experiment, classes, hash_of
from research.batch import Batch
from research.data.pipeline import Dataset
from research.evaluation import likelihood
from research.evaluation.trained import Evaluation, Trained
from research.training.step import Trainer


class HeldOut:
    """The held-out splits of a run and, of a mixture, those of each part of it.

    Args:
      planned: the experiment.
      text: its data.
      trainer: its functions.
      place: puts batches on the devices.
    """

    def __init__(
        self,
        planned: Experiment,
        text: Dataset,
        trainer: Trainer,
        place: Callable[[Sequence[Batch]], Sequence[Batch]],
    ):
        names = planned.data.mixture.names
        parts: dict[str, int | None] = {"": None}
        parts |= {f"{name}_": part for part, name in enumerate(names)} if len(names) > 1 else {}
        self._sets = {
            split: {prefix: text.held_out(split, part) for prefix, part in parts.items()}
            for split in ("test", "validation")
        }
        self._trainer, self._place = trainer, place
        self._tokenizer = None if classes(planned.model) else text.tokenizer

    def score(self, params: Any, split: str) -> dict[str, float]:
        """Measures of "test" or "validation" by name; those of validation begin with `validation_`.

        Raises:
          ValueError: no batch has a target.
        """
        name = "" if split == "test" else f"{split}_"
        return {
            f"{name}{prefix}{measure}": value
            for prefix, batches in self._sets[split].items()
            for measure, value in likelihood.held_out(
                self._trainer, params, batches, self._tokenizer, place=self._place
            ).items()
        }


def evaluated(evaluations: Mapping[str, Evaluation], trained: Trained, title: str) -> dict[str, Any]:
    """The scores of the evaluations by name.

    Raises:
      ValueError: one is not finite; `title` says of what.
    """
    found = {name: dict(evaluation(trained)) for name, evaluation in evaluations.items()}
    if wrong := [f"{path} = {value}" for path, value in replays.numbers(found) if not math.isfinite(value)]:
        raise ValueError(
            f"{title}: evaluation {', '.join(wrong)}, expected numbers or None for what it cannot measure"
        )
    return found


def hashes(evaluations: Mapping[str, Evaluation]) -> dict[str, str]:
    """What each evaluation measures, as a hash."""
    return {name: hash_of(evaluation, texts=True) for name, evaluation in evaluations.items()}

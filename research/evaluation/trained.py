"""What is evaluated: a trained model beside the data that it was trained on; and what an evaluation is."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from research.batch import Batch
from research.data.pipeline import Dataset
from research.models.families import Encoder
from research.training.step import Trainer

Scores = Mapping[str, Any]  # by name a number, or by label (a length, a temperature, ...) numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model.

    Attributes:
      trainer: its functions; `trainer.model(params)` is the model.
      params: its parameters.
      text: the data set, with its tokenizer.
      seed: of the run; whatever an evaluation draws depends on it.
      place: puts batches on the devices.
      history: how its training went: validation loss in nats per target token by step, in order of steps; empty where
        that is not known, as of published weights.
      base: the parameters that the run began with; None where those are not known.
    """

    trainer: Trainer
    params: Any
    text: Dataset
    seed: int
    place: Callable[[Sequence[Batch]], Sequence[Batch]] = lambda batches: batches
    history: Mapping[int, float] = dataclasses.field(default_factory=dict)
    base: Callable[[], Any] | None = None


@runtime_checkable
class Evaluation(Protocol):
    """A frozen dataclass that measures a trained model; equal ones measure the same of equal parameters."""

    def __call__(self, trained: Trained) -> Scores: ...


@runtime_checkable
class Reference(Protocol):
    """Another model, of the same tokenizer, that an evaluation asks: `experiments.stages.Stage`, or `Known`."""

    def trained(self, text: Dataset) -> tuple[Trainer, Any]:
        """Its functions and its parameters; a ValueError where it is not trained, or reads other tokens than `text`."""
        ...


@dataclasses.dataclass(frozen=True)
class Known:
    """A model at hand."""

    trainer: Trainer
    params: Any

    def trained(self, text: Dataset) -> tuple[Trainer, Any]:
        """Both."""
        return self.trainer, self.params


def require_tokens(trained: Trained, evaluation: str) -> None:
    """ValueError where the model tells classes, of which the evaluation of that name says nothing."""
    model = trained.trainer.model(trained.params)
    if isinstance(model, Encoder) and model.classes is not None:
        raise ValueError(
            f"{evaluation} is of tokens, but EncoderConfig.classes = {model.classes}; leave the evaluation out"
        )


def require_windows(trained: Trained, evaluation: str) -> None:
    """ValueError where the model has a memory, since the evaluation of that name reads every window by itself."""
    if trained.trainer.memory(1) is not None:
        raise ValueError(
            f"{evaluation} reads every window by itself, but StackConfig.memory is set; leave the evaluation out"
        )

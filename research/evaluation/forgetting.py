"""What a model has forgotten: metrics of continual learning, and its loss on text that it was not tuned on.

The metrics read scores R f[t t], higher is better (of losses, their negatives): R[i, j] is the score on task j after
training on tasks 0 to i. Published definitions differ under one name; each has its own function here, and `SUMMARY` the
names under which they are reported. A name with an @ is of the code that it names.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Float

from research.data.corpora import Factbook, StateOfTheUnion
from research.data.documents import Corpus
from research.data.objectives import Objective
from research.data.pipeline import Dataset
from research.data.windows import Synthetic
from research.evaluation.likelihood import held_out
from research.evaluation.trained import Scores, Trained, require_tokens

Matrix = Float[np.ndarray, "t t"]


def accuracy(scores: Matrix) -> float:
    """ACC: the mean score over all tasks after the last (Lopez-Paz and Ranzato 2017, equation 2)."""
    return float(np.mean(_several(scores)[-1]))


def backward_transfer(scores: Matrix) -> float:
    """BWT: how much higher the earlier tasks score after the last task than after their own (ibid., equation 3)."""
    return float(np.mean((_several(scores)[-1] - np.diag(scores))[:-1]))


def backward_transfer_gem(scores: Matrix) -> float:
    """BWT as the paper's code has it: the mean is over all t tasks, the last one's zero included."""
    return float(np.mean(_several(scores)[-1] - np.diag(scores)))


def forward_transfer(scores: Matrix, untrained: Float[np.ndarray, " t"]) -> float:
    """FWT: how much higher a task scores just before it is trained on than without any training (ibid., equation 4)."""
    return float(np.mean(_ahead(scores, untrained)))


def forward_transfer_gem(scores: Matrix, untrained: Float[np.ndarray, " t"]) -> float:
    """FWT as the paper's code has it: divided by t, though the first task has none."""
    return float(np.sum(_ahead(scores, untrained)) / len(scores))


def forgetting_chaudhry(scores: Matrix) -> float:
    """How far the earlier tasks are below the best that they ever scored before the last task (Chaudhry et al. 2018,
    equation 3); also before their own training, so all of R is read.
    """
    return float(np.mean((np.max(_several(scores)[:-1], axis=0) - scores[-1])[:-1]))


def forgetting_avalanche(scores: Matrix) -> float:
    """How far the earlier tasks are below what they scored after their own training (Avalanche): -BWT."""
    return -backward_transfer(scores)


SUMMARY: Mapping[str, Callable[[Matrix], float]] = MappingProxyType(
    {
        "acc": accuracy,
        "bwt": backward_transfer,
        "bwt@gem": backward_transfer_gem,
        "forgetting": forgetting_chaudhry,
        "forgetting@avalanche": forgetting_avalanche,
    }
)


def retained(before: float, after: float, *, chance: float = 0.0) -> float:
    """The share of a score that is left: after / before, or of what it was above chance.

    Raises:
      ValueError: there was nothing above chance to retain.
    """
    if before <= chance:
        raise ValueError(f"retained: a score of {before} before, expected more than chance = {chance}")
    return (after - chance) / (before - chance)


def delta_nll(before: float, after: float) -> float:
    """What was forgotten of a text, in nats per token: its loss after tuning less its loss before."""
    return after - before


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """How likely the model finds held-out text of other corpora than its own, in the same windows and layout.

    What tuning has made it forget is the difference between two of these (`delta_nll`), of the tuned and of the
    untuned model. Documents are split by their content and by the run's own shares: what one run holds out of a corpus,
    all with the same shares do.

    Attributes:
      corpora: a name without dots, and a corpus or a synthetic task, of each.
      objective: what its windows become; None: as the run's held-out ones. A run on records needs another for free
        text.
      split: which.
    """

    corpora: tuple[tuple[str, Corpus | Synthetic], ...] = (
        ("general", StateOfTheUnion()),
        ("encyclopedic", Factbook()),
    )
    objective: Objective | None = None
    split: Literal["test", "validation"] = "test"

    def __post_init__(self):
        check_names("Retention", self.corpora)

    def __call__(self, trained: Trained) -> Scores:
        """`{"loss": {name: nats per target}, "bits_per_byte": {name: bits}}`, as `likelihood.held_out` has them.

        Raises:
          ValueError: the model tells classes, or a corpus has no window for the objective.
          CatalogError: an archive is missing and cannot be downloaded.
        """
        require_tokens(trained, "Retention")
        scores: dict[str, dict[str, float]] = {}
        for name, corpus in self.corpora:
            text = self._text(trained.text, name, corpus)
            found = held_out(
                trained.trainer,
                trained.params,
                text.held_out(self.split),
                text.tokenizer,
                place=trained.place,
            )
            for measure, value in found.items():
                scores.setdefault(measure, {})[name] = value
        return scores

    def _text(self, own: Dataset, name: str, corpus: Corpus | Synthetic) -> Dataset:
        """The corpus as the run's data set would have it."""
        try:
            return own.of(corpus, self.objective or own.data.scored(own.data.parts[0]))
        except ValueError as error:
            raise ValueError(
                f"Retention.corpora, {name!r}: {error}; what its windows become is Retention.objective"
            ) from error


def check_names(owner: str, corpora: tuple[tuple[str, Corpus | Synthetic], ...]) -> None:
    """ValueError where corpora have no names that a path in a row can tell apart."""
    names = [name for name, _ in corpora]
    if not names or len(set(names)) < len(names) or any("." in name or not name for name in names):
        raise ValueError(
            f"{owner}.corpora has the names {names}: expected at least one, all different and without dots"
        )


def _several(scores: Matrix) -> Matrix:
    """The scores themselves.

    Raises:
      ValueError: they are of one task.
    """
    if len(scores) < 2:
        raise ValueError(
            f"scores of {len(scores)} task(s): expected at least 2, or there is nothing to forget"
        )
    return scores


def _ahead(scores: Matrix, untrained: Float[np.ndarray, " t"]) -> Float[np.ndarray, " s"]:
    """Of each task but the first, its score just before its training less that without any."""
    return np.diag(_several(scores), k=1) - untrained[1:]

"""Which class a record is of, told by a head of classes or by the text that a model finds likeliest."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float64, Int
from scipy.special import logsumexp

from research.data.objectives import Classification, Example, ended, ones
from research.data.windows import spread
from research.evaluation.trained import Scores, Trained
from research.models.families import Encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How well a model tells the classes of held-out records, by one score for each label.

    The score of an encoder is the log-probability that its head gives the class. The score of a decoder or an
    encoder-decoder is the log-likelihood of the label's text after the input, summed over its tokens and EOS: a
    distribution over all that could be said, so a long label needs no correction for its length. The label with the
    greatest score is what the model tells; of equal ones the first.

    `accuracy`: the share of records whose class is told; `balanced`: the mean over classes of the share of their
    records that are told (Brodersen et al. 2010); `macro_f1`: the mean of the classes' F1 (Opitz and Burst 2019, their
    averaged F1); `loss`: nats, the cross-entropy of a softmax over the scores, so what a generator gives to texts that
    are no label does not count and a head's loss stays what it is; `chance`: the accuracy of always telling the most
    frequent class of the scored records.

    Attributes:
      split: which.
      records: at most so many are scored, spread evenly; the same ones whatever the family.
    """

    split: Literal["test", "validation"] = "test"
    records: int = 512

    def __post_init__(self):
        if self.records < 1:
            raise ValueError(f"Accuracy.records = {self.records}: expected at least 1")

    def __call__(self, trained: Trained) -> Scores:
        """The five numbers.

        Raises:
          ValueError: data without labels, or an encoder without a head of as many classes.
        """
        return measures(*label_scores(trained, self.split, self.records))


def label_scores(
    trained: Trained, split: str, records: int
) -> tuple[Float64[np.ndarray, "r c"], Int[np.ndarray, " r"]]:
    """The score of every label for each of at most so many held-out records, in nats, and the records' classes.

    Each record is read once for each label, `Data.batch` lines at a time, by an encoder too: where the layout puts a
    label, and what its loss is, is then all that the families differ in.

    Raises:
      ValueError: data without labels, or an encoder without a head of as many classes.
    """
    text, model = trained.text, trained.trainer.model(trained.params)
    objective = text.data.scored(text.data.parts[0])
    if not isinstance(objective, Classification):
        raise ValueError(
            f"Accuracy on {type(objective).__name__}: its records have no labels; set Data.objective = "
            "@objectives.Classification() and a corpus of labelled records, or take the evaluation out"
        )
    count = len(objective.labels)
    if isinstance(model, Encoder) and model.classes != count:
        raise ValueError(
            f"Accuracy of an Encoder with EncoderConfig.classes = {model.classes}: expected {count}, one for each of "
            f"Classification.labels = {objective.labels}"
        )
    windows, rng = text.windows[0][split], np.random.default_rng(0)  # from which this objective draws nothing
    examples = [objective(windows[i], rng, text.tokenizer) for i in spread(len(windows), records)]
    said = [ended(text.tokenizer.encode(label), text.tokenizer) for label in objective.labels]
    asked = [
        dataclasses.replace(one, targets=line, weights=ones(line), label=label)
        for label, line in enumerate(said)
        for one in examples
    ]
    scores = log_likelihoods(trained, asked).reshape(count, len(examples)).T
    return scores, np.array([one.label for one in examples])


def log_likelihoods(trained: Trained, examples: Sequence[Example]) -> Float64[np.ndarray, " n"]:
    """Of the targets of each example given its inputs, in nats, summed over the targets."""
    found = []
    for batch in trained.text.placed(examples):
        (placed,) = trained.place([batch])
        mean = multihost_utils.process_allgather(
            trained.trainer.row_losses(trained.params, placed), tiled=True
        )
        found.append(-mean.astype(np.float64) * np.asarray(batch.weights).sum(-1))
    return np.concatenate(found)[: len(examples)]


def measures(scores: Float64[np.ndarray, "r c"], classes: Int[np.ndarray, " r"]) -> dict[str, float]:
    """What `Accuracy` reports of the scores of each label, in nats, and the classes that the records are of.

    A class without a record has no recall; one that is neither there nor told has no F1. Neither counts in the mean.
    """
    told, labels = scores.argmax(-1), range(scores.shape[1])
    right = np.array([np.sum((classes == label) & (told == label)) for label in labels])
    there, named = (np.bincount(each, minlength=len(labels)) for each in (classes, told))
    either = there + named
    return {
        "accuracy": float(right.sum() / len(classes)),
        "balanced": float(np.mean(right[there > 0] / there[there > 0])),
        "macro_f1": float(np.mean(2 * right[either > 0] / either[either > 0])),
        "loss": float(np.mean(logsumexp(scores, axis=-1) - scores[np.arange(len(classes)), classes])),
        "chance": float(there.max() / len(classes)),
    }

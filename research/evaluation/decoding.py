"""Ways to write beside each other: how much each repeats, and what that costs in quality."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from research.batch import Batch
from research.data.layouts import Concatenate, Split
from research.data.objectives import Example, ones
from research.data.pipeline import Dataset
from research.evaluation import repetition
from research.evaluation.continuing import How, Line
from research.evaluation.mauve import mauve
from research.evaluation.samples import Lines, Repetition
from research.evaluation.trained import Reference, Scores, Trained
from research.generation.engine import Generation, Greedy
from research.generation.filters import Candidate, CutRepeats, Rerank
from research.models.families import EncoderConfig, EncoderDecoderConfig
from research.training.losses import label_log_probabilities
from research.training.remedies import log_probabilities
from research.training.step import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """A way to write.

    Attributes:
      how: `Generation()` draws or is greedy, `Beam()` and `ContrastiveSearch()` search. Length and end are the
        evaluation's.
      rerank: of so many `candidates`, which are drawn, the best is taken; None: there is one.
      cut: what is done to the text then, or None.
      filters: the metrics that it lowers by construction, so that they say nothing of it: a table should mark it there.
    """

    how: How = Generation()
    rerank: Rerank | None = None
    candidates: int = 4
    cut: CutRepeats | None = None
    filters: tuple[str, ...] = ()

    def __post_init__(self):
        if self.candidates < 1:
            raise ValueError(f"Way.candidates = {self.candidates}: expected at least 1")
        if self.rerank is not None and not self.draws:
            raise ValueError(
                f"Way.rerank of {type(self.how).__name__}: it writes one text, however often; draw, or set it to None"
            )

    @property
    def draws(self) -> bool:
        """Whether it writes something else each time."""
        return isinstance(self.how, Generation) and (
            self.how.noise > 0 or not isinstance(self.how.choice, Greedy)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """What a model writes in several ways after the same held-out prompts: `{metric: {way: value}}`, and the same of
    what people wrote there under `human`.

    The metrics are those of `Repetition`; beside them, since what repeats little may be no text:

    - `self_bleu`: of at most 1000 of the texts, how alike they are to each other (Zhu et al. 2018);
    - `zipf_distance`, `length_distance`: how far `zipf` and `tokens` are from the human text's;
    - `reference_loss`: of the texts under the reference model, in nats per token, and `reference_distance`, how far
      that is from its loss of the human text: text that repeats is likelier than what people write, not better;
    - `mauve`: how near the texts are to the human ones in the reference model's last states, their mean over the tokens
      of a text (our own features, not those of the paper); of several draws the mean. Of people, that of one half of
      their texts to the other, which are half as many.

    Attributes:
      ways: by name.
      samples: prompts, length and metrics; its temperatures are not read.
      draws: texts of each prompt, where a way draws.
      reference: another model, which rates what is written; None: without what it says.
    """

    ways: tuple[tuple[str, Way], ...]
    samples: Repetition = Repetition()
    draws: int = 1
    reference: Reference | None = None

    def __post_init__(self):
        names = [name for name, _ in self.ways]
        if not names or len(set(names)) < len(names) or "human" in names:
            raise ValueError(
                f"Decoding.ways has the names {names}: expected at least one, all different, and none 'human'"
            )
        if self.draws < 1:
            raise ValueError(f"Decoding.draws = {self.draws}: expected at least 1")

    def __call__(self, trained: Trained) -> Scores:
        """The metrics of each way.

        Raises:
          ValueError: as `Repetition`, or the reference is not there.
        """
        prompts, human = self.samples.pairs(trained)
        judge = None if self.reference is None else _Judge(self.reference, trained.text, prompts, human)
        scores: dict[str, dict[str, float]] = {}
        floor = self._measured(human)
        for name, way in self.ways:
            times = self.draws if way.draws else 1
            sets = [self.written(trained, prompts, way, draw) for draw in range(times)]
            found = self._measured([line for lines in sets for line in lines])
            found["length_distance"] = abs(found["tokens"] - floor["tokens"])
            if {"zipf"} <= found.keys() & floor.keys():
                found["zipf_distance"] = abs(found["zipf"] - floor["zipf"])
            found |= {} if judge is None else judge(sets)
            for metric, value in found.items():
                scores.setdefault(metric, {})[name] = value
        scores["human"] = floor | ({} if judge is None else judge.floor)
        return scores

    def _measured(self, lines: Lines) -> dict[str, float]:
        found = self.samples.measured(lines)
        return found | ({"self_bleu": repetition.self_bleu(lines)} if len(lines) > 1 else {})

    def written(self, trained: Trained, prompts: Lines, way: Way, draw: int) -> Lines:
        """What the model writes after each prompt."""
        text = trained.text.tokenizer
        if way.rerank is None:
            chosen = self.samples.written(trained, prompts, way.how, draw)
        else:
            tries = [
                self.samples.written(trained, prompts, way.how, draw * way.candidates + each)
                for each in range(way.candidates)
            ]
            rate = functools.partial(_cost, way.rerank, text)
            chosen = [min(each, key=rate) for each in zip(*tries, strict=True)]
        return [line.ids if way.cut is None else _cut(way.cut, text, line.ids) for line in chosen]


def _cut(cut: CutRepeats, text: Any, ids: np.ndarray) -> np.ndarray:
    """The tokens of what is left; those of a text from which nothing is cut as they are."""
    said = text.decode(ids, continues=True)
    left = cut(said)
    return ids if left == said else np.asarray(text.encode(left), np.int32)


def _cost(rerank: Rerank, text: Any, line: Line) -> float:
    candidate = Candidate(text.decode(line.ids), line.log_probability / max(len(line.ids), 1))
    return rerank.cost(*candidate)


class _Judge:
    """What the reference model says of texts.

    Args:
      reference: the model.
      text: of the run that is rated, whose tokens both read.
      prompts, human: what the texts go on from, and how people did.
    """

    def __init__(self, reference: Reference, text: Dataset, prompts: Lines, human: Lines):
        self._trainer, self._params = reference.trained(text)
        if isinstance(self._trainer.config, EncoderConfig):
            raise ValueError(
                "Decoding.reference is an Encoder, which reads what it would have to predict; expected a model that "
                "writes"
            )
        two_stacks = isinstance(self._trainer.config, EncoderDecoderConfig)
        self._text = text.laid(Split() if two_stacks else Concatenate())
        self._prompts = prompts
        self._loss, _, self._human = self._read(human)
        half = len(human) // 2
        self.floor = {"reference_loss": self._loss} if len(self._human) else {}
        if half > 1:
            self.floor["mauve"] = mauve(self._human[:half], self._human[half : 2 * half])

    def __call__(self, sets: Sequence[Lines]) -> dict[str, float]:
        """Loss and features of texts beside the human ones', a text of each prompt in each set; without what they are
        too short for.
        """
        read = [self._read(lines) for lines in sets]
        if not any(weight for _, weight, _ in read):
            return {}
        loss = sum(loss * weight for loss, weight, _ in read) / sum(weight for _, weight, _ in read)
        found = {"reference_loss": loss, "reference_distance": abs(loss - self._loss)}
        if min(len(each) for each in (self._human, *(features for *_, features in read))) > 1:
            found["mauve"] = float(np.mean([mauve(self._human, features) for *_, features in read]))
        return found

    def _read(self, lines: Lines) -> tuple[float, float, np.ndarray]:
        """The mean loss of all tokens after their prompts, how many there are, and the features of each text that has
        some.
        """
        pairs = [(given, line) for given, line in zip(self._prompts, lines, strict=True) if len(line)]
        total, weight, features = 0.0, 0.0, []
        examples = [Example(given, line, ones(line)) for given, line in pairs]
        for batch in self._text.placed(examples) if examples else ():
            loss, states = jax.device_get(_rated(self._trainer, self._params, batch))
            weights = np.asarray(batch.weights).sum(1)
            total, weight = total + float(loss), weight + float(weights.sum())
            features += list(states[weights > 0])
        return total / max(weight, 1), weight, np.array(features)


@functools.partial(jax.jit, static_argnums=0)
def _rated(trainer: Trainer, params: Any, batch: Batch) -> tuple[Float[Array, ""], Float[Array, "b m"]]:
    """The summed loss of a batch, and the mean state over the targets of each row."""
    model, weights = trainer.model(params), jnp.asarray(batch.weights)
    hidden = model.apply(batch).hidden
    losses = -label_log_probabilities(log_probabilities(model), hidden, jnp.asarray(batch.labels))
    summed = jnp.sum(hidden.astype(jnp.float32) * weights[..., None], axis=1)
    return jnp.sum(weights * losses), summed / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1)

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
from research.models.families import EncoderDecoderConfig
from research.training.step import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """A way to write.

    Attributes:
      how: `Generation()` draws or is greedy, `Beam()` and `ContrastiveSearch()` search. Length and end are the
        evaluation's.
      rerank: of so many `candidates`, which are drawn, the best is taken; None: there is one.
      cut: what is done to the text then, or None.
      filters: the metrics that it lowers by construction, so that they say nothing of it; docs mark them.
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
        return isinstance(self.how, Generation) and not isinstance(self.how.choice, Greedy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """What a model writes in several ways after the same held-out prompts: `{metric: {way: value}}`, and the same of
    what people wrote there under `human`.

    The metrics are those of `Repetition`; beside them, since what repeats little may be no text:

    - `zipf_distance`, `length_distance`: how far `zipf` and `tokens` are from the human text's;
    - `reference_loss`: of the texts under the reference model, in nats per token, and `reference_distance`, how far
      that is from its loss of the human text: text that repeats is likelier than what people write, not better;
    - `mauve`: how near the texts are to the human ones in the reference model's last states, their mean over the tokens
      of a text (our own features, not those of the paper); of people, that of one half of their texts to the other.

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
        floor = self.samples.measured(human)
        for name, way in self.ways:
            times = self.draws if way.draws else 1
            lines = [line for draw in range(times) for line in self.written(trained, prompts, way, draw)]
            found = self.samples.measured(lines)
            found["length_distance"] = abs(found["tokens"] - floor["tokens"])
            if {"zipf"} <= found.keys() & floor.keys():
                found["zipf_distance"] = abs(found["zipf"] - floor["zipf"])
            found |= {} if judge is None else judge(prompts * times, lines)
            for metric, value in found.items():
                scores.setdefault(metric, {})[name] = value
        scores["human"] = floor | ({} if judge is None else judge.floor)
        return scores

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
        lines = [line.ids for line in chosen]
        if way.cut is None:
            return lines
        return [np.asarray(text.encode(way.cut(text.decode(line))), np.int32) for line in lines]


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
        two_stacks = isinstance(self._trainer.config, EncoderDecoderConfig)
        self._text = text.laid(Split() if two_stacks else Concatenate())
        self._loss, self._human = self._read(prompts, human)
        half = len(human) // 2
        self.floor = {"reference_loss": self._loss}
        if half > 1:
            self.floor["mauve"] = mauve(self._human[:half], self._human[half : 2 * half])

    def __call__(self, prompts: Lines, lines: Lines) -> dict[str, float]:
        """Loss and features of texts beside the human ones'."""
        loss, features = self._read(prompts, lines)
        found = {"reference_loss": loss, "reference_distance": abs(loss - self._loss)}
        if min(len(features), len(self._human)) > 1:
            found["mauve"] = mauve(self._human, features)
        return found

    def _read(self, prompts: Sequence[np.ndarray], lines: Sequence[np.ndarray]) -> tuple[float, np.ndarray]:
        """The mean loss of all tokens, and the features of each text that has some."""
        pairs = [(given, line) for given, line in zip(prompts, lines, strict=True) if len(line)]
        if not pairs:
            raise repetition.TooShort("Decoding: no text has a token, so there is nothing to rate")
        total, weight, features = 0.0, 0.0, []
        for batch in self._text.placed([Example(given, line, ones(line)) for given, line in pairs]):
            loss, states = jax.device_get(_rated(self._trainer, self._params, batch))
            weights = np.asarray(batch.weights).sum(1)
            total, weight = total + float(loss), weight + float(weights.sum())
            features += list(states[weights > 0])
        return total / weight, np.stack(features)


@functools.partial(jax.jit, static_argnums=0)
def _rated(trainer: Trainer, params: Any, batch: Batch) -> tuple[Float[Array, ""], Float[Array, "b m"]]:
    """The summed loss of a batch, and the mean state over the targets of each row."""
    hidden = trainer.model(params).apply(batch).hidden.astype(jnp.float32)
    weights = jnp.asarray(batch.weights)[..., None]
    mean = jnp.sum(hidden * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)
    return trainer.loss(params, batch)[0], mean

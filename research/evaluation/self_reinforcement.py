"""How much likelier a phrase becomes each time that it is written again, and what a model attends to then."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from research.attention import sharded
from research.batch import Batch
from research.data.objectives import Example, ones
from research.data.pipeline import Dataset
from research.data.windows import spread
from research.evaluation.attention_maps import attention_maps
from research.evaluation.continuing import beyond
from research.evaluation.repetition import reinforcement
from research.evaluation.trained import Scores, Trained, require_tokens, require_windows
from research.models.families import Encoder
from research.training.remedies import log_probabilities
from research.training.step import Trainer

_PHRASES = 5  # what the random streams of this evaluation begin with


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfReinforcement:
    """Phrases of held-out text, each written several times over after what stood before it (Xu et al. 2022, section 2).

    Lengths are drawn, so that a model that copies from a fixed distance does not pass for one that finds what was
    there. The phrases are the same whatever the seed of the run.

    Attributes:
      phrases: one of each of so many windows of the test split, spread evenly, at most `Data.held_out`.
      prompt: tokens that are given before.
      least, most: bounds of a phrase's length, in tokens.
      times: that it is written. Prompt and phrases should fit into a window of training.
      words: of "text", or "random" tokens as often as they come in training text: a control, as those have no
        likelihood that their sense could raise.
    """

    phrases: int = 200
    prompt: int = 16
    least: int = 6
    most: int = 12
    times: int = 5
    words: Literal["text", "random"] = "text"

    def __post_init__(self):
        if min(self.phrases, self.prompt) < 1 or self.times < 2:
            raise ValueError(
                f"SelfReinforcement: phrases = {self.phrases}, prompt = {self.prompt}, times = {self.times}; expected "
                "at least 1, 1 and 2"
            )
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"SelfReinforcement: least = {self.least}, most = {self.most}; expected 1 <= least <= most tokens"
            )

    def __call__(self, trained: Trained) -> Scores:
        """By how often the phrase came before ("0": never), means over all its tokens:

        - `tp`, `wr`: their probability, and the share of them that are the likeliest of all tokens;
        - `ip`: the share of them that are likelier than the first time ("0" is left out);
        - `entropy`, `top`: of what is predicted there, in nats, and how likely the likeliest token is;
        - `attention`: the share that goes to the phrase as it was written last ("0" is left out), over all layers and
          heads;

        and `induction`: of the head that has most of it, the share of attention at the token that followed the last
        time, from the second time on (what Olsson et al. 2022 call prefix matching). Both are None where devices share
        the model.

        Raises:
          ValueError: the data is no free text, a window is too short, or the model writes no text.
        """
        require_tokens(trained, "SelfReinforcement")
        require_windows(trained, "SelfReinforcement")
        text = trained.text
        written = list(self._written(text))
        self._fits(trained, max(length for _, length in written))
        found = [row for batch in text.placed([one for one, _ in written]) for row in _rows(trained, batch)]
        lengths = [length for _, length in written]
        shaped = [
            {name: values.reshape(self.times, length) for name, values in row.tokens.items()}
            for row, length in zip(found, lengths, strict=True)
        ]
        curves = reinforcement([row["p"] for row in shaped], [row["won"] for row in shaped])

        def mean(name: str) -> np.ndarray:
            return np.concatenate([row[name] for row in shaped], axis=1).mean(1)

        maps = None if sharded.axes() else _attention(found, lengths, self.times)
        return {
            "tp": _labelled(curves.probability),
            "ip": _labelled(curves.increased, since=1),
            "wr": _labelled(curves.winners),
            "entropy": _labelled(mean("entropy")),
            "top": _labelled(mean("top")),
            "attention": None if maps is None else _labelled(maps[0], since=1),
            "induction": None if maps is None else float(maps[1].max()),
        }

    def _fits(self, trained: Trained, longest: int) -> None:
        model = trained.trainer.model(trained.params)
        if isinstance(model, Encoder):
            raise ValueError(
                "SelfReinforcement of an Encoder: it writes no text; take the evaluation out, or train a model with a "
                "decoder"
            )
        if (short := beyond(model, self.prompt, self.times * longest)) is not None:
            read, scheme, limit = short
            raise ValueError(
                f"SelfReinforcement.times = {self.times} of {longest} tokens after {self.prompt}: {read} are read, but "
                f"positions of the model ({scheme}) end at {limit}; lower SelfReinforcement.times, .most or .prompt"
            )

    def _written(self, text: Dataset) -> Iterator[tuple[Example, int]]:
        """What is given and the phrase over and over, and its length."""
        windows, ids = text.windows[0]["test"], np.asarray(text.tokenizer.text_ids)
        often = text.unigram[ids] / text.unigram[ids].sum() if self.words == "random" else None
        for index in spread(len(windows), min(self.phrases, text.data.held_out)):
            window, rng = windows[index], np.random.default_rng([_PHRASES, index])
            if window.record:
                raise ValueError(
                    "SelfReinforcement reads free text, but Data.corpus has records; take the evaluation out or set "
                    "Data.corpus"
                )
            length = int(rng.integers(self.least, self.most + 1))
            room = len(window.ids) - self.prompt - length
            if room < 0:
                raise ValueError(
                    f"SelfReinforcement: a prompt of {self.prompt} and a phrase of {length} tokens in a window of "
                    f"{len(window.ids)}; lower SelfReinforcement.prompt or .most, or raise Data.window"
                )
            cut = int(rng.integers(room + 1)) + self.prompt
            phrase: Int32[np.ndarray, " n"] = window.ids[cut : cut + length]
            if often is not None:
                phrase = rng.choice(ids, length, p=often).astype(np.int32)
            targets = np.tile(phrase, self.times)
            yield Example(window.ids[cut - self.prompt : cut], targets, ones(targets)), length


@dataclasses.dataclass(frozen=True)
class _Row:
    """What a model makes of the targets of one row: numbers of each, their places, and attention [layers heads t t], or
    None.
    """

    tokens: dict[str, np.ndarray]
    places: np.ndarray
    maps: Any


def _rows(trained: Trained, batch: Batch) -> Iterator[_Row]:
    (placed,) = trained.place([batch])
    scores = jax.device_get(_scored(trained.trainer, trained.params, placed))
    maps: Any = None
    if not sharded.axes():
        maps = np.stack(jax.device_get(attention_maps(trained.trainer, trained.params, placed)))
    for row, weights in enumerate(np.asarray(batch.weights)):
        places = np.flatnonzero(weights)
        if len(places):  # not of padding
            tokens = {name: np.asarray(values[row])[places] for name, values in scores.items()}
            yield _Row(tokens, places, None if maps is None else maps[:, row])


@functools.partial(jax.jit, static_argnums=0)
def _scored(trainer: Trainer, params: Any, batch: Batch) -> dict[str, Float[Array, "b t"]]:
    """Of each place: the probability of its label, whether that is the likeliest, and entropy and top of all."""
    model = trainer.model(params)
    scores = log_probabilities(model)

    def row(states: Array, labels: Array) -> dict[str, Array]:
        log_p = scores(states)
        return {
            "p": jnp.exp(jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]),
            "won": jnp.argmax(log_p, axis=-1) == labels,
            "entropy": -jnp.sum(jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0), axis=-1),
            "top": jnp.exp(jnp.max(log_p, axis=-1)),
        }

    hidden = model.apply(batch).hidden
    return jax.lax.map(lambda each: row(*each), (hidden, jnp.asarray(batch.labels)))


def _attention(rows: list[_Row], lengths: list[int], times: int) -> tuple[np.ndarray, np.ndarray]:
    """The share at the phrase as written last, by how often it came before [times], and the share of each head at the
    token that followed then [layers heads].
    """
    copied, followed, count = np.zeros(times), 0.0, 0
    weight = np.zeros(times)
    for row, length in zip(rows, lengths, strict=True):
        # The token that a place predicts is read at the next one.
        read = row.places.reshape(times, length) + 1
        for time in range(1, times):
            queries = row.places[time * length : (time + 1) * length]
            shares = row.maps[:, :, queries]
            copied[time] += shares[..., read[time - 1]].sum(-1).mean((0, 1)).sum()
            weight[time] += length
            followed = followed + shares[:, :, np.arange(length), read[time - 1]].sum(-1)
            count += length
    return copied / np.maximum(weight, 1), np.asarray(followed / count)


def _labelled(values: np.ndarray, since: int = 0) -> dict[str, float]:
    return {str(time): float(values[time]) for time in range(since, len(values))}

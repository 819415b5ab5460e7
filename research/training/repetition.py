"""Remedies against repetition: terms of the loss that make what a model has read or written before less likely.

They are in `Recipe.remedies`, as those against forgetting are, but ask nothing of the parameters a run starts from:

    step.Recipe.remedies = (@repetition.TokenUnlikelihood(),)

Text with less repetition in it (`research.data.curation`, `research.data.augmentation`) and noise on what is read are
where data is; remedies at the time of writing are `research.generation.processors`.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from research.batch import Batch
from research.training.losses import CERTAIN, label_log_probabilities, log_not, token_unlikelihood
from research.training.remedies import Base, Params, Remedy, Step, log_probabilities

# Folded into the key of a step; dropout folds in the numbers of rows and generative replay 2^31 - 1.
COIN, PHRASES = 2**31 - 2, 2**31 - 3


class Unprepared(Remedy):
    """A remedy that keeps nothing of what the run starts from."""

    def prepare(self, base: Base) -> Any:
        """Nothing."""
        return ()

    def blank(self, params: Params) -> Any:
        """Nothing."""
        return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenUnlikelihood(Unprepared):
    """Unlikelihood of tokens (Welleck et al. 2020, equations 3 and 4): at each target, `strength` (their alpha, 1)
    times -log(1 - p) of every token that the decoder has read before in the same text and that is not the right one;
    the mean over targets. What an encoder has read does not count.
    """

    def penalty(self, kept: Any, step: Step) -> Float[Array, ""]:
        """The mean over targets, weighted as their losses are."""
        batch = step.batch
        total = token_unlikelihood(
            log_probabilities(step.model(step.params)),
            step.hidden,
            jnp.asarray(batch.target.ids),
            jnp.asarray(batch.target.slots.segment),
            jnp.asarray(batch.labels),
            jnp.asarray(batch.weights, jnp.float32),
        )
        return self.strength * total / step.weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnRows(Unprepared):
    """A remedy that makes texts of its own of some rows of each batch, taken whole (`Recipe.accumulate` is 1).

    Attributes:
      rows: the first so many.
    """

    rows: int = 8

    def __post_init__(self):
        super().__post_init__()
        if self.rows < 1:
            raise ValueError(f"{type(self).__name__}.rows = {self.rows}: expected at least 1")

    def rehearsed(self, examples: int) -> "OnRows":
        """The same, of at most so many rows."""
        return dataclasses.replace(self, rows=min(self.rows, examples))

    def _some(self, batch: Batch) -> Batch:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[: self.rows], batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceUnlikelihood(OnRows):
    """Unlikelihood of sequences (Welleck et al. 2020, equation 6), for tuning: the model goes on greedily from the
    beginnings of some rows, and what is part of an n-gram that it has written before gets -log(1 - p); the mean over
    all that it has written.

    The paper takes such a step in place of one by likelihood, with a chance of one half; here it is added to it.
    What is written takes the place of the first targets that follow one another in a row, whether or not an end is
    written.

    Attributes:
      n: of the n-grams.
      given: targets of a row that it goes on from. What is no target is given too, and an encoder reads what it does.
      share: of steps in which it is done; the others cost nothing, but in an ensemble all cost as much.
    """

    n: int = 4
    given: int = 16
    share: float = 0.5
    tunable: ClassVar[tuple[str, ...]] = ("strength", "share")

    def __post_init__(self):
        super().__post_init__()
        if self.n < 1 or self.given < 0:
            raise ValueError(
                f"SequenceUnlikelihood: n = {self.n}, given = {self.given}; expected n >= 1 and given >= 0"
            )
        if not 0 <= self.share <= 1:
            raise ValueError(f"SequenceUnlikelihood.share = {self.share}: expected a share of steps, 0 to 1")

    def penalty(self, kept: Any, step: Step) -> Float[Array, ""]:
        """The mean over written tokens, or 0 in the other steps."""

        def cost() -> Array:
            batch, places = _written(step, self._some(step.batch), self.given)
            scores = _scored(step, batch)
            again = repeated(jnp.asarray(batch.labels), places, self.n)
            return -jnp.sum(jnp.where(again, log_not(scores), 0)) / jnp.maximum(jnp.sum(places), 1)

        done = jax.random.bernoulli(jax.random.fold_in(step.key, COIN), self.share)
        return self.strength * jax.lax.cond(done, cost, lambda: jnp.float32(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DITTO(OnRows):
    """Training on pseudo-repetitions (Xu et al. 2022, equation 3): in some rows a phrase is written again and again up
    to the end, and each time its tokens are to have `ratio` times the probability that they had the time before:
    -log(1 - |p_n - ratio p_(n-1)|), the mean over all tokens from the second time on.

    The paper's phrases are sentences. Here their lengths are drawn, and where they begin, so that what is learned is
    not a distance. They are of the first targets that follow one another in a row.

    Attributes:
      ratio: lambda.
      least, most: tokens of a phrase; at least so that it fits twice.
    """

    ratio: float = 0.5
    least: int = 4
    most: int = 16
    tunable: ClassVar[tuple[str, ...]] = ("strength", "ratio")

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"DITTO.ratio = {self.ratio}: expected a share of a probability, 0 to 1")
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"DITTO: least = {self.least}, most = {self.most}; expected 1 <= least <= most tokens"
            )

    def penalty(self, kept: Any, step: Step) -> Float[Array, ""]:
        """The mean over the tokens that are there again."""
        batch, lengths, again = self.tiled(self._some(step.batch), jax.random.fold_in(step.key, PHRASES))
        now = jnp.exp(_scored(step, batch))
        before = jnp.maximum(jnp.arange(now.shape[1]) - lengths[:, None], 0)
        then = jax.lax.stop_gradient(jnp.take_along_axis(now, before, axis=1))
        apart = jnp.minimum(jnp.abs(now - self.ratio * then), CERTAIN)
        cost = -jnp.sum(jnp.where(again, jnp.log1p(-apart), 0)) / jnp.maximum(jnp.sum(again), 1)
        return self.strength * cost

    def tiled(self, batch: Batch, key: Array) -> tuple[Batch, Int32[Array, " b"], Bool[Array, "b t"]]:
        """The rows with a phrase written to their end, how long it is in each, and which targets are of its second
        time or a later one: none where it does not fit twice.
        """
        ids, labels = jnp.asarray(batch.target.ids), jnp.asarray(batch.labels)
        segment, own = jnp.asarray(batch.target.slots.segment), _first_run(batch)
        place = jnp.arange(labels.shape[1])
        first, stop = jnp.argmax(own, axis=1), jnp.max(jnp.where(own, place + 1, 0), axis=1)
        lengths, begins = jax.vmap(self._phrase)(jax.random.split(key, len(ids)), first, stop)
        inside = (place - begins[:, None]) % jnp.maximum(lengths[:, None], 1)
        again = own & (place >= (begins + lengths)[:, None]) & (lengths > 0)[:, None]
        labels = jnp.where(again, jnp.take_along_axis(labels, begins[:, None] + inside, axis=1), labels)
        read = again[:, :-1] & (segment[:, 1:] == segment[:, :-1])  # the last token of a text is not
        ids = jnp.concatenate([ids[:, :1], jnp.where(read, labels[:, :-1], ids[:, 1:])], axis=1)
        target = dataclasses.replace(batch.target, ids=ids)
        return dataclasses.replace(batch, target=target, labels=labels), lengths, again

    def _phrase(self, key: Array, first: Array, stop: Array) -> tuple[Array, Array]:
        """The length of a phrase that fits twice from `first` to `stop`, and where it begins; 0: none fits."""
        most = jnp.minimum(self.most, (stop - first) // 2)
        one, other = jax.random.split(key)
        length = jax.random.randint(one, (), self.least, jnp.maximum(most, self.least) + 1)
        begin = jax.random.randint(other, (), first, jnp.maximum(stop - 2 * length, first) + 1)
        return jnp.where(most >= self.least, length, 0), begin


def repeated(ids: Int32[Array, "b t"], places: Bool[Array, "b t"], n: int) -> Bool[Array, "b t"]:
    """Which of the tokens at `places`, one run in each row, are part of an n-gram there that came before.

    (The paper's code leaves out the last n-gram.)
    """
    length = ids.shape[1]

    def row(ids: Array, here: Array) -> Array:
        starts = length - n + 1
        if starts < 1:
            return jnp.zeros(length, bool)
        window = jnp.arange(starts)[:, None] + jnp.arange(n)
        grams, whole = ids[window], jnp.all(here[window], axis=1)
        same = jnp.all(grams[:, None] == grams[None], axis=-1) & whole[:, None] & whole[None]
        again = jnp.any(jnp.tril(same, -1), axis=1)
        return jnp.zeros(length, bool).at[window].max(jnp.broadcast_to(again[:, None], window.shape))

    return jax.vmap(row)(ids, places)


def _scored(step: Step, batch: Batch) -> Float[Array, "b t"]:
    """Log-probabilities of the labels of texts of its own."""
    model = step.model(step.params)
    return label_log_probabilities(
        log_probabilities(model), model.apply(batch).hidden, jnp.asarray(batch.labels)
    )


def _first_run(batch: Batch) -> Bool[Array, "b t"]:
    """The targets of each row from its first one on, as far as they follow one another in one text."""
    asked, segment = jnp.asarray(batch.weights) > 0, jnp.asarray(batch.target.slots.segment)
    first = jnp.argmax(asked, axis=1)[:, None]
    asked &= segment == jnp.take_along_axis(segment, first, axis=1)
    broken = ~asked & (jnp.arange(asked.shape[1]) > first)
    return asked & (jnp.cumsum(broken, axis=1) == 0)


def _written(step: Step, batch: Batch, given: int) -> tuple[Batch, Bool[Array, "b t"]]:
    """The rows with greedy tokens in place of all targets but the first `given`, and where those are.

    Each token is found by reading its whole row, in every family and under every mask alike; at the lengths and numbers
    of rows that this is for, that is cheap enough.
    """
    model = step.model(jax.lax.stop_gradient(step.params))
    asked = _first_run(batch)
    places = asked & (jnp.cumsum(asked, axis=1) > given)
    target, labels = batch.target, jnp.asarray(batch.labels)
    segment = jnp.asarray(target.slots.segment)
    read = jnp.pad(places[:, :-1] & (segment[:, 1:] == segment[:, :-1]), [(0, 0), (1, 0)])

    def write(place: Any, line: tuple[Array, Array]) -> tuple[Array, Array]:
        ids, labels = line
        read_so_far = dataclasses.replace(batch, target=dataclasses.replace(target, ids=ids))
        hidden = model.apply(read_so_far).hidden[:, place]
        likeliest = jnp.argmax(model.outputs.logits(hidden), axis=-1)
        labels = labels.at[:, place].set(jnp.where(places[:, place], likeliest, labels[:, place]))
        follows = jnp.where(read[:, place + 1], likeliest, ids[:, place + 1])
        return ids.at[:, place + 1].set(follows, mode="drop"), labels

    ids, labels = jax.lax.fori_loop(0, labels.shape[1], write, (jnp.asarray(target.ids), labels))
    return dataclasses.replace(batch, target=dataclasses.replace(target, ids=ids), labels=labels), places

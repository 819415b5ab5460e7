"""Beam search: the likeliest continuations, as far as so many beams can see.

Each row has `size` unfinished beams and the best `size` finished ones. A step takes the likeliest ways to go on, `size`
more than can end: those that end join the finished ones, the others that fit go on, so ends never use up the beams. A
row is done when no unfinished beam can still become better than its worst finished one.

In groups (diverse beam search, Vijayakumar et al. 2018) each group is such a search of its own, but a token costs it
something for every beam of an earlier group that takes the same token in the same step.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from research.batch import Tokens
from research.generation.contrast import Contrast
from research.generation.engine import lengths, reading
from research.models.families import Model

NEVER = -1e30  # of beams that are not there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beam:
    """How beams are searched.

    Attributes:
      size: beams of a row.
      tokens: most new tokens.
      end: ids that end a beam; the end token counts as part of it. Without any, all texts are of `tokens` tokens.
      length_penalty: alpha in ((5 + n) / 6)^alpha, by which the log-probability of n new tokens is divided (Wu et al.
        2016, equation 14); 0: longer text is always less likely.
      groups: into how many the beams are divided.
      diversity: nats that a token costs a group for each beam of an earlier group that takes it in the same step. They
        decide which beams go on; log-probabilities and scores are without them.
    """

    size: int = 4
    tokens: int = 64
    end: tuple[int, ...] = ()
    length_penalty: float = 0.0
    groups: int = 1
    diversity: float = 0.0

    def __post_init__(self):
        for name in ("size", "tokens", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"Beam.{name} = {getattr(self, name)}: expected at least 1")
        for name in ("length_penalty", "diversity"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"Beam.{name} = {getattr(self, name)}: expected at least 0")
        if self.size % self.groups:
            raise ValueError(f"Beam.groups = {self.groups}: expected a divisor of Beam.size = {self.size}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Found:
    """The best continuations of each row, best first.

    Attributes:
      ids: i32[b size tokens], the new tokens; `pad` behind the last.
      length: i32[b size], how many there are.
      log_probability: f32[b size], summed over them; very low where there are fewer continuations than beams.
      score: f32[b size], the log-probability divided by the length penalty.
    """

    ids: Any
    length: Any
    log_probability: Any
    score: Any


def search(
    model: Model | Contrast, given: Tokens, config: Beam, *, source: Tokens | None = None, pad: int = 0
) -> Found:
    """The likeliest continuations of the rows of `given`; see `engine.begin` for what it may be.

    A beam that reaches `tokens` without an end counts as finished. With as many beams as there are continuations the
    search is exhaustive.

    Raises:
      ValueError: as `engine.begin`.
    """
    rows, size, most, groups = len(given.ids), config.size, config.tokens, config.groups
    part = size // groups  # beams of a group; all arrays of beams are [b groups part ...]
    ways = part * (1 + max(1, len(config.end)))  # even if all ends are among them, a beam can go on for each
    options = reading(model, given, most, source=source)
    model = model.unstacked()
    logits, kept = model.prefill(given, at=lengths(given) - 1, **options)
    kept = kept.rows(jnp.repeat(jnp.arange(rows), size)).loose()
    vocab = logits.shape[-1]
    ends = np.isin(np.arange(vocab), config.end)

    def penalised(likely: Array, length: Any) -> Array:
        return likely / ((5 + length) / 6) ** config.length_penalty

    def better(pool: Found, new: Found) -> Found:
        """The best of both, [b part] again."""
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), pool, new)
        _, best = jax.lax.top_k(both.score, part)
        return jax.tree.map(lambda leaf: _taken(leaf, best), both)

    def goes_on(state: Any) -> Array:
        step, _, _, likely, _, pool = state
        # The log-probability only falls; the penalty of a longer text may raise the score.
        longest = most if config.length_penalty > 0 else step
        hope = penalised(likely.max(-1), longest)  # under diversity the first is not always the likeliest
        return (step < most) & jnp.any(hope > pool.score[..., -1])

    def grown(step: Any, scores: Array, ids: Array, pool: Found, taken: Array) -> Any:
        """One step of a group whose ways to go on have log-probabilities `scores` [b part v]: its new log-probabilities
        [b part], texts and finished ones, the beams it goes on from and their tokens.
        """
        costly = scores - config.diversity * taken[:, None]
        _, place = jax.lax.top_k(costly.reshape(rows, -1), min(ways, part * vocab))
        best = _taken(scores.reshape(rows, -1), place)
        beam, token = place // vocab, (place % vocab).astype(jnp.int32)
        texts = _taken(ids, beam).at[:, :, step].set(token)
        over = jnp.asarray(ends)[token]
        length = jnp.full(best.shape, step + 1)
        pool = better(pool, Found(texts, length, best, jnp.where(over, penalised(best, step + 1), NEVER)))
        # The first that do not end, in the order of what they cost; fewer than there should be: one that is never.
        order = jnp.argsort(over, axis=1, stable=True)[:, :part]
        likely = jnp.where(_taken(over, order), NEVER, _taken(best, order))
        return likely, *(_taken(leaf, order) for leaf in (texts, beam, token)), pool

    def add(state: Any) -> Any:
        step, logits, kept, likely, ids, pool = state
        scores = jax.nn.log_softmax(logits).reshape(rows, groups, part, vocab) + likely[..., None]
        taken = jnp.zeros((rows, vocab))
        found = []
        for group in range(groups):
            own = jax.tree.map(lambda leaf, group=group: leaf[:, group], (scores, ids, pool))
            found.append(grown(step, *own, taken))
            likely, _, _, token, _ = found[-1]
            taken = taken.at[np.arange(rows)[:, None], token].add(likely > NEVER / 2)
        likely, ids, beam, token, pool = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *found)
        first = part * jnp.arange(rows * groups).reshape(rows, groups, 1)
        kept = kept.bound().reordered((first + beam).reshape(-1))
        logits, kept = model.extend(kept, kept.next(token.reshape(-1, 1)))
        return step + 1, logits[:, 0], kept.loose(), likely, ids, pool

    empty = jnp.full((rows, groups, part, most), pad, jnp.int32)
    nothing = jnp.full((rows, groups, part), NEVER)
    pool = Found(empty, jnp.zeros(nothing.shape, jnp.int32), nothing, nothing)
    likely = nothing.at[..., 0].set(0.0)  # at first all beams of a group are the same one
    start = (jnp.int32(0), jnp.repeat(logits[:, 0], size, axis=0), kept, likely, empty, pool)
    step, _, _, likely, ids, pool = jax.lax.while_loop(goes_on, add, start)
    whole = jnp.where((likely > NEVER / 2) & (step == most), penalised(likely, step), NEVER)
    left = Found(ids, jnp.full(nothing.shape, step), likely, whole)
    best = jax.vmap(better, (1, 1), 1)(pool, left)
    best = jax.tree.map(lambda leaf: leaf.reshape(rows, size, *leaf.shape[3:]), best)
    order = jnp.argsort(-best.score, axis=1, stable=True)
    return jax.tree.map(lambda leaf: _taken(leaf, order), best)


def _taken(leaf: Array, index: Array) -> Array:
    """leaf [b n ...] at index [b m]."""
    return jax.vmap(lambda row, places: row[places])(leaf, index)

"""Beam search: the likeliest continuations, as far as so many beams can see.

Each row has `size` unfinished beams and the best `size` finished ones. A step takes the likeliest 2 `size` ways to go
on: those that end join the finished ones, the others that fit go on, so that ends never use up the beams. A row is done
when no unfinished beam can still become better than its worst finished one.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from research.batch import Tokens
from research.generation.engine import read
from research.models.families import Model

NEVER = -1e30  # of beams that are not there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beam:
    """How beams are searched.

    Attributes:
      size: beams of a row.
      tokens: most new tokens.
      end: ids that end a beam; the end token counts as part of it.
      length_penalty: alpha in ((5 + n) / 6)^alpha, by which the log-probability of n new tokens is divided (Wu et al.
        2016, equation 14); 0: longer text is always less likely.
    """

    size: int = 4
    tokens: int = 64
    end: tuple[int, ...]
    length_penalty: float = 0.0

    def __post_init__(self):
        for name in ("size", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"Beam.{name} = {getattr(self, name)}: expected at least 1")
        if not self.end:
            raise ValueError("Beam.end = (): expected at least one id, such as that of EOS")
        if self.length_penalty < 0:
            raise ValueError(f"Beam.length_penalty = {self.length_penalty}: expected at least 0")


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


def search(model: Model, given: Tokens, config: Beam, *, source: Tokens | None = None, pad: int = 0) -> Found:
    """The likeliest continuations of the rows of `given`; see `engine.begin` for what it may be.

    A beam that reaches `tokens` without an end counts as finished. With as many beams as there are continuations the
    search is exhaustive.

    Raises:
      ValueError: as `engine.begin`.
    """
    rows, size, most = len(given.ids), config.size, config.tokens
    model = model.unstacked()
    logits, kept, _ = read(model, given, most, source=source)
    kept = kept.rows(jnp.repeat(jnp.arange(rows), size))
    vocab = logits.shape[-1]
    ends = jnp.zeros(vocab, bool).at[jnp.asarray(config.end)].set(True)

    def penalised(likely: Array, length: Any) -> Array:
        return likely / ((5 + length) / 6) ** config.length_penalty

    def better(pool: Found, new: Found) -> Found:
        """The best of both, [b size] again."""
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), pool, new)
        _, best = jax.lax.top_k(both.score, size)
        return jax.tree.map(lambda leaf: _taken(leaf, best), both)

    def goes_on(state: Any) -> Array:
        step, _, _, likely, _, pool = state
        # The log-probability only falls; the penalty of a longer text may raise the score.
        longest = most if config.length_penalty > 0 else step
        hope = penalised(likely[:, 0], longest)
        return (step < most) & jnp.any(hope > pool.score[:, -1])

    def add(state: Any) -> Any:
        step, logits, kept, likely, ids, pool = state
        scores = jax.nn.log_softmax(logits).reshape(rows, size, vocab) + likely[:, :, None]
        best, place = jax.lax.top_k(scores.reshape(rows, -1), min(2 * size, size * vocab))
        beam, token = place // vocab, (place % vocab).astype(jnp.int32)
        texts = _taken(ids, beam).at[:, :, step].set(token)
        over = ends[token]
        length = jnp.full(best.shape, step + 1)
        finished = Found(texts, length, best, jnp.where(over, penalised(best, step + 1), NEVER))
        pool = better(pool, finished)
        likely, order = jax.lax.top_k(jnp.where(over, NEVER, best), size)
        beam, token, ids = (_taken(leaf, order) for leaf in (beam, token, texts))
        flat = (beam + size * jnp.arange(rows)[:, None]).reshape(-1)
        kept = kept.rows(flat)
        logits, kept = model.extend(kept, kept.next(token.reshape(-1, 1)))
        return step + 1, logits[:, 0], kept, likely, ids, pool

    empty = jnp.full((rows, size, most), pad, jnp.int32)
    nothing = jnp.full((rows, size), NEVER)
    pool = Found(empty, jnp.zeros((rows, size), jnp.int32), nothing, nothing)
    likely = nothing.at[:, 0].set(0.0)  # at first all beams are the same one
    start = (jnp.int32(0), jnp.repeat(logits, size, axis=0), kept, likely, empty, pool)
    step, _, _, likely, ids, pool = jax.lax.while_loop(goes_on, add, start)
    whole = jnp.where(likely > NEVER / 2, penalised(likely, step), NEVER)
    left = Found(ids, jnp.full((rows, size), step), likely, jnp.where(step == most, whole, NEVER))
    return better(pool, left)


def _taken(leaf: Array, index: Array) -> Array:
    """leaf [b n ...] at index [b m]."""
    return jax.vmap(lambda row, places: row[places])(leaf, index)

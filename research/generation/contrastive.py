"""Contrastive search: likely tokens whose hidden state is unlike those before (Su et al. 2022, section 4.2)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from research.batch import Tokens
from research.generation.contrast import Contrast
from research.generation.engine import Generated, lengths, reading
from research.generation.processors import History
from research.models.families import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveSearch:
    """How rows are continued.

    Attributes:
      tokens: most new tokens of a row.
      end: ids of which any ends its row; it is kept as the row's last token.
      candidates: the likeliest tokens, of which one is taken; the paper's k.
      penalty: alpha: a candidate's score is (1 - alpha) times its probability less alpha times the greatest cosine of
        its last hidden state and any before. 0 is greedy search.
    """

    tokens: int = 256
    end: tuple[int, ...] = ()
    candidates: int = 4
    penalty: float = 0.6

    def __post_init__(self):
        for name in ("tokens", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"ContrastiveSearch.{name} = {getattr(self, name)}: expected at least 1")
        if not 0 <= self.penalty <= 1:
            raise ValueError(f"ContrastiveSearch.penalty = {self.penalty}: expected at least 0 and at most 1")


def search(
    model: Model | Contrast, given: Tokens, config: ContrastiveSearch, *, source: Tokens | None = None
) -> Generated:
    """The rows of `given` continued until they end; see `engine.begin` for what it may be.

    Every step reads all candidates and keeps one, so it costs as much as a beam search with as many beams. What the
    source of an encoder-decoder says is no repetition: only hidden states of the target count.

    Raises:
      ValueError: a pair of models, which have no common hidden states, and as `engine.begin`.
    """
    if isinstance(model, Contrast):
        raise ValueError(
            "ContrastiveSearch compares the hidden states of one model; take the expert without amateur"
        )
    rows, most = len(given.ids), config.tokens
    options = reading(model, given, most, source=source)
    model, sizes, row = model.unstacked(), lengths(given), np.arange(rows)
    hidden, kept = model.prefilled(given, **options)
    last = jnp.take_along_axis(hidden, (sizes - 1)[:, None, None], axis=1)[:, 0]
    some = min(config.candidates, model.logits(last).shape[-1])
    kept = kept.rows(jnp.repeat(jnp.arange(rows), some)).loose()

    def add(state: tuple[Generated, Array]) -> tuple[Generated, Array]:
        now, seen = state
        history, ended = now.history, now.ended
        likely = jax.nn.log_softmax(now.logits)
        best, tokens = jax.lax.top_k(likely, some)
        kept = now.cache.bound()
        hidden, kept = model.extended(kept, kept.next(tokens.reshape(-1, 1)))
        hidden = hidden.reshape(rows, some, -1)
        direction = _direction(hidden)
        alike = jnp.einsum("bkm,bnm->bkn", direction, seen)
        alike = jnp.where(history.present[:, None], alike, -jnp.inf).max(-1)
        choice = jnp.argmax((1 - config.penalty) * jnp.exp(best) - config.penalty * alike, axis=-1)
        chosen = tokens[row, choice].astype(jnp.int32)
        place = jnp.where(ended, history.ids.shape[1], history.length)  # past the end nothing is written
        ids = history.ids.at[row, place].set(chosen, mode="drop")
        score = jnp.where(ended, 0.0, best[row, choice])
        new = Generated(
            history=History(ids, history.length + ~ended, history.prompt),
            log_probability=now.log_probability.at[:, now.step].set(score),
            ended=ended | jnp.isin(chosen, np.asarray(config.end, np.int32)),
            step=now.step + 1,
            logits=model.logits(hidden[row, choice]),
            cache=kept.reordered(jnp.repeat(some * row + choice, some)).loose(),
            keys=now.keys,
        )
        return new, seen.at[row, place].set(direction[row, choice], mode="drop")

    begun = Generated(
        history=History(jnp.pad(jnp.asarray(given.ids), [(0, 0), (0, most)]), sizes, sizes),
        log_probability=jnp.zeros((rows, most), jnp.float32),
        ended=jnp.zeros(rows, bool),
        step=jnp.int32(0),
        logits=model.logits(last),
        cache=kept,
        keys=None,
    )
    seen = jnp.pad(_direction(hidden), [(0, 0), (0, most), (0, 0)])
    unfinished = lambda state: (state[0].step < most) & ~jnp.all(state[0].ended)  # noqa: E731
    return jax.lax.while_loop(unfinished, add, (begun, seen))[0]


def _direction(hidden: Array) -> Array:
    """Vectors of length 1, float32."""
    hidden = hidden.astype(jnp.float32)
    return hidden / jnp.maximum(jnp.linalg.norm(hidden, axis=-1, keepdims=True), 1e-9)

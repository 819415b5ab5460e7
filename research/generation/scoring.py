"""Scores: how likely a model finds given continuations."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from research.batch import Batch, Tokens
from research.generation.engine import prompt, rounded
from research.models.families import Model


class Scores(NamedTuple):
    """Of each continuation, [n] each.

    Attributes:
      log_probability: in nats, summed over its tokens.
      tokens: how many it has.
      greedy: whether every token of it was the likeliest.
    """

    log_probability: np.ndarray
    tokens: np.ndarray
    greedy: np.ndarray


def score(
    model: Model,
    pairs: Sequence[tuple[Any, Any]],
    *,
    bos: int,
    pad: int,
    begins: bool = True,
    rows: int = 32,
) -> Scores:
    """How likely the model finds each continuation of its prompt, in batches of similar length.

    Args:
      model: a decoder reads BOS, prompt and continuation; an encoder-decoder the prompt as its source.
      pairs: ids of a prompt and of its continuation; a decoder's prompt may be empty.
      bos, pad: ids.
      begins: whether a decoder reads BOS before a prompt; instead of an empty one it always does.
      rows: of a batch.

    Raises:
      ValueError: a continuation is empty, or a source.
    """
    two_sided = model.reads_source
    sizes = [(len(given), len(text)) for given, text in pairs]
    for index, (given, new) in enumerate(sizes):
        if not new or (two_sided and not given):
            what = "continuation" if not new else "source"
            raise ValueError(f"the {what} of pair {index} is empty; expected at least one token")
    order = sorted(range(len(pairs)), key=lambda index: sum(sizes[index]))
    found = Scores(np.zeros(len(pairs)), np.asarray([new for _, new in sizes]), np.zeros(len(pairs), bool))
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        part = [pairs[index] for index in chosen]
        part += [part[0]] * (rows - len(part))  # one shape for the last batch too
        read = [
            np.asarray([bos])
            if two_sided
            else np.concatenate([[bos] if begins or not len(given) else [], given])
            for given, _ in part
        ]
        lines = [np.concatenate([start, text]) for start, (_, text) in zip(read, part, strict=True)]
        sources = _line([given for given, _ in part], pad) if two_sided else None
        blind = [len(start) - 1 for start in read]
        likely, greedy = jax.device_get(_scored(model, _batch(lines, blind, sources, pad)))
        found.log_probability[chosen] = likely[: len(chosen)]
        found.greedy[chosen] = greedy[: len(chosen)]
    return found


@jax.jit
def _scored(model: Model, batch: Batch) -> tuple[Float[Array, " b"], Bool[Array, " b"]]:
    def row(line: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        states, labels, weights = line
        scores = jax.nn.log_softmax(model.logits(states))
        own = jnp.take_along_axis(scores, labels[:, None], axis=-1)[:, 0]
        return jnp.sum(own * weights), jnp.all((scores.argmax(-1) == labels) | (weights == 0))

    hidden = model.apply(batch).hidden
    # One row after another: logits [t v] instead of [b t v].
    return jax.lax.map(row, (hidden, jnp.asarray(batch.labels), jnp.asarray(batch.weights)))


def _batch(lines: list[Any], blind: list[int], source: Tokens | None, pad: int) -> Batch:
    """Lines whose tokens after the first are predicted, but for `blind` of them."""
    read = _line([line[:-1] for line in lines], pad)
    labels = np.full(read.ids.shape, pad, np.int32)
    weights = np.zeros(read.ids.shape, np.float32)
    for row, (line, given) in enumerate(zip(lines, blind, strict=True)):
        labels[row, : len(line) - 1] = line[1:]
        weights[row, given : len(line) - 1] = 1
    given = np.asarray(blind)[:, None]
    prefix = (read.slots.position <= given) & (given > 0) & (read.slots.segment > 0)
    return Batch(Tokens(read.ids, dataclasses.replace(read.slots, prefix=prefix)), labels, weights, source)


def _line(lines: list[Any], pad: int) -> Tokens:
    return prompt(lines, pad=pad, length=rounded(lines), given=False)

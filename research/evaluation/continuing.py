"""How a trained model of any family goes on from prompts."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int32

from research.evaluation.trained import Trained
from research.generation import contrastive, search
from research.generation.contrastive import ContrastiveSearch
from research.generation.engine import Generation, generate, prompt
from research.generation.search import Beam
from research.models.families import EncoderDecoder, Model

How = Generation | Beam | ContrastiveSearch


class Line(NamedTuple):
    """New tokens, the one that ended them included, and their log-probability before all processors."""

    ids: Int32[np.ndarray, " _"]
    log_probability: float


def continued(
    trained: Trained,
    prompts: Sequence[Int32[np.ndarray, " _"]],
    how: How,
    *,
    longest: int,
    rows: int,
    draw: int = 0,
) -> list[Line]:
    """What comes after each prompt; of a beam search the best.

    A decoder reads BOS and the prompt, an encoder-decoder the prompt as its source and BOS as its target. A line
    depends on the seed of the run, its prompt, its number and `draw` alone.

    Args:
      longest: tokens of a prompt, at most.
      rows: at a time; all batches have one shape, so that one program is compiled.
      draw: others give other lines, where lines are drawn.
    """
    model, tokenizer = trained.trainer.model(trained.params), trained.text.tokenizer
    line = functools.partial(prompt, pad=tokenizer.pad, vocab=tokenizer.vocab_size)
    bos, found = np.array([tokenizer.bos], np.int32), []
    key = jax.random.key(trained.seed)
    key = jax.random.fold_in(key, draw) if draw else key
    for first in range(0, len(prompts), rows):
        given = list(prompts[first : first + rows])
        given += [given[-1]] * (rows - len(given))
        if model.reads_source:
            source = line(given, length=longest, given=False)
            begun = line([bos] * rows, given=False)
        else:
            source, begun = None, line([np.concatenate([bos, each]) for each in given], length=1 + longest)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + np.arange(rows))
        found += _lines(model, begun, keys, how, source)
    return found[: len(prompts)]


def beyond(model: Model, given: int, written: int) -> tuple[int, str, int] | None:
    """Where a model has learned positions that end before what it reads, how many tokens those are, what the positions
    are called, and where they end; `given`: tokens of a prompt, `written`: those after it.
    """
    stacks = [(model.decoding, 1 + written + (0 if model.reads_source else given))]
    if isinstance(model, EncoderDecoder):
        stacks.append((model.config.encoder, given))
    for stack, read in stacks:
        for scheme in (spec.positions or stack.positions for spec in stack.pattern):
            if scheme.limit is not None and scheme.limit < read:
                return read, type(scheme).__name__, scheme.limit
    return None


def _lines(model: Any, begun: Any, keys: Any, how: How, source: Any) -> list[Line]:
    if isinstance(how, Beam):
        best = jax.device_get(_beams(model, begun, how, source=source))
        each = zip(best.ids[:, 0], best.length[:, 0], best.log_probability[:, 0], strict=True)
        return [Line(ids[:length], float(likely)) for ids, length, likely in each]
    if isinstance(how, ContrastiveSearch):
        done = _contrastive(model, begun, how, source=source)
    else:
        done = _generate(model, begun, keys, how, source=source)
    history, scores = jax.device_get((done.history, done.log_probability))
    each = zip(history.ids, history.prompt, history.length, scores.sum(1), strict=True)
    return [Line(ids[start:stop], float(likely)) for ids, start, stop, likely in each]


_generate = jax.jit(generate, static_argnums=3)
_beams = jax.jit(search.search, static_argnums=2)
_contrastive = jax.jit(contrastive.search, static_argnums=2)

"""How a trained model of any family goes on from prompts."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int32

from research.evaluation.trained import Trained
from research.generation.engine import Generation, generate, prompt


def continued(
    trained: Trained, prompts: Sequence[Int32[np.ndarray, " _"]], how: Generation, *, longest: int, rows: int
) -> list[Int32[np.ndarray, " _"]]:
    """The new tokens after each prompt, the one that ended it included.

    A decoder reads BOS and the prompt, an encoder-decoder the prompt as its source and BOS as its target. A line
    depends on the seed of the run, its prompt and its number alone.

    Args:
      longest: tokens of a prompt, at most.
      rows: at a time; all batches have one shape, so that one program is compiled.
    """
    model, tokenizer = trained.trainer.model(trained.params), trained.text.tokenizer
    line = functools.partial(prompt, pad=tokenizer.pad, vocab=tokenizer.vocab_size)
    bos, found = np.array([tokenizer.bos], np.int32), []
    for first in range(0, len(prompts), rows):
        given = list(prompts[first : first + rows])
        given += [given[-1]] * (rows - len(given))
        if model.reads_source:
            source = line(given, length=longest, given=False)
            begun = line([bos] * rows, given=False)
        else:
            source, begun = None, line([np.concatenate([bos, each]) for each in given], length=1 + longest)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(trained.seed), first + np.arange(rows))
        history = jax.device_get(_generate(model, begun, keys, how, source=source).history)
        ends = zip(history.ids, history.prompt, history.length, strict=True)
        found += [ids[start:stop] for ids, start, stop in ends]
    return found[: len(prompts)]


_generate = jax.jit(generate, static_argnums=3)

"""The loss: a sum over weighted tokens, to be divided once by the weight of the whole optimiser step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

LOGITS = 2**22  # how many logits are in memory at a time; the backward pass computes them again


def token_loss(
    logits: Callable[[Array], Array],
    hidden: Float[Array, "*b t m"],
    labels: Int[Array | np.ndarray, "*b t"],
    weights: Float[Array | np.ndarray, "*b t"],
    *,
    vocab: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of the cross-entropies in nats, and the sum of the weights, both float32.

    The vocabulary projection `logits` ([n m] -> [n v]) runs over chunks of at most `LOGITS / vocab` tokens, so
    the array [b t v] never exists.
    """
    hidden, labels, weights = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1), weights.reshape(-1)
    tokens = labels.shape[0]
    chunks = -(-tokens * vocab // LOGITS)
    size = -(-tokens // chunks)
    missing = chunks * size - tokens

    def split(line: Array | np.ndarray) -> Array:
        padded = jnp.pad(line, [(0, missing)] + [(0, 0)] * (line.ndim - 1))
        return padded.reshape(chunks, size, *line.shape[1:])

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(total: Array, chunk: tuple[Array, Array, Array]) -> tuple[Array, None]:
        states, targets, shares = chunk
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(states), targets)
        return total + jnp.sum(losses * shares), None

    total, _ = jax.lax.scan(one, jnp.float32(0), (split(hidden), split(labels), split(weights)))
    return total, jnp.sum(weights)

"""Low-rank adapters, as an optimizer of the parameters that they are merged into."""

import dataclasses
import re
import zlib
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from research.models.paths import named, path_of
from research.training.optimizers import STACKED, Optimizer, above

__all__ = ["LoRA"]

Factors = dict[str, tuple[Array, Array]]


class Adapted(NamedTuple):
    """The factors (A, B) of each adapted matrix by its path, and Adam's state of them."""

    factors: Factors
    inner: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA(Optimizer):
    """Adam on the factors of a low-rank change of matrices, W = W_0 + alpha / rank A B (Hu et al. 2021, section 4.1);
    all other parameters stay as they are.

    The factors are the optimizer's state and W is what the model has, so that a model is merged at every step, whatever
    reads it. It is the same training: their gradients are dA = alpha / rank dW B^T and dB = alpha / rank A^T dW. What
    is not saved here is memory for dW. `clip` is of the factors' gradients.

    A is drawn with variance 1 / m for [m n] matrices; B is zero.

    Attributes:
      rank: of the change.
      alpha: its scale in units of the rank.
      adapted: the parameters that have factors, matrices of each layer by their last two dimensions.
      b1, b2, eps: of Adam.
      weight_decay: of the factors.
    """

    tunable: ClassVar = (*Optimizer.tunable, "alpha", "b1", "b2", "eps", "weight_decay")
    patterns: ClassVar = (*Optimizer.patterns, "adapted")

    rank: int = 8
    alpha: float = 16.0
    adapted: str = r"(^|/)blocks/\d+/.*kernel$"
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0

    def trains(self, path: str) -> bool:
        """Whether the parameter at that path is adapted."""
        return super().trains(path) and re.search(self.adapted, path) is not None

    def build(self, steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `steps` steps.

        Its `init` raises ValueError where a pattern that is not the default matches no parameter, or `adapted` matches
        a vector.
        """
        inner = self._inner(steps)

        def init(params: Any) -> Adapted:
            return self._begun(inner, params, jax.random.key(0))

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Adapted]:
            scale, gradients = self.alpha / self.rank, named(above(updates, self.frozen_layers))
            pulls = {
                path: (scale * gradients[path] @ b.mT, scale * a.mT @ gradients[path])
                for path, (a, b) in state.factors.items()
            }
            moves, moments = inner.update(pulls, state.inner, state.factors)
            factors: Any = optax.apply_updates(state.factors, moves)

            def moved(path: Any, gradient: Array) -> Array:
                if (name := path_of(path)) not in factors:
                    return jnp.zeros_like(gradient)
                (a, b), (new_a, new_b) = state.factors[name], factors[name]
                return scale * (new_a @ new_b - a @ b)

            return jax.tree_util.tree_map_with_path(moved, updates), Adapted(factors, moments)

        return optax.GradientTransformation(init, update)

    def start(self, params: Any, steps: int, key: Array) -> Adapted:
        """The state before the first step, whose factors A are drawn from the key."""
        return self._begun(self._inner(steps), params, key)

    def _inner(self, steps: int) -> optax.GradientTransformation:
        """What is done to the factors."""
        clip = [] if self.clip is None else [optax.clip_by_global_norm(self.clip)]
        rate = self.schedule.build(self.learning_rate, steps)
        adam = optax.adamw(rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay)
        return optax.chain(*clip, adam)

    def _begun(self, inner: optax.GradientTransformation, params: Any, key: Array) -> Adapted:
        found = named(params)
        self._check_paths(found)
        factors = {path: self._factors(path, leaf, key) for path, leaf in found.items() if self.trains(path)}
        return Adapted(factors, inner.init(factors))

    def _factors(
        self, path: str, leaf: Array, key: Array
    ) -> tuple[Float[Array, "*l m r"], Float[Array, "*l r n"]]:
        """The factors of matrices [*l m n] that change nothing yet."""
        if leaf.ndim < 2 + bool(re.search(STACKED, path)):
            raise ValueError(f"LoRA.adapted = {self.adapted!r}: expected matrices, but {path!r} is a vector")
        *layers, rows, columns = leaf.shape
        key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        drawn = jax.random.normal(key, (*layers, rows, self.rank), jnp.float32)
        return drawn / rows**0.5, jnp.zeros((*layers, self.rank, columns), jnp.float32)

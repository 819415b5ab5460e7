"""One optimiser step and one evaluation, jitted, over a train state that is donated."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from research.batch import Batch
from research.models.families import FamilyConfig, Model
from research.models.stack import Stack
from research.training.losses import token_loss

Step = Callable[["TrainState", Batch], tuple["TrainState", dict[str, Array]]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run carries from step to step (fields `Any`: a pytree is also built of tracers and shapes).

    Attributes:
      step: i32[], steps done.
      params: nested dict of arrays.
      optimizer: the optax state.
      key: PRNG key of the run; step t's dropout key is folded from it.
    """

    step: Any
    params: Any
    optimizer: Any
    key: Any


class Trainer:
    """The pure functions of one model and one optimizer; replicas that differ in their seed share one.

    Raises:
      ValueError: a stack has a memory, which a step would leave empty.
    """

    def __init__(self, config: FamilyConfig, *, vocab: int, optimizer: optax.GradientTransformation):
        self._build = functools.partial(config.build, vocab=vocab)
        self._vocab, self._optimizer = vocab, optimizer
        model = nnx.eval_shape(lambda: self._build(key=jax.random.key(0)))
        self._graph = nnx.graphdef(model)
        for _, part in nnx.iter_modules(model):
            if isinstance(part, Stack) and part.config.memory is not None:
                raise ValueError(
                    f"StackConfig.memory = {part.config.memory}: training hands no memory from step to step yet; "
                    "set it to None, or call model.apply(batch, carry=...) in a loop of your own"
                )

    @functools.partial(jax.jit, static_argnums=0)
    def initial(self, key: Array) -> TrainState:
        """The state before the first step; parameters depend on the key and their paths alone."""
        params = nnx.to_pure_dict(nnx.state(self._build(key=key)))
        return TrainState(jnp.int32(0), params, self._optimizer.init(params), jax.random.fold_in(key, 1))

    def model(self, params: Any) -> Model:
        """The model with those parameters."""
        return nnx.merge(self._graph, params)

    def loss(
        self, params: Any, batch: Batch, key: Array | None = None
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Summed loss in nats and total weight of a batch; `key` switches dropout on."""
        model = self.model(params)
        hidden = model.apply(batch, key=key).hidden
        return token_loss(model.logits, hidden, batch.labels, batch.weights, vocab=self._vocab)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """One step down the gradient of the mean loss; the old state's buffers are reused.

        Returns the new state and scalars on the device: loss (nats per target), grad_norm, and weight.
        """
        key = jax.random.fold_in(state.key, state.step)

        def mean(params: Any) -> tuple[Array, Array]:
            total, weight = self.loss(params, batch, key)
            return total / jnp.where(weight > 0, weight, 1), weight

        (loss, weight), gradient = jax.value_and_grad(mean, has_aux=True)(state.params)
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradient), "weight": weight}
        return TrainState(state.step + 1, params, optimizer, state.key), metrics

    @functools.partial(jax.jit, static_argnums=0)
    def _held_out(self, params: Any, batch: Batch) -> tuple[Array, Array]:
        return self.loss(params, batch)

    @functools.partial(jax.jit, static_argnums=0)
    def row_losses(self, params: Any, batch: Batch) -> Float[Array, " b"]:
        """Mean loss in nats per target of each row, without dropout; 0 for a row without targets."""
        model = self.model(params)
        hidden = model.apply(batch).hidden

        def mean(states: Array, labels: Array, weights: Array) -> Array:
            total, weight = token_loss(model.logits, states, labels, weights, vocab=self._vocab)
            return total / jnp.maximum(weight, 1e-9)

        return jax.lax.map(
            lambda row: mean(*row), (hidden, jnp.asarray(batch.labels), jnp.asarray(batch.weights))
        )

    def evaluate(self, params: Any, batches: Iterable[Batch]) -> float:
        """Mean loss in nats per target over all batches, without dropout.

        Raises:
          ValueError: no batch has a target.
        """
        sums = [self._held_out(params, batch) for batch in batches]
        weight = sum(float(weight) for _, weight in sums)
        if not weight:
            raise ValueError("evaluate: no batch has a target, so there is no loss to report")
        return sum(float(total) for total, _ in sums) / weight

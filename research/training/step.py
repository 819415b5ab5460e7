"""One optimiser step and one evaluation, as pure functions of a train state."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from research.attention.masks import Mask
from research.batch import Batch
from research.data.pipeline import Dataset
from research.models.families import (
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    FamilyConfig,
    Model,
    Output,
)
from research.models.paths import named, path_of
from research.models.stack import Stack
from research.settings import LATER
from research.training import hyperparameters, repetition
from research.training.adapters import LoRA
from research.training.losses import token_loss
from research.training.optimizers import Optimizer, above
from research.training.precision import LossScale
from research.training.remedies import EWC, SI, Base, Decay, Inherited, LwF, Remedy, Step, log_probabilities

Metrics = dict[str, Array]
Losses = tuple[Array, Array, Array]  # mean loss of the targets, compression loss, penalty of the remedies

# Batches of an evaluation that wait for the devices: each takes memory, and several processes of XLA:CPU stand still
# for ever where one of them has 32 programs with collectives under way.
AHEAD = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a step makes its gradient, and what it keeps beside the parameters.

    Attributes:
      accumulate: microbatches of a step, one after another; the gradient is that of the whole batch.
      z_loss: weight of log(Z)^2, or None; see `token_loss`.
      average: decay of an exponential moving average of the parameters, which is then what is evaluated, or None.
      base_share: share of the parameters that the run began with in those that are evaluated, the rest of which are
        what training comes to (WiSE-FT, Wortsman et al. 2022, section 3); None: there is none.
      loss_scale: for float16, or None.
      compression: weight of what a memory's compression learns by reconstruction.
      remedies: against forgetting what the run starts from, see `remedies`, and against repetition, see `repetition`.
    """

    tunable: ClassVar[tuple[str, ...]] = ("z_loss", "average", "base_share", "compression")

    accumulate: int = 1
    z_loss: float | None = None
    average: float | None = None
    loss_scale: LossScale | None = None
    compression: float = 1.0
    base_share: float | None = dataclasses.field(default=None, metadata=LATER)
    remedies: tuple[Remedy, ...] = dataclasses.field(default=(), metadata=LATER)

    def __post_init__(self):
        if self.accumulate < 1:
            raise ValueError(f"Recipe.accumulate = {self.accumulate}: expected at least 1")
        if self.average is not None and not 0 <= self.average < 1:
            raise ValueError(f"Recipe.average = {self.average}: expected a decay, 0 <= decay < 1, or None")
        if self.base_share is not None and not 0 <= self.base_share <= 1:
            raise ValueError(f"Recipe.base_share = {self.base_share}: expected a share, from 0 to 1, or None")
        if self.base_share is not None and self.average is not None:
            raise ValueError(
                f"Recipe.base_share = {self.base_share} and Recipe.average = {self.average}: only one can be what is "
                "evaluated; set the other to None"
            )
        if self.z_loss is not None and self.z_loss < 0:
            raise ValueError(f"Recipe.z_loss = {self.z_loss}: expected at least 0, or None")

    @property
    def averages(self) -> bool:
        """Whether other parameters are evaluated than those that are trained."""
        return self.average is not None or self.base_share is not None

    def rehearsed(self, examples: int) -> "Recipe":
        """The same with remedies that learn from at most so many examples."""
        return dataclasses.replace(self, remedies=tuple(each.rehearsed(examples) for each in self.remedies))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run carries from step to step (fields `Any`: a pytree is also built of tracers and shapes).

    Attributes:
      step: i32[], steps done.
      params: nested dict of float32 arrays.
      optimizer: the optax state.
      key: PRNG key of the run; step t's dropout keys are folded from it.
      numbers: the hyperparameters that are data, f32[] each, by name.
      carry: the memory that the last batch of a stream left, or None.
      average: the averaged parameters, or None.
      scale: state of the loss scale, or None.
      kept: what each of the recipe's remedies keeps of the parameters that the run began with.
    """

    step: Any
    params: Any
    optimizer: Any
    key: Any
    numbers: Any
    carry: Any = None
    average: Any = None
    scale: Any = None
    kept: Any = ()

    @property
    def evaluated(self) -> Any:
        """The parameters that count: the average where there is one."""
        return self.params if self.average is None else self.average


class Trainer:
    """The pure functions of one model and one way to train it; runs that differ in seed and numbers share one.

    Args:
      config: of the model.
      vocab: tokens of the vocabulary.
      optimizer, recipe: their tunable numbers are the default of `initial`, and otherwise not read.
      steps: of a whole run, for the schedule.

    Raises:
      ValueError: the encoder of an encoder-decoder has a memory, or float16 has no loss scale.
    """

    def __init__(
        self,
        config: FamilyConfig,
        *,
        vocab: int,
        optimizer: Optimizer,
        steps: int,
        recipe: Recipe = Recipe(),  # noqa: B008
    ):
        self.config, self._build = config, functools.partial(config.build, vocab=vocab)
        self._vocab, self._optimizer, self._steps, self.recipe = vocab, optimizer, steps, recipe
        model = nnx.eval_shape(lambda: self._build(key=jax.random.key(0)))
        self._graph = nnx.graphdef(model)
        stacks = [part for _, part in nnx.iter_modules(model) if isinstance(part, Stack)]
        if isinstance(config, EncoderDecoderConfig) and config.encoder.memory is not None and not config.tied:
            raise ValueError(
                f"StackConfig.memory = {config.encoder.memory} in an encoder, which reads its source at once; bind it "
                "in the decoder's scope only"
            )
        if any(stack.config.dtype == "float16" for stack in stacks) and recipe.loss_scale is None:
            raise ValueError(
                "StackConfig.dtype = 'float16' loses small gradients; set Recipe.loss_scale = @LossScale(), or "
                "dtype = 'bfloat16'"
            )
        self._remembering = next((s for s in stacks if s.config.memory is not None), None)
        _check_remedies(config, recipe, optimizer, remembering=self._remembering is not None)

    def under(self, mask: Mask) -> "Trainer":
        """The functions of the same model under another mask, which takes the same parameters.

        Raises:
          ValueError: the model is no single stack, or blocks of it have masks of their own.
        """
        if not isinstance(self.config, DecoderConfig) or any(
            block.mask is not None for block in self.config.stack.pattern
        ):
            raise ValueError(
                f"{type(self.config).__name__} under another mask, {mask}: expected a single stack whose blocks "
                "all see what DecoderConfig.mask shows"
            )
        return self.of(dataclasses.replace(self.config, mask=mask))

    def of(self, config: FamilyConfig) -> "Trainer":
        """The functions of another model that takes the same parameters."""
        return Trainer(
            config, vocab=self._vocab, optimizer=self._optimizer, steps=self._steps, recipe=self.recipe
        )

    def trained_by(self, optimizer: Optimizer, steps: int) -> "Trainer":
        """The functions of the same model, trained in so many steps by another optimizer and a plain recipe, but for
        the loss scale, which the model's precision asks for.
        """
        recipe = Recipe(loss_scale=self.recipe.loss_scale)
        return Trainer(self.config, vocab=self._vocab, optimizer=optimizer, steps=steps, recipe=recipe)

    @property
    def numbers(self) -> dict[str, float]:
        """The tunable numbers of optimizer and recipe."""
        return hyperparameters.numbers(self._optimizer) | hyperparameters.numbers(self.recipe)

    def initial(
        self,
        key: Array,
        numbers: dict[str, Any] | None = None,
        *,
        rows: int = 0,
        params: dict[str, Any] | None = None,
    ) -> TrainState:
        """The state before the first step; parameters that are drawn depend on the key and their paths alone.

        Args:
          key: of the run.
          numbers: the hyperparameters that are data; None: the optimizer's and the recipe's own.
          rows: of a batch, for the memory of a stream.
          params: to start from, as the model has them; those that are missing are drawn. None: all are.

        Raises:
          ValueError: there are some that the model does not have.
        """
        numbers = {name: jnp.float32(value) for name, value in (numbers or self.numbers).items()}
        return self._initial(key, numbers, rows, params)

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def _initial(
        self, key: Array, numbers: dict[str, Array], rows: int, params: dict[str, Any] | None
    ) -> TrainState:
        given, drawn = named(params), nnx.to_pure_dict(nnx.state(self._build(key=key)))
        if other := sorted(given.keys() - named(drawn).keys()):
            raise ValueError(f"params has {', '.join(other)}: expected only what the model has")
        # What is given is not drawn: the compiler leaves out what nothing uses.
        params = jax.tree_util.tree_map_with_path(lambda path, leaf: given.get(path_of(path), leaf), drawn)
        optimizer, recipe = self._filled(numbers)
        return TrainState(
            step=jnp.int32(0),
            params=params,
            optimizer=optimizer.start(params, self._steps, jax.random.fold_in(key, 2)),
            key=jax.random.fold_in(key, 1),
            numbers=numbers,
            carry=self.memory(rows),
            average=jax.tree.map(jnp.copy, params) if recipe.averages else None,
            scale=None if recipe.loss_scale is None else recipe.loss_scale.start(),
            kept=tuple(remedy.blank(params) for remedy in recipe.remedies),
        )

    def prepared(
        self, state: TrainState, text: Dataset, seed: int, inherited: Inherited | None = None
    ) -> TrainState:
        """The state before the first step, with what the remedies keep of its parameters.

        Args:
          state: as `initial` makes it.
          text: that the run is tuned on.
          seed: of the run.
          inherited: see `remedies.Base`.

        Raises:
          ValueError: a remedy has nothing to learn from.
        """
        _, recipe = self._filled(state.numbers)
        base = Base(state.params, self.log_likelihood, self.predict, self.model, text, seed, inherited)
        return dataclasses.replace(state, kept=tuple(remedy.prepare(base) for remedy in recipe.remedies))

    def log_likelihood(self, params: Any, row: Batch) -> Float[Array, ""]:
        """Of the labels of one row, without its axis of rows, in nats."""
        return -self.loss(params, jax.tree.map(lambda leaf: leaf[None], row))[0]

    @functools.partial(jax.jit, static_argnums=0)
    def predict(self, params: Any, batch: Batch) -> Float[Array, "b t v"]:
        """Log-probabilities of every token at every place, which is large."""
        model = self.model(params)
        return log_probabilities(model)(model.apply(batch).hidden)

    def memory(self, rows: int) -> Any:
        """The empty memory of so many rows, or None where the model has none."""
        if self._remembering is None:
            return None
        config = self._remembering.config
        assert config.memory is not None
        return config.memory.empty(rows, config.width, self._remembering.counts(), config.compute_dtype)

    def model(self, params: Any) -> Model:
        """The model with those parameters."""
        return nnx.merge(self._graph, params)

    def update(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step down the gradient of the mean loss, not compiled.

        Returns the new state and scalars: loss (nats per target), grad_norm, finite (whether the run may go on: a
        gradient that overflows is left out under a loss scale), weight (of the targets), learning_rate and, where they
        exist, compression_loss, penalty (of the remedies) and loss_scale.
        """
        optimizer, recipe = self._filled(state.numbers)
        params, scale = state.params, 1.0 if state.scale is None else state.scale.value
        ((loss, aux, penalty), carry), gradient = self._gradient(state, batch, recipe, scale)
        gradient = jax.tree.map(lambda leaf: leaf / scale, gradient) if state.scale is not None else gradient
        gradient = above(gradient, optimizer.frozen_layers)
        norm = optax.tree.norm(gradient)
        updates, moments = optimizer.build(self._steps).update(gradient, state.optimizer, params)
        rate = jnp.asarray(optimizer.schedule.build(optimizer.learning_rate, self._steps)(state.step))
        for remedy, kept in zip(recipe.remedies, state.kept, strict=True):
            updates = remedy.moved(updates, kept, params, rate)
        new = dataclasses.replace(
            state,
            step=state.step + 1,
            params=optax.apply_updates(params, updates),
            optimizer=moments,
            carry=carry,
        )
        observed = zip(recipe.remedies, state.kept, strict=True)
        new = dataclasses.replace(
            new, kept=tuple(each.observed(kept, gradient, params, new.params) for each, kept in observed)
        )
        metrics: Metrics = {
            "loss": loss,
            "grad_norm": norm,
            "finite": jnp.isfinite(loss + penalty) & (jnp.isfinite(norm) | (state.scale is not None)),
            "weight": jnp.sum(batch.weights, dtype=jnp.float32),
            "learning_rate": rate,
        }
        if self._remembering is not None:
            metrics["compression_loss"] = aux
        if recipe.remedies:
            metrics["penalty"] = penalty
        if recipe.average is not None:
            # The first steps are forgotten faster, or the average would remember the initial values.
            decay = jnp.minimum(recipe.average, (1 + state.step) / (10 + state.step))
            new = dataclasses.replace(
                new,
                average=optax.tree.add_scale(new.params, decay, optax.tree.sub(state.average, new.params)),
            )
        if recipe.base_share is not None:
            # As the mean of both is linear, it moves by a share of what the parameters move by.
            step = optax.tree.sub(new.params, params)
            new = dataclasses.replace(
                new, average=optax.tree.add_scale(state.average, 1 - recipe.base_share, step)
            )
        if recipe.loss_scale is not None:
            metrics["loss_scale"] = state.scale.value
            finite = jnp.isfinite(norm)
            new = chosen(finite, new, dataclasses.replace(state, step=state.step + 1))
            new = dataclasses.replace(new, scale=recipe.loss_scale.after(state.scale, finite))
        return new, metrics

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """`update`, compiled; the old state's buffers are reused."""
        return self.update(state, batch)

    def _gradient(
        self, state: TrainState, batch: Batch, recipe: Recipe, scale: Any
    ) -> tuple[tuple[Losses, Any], Any]:
        """The losses and the memory, and `scale` times the gradient of what is minimised."""
        rows = batch.labels.shape[0]
        key = jax.random.fold_in(state.key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
        weight = jnp.sum(batch.weights, dtype=jnp.float32)
        weight = jnp.where(weight > 0, weight, 1)
        parts = recipe.accumulate

        def objective(params: Any, batch: Batch, keys: Array, carry: Any) -> tuple[Array, tuple[Losses, Any]]:
            params = self._trained(params)
            total, out = self._loss(params, batch, recipe, keys, carry)
            loss, aux = total / weight, jnp.float32(out.aux_loss) / parts
            step = Step(params, self.model, out.hidden, batch, weight, 1 / parts, self.loss, key)
            held = zip(recipe.remedies, state.kept, strict=True)
            penalty = sum((remedy.penalty(kept, step) for remedy, kept in held), start=jnp.float32(0))
            whole = loss + recipe.compression * aux + penalty
            return scale * whole, ((loss, aux, penalty), jax.lax.stop_gradient(out.carry))

        gradient = jax.grad(objective, has_aux=True)
        if parts == 1:
            found, out = gradient(state.params, batch, keys, state.carry)
            return out, found
        if rows % parts:
            raise ValueError(
                f"Recipe.accumulate = {parts}: expected a divisor of a batch's {rows} rows; change it or Data.batch"
            )

        def one(sums: Any, part: tuple[Batch, Array, Any]) -> tuple[Any, Any]:
            found, (losses, carry) = gradient(state.params, *part)
            return jax.tree.map(jnp.add, sums, (found, losses)), carry

        zeros = (jax.tree.map(jnp.zeros_like, state.params), (jnp.float32(0),) * 3)
        whole = (batch, keys, state.carry)
        (found, losses), carry = jax.lax.scan(one, zeros, _parted(whole, parts))
        return (losses, _whole(carry)), found

    def _loss(
        self, params: Any, batch: Batch, recipe: Recipe, keys: Array | None = None, carry: Any = None
    ) -> tuple[Array, Output]:
        """Summed loss in nats, and what the model has made of the batch; `keys` switch dropout on."""
        model = self.model(params)
        out = model.apply(batch, key=keys, carry=carry)
        total, _ = self._token_loss(
            model,
            out.hidden,
            batch.labels,
            batch.weights,
            z_loss=0.0 if recipe.z_loss is None else recipe.z_loss,
        )
        return total, out

    def _token_loss(
        self, model: Model, hidden: Array, labels: Any, weights: Any, **options: Any
    ) -> tuple[Array, Array]:
        graph, head = nnx.split(model.outputs)

        def logits(head: Any, states: Array) -> Array:
            return nnx.merge(graph, head).logits(states)

        return token_loss(
            logits, nnx.to_pure_dict(head), hidden, labels, weights, vocab=self._vocab, **options
        )

    def _trained(self, params: Any) -> Any:
        """The parameters, those that the optimizer leaves alone without gradient."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if self._optimizer.trains(path_of(path)) else jax.lax.stop_gradient(leaf),
            params,
        )

    def _filled(self, numbers: dict[str, Any]) -> tuple[Optimizer, Recipe]:
        return tuple(hyperparameters.filled(config, numbers) for config in (self._optimizer, self.recipe))

    def loss(
        self, params: Any, batch: Batch, key: Array | None = None
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Summed loss in nats and total weight of a batch; `key` (one, or one for each row) switches dropout on."""
        total, _ = self._loss(params, batch, Recipe(), key, self.memory(batch.labels.shape[0]))
        return total, jnp.sum(batch.weights, dtype=jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def _held_out(self, params: Any, batch: Batch, carry: Any) -> tuple[Array, Array, Any]:
        total, out = self._loss(params, batch, Recipe(), None, carry)
        return total, jnp.sum(batch.weights, dtype=jnp.float32), out.carry

    @functools.partial(jax.jit, static_argnums=0)
    def row_losses(self, params: Any, batch: Batch) -> Float[Array, " b"]:
        """Mean loss in nats per target of each row, without dropout; 0 for a row without targets."""
        model = self.model(params)
        hidden = model.apply(batch).hidden

        def mean(states: Array, labels: Array, weights: Array) -> Array:
            total, weight = self._token_loss(model, states, labels, weights)
            return total / jnp.maximum(weight, 1e-9)

        return jax.lax.map(
            lambda row: mean(*row), (hidden, jnp.asarray(batch.labels), jnp.asarray(batch.weights))
        )

    def evaluate(self, params: Any, batches: Iterable[Batch]) -> float:
        """Mean loss in nats per target over all batches, without dropout; a memory begins empty and runs through them.

        Raises:
          ValueError: no batch has a target.
        """
        sums, carry = [], None
        for batch in batches:
            if carry is None:
                carry = self.memory(batch.labels.shape[0])
            total, weight, carry = self._held_out(params, batch, carry)
            sums.append((total, weight))
            if len(sums) > AHEAD:
                jax.block_until_ready(sums[-1 - AHEAD])
        weight = sum(float(weight) for _, weight in sums)
        if not weight:
            raise ValueError("evaluate: no batch has a target, so there is no loss to report")
        return sum(float(total) for total, _ in sums) / weight


def _check_remedies(config: FamilyConfig, recipe: Recipe, optimizer: Optimizer, *, remembering: bool) -> None:
    """ValueError where a remedy does not go with the model, the optimizer or the rest of the recipe."""
    averages = recipe.averages
    for remedy in recipe.remedies:
        if isinstance(remedy, repetition.Unprepared) and isinstance(config, EncoderConfig):
            raise ValueError(
                f"Recipe.remedies has {type(remedy).__name__}, which is of text that is written token by token, but "
                "the model is an Encoder; leave it out"
            )
        if isinstance(remedy, repetition.OnRows) and (remembering or recipe.accumulate > 1):
            raise ValueError(
                f"Recipe.remedies has {type(remedy).__name__}, which reads rows of whole batches by themselves; set "
                "Recipe.accumulate = 1 and StackConfig.memory = None, or leave it out"
            )
        predicts = isinstance(remedy, LwF) or (isinstance(remedy, EWC) and remedy.labels != "true")
        if remembering and predicts:
            raise ValueError(
                f"Recipe.remedies has {remedy}, which asks what the base predicts without a memory; leave it out, or "
                "set StackConfig.memory = None"
            )
        if isinstance(remedy, SI) and averages:
            raise ValueError(
                "Recipe.remedies has SI, which counts the way to the parameters that are trained, but others are "
                "evaluated; set Recipe.average and Recipe.base_share to None, or leave it out"
            )
        if isinstance(remedy, Decay) and isinstance(optimizer, LoRA):
            raise ValueError(
                "Recipe.remedies has Decay, which would move LoRA's matrices without their factors; set "
                "LoRA.weight_decay, or leave it out"
            )


def chosen(condition: Any, new: TrainState, old: TrainState) -> TrainState:
    """The new state where the condition holds, else the old one."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _axes(carry: Any) -> Any:
    """Where the rows of a memory are: first in its slots, behind the layers in its states."""
    if carry is None:
        return None
    slots = jax.tree.map(lambda _: 0, carry.slots)
    return dataclasses.replace(carry, slots=slots, layers=jax.tree.map(lambda _: 1, carry.layers))


def _parted(whole: tuple[Batch, Array, Any], parts: int) -> Any:
    """Rows [b] cut into [parts b / parts]. Each part has every parts-th row, so rows stay on their device."""

    def cut(leaf: Any, axis: int) -> Array:
        shape = jnp.shape(leaf)
        leaf = jnp.reshape(leaf, (*shape[:axis], -1, parts, *shape[axis + 1 :]))
        return jnp.moveaxis(leaf, axis + 1, 0)

    batch, keys, carry = whole
    return *jax.tree.map(lambda leaf: cut(leaf, 0), (batch, keys)), jax.tree.map(cut, carry, _axes(carry))


def _whole(carry: Any) -> Any:
    """The memory of all rows again, from the parts' [parts ...]."""

    def join(leaf: Array, axis: int) -> Array:
        leaf = jnp.moveaxis(leaf, 0, axis + 1)
        return leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])

    return jax.tree.map(join, carry, _axes(carry))

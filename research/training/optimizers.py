"""Optimizers, as frozen values that build optax transformations.

Rules go by a parameter's *path* (e.g. `stack/blocks/0/mlp/inner/up/kernel`), never by its rank. Below `blocks/<place>/`
an array holds a parameter of several layers, stacked on its leading axis; what an optimizer does to a matrix it does
to the matrix of each layer (`per_layer`), so that training does not depend on how layers are stored.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from research.models.paths import layers, named, path_of
from research.settings import LATER
from research.training.schedules import Constant, Cosine, Linear, Schedule

__all__ = [
    "SGD",
    "Adafactor",
    "AdamW",
    "Constant",
    "Cosine",
    "Linear",
    "Lion",
    "Muon",
    "Optimizer",
    "Schedule",
    "per_layer",
]

STACKED = r"(^|/)blocks/\d+/"
# Projections and token vectors; not norms, biases, sinks, positions.
DECAYED = r"(kernel|embedding/(table|(tables|projections)/\d+|head_projection|clusters))$"
MATRICES = STACKED + r".*kernel$"

# What the numbers of a config have to be, by their names.
_POSITIVE = (lambda x: x > 0, "a number above 0")
_DECAY = (lambda x: 0 <= x < 1, "at least 0 and below 1")
_COUNT = (lambda x: x >= 1, "at least 1")
_RANGES = {
    "learning_rate": _POSITIVE,
    "clip": _POSITIVE,
    "weight_decay": (lambda x: x >= 0, "at least 0"),
    "frozen_layers": (lambda x: x >= 0, "at least 0"),
    "b1": _DECAY,
    "b2": _DECAY,
    "beta": _DECAY,
    "momentum": _DECAY,
    "eps": _POSITIVE,
    "decay_rate": _POSITIVE,
    "clipping_threshold": _POSITIVE,
    "min_dim_size_to_factor": _COUNT,
    "rms": _POSITIVE,
    "ns_steps": _COUNT,
    "adam_learning_rate_ratio": _POSITIVE,
    "rank": _COUNT,
    "alpha": _POSITIVE,
}
_OPTIONAL = ("clip", "clipping_threshold", "momentum")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What all optimizers share.

    Attributes:
      tunable: (of the class) the numbers that change neither shapes nor the program, so that runs that differ in them
        share one compiled step. `build` also takes them traced.
      patterns: (of the class) the fields that are regular expressions on parameter paths.
      learning_rate: the schedule's peak.
      schedule: its course over the run.
      clip: greatest global norm of the gradient of all trained parameters, or None.
      frozen: the parameters that stay as they are and have no optimizer state, e.g. r"embedding/"; None: none.
      frozen_layers: so many of the lower layers of every stack stay as they are too.

    Raises:
      ValueError: a number is out of its range, or a pattern is no regular expression.
    """

    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "clip")
    patterns: ClassVar[tuple[str, ...]] = ("frozen",)

    learning_rate: float = 1e-3
    schedule: Schedule = Cosine()
    clip: float | None = 1.0
    frozen: str | None = None
    frozen_layers: int = dataclasses.field(default=0, metadata=LATER)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.name in _RANGES:
                _check_number(self, field.name)
        for name in self.patterns:
            pattern = getattr(self, name)
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise ValueError(
                    f"{type(self).__name__}.{name} = {pattern!r}: expected a regular expression ({error})"
                ) from None

    def trains(self, path: str) -> bool:
        """Whether the parameter at that path is trained."""
        return self.frozen is None or re.search(self.frozen, path) is None

    def build(self, steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `steps` steps.

        Its `init` raises ValueError where a pattern that is not the class's default matches no parameter.
        """
        rate = self.schedule.build(self.learning_rate, steps)
        clip = [] if self.clip is None else [optax.clip_by_global_norm(self.clip)]
        rule = optax.chain(*clip, self.rule(rate))
        if self.frozen is not None:
            labels = _labels(self.frozen, "frozen", "trained")
            rule = optax.partition({"frozen": optax.set_to_zero(), "trained": rule}, labels)
        if self.frozen_layers:
            upper = optax.stateless(lambda updates, _: above(updates, self.frozen_layers))
            rule = optax.chain(upper, rule, upper)

        def init(params: Any) -> Any:
            self._check_paths(named(params))
            return rule.init(params)

        return optax.GradientTransformationExtraArgs(init, rule.update)

    def start(self, params: Any, steps: int, key: Array) -> Any:
        """Its state before the first step; what is random in it depends on the key of the run."""
        return self.build(steps).init(params)

    def rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """The optimizer proper, at that learning rate."""
        raise TypeError(f"{type(self).__name__} defines no rule(rate); every Optimizer must")

    def _check_paths(self, parameters: dict[str, Any]) -> None:
        for name in self.patterns:
            pattern = getattr(self, name)
            chosen = pattern is not None and pattern != getattr(type(self), name, None)
            if chosen and not any(re.search(pattern, path) for path in parameters):
                near = difflib.get_close_matches(pattern, parameters, n=1, cutoff=0.0)
                raise ValueError(
                    f"{type(self).__name__}.{name} = {pattern!r}: matches no parameter; the nearest is {near[0]!r}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019).

    Attributes:
      b1, b2: decay rates of the gradient's first and second moment.
      eps: added to the root of the second moment.
      weight_decay: share of a parameter that goes at each step, in units of the learning rate.
      decayed: the parameters that decay.
    """

    tunable: ClassVar = (*Optimizer.tunable, "b1", "b2", "eps", "weight_decay")
    patterns: ClassVar = (*Optimizer.patterns, "decayed")

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decayed: str = DECAYED

    def rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Adam, then decay, then the learning rate."""
        return optax.adamw(
            rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=_labels(self.decayed)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Sign momentum (Chen et al. 2023) with decoupled weight decay; one moment.

    Attributes:
      b1: weight of the momentum in the step.
      b2: decay rate of the momentum.
      weight_decay, decayed: as in `AdamW`.
    """

    tunable: ClassVar = (*Optimizer.tunable, "b1", "b2", "weight_decay")
    patterns: ClassVar = (*Optimizer.patterns, "decayed")

    learning_rate: float = 1e-4
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1.0
    decayed: str = DECAYED

    def rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """The sign of an interpolated momentum, then decay, then the learning rate."""
        return optax.lion(rate, self.b1, self.b2, weight_decay=self.weight_decay, mask=_labels(self.decayed))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Gradient descent with optional momentum (Sutskever et al. 2013) and decoupled weight decay.

    Attributes:
      momentum: decay rate of the running sum of gradients; None: the gradient itself, without state.
      nesterov: look ahead by one step of momentum.
      weight_decay, decayed: as in `AdamW`.
    """

    tunable: ClassVar = (*Optimizer.tunable, "momentum", "weight_decay")
    patterns: ClassVar = (*Optimizer.patterns, "decayed")

    learning_rate: float = 0.1
    momentum: float | None = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decayed: str = DECAYED

    def __post_init__(self):
        super().__post_init__()
        if self.nesterov and self.momentum is None:
            raise ValueError("SGD.nesterov = True: expected a momentum; set SGD.momentum, e.g. to 0.9")

    def rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """The gradient or its running sum, then decay, then the learning rate."""
        return optax.chain(
            optax.identity() if self.momentum is None else optax.trace(self.momentum, self.nesterov),
            optax.add_decayed_weights(self.weight_decay, _labels(self.decayed)),
            optax.scale_by_learning_rate(rate),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Adam whose second moment of a matrix is the product of a row and a column (Shazeer & Stern 2018), with T5's
    settings (Raffel et al. 2020) but for the learning rate, whose course is the schedule's.

    Attributes:
      decay_rate: c; at step t the second moment decays by 1 - t^-c.
      clipping_threshold: greatest RMS of an array's step before it is scaled, or None.
      multiply_by_parameter_scale: an array's step is in units of its RMS (at least 1e-3).
      min_dim_size_to_factor: arrays with two dimensions of at least that size are factored.
      momentum: decay rate of an average of the steps, one more copy of the parameters; None: no momentum.
      weight_decay, decayed: as in `AdamW`.
    """

    tunable: ClassVar = (*Optimizer.tunable, "decay_rate", "clipping_threshold", "momentum", "weight_decay")
    patterns: ClassVar = (*Optimizer.patterns, "decayed")

    learning_rate: float = 0.01
    clip: float | None = None  # each array's step is clipped by itself
    decay_rate: float = 0.8
    clipping_threshold: float | None = 1.0
    multiply_by_parameter_scale: bool = True
    min_dim_size_to_factor: int = 128
    momentum: float | None = None
    weight_decay: float = 0.0
    decayed: str = DECAYED

    def rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """A factored RMS, clipping and scaling array by array, then momentum, decay and the learning rate."""
        threshold = self.clipping_threshold
        array = optax.chain(
            optax.scale_by_factored_rms(
                decay_rate=self.decay_rate, min_dim_size_to_factor=self.min_dim_size_to_factor
            ),
            optax.identity() if threshold is None else optax.clip_by_block_rms(threshold),
            optax.scale_by_param_block_rms() if self.multiply_by_parameter_scale else optax.identity(),
        )
        return optax.chain(
            per_layer(array),
            optax.identity() if self.momentum is None else optax.ema(self.momentum, debias=False),
            optax.add_decayed_weights(self.weight_decay, _labels(self.decayed)),
            optax.scale_by_learning_rate(rate),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Orthogonalised momentum for the matrices inside blocks (Jordan et al. 2024), AdamW for all other parameters:
    token table, head, position tables, norms and biases.

    The RMS of a matrix's step is what AdamW's usually is (Liu et al. 2025), so learning rate and weight decay carry
    over from AdamW.

    Attributes:
      beta: decay rate of the momentum of matrices.
      nesterov: look ahead by one step of momentum.
      ns_steps: Newton-Schulz iterations that make the momentum's singular values about 1.
      rms: of a matrix's step, in units of the learning rate.
      matrices: the parameters that are such matrices, of each layer by their last two dimensions.
      adam_learning_rate_ratio: AdamW's learning rate over that of the matrices.
      b1, b2, eps: of AdamW.
      weight_decay, decayed: of both, as in `AdamW`.
    """

    tunable: ClassVar = (
        *Optimizer.tunable,
        *("beta", "rms", "adam_learning_rate_ratio", "b1", "b2", "eps", "weight_decay"),
    )
    patterns: ClassVar = (*Optimizer.patterns, "matrices", "decayed")

    beta: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    rms: float = 0.2
    matrices: str = MATRICES
    adam_learning_rate_ratio: float = 1.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decayed: str = DECAYED

    def rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Muon or Adam by path, each with decay, then the learning rate."""
        decay = optax.add_decayed_weights(self.weight_decay, _labels(self.decayed))
        muon = optax.chain(
            optax.contrib.scale_by_muon(
                ns_steps=self.ns_steps,
                beta=self.beta,
                nesterov=self.nesterov,
                weight_dimension_numbers=_last_two_dimensions,
            ),
            optax.stateless_with_tree_map(self._scaled),
            decay,
        )
        adam = optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            decay,
            optax.scale(self.adam_learning_rate_ratio),
        )
        return optax.chain(
            optax.partition({"muon": muon, "adam": adam}, _labels(self.matrices, "muon", "adam")),
            optax.scale_by_learning_rate(rate),
        )

    def _scaled(self, step: Any, _: Any) -> Any:
        """Steps of that RMS: an orthogonal [m n] matrix has max(m, n)^-1/2."""
        return step * (max(step.shape[-2:]) ** 0.5 * self.rms)

    def _check_paths(self, parameters: dict[str, Any]) -> None:
        super()._check_paths(parameters)
        for path, leaf in parameters.items():
            if re.search(self.matrices, path) and leaf.ndim < 2 + bool(re.search(STACKED, path)):
                raise ValueError(
                    f"{type(self).__name__}.matrices = {self.matrices!r}: expected matrices, but {path!r} is a vector"
                )


def per_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` for each parameter of each layer by itself: vmapped over the leading axis of stacked parameters.

    For transformations whose result for one entry depends on the rest of its array (norms, factors, trust ratios);
    elementwise ones need none. The state is a tree like the parameters', with a state of `inner` at each leaf. `update`
    needs the parameters.
    """

    def each(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
        def one(path: Any, *leaves: Any) -> Any:
            return (jax.vmap(function) if re.search(STACKED, path_of(path)) else function)(*leaves)

        return jax.tree_util.tree_map_with_path(one, tree, *rest)

    def init(params: Any) -> Any:
        return each(inner.init, params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        both = each(inner.update, updates, state, params)
        return tuple(jax.tree.map(lambda _, pair, part=part: pair[part], updates, both) for part in (0, 1))

    return optax.GradientTransformation(init, update)


def above(tree: Any, frozen: int) -> Any:
    """A tree of the parameters' paths and shapes with zeros in the lowest `frozen` layers of every stack.

    Raises:
      ValueError: no stack has so many.
    """
    if not frozen:
        return tree
    stacks = layers(tree)
    deepest = max((int(own.max()) + 1 for _, own in stacks.values()), default=0)
    if frozen > deepest:
        raise ValueError(
            f"Optimizer.frozen_layers = {frozen}: expected at most {deepest}, the layers there are"
        )

    def one(path: Any, leaf: Array) -> Array:
        if (name := path_of(path)) not in stacks:
            return leaf
        kept = stacks[name][1] >= frozen
        return jnp.where(kept.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)

    return jax.tree_util.tree_map_with_path(one, tree)


def _labels(pattern: str, matching: Any = True, rest: Any = False) -> Callable[[Any], Any]:
    """Labels a tree of parameters by whether their paths match."""

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: matching if re.search(pattern, path_of(path)) else rest, params
        )

    return labels


def _last_two_dimensions(matrices: Any) -> Any:
    """For Muon: the dimensions that make a matrix. All before them, layers among them, are apart."""
    dimensions = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    return jax.tree.map(lambda _: dimensions, matrices)


def _check_number(config: Optimizer, name: str) -> None:
    value, (holds, expected) = getattr(config, name), _RANGES[name]
    if value is None and name in _OPTIONAL:
        return
    if not isinstance(value, int | float) or not holds(value):
        expected += ", or None" if name in _OPTIONAL else ""
        raise ValueError(f"{type(config).__name__}.{name} = {value!r}: expected {expected}")

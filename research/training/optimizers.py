"""Optimizers and learning-rate schedules, as frozen values that build optax transformations.

Rules go by a parameter's *path* (e.g. `stack/blocks/0/mlp/inner/up/kernel`), never by its rank.
"""

import dataclasses
import re
from typing import Any, Protocol, runtime_checkable

import jax
import optax

DECAYED = r"(kernel|embedding/table)$"  # projections and token vectors; not norms, biases, sinks, positions


@runtime_checkable  # so that a config value can be checked against it
class Schedule(Protocol):
    """What every schedule here provides."""

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """The learning rate of each of `steps` steps, at most `peak`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """The peak throughout, after a linear warm-up over a share of the steps."""

    warmup: float = 0.0

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """The learning rate of each step."""
        return _warmed(optax.constant_schedule(peak), peak, self.warmup, steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up over a share of the steps, then half a cosine down to `final` times the peak."""

    warmup: float = 0.1
    final: float = 0.1

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """The learning rate of each step."""
        rest = max(steps - round(self.warmup * steps), 1)
        return _warmed(optax.cosine_decay_schedule(peak, rest, self.final), peak, self.warmup, steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    """Linear warm-up over a share of the steps, then linear decay to `final` times the peak."""

    warmup: float = 0.1
    final: float = 0.0

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """The learning rate of each step."""
        rest = max(steps - round(self.warmup * steps), 1)
        return _warmed(optax.linear_schedule(peak, peak * self.final, rest), peak, self.warmup, steps)


def _warmed(schedule: optax.Schedule, peak: float, share: float, steps: int) -> optax.Schedule:
    if not 0 <= share < 1:
        raise ValueError(f"schedule warmup = {share}: expected a share of the steps, 0 <= warmup < 1")
    warmup = round(share * steps)
    if not warmup:
        return schedule
    # The first step already moves: its rate is peak / (warmup + 1), not 0.
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([rise, schedule], [warmup])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What all optimizers share.

    Attributes:
      learning_rate: the schedule's peak.
      schedule: its course over the run.
      clip: greatest global norm of the gradient, or None.
    """

    learning_rate: float = 1e-3
    schedule: Schedule = Cosine()
    clip: float | None = 1.0

    def build(self, steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `steps` steps."""
        rate = self.schedule.build(self.learning_rate, steps)
        clip = [] if self.clip is None else [optax.clip_by_global_norm(self.clip)]
        return optax.chain(*clip, self.rule(rate))

    def rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """The optimizer proper, at that learning rate."""
        raise TypeError(f"{type(self).__name__} defines no rule(rate); every Optimizer must")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) on the paths that match `decayed`."""

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decayed: str = DECAYED

    def rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Adam, then decay, then the learning rate."""
        return optax.adamw(
            rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=_matching(self.decayed)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Sign momentum (Chen et al. 2023) with decoupled weight decay."""

    learning_rate: float = 1e-4
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1.0
    decayed: str = DECAYED

    def rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """The sign of an interpolated momentum, then decay, then the learning rate."""
        return optax.lion(
            rate, self.b1, self.b2, weight_decay=self.weight_decay, mask=_matching(self.decayed)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Gradient descent with optional momentum."""

    learning_rate: float = 0.1
    momentum: float | None = 0.9
    nesterov: bool = False

    def rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """The gradient or its running sum, times the learning rate."""
        return optax.sgd(rate, self.momentum, self.nesterov)


def path_of(path: tuple[Any, ...]) -> str:
    """The path of a leaf, its parts joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _matching(pattern: str) -> Any:
    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: re.search(pattern, path_of(path)) is not None, params
        )

    return mask

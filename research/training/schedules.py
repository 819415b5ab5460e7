"""Learning-rate schedules: a course over the share of a run that is done, the same for runs of any length."""

import dataclasses
from typing import Protocol, runtime_checkable

import optax
from jaxtyping import Array, Float


@runtime_checkable  # so that a config value can be checked against it
class Schedule(Protocol):
    """What every schedule here provides."""

    def build(self, peak: float | Float[Array, ""], steps: int) -> optax.Schedule:
        """The learning rate of each of `steps` steps, at most `peak`, which may be traced."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """The peak throughout, after a linear warm-up over a share of the steps."""

    warmup: float = 0.0

    def __post_init__(self):
        _check_shares(self)

    def build(self, peak: float | Float[Array, ""], steps: int) -> optax.Schedule:
        """The learning rate of each step."""
        return _warmed(optax.constant_schedule(peak), peak, self.warmup, steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up over a share of the steps, then half a cosine down to `final` times the peak."""

    warmup: float = 0.1
    final: float = 0.1

    def __post_init__(self):
        _check_shares(self)

    def build(self, peak: float | Float[Array, ""], steps: int) -> optax.Schedule:
        """The learning rate of each step."""
        rest = max(steps - round(self.warmup * steps), 1)
        return _warmed(optax.cosine_decay_schedule(peak, rest, self.final), peak, self.warmup, steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    """Linear warm-up over a share of the steps, then linear decay to `final` times the peak."""

    warmup: float = 0.1
    final: float = 0.0

    def __post_init__(self):
        _check_shares(self)

    def build(self, peak: float | Float[Array, ""], steps: int) -> optax.Schedule:
        """The learning rate of each step."""
        rest = max(steps - round(self.warmup * steps), 1)
        return _warmed(optax.linear_schedule(peak, peak * self.final, rest), peak, self.warmup, steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """The course of a run of so many steps, however many are taken: a run of fewer is that one stopped early, and a
    longer one goes on at its last rate.
    """

    schedule: Schedule
    steps: int

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"Cut.steps = {self.steps}: expected at least 1")

    def build(self, peak: float | Float[Array, ""], steps: int) -> optax.Schedule:
        """The learning rate of each step."""
        return self.schedule.build(peak, self.steps)


def _check_shares(schedule: Constant | Cosine | Linear) -> None:
    name = type(schedule).__name__
    if not 0 <= schedule.warmup < 1:
        raise ValueError(f"{name}.warmup = {schedule.warmup}: expected a share of the steps, 0 <= warmup < 1")
    if not isinstance(schedule, Constant) and not 0 <= schedule.final <= 1:
        raise ValueError(f"{name}.final = {schedule.final}: expected a share of the peak, 0 <= final <= 1")


def _warmed(
    schedule: optax.Schedule, peak: float | Float[Array, ""], share: float, steps: int
) -> optax.Schedule:
    warmup = round(share * steps)
    if not warmup:
        return schedule
    # The first step already moves: its rate is peak / (warmup + 1), not 0.
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([rise, schedule], [warmup])

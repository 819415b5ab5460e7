"""Engines: what takes a group of runs one step further. A group of one is a run of its own, on one or many devices; a
group of several is an ensemble, whose members are trained by one compiled step.
"""

import functools
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool

from research.batch import Batch
from research.data.pipeline import Dataset
from research.training.remedies import Inherited
from research.training.sharding import Placement
from research.training.step import Metrics, Trainer, TrainState, chosen

Member = tuple[TrainState, jax.Array]  # of an ensemble, or all of them in one


@runtime_checkable  # so that an argument can be checked against it
class Engine(Protocol):
    """What the loop asks of an engine; `group` is the state of all its members."""

    def join(self, states: Sequence[TrainState]) -> Any:
        """The group of these members; their buffers may be taken over."""
        ...

    def place(self, batches: Sequence[Batch]) -> Any:
        """A batch for each member, on the devices."""
        ...

    def step(self, group: Any, batches: Any, running: Bool[np.ndarray, " r"]) -> tuple[Any, Metrics]:
        """One step of the members that are `running`; metrics are [r] each. The old group's buffers are reused."""
        ...

    def member(self, group: Any, index: int) -> TrainState:
        """One member's state."""
        ...


class Solo:
    """One run.

    Args:
      trainer: its functions.
      rows: of a batch, those of all processes.
      placement: the devices it is spread over; None: it has one.
    """

    def __init__(self, trainer: Trainer, *, rows: int, placement: Placement | None = None):
        self.trainer, self._rows, self._placement = trainer, rows, placement
        self._initial, self._step = functools.partial(trainer.initial, rows=rows), trainer.step
        self.host, self.hosts, self._shardings = 0, 1, None
        if placement is not None:
            self._shardings = shardings = placement.state(jax.eval_shape(self._initial, jax.random.key(0)))
            self._initial = jax.jit(self._initial, out_shardings=shardings)
            self._step = jax.jit(trainer.update, donate_argnums=0, out_shardings=(shardings, None))
            self.host, self.hosts = placement.share(rows)

    def initial(
        self, key: jax.Array, numbers: dict[str, Any], params: dict[str, Any] | None = None
    ) -> TrainState:
        """The state before the first step, made where it lives. `params`: to start from; what is missing is drawn."""
        return self._initial(key, numbers, params=params)

    def prepared(
        self, state: TrainState, text: Dataset, seed: int, inherited: Inherited | None = None
    ) -> TrainState:
        """The state before the first step with what remedies keep, where it lives; see `Trainer.prepared`."""
        found = self.trainer.prepared(state, text, seed, inherited)
        return found if self._shardings is None else jax.device_put(found, self._shardings)

    def join(self, states: Sequence[TrainState]) -> TrainState:
        """The run itself."""
        (state,) = states
        return state

    def place(self, batches: Sequence[Batch]) -> Batch:
        """The batch (this process's rows of it) on the devices.

        Raises:
          ValueError: it does not divide over them.
        """
        (batch,) = batches
        if self._placement is None:
            return jax.device_put(batch)
        self._placement.check(self._rows, batch.labels.shape[1])
        first = self.host * batch.labels.shape[0]
        return self._placement.batch(batch, first=first, rows=self._rows)

    def whole(self, batches: Sequence[Batch]) -> list[Batch]:
        """Batches that every process has all rows of, on the devices."""
        return [
            jax.device_put(one) if self._placement is None else self._placement.batch(one) for one in batches
        ]

    def step(
        self, group: TrainState, batches: Batch, running: Bool[np.ndarray, " 1"]
    ) -> tuple[TrainState, Metrics]:
        """One step; metrics are [1] each."""
        state, metrics = self._step(group, batches)
        return state, {name: value[None] for name, value in metrics.items()}

    def member(self, group: TrainState, index: int) -> TrainState:
        """The run itself."""
        return group


class Ensemble:
    """Runs that differ in seed, data and numbers, by `vmap`, and spread over the devices where there are several.

    A member that is not running stays as it is; so does, from then on, one whose loss or gradient was not finite. The
    group is the members' states in one, [r ...] each leaf, and which of them are still sound, bool[r].

    Args:
      trainer: the members' functions.
      members: how many there are; devices that do not divide them stay idle.
    """

    def __init__(self, trainer: Trainer, members: int):
        devices = jax.local_devices()
        used = max(n for n in range(1, len(devices) + 1) if members % n == 0)
        self.trainer, self._home = trainer, devices[0]
        self._mesh = Mesh(np.asarray(devices[:used]), ("replica",), axis_types=(AxisType.Auto,))
        self._spread = NamedSharding(self._mesh, PartitionSpec("replica"))
        step = jax.vmap(self._one)
        if used > 1:  # no member needs another, and kernels cannot be split by XLA
            each = PartitionSpec("replica")
            step = jax.shard_map(step, mesh=self._mesh, in_specs=each, out_specs=each, check_vma=False)
        self._step = jax.jit(step, donate_argnums=0)

    def _one(self, member: Member, batch: Batch, running: Any) -> tuple[Member, Metrics]:
        state, sound = member
        new, metrics = self.trainer.update(state, batch)
        sound &= metrics["finite"] | ~running
        return (chosen(running & sound, new, state), sound), metrics

    def join(self, states: Sequence[TrainState]) -> Member:
        """The group of these members."""
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return jax.device_put((state, jnp.ones(len(states), bool)), self._spread)

    def place(self, batches: Sequence[Batch]) -> Batch:
        """The members' batches in one, [r b ...]."""
        return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *batches), self._spread)

    def step(self, group: Member, batches: Batch, running: Bool[np.ndarray, " r"]) -> tuple[Member, Metrics]:
        """One step of the running members; metrics are [r] each."""
        return self._step(group, batches, jax.device_put(running, self._spread))

    def member(self, group: Member, index: int) -> TrainState:
        """One member's state, as a run of its own has it: on one device."""
        state, _ = group
        return jax.device_put(jax.tree.map(lambda leaf: leaf[index], state), self._home)

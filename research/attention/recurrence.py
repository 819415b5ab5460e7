"""Segment-level recurrence: layer inputs of earlier segments, projected by the current weights.

Transformer-XL (Dai et al. 2019) keeps the last states of every layer; the Compressive Transformer (Rae et al. 2020)
compresses what falls out of them. Both hold states without gradient, and both are key slots like any other.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from research.attention.masks import Mask, Slots
from research.attention.memory import Layer, Reading, continued, fields, gathered


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compression:
    """How `rate` old states become one (Rae et al. 2020, section 3.1).

    A window never mixes documents: it stands for the document of its last state. The new slot has the clock of
    the last state it covers and the mean of the coords.

    Attributes:
      length: compressed states kept.
      rate: c, states that become one.
    """

    length: int
    rate: int = 3

    def __post_init__(self):
        for name in ("length", "rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{type(self).__name__}.{name} = {getattr(self, name)}: expected at least 1")

    def build(self, *, width: int, key: Array) -> Any:
        """The layer's compression for states of that width."""
        return self

    def __call__(self, states: Array, slots: Slots, usage: Callable[[], Array]) -> tuple[Array, Slots]:
        """[b n m] states and their slots to [b n / rate m] and theirs; `usage()` is [b n]."""
        own, pooled = self.windows(slots)
        return self.pool(self.cut(states), own[..., None]), pooled

    def pool(
        self, windows: Float[Array, "b w c m"], own: Bool[Array | np.ndarray, "b w c 1"]
    ) -> Float[Array, "b w m"]:
        """One state of each window, from those of its `own` document."""
        raise TypeError(f"{type(self).__name__} defines no pool(); every pooling Compression must")

    def windows(self, slots: Slots) -> tuple[Bool[Array | np.ndarray, "b w c"], Slots]:
        """Which states of each window count, and the windows' slots [b w]."""
        segment, coords = self.cut(slots.segment[..., None])[..., 0], self.cut(slots.coords)
        own = (segment == segment[..., -1:]) & (segment != 0)
        mean = (coords * own[..., None]).sum(-2) / jnp.maximum(own.sum(-1), 1)[..., None]
        last = (leaf[..., self.rate - 1 :: self.rate] for leaf in fields(slots))
        return own, Slots(*last, coords=mean)

    def cut(self, line: Any) -> Any:
        """[b n m] to windows [b n / rate rate m]."""
        n = line.shape[-2]
        if n % self.rate:
            raise ValueError(
                f"a segment of {n} tokens cannot be compressed by {type(self).__name__}.rate = {self.rate}; "
                "make the segment a multiple of the rate"
            )
        return line.reshape(*line.shape[:-2], n // self.rate, self.rate, line.shape[-1])


class MeanPooling(Compression):
    """The mean of the window."""

    def pool(
        self, windows: Float[Array, "b w c m"], own: Bool[Array | np.ndarray, "b w c 1"]
    ) -> Float[Array, "b w m"]:
        return (windows * own).sum(-2) / jnp.maximum(own.sum(-2), 1).astype(windows.dtype)


class MaxPooling(Compression):
    """The greatest value of each feature in the window."""

    def pool(
        self, windows: Float[Array, "b w c m"], own: Bool[Array | np.ndarray, "b w c 1"]
    ) -> Float[Array, "b w m"]:
        return jnp.where(own.any(-2), jnp.where(own, windows, -jnp.inf).max(-2), 0)


class MostUsed(Compression):
    """The n / rate states that the current queries attend to most, in their order."""

    def __call__(self, states: Array, slots: Slots, usage: Callable[[], Array]) -> tuple[Array, Slots]:
        kept = self.cut(states).shape[-3]
        _, index = jax.lax.top_k(jnp.where(slots.segment != 0, usage(), -1.0), kept)
        index = jnp.sort(index, axis=-1)
        return jnp.take_along_axis(states, index[..., None], axis=-2), gathered(slots, index)


class Convolution(Compression):
    """A learned convolution of width and stride `rate`; it starts near the mean and learns by reconstruction."""

    def build(self, *, width: int, key: Array) -> "Convolved":
        return Convolved(self, width, key)


class Convolved(nnx.Module):
    """The parameters of a `Convolution`: one matrix for each place of the window."""

    def __init__(self, spec: Convolution, width: int, key: Array):
        self.spec = spec
        noise = jax.random.normal(key, (spec.rate, width, width)) * 0.1 * width**-0.5
        self.kernel = nnx.Param((jnp.eye(width) + noise) / spec.rate)

    def __call__(self, states: Array, slots: Slots, usage: Callable[[], Array]) -> tuple[Array, Slots]:
        """As `Compression`."""
        own, pooled = self.spec.windows(slots)
        windows, kernel = self.spec.cut(states) * own[..., None], self.kernel[...].astype(states.dtype)
        return jnp.einsum("bwcm,cmo->bwo", windows, kernel), pooled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recurrent:
    """Segment-level recurrence: each layer also reads the last `length` of its own earlier inputs, without
    gradient (Transformer-XL); what falls out of them is compressed, or forgotten where `compression` is None.
    """

    length: int
    compression: Compression | None = None

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(
                f"Recurrent.length = {self.length}: expected at least 1; no memory is memory = None"
            )

    @property
    def reach(self) -> int:
        """Tokens before a segment that a full memory stands for."""
        older = self.compression
        return self.length + (0 if older is None else older.length * older.rate)

    def refuses(self, mask: Mask) -> str | None:
        """Why reading token by token would not equal reading segment by segment under `mask`, or None."""
        if self.compression is not None:
            return (
                f"{self} depends on where segments end, so it cannot be read token by token; "
                "read whole segments with model.apply(batch, carry=...)"
            )
        if not mask.reaches(self.length + 1, 0):
            return None
        return (
            f"{mask} sees further than Recurrent.length = {self.length}, so what it sees depends on where segments "
            f"end; narrow it with Window({self.length + 1})"
        )

    def empty(self, rows: int, width: int, layers: Sequence[int], dtype: Any) -> "Recurrence":
        """No memory yet, for a stack with so many layers at each place of its pattern."""

        def state(count: int) -> tuple[Array, Any]:
            recent = jnp.zeros((count, rows, self.length, width), dtype)
            if self.compression is None:
                return recent, None
            shape = (count, rows, self.compression.length)
            nothing = dataclasses.replace(_nothing(shape), coords=jnp.zeros((*shape, 1), jnp.float32))
            return recent, (jnp.zeros((*shape, width), dtype), nothing)

        return Recurrence(_nothing((rows, self.length)), [state(count) for count in layers], self)

    def full(self, slots: Slots) -> tuple[Slots, Slots | None]:
        """Slots of the recent and of the compressed states before the segment at `slots`, where each row's first
        document began long ago. What `MostUsed` keeps no slots can tell: it stands as one state of each window.
        """

        def before(count: int, rate: int, last: Any) -> Slots:
            position = last - rate * np.arange(count - 1, -1, -1, dtype=np.int32)
            segment = np.broadcast_to(slots.segment[..., :1], position.shape)
            return Slots(position, segment, np.zeros(position.shape, bool))

        last, older = slots.position[..., :1] - 1, self.compression
        recent = before(self.length, 1, last)
        if older is None:
            return recent, None
        compressed = before(older.length, older.rate, last - self.length)
        away = np.full((*compressed.position.shape, 1), (1 - older.rate) / 2, np.float32)
        return recent, dataclasses.replace(compressed, coords=away)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recurrence:
    """The memory of a stream.

    Attributes:
      slots: of the recent states, [b length], empty ones first.
      layers: for each place of the pattern (recent [L b length m], (old [L b c m], its slots [L b c]) or None). The
        coords of a compressed slot are the mean distance of what it covers from its clock.
      spec: the `Recurrent` it follows.
    """

    slots: Slots
    layers: Any
    spec: Recurrent = dataclasses.field(metadata={"static": True})

    def reader(self, slots: Slots) -> "RecurrentReader":
        """Reads the memory and the next segment, at `slots` [b n].

        Raises:
          ValueError: the slots have coords of their own, which a memory would have to count on.
        """
        if slots.coords is not None:
            raise ValueError("a recurrent memory counts coords from positions; give it Slots without coords")
        return RecurrentReader(jax.tree.map(jnp.asarray, slots), self.slots, self.spec)

    def extended(self, reader: "RecurrentReader", left: Any) -> "Recurrence":
        """The memory after the segment, with what the layers left."""
        staying = _sliced(reader.sorted(reader.line), reader.queries.length)
        return Recurrence(dataclasses.replace(staying, coords=None), left, self.spec)

    def continued(self, n: int) -> Slots:
        """Slots of `n` plain tokens that go on where each row ends."""
        return continued(self.slots, n)


class RecurrentReader:
    """The keys of a memory, oldest first, and of the segment itself. Coords are counted from the segment's first
    token, so they stay small however long the stream.

    Attributes:
      queries: slots of the segment.
      line: slots of the recent states and of the segment.
      collect: the source is read for the first time, and the layers leave its keys and values behind.
    """

    def __init__(self, queries: Slots, recent: Slots, spec: Recurrent):
        self._first = queries.position[..., :1]
        self.queries = self._placed(dataclasses.replace(queries, start=None))
        self.line = _joined([self._placed(recent), self.queries])
        self.collect = False
        self._spec = spec
        # Empty slots first, so that what leaves and what stays are counted in tokens, row by row.
        self._order = jnp.argsort(self.line.segment != 0, axis=-1, stable=True)

    def read(self, state: tuple[Array, Any], x: Array, layer: Layer) -> Reading:
        """Keys of memory and segment; it leaves the memory of the next segment."""
        (recent, old), n = state, x.shape[-2]
        states, slots, compressed = jnp.concatenate([recent, x], axis=-2), self.line, 0
        if old is not None:
            compressed = old[0].shape[-2]
            states = jnp.concatenate([old[0], states], axis=-2)
            slots = _joined([self._placed(old[1]), slots])
        before = states.shape[-2] - n
        states = jnp.concatenate([jax.lax.stop_gradient(states[..., :before, :]), x], axis=-2)
        raw, v = layer.keys(states)
        k = layer.turn(raw, slots)

        kept = jax.lax.stop_gradient(states[..., compressed:, :])
        kept = jnp.take_along_axis(kept, self._order[..., None], axis=-2)
        leaving, staying = kept[..., :n, :], kept[..., n:, :]
        if old is None:
            return Reading(k, v, slots, (staying, None), 0.0)
        leaving_slots = _sliced(self.sorted(self.line), 0, n)

        def usage() -> Array:
            received = jax.lax.stop_gradient(layer.usage(k, slots))[..., compressed:]
            return jnp.take_along_axis(received, self._order, axis=-1)[..., :n]

        made, made_slots = layer.compress(leaving, leaving_slots, usage)
        loss = 0.0
        if isinstance(layer.compress, nnx.Module):  # it has something to learn
            loss = _reconstruction(layer, (leaving, leaving_slots), (made, made_slots))
        older = jnp.concatenate([old[0], jax.lax.stop_gradient(made)], axis=-2)[..., -compressed:, :]
        away = made_slots.coords - (made_slots.position - self._first)[..., None]
        slots_of_older = _joined([old[1], dataclasses.replace(made_slots, coords=away)])
        return Reading(k, v, slots, (staying, (older, _sliced(slots_of_older, -compressed))), loss)

    def sorted(self, line: Slots) -> Slots:
        """The line's slots, empty ones first."""
        return gathered(line, self._order)

    def _placed(self, slots: Slots) -> Slots:
        """Coords counted from the segment's first token."""
        coords = (slots.position - self._first).astype(jnp.float32)[..., None]
        return dataclasses.replace(slots, coords=coords if slots.coords is None else coords + slots.coords)


def _reconstruction(layer: Layer, old: tuple[Array, Slots], made: tuple[Array, Slots]) -> Array:
    """Attention reconstruction (Rae et al. 2020, algorithm 2): the mean squared difference between what the queries
    read from the states and from their compression; only the compression learns from it.
    """
    difference = layer.content(*made) - jax.lax.stop_gradient(layer.content(*old))
    return jnp.mean(jnp.square(difference.astype(jnp.float32)))


def _joined(lines: Sequence[Slots]) -> Slots:
    leaves = (
        jnp.concatenate([jnp.asarray(x) for x in line], -1) for line in zip(*map(fields, lines), strict=True)
    )
    return Slots(*leaves, coords=jnp.concatenate([jnp.asarray(line.coords) for line in lines], -2))


def _sliced(slots: Slots, start: int, stop: int | None = None) -> Slots:
    part = slice(start, stop)
    return Slots(*(leaf[..., part] for leaf in fields(slots)), coords=slots.coords[..., part, :])


def _nothing(shape: tuple[int, ...]) -> Slots:
    zeros = jnp.zeros(shape, jnp.int32)
    return Slots(zeros, zeros, zeros != 0)

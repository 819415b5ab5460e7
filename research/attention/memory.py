"""Memory: keys that come from before the line. All of it yields key slots, and the mask does the rest.

A *reader* stands between a layer and its keys. `Line` reads the line itself; `KeyValues` is the cache of decoding,
whole or rolling behind attention sinks (StreamingLLM, Xiao et al. 2024); `Recurrence`, in recurrence.py, holds
layer inputs of earlier segments. Slots are written once, above the layers; an empty place is segment 0, so it is
never a key.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from research.attention.masks import Mask, Slots


class Layer(NamedTuple):
    """What a reader may ask of the layer it reads for.

    Attributes:
      keys: hidden states [b n m] to keys and values [b n g d], positions not yet applied.
      turn: keys and their slots to keys that know their place.
      content: what the current queries read from hidden states [b n m] and their slots by content alone,
        positions ignored, [b q m]; no parameter of the layer learns from it.
      usage: keys and their slots to the attention each receives from the current queries, [b n].
      compress: the layer's compression, where its memory has one.
    """

    keys: Callable[[Array], tuple[Array, Array]]
    turn: Callable[[Array, Slots], Array]
    content: Callable[[Array, Slots], Array]
    usage: Callable[[Array, Slots], Array]
    compress: Any


class Reading(NamedTuple):
    """Keys, values and their slots for one layer, what it leaves behind, and its auxiliary loss."""

    k: Array
    v: Array
    slots: Slots
    state: Any
    loss: Array | float


@dataclasses.dataclass(frozen=True)
class Line:
    """The keys are the line's own tokens. `collect`: the layers leave keys and values behind, to fill a cache;
    `turned`: keys as they are attended to, else as they were before the position scheme turned them.
    """

    queries: Slots
    collect: bool = False
    turned: bool = True

    def read(self, state: None, x: Array, layer: Layer) -> Reading:
        """Keys of `x`."""
        raw, v = layer.keys(x)
        k = layer.turn(raw, self.queries)
        left = (k if self.turned else raw, v) if self.collect else None
        return Reading(k, v, self.queries, left, 0.0)


# Decoding: keys and values of everything read so far.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    """A cache of every token, up to `capacity`."""

    capacity: int

    turned = True
    reindex = False

    def __post_init__(self):
        _at_least("Whole.capacity", self.capacity, 1)

    def refuses(self, mask: Mask, tokens: int) -> str | None:
        """Why `mask` cannot be extended by `tokens` at a time, or None."""
        return None

    def index(self, cursor: Any, slots: Slots) -> Int[Array | np.ndarray, ""]:
        """Where tokens go: one after another, padding too, so that one cursor serves all rows."""
        if slots.length > self.capacity:
            raise ValueError(
                f"{slots.length} tokens do not fit a cache of {self.capacity}; raise Whole.capacity"
            )
        return jnp.asarray(cursor)

    def fits(self, cursor: Any, n: int) -> Any:
        """Whether `n` more tokens have a place."""
        return cursor + n <= self.capacity

    def placed(self, slots: Slots, held: Slots) -> Slots:
        """The slots as position schemes should read them, where the cache holds `held`."""
        return slots


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rolling:
    """Of each row's last document the first `sinks` tokens and the last `window`: constant memory for streams of
    any length. A token's place follows from its position, so padding takes none.

    `reindex`: schemes read the place in the cache instead of the place in the text, so that no distance exceeds
    the cache (StreamingLLM, section 3.2); only coords change, and keys are turned when they are read.
    """

    window: int
    sinks: int = 0
    reindex: bool = False

    def __post_init__(self):
        _at_least("Rolling.window", self.window, 1)
        _at_least("Rolling.sinks", self.sinks, 0)

    @property
    def capacity(self) -> int:
        """Slots in the cache."""
        return self.sinks + self.window

    @property
    def turned(self) -> bool:
        """Whether the cache holds keys that know their place."""
        return not self.reindex

    def refuses(self, mask: Mask, tokens: int) -> str | None:
        """Why `mask` cannot be extended by `tokens` at a time, or None."""
        reach = self.window - tokens + 1
        if reach > 0 and not mask.reaches(reach, self.sinks):
            return None
        window = f"Window({max(reach, 1)})"
        narrow = f"Causal() & (Sinks({self.sinks}) | {window})" if self.sinks else window
        return (
            f"{mask} sees keys that a rolling cache of {self.window} behind {self.sinks} sinks has dropped when "
            f"{tokens} tokens are read at once; use {narrow} or a wider Rolling.window"
        )

    def index(self, cursor: Any, slots: Slots) -> Int[Array | np.ndarray, "b n"]:
        """Where tokens go: a place of its own for each sink, the others around the window; out of the cache where
        later ones of the same tokens take the place, or a later document does.
        """
        own, last = _last_document(slots)
        position = slots.position
        stays = own & ((position < self.sinks) | (position > last - self.window))
        place = jnp.where(position < self.sinks, position, self.sinks + (position - self.sinks) % self.window)
        return jnp.where(stays, place, self.capacity)

    def fits(self, cursor: Any, n: int) -> Any:
        """Whether `n` more tokens have a place."""
        return True

    def placed(self, slots: Slots, held: Slots) -> Slots:
        """The slots as position schemes should read them, where the cache holds `held`."""
        if not self.reindex:
            return slots
        _, last = _last_document(held)
        shift = jnp.maximum(last + 1 - self.capacity, 0)
        place = jnp.where(slots.position < self.sinks, slots.position, slots.position - shift)
        return dataclasses.replace(slots, coords=place[..., None])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of the tokens read so far.

    Attributes:
      slots: of the cache's places, [b n].
      layers: (k, v) for each place of the stack's pattern, [L b g d n] and [L b g n d], see `kept`.
      cursor: i32[], tokens read, padding included.
      kind: `Whole` or `Rolling`.
    """

    slots: Slots
    layers: Any
    cursor: Any
    kind: Whole | Rolling = dataclasses.field(metadata={"static": True})

    @staticmethod
    def of(kind: Whole | Rolling, slots: Slots, layers: Sequence[Any]) -> "KeyValues":
        """A cache that holds a prompt: its slots [b n] and what a `Line` that collects left of every layer."""
        n = slots.length

        def room(leaf: Any, axis: int) -> Array:
            shape = list(leaf.shape)
            shape[axis] = kind.capacity
            return jnp.zeros(shape, leaf.dtype)

        empty = Slots(
            *(room(leaf, 1) for leaf in fields(slots)),
            coords=None if slots.coords is None else room(slots.coords, 1),
        )
        index = kind.index(0, slots)

        def written(k: Array, v: Array) -> tuple[Array, Array]:
            k, v = kept(k, v)
            return (
                _put(room(k, 4), k, index, rows=1, axis=4),
                _put(room(v, 3), v, index, rows=1, axis=3),
            )

        layers = [written(*layer) for layer in layers]
        return KeyValues(_written(empty, slots, index), layers, jnp.asarray(n, jnp.int32), kind)

    def reader(self, slots: Slots) -> "CacheReader":
        """Reads the cache and the next tokens, at `slots` [b t]."""
        index = self.kind.index(self.cursor, slots)
        held = _written(self.slots, slots, index)
        queries = dataclasses.replace(self.kind.placed(slots, held), start=None)
        return CacheReader(queries, self.kind.placed(held, held), held, index, self.kind)

    def extended(self, reader: "CacheReader", left: Any) -> "KeyValues":
        """The cache as the layers left it."""
        return KeyValues(reader.held, left, self.cursor + reader.queries.length, self.kind)

    def continued(self, n: int) -> Slots:
        """Slots of `n` plain tokens that go on where each row ends."""
        if self.slots.coords is not None:
            raise ValueError(
                "a cache of tokens with coords has no plain continuation; give the tokens' Slots"
            )
        return continued(self.slots, n)


@dataclasses.dataclass(frozen=True)
class CacheReader:
    """The keys of a cache with the new tokens written into it: `keys` as schemes read them, `held` as kept."""

    queries: Slots
    keys: Slots
    held: Slots
    index: Any
    kind: Whole | Rolling
    collect: bool = False

    def read(self, state: tuple[Array, Array], x: Array, layer: Layer) -> Reading:
        """The layer's cache with the keys and values of `x`, to be read and to be kept."""
        k, v = layer.keys(x)
        if self.kind.turned:
            k = layer.turn(k, self.queries)
        k, v = kept(k, v)
        held = _put(state[0], k, self.index, axis=3), _put(state[1], v, self.index, axis=2)
        k, v = lines(*held)
        return Reading(k if self.kind.turned else layer.turn(k, self.keys), v, self.keys, held, 0.0)


def kept(k: Array, v: Array) -> tuple[Array, Array]:
    """Keys and values [*b n g d] as [*b g d n] and [*b g n d]: so a product with one query reads them as they lie."""
    return jnp.moveaxis(k, -3, -1), jnp.swapaxes(v, -3, -2)


def lines(k: Array, v: Array) -> tuple[Array, Array]:
    """What was `kept`, as keys and values [*b n g d]."""
    return jnp.moveaxis(k, -1, -3), jnp.swapaxes(v, -3, -2)


# Slots: written, gathered, continued.


def fields(slots: Slots) -> tuple[Any, Any, Any]:
    """The leaves [*b n] of slots."""
    return slots.position, slots.segment, slots.prefix


def gathered(slots: Slots, columns: Any) -> Slots:
    """The slots at `columns` [b n]."""
    take = lambda leaf: jnp.take_along_axis(jnp.asarray(leaf), columns, axis=-1)  # noqa: E731
    coords = slots.coords
    if coords is not None:
        coords = jnp.take_along_axis(jnp.asarray(coords), columns[..., None], axis=-2)
    return Slots(*map(take, fields(slots)), coords=coords)


def continued(slots: Slots, n: int) -> Slots:
    """Slots of `n` plain tokens: positions go on in the row's last document; a row without any starts one."""
    _, last = _last_document(slots)
    position = last + 1 + np.arange(n, dtype=np.int32)
    segment = jnp.maximum(slots.segment.max(-1, keepdims=True), 1)
    return Slots(position, jnp.broadcast_to(segment, position.shape), jnp.zeros(position.shape, bool))


def _last_document(slots: Slots) -> tuple[Array, Array]:
    """Which slots [b n] belong to the last document of their row, and its last position [b 1] (-1: none)."""
    segment = jnp.asarray(slots.segment)
    own = (segment == segment.max(-1, keepdims=True)) & (segment != 0)
    return own, jnp.where(own, slots.position, -1).max(-1, keepdims=True)


def _written(cache: Slots, new: Slots, index: Any) -> Slots:
    if (cache.coords is None) != (new.coords is None):
        raise ValueError("the prompt and the tokens after it must both have Slots.coords or neither")
    both = zip(fields(cache), fields(new), strict=True)
    coords = None if cache.coords is None else _put(cache.coords, new.coords, index)
    return Slots(*(_put(old, leaf, index) for old, leaf in both), coords=coords)


def _put(line: Array, new: Any, index: Any, *, rows: int = 0, axis: int = 1) -> Array:
    """`new` in `line` from place `index` [] of `axis` on, or at the places `index` [b n] of it, where `rows` is the
    axis of b; past its end nothing is written.
    """
    new = jnp.asarray(new, line.dtype)
    new = jnp.broadcast_to(new, (*line.shape[:axis], new.shape[axis], *line.shape[axis + 1 :]))
    if jnp.ndim(index) == 0:  # in a loop this is written where the line lies; places of rows are scattered
        return jax.lax.dynamic_update_slice_in_dim(line, new, index, axis)

    def scattered(line: Array, new: Array, places: Array) -> Array:
        return line.at[(*(slice(None),) * (axis - 1), places)].set(new, mode="drop")

    return jax.vmap(scattered, (rows, rows, 0), rows)(line, new, index)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} = {value}: expected at least {least}")

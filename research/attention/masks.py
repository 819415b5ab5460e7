"""Masks as rules over slots.

A mask is one elementwise rule on a query slot and a key slot. The rule is written once and read twice: on
columns and rows of slots it is the boolean mask; on *intervals* (what is known of a whole block of slots) it
says whether a pair of the block may, and whether every pair must, be visible. Blocks nobody can see are never
computed, and no mask carries a second, hand-written notion of its own sparsity.

    mask = Causal() & (Sinks(4) | Window(1024))
    mask(q_slots, k_slots)                                   # bool[*b q k]
    visibility(mask, blocks(q_slots, 128), blocks(k_slots, 128))   # Truth(may, must), bool[*b q/128 k/128]
"""

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from research.attention.intervals import FAR, UNKNOWN, Interval, Truth, as_truth, numpy_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """What a mask and a position scheme may know of a line of tokens.

    Fields are annotated `Any` because a pytree is also built of tracers, shapes and shardings.

    Attributes:
      position: i32[*b n], the clock. It alone decides visibility.
      segment: i32[*b n], the example a slot belongs to; 0 is padding or an empty cache slot.
      prefix: bool[*b n], tokens that later *and earlier* tokens of their segment may see.
      coords: number[*b n c] or None (then the position). Geometry: it alone is what position schemes read.
      start: a promise about a pair of Slots of one line (queries and keys), or None: slot j of every row stands
        at place `start + j`, and inside a segment differences of positions equal differences of places.
    """

    position: Any
    segment: Any
    prefix: Any
    coords: Any = None
    start: int | None = dataclasses.field(default=None, metadata={"static": True})

    @staticmethod
    def arange(n: int, batch: tuple[int, ...] = (), start: int = 0) -> "Slots":
        """One segment of `n` slots at positions `start`, `start + 1`, ... and no prefix."""
        position = np.broadcast_to(np.arange(start, start + n, dtype=np.int32), (*batch, n))
        return Slots(
            position=position,
            segment=np.ones_like(position),
            prefix=np.zeros(position.shape, bool),
            start=start,
        )

    @property
    def length(self) -> int:
        """Number of slots n."""
        return self.position.shape[-1]

    def coordinate(self, axis: int = 0) -> Any:
        """Component `axis` of the geometry, number[*b n]; the position where there are no coords."""
        return self.position if self.coords is None else self.coords[..., axis]


@dataclasses.dataclass(frozen=True)
class View:
    """One side of a pair as a rule reads it: arrays, or what is known of a block.

    Attributes:
      position: the clock (array or `Interval`).
      segment: the example (array or `Interval`).
      prefix: whether the slot belongs to a prefix (array or `Truth`).
      real: whether the slot holds a token, i.e. its segment is not 0 (array or `Truth`).
    """

    position: Any
    segment: Any
    prefix: Any
    real: Any


@dataclasses.dataclass(frozen=True)
class Mask:
    """A rule that says which keys a query sees. Subclass it, write `rule` and `explain`, and it is complete.

    Masks are hashable values; their `repr` is the Python expression that builds them.
    """

    def rule(self, q: View, k: View) -> Any:
        """Elementwise arithmetic and comparisons on the two views; never a branch on a value."""
        raise TypeError(f"{type(self).__name__} defines no rule(q, k); every Mask must")

    def explain(self) -> str:
        """One line of text: which keys a query sees."""
        raise TypeError(f"{type(self).__name__} defines no explain(); every Mask must")

    def __call__(self, q: Slots, k: Slots) -> Bool[Array | np.ndarray, "*b q k"]:
        """The mask itself, bool[*b q k]: True where the query sees the key."""
        column, row = _column(q), _row(k)
        shape = np.broadcast_shapes(np.shape(column.position), np.shape(row.position))
        visible = self.rule(column, row)
        return numpy_of(visible).broadcast_to(visible, shape)

    def __and__(self, other: "Mask") -> "Mask":
        return And(_parts(self, And) + _parts(other, And))

    def __or__(self, other: "Mask") -> "Mask":
        return Or(_parts(self, Or) + _parts(other, Or))

    def __invert__(self) -> "Mask":
        return Not(self)

    @property
    def causal(self) -> bool:
        """No query sees any later key."""
        return not self._later(prefix=UNKNOWN)

    @property
    def extendable(self) -> bool:
        """No query sees a later key outside a prefix, so a sequence can be extended without recomputing it."""
        return not self._later(prefix=as_truth(False))

    def reaches(self, behind: int, past: int) -> bool:
        """Whether a query may see a key at least `behind` positions back whose position is `past` or more."""
        return self._may_see(behind, FAR, past, UNKNOWN)

    def _later(self, prefix: Truth) -> bool:
        return self._may_see(-FAR, -1, -FAR, prefix)

    def _may_see(self, nearest: int, farthest: int, past: int, prefix: Truth) -> bool:
        """Whether a query may see a key with q - k from `nearest` to `farthest`, k >= `past` and that prefix flag."""
        low, high, no = np.int64(-FAR), np.int64(FAR), np.int64(0)
        segment = Interval(low, high)
        q = View(Interval(low, high, (np.int64(nearest), np.int64(farthest))), segment, UNKNOWN, UNKNOWN)
        k = View(Interval(np.int64(past), high, (no, no)), segment, prefix, UNKNOWN)
        return bool(visibility(self, q, k).may)


def _column(q: Slots) -> View:
    segment = q.segment[..., :, None]
    return View(q.position[..., :, None], segment, q.prefix[..., :, None], segment != 0)


def _row(k: Slots) -> View:
    segment = k.segment[..., None, :]
    return View(k.position[..., None, :], segment, k.prefix[..., None, :], segment != 0)


def _parts(mask: Mask, kind: Any) -> tuple[Mask, ...]:
    return mask.parts if isinstance(mask, kind) else (mask,)


def _at_least_one(mask: Mask) -> None:
    for field in dataclasses.fields(mask):
        value = getattr(mask, field.name)
        if value < 1:
            raise ValueError(
                f"{type(mask).__name__}.{field.name} = {value!r}: expected an integer of at least 1"
            )


@dataclasses.dataclass(frozen=True)
class Full(Mask):
    """Every key (BERT, encoders)."""

    def rule(self, q: View, k: View) -> Any:
        return np.True_

    def explain(self) -> str:
        return "every key"


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """q - k >= 0: the query itself and every key before it."""

    def rule(self, q: View, k: View) -> Any:
        return q.position - k.position >= 0

    def explain(self) -> str:
        return "keys no later than the query"


@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """q - k >= 0, or the key is a prefix token: the prefix is seen in both directions."""

    def rule(self, q: View, k: View) -> Any:
        return (q.position - k.position >= 0) | k.prefix

    def explain(self) -> str:
        return "keys no later than the query, and the whole prefix"


@dataclasses.dataclass(frozen=True)
class Window(Mask):
    """0 <= q - k < w: the query itself and the w - 1 keys before it."""

    w: int

    __post_init__ = _at_least_one

    def rule(self, q: View, k: View) -> Any:
        behind = q.position - k.position
        return (behind >= 0) & (behind < self.w)

    def explain(self) -> str:
        return f"the query itself and the {self.w - 1} keys before it"


@dataclasses.dataclass(frozen=True)
class SymmetricWindow(Mask):
    """|q - k| < w: the query itself and w - 1 keys on either side."""

    w: int

    __post_init__ = _at_least_one

    def rule(self, q: View, k: View) -> Any:
        return abs(q.position - k.position) < self.w

    def explain(self) -> str:
        return f"the query itself and {self.w - 1} keys on either side"


@dataclasses.dataclass(frozen=True)
class Chunk(Mask):
    """q // c == k // c: keys of the query's own chunk of c positions, later ones too."""

    c: int

    __post_init__ = _at_least_one

    def rule(self, q: View, k: View) -> Any:
        return q.position // self.c == k.position // self.c

    def explain(self) -> str:
        return f"keys in the query's own chunk of {self.c} positions"


@dataclasses.dataclass(frozen=True)
class Dilated(Mask):
    """0 <= q - k < n * s and (q - k) % s == 0: n keys, every s-th one back from the query."""

    n: int
    s: int

    __post_init__ = _at_least_one

    def rule(self, q: View, k: View) -> Any:
        behind = q.position - k.position
        return (behind >= 0) & (behind < self.n * self.s) & (behind % self.s == 0)

    def explain(self) -> str:
        return f"{self.n} keys, one in {self.s}, back from the query itself"


@dataclasses.dataclass(frozen=True)
class Sinks(Mask):
    """k < n: the first n positions of the segment (StreamingLLM's attention sinks)."""

    n: int

    __post_init__ = _at_least_one

    def rule(self, q: View, k: View) -> Any:
        return k.position < self.n

    def explain(self) -> str:
        return f"the first {self.n} positions"


@dataclasses.dataclass(frozen=True)
class Same(Mask):
    """Same segment, neither side padding. `attend` adds it to every mask."""

    def rule(self, q: View, k: View) -> Any:
        return (q.segment == k.segment) & q.real & k.real

    def explain(self) -> str:
        return "keys of the query's own segment, padding excluded"


@dataclasses.dataclass(frozen=True)
class Explicit(Mask):
    """A literal matrix over positions, given as nested tuples: a test helper."""

    matrix: tuple[tuple[bool, ...], ...]

    def rule(self, q: View, k: View) -> Any:
        if isinstance(q.position, Interval):
            return UNKNOWN
        return jnp.asarray(self.matrix)[q.position, k.position]

    def explain(self) -> str:
        return "the pairs of an explicit matrix"


@dataclasses.dataclass(frozen=True)
class And(Mask):
    """Keys that every part shows. In gin: `And.parts = (@masks.Causal(), @masks.Window())`."""

    parts: tuple[Mask, ...]

    def rule(self, q: View, k: View) -> Any:
        return functools.reduce(operator.and_, (part.rule(q, k) for part in self.parts))

    def explain(self) -> str:
        return " and ".join(f"({part.explain()})" for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Or(Mask):
    """Keys that at least one part shows."""

    parts: tuple[Mask, ...]

    def rule(self, q: View, k: View) -> Any:
        return functools.reduce(operator.or_, (part.rule(q, k) for part in self.parts))

    def explain(self) -> str:
        return " or ".join(f"({part.explain()})" for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Not(Mask):
    """Keys that the part hides."""

    part: Mask

    def rule(self, q: View, k: View) -> Any:
        return ~self.part.rule(q, k)

    def explain(self) -> str:
        return f"not ({self.part.explain()})"


def blocks(slots: Slots, size: int) -> View:
    """What is known of each run of `size` consecutive slots: intervals of shape [*b ceil(n / size)].

    Padding is left out of every interval (no mask shows it), so a block of padding alone is an empty interval.
    With `slots.start` set the places are known as well, which keeps differences sharp in packed rows.
    """
    xp = numpy_of(slots.position, slots.segment, slots.prefix)
    n = slots.length
    count = -(-n // size)
    pad = [(0, 0)] * (np.ndim(slots.position) - 1) + [(0, count * size - n)]

    def split(leaf: Any) -> Any:
        leaf = xp.pad(xp.asarray(leaf), pad)
        return leaf.reshape(*leaf.shape[:-1], count, size)

    position, segment, prefix = split(slots.position), split(slots.segment), split(slots.prefix)
    real = segment != 0

    def interval(leaf: Any, place: tuple[Any, Any] | None = None) -> Interval:
        least, most = xp.where(real, leaf, FAR).min(-1), xp.where(real, leaf, -FAR).max(-1)
        return Interval(least, most, place)

    place = None if slots.start is None else _places(n, size, slots.start)
    return View(
        position=interval(position, place),
        segment=interval(segment),
        prefix=Truth((prefix & real).any(-1), (prefix | ~real).all(-1)),
        real=Truth(real.any(-1), real.all(-1)),
    )


def places(n: int, size: int, start: int = 0) -> View:
    """What is known of each run of `size` slots before any value is: only its places, [ceil(n / size)]."""
    anywhere = Interval(np.int64(-FAR), np.int64(FAR), _places(n, size, start))
    return View(anywhere, Interval(np.int64(-FAR), np.int64(FAR)), UNKNOWN, UNKNOWN)


def _places(n: int, size: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.arange(0, n, size)
    return start + first, start + np.minimum(first + size, n) - 1


def visibility(mask: Mask, q: View, k: View) -> Truth:
    """`mask & Same()` read on blocks: bool[*b nq nk] twice. No pair of a block is visible where `may` is False,
    every pair is where `must` is True. Sound for every combination of masks, sharp for the usual ones.
    """
    return as_truth((mask & Same()).rule(_outer(q, np.s_[..., :, None]), _outer(k, np.s_[..., None, :])))


def _outer(view: View, index: Any) -> View:
    def expand(leaf: Any) -> Any:
        return leaf if np.ndim(leaf) == 0 else leaf[index]

    def interval(value: Interval) -> Interval:
        place = value.place and (expand(value.place[0]), expand(value.place[1]))
        return Interval(expand(value.least), expand(value.most), place)

    def truth(value: Truth) -> Truth:
        return Truth(expand(value.may), expand(value.must))

    return View(interval(view.position), interval(view.segment), truth(view.prefix), truth(view.real))


def key_major(mask: Mask, q: Slots, k: Slots) -> Bool[Array | np.ndarray, "*b k q"]:
    """The mask with keys before queries: the same rule, its sides laid the other way round."""
    row, column = _row(q), _column(k)
    shape = np.broadcast_shapes(np.shape(row.position), np.shape(column.position))
    visible = mask.rule(row, column)
    return numpy_of(visible).broadcast_to(visible, shape)


def visible_pairs(mask: Mask, q: Slots, k: Slots) -> int:
    """Number of (query, key) pairs that `attend` shows under `mask`, summed over the batch."""
    return int((mask & Same())(q, k).sum())

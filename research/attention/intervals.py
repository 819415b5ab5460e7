"""What is known of a block of numbers, with the operators a mask's rule is made of.

`Interval` stands for integers, `Truth` for booleans; a rule written for arrays gives, on these, what may and what
must hold. Bounds are NumPy values or traced arrays.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FAR = 2**29  # beyond every clock value; differences of two such values still fit in int32


class _Symbolic:
    """NumPy scalars on the left of an operator give way to the symbolic operand on the right."""

    __array_ufunc__ = None


@dataclasses.dataclass(frozen=True, eq=False)
class Truth(_Symbolic):
    """What is known of a proposition over a block of pairs: `may` hold for one, `must` hold for all."""

    may: Any
    must: Any

    def __and__(self, other: Any) -> "Truth":
        other = as_truth(other)
        return Truth(self.may & other.may, self.must & other.must)

    def __or__(self, other: Any) -> "Truth":
        other = as_truth(other)
        return Truth(self.may | other.may, self.must | other.must)

    def __invert__(self) -> "Truth":
        return Truth(~self.must, ~self.may)

    __rand__, __ror__ = __and__, __or__


def as_truth(value: Any) -> Truth:
    """A proposition: a plain boolean both may and must hold."""
    return value if isinstance(value, Truth) else Truth(np.bool_(value), np.bool_(value))


UNKNOWN = Truth(np.True_, np.False_)


@dataclasses.dataclass(frozen=True, eq=False)
class Interval(_Symbolic):
    """Integers known to lie in `[least, most]` (inclusive; NumPy values or traced arrays).

    `place` holds the least and greatest place of the same numbers on a line shared with another interval: then
    their difference is known even where the numbers themselves are not.
    """

    least: Any
    most: Any
    place: tuple[Any, Any] | None = None

    def __add__(self, other: Any) -> "Interval":
        other = _interval(other)
        return Interval(self.least + other.least, self.most + other.most)

    def __neg__(self) -> "Interval":
        return Interval(-self.most, -self.least)

    def __sub__(self, other: Any) -> "Interval":
        other = _interval(other)
        least, most = self.least - other.most, self.most - other.least
        if self.place is None or other.place is None:
            return Interval(least, most)
        return Interval(
            numpy_of(least).maximum(least, self.place[0] - other.place[1]),
            numpy_of(most).minimum(most, self.place[1] - other.place[0]),
        )

    def __rsub__(self, other: Any) -> "Interval":
        return _interval(other) - self

    def __abs__(self) -> "Interval":
        xp = numpy_of(self.least)
        crosses = (self.least <= 0) & (self.most >= 0)
        nearest = xp.minimum(abs(self.least), abs(self.most))
        return Interval(xp.where(crosses, 0, nearest), xp.maximum(abs(self.least), abs(self.most)))

    def __floordiv__(self, divisor: int) -> "Interval":
        return Interval(self.least // divisor, self.most // divisor)

    def __mod__(self, divisor: int) -> "Interval":
        xp = numpy_of(self.least)
        same = self.least // divisor == self.most // divisor
        return Interval(
            xp.where(same, self.least % divisor, 0),
            xp.where(same, self.most % divisor, divisor - 1),
        )

    def __le__(self, other: Any) -> Truth:
        other = _interval(other)
        return Truth(self.least <= other.most, self.most <= other.least)

    def __lt__(self, other: Any) -> Truth:
        other = _interval(other)
        return Truth(self.least < other.most, self.most < other.least)

    def __ge__(self, other: Any) -> Truth:
        return ~(self < other)

    def __gt__(self, other: Any) -> Truth:
        return ~(self <= other)

    def __eq__(self, other: object) -> Truth:  # ty: ignore[incompatible-method-override]
        return (self <= other) & (self >= other)

    def __ne__(self, other: object) -> Truth:  # ty: ignore[incompatible-method-override]
        return ~(self == other)

    __radd__ = __add__
    __hash__ = None


def _interval(value: Any) -> Interval:
    return value if isinstance(value, Interval) else Interval(np.asarray(value), np.asarray(value))


def numpy_of(*values: Any) -> Any:
    """The module that computes on the values: NumPy unless one of them is a JAX array."""
    return jnp if any(isinstance(value, jax.Array) for value in values) else np

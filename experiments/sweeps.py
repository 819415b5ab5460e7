"""Sweeps: which gin bindings to try together, as small parts that combine.

    Values      one binding, several values
    Product     every combination of its parts
    Zip         the first point of each part, then the second of each, ...
    Chain       the points of one part after those of another
    Subsample   some points of a part, by chance

In a gin file a sweep is bound as any value is; on the command line it is text, see `parse`.
"""

import abc
import ast
import dataclasses
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

Value = int | float | str | bool | tuple | None
_NAME = r"(?:\w+/)*[A-Za-z_][\w.]*"
_LONGEST = 100  # characters of a name, which is part of a file's


class SweepError(ValueError):
    """A sweep that cannot be made. One line."""


@dataclasses.dataclass(frozen=True)
class Point:
    """Bindings that are tried together: pairs of a gin binding and its value, in order."""

    items: tuple[tuple[str, Value], ...]

    @property
    def bindings(self) -> tuple[str, ...]:
        """As gin reads them, "AdamW.learning_rate=0.001"; a string that begins with @ or % is a reference."""
        return tuple(f"{binding}={_gin(value)}" for binding, value in self.items)

    @property
    def name(self) -> str:
        """Such as `learning_rate=0.001+steps=200`, fit for a file name and for a list on the command line."""
        return next(iter(named([self])))

    def joined(self, other: "Point") -> "Point":
        """The bindings of both.

        Raises:
          SweepError: they bind one thing twice.
        """
        for one, two in itertools.product(self.items, other.items):
            if same(one[0], two[0]) and (one[0], _gin(one[1])) != (two[0], _gin(two[1])):
                raise SweepError(
                    f"{one[0]}={_gin(one[1])} and {two[0]}={_gin(two[1])} in one point of a sweep: expected one value; "
                    "bind it in one part of Product or Zip"
                )
        own = {binding for binding, _ in self.items}
        return Point(self.items + tuple(item for item in other.items if item[0] not in own))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part(abc.ABC):
    """A sweep, or a part of one."""

    @abc.abstractmethod
    def points(self) -> tuple[Point, ...]:
        """What is tried, in order.

        Raises:
          SweepError: the parts do not combine.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Values(Part):
    """One binding, e.g. "AdamW.learning_rate", and what it is set to."""

    binding: str
    values: tuple[Value, ...]

    def __post_init__(self):
        if not re.fullmatch(_NAME, self.binding):
            raise SweepError(
                f"Values.binding = {self.binding!r}: expected the name of a gin binding, such as 'train.steps'"
            )
        if not self.values:
            raise SweepError(f"Values.values of {self.binding} are none, expected at least one")
        for value in self.values:
            _gin(value)

    def points(self) -> tuple[Point, ...]:
        return tuple(Point(((self.binding, value),)) for value in self.values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product(Part):
    """Every combination, the last part changing fastest."""

    parts: tuple[Part, ...]

    def points(self) -> tuple[Point, ...]:
        return tuple(_all(some) for some in itertools.product(*(part.points() for part in self.parts)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zip(Part):
    """Point i of every part together; all have the same number."""

    parts: tuple[Part, ...]

    def points(self) -> tuple[Point, ...]:
        points = [part.points() for part in self.parts]
        if len({len(some) for some in points}) > 1:
            counts = " and ".join(str(len(some)) for some in points)
            raise SweepError(
                f"Zip.parts have {counts} points, expected equally many; use Product for every combination"
            )
        return tuple(_all(some) for some in zip(*points, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain(Part):
    """The points of each part in turn; what an earlier one has is not tried again."""

    parts: tuple[Part, ...]

    def points(self) -> tuple[Point, ...]:
        points: dict[frozenset[str], Point] = {}
        for part in self.parts:
            for point in part.points():
                points.setdefault(frozenset(point.bindings), point)
        return tuple(points.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subsample(Part):
    """`count` points of a part in their order, chosen by chance.

    Whether a point is chosen depends on the seed and the points, not on their order; with a larger count the same are
    chosen and more.
    """

    part: Part
    count: int
    seed: int = 0

    def points(self) -> tuple[Point, ...]:
        points = self.part.points()
        if not 1 <= self.count <= len(points):
            raise SweepError(
                f"Subsample.count = {self.count}: expected 1 to {len(points)}, of so many points"
            )
        drawn = sorted(range(len(points)), key=lambda i: _hash(self.seed, sorted(points[i].bindings)))
        return tuple(points[i] for i in sorted(drawn[: self.count]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Arms of a study, each at every point of a sweep."""

    arms: tuple[str, ...]
    points: Part

    def expanded(self) -> dict[str, tuple[str, Point]]:
        """By the name of the arm that it makes, `arm@name`: the arm whose file it is, and the point. A point that binds
        nothing is the arm as it is.

        Raises:
          SweepError: the parts do not combine, or there is nothing to try.
        """
        points = named(self.points.points())
        if not self.arms or not points:
            raise SweepError("Sweep has no arms or no points, expected at least one of each")
        return {
            f"{arm}@{name}" if name else arm: (arm, point)
            for arm in self.arms
            for name, point in points.items()
        }


def named(points: Iterable[Point]) -> dict[str, Point]:
    """Different points by names that are fit for files.

    A binding is called by its last word, or by as many as tell it from the others that these points bind. A name that
    is too long, or that two points would share, ends in part of a hash.
    """
    points = list({frozenset(point.bindings): point for point in points}.values())
    words = _words({binding for point in points for binding, _ in point.items})
    names = ["+".join(f"{words[name]}={_plain(value)}" for name, value in point.items) for point in points]
    return {
        name
        if len(name) <= _LONGEST and names.count(name) == 1
        else f"{name[:_LONGEST]}~{_hash(sorted(point.bindings))[:8]}": point
        for name, point in zip(names, points, strict=True)
    }


def parse(text: str) -> Part:
    """The sweep that a text describes.

        AdamW.learning_rate=1e-3,3e-3 * train.steps=100,200     every combination: Product
        StackConfig.width=64,128 & StackConfig.heads=4,8        one with the other: Zip
        train.steps=100,200 + Data.batch=8                      one after the other: Chain

    `&` binds more closely than `*`, and `*` than `+`. Values are Python literals, or references such as @ALiBi().

    Raises:
      SweepError: anything else.
    """
    for sign, combine in (("+", Chain), ("*", Product), ("&", Zip)):
        # A sign is one only before the next binding: 1e+3 has none.
        pieces = _split(text, rf"\{sign}(?=\s*{_NAME}\s*=)")
        if len(pieces) > 1:
            return combine(parts=tuple(map(parse, pieces)))
    binding, found, values = text.partition("=")
    if not found or not re.fullmatch(_NAME, binding.strip()):
        raise SweepError(
            f"sweep {text.strip()!r}: expected binding=value,value,..., such as train.steps=100,200"
        )
    return Values(binding=binding.strip(), values=tuple(_value(value, text) for value in _split(values, ",")))


def _split(text: str, sign: str) -> list[str]:
    """The text between signs (a pattern), but for those in quotes and brackets."""
    pieces, start, depth, quote = [], 0, 0, ""
    pattern = re.compile(sign)
    place = 0
    while place < len(text):
        character = text[place]
        if quote:
            place += character == "\\"  # what it escapes is no quote
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif not depth and (match := pattern.match(text, place)):
            pieces.append(text[start:place])
            start = match.end()
        depth += 0 if quote else (character in "([") - (character in ")]")
        place += 1
    return [*pieces, text[start:]]


def _value(text: str, where: str) -> Value:
    text = text.strip()
    if text.startswith(("@", "%")):
        return text
    if text.startswith("(") and text.endswith(")"):
        parts = _split(text[1:-1], ",")
        if len(parts) > 1:  # may hold references, which are no Python
            return tuple(_value(part, where) for part in parts if part.strip())
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise SweepError(
            f"sweep {where.strip()!r}: {text!r} is no value; quote strings, write @Name() for objects"
        ) from None


def _all(points: Sequence[Point]) -> Point:
    return functools.reduce(Point.joined, points, Point(()))


def same(one: str, other: str) -> bool:
    """Whether two bindings are of one thing: train.steps is experiment.train.steps."""
    return f".{one}".endswith(f".{other}") or f".{other}".endswith(f".{one}")


def _words(bindings: set[str]) -> dict[str, str]:
    """Each binding by as many of its last words as no other ends in."""
    words = {}
    for binding in bindings:
        parts = re.split(r"[./]", binding)
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [f".{other.replace('/', '.')}" for other in bindings - {binding}]
        own = (end for end in ends if not any(other.endswith(f".{end}") for other in others))
        words[binding] = next(own, ends[-1])
    return words


def _gin(value: Value) -> str:
    """The value as gin reads it."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_gin, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, str) and value.startswith(("@", "%")):
        if not re.fullmatch(r"[@%][\w./]+(\(\))?", value):
            raise SweepError(
                f"value {value!r} of a sweep: expected a reference such as '@Rotary()' or '%WIDTH'"
            )
        return value
    if not isinstance(value, int | float | str | None) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise SweepError(
            f"value {value!r} of a sweep: expected a finite number, a string, True, False, None or a tuple of these"
        )
    return repr(value)


def _plain(value: Value) -> str:
    """The value in characters that every file system takes, and that mean nothing in the name of a point."""
    if isinstance(value, tuple):
        return "_".join(map(_plain, value))
    if isinstance(value, str):
        return re.sub(r"[^\w.-]+", "-", value).strip("-")
    return repr(value).replace("+", "")  # 1e+16 is 1e16


def _hash(*values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()

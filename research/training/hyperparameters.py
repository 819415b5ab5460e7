"""Hyperparameters as data: the numbers of a config that change neither shapes nor the program.

A config's class names them in `tunable`. Runs that differ in nothing else share one compiled step, which reads the
numbers from the train state; so a grid of learning rates compiles once, and an ensemble trains it in one program.
"""

import copy
import dataclasses
from typing import Any


class _Blank(float):
    """Not a number, but equal to itself: forms are compared."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Blank)

    def __hash__(self) -> int:
        return hash(_Blank)


BLANK = _Blank("nan")


def numbers(config: Any) -> dict[str, float]:
    """The tunable numbers of a tree of frozen dataclasses by their path, e.g. {"learning_rate": 3e-3}.

    A number that is None is a choice of program ("no clipping"), not a number.
    """
    found = {}
    for name, value in _fields(config):
        if _inner(value):
            found |= {f"{name}.{inner}": number for inner, number in numbers(value).items()}
        elif name in _tunable(config) and value is not None:
            found[name] = float(value)
    return found


def filled(config: Any, values: dict[str, Any]) -> Any:
    """The config with these numbers, which may be traced; it is not validated again."""
    changed, items = copy.copy(config), []
    for name, value in _fields(config):
        if _inner(value):
            inside = {path.removeprefix(f"{name}."): number for path, number in values.items()}
            value = filled(value, {path: inside[path] for path in numbers(value)})
        elif name in _tunable(config) and value is not None:
            value = values[name]
        items.append(value)
        if not isinstance(config, tuple):
            # Frozen, and a traced number cannot be compared with a bound.
            object.__setattr__(changed, name, value)
    return tuple(items) if isinstance(config, tuple) else changed


def form(config: Any) -> Any:
    """The config with its numbers blanked, equal for configs that share a program; unfilled it trains to NaN."""
    return filled(config, dict.fromkeys(numbers(config), BLANK))


def _fields(config: Any) -> list[tuple[str, Any]]:
    """The fields of a config by name; the items of a tuple by their place."""
    if isinstance(config, tuple):
        return [(str(place), item) for place, item in enumerate(config)]
    return [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]


def _inner(value: Any) -> bool:
    """Whether it has fields of its own that may be tunable."""
    return dataclasses.is_dataclass(value) or (
        isinstance(value, tuple) and bool(value) and all(map(dataclasses.is_dataclass, value))
    )


def _tunable(config: Any) -> tuple[str, ...]:
    return getattr(type(config), "tunable", ())

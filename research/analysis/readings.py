"""Numbers of rows by arm, label and seed, and what their configs bind: what a figure is made of.

What lies at a path of a row is a number, a series of numbers by a label, or a grid of numbers by two labels. What an
arm or a seed lacks is counted, so that it can be named; what no row has is a mistake.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from research.analysis.results import Row

Seeds = Mapping[int, float]  # a number by seed
Labels = tuple[str, ...]  # where it stands: () for a number, ("128",) in a series, ("128", "0.5") in a grid
_BINDING = re.compile(r"(?m)^(?P<scope>(?:\w+/)*)(?P<name>[\w.]+) = (?:\\\n)?(?P<value>.*(?:\n[ \t]+.*)*)$")
KINDS = ("a number", "a series of numbers by a label", "a grid of numbers by two labels")


class FigureError(ValueError):
    """A figure that was declared wrongly, or of nothing. One line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cells:
    """The rows of the arms and seeds that a figure shows. `every` row that there is tells a typo from what is missing.

    Attributes:
      every: rows.
      rows: those of `arms` and `seeds`, at most one of both.
      arms, seeds: what was declared; the seeds by arm.
    """

    every: Sequence[Row]
    rows: Sequence[Row]
    arms: tuple[str, ...]
    seeds: Mapping[str, Sequence[int]]

    def numbers(self, path: str, depth: int = 0) -> Mapping[str, Mapping[Labels, Seeds]]:
        """What the rows have at a path, by arm, labels and seed, where a number has `depth` labels.

        Raises:
          FigureError: no row has such a value there.
        """
        by_arm: dict[str, dict[Labels, dict[int, float]]] = {arm: {} for arm in self.arms}
        for row in self.rows:
            for labels, number in _leaves(_at(row, path)):
                if len(labels) == depth:
                    by_arm[row.arm].setdefault(labels, {})[row.seed] = number
        if not any(by_arm.values()):
            self._check(path, depth)
        return by_arm

    def bound(self, binding: str) -> dict[str, str]:
        """What a gin binding is in the rows' configs, by arm; an arm whose config has none is left out.

        Raises:
          FigureError: no config has it, or an arm has several values.
        """
        by_arm: dict[str, set[str]] = {}
        for row in self.rows:
            by_arm.setdefault(row.arm, set()).update(_bound(row.config, binding))
        for arm, values in by_arm.items():
            if len(values) > 1:
                raise FigureError(
                    f"{binding!r} of arm {arm} is {' and '.join(sorted(values))}, expected one value; name its "
                    "scope in Table.figures of the study"
                )
        found = {arm: value for arm, values in by_arm.items() for value in values}
        if not found:
            names = (match["name"] for row in self.rows for match in _BINDING.finditer(row.config))
            raise FigureError(
                f"{binding!r} is bound in no row{meant(binding, names)}; change Table.figures of the study"
            )
        return found

    def missing(self, counts: Mapping[tuple[str, str], int]) -> list[str]:
        """A note of what not every seed of its arm has; `counts`: how many have it, by the arm and its own name."""
        lacking = [
            f"{name} ({count}/{len(self.seeds[arm])} seeds)"
            for (arm, name), count in counts.items()
            if count < len(self.seeds[arm])
        ]
        return [f"missing: {', '.join(lacking)}"] if lacking else []

    def _check(self, path: str, depth: int) -> None:
        kinds = [(at, kind) for row in self.every for at, kind in _kinds(dataclasses.asdict(row))]
        if (path, depth) not in kinds:
            found = next((f"is {KINDS[kind]}" for at, kind in kinds if at == path), "is in no row")
            near = meant(path, (at for at, kind in kinds if kind == depth))
            raise FigureError(
                f"{path!r} {found}, expected {KINDS[depth]}{near}; change Table.figures of the study"
            )


def meant(name: str, names: Iterable[str]) -> str:
    """The nearest name that there is, as part of an error."""
    near = difflib.get_close_matches(name, sorted(set(names)), n=1, cutoff=0)
    return f"; did you mean {near[0]!r}?" if near else ""


def places(labels: Iterable[str]) -> tuple[dict[str, float], bool]:
    """Where labels stand, in order: at their numbers or, if one is no number, one after the other (True)."""
    labels = list(dict.fromkeys(labels))
    try:
        return dict(sorted(((label, float(label)) for label in labels), key=lambda item: item[1])), False
    except ValueError:
        return {label: float(place) for place, label in enumerate(labels)}, True


def without(arm: str, binding: str) -> str:
    """The name of an arm of a sweep, `arm@name=value+...`, without the part that is the binding's."""
    base, _, point = arm.partition("@")
    full = f".{binding.replace('/', '.')}"
    rest = [part for part in point.split("+") if not full.endswith(f".{part.partition('=')[0]}")]
    return f"{base}@{'+'.join(rest)}" if any(rest) else base


def _at(row: Row, path: str) -> Any:
    try:
        return row.value(path)
    except KeyError:
        return None


def _leaves(value: Any, labels: Labels = ()) -> Iterator[tuple[Labels, float]]:
    """The numbers of a value by their labels; one that is None or not finite was not measured."""
    if isinstance(value, Mapping):
        for label, inner in value.items():
            yield from _leaves(inner, (*labels, str(label)))
    elif isinstance(value, int | float) and math.isfinite(value):
        yield labels, float(value)


def _kinds(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, int]]:
    """The paths of a row's numbers, series and grids, each with how many labels its numbers have."""
    for name, inner in value.items():
        depths = {len(labels) for labels, _ in _leaves(inner)}
        if len(depths) == 1 and max(depths) < len(KINDS):
            yield f"{above}{name}", depths.pop()
        if isinstance(inner, Mapping):
            yield from _kinds(inner, f"{above}{name}.")


def _bound(config: str, binding: str) -> set[str]:
    """The values of a binding in an operative config; of any scope where it names none."""
    scope, _, name = binding.rpartition("/")
    bindings = list(_BINDING.finditer(config))
    macros = {match["name"]: match["value"] for match in bindings}
    values = {
        match["value"]
        for match in bindings
        if f".{match['name']}".endswith(f".{name}") and (not scope or match["scope"] == f"{scope}/")
    }
    return {macros.get(value.removeprefix("%"), value) if value[0] == "%" else value for value in values}

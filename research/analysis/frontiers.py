"""Does a remedy slide along the frontier of plain tuning, or shift it? What is forgotten where as much is learned.

A frontier is what plain tuning forgets for what it learns, over its rates. Another arm forgets less or more than a
rate that learns as much would, which is read off straight lines between the frontier's points, seed by seed. Nothing
is extrapolated.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from research.analysis import rendering, results, statistics, tables
from research.analysis.readings import Seeds, meant
from research.analysis.rendering import Cell, Column, Line, Table
from research.analysis.results import Row
from research.analysis.statistics import Estimate
from research.analysis.tables import TableError

POINTS = 3  # of a frontier, at least: with two there is no inner one to tell its error from


def interpolated(points: Iterable[tuple[float, float]], at: float) -> float | None:
    """The height at a place, on straight lines between points (place, height); None outside their range.

    Raises:
      ValueError: two points have one place.
    """
    places, heights = zip(*sorted(points), strict=True)
    if len(set(places)) < len(places):
        raise ValueError("two points have one place, so there is no height there")
    if not places[0] <= at <= places[-1]:
        return None
    return float(np.interp(at, places, heights))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shifts:
    """A table of arms beside a frontier.

    An arm *shifts* the frontier where the 95 % t interval of its difference to it, paired by seed, lies below -margin,
    *slides* along it where the interval lies within the margin, is *worse* where it lies above, and is undecided
    otherwise. It is *not comparable* where some seed has learned less or more than all points of the frontier. Classes
    explore: they are not corrected for their number, and no verdict rests on them.

    Attributes:
      name: part of the table's name.
      learned, forgotten: paths of numbers in a row, in one unit of which less is better.
      frontier: arms of plain tuning, at least three.
      arms: that are classified.
      margin: what counts as the same, in that unit.
    """

    name: str
    learned: str
    forgotten: str
    frontier: tuple[str, ...]
    arms: tuple[str, ...]
    margin: float = 0.02

    def __post_init__(self):
        if len(set(self.frontier)) < max(POINTS, len(self.frontier)):
            raise TableError(
                f"Shifts {self.name!r}: frontier {self.frontier}, expected at least {POINTS} different arms"
            )

    def table(self, rows: Iterable[Row], known: Mapping[str, Sequence[int]], *, varied: bool) -> Table:
        """The table of the rows that there are.

        Args:
          rows: of the study.
          known: the declared seeds of all its arms.
          varied: see `tables.check_comparable`.

        Raises:
          TableError: the study lacks an arm, or rows do not compare.
          ResultError: two rows of one arm and seed.
        """
        for arm in (*self.frontier, *self.arms):
            if arm not in known:
                raise TableError(f"Shifts {self.name!r}: no arm {arm!r}{meant(arm, known)}")
        stored = list(rows)
        own = {
            arm: results.select(stored, [arm], known[arm])
            for arm in dict.fromkeys((*self.frontier, *self.arms))
        }
        found = [row for rows in own.values() for row in rows]
        tables.check_comparable(found, varied=varied)
        at, height = (tables.measure(path) for path in (self.learned, self.forgotten))
        numbers = {
            arm: (tables.values(rows, found, at), tables.values(rows, found, height)) if rows else ({}, {})
            for arm, rows in own.items()
        }
        lines = [
            Line(
                arm=arm,
                found=len(own[arm]),
                declared=len(known[arm]),
                cells=tuple(self._cells(numbers, arm, len(own[arm]))),
            )
            for arm in self.arms
        ]
        columns = (
            Column(name="learned", label=at.label, measure=at),
            Column(name="forgotten", label=height.label, measure=height),
            Column(name="difference", label="difference to the frontier there"),
            Column(name="class", label="which"),
        )
        return Table(columns=columns, lines=tuple(lines), notes=tuple(self._notes(numbers)))

    def _cells(self, numbers: Mapping[str, tuple[Seeds, Seeds]], arm: str, rows: int) -> Iterator[Cell]:
        for path, seeds in zip((self.learned, self.forgotten), numbers[arm], strict=True):
            if seeds:
                yield rendering.cell(tables.measure(path), statistics.mean_interval(seeds.values()), rows)
            else:
                yield Cell(text="n/a")
        heights = self._at(numbers, numbers[arm][0], self.frontier)
        within = {seed: value for seed, value in heights.items() if value is not None}
        own = {seed: value for seed, value in numbers[arm][1].items() if seed in within}
        if not own:
            yield from (Cell(text="n/a"), Cell(text="not comparable" if heights else "n/a"))
            return
        difference = statistics.paired_difference(own, within)
        yield rendering.cell(tables.measure(self.forgotten), difference, rows, sign="+")
        yield Cell(text="not comparable" if len(within) < len(heights) else self._class(difference))

    def _class(self, difference: Estimate) -> str:
        if math.isnan(difference.half_width):
            return "one seed"
        if difference.high < -self.margin:
            return "shifts"
        if difference.low > self.margin:
            return "worse"
        return "slides" if -self.margin < difference.low and difference.high < self.margin else "undecided"

    def _at(
        self, numbers: Mapping[str, tuple[Seeds, Seeds]], places: Seeds, frontier: Sequence[str]
    ) -> dict[int, float | None]:
        """The frontier's height at these places, of the seeds that have all its points."""
        seeds = set(places).intersection(
            *(set(xs) & set(ys) for xs, ys in (numbers[arm] for arm in frontier))
        )
        found = {}
        for seed in sorted(seeds):
            points = [(numbers[arm][0][seed], numbers[arm][1][seed]) for arm in frontier]
            with contextlib.suppress(ValueError):  # two points of one place are no frontier
                found[seed] = interpolated(points, places[seed])
            found.setdefault(seed, None)
        return found

    def _notes(self, numbers: Mapping[str, tuple[Seeds, Seeds]]) -> Iterator[str]:
        yield (
            f"The frontier is of {', '.join(self.frontier)}. An arm shifts it where the 95 % t interval of the "
            f"difference, paired by seed, lies below {-self.margin:g}, slides along it where the interval lies within "
            f"{self.margin:g}, and is worse where it lies above; not comparable: a seed has learned less or more than "
            "all of the frontier. Not corrected for the number of arms."
        )
        missed = {arm: error for arm in self.frontier if (error := self._missed(numbers, arm)) is not None}
        if missed:
            said = "; ".join(f"{arm} {error.mean:+.3f}" for arm, error in missed.items())
            yield (
                "Error of interpolation: without one inner point, the line between its neighbours misses it by "
                f"(positive: it lies above) {said}. Lines between all points are about half as long, and miss by about "
                "a quarter of that."
            )

    def _missed(self, numbers: Mapping[str, tuple[Seeds, Seeds]], arm: str) -> Estimate | None:
        """By how much the frontier without an inner point of it is above that point."""
        others = [other for other in self.frontier if other != arm]
        heights = self._at(numbers, numbers[arm][0], others)
        errors = [
            value - numbers[arm][1][seed]
            for seed, value in heights.items()
            if value is not None and seed in numbers[arm][1]
        ]
        return statistics.mean_interval(errors) if errors else None

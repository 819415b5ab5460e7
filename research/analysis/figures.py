"""A figure is a function of rows, as a table is: what it shows is declared, what is missing is named below it.

A spec says which values of the rows go where, `draw` reads them and `research.analysis.drawing` draws them. Every
mean has its 95 % t interval over seeds. An arm looks the same in all figures of a study, and a line of several arms
looks as its first one or, in a `Response`, as the arm whose name it has. All specs have their names here.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from research.analysis import drawing, marking, readings, tables
from research.analysis.crossed import Crossed as Crossed
from research.analysis.differences import Differences as Differences
from research.analysis.differences import Task as Task
from research.analysis.drawing import Axis, Grid, Line, Mark
from research.analysis.drawing import save as save
from research.analysis.readings import Cells, FigureError
from research.analysis.specs import OfArms
from research.analysis.specs import Spec as Spec
from research.analysis.specs import alt as alt
from research.analysis.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """Lines, notes of what is missing, and the names of places on the x axis; `named` if they are no numbers."""

    lines: Sequence[Line]
    missing: Sequence[str]
    places: Mapping[float, str] = dataclasses.field(default_factory=dict)
    named: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lines(OfArms):
    """A figure of lines or single points. Labels are made of the paths where none are given."""

    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False

    explained: ClassVar[str] = "Error bars are 95 % t intervals over seeds, small dots are single seeds."

    @abc.abstractmethod
    def _content(self, cells: Cells, arms: Sequence[str]) -> Content: ...

    @abc.abstractmethod
    def _labels(self) -> tuple[str, str]:
        """Of x and y."""

    def _options(self) -> dict[str, Any]:
        """More for `drawing.lines`."""
        return {}

    def _said(self, mark: Mark) -> str:
        return f"{marking.text(mark.y)} at {mark.name}"

    def _figure(self, cells: Cells, arms: Sequence[str]) -> Figure:
        content, (x, y) = self._content(cells, arms), self._labels()
        marks = [mark for line in content.lines for mark in line.marks]
        if self.log_x and (content.named or any(mark.x.mean <= 0 for mark in marks)):
            raise FigureError(
                f"figure {self.name}: log_x, but {x!r} is not always above zero; set log_x = False"
            )
        if self.log_y and any(mark.y.mean <= 0 for mark in marks):
            raise FigureError(
                f"figure {self.name}: log_y, but {y!r} is not always above zero; set log_y = False"
            )
        # 64, 128, ..., 4096 have room on a logarithmic axis only.
        ticks = content.places if content.named or (self.log_x and len(content.places) <= 10) else {}
        notes = [self.explained]
        if any(line.directed for line in content.lines):
            notes.append("The first arm of a line is hollow.")
        if any(mark.y.n == 1 for mark in marks):
            notes.append("What has one seed has no interval.")
        return drawing.lines(
            content.lines,
            title=self.title,
            x=Axis(label=x, log=self.log_x, ticks=ticks),
            y=Axis(label=y, log=self.log_y),
            notes=[" ".join(notes), *content.missing],
            **self._options(),
        )

    def _words(self, cells: Cells, arms: Sequence[str]) -> Iterator[str]:
        content, (x, y) = self._content(cells, arms), self._labels()
        yield f"{y} against {x}"
        for line in content.lines:
            said = "; ".join(map(self._said, marking.telling(line.marks))) or "missing"
            alone = [mark.name for mark in line.marks] == [line.name]
            yield said if alone else f"{line.name.removeprefix('_')}: {said}"
        yield from content.missing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frontier(Lines):
    """Two measures of each arm, such as what was learnt and what was forgotten: a point an arm.

    Attributes:
      x, y: paths of numbers in a row.
      lines: arms that are joined in order, by the line's name, such as the strengths of a remedy, or one architecture
        after once, twice and four times the training.
    """

    x: str
    y: str
    lines: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def _labels(self) -> tuple[str, str]:
        return self.x_label or _label(self.x), self.y_label or _label(self.y)

    def _said(self, mark: Mark) -> str:
        return _placed(mark)

    def _content(self, cells: Cells, arms: Sequence[str]) -> Content:
        for arm in (arm for joined in self.lines.values() for arm in joined):
            self._check_known(arm, cells.arms)
        xs, ys = cells.numbers(self.x), cells.numbers(self.y)
        marks = {arm: marking.point(arm, xs[arm].get((), {}), ys[arm].get((), {})) for arm in cells.arms}
        named = {f"{name}: {', '.join(joined)}": joined for name, joined in self.lines.items()}
        alone = [arm for arm in cells.arms if not any(arm in joined for joined in self.lines.values())]
        drawn = [
            self._line(marking.joined(name, arms.index(joined[0]), (marks[arm] for arm in joined)))
            for name, joined in (named | {arm: (arm,) for arm in alone}).items()
        ]
        missing = cells.missing(
            {(arm, arm): 0 if mark is None else len(mark.seeds) for arm, mark in marks.items()}
        )
        ran = collections.Counter(row.arm for row in cells.rows)
        for label, found in zip(self._labels(), (xs, ys), strict=True):
            if lacking := [arm for arm in cells.arms if len(found[arm].get((), {})) < ran[arm]]:
                missing.append(f"rows without {label}: {', '.join(lacking)}")
        return Content(lines=drawn, missing=missing)

    def _line(self, line: Line) -> Line:
        return dataclasses.replace(line, directed=len(line.marks) > 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained(Frontier):
    """A `Frontier` with the share of the variance of y over arms that a straight line of x explains, R^2, seed by seed
    over those that have all arms; as the rule of that name has it.
    """

    def _content(self, cells: Cells, arms: Sequence[str]) -> Content:
        content = super()._content(cells, arms)
        marks = [mark for line in content.lines for mark in line.marks]
        common = sorted(set.intersection(*(set(mark.seeds) for mark in marks))) if len(marks) > 2 else []
        if not common:
            return content
        points = np.array([[mark.seeds[seed] for mark in marks] for seed in common])  # [seed arm 2]
        if np.any(np.ptp(points, axis=1) == 0):  # all at one place
            return content
        shares = mean_interval(np.corrcoef(seed[:, 0], seed[:, 1])[0, 1] ** 2 for seed in points)
        said = (
            f"A straight line explains R^2 = {marking.text(shares)} of the variance over {len(marks)} points."
        )
        return dataclasses.replace(content, missing=(said, *content.missing))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling(Frontier):
    """A measure against size, both logarithmic, with a power law y = a x^b for every line of three sizes or more.

    The exponent b is that of the least squares line in logarithms, fitted to each seed that has all sizes of the line;
    its interval is over these seeds. It says how seeds differ, not whether a power law is right.

    Attributes:
      x: path of the size: budget.parameters, or budget.train_flops.
      lines: arms of one kind and many sizes, by its name.
    """

    x: str = "budget.parameters"
    log_x: bool = True
    log_y: bool = True

    explained: ClassVar[str] = f"{Lines.explained} Exponents are those of power laws fitted to each seed."

    def _line(self, line: Line) -> Line:
        marks = tuple(sorted(line.marks, key=lambda mark: mark.x.mean))
        line = dataclasses.replace(line, marks=marks, breaks=())
        common = sorted(set.intersection(*(set(mark.seeds) for mark in marks))) if marks else []
        points = np.array([[mark.seeds[seed] for mark in marks] for seed in common])  # [seed size 2]
        if len(marks) < 3 or not common or points.min() <= 0:
            return line
        fits = [np.polyfit(np.log(seed[:, 0]), np.log(seed[:, 1]), 1) for seed in points]
        exponent, (_, offset) = mean_interval(fit[0] for fit in fits), np.mean(fits, axis=0)
        sizes = np.geomspace(marks[0].x.mean, marks[-1].x.mean, 50)
        values = np.exp(offset) * sizes**exponent.mean
        return dataclasses.replace(
            line,
            name=f"{line.name}; exponent {marking.text(exponent)}",
            trend=tuple(zip(sizes.tolist(), values.tolist(), strict=True)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points(Lines):
    """Two series against each other: a point for each of some arms' labels, such as ways to write by how much each
    repeats and what that costs.

    Attributes:
      x, y: paths of series in a row.
      points: by name the arm and the label.
    """

    x: str
    y: str
    points: dict[str, tuple[str, str]]

    def __post_init__(self):
        super().__post_init__()
        shown = dict.fromkeys(arm for arm, _ in self.points.values())
        if not self.points or (self.arms and set(self.arms) != set(shown)):
            raise FigureError(
                f"figure {self.name}: points of {list(shown)}, arms = {self.arms}; expected at least one point, and no "
                "other arms"
            )
        object.__setattr__(self, "arms", tuple(shown))

    def _labels(self) -> tuple[str, str]:
        return self.x_label or _label(self.x), self.y_label or _label(self.y)

    def _said(self, mark: Mark) -> str:
        return _placed(mark)

    def _content(self, cells: Cells, arms: Sequence[str]) -> Content:
        xs, ys = cells.numbers(self.x, depth=1), cells.numbers(self.y, depth=1)
        drawn, counts = [], {}
        for place, (name, (arm, label)) in enumerate(self.points.items()):
            mark = marking.point(name, xs[arm].get((label,), {}), ys[arm].get((label,), {}))
            drawn.append(marking.joined(name, place, [mark]))
            counts[arm, name] = 0 if mark is None else len(mark.seeds)
        return Content(lines=drawn, missing=cells.missing(counts))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves(Lines):
    """A series of each arm against its labels, such as the loss at each length.

    Attributes:
      metric: path of a series in a row.
      mark: a place on the x axis, such as the length that was trained on, and `mark_label` what it is.
      level: a place on the y axis, `level_label` what it is, and `crossing` the path of a number in a row: where on the
        x axis the arm's series is there, drawn as a point with its interval.
    """

    metric: str
    mark: float | None = None
    mark_label: str = "trained on"
    level: float | None = None
    level_label: str = ""
    crossing: str = ""

    explained: ClassVar[str] = "Bands are 95 % t intervals over seeds, small dots are single seeds."

    def __post_init__(self):
        super().__post_init__()
        if self.crossing and self.level is None:
            raise FigureError(f"figure {self.name}: crossing = {self.crossing!r}, but no level; set both")

    def _labels(self) -> tuple[str, str]:
        return self.x_label or "label", self.y_label or _label(self.metric)

    def _options(self) -> dict[str, Any]:
        vertical = {} if self.mark is None else {f"{self.mark_label} ({self.mark:g})": self.mark}
        horizontal = (
            {} if self.level is None else {f"{self.level_label} ({self.level:g})".strip(): self.level}
        )
        return {"band": True, "vertical": vertical, "horizontal": horizontal}

    def _said(self, mark: Mark) -> str:
        if self.crossing and mark.name == self.crossing:
            return f"{_label(self.crossing)} {marking.text(mark.x)}"
        return super()._said(mark)

    def _crossings(self, cells: Cells, arms: Sequence[str]) -> Iterator[Line]:
        """A point of each arm, which is not in the legend."""
        for arm, found in cells.numbers(self.crossing).items() if self.crossing else ():
            xs = found.get((), {})
            mark = marking.point(self.crossing, xs, dict.fromkeys(xs, self.level or 0.0))
            yield marking.joined(f"_{arm}", arms.index(arm), [mark])

    def _content(self, cells: Cells, arms: Sequence[str]) -> Content:
        series = cells.numbers(self.metric, depth=1)
        places, named = readings.places(label for by_label in series.values() for (label,) in by_label)
        drawn, counts = [], {}
        for arm in cells.arms:
            by_label = {label: series[arm].get((label,), {}) for label in places}
            marks = (
                marking.point(label, dict.fromkeys(ys, places[label]), ys) for label, ys in by_label.items()
            )
            drawn.append(marking.joined(arm, arms.index(arm), marks))
            counts[arm, arm] = whole = len({seed for ys in by_label.values() for seed in ys})
            counts |= {
                (arm, f"{arm} at {label}"): len(ys) for label, ys in by_label.items() if len(ys) < whole
            }
        ticks = {place: label for label, place in places.items()}
        drawn.extend(self._crossings(cells, arms))
        return Content(lines=drawn, missing=cells.missing(counts), places=ticks, named=named)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response(Lines):
    """A measure against the value of a gin binding over a sweep, one line for what the sweep left alone.

    An arm of a sweep is called `arm@name=value,...`. The value is read from the row's own config, so that the arm
    without a sweep is on the curve as well. Arms that differ in other bindings are lines of their own. A line looks as
    the arm whose name it has or, where there is none, as the first of its arms.

    Attributes:
      binding: such as "AdamW.learning_rate".
      metric: path of a number in a row.
    """

    binding: str
    metric: str

    def _labels(self) -> tuple[str, str]:
        return self.x_label or self.binding, self.y_label or _label(self.metric)

    def _content(self, cells: Cells, arms: Sequence[str]) -> Content:
        values, found = cells.bound(self.binding), cells.numbers(self.metric)
        places, named = readings.places(values.values())
        lines: dict[str, list[str]] = {}
        for arm in cells.arms:
            lines.setdefault(readings.without(arm, self.binding), []).append(arm)

        def line(name: str, members: Sequence[str]) -> Line:
            bound = sorted((arm for arm in members if arm in values), key=lambda arm: places[values[arm]])
            ys = {arm: found[arm].get((), {}) for arm in bound}
            marks = (
                marking.point(values[arm], dict.fromkeys(ys[arm], places[values[arm]]), ys[arm])
                for arm in bound
            )
            return marking.joined(name, arms.index(name if name in members else members[0]), marks)

        drawn = [line(name, members) for name, members in lines.items()]
        missing = cells.missing({(arm, arm): len(found[arm].get((), {})) for arm in cells.arms})
        if unbound := sorted({row.arm for row in cells.rows} - values.keys()):
            missing.append(f"without {self.binding}: {', '.join(unbound)}")
        ticks = {place: value for value, place in places.items()}
        return Content(lines=drawn, missing=missing, places=ticks, named=named)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeatMap(OfArms):
    """A grid of each arm, such as the score at each length (rows) and depth (columns): means over seeds, a panel
    an arm, on one colour scale.

    Attributes:
      metric: path of a grid in a row.
      format: of the numbers in the cells.
    """

    metric: str
    row_label: str = ""
    column_label: str = ""
    label: str = ""
    format: str = ".2f"

    def _content(self, cells: Cells) -> tuple[list[Grid], list[str]]:
        found = cells.numbers(self.metric, depth=2)
        grids, counts = [], {}
        for arm, by_label in found.items():
            values = {
                (row, column): mean_interval(ys.values()).mean for (row, column), ys in by_label.items()
            }
            grids.append(Grid(name=arm, values=values))
            counts[arm, arm] = whole = len({seed for ys in by_label.values() for seed in ys})
            counts |= {
                (arm, f"{arm} at {row}, {column}"): len(ys)
                for (row, column), ys in by_label.items()
                if len(ys) < whole
            }
        return grids, cells.missing(counts)

    def _figure(self, cells: Cells, arms: Sequence[str]) -> Figure:
        grids, missing = self._content(cells)
        rows, columns = (
            list(readings.places(labels[axis] for grid in grids for labels in grid.values)[0])
            for axis in (0, 1)
        )
        return drawing.grids(
            grids,
            rows=rows,
            columns=columns,
            title=self.title,
            labels=(self.row_label, self.column_label, self.label or _label(self.metric)),
            format=self.format,
            notes=["Means over seeds; hatched cells were not measured.", *missing],
        )

    def _words(self, cells: Cells, arms: Sequence[str]) -> Iterator[str]:
        grids, missing = self._content(cells)
        for grid in grids:
            if not grid.values:
                continue
            least, most = (choose(grid.values, key=grid.values.__getitem__) for choose in (min, max))
            yield (
                f"{grid.name}: from {grid.values[least]:{self.format}} at {', '.join(least)} to "
                f"{grid.values[most]:{self.format}} at {', '.join(most)}, mean "
                f"{np.mean(list(grid.values.values())):{self.format}}"
            )
        yield from missing


def _placed(mark: Mark) -> str:
    return f"{mark.name} {marking.text(mark.y)} at {marking.text(mark.x)}"


def _label(path: str) -> str:
    return tables.measure(path).label

"""What each arm gains on a baseline, task by task: a map of differences that are paired by seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from research.analysis import drawing, marking
from research.analysis.aggregate import Direction
from research.analysis.drawing import Tile
from research.analysis.readings import Cells, FigureError, Seeds
from research.analysis.specs import Spec
from research.analysis.statistics import Estimate, paired_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARK = "†"  # not the star of tables, which stands for a test that is corrected for their number
Gains = Mapping[
    tuple[str, str], Estimate
]  # by line and title of the task; what was not measured has no entry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A column of `Differences`: a metric of a baseline and of the arms that are compared with it.

    Attributes:
      title: above the column.
      metric: path of a number in a row.
      baseline: arm.
      arms: one for each line of the figure, in their order; '' where there is none.
      better: which value of the metric is.
      unit: of the metric.
    """

    title: str
    metric: str
    baseline: str
    arms: tuple[str, ...]
    better: Direction = "lower"
    unit: str = ""

    @property
    def label(self) -> str:
        """The title with the unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def gain(self, arm: Seeds, baseline: Seeds) -> Estimate:
        """The difference over the seeds that both have, positive where the arm is better.

        Raises:
          ValueError: no seed in common.
        """
        return (
            paired_difference(arm, baseline) if self.better == "higher" else paired_difference(baseline, arm)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Differences(Spec):
    """What arms gain on a baseline, over tasks that each have their own arms: a line an architecture, a column a task.

    A cell has the mean over seeds of the difference to the baseline with the same seed, signed so that positive is
    better, ± the half width of its 95 % t interval, and a mark where the interval excludes 0. Its colour is the
    difference divided by the largest one of the task, since units differ: colours compare arms on a task, not tasks.

    Attributes:
      rows: names of the lines, such as 'prefix' and 'encoder-decoder'.
      columns: tasks.
    """

    rows: tuple[str, ...]
    columns: tuple[Task, ...]

    def __post_init__(self):
        super().__post_init__()
        titles = tuple(task.title for task in self.columns)
        for field, names in (("rows", self.rows), ("columns", titles)):
            if not names or len(set(names)) < len(names):
                raise FigureError(
                    f"{field} = {names} of figure {self.name}: expected at least one, each with a name of its own; "
                    "change Table.figures of the study"
                )
        for task in self.columns:
            if len(task.arms) != len(self.rows):
                raise FigureError(
                    f"arms = {task.arms} of task {task.title!r} in figure {self.name}: expected {len(self.rows)}, one "
                    f"for each of {', '.join(self.rows)} ('' for none); change Table.figures of the study"
                )

    @property
    def arms(self) -> tuple[str, ...]:
        """Baselines and arms of all tasks."""
        named = (arm for task in self.columns for arm in (task.baseline, *task.arms))
        return tuple(dict.fromkeys(arm for arm in named if arm))

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all tasks."""
        return tuple(task.metric for task in self.columns)

    def _content(self, cells: Cells) -> tuple[Gains, list[str]]:
        gains, counts = {}, {}
        ran = {row.arm for row in cells.rows}
        for task in self.columns:
            # Before the first run of a task its metric is in no row, which is no typo.
            found = cells.numbers(task.metric) if ran & {task.baseline, *task.arms} else {}
            values = {arm: by_labels.get((), {}) for arm, by_labels in found.items()}
            baseline = values.get(task.baseline, {})
            counts[task.baseline, f"{task.baseline} at {task.title}"] = len(baseline)
            for line, arm in zip(self.rows, task.arms, strict=True):
                if not arm:
                    continue
                shared = values.get(arm, {}).keys() & baseline.keys()
                counts[arm, f"{line} at {task.title}"] = len(shared)
                if shared:
                    gains[line, task.title] = task.gain(values[arm], baseline)
        return gains, cells.missing(counts)

    def _figure(self, cells: Cells, arms: Sequence[str]) -> Figure:
        gains, missing = self._content(cells)
        return drawing.tiles(
            {
                (line, task.label): tile
                for task in self.columns
                for line, tile in self._tiles(task, gains).items()
            },
            rows=self.rows,
            columns=[task.label for task in self.columns],
            title=self.title,
            notes=[" ".join(self._explained(gains)), *missing],
        )

    def _tiles(self, task: Task, gains: Gains) -> dict[str, Tile]:
        """By line; a line whose arm was not measured has none."""
        own = {line: gains[line, task.title] for line in self.rows if (line, task.title) in gains}
        largest = max((abs(gain.mean) for gain in own.values()), default=0.0) or 1.0
        blank = {
            line: Tile(shade=math.nan, text="–")
            for line, arm in zip(self.rows, task.arms, strict=True)
            if not arm
        }
        return blank | {
            line: Tile(shade=gain.mean / largest, text=_signed(gain).replace(" ±", "\n±"))
            for line, gain in own.items()
        }

    def _explained(self, gains: Gains) -> Iterator[str]:
        yield (
            "Mean differences to the baseline, paired by seed, ± half the width of their 95 % t intervals; positive is "
            f"better. {MARK}: the interval excludes 0, without a correction for how many there are. Colours are the "
            "differences divided by the largest one of their task: they compare arms on a task, not tasks. Hatched "
            "cells were not measured."
        )
        if any("" in task.arms for task in self.columns):
            yield "A dash: no such arm."
        if any(gain.n == 1 for gain in gains.values()):
            yield "What has one seed has no interval."
        yield f"Baselines: {', '.join(f'{task.baseline} ({task.title})' for task in self.columns)}."

    def _words(self, cells: Cells, arms: Sequence[str]) -> Iterator[str]:
        gains, missing = self._content(cells)
        yield (
            f"Differences paired by seed, positive where better than the baseline; {MARK} where the interval excludes 0"
        )
        for task in self.columns:
            said = (f"{line} {_signed(gain)}" for (line, title), gain in gains.items() if title == task.title)
            yield f"{task.label} against {task.baseline}: {'; '.join(said) or 'missing'}"
        yield from missing


def _signed(gain: Estimate) -> str:
    """The difference with its sign and interval, marked where that excludes 0."""
    mark = f" {MARK}" if gain.low > 0 or gain.high < 0 else ""
    return f"{'+' if gain.mean > 0 else ''}{marking.text(gain)}{mark}"

"""Arms that are each one of a cause and one of a kind, as a map of one measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from research.analysis import drawing, marking, tables
from research.analysis.drawing import Grid
from research.analysis.readings import Cells, FigureError
from research.analysis.specs import Spec
from research.analysis.statistics import Estimate, mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crossed(Spec):
    """Means over seeds of a number of each arm, by two of their properties: causes as rows, architectures as columns.

    Attributes:
      metric: path of a number in a row.
      columns: names of the columns.
      rows: by its name a row's arms, one for each column; "": there is no such arm.
      row_label, column_label, label: of the axes and of the measure.
      format: of the numbers.
    """

    metric: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]
    row_label: str = ""
    column_label: str = ""
    label: str = ""
    format: str = ".2f"

    def __post_init__(self):
        super().__post_init__()
        for name, arms in self.rows.items():
            if len(arms) != len(self.columns):
                raise FigureError(
                    f"figure {self.name}: row {name!r} has {len(arms)} arms, expected one for each of the columns "
                    f"{list(self.columns)}"
                )
        if not self.arms:
            raise FigureError(f"figure {self.name}: rows = {self.rows}, expected an arm")

    @property
    def arms(self) -> tuple[str, ...]:
        """Of all rows."""
        return tuple(dict.fromkeys(arm for row in self.rows.values() for arm in row if arm))

    def _means(self, cells: Cells) -> tuple[dict[tuple[str, str], Estimate], list[str]]:
        found = cells.numbers(self.metric)
        values, counts = {}, {}
        for row, arms in self.rows.items():
            for column, arm in zip(self.columns, arms, strict=True):
                by_seed = found[arm].get((), {}) if arm else {}
                if arm:
                    counts[arm, arm] = len(by_seed)
                if by_seed:
                    values[row, column] = mean_interval(by_seed.values())
        return values, cells.missing(counts)

    def _figure(self, cells: Cells, arms: Sequence[str]) -> Figure:
        means, missing = self._means(cells)
        return drawing.grids(
            [Grid(name="", values={place: one.mean for place, one in means.items()})],
            rows=list(self.rows),
            columns=self.columns,
            title=self.title,
            labels=(self.row_label, self.column_label, self.label or tables.measure(self.metric).label),
            format=self.format,
            notes=["Means over seeds; of a hatched cell there is no arm, or no row.", *missing],
        )

    def _words(self, cells: Cells, arms: Sequence[str]) -> Iterator[str]:
        means, missing = self._means(cells)
        for row in self.rows:
            said = (
                f"{column} {marking.text(means[row, column])}"
                for column in self.columns
                if (row, column) in means
            )
            yield f"{row}: {', '.join(said) or 'missing'}"
        yield from missing

"""A table of one arm whose lines are the labels of what an evaluation measured, such as ways to write."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from research.analysis import results, statistics
from research.analysis.readings import meant
from research.analysis.rendering import Cell, Column, Line, Measure, Table, cell
from research.analysis.results import Row
from research.analysis.tables import TableError

MARK = "‡"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """The numbers at `of.metric.label` of an arm's rows: a line a label, a column a metric, means over seeds.

    Attributes:
      name: of the table.
      arm: of the study.
      of: path of an evaluation in a row, such as metrics.decoding.
      metrics: the columns.
      labels: the lines, in their order.
      floor: the last line, of the numbers at `of.floor.metric`: what people wrote; "": none.
      filtered: by label the metrics that it lowers by construction. They are marked, as they say nothing of it.
    """

    name: str
    arm: str
    of: str
    metrics: tuple[str, ...]
    labels: tuple[str, ...]
    floor: str = "human"
    filtered: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if unknown := self.filtered.keys() - set(self.labels):
            raise TableError(
                f"Labelled {self.name!r}: filtered = {sorted(unknown)}, expected some of {list(self.labels)}"
            )

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the series that it shows."""
        return tuple(f"{self.of}.{metric}" for metric in self.metrics)

    def table(self, rows: Iterable[Row], known: Mapping[str, Sequence[int]]) -> Table:
        """The table; whether the rows compare is the table's of the arm's comparison to say.

        Args:
          rows: of the study.
          known: the declared seeds of all its arms.

        Raises:
          TableError: the study lacks the arm.
          ResultError: two rows of one seed.
        """
        if self.arm not in known:
            raise TableError(f"Labelled {self.name!r}: no arm {self.arm!r}{meant(self.arm, known)}")
        own = results.select(list(rows), [self.arm], known[self.arm])
        lines = [
            self._line(label, own, [f"{path}.{label}" for path in self.paths], known) for label in self.labels
        ]
        if self.floor:
            paths = [f"{self.of}.{self.floor}.{metric}" for metric in self.metrics]
            lines.append(self._line(self.floor, own, paths, known))
        notes = [f"{self.arm}; {len(own)} seeds; intervals are 95 % t intervals over seeds."]
        if self.filtered:
            notes.append(f"{MARK}: lowered by construction, so it says nothing of the line.")
        return Table(
            columns=tuple(Column(name=metric, label=metric.replace("_", " ")) for metric in self.metrics),
            lines=tuple(lines),
            notes=tuple(notes),
        )

    def _line(
        self, label: str, own: Sequence[Row], paths: Sequence[str], known: Mapping[str, Sequence[int]]
    ) -> Line:
        cells = []
        for metric, path in zip(self.metrics, paths, strict=True):
            found = [row.value(path) for row in own if _has(row, path)]
            shown = cell(_NUMBER, statistics.mean_interval(found), len(own)) if found else Cell(text="n/a")
            if found and metric in self.filtered.get(label, ()):
                shown = dataclasses.replace(shown, text=shown.text + MARK)
            cells.append(shown)
        return Line(arm=label, found=len(own), declared=len(known[self.arm]), cells=tuple(cells))


_NUMBER = Measure(path="", label="", format=".3f")


def _has(row: Row, path: str) -> bool:
    try:
        return row.value(path) is not None
    except KeyError:
        return False

"""What all figures have: a name, words, and the rows that they are made of."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from research.analysis import readings, results
from research.analysis.readings import Cells, FigureError
from research.analysis.results import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Seeds = Sequence[int] | Mapping[str, Sequence[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec(abc.ABC):
    """What all figures have.

    Attributes:
      name: of the files, without a suffix.
      title: above the figure.
      caption: for below it, where it is shown, and in its alternative text.
    """

    name: str
    title: str
    caption: str = ""

    def __post_init__(self):
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise FigureError(
                f"name = {self.name!r} of a figure: expected letters, digits, '_', '-' and '.' only"
            )

    @property
    @abc.abstractmethod
    def arms(self) -> tuple[str, ...]:
        """Those that are shown; all of the study's where none are named."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the rows' numbers, series or grids that it shows."""
        return tuple(path for name in ("metric", "x", "y", "crossing") if (path := getattr(self, name, "")))

    def draw(self, rows: Sequence[Row], arms: Sequence[str], seeds: Seeds | None = None) -> Figure:
        """The figure of the rows of these arms.

        Args:
          rows: of the study at one scale.
          arms: of the study, in order, which decides how each looks.
          seeds: those declared, of all arms or by arm; without them, those that any of the rows shown has.

        Raises:
          FigureError: no rows, or an unknown arm or path.
          ResultError: two rows of one arm and seed.
        """
        return self._figure(self._cells(rows, arms, seeds), arms)

    @abc.abstractmethod
    def _figure(self, cells: Cells, arms: Sequence[str]) -> Figure: ...

    @abc.abstractmethod
    def _words(self, cells: Cells, arms: Sequence[str]) -> Iterator[str]:
        """What there is to see, sentence by sentence."""

    def _cells(self, rows: Sequence[Row], arms: Sequence[str], seeds: Seeds | None) -> Cells:
        shown = self.arms or tuple(arms)
        for arm in shown:
            self._check_known(arm, arms)
        found = [row for row in rows if row.arm in shown]
        some = sorted({row.seed for row in found}) if seeds is None else seeds
        declared = some if isinstance(some, Mapping) else dict.fromkeys(shown, some)
        found = [row for arm in shown for row in results.select(found, [arm], declared[arm])]
        if not found:
            raise FigureError(
                f"figure {self.name}: no rows of {', '.join(shown) or 'any arm'}; launch the study"
            )
        return Cells(every=rows, rows=found, arms=shown, seeds=declared)

    def _check_known(self, arm: str, arms: Sequence[str]) -> None:
        if arm not in arms:
            near = readings.meant(arm, arms)
            raise FigureError(f"figure {self.name}: no arm {arm!r}{near}; change Table.figures of the study")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfArms(Spec):
    """A figure in which all arms have the same place.

    Attributes:
      arms: those that are shown; all of the study's where none are named.
    """

    arms: tuple[str, ...] = ()


def alt(spec: Spec, rows: Sequence[Row], arms: Sequence[str], seeds: Seeds | None = None) -> str:
    """The figure in words with its main numbers, for who cannot see it; arguments and errors are those of `draw`."""
    said = [spec.title, spec.caption, *spec._words(spec._cells(rows, arms, seeds), arms)]
    return " ".join(f"{sentence.rstrip('.')}." for sentence in said if sentence)

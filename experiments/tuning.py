"""The grid of learning rates of a study: which cells there are, and what they choose."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments import cells, configs
from experiments.cells import Cell
from experiments.study import Study
from research.analysis import tuning
from research.analysis.tuning import Choice

EXTENSIONS = 3  # of the grid at most; beyond, the grid was far off and is to be declared anew


@dataclasses.dataclass(frozen=True)
class Grid:
    """The cells of a study at some learning rates; see `study.Tuning`."""

    study: Study
    rates: tuple[float, ...]
    results_dir: Path | str
    runs_dir: Path | str
    data_dir: str | None

    @property
    def cells(self) -> list[Cell]:
        planned = self.study.grid(self.rates)
        return cells.of(planned, planned.arms, self.results_dir, self.runs_dir, self.data_dir)

    def choices(self) -> dict[str, Choice]:
        """What the rows choose for each arm; a cell without a row has no loss.

        Raises:
          ConfigError: a row has no such loss.
        """
        planned = self.study.table.tuning
        assert planned is not None
        losses: dict[str, dict[float, float | None]] = {arm: {} for arm in self.study.arms}
        for cell in self.cells:
            file, point = cell.study.points[cell.arm]
            rate, row = dict(point.items)[planned.binding], cell.row
            assert isinstance(rate, int | float)
            try:
                losses[file][rate] = None if row is None else row.value(planned.metric)
            except KeyError as error:
                raise configs.ConfigError(
                    f"{error.args[0]}; set Tuning.metric in configs/{self.study.name}/study.gin"
                ) from None
        return {arm: Choice(losses=found) for arm, found in losses.items()}


def run(grid: Grid, run_cells: Callable[[Sequence[Cell]], None]) -> dict[str, Choice]:
    """Run the grid, longer as long as an arm has its best rate at an edge; what each arm has chosen.

    `run_cells` runs the cells that have no row.

    Raises:
      ConfigError: an arm has none, or still has it at an edge, or there is no such loss.
    """
    longer = grid.rates
    for _ in range(EXTENSIONS + 1):
        grid = dataclasses.replace(grid, rates=longer)
        run_cells(cells.missing(grid.cells))
        choices = grid.choices()
        if lost := [arm for arm, choice in choices.items() if choice.rate is None]:
            raise configs.ConfigError(f"arm {lost[0]}: no learning rate of {grid.rates} gave a loss")
        longer = tuning.extended(grid.rates, choices)
        if longer == tuple(sorted(grid.rates)):
            return choices
    edges = [f"{arm} at {choice.rate:g}" for arm, choice in choices.items() if choice.edge]
    raise configs.ConfigError(
        f"the best learning rates are still at an edge of {grid.rates} ({', '.join(edges)}); set Tuning.rates in "
        f"configs/{grid.study.name}/study.gin"
    )


def binding(planned: Study, choices: dict[str, Choice]) -> str:
    """What to put into study.gin."""
    rates = ", ".join(f"{arm!r}: {choice.rate!r}" for arm, choice in choices.items())
    return f"study.Table.learning_rates = {{{planned.scale!r}: {{{rates}}}}}"

"""The grid of learning rates of a study: which cells there are, and what they choose."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments import cells, configs
from experiments.cells import Cell
from experiments.study import Study
from research.analysis import tuning
from research.analysis.tuning import Choice

EXTENSIONS = 3  # of the grid at most; beyond, the grid was far off and is to be declared anew


@dataclasses.dataclass(frozen=True)
class Grid:
    """The cells of arms of a study's table at some learning rates; see `study.Tuning`."""

    study: Study
    arms: tuple[str, ...]
    rates: tuple[float, ...]
    results_dir: Path | str
    runs_dir: Path | str
    data_dir: str | None

    @property
    def cells(self) -> list[Cell]:
        planned = self.study.grid(self.rates, self.arms)
        return cells.of(planned, planned.arms, self.results_dir, self.runs_dir, self.data_dir)

    def choices(self) -> dict[str, Choice]:
        """What the rows choose for each arm that can be planned; a cell without a row has no loss.

        Raises:
          ConfigError: a row has no such loss.
        """
        planned = self.study.table.tuning
        assert planned is not None
        losses: dict[str, dict[float, float | None]] = {}
        for cell in cells.sound(self.cells)[0]:
            file, point = cell.study.points[cell.arm]
            rate, row = dict(point.items)[planned.binding], cell.row
            assert isinstance(rate, int | float)
            try:
                losses.setdefault(file, {})[rate] = None if row is None else row.value(planned.metric)
            except KeyError as error:
                raise configs.ConfigError(
                    f"{error.args[0]}; set Tuning.metric in configs/{self.study.name}/study.gin"
                ) from None
        return {arm: Choice(losses=found) for arm, found in losses.items()}


def run(grid: Grid, run_cells: Callable[[Sequence[Cell]], None]) -> dict[str, Choice]:
    """Run the grid, longer as long as an arm has its best rate at an edge; what each arm has chosen.

    `run_cells` runs the cells that have no row; one that failed is not run again. Arms that cannot be planned are left
    out.

    Raises:
      ConfigError: an arm has none, or still has it at an edge, or there is no such loss.
    """
    longer, tried = grid.rates, set[Path]()
    for _ in range(EXTENSIONS + 1):
        grid = dataclasses.replace(grid, rates=longer)
        todo = [cell for cell in cells.missing(cells.sound(grid.cells)[0]) if cell.job.folder not in tried]
        tried |= {cell.job.folder for cell in todo}
        run_cells(todo)
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


def measured(grid: Grid, found: Mapping[str, Choice]) -> dict[str, Choice]:
    """What is known of all arms of the study at the rates at which some have chosen, also from earlier commands."""
    rates = tuple(sorted({rate for choice in found.values() for rate in choice.losses}))
    known = dataclasses.replace(grid, arms=grid.study.arms, rates=rates).choices()
    return {arm: choice for arm, choice in known.items() if choice.rate is not None}


def binding(planned: Study, choices: Mapping[str, Choice]) -> str:
    """What to put into study.gin: the choices, and what was chosen before for other arms and scales."""
    rates = planned.rates | {arm: choice.rate for arm, choice in choices.items()}
    ordered = {arm: rates[arm] for arm in planned.table.arms if arm in rates}
    return f"study.Table.learning_rates = {planned.table.learning_rates | {planned.scale: ordered}!r}"

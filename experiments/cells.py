"""The cells of a study: what there is to run for each, which of them have a row, and how a row is made."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import configs, experiment, folders, running, scoring, twins
from experiments.experiment import Experiment
from experiments.folders import InUse
from experiments.stages import Stage
from experiments.study import Study, require_rates
from research.analysis import readings, results
from research.analysis.results import Row
from research.evaluation.checked import Checked
from research.training import loop

Outcome = float | Exception  # a held-out loss, or why there is none


@dataclasses.dataclass(frozen=True, eq=False)  # a study has no hash, and a cell is a key
class Cell:
    """One arm with one seed; `runs` and `rows` are the folders of run folders and of rows. `again`: a row that is stale
    does not count. `followers`: the arms that start from it, the one that was asked for first; where there are some, a
    row is not enough without the trained parameters.
    """

    study: Study
    arm: str
    seed: int
    runs: Path
    rows: Path
    data_dir: str | None
    again: bool = False
    followers: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """How the cell is called in what is printed."""
        return f"{self.arm} seed {self.seed}"

    @functools.cached_property
    def _planned(self) -> tuple[Experiment, str]:
        return self.study.experiment(self.arm, self.seed, self.data_dir)

    @functools.cached_property
    def base(self) -> "Cell | None":
        """The cell whose trained parameters it starts from.

        Raises:
          ConfigError: there is no such arm, it starts from this one, or has not this seed or no learning rate.
        """
        start = self._planned[0].init_from
        if not isinstance(start, Stage):
            return None
        return self._other(start.arm, f"configs/{self.study.name}/{self.study.file(self.arm)}.gin")

    @functools.cached_property
    def asked(self) -> "tuple[Cell, ...]":
        """The cells whose trained parameters its evaluations ask.

        Raises:
          ConfigError: as `base`.
        """
        where = f"configs/{self.study.name}/study.gin"
        every = [experiment.asked(one) for one in self.study.evaluations(self.arm).values()]
        arms = dict.fromkeys(stage.arm for asked in every for stage in asked)
        return tuple(self._other(arm, where) for arm in arms)

    @property
    def before(self) -> "tuple[Cell, ...]":
        """All cells whose trained parameters it needs."""
        return self.asked if self.base is None else (self.base, *self.asked)

    def _other(self, arm: str, where: str) -> "Cell":
        chain = (*self.followers, self.arm)
        _check_other(self.study, chain, arm, self.seed, where)
        return dataclasses.replace(self, arm=arm, followers=chain)

    @functools.cached_property
    def job(self) -> running.Job:
        """What there is to run; the name of its folder and its row says which experiment it is, of which data.

        Raises:
          ConfigError: as `base`.
          ValueError: an evaluation that models of this config are not measured by.
        """
        planned, config = self._planned
        if self.base is not None:
            assert isinstance(planned.init_from, Stage)
            planned = dataclasses.replace(planned, init_from=_found(planned.init_from, self.base))
        asked = {cell.arm: cell for cell in self.asked}
        evaluations = {
            name: experiment.asking(one, lambda stage: _asked(stage, asked[stage.arm]))
            for name, one in self.study.evaluations(self.arm).items()
        }
        for one in evaluations.values():
            if isinstance(one, Checked):
                one.check(planned.model)
        names = twins.pattern(self.seed, experiment.key(planned, self.data_dir))
        return running.Job(
            planned,
            config,
            self.runs / names.replace("*", self.arm, 1),
            self.title,
            evaluations,
            anew=self.again,
            kept=bool(self.followers),
            replayed=True,
            twins=names,
            rules=self.study.rules,
        )

    @property
    def path(self) -> Path:
        """The file of its row."""
        return self.rows / f"{self.job.folder.name}.json"

    @property
    def saved(self) -> Row | None:
        """The row of its experiment as it is now, if it has been run."""
        return results.read(self.path) if self.path.exists() else None

    @property
    def row(self) -> Row | None:
        """`measured` if nothing is left to do."""
        gone = self.followers and not folders.trained(self.job.folder)
        return None if gone else self.measured

    @property
    def measured(self) -> Row | None:
        """The row that is saved, if it has all evaluations and need not be run again."""
        row = self.saved
        if row is None or (self.again and row.code["stale"]):
            return None
        made = scoring.hashes(self.job.evaluations)
        return row if made.items() <= dict(row.evaluations).items() else None


def _found(stage: Stage, cell: Cell) -> Stage:
    """A stage that knows its arm's experiment and run folder."""
    return dataclasses.replace(stage, base=cell.job.planned, place=str(cell.job.folder))


def _asked(stage: Stage, cell: Cell) -> Stage:
    """The same, for an evaluation."""
    found = _found(stage, cell)
    return dataclasses.replace(found, key=found.fingerprint(cell.data_dir))


def _check_other(planned: Study, chain: Sequence[str], base: str, seed: int, where: str) -> None:
    """ConfigError where the last arm of the chain, each of which needs what the one before has learned, cannot have
    what `base` has learned. `where`: the file that says so.
    """
    arm, name = chain[-1], planned.name
    if base not in planned.compared:
        raise configs.ConfigError(
            f"arm {arm} of study {name} starts from {base!r}, which is none of its arms; change stages.Stage.arm in "
            f"{where}{readings.meant(base, planned.compared)}"
        )
    if base in chain:
        raise configs.ConfigError(
            f"arm {base} of study {name} would start from itself ({' from '.join((*chain, base))}); change "
            f"stages.Stage.arm in {where}"
        )
    if seed not in planned.seeds_of(base):
        raise configs.ConfigError(
            f"arm {arm} of study {name} starts from {base}, which does not run seed {seed} at scale {planned.scale}; "
            f"let it run as many seeds, see Table.fewer in configs/{name}/study.gin"
        )
    require_rates(planned, [base])


def of(
    study: Study,
    arms: Iterable[str],
    results_dir: Path | str,
    runs_dir: Path | str,
    data_dir: str | None,
    *,
    again: bool = False,
) -> list[Cell]:
    """The cells of these arms; the rows lie in `results_dir`, the runs in `runs_dir`, by study and scale."""
    rows, runs = Path(results_dir) / study.folder / "cells", Path(runs_dir) / study.folder
    return [
        Cell(study, arm, seed, runs, rows, data_dir, again) for arm in arms for seed in study.seeds_of(arm)
    ]


def sound(cells: Sequence[Cell]) -> tuple[list[Cell], dict[Cell, Exception]]:
    """The cells that can be planned, and why the others cannot: a wrong binding, data that is not there."""
    broken: dict[Cell, Exception] = {}
    for cell in cells:
        try:
            _ = cell.job
        except (ValueError, OSError, RuntimeError) as error:
            broken[cell] = error
    return [cell for cell in cells if cell not in broken], broken


def missing(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that have no row for their experiment as it is now.

    Raises:
      ConfigError, OSError: an arm that cannot be planned, or data that is not there.
    """
    return [cell for cell in cells if cell.row is None]


def run(cells: Sequence[Cell], *, timed: bool, console: Console) -> list[Outcome]:
    """Run cells that share a program, or one cell, and save their rows; InUse in place of a loss where another launch
    is at it.

    `timed`: nothing else runs beside them, so the timing of one cell means something.
    """
    rows = [cell.row for cell in cells]  # another launch may have been quicker
    todo = [cell for cell, row in zip(cells, rows, strict=True) if row is None]
    try:
        found = iter(
            running.run_all([cell.job for cell in todo], data_dir=cells[0].data_dir, console=console)
        )
    except loop.Interrupted:
        raise
    except Exception as error:
        found = iter([error] * len(todo))
    outcomes: list[Outcome] = []
    for cell, row in zip(cells, rows, strict=True):
        result = row if row is not None else next(found)
        if isinstance(result, Row):
            outcomes.append(result.value("metrics.loss"))
        elif isinstance(result, Exception):
            outcomes.append(result)
        else:
            outcomes.append(_saved(cell, result, timed=timed))
    return outcomes


def run_quietly(cell: Cell) -> float:
    """Run a cell in a process of its own.

    Raises:
      Exception: whatever it fails with.
    """
    (found,) = run([cell], timed=False, console=Console(quiet=True))
    if isinstance(found, Exception):
        raise found
    return found


def in_use(outcome: Outcome) -> bool:
    """Whether another launch is at work on the cell."""
    return isinstance(outcome, InUse)


def _saved(cell: Cell, result: running.Result, *, timed: bool) -> Outcome:
    try:
        return save(cell, result, timed=timed)
    except OSError as error:
        return RuntimeError(
            f"cannot write {cell.path}: {error.strerror}; make room there, or make it writable, and the same command "
            "goes on"
        )


def save(cell: Cell, result: running.Result, *, timed: bool) -> float:
    """Save a cell's row, in place of an earlier row of the same arm and seed; its held-out loss.

    A run again of the same experiment gives the same numbers, which were known before: the rules of then stay, and so
    does the whole row where only the parameters were gone.
    """
    if cell.followers and (known := cell.measured) is not None:
        return known.value("metrics.loss")
    # Memory is the process's, which has run other cells before.
    timing = {**result["timing"], "peak_memory_bytes": None} if timed else dict.fromkeys(result["timing"])
    fields: dict[str, Any] = {**result, "timing": timing}
    if (earlier := cell.saved) is not None:
        fields["rules"] = earlier.rules
        if (
            earlier.code["fingerprint"] == result["code"]["fingerprint"]
        ):  # the same run, with another evaluation
            fields |= {"code": earlier.code, "timing": earlier.timing}
    place: dict[str, Any] = {"scale": cell.study.scale, "arm": cell.arm, "seed": cell.seed}
    row = Row(study=cell.study.name, **place, **fields)
    superseded = {path for path in cell.rows.glob("*.json") if _is_of(path.name, cell)}
    path = results.save(row, cell.rows)
    for old in superseded - {path}:
        old.unlink(missing_ok=True)  # another launch may have been quicker
    return row.value("metrics.loss")


def _is_of(name: str, cell: Cell) -> bool:
    """Whether a file has the name of a row of that cell; arms may hold any character."""
    return name.rpartition("-")[0] == f"{cell.arm}-s{cell.seed}"

"""The cells of a study: what there is to run for each, which of them have a row, and how a row is made."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import experiment, running
from experiments.folders import InUse
from experiments.study import Study
from research.analysis import results
from research.analysis.claims import declared
from research.analysis.results import Row
from research.training import loop

Outcome = float | Exception  # a held-out loss, or why there is none


@dataclasses.dataclass(frozen=True, eq=False)  # a study has no hash, and a cell is a key
class Cell:
    """One arm with one seed; `runs` and `rows` are the folders of run folders and of rows. `again`: a row that is stale
    does not count.
    """

    study: Study
    arm: str
    seed: int
    runs: Path
    rows: Path
    data_dir: str | None
    again: bool = False

    @property
    def title(self) -> str:
        """How the cell is called in what is printed."""
        return f"{self.arm} seed {self.seed}"

    @functools.cached_property
    def job(self) -> running.Job:
        """What there is to run; the name of its folder and its row says which experiment it is, of which data."""
        planned, config = self.study.experiment(self.arm, self.seed, self.data_dir)
        key = experiment.key(planned, self.data_dir)
        return running.Job(
            planned,
            config,
            self.runs / f"{self.arm}-s{self.seed}-{key[:12]}",
            self.title,
            self.study.table.evaluations,
            self.again,
            True,
            declared(self.study.table.claims, self.study.table.seeds[self.study.scale]),
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
        """That row if nothing is left to do: it has all evaluations and need not be run again."""
        row = self.saved
        if row is None or (self.again and row.code["stale"]):
            return None
        made = {name: experiment.hash_of(value) for name, value in self.job.evaluations.items()}
        return row if made.items() <= dict(row.evaluations).items() else None


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
    return [Cell(study, arm, seed, runs, rows, data_dir, again) for arm in arms for seed in study.seeds]


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

    A run again of the same experiment gives the same numbers, which were known before: the rules of then stay.
    """
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

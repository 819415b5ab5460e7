"""Run the missing cells of a study: python -m experiments.launch --study=architecture --scale=smoke

A cell is one arm with one seed. Its finished row lies in `results/<study>/<scale>/cells/`; a cell whose row is
there is not run again, on any machine. Cells that share a program may train as one ensemble, or in processes beside
each other; what is faster is found out by trying.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from rich.console import Console

from experiments import configs, experiment, grouping, running, start, study, tabulate
from research.analysis import results, tables
from research.training import loop

FLAGS = flags.FLAGS
HOW = ("auto", "alone", "ensemble", "processes")
Outcome = float | Exception  # a held-out loss, or why there is none


@dataclasses.dataclass(frozen=True)
class Cell:
    """One arm with one seed; `runs` and `rows` are the folders of run folders and of rows."""

    study: study.Study
    arm: str
    seed: int
    runs: Path
    rows: Path
    data_dir: str | None

    @property
    def title(self) -> str:
        """How the cell is called in what is printed."""
        return f"{self.arm} seed {self.seed}"

    @functools.cached_property
    def job(self) -> running.Job:
        """What there is to run; the name of its folder and its row says which experiment it is."""
        planned, config = self.study.experiment(self.arm, self.seed, self.data_dir)
        name = f"{self.arm}-s{self.seed}-{planned.key()[:12]}"
        return running.Job(planned, config, self.runs / name, self.title)

    @property
    def row(self) -> Path:
        """The file of its row."""
        return self.rows / f"{self.job.folder.name}.json"


def missing(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that have no row for their experiment as it is now."""
    return [cell for cell in cells if not cell.row.exists()]


def run(cells: Sequence[Cell], *, timed: bool, console: Console) -> list[Outcome]:
    """Run cells that share a program, or one cell, and save their rows.

    `timed`: nothing else runs beside them, so the timing of one cell means something.
    """
    try:
        found = running.run_all([cell.job for cell in cells], data_dir=cells[0].data_dir, console=console)
    except loop.Interrupted:
        raise
    except Exception as error:
        return [error] * len(cells)
    return [
        result if isinstance(result, Exception) else _saved(cell, result, timed=timed)
        for cell, result in zip(cells, found, strict=True)
    ]


def _saved(cell: Cell, result: running.Result, *, timed: bool) -> Outcome:
    try:
        return save(cell, result, timed=timed)
    except OSError as error:
        return RuntimeError(
            f"cannot write {cell.row}: {error.strerror}; make room there, or make it writable, and the same command "
            "goes on"
        )


def save(cell: Cell, result: running.Result, *, timed: bool) -> float:
    """Save a cell's row, in place of an earlier row of the same arm and seed; its held-out loss."""
    # Memory is the process's, which has run other cells before.
    timing = {**result["timing"], "peak_memory_bytes": None} if timed else dict.fromkeys(result["timing"])
    place: dict[str, Any] = {"scale": cell.study.scale, "arm": cell.arm, "seed": cell.seed}
    row = results.Row(study=cell.study.name, **place, **{**result, "timing": timing})
    superseded = set(cell.rows.glob(f"{cell.arm}-s{cell.seed}-*.json"))
    path = results.save(row, cell.rows)
    for old in superseded - {path}:
        old.unlink()
    return row.value("metrics.loss")


def run_all(
    cells: Sequence[Cell], *, how: str, workers: int, members: int, console: Console
) -> Iterator[tuple[Cell, Outcome]]:
    """Run the cells as `how` says (one of HOW), at most `members` in an ensemble; each cell as it is done."""
    with grouping.Workers(workers) as pool:
        elsewhere: list[Cell] = []
        for way, some in _ways(cells, how, pool, members, console):
            if way == "processes":
                elsewhere += some
                continue
            size = members if way == "ensemble" else 1
            for part in (some[first : first + size] for first in range(0, len(some), size)):
                yield from zip(part, run(part, timed=True, console=console), strict=True)
        yield from pool.each(_in_worker, elsewhere)


def _ways(
    cells: Sequence[Cell], how: str, pool: grouping.Workers, members: int, console: Console
) -> Iterator[tuple[str, list[Cell]]]:
    """Cells, and how to run them."""
    if not cells:
        return
    data_dir = cells[0].data_dir
    if how == "auto" and not grouping.worth_a_probe([cell.job.planned for cell in cells], data_dir):
        how = "alone"
    if how in ("alone", "processes"):
        yield how, list(cells)
        return
    for index in grouping.shapes([cell.job.planned for cell in cells], data_dir):
        some = [cells[i] for i in index]
        if len(some) == 1:
            yield "alone", some
        elif how == "ensemble":
            yield how, some
        else:
            planned = [cell.job.planned for cell in some]
            yield grouping.choose(planned, pool, members, data_dir, console), some


def _in_worker(cell: Cell) -> float:
    """Run a cell in a process of its own, quietly."""
    (found,) = run([cell], timed=False, console=Console(quiet=True))
    if isinstance(found, Exception):
        raise found
    return found


def time_rows(cells: Sequence[Cell], console: Console) -> None:
    """Time some steps of cells whose rows have no speed, since others ran beside them, now that nothing else runs."""
    found = {row.name: row for row in results.load(cells[0].rows)} if cells else {}
    for cell in cells:
        row = found.get(cell.row.name)
        if row is not None and row.timing["tokens_per_second"] is None:
            planned = cell.job.planned
            tokens = experiment.cost(planned.model, planned.data, cell.data_dir).tokens
            rate = tokens / grouping.speed([planned], cell.data_dir)
            console.print(f"{cell.title}  {rate:,.0f} tokens/s", highlight=False)
            timing = {**row.timing, "tokens_per_second": rate}
            results.save(dataclasses.replace(row, timing=timing), cell.rows)


def main(argv: list[str]) -> int:
    """Run what is missing, then print the table. Returns the exit code."""
    console = start.console()
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --study=...")
    start.process()
    try:
        planned = study.load(FLAGS.study, FLAGS.scale)
        arms = FLAGS.only or planned.arms
        for arm in arms:
            if arm not in planned.arms:
                raise configs.ConfigError(
                    f"--only={arm}: study {planned.name} has the arms {list(planned.arms)}"
                )
        if FLAGS.seeds is not None:
            planned = dataclasses.replace(planned, seeds=tuple(range(FLAGS.seeds)))
        rows = tabulate.folder(planned, FLAGS.results_dir) / "cells"
        runs = Path(FLAGS.runs_dir) / planned.name / planned.scale
        cells = [
            Cell(planned, arm, seed, runs, rows, FLAGS.data_dir) for arm in arms for seed in planned.seeds
        ]
        for arm in arms:
            if (found := planned.matched(arm, FLAGS.data_dir)) is not None:
                knob = f"{planned.knobs[arm][0]} = {found.value}, " if arm in planned.knobs else ""
                console.print(f"{arm}  {knob}{planned.match} {found.residual:+.2%}", highlight=False)
        todo = missing(cells)
        console.print(f"{planned.name}/{planned.scale}: {len(todo)} of {len(cells)} cells to run")
        if FLAGS.dry_run:
            for cell in todo:
                console.print(f"{cell.title}  {cell.job.folder}", highlight=False)
            return 0
        if any(cell.job.planned.deterministic for cell in cells):
            start.deterministic()
        failed = []
        options = {
            "how": FLAGS.how,
            "workers": min(FLAGS.workers, max(len(todo), 1)),
            "members": FLAGS.members,
        }
        for cell, found in run_all(todo, **options, console=console):
            if isinstance(found, Exception):
                console.print(f"{cell.title}  failed", highlight=False)
                failed.append(f"{cell.title}: {found}")
            else:
                console.print(f"{cell.title}  held-out loss {found:.4f}", highlight=False)
        if "tokens_per_second" in planned.columns:
            time_rows(cells, console)
        table = tabulate.render(planned, FLAGS.results_dir)
        tabulate.write(table, tabulate.folder(planned, FLAGS.results_dir))
        console.print(tables.rich_table(table))
    except (loop.Interrupted, KeyboardInterrupt) as stopped:
        console.print(str(stopped) or start.STOPPED)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        return start.fail(error)
    for line in failed:
        start.fail(line)
    return 1 if failed else 0


if __name__ == "__main__":
    flags.DEFINE_string("study", None, "a folder of configs/ with a study.gin", required=True)
    flags.DEFINE_string("scale", "smoke", "smoke, small or base")
    flags.DEFINE_integer("seeds", None, "so many seeds instead of the study's", lower_bound=1)
    flags.DEFINE_list("only", None, "arms to run, separated by commas")
    flags.DEFINE_enum(
        "how", "auto", HOW, "one cell after another, as ensembles, in processes, or what is fastest"
    )
    flags.DEFINE_integer(
        "workers", os.cpu_count() or 1, "processes, where cells run in processes", lower_bound=1
    )
    flags.DEFINE_integer("members", 8, "most cells in an ensemble", lower_bound=1)
    flags.DEFINE_string("results_dir", "results", "folder of the result rows")
    flags.DEFINE_string("runs_dir", "runs", "folder of the run folders")
    flags.DEFINE_string("data_dir", None, "folder of downloaded archives (default: the user's cache)")
    flags.DEFINE_bool("dry_run", False, "list the cells that would run")
    app.run(main)

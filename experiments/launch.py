"""Run the missing cells of a study: python -m experiments.launch --study=architecture --scale=smoke

A cell is one arm with one seed. Its finished row lies in `results/<study>/<scale>/cells/`; a cell whose row is
there is not run again, on any machine.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

from absl import app, flags
from rich.console import Console

from experiments import configs, experiment, start, study, tabulate
from research.analysis import results, tables
from research.training import loop

FLAGS = flags.FLAGS


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
    def name(self) -> str:
        """The name of its row and of its run folder: another experiment has another one."""
        planned, _ = self.study.experiment(self.arm, self.seed)
        return f"{self.arm}-s{self.seed}-{planned.key()[:12]}"

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.runs / self.name


def missing(cells: list[Cell]) -> list[Cell]:
    """The cells that have no row for their experiment as it is now."""
    return [cell for cell in cells if not (cell.rows / f"{cell.name}.json").exists()]


def run(cell: Cell, *, timed: bool, console: Console) -> float:
    """Run one cell and save its row, in place of an earlier row of the same arm and seed; its held-out loss.

    `timed`: nothing else ran beside it, so its timing means something.
    """
    planned, config = cell.study.experiment(cell.arm, cell.seed)
    result = experiment.run(
        planned, config, cell.folder, data_dir=cell.data_dir, console=console, title=cell.title
    )
    # Memory is the process's, which has run other cells before.
    timing = {**result.pop("timing"), "peak_memory_bytes": None}
    row = results.Row(
        study=cell.study.name,
        scale=cell.study.scale,
        arm=cell.arm,
        seed=cell.seed,
        timing=timing if timed else dict.fromkeys(timing),
        **result,
    )
    superseded = set(cell.rows.glob(f"{cell.arm}-s{cell.seed}-*.json"))
    path = results.save(row, cell.rows)
    for old in superseded - {path}:
        old.unlink()
    return row.value("metrics.loss")


def _in_worker(cell: Cell) -> float:
    """Run a cell in a process of its own, quietly."""
    start.process()
    return run(cell, timed=False, console=Console(quiet=True))


def _run_all(cells: list[Cell], workers: int, console: Console) -> list[str]:
    """Run the cells; one line for each that failed."""
    failed = []

    def finished(cell: Cell, loss: Callable[[], float]) -> None:
        try:
            console.print(f"{cell.title}  held-out loss {loss():.4f}", highlight=False)
        except (loop.Interrupted, KeyboardInterrupt):
            raise
        except Exception as error:
            console.print(f"{cell.title}  failed", highlight=False)
            failed.append(f"{cell.title}: {error}")

    if workers == 1:
        for cell in cells:
            finished(cell, lambda cell=cell: run(cell, timed=True, console=console))
        return failed

    # Each worker gets its share of the cores; a forked JAX would hang, so workers are spawned.
    threads = max((os.cpu_count() or 1) // workers, 1)
    flag = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(_in_worker, cell): cell for cell in cells}
        try:
            for future in concurrent.futures.as_completed(futures):
                finished(futures[future], future.result)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return failed


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
        todo = missing(cells)
        console.print(f"{planned.name}/{planned.scale}: {len(todo)} of {len(cells)} cells to run")
        if FLAGS.dry_run:
            for cell in todo:
                console.print(f"{cell.title}  {cell.folder}", highlight=False)
            return 0
        failed = _run_all(todo, FLAGS.workers, console)
        table = tabulate.render(planned, FLAGS.results_dir)
        tabulate.write(table, tabulate.folder(planned, FLAGS.results_dir))
        console.print(tables.rich_table(table))
    except (loop.Interrupted, KeyboardInterrupt) as stopped:
        console.print(str(stopped) or "stopped; the same command goes on from there")
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
    flags.DEFINE_integer("workers", 1, "processes; timings are recorded with 1 only", lower_bound=1)
    flags.DEFINE_string("results_dir", "results", "folder of the result rows")
    flags.DEFINE_string("runs_dir", "runs", "folder of the run folders")
    flags.DEFINE_string("data_dir", None, "folder of downloaded archives (default: the user's cache)")
    flags.DEFINE_bool("dry_run", False, "list the cells that would run")
    app.run(main)

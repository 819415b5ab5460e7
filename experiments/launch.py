"""Run the missing cells of a study: python -m experiments.launch --study=architecture --scale=smoke

A cell is one arm with one seed. Its finished row lies in `results/<study>/<scale>/cells/`; a cell whose row is there
is not run again, on any machine, unless the code has come to measure something else (`--stale`). Cells that share a
program may train as one ensemble, or in processes beside each other; what is faster is found out by trying. Two
launches at once share the work.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import app, flags
from rich.console import Console
from rich.table import Table as Grid

from experiments import (
    cells,
    clusters,
    configs,
    experiment,
    grouping,
    staleness,
    start,
    study,
    tabulate,
    tuning,
)
from experiments.cells import Cell, Outcome
from experiments.live import Board
from research.analysis import results, tables
from research.analysis import tuning as choosing
from research.training import loop

FLAGS = flags.FLAGS
HOW = ("auto", "alone", "ensemble", "processes")
PATIENCE = 5.0  # seconds between looks at a cell that another launch is at


@dataclasses.dataclass(frozen=True)
class Launcher:
    """How cells are run.

    Attributes:
      how: one of HOW.
      workers: processes, where cells run in processes.
      members: most cells in an ensemble.
      cluster: where cells are jobs, or None: on this machine.
    """

    how: str
    workers: int
    members: int
    cluster: clusters.Cluster | None
    console: Console

    def run(self, todo: Sequence[Cell]) -> list[str]:
        """Run cells; a line for each that failed."""
        board, failed = Board(todo), []
        with board.shown(self.console):
            for cell, found in self._outcomes(todo):
                board.done(cell, found)
                if isinstance(found, Exception):
                    failed.append(_failed(cell, found, self.console))
                else:
                    self.console.print(f"{cell.title}  held-out loss {found:.4f}", highlight=False)
        return failed

    def _outcomes(self, todo: Sequence[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Every cell as it is done; those that another launch is at when it is done with them, or has given up."""
        elsewhere: list[Cell] = []
        for cell, found in self._once(todo):
            if cells.in_use(found):
                elsewhere.append(cell)
            else:
                yield cell, found
        if elsewhere:
            self.console.print(f"waiting for another launch, which is at {len(elsewhere)} cells")
        while elsewhere:
            time.sleep(PATIENCE)
            waiting = []
            for cell in elsewhere:
                (found,) = cells.run([cell], timed=True, console=self._plain)
                if cells.in_use(found):
                    waiting.append(cell)
                else:
                    yield cell, found
            elsewhere = waiting

    def _once(self, todo: Sequence[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Every cell as it is done, or found to be in use."""
        if self.cluster is not None:
            yield from self.cluster.each(cells.run_quietly, todo)
            return
        with grouping.Workers(min(self.workers, max(len(todo), 1))) as pool:
            elsewhere: list[Cell] = []
            for way, some in self._ways(todo, pool):
                if way == "processes":
                    elsewhere += some
                    continue
                size = self.members if way == "ensemble" else 1
                for part in (some[first : first + size] for first in range(0, len(some), size)):
                    yield from zip(part, cells.run(part, timed=True, console=self._plain), strict=True)
            yield from pool.each(cells.run_quietly, elsewhere)

    def _ways(self, todo: Sequence[Cell], pool: grouping.Workers) -> Iterator[tuple[str, list[Cell]]]:
        """Cells, and how to run them."""
        if not todo:
            return
        data_dir, how = todo[0].data_dir, self.how
        if how == "auto" and not grouping.worth_a_probe([cell.job.planned for cell in todo], data_dir):
            how = "alone"
        if how in ("alone", "processes"):
            yield how, list(todo)
            return
        for index in grouping.shapes([cell.job.planned for cell in todo], data_dir):
            some = [todo[i] for i in index]
            if len(some) == 1:
                yield "alone", some
            elif how == "ensemble":
                yield how, some
            else:
                planned = [cell.job.planned for cell in some]
                yield grouping.choose(planned, pool, self.members, data_dir, self.console), some

    @property
    def _plain(self) -> Console:
        """Where a run says something; its own bar would stand in the way of the board."""
        return (
            Console(force_terminal=False, width=self.console.width)
            if self.console.is_terminal
            else self.console
        )


def _failed(cell: Cell, error: Exception, console: Console) -> str:
    """Tell and record that a cell failed; the line about it."""
    cells.save_failure(cell, error)
    console.print(f"{cell.title}  failed", highlight=False)
    return f"{cell.title}: {error}"


def time_rows(todo: Sequence[Cell], console: Console) -> None:
    """Time some steps of cells whose rows have no speed, since others ran beside them, now that nothing else runs."""
    for cell in todo:
        row = cell.row
        if row is not None and row.timing["tokens_per_second"] is None:
            planned = cell.job.planned
            tokens = experiment.cost(planned.model, planned.data, cell.data_dir).tokens
            rate = tokens / grouping.speed([planned], cell.data_dir)
            console.print(f"{cell.title}  {rate:,.0f} tokens/s", highlight=False)
            timing = {**row.timing, "tokens_per_second": rate}
            results.save(dataclasses.replace(row, timing=timing), cell.rows)


@dataclasses.dataclass(frozen=True)
class Price:
    """What cells of a group take: training TFLOP, and minutes at the speed of rows that were timed."""

    cells: int
    missing: int
    teraflops: float
    minutes: float


def price(planned: study.Study, group: str, every: Sequence[Cell]) -> Price:
    """What all cells of a group take, whether or not they have a row.

    Speed is the median of the study's timed rows, arm by arm where there are any, or a guess for two cores.
    """
    own = [cell for cell in every if cell.arm in planned.groups[group]]
    speeds: dict[str, list[float]] = {}
    for row in results.load(every[0].rows) if every else []:
        if (rate := row.timing["tokens_per_second"]) is not None:
            per_token = row.budget["train_flops"] / row.budget["tokens_seen"]
            speeds.setdefault(row.arm, []).append(rate * per_token)
    usual = [statistics.median(found) for found in speeds.values()]
    flops, seconds = 0.0, 0.0
    for cell in own:
        one = cell.job.planned
        work = experiment.cost(one.model, one.data, cell.data_dir).train_flops * one.steps
        flops += work
        seconds += work / statistics.median(speeds.get(cell.arm) or usual or [grouping.SLOW])
    return Price(len(own), len(cells.missing(own)), flops / 1e12, seconds / 60)


def dry_run(planned: study.Study, every: Sequence[Cell], console: Console) -> None:
    """Print what there is to run and what each group takes.

    Raises:
      ConfigError: a group takes longer than it may.
    """
    for cell in cells.missing(every):
        console.print(f"{cell.title}  {cell.job.folder}", highlight=False)
    grid, total = Grid("group", "cells", "to run", "TFLOP", "minutes"), 0.0
    over = []
    for group in planned.groups:
        found = price(planned, group, every)
        grid.add_row(
            group, str(found.cells), str(found.missing), f"{found.teraflops:,.1f}", f"{found.minutes:,.1f}"
        )
        total += found.minutes
        most = study.MINUTES.get(group)
        if planned.scale == "small" and most is not None and total > most:
            over.append(
                f"group {group} takes {total:.0f} minutes with those before it, expected at most {most:.0f}"
            )
    console.print(grid)
    if over:
        raise configs.ConfigError(
            f"{over[0]}; move arms to a later group in Table.groups of configs/{planned.name}/study.gin, or take "
            "fewer seeds or steps"
        )


def chosen(planned: study.Study, only: Sequence[str] | None) -> tuple[str, ...]:
    """The arms of these names, which may be those of groups; all but the extended ones where there are none.

    Raises:
      ConfigError: no arm or group of the study.
    """
    named = {arm: (arm,) for arms in planned.groups.values() for arm in arms} | planned.groups
    for name in only or ():
        if name not in named:
            raise configs.ConfigError(f"--only={name}: study {planned.name} has {list(named)}")
    names = only or [group for group in planned.groups if group != "extended"]
    return tuple(dict.fromkeys(arm for name in names for arm in named[name]))


def tune(planned: study.Study, launcher: Launcher) -> list[str]:
    """Run the grid of learning rates and print what it chooses; a line for each cell that failed."""
    if planned.table.tuning is None:
        raise configs.ConfigError(f"--tune: no Table.tuning in configs/{planned.name}/study.gin")
    grid = tuning.Grid(planned, planned.table.tuning.rates, FLAGS.results_dir, FLAGS.runs_dir, FLAGS.data_dir)
    failed: list[str] = []
    found = tuning.run(grid, lambda todo: failed.extend(launcher.run(todo)))
    text = choosing.markdown(found, seed=planned.table.tuning.seed)
    folder = Path(FLAGS.results_dir) / planned.folder / "tuning"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text, encoding="utf-8")
    launcher.console.print(text, markup=False, highlight=False)
    launcher.console.print(tuning.binding(planned, found), markup=False, highlight=False)
    return failed


def launch(planned: study.Study, every: Sequence[Cell], launcher: Launcher) -> list[str]:
    """Run what is missing or stale and print the table; a line for each cell that failed."""
    console = launcher.console
    every, broken = cells.sound(every)
    failed = [_failed(cell, error, console) for cell, error in broken.items()]
    if any(cell.job.planned.deterministic for cell in every):
        start.deterministic()
    for cell in staleness.check(every, console):
        if cell.again:
            staleness.retire(cell)
    todo = cells.missing(every)
    console.print(f"{planned.name}/{planned.scale}: {len(todo)} of {len(every) + len(broken)} cells to run")
    failed += launcher.run(todo)
    if "tokens_per_second" in planned.table.columns:
        time_rows(every, console)
    if any((tabulate.folder(planned, FLAGS.results_dir) / "cells").glob("*.json")):
        whole = study.load(planned.name, planned.scale)  # a table has all seeds that are declared
        table = tabulate.render(whole, FLAGS.results_dir)
        tabulate.write(whole, table, FLAGS.results_dir)
        console.print(tables.rich_table(table))
    return failed


def main(argv: list[str]) -> int:
    """Run what is missing, then print the table. Returns the exit code."""
    console = start.console()
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --study=...")
    start.process()
    try:
        planned = study.load(FLAGS.study, FLAGS.scale)
        if FLAGS.seeds is not None:
            planned = planned.limited(FLAGS.seeds)
        cluster = None
        if FLAGS.launcher == "slurm":
            folder = Path(FLAGS.runs_dir) / planned.folder / "jobs"
            cluster = clusters.Cluster(folder, FLAGS.cluster, clusters.parameters(FLAGS.slurm))
        launcher = Launcher(FLAGS.how, FLAGS.workers, FLAGS.members, cluster, console)
        if FLAGS.tune:
            failed = tune(planned, launcher)
        else:
            study.require_rates(planned)
            arms = chosen(planned, FLAGS.only)
            every = cells.of(
                planned,
                arms,
                FLAGS.results_dir,
                FLAGS.runs_dir,
                FLAGS.data_dir,
                again=FLAGS.stale == "rerun",
            )
            for arm in arms:
                if (found := planned.matched(arm, FLAGS.data_dir)) is not None:
                    knob = "" if planned.knob(arm) is None else f"{planned.knob(arm)} = {found.value}, "
                    console.print(
                        f"{arm}  {knob}{planned.table.match} {found.residual:+.2%}", highlight=False
                    )
            if FLAGS.dry_run:
                dry_run(planned, every, console)
                return 0
            failed = launch(planned, every, launcher)
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
    flags.DEFINE_integer("seeds", None, "the first so many of the study's seeds", lower_bound=1)
    flags.DEFINE_list("only", None, "arms or groups to run, separated by commas (default: all but extended)")
    flags.DEFINE_bool("tune", False, "run the grid of learning rates instead, and print what it chooses")
    flags.DEFINE_enum(
        "stale", "mark", ("mark", "rerun"), "what is done with rows that the code would no longer measure"
    )
    flags.DEFINE_enum(
        "how", "auto", HOW, "one cell after another, as ensembles, in processes, or what is fastest"
    )
    flags.DEFINE_integer(
        "workers", os.cpu_count() or 1, "processes, where cells run in processes", lower_bound=1
    )
    flags.DEFINE_integer("members", 8, "most cells in an ensemble", lower_bound=1)
    flags.DEFINE_enum("launcher", "local", ("local", "slurm"), "on this machine, or each cell as a job")
    flags.DEFINE_string("slurm", "", "parameters of jobs, such as timeout_min=60,slurm_partition=gpu")
    flags.DEFINE_enum("cluster", "slurm", ("slurm", "local", "debug"), "stand-ins for Slurm, to try jobs out")
    flags.DEFINE_string("results_dir", "results", "folder of the result rows")
    flags.DEFINE_string("runs_dir", "runs", "folder of the run folders")
    flags.DEFINE_string("data_dir", None, "folder of downloaded archives (default: the user's cache)")
    flags.DEFINE_bool("dry_run", False, "list the cells that would run, and what each group takes")
    app.run(main)

"""Run the missing cells of a study: python -m experiments.launch --study=architecture --scale=smoke

A cell is one arm with one seed. Its finished row lies in `results/<study>/<scale>/cells/`; a cell whose row is there
is not run again, on any machine, unless the code has come to measure something else (`--stale`). Cells that share a
program may train as one ensemble, or in processes beside each other; what is faster is found out by trying. Two
launches at once share the work.
"""

import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import filelock
from absl import app, flags
from rich.console import Console
from rich.table import Table as Grid

from experiments import (
    cells,
    clusters,
    configs,
    experiment,
    grouping,
    lineage,
    staleness,
    start,
    study,
    tabulate,
    timing,
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
LOOKS = 12  # that find no row and nobody at work before a cell becomes a job again: disks that are shared are slow


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

    def run(self, todo: Sequence[Cell]) -> dict[Cell, Exception]:
        """Run cells, after what they start from; those that failed, and why."""
        todo = lineage.needed(todo)
        board, failed = Board(todo), dict[Cell, Exception]()
        with board.shown(self.console):
            for cell, found in self._in_turn(todo):
                board.done(cell, found)
                if isinstance(found, Exception):
                    failed[cell] = found
                    self.console.print(f"{cell.title}  failed: {found}", highlight=False, markup=False)
                else:
                    self.console.print(f"{cell.title}  held-out loss {found:.4f}", highlight=False)
        return failed

    def _in_turn(self, todo: Sequence[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Every cell as it is done; what others start from comes before them, and where it failed they do not run."""
        lost = set[Path]()
        for wave in lineage.waves(todo):
            sound = []
            for cell in wave:
                gone = next((other for other in cell.before if other.job.folder in lost), None)
                if gone is not None:
                    lost.add(cell.job.folder)
                    needs = "starts from" if gone is cell.base else "is rated by"
                    yield cell, RuntimeError(f"it {needs} {gone.title}, which failed")
                else:
                    sound.append(cell)
            for cell, found in self._outcomes(sound):
                if isinstance(found, Exception):
                    lost.add(cell.job.folder)
                yield cell, found

    def _outcomes(self, todo: Sequence[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Every cell as it is done; those that another launch is at when they have a row. Where it has given one up,
        it is run here.
        """
        free = dict[Cell, int]()  # the cells that wait, and how many looks have found nobody at work
        yield from self._unless_in_use(todo, free)
        if free:
            self.console.print(f"waiting for another launch, which is at {len(free)} cells")
        enough = 1 if self.cluster is None else LOOKS
        while free:
            time.sleep(PATIENCE)
            for cell in list(free):
                free[cell] = 0 if clusters.at_work(cell.job.folder) else free[cell] + 1
                if (row := cell.row) is not None:
                    del free[cell]
                    yield cell, row.value("metrics.loss")
            given_up = [cell for cell, looks in free.items() if looks >= enough]
            for cell in given_up:
                del free[cell]
            if given_up:
                yield from self._unless_in_use(given_up, free)

    def _unless_in_use(self, todo: Sequence[Cell], free: dict[Cell, int]) -> Iterator[tuple[Cell, Outcome]]:
        """Every cell as it is done, but those that are in use, which join the others that wait."""
        for cell, found in self._once(todo):
            if cells.in_use(found):
                free[cell] = 0
            else:
                yield cell, found

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
                    timed = not any_at_work(part[0].runs)
                    yield from zip(part, cells.run(part, timed=timed, console=self._plain), strict=True)
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


def lines(failed: Mapping[Cell, Exception]) -> list[str]:
    """A line for each cell that failed."""
    return [f"{cell.title}: {error}" for cell, error in failed.items()]


def any_at_work(runs: Path) -> bool:
    """Whether a process is at work in some run folder of a study."""
    return any(clusters.at_work(lock.parent) for lock in runs.glob("*/.lock"))


def time_rows(todo: Sequence[Cell], console: Console) -> None:
    """Time cells whose rows lack what their tables show of `timing.TIMED`, since others ran beside them or since it was
    asked for later, now that nothing else runs. What cannot be timed of a cell is said and stays missing.

    Of several launches one does at a time, and none where another is still at work.
    """
    if not todo:
        return
    todo[0].runs.mkdir(parents=True, exist_ok=True)
    wanted = [
        (cell, name)
        for cell in todo
        for name in timing.asked(cell.study.columns(cell.study.compared[cell.arm]))
    ]
    with filelock.FileLock(todo[0].runs / ".timing.lock"):
        for cell, name in wanted:
            row = cell.row
            if row is None or row.timing.get(name) is not None:
                continue
            if any_at_work(cell.runs):
                console.print(
                    "another launch is at work, so the timing of rows is for the last one to measure"
                )
                return
            try:
                value = timing.TIMED[name](cell.job.planned, cell.data_dir)
            except ValueError as error:
                console.print(f"{cell.title}  no {name}: {error}", highlight=False, markup=False)
                continue
            shown = tables.measure(f"timing.{name}")
            text = f"{value / shown.size:{shown.format}}{shown.unit}"
            console.print(f"{cell.title}  {shown.label} {text}", highlight=False)
            results.save(dataclasses.replace(row, timing={**row.timing, name: value}), cell.rows)


@dataclasses.dataclass(frozen=True)
class Price:
    """What cells of a group take: training TFLOP, and minutes at the speed of rows that were timed."""

    cells: int
    missing: int
    teraflops: float
    minutes: float


def price(planned: study.Study, group: str, every: Sequence[Cell]) -> Price:
    """What all cells of a group take, whether or not they have a row, with what only has to run for them to start from.

    Speed is the median of the study's timed rows, arm by arm where there are any, or a guess for two cores.
    """
    own = [
        cell
        for cell in (*every, *lineage.bases(every))
        if (*cell.followers, cell.arm)[0] in planned.groups[group]
    ]
    todo = {cell.job.folder for cell in lineage.needed(cells.missing(every))}
    speeds: dict[str, list[float]] = {}
    for row in results.load(every[0].rows) if every else []:
        if (rate := row.timing["tokens_per_second"]) is not None:
            per_token = row.budget["train_flops"] / row.budget["tokens_seen"]
            speeds.setdefault(row.arm, []).append(rate * per_token)
    usual = [statistics.median(found) for found in speeds.values()]
    before = itertools.takewhile(lambda name: name != group, planned.groups)
    sooner = {arm for name in (*before, group) for arm in planned.groups[name]}
    # What a later group trains is no reason not to count it here.
    taken = lineage.leaders([cell for cell in every if cell.arm in sooner])
    flops, seconds = 0.0, 0.0
    for cell in own:
        if cell in taken:
            continue
        one = cell.job.planned
        work = experiment.cost(one.model, one.data, cell.data_dir).train_flops * one.steps
        flops += work
        seconds += work / statistics.median(speeds.get(cell.arm) or usual or [grouping.SLOW])
    missing = sum(cell.job.folder in todo for cell in own)
    return Price(len(own), missing, flops / 1e12, seconds / 60)


def list_missing(every: Sequence[Cell], console: Console) -> None:
    """Print the cells that would run, with their folders."""
    for cell in lineage.needed(cells.missing(every)):
        console.print(f"{cell.title}  {cell.job.folder}", highlight=False, markup=False, soft_wrap=True)


def dry_run(planned: study.Study, every: Sequence[Cell], console: Console) -> None:
    """Print what there is to run and what each group takes.

    Raises:
      ConfigError: a group takes longer than it may.
    """
    list_missing(every, console)
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


def tune(planned: study.Study, arms: Sequence[str], launcher: Launcher) -> list[str]:
    """Run the grid of learning rates of these arms' files and print what it chooses; a line for each cell that failed.

    Of a rate at which training diverges there is none: that is an answer too.
    """
    if planned.table.tuning is None:
        raise configs.ConfigError(f"--tune: no Table.tuning in configs/{planned.name}/study.gin")
    console, files = launcher.console, tuple(dict.fromkeys(map(planned.file, arms)))
    folders = (FLAGS.results_dir, FLAGS.runs_dir, FLAGS.data_dir)
    grid = tuning.Grid(planned, files, planned.table.tuning.rates, *folders)
    every, broken = cells.sound(grid.cells)
    failed = lines(broken)
    if FLAGS.dry_run:
        list_missing(every, console)
        return failed

    def run(todo: Sequence[Cell]) -> None:
        for cell, error in launcher.run(todo).items():
            if not isinstance(error, loop.Diverged):
                failed.extend(lines({cell: error}))

    if found := tuning.run(grid, run):
        text = choosing.markdown(tuning.measured(grid, found), seed=planned.table.tuning.seed)
        tabulate.save(text, Path(FLAGS.results_dir) / planned.folder / "tuning" / "table.md")
        console.print(text, markup=False, highlight=False)
        console.print(tuning.binding(planned, found), markup=False, highlight=False)
    return failed


def launch(planned: study.Study, every: Sequence[Cell], launcher: Launcher) -> list[str]:
    """Run what is missing or stale and print the table; a line for each cell that failed."""
    console = launcher.console
    staleness.check([*every, *lineage.bases(every)], console)
    todo = cells.missing(every)
    before = len(lineage.needed(todo)) - len(todo)
    first = f", and {before} before that they start from" if before else ""
    console.print(f"{planned.name}/{planned.scale}: {len(todo)} of {len(every)} cells to run{first}")
    failed = lines(launcher.run(todo))
    if launcher.cluster is None:
        time_rows(every, console)
    if any((tabulate.folder(planned, FLAGS.results_dir) / "cells").glob("*.json")):
        whole = study.load(planned.name, planned.scale)  # a table has all seeds that are declared
        found = tabulate.render(whole, FLAGS.results_dir)
        tabulate.write(whole, found, FLAGS.results_dir)
        tabulate.show(found, console)
    return failed


def measure(planned: study.Study, arms: Sequence[str], launcher: Launcher) -> list[str]:
    """Run the cells of these arms, or say what there is to run; a line for each that failed or cannot be planned."""
    study.require_rates(planned, arms)
    console = launcher.console
    every, broken = cells.sound(
        cells.of(
            planned,
            arms,
            FLAGS.results_dir,
            FLAGS.runs_dir,
            FLAGS.data_dir,
            again=FLAGS.stale == "rerun",
        )
    )
    for arm in dict.fromkeys(cell.arm for cell in every):
        if (found := planned.matched(arm, FLAGS.data_dir)) is not None:
            knob = "" if planned.knob(arm) is None else f"{planned.knob(arm)} = {found.value}, "
            console.print(f"{arm}  {knob}{planned.matches(arm)} {found.residual:+.2%}", highlight=False)
    if FLAGS.dry_run:
        dry_run(planned, every, console)
        return lines(broken)
    for cell, error in broken.items():
        console.print(f"{cell.title}  failed: {error}", highlight=False, markup=False)
    return lines(broken) + launch(planned, every, launcher)


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
        arms = planned.arms if FLAGS.tune and FLAGS.only is None else chosen(planned, FLAGS.only)
        if planned.deterministic(arms):
            start.deterministic()  # before anything is counted, which looks for devices
        cluster = None
        if FLAGS.launcher == "slurm" and not FLAGS.dry_run:
            folder = Path(FLAGS.runs_dir) / planned.folder / "jobs"
            cluster = clusters.Cluster(folder, FLAGS.cluster, clusters.parameters(FLAGS.slurm))
        launcher = Launcher(FLAGS.how, FLAGS.workers, FLAGS.members, cluster, console)
        failed = (tune if FLAGS.tune else measure)(planned, arms, launcher)
    except (loop.Interrupted, KeyboardInterrupt) as stopped:
        console.print(str(stopped) or start.STOPPED)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        return start.fail(error)
    return tabulate.told(failed)


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

"""Renders a study's rows as tables and figures: python -m experiments.tabulate --study=... --scale=...

All of it is a function of the committed rows. `--trace=ARM/COLUMN` names the runs behind a number, `--check` runs a
cell again and compares, `--verify` finds rows that the code would no longer measure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import app, flags
from rich.console import Console

from experiments import folders, ledger, start, study
from experiments.study import Study
from research.analysis import aggregate, figures, results, sweeping, tables, verdicts
from research.analysis.results import Row
from research.training import loop


def folder(planned: Study, results_dir: Path | str) -> Path:
    """Where the study's cells and rendered tables lie."""
    return Path(results_dir) / planned.folder


def rows_of(planned: Study, results_dir: Path | str) -> list[Row]:
    """The rows that the study has; TableError if it has none."""
    place = folder(planned, results_dir) / "cells"
    rows = results.load(place)
    if not rows:
        raise tables.TableError(
            f"{place}: no rows, expected at least one; run python -m experiments.launch "
            f"--study={planned.name} --scale={planned.scale}"
        )
    return rows


def render(planned: Study, results_dir: Path | str) -> dict[str, tables.Table]:
    """The tables of the rows that the study has, by name, with a note where a negative control was rejected.

    Raises:
      TableError: it has none, or they do not compare.
    """
    found = built(planned, rows_of(planned, results_dir))
    claims = planned.scale not in study.UNTUNED
    stamps = verdicts.stamps(ledger.of_study(planned.name, results_dir, planned.scale) if claims else ())
    return {name: dataclasses.replace(table, notes=(*table.notes, *stamps)) for name, table in found.items()}


def built(planned: Study, rows: Sequence[Row]) -> dict[str, tables.Table]:
    """A table for each comparison that runs at the scale, by name: the first is the study's; see `tables.build`. And
    those of arms beside a frontier, where all these run, of sequences of tasks and of labels.
    """
    found: dict[str, tables.Table] = {}
    for together, arms in planned.comparisons.items():
        seeds, own = planned.seeds_of(arms[0]), [row for row in rows if row.arm in arms]
        if seeds:
            found["table" if not found else f"table_{slug(together)}"] = tables.build(
                own,
                arms=arms,
                seeds=seeds,
                columns=planned.columns(together),
                baseline=planned.baselines[together],
                varied=planned.table.varied,
            )
    known = planned.known_seeds
    for spec in planned.table.shifts:
        if all(known.get(arm, ("unknown",)) for arm in (*spec.frontier, *spec.arms)):
            found[f"table_{slug(spec.name)}"] = spec.table(rows, known, varied=planned.table.varied)
    run = {row.arm for row in rows}
    for one in planned.table.labelled:
        if known.get(one.arm, ("unknown",)) and one.arm in run:
            found[f"table_{slug(one.name)}"] = one.table(rows, known)
    for spec in planned.table.sequences:
        if all(known.get(arm, ("unknown",)) for arm in spec.arms) and run.intersection(spec.arms):
            found[f"table_{slug(spec.name)}"] = spec.table(rows, known)
    return found


def slug(together: str) -> str:
    """A comparison's name as part of a file's."""
    return "_".join(together.split())


def sweep_tables(planned: Study, rows: Sequence[Row]) -> Iterator[tables.Table]:
    """A table for each sweep: the study's first column at every point, beside each arm as it is, over the seeds that
    all of these run.
    """
    for sweep in planned.table.sweeps:
        arms = tuple(dict.fromkeys([*sweep.arms, *sweep.expanded()]))
        own = [row for row in rows if row.arm in arms]
        common = set.intersection(*(set(planned.seeds_of(arm)) for arm in arms))
        seeds = tuple(seed for seed in planned.seeds if seed in common)
        if own and seeds:
            yield sweeping.sweep_table(
                own,
                arms=arms,
                seeds=seeds,
                metric=planned.table.columns[0],
                baseline="",
                varied=planned.table.varied,
            )


def task_tables(planned: Study, rows: Sequence[Row]) -> dict[str, tables.Table]:
    """The tables over the study's tasks, by name: one for the arms of each comparison."""
    if not planned.table.tasks:
        return {}
    found = {}
    for number, (together, arms) in enumerate(planned.comparisons.items(), 1):
        found["tasks" if len(planned.baselines) == 1 else f"tasks_{number}"] = aggregate.across(
            rows,
            arms=arms,
            seeds=planned.seeds_of(arms[0]),
            metrics=planned.table.tasks,
            baseline=planned.baselines[together],
            varied=planned.table.varied,
        )
    return found


def write(planned: Study, found: dict[str, tables.Table], results_dir: Path | str) -> None:
    """Writes table.md, table.csv and table.tex, as many of each further comparison, of the tasks and of each sweep, and
    the figures; those of what is no longer declared go.

    Raises:
      RunError: a file cannot be written.
    """
    into, rows = folder(planned, results_dir), rows_of(planned, results_dir)
    named = {**found, **task_tables(planned, rows)}
    named |= {f"sweep_{i}": one for i, one in enumerate(sweep_tables(planned, rows), 1)}
    kept: set[Path] = set()
    for name, one in named.items():
        for kind, text in (("md", tables.markdown), ("csv", tables.csv), ("tex", tables.latex)):
            save(text(one), into / f"{name}.{kind}")
            kept.add(into / f"{name}.{kind}")
    for spec, arms, seeds in figured(planned, rows):
        kept |= set(figures.save(spec.draw(rows, arms, seeds), into / "figures" / spec.name))
    globs = ("table*", "tasks*", "sweep_*")
    tabled = [into.glob(f"{name}.{kind}") for name in globs for kind in ("md", "csv", "tex")]
    drawn = [into.glob(f"figures/*.{kind}") for kind in ("svg", "png")]
    for path in {path for found in (*tabled, *drawn) for path in found} - kept:
        path.unlink()


def figured(
    planned: Study, rows: Sequence[Row]
) -> Iterator[tuple[figures.Spec, tuple[str, ...], dict[str, tuple[int, ...]]]]:
    """The figures whose arms all run at the scale and of which some has a row, each with all arms of the study and the
    seeds of each.
    """
    seeds = planned.known_seeds
    run = {row.arm for row in rows}
    for spec in planned.table.figures:
        shown = [arm for arm in spec.arms or seeds if arm in seeds]
        if run & set(shown) and all(seeds[arm] for arm in shown):
            yield spec, tuple(seeds), seeds


def save(text: str, path: Path) -> None:
    """Write a file, and the folder it lies in, so that a reader sees all of it.

    Raises:
      RunError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folders.replace(path, text)


def update_blocks(path: Path, planned: Study, found: dict[str, tables.Table]) -> None:
    """Rewrites the study's tables between their marker comments in a Markdown file: the first, and whichever other has
    a block there, such as `<!-- table:architecture/small/sorting -->`.

    Raises:
      TableError: it has no block of the first.
    """
    document, scale = path.read_text(encoding="utf-8"), f"{planned.name}/{planned.scale}"
    for name, table in found.items():
        block = "/".join([scale, *name.split("_", 1)[1:]])
        if block == scale or f"<!-- table:{block} -->" in document:
            document = tables.inserted(document, block, tables.markdown(table), place=str(path))
    save(document, path)


def main(argv: list[str]) -> int:
    """Render, trace, verify or check. Returns the exit code."""
    from experiments import checking  # which runs cells, as a table alone needs not

    arguments, console = flags.FLAGS, start.console()
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --study=...")
    failed: list[str] = []
    try:
        planned = study.load(arguments.study, arguments.scale)
        if arguments.trace:
            for line in checking.trace(planned, rows_of(planned, arguments.results_dir), arguments.trace):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            return 0
        if arguments.check or arguments.cells:
            prepare(planned)
            failed = checking.check(
                planned, arguments.results_dir, arguments.cells or (), arguments.data_dir, console
            )
            return told(failed)
        if arguments.verify:
            prepare(planned)
            failed = checking.verify(planned, arguments.results_dir, arguments.data_dir, console)
        found = render(planned, arguments.results_dir)
        write(planned, found, arguments.results_dir)
        if arguments.readme:
            update_blocks(Path(arguments.readme), planned, found)
    except (loop.Interrupted, KeyboardInterrupt) as stopped:
        console.print(str(stopped) or start.STOPPED)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        return start.fail(error)
    show(found, console)
    return told(failed)


def show(found: dict[str, tables.Table], console: Console) -> None:
    """Print the tables, the study's last: what stands above the prompt is seen."""
    for table in reversed(found.values()):
        console.print(tables.rich_table(table))


def prepare(planned: Study) -> None:
    """Set up the process to run cells of a study."""
    start.process()
    if planned.deterministic(arm for arms in planned.groups.values() for arm in arms):
        start.deterministic()


def told(failed: Sequence[str]) -> int:
    """Say what failed, a line each; the exit code."""
    for line in failed:
        start.fail(line)
    return 1 if failed else 0


if __name__ == "__main__":  # flags are global: defined here, so that launch can import `render`
    flags.DEFINE_string("study", None, "Name of the study, a folder in configs/.", required=True)
    flags.DEFINE_string("scale", "smoke", "Scale of the study: smoke, small or base.")
    flags.DEFINE_string("results_dir", "results", "Folder of the result rows.")
    flags.DEFINE_string("readme", None, "Markdown file whose block of this study is rewritten.")
    flags.DEFINE_string("trace", None, "ARM/COLUMN: name the runs behind a number of the table, and stop.")
    flags.DEFINE_bool(
        "verify", False, "Replay the first steps of rows whose code has changed, and mark what moved."
    )
    flags.DEFINE_bool(
        "check", False, "Run a cell again, by default the cheapest, compare it with its row, and stop."
    )
    flags.DEFINE_list("cells", None, "Cells for --check, as arm or arm:seed.")
    flags.DEFINE_string("data_dir", None, "Folder of downloaded archives (default: the user's cache).")
    app.run(main)

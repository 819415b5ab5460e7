"""Whether the numbers of a table can be believed: where one comes from, and whether it comes out again."""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from experiments import cells, configs, lineage, running, staleness
from experiments.cells import Cell
from experiments.study import Study
from research.analysis import readings, results, statistics, tables
from research.analysis.results import Row
from research.training import loop

TOLERANCE = 1e-4  # relative, of a loss on the same versions and the same kind of machine
SAME = ("python", "jax", "flax", "platform", "device", "processor", "cores", "attention", "matmul_precision")


def trace(planned: Study, rows: Sequence[Row], cell: str) -> Iterator[str]:
    """Which runs a number of the table comes from: a line each.

    Args:
      cell: arm/column, such as causal_lm/loss; the column is a measure or the path of a number in a row.

    Raises:
      TableError: no such arm, or no number of that name.
    """
    arm, slash, column = cell.partition("/")
    every = [name for arms in planned.groups.values() for name in arms]
    if not slash or arm not in every:
        near = readings.meant(arm, every)
        raise tables.TableError(f"--trace={cell}: expected ARM/COLUMN with one of the arms {every}{near}")
    try:
        path = tables.measure(column).path
    except tables.TableError:
        raise tables.TableError(
            f"--trace={cell}: {column!r} is no number of a row, expected one of {list(tables.MEASURES)} or a path such "
            f"as metrics.loss{readings.meant(column, tables.MEASURES)}"
        ) from None
    own = results.select(rows, [arm], planned.seeds_of(arm))
    found = {row.seed: row for row in own}
    for seed in planned.seeds_of(arm):
        if seed not in found:
            yield f"seed {seed}  missing"
            continue
        row = found[seed]
        try:
            value = row.value(path)
        except KeyError as error:
            raise tables.TableError(f"--trace={cell}: {error.args[0]}") from None
        if isinstance(value, Mapping):
            raise tables.TableError(
                f"--trace={cell}: {path} of {row.name} is a series, expected a number; add one of its labels: "
                f"{', '.join(map(str, value))}"
            )
        commit = f"{row.commit[:12]}{' and changes' if row.dirty else ''}"
        yield f"seed {seed}  {path} = {value}  {row.name}  commit {commit}  data {row.data['fingerprint'][:12]}"


def verify(planned: Study, results_dir: Path | str, data_dir: str | None, console: Console) -> list[str]:
    """Find the rows that the code would no longer measure, which say so from then on; a line for each cell that cannot
    be planned.
    """
    every, broken = _of(planned, results_dir, data_dir)
    staleness.check(every, console)
    return [f"{cell.title}: {error}" for cell, error in broken.items()]


def check(
    planned: Study, results_dir: Path | str, names: Sequence[str], data_dir: str | None, console: Console
) -> list[str]:
    """Run cells again, apart from what there is, and compare their losses with their rows'.

    On the same versions and kind of machine a loss agrees to `TOLERANCE`; elsewhere it lies in the 95 % prediction
    interval of a new run of the arm.

    Args:
      names: arms, or arm:seed; none: the cheapest cell that has a row.

    Returns: a line for each that does not agree, or diverges.

    Raises:
      ConfigError: a cell that is not there, has no row or cannot be planned, or a row elsewhere of an arm with one
        seed.
    """
    every, broken = _of(planned, results_dir, data_dir)
    failed = []
    with tempfile.TemporaryDirectory() as apart:
        for cell in _named(every, broken, names):
            row = cell.row
            assert row is not None
            try:
                result = _again(dataclasses.replace(cell, runs=Path(apart)), data_dir, console)
            except loop.Diverged as error:
                failed.append(f"{error}, but its row has loss {row.value('metrics.loss'):.6f}")
                continue
            before, after = row.value("metrics.loss"), result["metrics"]["loss"]
            # Of an old row some are not known.
            differing = [
                name
                for name in SAME
                if name in row.environment and row.environment[name] != result["environment"][name]
            ]
            others = [one.row for one in every if one.arm == cell.arm]
            low, high, why = _bounds(before, [one.value("metrics.loss") for one in others if one], differing)
            agrees = low <= after <= high
            said = f"{cell.title}: loss {after:.6f}, its row has {before:.6f}; expected {low:.6f} to {high:.6f}, {why}"
            console.print(f"{said}: {'agrees' if agrees else 'differs'}", highlight=False)
            failed += [] if agrees else [said]
    return failed


def _again(cell: Cell, data_dir: str | None, console: Console) -> running.Result:
    """What a run of the cell measures, after runs of what it starts from."""
    *first, last = (dataclasses.replace(one.job, replayed=False) for one in lineage.needed([cell]))
    for job in first:
        running.run(job, data_dir=data_dir, console=console)
    return running.run(last, data_dir=data_dir, console=console)


def _bounds(before: float, losses: Sequence[float], differing: Sequence[str]) -> tuple[float, float, str]:
    """Between which values a loss may lie that is measured again, and why."""
    if not differing:
        return before * (1 - TOLERANCE), before * (1 + TOLERANCE), f"within {TOLERANCE:g}"
    if len(losses) < 2:
        raise configs.ConfigError(
            f"the row was measured with another {', '.join(differing)} and its arm has one seed: expected two to tell "
            "how far runs differ; launch more seeds"
        )
    low, high = statistics.prediction_interval(losses)
    return low, high, f"95 % of new runs, since {', '.join(differing)} differ"


def _of(
    planned: Study, results_dir: Path | str, data_dir: str | None
) -> tuple[list[Cell], dict[Cell, Exception]]:
    """All cells of a study that can be planned, and why others cannot."""
    arms = [arm for arms in planned.groups.values() for arm in arms]
    return cells.sound(cells.of(planned, arms, results_dir, "runs", data_dir))


def _named(every: Sequence[Cell], broken: Mapping[Cell, Exception], names: Sequence[str]) -> list[Cell]:
    """The cells with a row that the names choose."""
    measured = [cell for cell in every if cell.row is not None]
    if not measured:
        raise configs.ConfigError(
            "--check: no cell has a row of its experiment as it is now; launch the study"
        )
    if not names:
        return [min(measured, key=_work)]
    chosen = []
    for name in names:
        arm, _, seed = name.partition(":")
        if why := [error for cell, error in broken.items() if cell.arm == arm]:
            raise configs.ConfigError(f"--cells={name}: {why[0]}")
        own = [cell for cell in measured if cell.arm == arm and seed in ("", str(cell.seed))]
        if not own:
            raise configs.ConfigError(
                f"--cells={name}: no such cell with a row, expected some of {sorted({cell.arm for cell in measured})}"
            )
        chosen += own
    return chosen


def _work(cell: Cell) -> float:
    row = cell.row
    assert row is not None
    return row.budget["train_flops"]

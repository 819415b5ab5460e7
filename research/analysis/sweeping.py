"""The table of a sweep: every point of every arm against the arm's baseline point.

A sweep explores. Its p values are adjusted over all differences of the table after Benjamini and Hochberg (1995),
"Controlling the False Discovery Rate", and no verdict rests on them.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from research.analysis import readings, rendering, results, statistics, tables
from research.analysis.rendering import Cell, Column
from research.analysis.results import Row
from research.analysis.statistics import Comparison, Estimate
from research.analysis.tables import TableError

_ADDED = (
    Column(name="difference", label="difference to the baseline"),
    Column(name="p", label="p"),
    Column(name="adjusted_p", label="adjusted p"),
)


def sweep_table(
    rows: Iterable[Row],
    *,
    arms: Sequence[str],
    seeds: Sequence[int],
    metric: str,
    baseline: str,
    varied: bool = False,
) -> tables.Table:
    """One line an arm of a sweep: the metric, and its difference to the arm's baseline point, paired by seed.

    Args:
      rows: of the study.
      arms: names as `experiments.sweeps.Sweep.expanded` has them, `arm@point`, in the order of the lines.
      seeds: those declared.
      metric: a column of `tables.build`: a name in `tables.MEASURES`, or a path such as metrics.positions.loss.first_4.
      baseline: the name of a point that every arm has, such as "learning_rate=0.003"; "" for the arm without a sweep.
      varied: see `tables.check_comparable`.

    Raises:
      TableError: an arm has no such point, or as `tables.build`.
    """
    baselines = {arm: _at(arm, baseline) for arm in arms}
    for arm, other in baselines.items():
        if other not in arms:
            raise TableError(
                f"baseline {baseline!r} of a sweep: arm {arm!r} has no {other!r}{readings.meant(other, arms)}"
            )
    rows = results.select(rows, arms, seeds)
    plain = tables.build(rows, arms=arms, seeds=seeds, columns=(metric,), varied=varied)
    measure = tables.measure(metric)
    if measure.censored:
        raise TableError(
            f"metric {metric!r} of a sweep: a median, expected what has a mean; change the study's columns"
        )
    values = {arm: tables.values([row for row in rows if row.arm == arm], rows, measure) for arm in arms}
    compared = {
        arm: statistics.paired_test(values[arm], values[other])
        for arm, other in baselines.items()
        if arm != other and values[arm].keys() & values[other].keys()
    }
    # What is not run yet is of the family, which was declared with it.
    family = {arm: compared[arm].p if arm in compared else math.nan for arm in arms if arm != baselines[arm]}
    adjusted = statistics.benjamini_hochberg(family)
    lines = []
    for line in plain.lines:
        if line.arm in compared:
            found = compared[line.arm]
            added = (
                rendering.cell(measure, found.estimate, line.found, sign="+"),
                _p(found.p, found),
                _p(adjusted[line.arm], found),
            )
        else:
            is_baseline = line.arm == baselines[line.arm]
            added = (Cell(text="baseline" if is_baseline else "n/a"), Cell(text=""), Cell(text=""))
        lines.append(dataclasses.replace(line, cells=line.cells + added))
    note = (
        f"Differences are to {baseline or 'the arm as it is'} of the same arm, paired by seed, with p of the paired t "
        f"test, adjusted over {len(family)} differences after Benjamini and Hochberg; a sweep explores, and no "
        "verdict rests on it."
    )
    return tables.Table(columns=plain.columns + _ADDED, lines=tuple(lines), notes=(*plain.notes, note))


def _at(arm: str, point: str) -> str:
    """The arm at another point of its sweep."""
    base = arm.partition("@")[0]
    return f"{base}@{point}" if point else base


def _p(p: float, found: Comparison) -> Cell:
    if math.isnan(p):
        return Cell(text="n/a")
    return Cell(text=statistics.p_text(p), estimate=Estimate(mean=p, half_width=math.nan, n=found.estimate.n))

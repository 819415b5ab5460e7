"""One line an arm over many tasks: the mean of the middle half of its runs, and how often it beats the baseline.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice". Scores of different
tasks have different units, so each task's are normalised by two reference points, as theirs are by random and human
play: 0 is the baseline's mean, and 1 the distance between the worst and the best run of any arm, in the direction that
is better. The reference points are taken as known and not drawn again. The distance depends on the arms that are in
the table: numbers of two tables do not compare. The probability of improvement only ranks the runs of a task, and is
the same whatever the scale.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from research.analysis import resampling, results, tables
from research.analysis.rendering import Cell, Column, Line, Table, counted
from research.analysis.resampling import Interval
from research.analysis.results import Row
from research.analysis.statistics import Estimate
from research.analysis.tables import TableError

Direction = Literal["higher", "lower"]


def across(
    rows: Iterable[Row],
    *,
    arms: Sequence[str],
    seeds: Sequence[int],
    metrics: Mapping[str, Direction],
    baseline: str,
    varied: bool = False,
) -> Table:
    """Each arm's interquartile mean over tasks and seeds, and the probability that it improves on the baseline.

    With their 95 % stratified bootstrap intervals, where an arm has more than one seed. A seed counts where it has
    all tasks.

    Args:
      rows: of the study.
      arms: that may be compared with each other (one objective), in the order of the lines.
      seeds: those declared.
      metrics: which is better, "higher" or "lower", by the path of each task's number.
      baseline: one of the arms.
      varied: see `tables.check_comparable`.

    Raises:
      TableError: no metric, an unknown direction or baseline, a metric that no row has, rows that do not compare.
      ResultError: two rows of one arm and seed.
    """
    _check_declared(metrics, arms, baseline)
    rows = results.select(rows, arms, seeds)
    tables.check_comparable(rows, varied=varied)
    own = {arm: [row for row in rows if row.arm == arm] for arm in arms}
    scores = {arm: _scores(own[arm], rows, metrics) for arm in arms}
    normalised = _normalised(scores, baseline)
    lines = []
    for arm in arms:
        few, theirs = len(scores[arm]), len(scores[baseline])
        cells = [Cell(text="n/a"), *_NONE] * 2
        if few and theirs:
            improved = [Cell(text="baseline"), *_NONE]
            if arm != baseline:
                rank = resampling.probability_of_improvement(scores[arm], scores[baseline])
                improved = _cells(rank, "", len(own[arm]), few, single=min(few, theirs) == 1)
            mean = resampling.interquartile_mean(normalised[arm])
            cells = _cells(mean, "+", len(own[arm]), few, single=few == 1) + improved
        lines.append(Line(arm=arm, found=len(own[arm]), declared=len(seeds), cells=tuple(cells)))
    notes = [_provenance(metrics, seeds, baseline), *_missing(own, metrics)]
    return Table(columns=_columns(baseline), lines=tuple(lines), notes=tuple(notes))


_NONE = (Cell(text=""), Cell(text=""))  # the ends of an interval that there is not


def _check_declared(metrics: Mapping[str, Direction], arms: Sequence[str], baseline: str) -> None:
    if not metrics:
        raise TableError("tasks: none, expected paths of numbers; change Table.tasks of the study")
    for path, better in metrics.items():
        if better not in ("higher", "lower"):
            raise TableError(
                f"task {path!r}: {better!r} is better, expected 'higher' or 'lower'; change Table.tasks of the study"
            )
    if baseline not in arms:
        raise TableError(
            f"baseline {baseline!r} over tasks: expected one of {sorted(arms)}; change the study's arms"
        )


def _scores(own: Sequence[Row], every: Sequence[Row], metrics: Mapping[str, Direction]) -> np.ndarray:
    """[seeds tasks], higher is better, of the seeds that have all tasks."""
    tasks = [tables.values(own, every, tables.measure(path)) for path in metrics]
    signs = [1 if better == "higher" else -1 for better in metrics.values()]
    complete = sorted(set.intersection(*map(set, tasks)))
    table = [[sign * task[seed] for sign, task in zip(signs, tasks, strict=True)] for seed in complete]
    return np.array(table, dtype=np.float64).reshape(len(complete), len(metrics))


def _normalised(scores: Mapping[str, np.ndarray], baseline: str) -> dict[str, np.ndarray]:
    """With 0 at the baseline's mean of each task and 1 at the distance from the worst to the best run; 0 where all
    runs of a task are the same. Nothing without the baseline.
    """
    if not scores[baseline].size:
        return {}
    every = np.concatenate(list(scores.values()))
    spread = np.ptp(every, axis=0)
    zero = scores[baseline].mean(axis=0)
    return {arm: (own - zero) / np.where(spread > 0, spread, np.inf) for arm, own in scores.items()}


def _cells(found: Interval, sign: str, rows: int, n: int, *, single: bool) -> list[Cell]:
    """The value and the ends of its interval, which one seed has not."""
    numbers = [found.value] if single else [found.value, found.low, found.high]
    texts = [f"{number:{sign}z.3f}" for number in numbers]
    texts[0] += "" if n == rows else f" (n={n})"
    estimates = [Estimate(mean=number, half_width=math.nan, n=n) for number in numbers]
    cells = [Cell(text=text, estimate=one) for text, one in zip(texts, estimates, strict=True)]
    return [*cells, *_NONE] if single else cells


def _columns(baseline: str) -> tuple[Column, ...]:
    labels = {"iqm": "interquartile mean", "improvement": f"probability of improvement over {baseline}"}
    ends = {"": "", "_low": "from", "_high": "to"}
    return tuple(
        Column(name=f"{name}{end}", label=word or label)
        for name, label in labels.items()
        for end, word in ends.items()
    )


def _provenance(metrics: Mapping[str, Direction], seeds: Sequence[int], baseline: str) -> str:
    tasks = ", ".join(f"{path} ({better} is better)" for path, better in metrics.items())
    return (
        f"{counted(len(metrics), 'task')}: {tasks}; {counted(len(seeds), 'seed')}. Scores of a task are normalised: 0 "
        f"is the mean of {baseline}, 1 the distance between the worst and the best run of any arm. Intervals are 95 % "
        "stratified bootstraps over seeds, too narrow for few of them; no verdict rests on them."
    )


def _missing(own: Mapping[str, Sequence[Row]], metrics: Mapping[str, Direction]) -> list[str]:
    """A note of the tasks that not all rows of an arm have."""
    every = [row for rows in own.values() for row in rows]
    lacking = [
        f"{arm} has {path} of {counted(len(found), 'seed')}"
        for arm, rows in own.items()
        for path in metrics
        if len(found := tables.values(rows, every, tables.measure(path))) < len(rows)
    ]
    return [f"A seed counts where it has all tasks; {'; '.join(lacking)}."] if lacking else []

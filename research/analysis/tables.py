"""A table is a function of rows: one line an arm, one column a measure, intervals over seeds.

`build` gathers and checks, `research.analysis.rendering` only prints. What would make two lines incomparable
(another attention backend, matmul precision, data set or data order) is refused, and so are rows of one arm that
differ in more than their seed; what is missing is shown as missing.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from research.analysis import results, statistics
from research.analysis.rendering import Cell, Column, Line, Measure, Table, cell, counted
from research.analysis.rendering import csv as csv
from research.analysis.rendering import latex as latex
from research.analysis.rendering import markdown as markdown
from research.analysis.rendering import rich_table as rich_table
from research.analysis.results import Row
from research.analysis.statistics import Comparison, Estimate

LEVEL = 0.05  # of significance
MARK = " *"


class TableError(ValueError):
    """A table that would mislead, or that was declared wrongly. One line."""


_MEGA: dict[str, Any] = {"size": 1e6, "unit": " M", "format": ".3f"}

MEASURES: dict[str, Measure] = {
    "loss": Measure(path="metrics.loss", label="held-out loss per target token (nats)"),
    "bits_per_byte": Measure(path="metrics.bits_per_byte", label="bits per byte"),
    "parameters": Measure(path="budget.parameters", label="parameters", **_MEGA),
    "flops_per_token": Measure(path="budget.flops_per_token", label="FLOPs per token", **_MEGA),
    "train_flops": Measure(
        path="budget.train_flops", label="training FLOPs", size=1e12, unit=" T", format=".3f"
    ),
    "tokens_seen": Measure(path="budget.tokens_seen", label="tokens seen", **_MEGA),
    "loss_tokens": Measure(path="budget.loss_tokens", label="loss tokens", **_MEGA),
    "tokens_per_second": Measure(path="timing.tokens_per_second", label="tokens per second", format=",.0f"),
    "latency": Measure(
        path="timing.latency_seconds", label="latency of one window", size=1e-3, unit=" ms", format=".2f"
    ),
    "wall_seconds": Measure(path="timing.wall_seconds", label="wall time", unit=" s", format=".1f"),
    "peak_memory": Measure(
        path="timing.peak_memory_bytes", label="peak memory", size=2**20, unit=" MiB", format=".1f"
    ),
}

# Paths whose value must be the same in every row of a table, and of the data, in every row of a table and of a seed.
_COMPARABLE = ("study", "scale", "environment.attention", "environment.matmul_precision")
_DATA, _PAIRED = ("data.fingerprint",), ("data.order",)
_FIELDS = tuple(field.name for field in dataclasses.fields(Row))


def build(
    rows: Iterable[Row],
    *,
    arms: Sequence[str],
    seeds: Sequence[int],
    columns: Sequence[str],
    baseline: str | None = None,
    varied: bool = False,
) -> Table:
    """One line for each arm, in the order given; rows of other arms and seeds are left out.

    A column is a name that `measure` knows; of a metric an arm may have none. It shows mean ± half
    width of the 95 % t interval over seeds, or one number where the seeds agree or there is one
    seed. With a baseline, `loss` is followed by its difference to the baseline, paired by seed and
    marked where it is significant after Holm's correction over all differences that the table
    declares, run or not. Losses of different objectives do not compare: they stand in tables of their own. `varied`:
    see `check_comparable`.

    Raises TableError for an unknown column or baseline, a row without a column's value, a value
    that is no number, and rows that do not compare; results.ResultError for two rows of one arm
    and seed.
    """
    measures = {name: measure(name) for name in columns}
    if baseline is not None and baseline not in arms:
        raise TableError(
            f"baseline {baseline!r}: expected one of the arms {list(arms)}; change the study's comparisons"
        )
    rows = results.select(rows, arms, seeds)
    check_comparable(rows, varied=varied)
    by_arm = {arm: [row for row in rows if row.arm == arm] for arm in arms}

    differences = baseline is not None and "loss" in columns
    compared = {
        arm: _compared(by_arm[arm], by_arm[baseline], rows)
        for arm in arms
        if baseline is not None and differences and arm != baseline
    }
    family = {arm: math.nan if one is None else one.p for arm, one in compared.items()}
    significant = {arm for arm, p in statistics.holm(family).items() if p < LEVEL}
    heads: list[Column] = []
    for name in columns:
        heads.append(Column(name=name, label=measures[name].label, measure=measures[name]))
        if name == "loss" and differences:
            heads.append(Column(name="difference", label=f"difference to {baseline}"))
    lines = []
    for arm in arms:
        cells = []
        for head in heads:
            if head.name == "difference":
                marked = arm in significant
                cells.append(_difference(compared.get(arm), len(by_arm[arm]), arm == baseline, marked))
            else:
                found = values(by_arm[arm], rows, measures[head.name])
                cells.append(_cell(measures[head.name], found, rows=len(by_arm[arm])))
        lines.append(Line(arm=arm, found=len(by_arm[arm]), declared=len(seeds), cells=tuple(cells)))
    notes = [_provenance(rows, seeds, varied), *_stale(rows)]
    if differences:
        notes.append(_of_differences(list(compared.values())))
    if any(line.found == 1 for line in lines):
        notes.append("An arm with one seed has no interval.")
    return Table(columns=tuple(heads), lines=tuple(lines), notes=tuple(notes))


def check_comparable(rows: Sequence[Row], *, varied: bool = False) -> None:
    """TableError where rows that are to be compared differ in what must be the same: data and precision in all of
    them, the order of data in those of a seed, and all but the seed in those of an arm.

    `varied`: what arms are trained on, or in which shares, differs on purpose; what compares is then measured of text
    that an evaluation names, not of a run's own.
    """
    _check_same(rows, _COMPARABLE if varied else _COMPARABLE + _DATA, "a table")
    for seed in sorted({row.seed for row in rows} if not varied else ()):
        _check_same([row for row in rows if row.seed == seed], _PAIRED, "a seed")
    firsts: dict[str, Row] = {}
    for row in rows:
        first = firsts.setdefault(row.arm, row)
        if row.design != first.design:
            raise TableError(
                f"rows of one arm differ in more than their seed: {first.name} and {row.name}; launch the study again"
            )


def _check_same(rows: Sequence[Row], paths: Sequence[str], of: str) -> None:
    for path in paths:
        for row in rows[1:]:
            first, other = _value(rows[0], path), _value(row, path)
            if first != other:
                raise TableError(
                    f"{path}: {first!r} in {rows[0].name} but {other!r} in {row.name}, expected "
                    f"one value in {of}; remove the odd rows and launch them again"
                )


def _value(row: Row, path: str) -> Any:
    try:
        return row.value(path)
    except KeyError as error:
        raise TableError(error.args[0]) from None


def measure(name: str) -> Measure:
    """What a column shows: a name in MEASURES, the path of a number of a row, or median(path) of one that may not have
    been reached, such as steps to a threshold. TableError for any other name.
    """
    if name in MEASURES:
        return MEASURES[name]
    if median := re.fullmatch(r"median\((.+)\)", name):
        of = measure(median[1])
        return dataclasses.replace(of, label=f"median {of.label}", censored=True, format=".5g")
    section, _, rest = name.partition(".")
    if section in _FIELDS:
        known = {one.path: one for one in MEASURES.values()}
        return known.get(name) or Measure(path=name, label=(rest or name).replace(".", " ").replace("_", " "))
    near = difflib.get_close_matches(name, MEASURES, n=1, cutoff=0)
    raise TableError(
        f"column {name!r}: not a measure, did you mean {near[0]!r}? Change the study's columns, name a path such as "
        "metrics.loss, or add to MEASURES in research/analysis/tables.py"
    )


def values(own: Iterable[Row], every: Iterable[Row], of: Measure) -> dict[int, float]:
    """The measured values of an arm by seed, without what is None or not finite, which was not measured. A None of a
    censored measure is inf.

    Args:
      own: rows of the arm.
      every: of the table. A metric or timing that none of them has is an error, what only other rows have is not; nor
        is a timing in MEASURES, which may be taken long after the row was made.
      of: what is read.

    Raises:
      TableError: no row has it, or it is no number.
    """
    found: dict[int, float] = {}
    for row in own:
        try:
            value = row.value(of.path)
        except KeyError as error:
            if not _may_lack(every, of.path):
                raise TableError(error.args[0]) from None
            continue
        if isinstance(value, Mapping):
            labels = [str(label) for label in value if "." not in str(label)]
            raise TableError(
                f"{of.path}: a series in {row.name}, expected a number; add one of its labels to the column: "
                f"{', '.join(labels)}"
            )
        if value is None:
            found |= {row.seed: math.inf} if of.censored else {}
        elif not isinstance(value, int | float):
            raise TableError(
                f"{of.path}: {value!r} in {row.name}, expected a number; change the study's columns"
            )
        elif math.isfinite(value):
            found[row.seed] = value
    return found


def _may_lack(every: Iterable[Row], path: str) -> bool:
    """Whether a row may lack what is at a path, while a path that is wrong is told."""
    section = path.partition(".")[0]
    if section == "timing" and any(one.path == path for one in MEASURES.values()):
        return True
    return section in ("metrics", "timing") and any(_has(row, path) for row in every)


def _has(row: Row, path: str) -> bool:
    try:
        row.value(path)
    except KeyError:
        return False
    return True


def _cell(of: Measure, found: Mapping[int, float], rows: int) -> Cell:
    if not found:
        return Cell(text="n/a")
    if not of.censored:
        return cell(of, statistics.mean_interval(found.values()), rows)
    summary = statistics.censored_summary(found.values())
    median = Estimate(mean=summary.median, half_width=math.nan, n=summary.n)
    shown = cell(of, median, rows)
    reached = f"reached by {summary.reached} of {summary.n}"
    text = f"{shown.text}; {reached}" if math.isfinite(summary.median) else f"not reached; {reached}"
    return dataclasses.replace(shown, text=text)


def _compared(own: Sequence[Row], baseline: Sequence[Row], every: Sequence[Row]) -> Comparison | None:
    """The paired test of an arm's loss against its baseline's, or None where they share no seed."""
    ours, theirs = (values(rows, every, MEASURES["loss"]) for rows in (own, baseline))
    return statistics.paired_test(ours, theirs) if ours.keys() & theirs.keys() else None


def _difference(found: Comparison | None, rows: int, is_baseline: bool, marked: bool) -> Cell:
    if is_baseline:
        return Cell(text="baseline")
    if found is None:
        return Cell(text="n/a")
    shown = cell(MEASURES["loss"], found.estimate, rows, sign="+")
    return dataclasses.replace(shown, text=shown.text + MARK) if marked else shown


def _of_differences(declared: Sequence[Comparison | None]) -> str:
    """What is to be known of the differences of a table."""
    text = "Differences are arm minus baseline, paired by seed."
    if declared:
        family = counted(len(declared), "difference")
        text += f" {MARK.strip()}: p < {LEVEL:g} after Holm's correction over {family}."
    detectable = [one.detectable for one in declared if one and math.isfinite(one.detectable)]
    if detectable:
        least, most = (f"{bound:.3g}" for bound in (min(detectable), max(detectable)))
        span = least if least == most else f"{least} to {most}"
        text += f" Least difference that is found with 80 % power: {span} nats, without correction."
    return text


_STALE = {
    "code": "Stale, since the code has come to measure something else",
    "config": "Stale, since the arm is another one by now",
}


def _stale(rows: Sequence[Row]) -> list[str]:
    """A note on rows that the code and the configs of now would not measure."""
    notes = []
    for reason, text in _STALE.items():
        stale: dict[str, list[str]] = {}
        for row in rows:
            if row.code.get("stale") == reason:
                stale.setdefault(row.arm, []).append(str(row.seed))
        named = "; ".join(f"{arm} (seeds {', '.join(seeds)})" for arm, seeds in stale.items())
        notes += [f"{text}: {named}."] if stale else []
    return notes


def _provenance(rows: Sequence[Row], seeds: Sequence[int], varied: bool) -> str:
    scale = rows[0].scale if rows else "unknown (no rows yet)"
    data = str(_value(rows[0], "data.fingerprint"))[:12] if rows else "unknown"
    data = "of each arm" if varied else data
    return f"Scale {scale}; {counted(len(seeds), 'seed')}; data {data}; intervals are 95 % t intervals over seeds."


def inserted(document: str, name: str, body: str, *, place: str) -> str:
    """A Markdown document with `body`, whole lines, between the two marker comments of that name.

    Raises:
      TableError: it has no such block; `place` says where it was looked for.
    """
    first, last = f"<!-- table:{name} -->", "<!-- /table -->"
    before, found_first, rest = document.partition(first)
    old, found_last, after = rest.partition(last)
    if not found_first or not found_last or "<!-- table:" in old:
        raise TableError(
            f"{place}: no block {first} ... {last}; add the two marker lines where the table belongs"
        )
    return f"{before}{first}\n{body}{last}{after}"

"""A table is a function of rows: one line an arm, one column a measure, intervals over seeds.

`build` gathers and checks, the renderers only print. What would make two lines incomparable
(another attention backend, matmul precision, data set or data order) is refused; what is missing
is shown as missing.
"""

import csv as csv_format
import dataclasses
import difflib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import rich.markup
import rich.table

from research.analysis import results, statistics
from research.analysis.results import Row
from research.analysis.statistics import Comparison, Estimate

LEVEL = 0.05  # of significance
MARK = " *"


class TableError(ValueError):
    """A table that would mislead, or that was declared wrongly. One line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """Where a column's value lies in a row and how it is printed: value / size, then the unit."""

    path: str
    label: str
    format: str = ".4f"
    size: float = 1.0
    unit: str = ""


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
    "wall_seconds": Measure(path="timing.wall_seconds", label="wall time", unit=" s", format=".1f"),
    "peak_memory": Measure(
        path="timing.peak_memory_bytes", label="peak memory", size=2**20, unit=" MiB", format=".1f"
    ),
}

# Paths whose value must be the same in every row of a table, and in every row of a seed.
_COMPARABLE = (
    "study",
    "scale",
    "environment.attention",
    "environment.matmul_precision",
    "data.fingerprint",
)
_PAIRED = ("data.order",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """`name` heads the column in CSV, `label` everywhere else."""

    name: str
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """What is printed, and the number behind it in the row's own unit (None: no number)."""

    text: str
    estimate: Estimate | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One arm: how many of the declared seeds have a row, and a cell for each column."""

    arm: str
    found: int
    declared: int
    cells: tuple[Cell, ...]

    @property
    def seeds(self) -> str:
        """`5` when complete, `3/5 seeds` when not, `missing` without a row."""
        if self.found == 0:
            return "missing"
        if self.found == self.declared:
            return str(self.found)
        return f"{self.found}/{self.declared} seeds"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Lines of cells under columns, and the notes that stand below them."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def build(
    rows: Iterable[Row],
    *,
    arms: Sequence[str],
    seeds: Sequence[int],
    columns: Sequence[str],
    baseline: str | Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
) -> Table:
    """One line for each arm, in the order given; rows of other arms and seeds are left out.

    A column is a name in MEASURES, or the path of a number in `metrics`, of which an arm may have
    none. It shows mean ± half width of the 95 % t interval over seeds, or one number where the
    seeds agree or there is one seed. With a baseline, `loss` is followed by its difference to the
    baseline, paired by seed and marked where it is significant after Holm's correction over the
    table. Losses of different objectives do not compare, so with `groups` (arm -> objective group)
    `baseline` names an arm for each group, and an arm is compared with its own group's only.

    Raises TableError for an unknown column, arm or group, a row without a column's value, and
    rows that do not compare; results.ResultError for two rows of one arm and seed.
    """
    measures = {name: _measure(name) for name in columns}
    baselines = _baselines(arms, baseline, groups)
    rows = results.select(rows, arms, seeds)
    _check_comparable(rows)
    by_arm = {arm: [row for row in rows if row.arm == arm] for arm in arms}

    differences = set(baselines.values()) if "loss" in columns else set()
    compared = {arm: _compared(by_arm, arm, other) for arm, other in baselines.items() if arm != other}
    significant = {
        arm
        for arm, p in statistics.holm({arm: one.p for arm, one in compared.items() if one}).items()
        if p < LEVEL
    }
    heads: list[Column] = []
    for name in columns:
        heads.append(Column(name=name, label=measures[name].label))
        if name == "loss" and differences:
            only = next(iter(differences)) if len(differences) == 1 else "the group's baseline"
            heads.append(Column(name="difference", label=f"difference to {only}"))
    lines = []
    for arm in arms:
        cells = []
        for head in heads:
            if head.name == "difference":
                is_baseline = arm == baselines.get(arm)
                marked = arm in significant
                cells.append(_difference(compared.get(arm), len(by_arm[arm]), is_baseline, marked))
            else:
                values = _values(by_arm[arm], rows, measures[head.name])
                cells.append(_cell(measures[head.name], values, rows=len(by_arm[arm])))
        lines.append(Line(arm=arm, found=len(by_arm[arm]), declared=len(seeds), cells=tuple(cells)))
    notes = [_provenance(rows, seeds), *_stale(rows)]
    if differences:
        notes.append(_of_differences([one for one in compared.values() if one is not None]))
    if len(differences) > 1 and groups is not None:
        named = {groups[arm]: baselines[arm] for arm in arms if arm in baselines}
        listed = ", ".join(f"{arm} for {group}" for group, arm in named.items())
        notes.append(f"Baselines, one for each objective: {listed}.")
    if any(line.found == 1 for line in lines):
        notes.append("An arm with one seed has no interval.")
    return Table(columns=tuple(heads), lines=tuple(lines), notes=tuple(notes))


def _baselines(
    arms: Sequence[str],
    baseline: str | Mapping[str, str] | None,
    groups: Mapping[str, str] | None,
) -> dict[str, str]:
    """The arm that each arm is compared with; an arm of a group without a baseline has none."""
    if baseline is None:
        return {}
    if isinstance(baseline, str):
        if groups is not None:
            raise TableError(
                f"baseline {baseline!r}: one arm for several groups, expected a group -> arm "
                "mapping; change the study's baselines"
            )
        baseline, groups = {"all": baseline}, dict.fromkeys(arms, "all")
    groups = groups or {}
    for arm in arms:
        if arm not in groups:
            raise TableError(
                f"arm {arm!r}: in no group, expected one of {sorted(baseline)}; change the study's groups"
            )
    for group, arm in baseline.items():
        if arm not in arms or groups[arm] != group:
            members = [member for member in arms if groups[member] == group]
            raise TableError(
                f"baseline {arm!r} of group {group!r}: expected one of its arms {members}; change "
                "the study's baselines"
            )
    return {arm: baseline[groups[arm]] for arm in arms if groups[arm] in baseline}


def _check_comparable(rows: Sequence[Row]) -> None:
    _check_same(rows, _COMPARABLE, "a table")
    for seed in sorted({row.seed for row in rows}):
        _check_same([row for row in rows if row.seed == seed], _PAIRED, "a seed")


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


def _measure(name: str) -> Measure:
    """What a column shows; TableError where it is neither a measure nor a path."""
    if name in MEASURES:
        return MEASURES[name]
    if name.startswith("metrics."):
        return Measure(path=name, label=name.removeprefix("metrics.").replace(".", " ").replace("_", " "))
    near = difflib.get_close_matches(name, MEASURES, n=1, cutoff=0)
    raise TableError(
        f"column {name!r}: not a measure, did you mean {near[0]!r}? Change the study's columns, name a path such as "
        "metrics.loss, or add to MEASURES in research/analysis/tables.py"
    )


def _values(own: Iterable[Row], every: Iterable[Row], measure: Measure) -> dict[int, float]:
    """The measured values of an arm by seed; a value of None was not measured. What no row of the table has is an
    error, what only other arms have is not.
    """
    values: dict[int, float | None] = {}
    for row in own:
        try:
            values[row.seed] = row.value(measure.path)
        except KeyError as error:
            if not measure.path.startswith("metrics.") or not any(
                _has(other, measure.path) for other in every
            ):
                raise TableError(error.args[0]) from None
    return {seed: value for seed, value in values.items() if value is not None}


def _has(row: Row, path: str) -> bool:
    try:
        row.value(path)
    except KeyError:
        return False
    return True


def _cell(measure: Measure, values: Mapping[int, float], rows: int) -> Cell:
    if not values:
        return Cell(text="n/a")
    estimate = statistics.mean_interval(values.values())
    return Cell(text=_text(measure, estimate, rows), estimate=estimate)


def _compared(by_arm: Mapping[str, Sequence[Row]], arm: str, baseline: str) -> Comparison | None:
    """The paired test of an arm's loss against its baseline's, or None where they share no seed."""
    loss = MEASURES["loss"]
    ours, theirs = (_values(by_arm[name], by_arm[name], loss) for name in (arm, baseline))
    return statistics.paired_test(ours, theirs) if ours.keys() & theirs.keys() else None


def _difference(found: Comparison | None, rows: int, is_baseline: bool, marked: bool) -> Cell:
    if is_baseline:
        return Cell(text="baseline")
    if found is None:
        return Cell(text="n/a")
    text = _text(MEASURES["loss"], found.estimate, rows=rows, sign="+")
    return Cell(text=text + MARK if marked else text, estimate=found.estimate)


def _of_differences(compared: Sequence[Comparison]) -> str:
    """What is to be known of the differences of a table."""
    text = "Differences are arm minus baseline, paired by seed."
    tested = [one for one in compared if not math.isnan(one.p)]
    if tested:
        text += f" {MARK.strip()}: p < {LEVEL:g} after Holm's correction over {_counted(len(tested), 'difference')}."
    detectable = [one.detectable for one in tested if math.isfinite(one.detectable)]
    if detectable:
        least, most = (f"{bound:.3g}" for bound in (min(detectable), max(detectable)))
        span = least if least == most else f"{least} to {most}"
        text += f" Least difference that is found with 80 % power: {span} nats, without correction."
    return text


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _stale(rows: Sequence[Row]) -> list[str]:
    """A note on rows that the code would no longer measure."""
    stale: dict[str, list[str]] = {}
    for row in rows:
        if row.code.get("stale"):
            stale.setdefault(row.arm, []).append(str(row.seed))
    named = "; ".join(f"{arm} (seeds {', '.join(seeds)})" for arm, seeds in stale.items())
    return [f"Stale, since the code has come to measure something else: {named}."] if stale else []


def _text(measure: Measure, estimate: Estimate, rows: int, sign: str = "-") -> str:
    text = f"{estimate.mean / measure.size:{sign}z{measure.format}}"
    if estimate.n > 1 and estimate.half_width != 0:
        text += f" ± {estimate.half_width / measure.size:{measure.format}}"
    text += measure.unit
    return text if estimate.n == rows else f"{text} (n={estimate.n})"


def _provenance(rows: Sequence[Row], seeds: Sequence[int]) -> str:
    scale = rows[0].scale if rows else "unknown (no rows yet)"
    data = str(_value(rows[0], "data.fingerprint"))[:12] if rows else "unknown"
    return f"Scale {scale}; {_counted(len(seeds), 'seed')}; data {data}; intervals are 95 % t intervals over seeds."


def _grid(table: Table) -> tuple[list[str], list[list[str]]]:
    head = ["arm", "seeds", *(column.label for column in table.columns)]
    body = [[line.arm, line.seeds, *(cell.text for cell in line.cells)] for line in table.lines]
    return head, body


def markdown(table: Table) -> str:
    """A GitHub-flavoured Markdown table, its notes below it."""
    head, body = _grid(table)
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    text = ["| " + " | ".join(item.replace("|", "\\|") for item in line) + " |" for line in lines]
    return "\n".join([*text, "", *table.notes]) + "\n"


def csv(table: Table) -> str:
    """For machines: means and half widths in the rows' own units, empty where there is none."""
    head = ["arm", "seeds", "seeds_declared"]
    for column in table.columns:
        head += [column.name, f"{column.name}_half_width"]
    file = io.StringIO()
    writer = csv_format.writer(file, lineterminator="\n")
    writer.writerow(head)
    for line in table.lines:
        numbers: list[str] = []
        for cell in line.cells:
            if cell.estimate is None:
                numbers += ["", ""]
            else:
                mean, half_width = cell.estimate.mean, cell.estimate.half_width
                numbers += [f"{mean:.12g}", "" if math.isnan(half_width) else f"{half_width:.12g}"]
        writer.writerow([line.arm, line.found, line.declared, *numbers])
    return file.getvalue()


def latex(table: Table) -> str:
    """A booktabs `tabular`, its notes as last rows."""
    head, body = _grid(table)
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule"]
    lines += [" & ".join(map(_escape, head)) + " \\\\", "\\midrule"]
    for arm, *cells in body:
        numbers = [_escape(cell).replace("-", "$-$") for cell in cells]
        lines.append(" & ".join([_escape(arm), *numbers]) + " \\\\")
    lines.append("\\bottomrule")
    for note in table.notes:
        lines.append(f"\\multicolumn{{{len(head)}}}{{l}}{{\\footnotesize {_escape(note)}}} \\\\")
    return "\n".join([*lines, "\\end{tabular}"]) + "\n"


_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    | {"±": "$\\pm$"}
)


def _escape(text: str) -> str:
    return text.translate(_LATEX)


def rich_table(table: Table) -> rich.table.Table:
    """For the terminal."""
    head, body = _grid(table)
    grid = rich.table.Table(caption=rich.markup.escape("\n".join(table.notes)))
    for index, label in enumerate(head):
        grid.add_column(rich.markup.escape(label), justify="right" if index else "left")
    for line in body:
        grid.add_row(*map(rich.markup.escape, line))
    return grid

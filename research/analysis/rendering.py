"""What a table is and how it is written: for documents, for machines, for papers and for the terminal."""

import csv as csv_format
import dataclasses
import io
import math

import rich.markup
import rich.table

from research.analysis.statistics import Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """Where a number lies in a row and how it is printed: value / size, then the unit.

    Attributes:
      path: dotted, in a row.
      label: of its column.
      format, size, unit: of the printed number.
      censored: a value of None was not reached, which is greater than any other; the median is shown.
    """

    path: str
    label: str
    format: str = ".4f"
    size: float = 1.0
    unit: str = ""
    censored: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """`name` heads the column in CSV, `label` everywhere else; `measure`: what it shows of rows, if that is what."""

    name: str
    label: str
    measure: Measure | None = None


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


def cell(measure: Measure, estimate: Estimate, rows: int, sign: str = "-") -> Cell:
    """A mean with the half width of its interval where it has one; (n=...) where not all `rows` are in it.

    `sign`: "+" writes it before positive numbers too.
    """
    text = f"{estimate.mean / measure.size:{sign}z{measure.format}}"
    if estimate.half_width > 0:  # nan for one seed
        text += f" ± {estimate.half_width / measure.size:{measure.format}}"
    few = "" if estimate.n == rows else f" (n={estimate.n})"
    return Cell(text=f"{text}{measure.unit}{few}", estimate=estimate)


def counted(many: int, noun: str) -> str:
    """Such as "1 run" and "2 runs"."""
    return f"{many} {noun}{'' if many == 1 else 's'}"


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


def rich_table(table: Table) -> rich.table.Table:
    """For the terminal."""
    head, body = _grid(table)
    grid = rich.table.Table(caption=rich.markup.escape("\n".join(table.notes)))
    for index, label in enumerate(head):
        grid.add_column(rich.markup.escape(label), justify="right" if index else "left")
    for line in body:
        grid.add_row(*map(rich.markup.escape, line))
    return grid


_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    | {"±": "$\\pm$", "<": "$<$", ">": "$>$"}
)


def _escape(text: str) -> str:
    return text.translate(_LATEX)


def _grid(table: Table) -> tuple[list[str], list[list[str]]]:
    head = ["arm", "seeds", *(column.label for column in table.columns)]
    body = [[line.arm, line.seeds, *(cell.text for cell in line.cells)] for line in table.lines]
    return head, body

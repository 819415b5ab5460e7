"""How figures look and how they are written: lines with intervals, grids, and files that are the same bytes for the
same numbers.

Colours are those of Okabe and Ito (2008), "Color Universal Design", without the yellow, which a white page swallows,
and with a darker sky blue and orange, so that all have a contrast of 3 to white. A colour is never alone: markers and
dashes differ too, so that a grey print can be read. matplotlib is imported where it is used, since it is slow to import
and most commands draw nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import textwrap
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from research.analysis.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#2C97D3", "#BF8600")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # with 7 colours 56 pairs, and no two are the same
DASHES = ("-", "--", "-.", ":")
Colour = str | tuple[float, float, float]
SMALLEST = 8  # points, of notes and of the numbers in cells
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 3.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.9",
    "svg.hashsalt": "architecture-ablations",  # names of elements would be random otherwise
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """One point: its mean and interval in both directions, and the (x, y) of every seed."""

    name: str
    x: Estimate
    y: Estimate
    seeds: Mapping[int, tuple[float, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """Marks in the order in which they are joined; `style` chooses colour, marker and dashes.

    Attributes:
      name: of the legend.
      trend: points of a fitted curve, which is drawn instead of joining the marks.
      directed: the first mark is hollow, where nothing else tells where the line begins.
      breaks: numbers of marks that are not joined to the one before.
    """

    name: str
    style: int
    marks: tuple[Mark, ...]
    trend: tuple[tuple[float, float], ...] = ()
    directed: bool = False
    breaks: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """`ticks` are positions and what is written at them; without any, round numbers are."""

    label: str
    log: bool = False
    ticks: Mapping[float, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Numbers by (row, column); one that is missing has no entry."""

    name: str
    values: Mapping[tuple[str, str], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
    """A cell of a map: its shade from -1 (worse) over 0 to 1 (better), nan for white, and what is written in it."""

    shade: float
    text: str


@contextlib.contextmanager
def styled() -> Generator[None]:
    """Our settings on matplotlib's own defaults, whatever the user's are; theirs again afterwards."""
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]):
        yield


def lines(
    drawn: Sequence[Line],
    *,
    title: str,
    x: Axis,
    y: Axis,
    notes: Sequence[str],
    band: bool = False,
    vertical: Mapping[str, float] | None = None,
    horizontal: Mapping[str, float] | None = None,
) -> Figure:
    """Lines with their intervals as error bars or, with `band`, as an area along y.

    `vertical` and `horizontal` are places on the x and y axes by name. A line without marks is in the legend all the
    same, one whose name begins with "_" is not.
    """
    from matplotlib.figure import Figure

    vertical, horizontal = vertical or {}, horizontal or {}
    names = [textwrap.fill(line.name, 32, break_long_words=False) for line in drawn]
    rows = sum(name.count("\n") + 1 for name in [*names, *vertical, *horizontal] if not name.startswith("_"))
    with styled():
        figure = Figure(figsize=(8, max(4.5, 1.5 + 0.19 * rows)), layout="constrained")
        axes = figure.add_subplot()
        for line, name in zip(drawn, names, strict=True):
            _line(axes, line, name, band)
        for draw, places in ((axes.axvline, vertical), (axes.axhline, horizontal)):
            for name, place in places.items():
                draw(place, color="0.35", linestyle=(0, (1, 2)), linewidth=1.2, label=name)
        _axis(axes, "x", x)
        _axis(axes, "y", y)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
        _frame(figure, title, notes)
    return figure


def grids(
    drawn: Sequence[Grid],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    labels: tuple[str, str, str],
    format: str,
    notes: Sequence[str],
) -> Figure:
    """Panels of numbered cells on one colour scale; a cell without a number is hatched.

    `labels` are those of rows, columns and the colours.
    """
    from matplotlib.figure import Figure

    numbers = [value for grid in drawn for value in grid.values.values()]
    low, high = min(numbers), max(numbers)
    if low == high:
        low, high = low - 0.5, high + 0.5
    wide = max(len(format_number(value, format)) for value in numbers) * 0.085 + 0.15  # inches a cell
    down = -(-len(drawn) // max(1, int(11 / (wide * len(columns) + 0.7))))
    across = -(-len(drawn) // down)
    size = (1.5 + across * (wide * len(columns) + 0.7), 1.1 + down * (0.3 * len(rows) + 0.8))
    with styled():
        figure = Figure(figsize=(max(5.0, size[0]), size[1]), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for panel in panels[len(drawn) :]:
            panel.remove()
        for panel, grid in zip(panels, drawn, strict=False):
            texts = {place: format_number(value, format) for place, value in grid.values.items()}
            _cells(panel, grid.values, texts, rows=rows, columns=columns, cmap="cividis", limits=(low, high))
            panel.set_title(grid.name, fontsize=10)
        for panel in panels[: len(drawn)]:
            panel.set(xlabel=labels[1], ylabel=labels[0])
        figure.colorbar(
            panels[0].images[0], ax=list(panels[: len(drawn)]), label=textwrap.fill(labels[2], 40)
        )
        _frame(figure, title, notes)
    return figure


def tiles(
    drawn: Mapping[tuple[str, str], Tile],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    notes: Sequence[str],
) -> Figure:
    """Cells by (row, column) from red over white to blue, which differ for the colour-blind too; one without a tile is
    hatched.
    """
    from matplotlib.figure import Figure

    written = [line for tile in drawn.values() for line in tile.text.split("\n")]
    letters = max(10, *map(len, (*written, *" ".join(columns).split())))
    names = [textwrap.fill(column, letters, break_long_words=False) for column in columns]
    size = (
        1.5 + 0.08 * max(map(len, rows)) + (0.08 * letters + 0.15) * len(columns),
        1.8 + 0.45 * len(rows) + 0.17 * max(name.count("\n") + 1 for name in names),
    )
    with styled():
        figure = Figure(figsize=(max(6.0, size[0]), size[1]), layout="constrained")
        panel = figure.add_subplot()
        shades = {place: tile.shade for place, tile in drawn.items()}
        texts = {place: tile.text for place, tile in drawn.items()}
        _cells(panel, shades, texts, rows=rows, columns=columns, cmap="RdBu", limits=(-1, 1))
        panel.set_xticks(range(len(columns)), names)
        bar = figure.colorbar(panel.images[0], ax=panel)
        bar.set_ticks([-1, 0, 1], labels=["worse", "equal", "better"])
        _frame(figure, title, notes)
    return figure


def save(figure: Figure, path: Path | str) -> tuple[Path, Path]:
    """Writes `path`.svg and `path`.png, without a date or a version in them: a rebuild gives the same bytes."""
    svg, png = (Path(path).with_name(f"{Path(path).name}.{kind}") for kind in ("svg", "png"))
    svg.parent.mkdir(parents=True, exist_ok=True)
    with styled():
        write_svg(figure, svg)
        figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return svg, png


def write_svg(figure: Figure, file: Path | IO[bytes]) -> None:
    """The figure as SVG without a date or a version in it; within `styled`."""
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))


def contrast(one: Colour, other: Colour) -> float:
    """Between 1 and 21 (WCAG 2.2, "contrast ratio")."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def ink(ground: Colour) -> str:
    """Black or white, whichever is read better: one of them always has a contrast of 4.5 at least."""
    return max(("white", "black"), key=lambda colour: contrast(colour, ground))


def _luminance(colour: Colour) -> float:
    from matplotlib.colors import to_rgb

    parts = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour))
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def format_number(value: float, format: str) -> str:
    """The number without a minus before a zero."""
    return f"{value:z{format}}"


def short(value: float, digits: int = 4) -> str:
    """A number in few characters, such as 0.003, 250 and 1.2M."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def _line(axes: Axes, line: Line, name: str, band: bool) -> None:
    colour, marker, dashes = (kinds[line.style % len(kinds)] for kinds in (COLOURS, MARKERS, DASHES))
    starts = {0, *line.breaks}
    for number, mark in enumerate(line.marks):
        if len(mark.seeds) > 1:
            dots: dict[str, Any] = {"linestyle": "none", "marker": ".", "markersize": 4, "markeredgewidth": 0}
            label = f"_{name}: seeds of {mark.name}"
            axes.plot(*zip(*mark.seeds.values(), strict=True), color=colour, alpha=0.6, label=label, **dots)
        alone = number in starts and number + 1 in {*starts, len(line.marks)}  # where a band has no width
        bars: dict[str, Any] = {"xerr": _bar(mark.x), "yerr": _bar(mark.y) if alone or not band else None}
        if any(bar is not None for bar in bars.values()):
            axes.errorbar(
                mark.x.mean, mark.y.mean, **bars, fmt="none", ecolor=colour, elinewidth=1.2, capsize=2.5
            )
    gaps = list(line.breaks)  # nan is where nothing is drawn
    xs, ys, half = (
        np.insert(np.array(values, dtype=np.float64), gaps, np.nan)
        for values in (
            [mark.x.mean for mark in line.marks],
            [mark.y.mean for mark in line.marks],
            [mark.y.half_width for mark in line.marks],  # nan for one seed, and so no area
        )
    )
    if band:
        axes.fill_between(
            xs, ys - half, ys + half, color=colour, alpha=0.15, linewidth=0, label=f"_{name}: band"
        )
    if line.trend:
        axes.plot(*zip(*line.trend, strict=True), color=colour, linestyle=dashes, label=f"_{name}: trend")
    joined = len(xs) > 1 and not line.trend
    edge: dict[str, Any] = {
        "marker": marker,
        "markeredgecolor": "black",
        "markeredgewidth": 0.6,
    }  # seen on white
    axes.plot(xs, ys, color=colour, linestyle=dashes if joined else "none", label=name, **edge)
    if line.directed and len(xs) > 1:
        axes.plot(xs[:1], ys[:1], color="white", linestyle="none", label=f"_{name}: first", **edge)


def _bar(estimate: Estimate) -> float | None:
    """The half width to draw: None for one seed, and where all seeds agree."""
    return estimate.half_width if estimate.half_width > 0 else None


def _cells(
    panel: Axes,
    values: Mapping[tuple[str, str], float],
    texts: Mapping[tuple[str, str], str],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    cmap: str,
    limits: tuple[float, float],
) -> None:
    """Numbers by (row, column) as colours, with their texts; a cell without a number is hatched."""
    from matplotlib.patches import Rectangle

    numbers = np.array([[values.get((row, column), np.nan) for column in columns] for row in rows])
    image = panel.imshow(numbers, cmap=cmap, vmin=limits[0], vmax=limits[1], aspect="auto")
    panel.grid(visible=False)
    panel.set_xticks(range(len(columns)), columns)
    panel.set_yticks(range(len(rows)), rows)
    for (row, column), number in np.ndenumerate(numbers):
        text = texts.get((rows[row], columns[column]))
        if text is None:
            panel.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, hatch="///", fill=False, edgecolor="0.5")
            )
            continue
        red, green, blue, opacity = image.to_rgba(number)  # a nan leaves the page white
        colour = ink((red, green, blue) if opacity else "white")
        panel.text(column, row, text, ha="center", va="center", fontsize=SMALLEST, color=colour)


def _axis(axes: Axes, which: str, axis: Axis) -> None:
    from matplotlib import ticker

    place = getattr(axes, f"{which}axis")
    place.set_label_text(textwrap.fill(axis.label, 60 if which == "x" else 40))
    if axis.log:
        axes.set(**{f"{which}scale": "log"})
        low, high = place.get_view_interval()
        decades = ticker.LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,))
        place.set_major_locator(ticker.MaxNLocator(5) if high < 10 * low else decades)
        place.set_minor_locator(ticker.NullLocator())
        place.set_major_formatter(ticker.FuncFormatter(lambda value, _: short(value)))
    if axis.ticks:
        turned = {"rotation": 30, "ha": "right"} if sum(map(len, axis.ticks.values())) > 50 else {}
        place.set_ticks(list(axis.ticks), list(axis.ticks.values()), **turned)


def _frame(figure: Figure, title: str, notes: Sequence[str]) -> None:
    """The title above and the notes below, broken into lines where the figure ends."""
    width = figure.get_figwidth()
    figure.suptitle(textwrap.fill(title, int(width * 10)), x=0.01, ha="left", fontsize=12)
    text = "\n".join(textwrap.fill(note, int(width * 15.5)) for note in notes)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=SMALLEST)

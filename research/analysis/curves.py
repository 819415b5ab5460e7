"""Curves of training logs as a chart in HTML: lines in SVG, everything that is read in text of the page's size.

The chart fills the width it is given, so its lines are drawn in a square of SIZE units that is stretched, and the
labels of its axes stand beside it, at every quarter. `report.js` shows a part of the square and relabels the quarters.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

SIZE = 1000
QUARTERS = 4
POINTS = 300  # of a line; more are not told apart on a screen
COLOURS = 8  # of report.css

Point = tuple[float, float]
Log = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """Points (step, value) in order of steps; `colour` counts from 0, `dashed` tells held-out from training."""

    label: str
    points: tuple[Point, ...]
    colour: int
    dashed: bool = False


def points(log: Log, name: str) -> tuple[Point, ...]:
    """The finite values of a name in a log by step; a mapping without the name or with no number is passed over."""
    found = [(entry["step"], entry[name]) for entry in log if _number(entry.get(name))]
    return tuple((float(step), float(value)) for step, value in found)


def held_out(log: Log) -> list[str]:
    """Names of the scores in a log, in order: numbers of entries that are of no training step and no spike."""
    scored = [entry for entry in log if "loss" not in entry and "spike" not in entry]
    names = {name: None for entry in scored for name, value in entry.items() if _number(value)}
    return [name for name in names if name != "step"]


def mean(lines: Sequence[Sequence[Point]]) -> tuple[Point, ...]:
    """The mean value at each step that all of the lines have."""
    if not lines:
        return ()
    known = [dict(line) for line in lines]
    common = sorted(set.intersection(*map(set, known)))
    return tuple((step, math.fsum(line[step] for line in known) / len(known)) for step in common)


def thinned(line: Sequence[Point], most: int = POINTS) -> Sequence[Point]:
    """At most `most` of the points (at least 4): the least and the greatest of stretches of equal number, and both
    ends, so that no spike is lost.
    """
    if len(line) <= most:
        return line
    stretches = (most - 2) // 2
    edges = [1 + i * (len(line) - 2) // stretches for i in range(stretches + 1)]
    kept = [0, len(line) - 1]
    for first, end in zip(edges, edges[1:], strict=False):
        by_value = sorted(range(first, end), key=lambda i: line[i][1])
        kept += [by_value[0], by_value[-1]]
    return [line[i] for i in sorted(set(kept))]


def axis(values: Iterable[float]) -> tuple[float, float]:
    """The least range that holds the values and has round numbers at its quarters."""
    values = list(values)
    low, high = min(values), max(values)
    if not (high - low) / QUARTERS:
        low, high = low - abs(low) / 2 - 0.5, high + abs(high) / 2 + 0.5
    for power in itertools.count(math.floor(math.log10((high - low) / QUARTERS))):
        for step in (10.0**power * factor for factor in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)):
            start = math.floor(low / step) * step
            start -= step if start > low else 0.0  # by rounding
            if start <= low and start + QUARTERS * step >= high:
                return start, start + QUARTERS * step
    raise AssertionError("unreachable: some step is long enough")


def chart(lines: Sequence[Line], *, place: str, title: str, of: str) -> str:
    """A figure of lines over steps, its key below it, which names lines of less than two points as well; nothing where
    no line has two.

    Args:
      lines: to be drawn.
      place: id of the figure in the page.
      title: its caption.
      of: what is measured, with its unit.
    """
    shown = [line for line in lines if len(line.points) > 1]
    if not shown:
        return ""
    x0, x1 = axis([0.0, *(step for line in shown for step, _ in line.points)])
    y0, y1 = axis(value for line in shown for _, value in line.points)
    drawn, key, said = [], [], []
    for line in lines:
        if len(line.points) < 2:
            key.append(f"<li>{escape(line.label)}: no curve here")
            said.append(f"{line.label}: no curve here")
            continue
        places = " ".join(
            f"{_place(step, x0, x1)},{_place(value, y1, y0)}" for step, value in thinned(line.points)
        )
        look = f'class="c{line.colour % COLOURS} d{1 if line.dashed else 2 * (line.colour // COLOURS % 2)}"'
        drawn.append(f'<polyline {look} points="{places}"/>')
        swatch = f'<svg aria-hidden="true" viewBox="0 0 24 8"><path {look} d="M0 4H24"/></svg>'
        key.append(f"<li>{swatch} {escape(line.label)}")
        (first, begin), (last, end) = line.points[0], line.points[-1]
        said.append(f"{line.label}: {begin:.4g} at step {first:g}, {end:.4g} at step {last:g}")
    words, numbers = f"{place}!title", f"{place}!desc"
    return (
        f'<figure class="chart" id="{place}" data-x="{x0:.12g} {x1:.12g}" data-y="{y0:.12g} {y1:.12g}">'
        f"<figcaption>{escape(title)}</figcaption>"
        f'<p class="axis">{escape(of)}</p>'
        f'<div class="plot">{_quarters("y", y1, y0)}'
        f'<svg role="img" aria-labelledby="{words}" aria-describedby="{numbers}" '
        f'viewBox="0 0 {SIZE} {SIZE}" preserveAspectRatio="none">'
        f'<title id="{words}">{escape(title)}: {escape(of)} over steps</title>'
        f'<desc id="{numbers}">{escape("; ".join(said))}</desc>{"".join(drawn)}</svg>'
        f'{_quarters("x", x0, x1)}</div><p class="axis x">step</p><ul class="key">{"".join(key)}</ul></figure>\n'
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _place(value: float, low: float, high: float) -> str:
    return f"{SIZE * (value - low) / (high - low):.1f}".removesuffix(".0")


def _quarters(name: str, first: float, last: float) -> str:
    """The labels of an axis; the picture's description says what they do."""
    values = (first + (last - first) * i / QUARTERS for i in range(QUARTERS + 1))
    return (
        f'<ol class="{name}" aria-hidden="true">' + "".join(f"<li>{value:.6g}" for value in values) + "</ol>"
    )

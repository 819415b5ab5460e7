"""The points of a figure's lines, from the numbers of seeds."""

from collections.abc import Iterable, Sequence

from research.analysis import drawing
from research.analysis.drawing import Line, Mark
from research.analysis.readings import Seeds
from research.analysis.statistics import Estimate, mean_interval


def point(name: str, xs: Seeds, ys: Seeds) -> Mark | None:
    """The point of the seeds that have both; None if there is none."""
    seeds = {seed: (xs[seed], ys[seed]) for seed in sorted(xs.keys() & ys.keys())}
    if not seeds:
        return None
    x, y = (mean_interval(values) for values in zip(*seeds.values(), strict=True))
    return Mark(name=name, x=x, y=y, seeds=seeds)


def joined(name: str, style: int, marks: Iterable[Mark | None]) -> Line:
    """The marks in order; one that is missing breaks the line."""
    found: list[Mark] = []
    breaks: dict[int, None] = {}
    for mark in marks:
        if mark is not None:
            found.append(mark)
        elif found:
            breaks[len(found)] = None
    return Line(
        name=name, style=style, marks=tuple(found), breaks=tuple(at for at in breaks if at < len(found))
    )


def telling(marks: Sequence[Mark]) -> list[Mark]:
    """All marks if they are few, otherwise the first, the lowest, the highest and the last."""
    if len(marks) <= 6:
        return list(marks)
    low, high = (choose(range(len(marks)), key=lambda i: marks[i].y.mean) for choose in (min, max))
    return [marks[i] for i in sorted({0, low, high, len(marks) - 1})]


def text(estimate: Estimate) -> str:
    """The mean, ± the half width of its interval where there is one."""
    mean = drawing.short(estimate.mean)
    return f"{mean} ± {drawing.short(estimate.half_width, digits=2)}" if estimate.half_width > 0 else mean

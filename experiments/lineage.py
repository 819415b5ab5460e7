"""Cells that need what others have learned (`experiments.stages`), to start from or to ask in an evaluation: which have
to be trained, and in which order.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments import folders
from experiments.cells import Cell


def bases(cells: Sequence[Cell]) -> list[Cell]:
    """What these need, directly or not, and is none of them; each after what it needs itself."""
    known = {cell.job.folder for cell in cells}
    found: dict[Path, Cell] = {}
    for cell in cells:
        for base in _ancestors(cell):
            if base.job.folder not in known:
                found.setdefault(base.job.folder, base)
    return list(found.values())


def needed(todo: Iterable[Cell]) -> list[Cell]:
    """These cells, and those that have to be trained or scored for them; each after what it needs itself.

    A base whose parameters are not on this machine is trained again, although it has a row. A cell that has trained
    already, and lacks an evaluation, needs only those that its evaluations ask.
    """
    found: dict[Path, Cell] = {}

    def add(cell: Cell) -> None:
        folder = cell.job.folder
        begins = cell.again or not folders.trained(folder)
        for other in cell.before if begins else cell.asked:
            if other.row is None:
                add(other)
        if cell.followers or folder not in found:  # a base's row is not enough, whoever asks for it first
            found[folder] = cell

    for cell in todo:
        add(cell)
    return [cell for wave in waves(list(found.values())) for cell in wave]


def waves(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells, such that what each waits for, where it is one of them, is in an earlier list: its base, and the cell
    whose run it takes.
    """
    among, leader = {cell.job.folder: cell for cell in cells}, leaders(cells)

    def depth(cell: Cell) -> int:
        before = [among[base.job.folder] for base in _ancestors(cell) if base.job.folder in among]
        if cell in leader:
            before.append(leader[cell])
        return 1 + max(map(depth, before), default=-1)

    found: dict[int, list[Cell]] = {}
    for cell in cells:
        found.setdefault(depth(cell), []).append(cell)
    return [found[number] for number in sorted(found)]


def leaders(cells: Sequence[Cell]) -> dict[Cell, Cell]:
    """Of each cell that need not train, another of the same experiment, whose run it takes; see `twins`.

    That one is evaluated on its way where this one asks for that, and no cell takes what it has taken itself.
    """
    found: dict[Cell, Cell] = {}
    first: dict[str | None, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: not cell.job.evaluated):
        alike, asked = first.setdefault(cell.job.twins, []), cell.job.evaluated
        for other in alike:
            on_its_way = asked == other.job.evaluated and cell.job.planned.early_stopping is None
            if (not asked or on_its_way) and cell.job.folder not in (
                one.job.folder for one in _ancestors(other)
            ):
                found[cell] = other
                break
        else:
            alike.append(cell)
    return found


def _ancestors(cell: Cell) -> list[Cell]:
    """What it needs, what that needs, and so on; each after what it needs itself."""
    return [one for other in cell.before for one in (*_ancestors(other), other)]

"""Cells that start from others, their bases (`experiments.stages`): which have to be trained, and in which order."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments import folders
from experiments.cells import Cell


def bases(cells: Sequence[Cell]) -> list[Cell]:
    """What these start from, directly or not, and is none of them; each after its own base."""
    known = {cell.job.folder for cell in cells}
    found: dict[Path, Cell] = {}
    for cell in cells:
        for base in reversed(_ancestors(cell)):
            if base.job.folder not in known:
                found.setdefault(base.job.folder, base)
    return list(found.values())


def needed(todo: Iterable[Cell]) -> list[Cell]:
    """These cells, and the bases that have to be trained or scored for them; each after its own base.

    A base whose parameters are not on this machine is trained again, although it has a row. A cell that has trained
    already, and lacks an evaluation, needs none.
    """
    found: dict[Path, Cell] = {}

    def add(cell: Cell) -> None:
        folder = cell.job.folder
        begins = cell.again or not folders.trained(folder)
        if begins and cell.base is not None and cell.base.row is None:
            add(cell.base)
        if cell.followers or folder not in found:  # a base's row is not enough, whoever asks for it first
            found[folder] = cell

    for cell in todo:
        add(cell)
    return [cell for wave in waves(list(found.values())) for cell in wave]


def waves(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells, such that the base of each, where it is one of them, is in an earlier list."""
    among = {cell.job.folder for cell in cells}
    found: dict[int, list[Cell]] = {}
    for cell in cells:
        depth = sum(base.job.folder in among for base in _ancestors(cell))
        found.setdefault(depth, []).append(cell)
    return [found[depth] for depth in sorted(found)]


def _ancestors(cell: Cell) -> list[Cell]:
    """Its base, the base of that, and so on."""
    found = []
    while (base := cell.base) is not None:
        found.append(base)
        cell = base
    return found

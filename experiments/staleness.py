"""Whether rows still say what the code and the configs of now would measure.

A fingerprint of the code that differs proves nothing, since most changes change no number: three steps are replayed,
which takes seconds, and a row is stale where any number has moved by more than rounding does; see
`experiments.replays`. A row of an arm whose config has changed since is stale too, until the arm has run again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from experiments import code, machine, replays, running
from experiments.cells import Cell
from research.analysis import results
from research.analysis.results import Row

ELSEWHERE = 1e-3  # by what another machine or version may move a number, so that nothing can be told there
MACHINE = ("jax", "flax", "platform", "device", "processor", "cores", "attention")


def check(cells: Sequence[Cell], console: Console) -> list[Cell]:
    """The cells whose rows are stale by the code. All rows of their arms and seeds that have not been compared with the
    code and configs of now are, and say so from then on.
    """
    _mark_superseded(cells)
    found = [(cell, row) for cell in cells if (row := cell.saved) is not None]
    now = {cell: code.fingerprint((cell.job.planned, *cell.job.evaluations.values())) for cell, _ in found}
    changed = [(cell, row) for cell, row in found if row.code["checked"] != now[cell]]
    stale = {cell: bool(row.code["stale"]) for cell, row in found}
    if changed:
        console.print(f"the code of {len(changed)} rows has changed; replaying their first steps")
    for cell, row in track(changed, "replaying", console=console, transient=True):
        same = row.code["fingerprint"] == now[cell]
        moved = 0.0 if same else replays.furthest(row.replay, running.replay(cell.job, cell.data_dir))
        differing = _differing(row, machine.environment(cell.job.planned))
        if differing and replays.TOLERANCE < moved < ELSEWHERE:
            console.print(
                f"{cell.title}  cannot be told from here, where a number moves by {moved:.1e} ({differing})",
                highlight=False,
            )
            continue
        stale[cell] = moved > replays.TOLERANCE
        if stale[cell]:
            console.print(
                f"{cell.title}  is stale: a number moved by {moved:.1e}{f' ({differing})' if differing else ''}",
                highlight=False,
            )
        _mark(cell.path, row, {"checked": now[cell], "stale": "code" if stale[cell] else ""})
    return [cell for cell, is_stale in stale.items() if is_stale]


def _mark_superseded(cells: Sequence[Cell]) -> None:
    """Rows of these arms and seeds that are not of the experiments of now say so."""
    present = {cell.path for cell in cells}
    declared = {(cell.arm, cell.seed) for cell in cells}
    for folder in {cell.rows for cell in cells}:
        for row in results.load(folder):
            path = folder / row.name
            if (row.arm, row.seed) in declared and path not in present:
                _mark(path, row, {"stale": "config"})
            elif path in present and row.code["stale"] == "config":
                _mark(path, row, {"checked": "", "stale": ""})  # which is compared next


def _mark(path: Path, row: Row, changes: Mapping[str, Any]) -> None:
    """Write into a row what was found out, unless another launch has run the cell meanwhile."""
    if path.exists() and results.read(path) == row and {**row.code, **changes} != row.code:
        results.save(dataclasses.replace(row, code={**row.code, **changes}), path.parent)


def _differing(row: Row, now: Mapping[str, Any]) -> str:
    """What else than the code is not as it was, and could move a number."""
    return "; ".join(
        f"{name} {row.environment[name]} then, {now[name]} now"
        for name in MACHINE
        if name in row.environment and row.environment[name] != now[name]
    )

"""Whether the code of now still measures what a row says: where it has changed, the row's first steps are replayed.

A fingerprint of the code that differs proves nothing, since most changes change no number. Three steps and one
held-out batch take seconds; a row is stale where any of these losses has moved by more than rounding does.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

from experiments import code, running
from experiments.cells import Cell
from research.analysis import results
from research.analysis.results import Row

TOLERANCE = 1e-5  # relative


def check(cells: Sequence[Cell], console: Console) -> list[Cell]:
    """The cells whose rows are stale. Rows that the code of now has not been compared with are, and say so from then
    on.
    """
    found = [(cell, row) for cell in cells if (row := cell.saved) is not None]
    now = {cell: _fingerprint(cell) for cell, _ in found}
    changed = [(cell, row) for cell, row in found if row.code["checked"] != now[cell]]
    stale = {cell: row.code["stale"] for cell, row in found}
    if changed:
        console.print(f"the code of {len(changed)} rows has changed; replaying their first steps")
    for cell, row in track(changed, "replaying", console=console, transient=True):
        same = row.code["fingerprint"] == now[cell]
        moved = 0.0 if same else furthest(row.replay, running.replay(cell.job.planned, cell.data_dir))
        stale[cell] = moved > TOLERANCE
        if stale[cell]:
            console.print(
                f"{cell.title}  is stale: a loss moved by {moved:.1e}{_elsewhere(cell, row)}", highlight=False
            )
        known = {**row.code, "checked": now[cell], "stale": stale[cell]}
        results.save(dataclasses.replace(row, code=known), cell.rows)
    return [cell for cell, is_stale in stale.items() if is_stale]


def furthest(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """The greatest relative difference between two replays; infinite where one has what the other has not."""
    one, two = ([*replay["losses"], replay["evaluation"]] for replay in (before, after))
    if len(one) != len(two):
        return math.inf
    moved = [abs(a - b) / max(abs(a), 1e-12) for a, b in zip(one, two, strict=True)]
    return math.inf if any(map(math.isnan, moved)) else max(moved)


def retire(cell: Cell) -> None:
    """Put the run folder of a stale row aside, with a copy of the row, so that the cell trains anew."""
    row, folder = results.read(cell.path), cell.job.folder
    aside = cell.runs / "stale" / f"{folder.name}-{row.code['fingerprint'][:8]}"
    status = folder / "run.json"
    # A folder of other code is a new run that was stopped, which goes on.
    if status.exists() and json.loads(status.read_text())["code"]["fingerprint"] != row.code["fingerprint"]:
        return
    aside.mkdir(parents=True, exist_ok=True)
    shutil.copy(cell.path, aside)
    if folder.exists() and not (aside / "run").exists():
        folder.rename(aside / "run")


def _fingerprint(cell: Cell) -> str:
    return code.fingerprint((cell.job.planned, *cell.job.evaluations.values()))


def _elsewhere(cell: Cell, row: Row) -> str:
    """What else has changed that could move a loss."""
    now = running.environment(cell.job.planned)
    differing = [
        f"{name} {row.environment[name]} then, {now[name]} now"
        for name in ("jax", "platform", "device", "attention")
        if row.environment[name] != now[name]
    ]
    return f" ({'; '.join(differing)})" if differing else ""

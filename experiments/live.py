"""What a launch is at, in a terminal: the cells that run, how far they are, what is left, and what has failed.

All is read from the run folders, so that it does not matter where the cells run: in this process, in others, or on a
cluster that shares the disk.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.cells import Cell, Outcome

SHOWN = 12  # cells that run, at most


@dataclasses.dataclass
class Board:
    """The cells of a launch and what has become of them."""

    cells: Sequence[Cell]

    def __post_init__(self):
        self._outcomes: dict[str, Outcome] = {}
        self._began = time.time()
        logs = {cell.title: last(cell.job.folder, since=0) for cell in self.cells}
        # Steps that an earlier launch had taken.
        self._before = {title: 0 if log is None else log["step"] for title, log in logs.items()}

    def done(self, cell: Cell, outcome: Outcome) -> None:
        """Note how a cell ended."""
        self._outcomes[cell.title] = outcome

    @contextlib.contextmanager
    def shown(self, console: Console) -> Generator[None]:
        """Show it as long as this lasts; nothing where the console is no terminal."""
        if not (console.is_terminal and self.cells):
            yield
            return
        with Live(get_renderable=self.view, console=console, refresh_per_second=1, transient=True):
            yield

    def view(self) -> RenderableType:
        """The board as it is now."""
        running, lines = Table.grid(padding=(0, 2)), []
        steps = total = fresh = 0
        for cell in self.cells:
            planned = cell.job.planned.steps
            total += planned
            if cell.title in self._outcomes:
                steps += planned
                fresh += planned - self._before[cell.title]
                continue
            log = last(cell.job.folder, since=self._began)
            if log is None:
                continue
            step = log["step"]
            # It goes on from a checkpoint, which may be earlier than the log's end.
            steps, fresh = steps + step, fresh + max(0, step - self._before[cell.title])
            lines.append((cell.title, step, planned, log))
        for title, step, planned, log in lines[:SHOWN]:
            speed, loss = log.get("tokens_per_second"), log.get("loss")
            running.add_row(
                Text(title),
                ProgressBar(total=planned, completed=step, width=30),
                Text(f"{step}/{planned}"),
                Text("" if loss is None else f"loss {loss:.3f}"),
                Text("" if speed is None else f"{speed:,.0f} tokens/s"),
            )
        failed = [title for title, outcome in self._outcomes.items() if isinstance(outcome, Exception)]
        seconds = time.time() - self._began
        left = f", about {(total - steps) / fresh * seconds / 60:.0f} min left" if fresh else ""
        head = f"{len(self._outcomes)} of {len(self.cells)} cells done, {len(lines)} running{left}"
        return Group(Text(head), running, *(Text(f"failed: {title}", style="red") for title in failed))


def last(folder: Path, *, since: float) -> dict[str, Any] | None:
    """The newest line of a run's log, or None where it has not been at work since then."""
    path = folder / "metrics.jsonl"
    try:
        if path.stat().st_mtime < since:
            return None
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n") and line.startswith(b"{")]
        return json.loads(whole[-1]) if whole else None
    except (OSError, ValueError):  # it is being written
        return None

"""Tables of continual learning: what models know of each task of a sequence after each of its tasks.

Every task of a sequence is an arm that starts from the arm of the task before (`experiments.stages`), and each is
measured on all tasks. So the rows of one seed are its matrix R, and `research.evaluation.forgetting` has the metrics.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from research.analysis import rendering, results, statistics, tables
from research.analysis.readings import meant
from research.analysis.rendering import Cell, Column, Line, Table
from research.analysis.results import Row
from research.analysis.tables import TableError
from research.evaluation import forgetting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
    """A sequence of tasks, and ways to learn it.

    Attributes:
      name: part of the table's name.
      ways: by their names, the arms of each way in the order of the tasks.
      losses: the path of the loss on each task, in the same order; scores are their negatives, in nats.
      untrained: the loss of a model that knows nothing of any task, such as the logarithm of the vocabulary, from which
        forward transfer is counted; None: there is none.
    """

    name: str
    ways: dict[str, tuple[str, ...]]
    losses: tuple[str, ...]
    untrained: float | None = None

    def __post_init__(self):
        for way, arms in self.ways.items():
            if len(arms) != len(self.losses) or len(arms) < 2:
                raise TableError(
                    f"Tasks {self.name!r}: {way} has {len(arms)} arms for {len(self.losses)} losses, expected as many "
                    "of both, and two or more"
                )

    @property
    def arms(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(dict.fromkeys(arm for arms in self.ways.values() for arm in arms))

    def table(self, rows: Iterable[Row], known: Mapping[str, Sequence[int]]) -> Table:
        """A line for each way: the metrics of its matrix, seed by seed; seeds that lack a task are left out.

        Args:
          rows: of the study.
          known: the declared seeds of all its arms.

        Raises:
          TableError: the study lacks an arm, or rows do not compare.
          ResultError: two rows of one arm and seed.
        """
        for arm in self.arms:
            if arm not in known:
                raise TableError(f"Tasks {self.name!r}: no arm {arm!r}{meant(arm, known)}")
        stored = list(rows)
        own = {arm: results.select(stored, [arm], known[arm]) for arm in self.arms}
        found = [row for arm in self.arms for row in own[arm]]
        tables.check_comparable(found, varied=True)
        lines, notes = [], []
        for way, arms in self.ways.items():
            matrices = self._matrices([own[arm] for arm in arms], found)
            estimates = [
                statistics.mean_interval(values) for values in zip(*map(self._metrics, matrices), strict=True)
            ]
            cells = [_cell(one, len(matrices)) for one in estimates] or [Cell(text="n/a")] * len(self._names)
            declared = min(len(known[arm]) for arm in arms)
            lines.append(Line(arm=way, found=len(matrices), declared=declared, cells=tuple(cells)))
            if matrices:
                mean = -np.mean(matrices, axis=0)
                shown = "; ".join(" ".join(f"{loss:.3f}" for loss in after) for after in mean)
                notes.append(f"Losses after each task ({way}), a column a task: {shown}.")
        named = ", ".join(self.losses)
        notes.append(
            f"Scores are negative losses in nats, of {named}; intervals are 95 % t intervals over seeds."
        )
        return Table(
            columns=tuple(Column(name=name, label=name) for name in self._names),
            lines=tuple(lines),
            notes=tuple(notes),
        )

    @property
    def _names(self) -> tuple[str, ...]:
        return (*forgetting.SUMMARY, *([] if self.untrained is None else ["fwt", "fwt@gem"]))

    def _metrics(self, matrix: forgetting.Matrix) -> list[float]:
        values = [metric(matrix) for metric in forgetting.SUMMARY.values()]
        if self.untrained is None:
            return values
        nothing = np.full(len(matrix), -self.untrained)
        transfers = (forgetting.forward_transfer, forgetting.forward_transfer_gem)
        return values + [transfer(matrix, nothing) for transfer in transfers]

    def _matrices(self, own: Sequence[Sequence[Row]], every: Sequence[Row]) -> list[forgetting.Matrix]:
        """R of each seed that has all tasks."""
        if not all(own):
            return []
        losses = [[tables.values(rows, every, tables.measure(path)) for path in self.losses] for rows in own]
        seeds = set.intersection(*(set(by_seed) for after in losses for by_seed in after))
        return [
            -np.array([[by_seed[seed] for by_seed in after] for after in losses], np.float64)
            for seed in sorted(seeds)
        ]


_SCORE = rendering.Measure(path="", label="score")


def _cell(estimate: statistics.Estimate, rows: int) -> Cell:
    return rendering.cell(_SCORE, estimate, rows, sign="+")

"""Synthetic tasks of other lengths, gaps and depths than those that a model was trained on."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from research.data.haystacks import Needle, Passkey, grid
from research.data.windows import Synthetic
from research.evaluation.checked import require_no_memory, require_positions
from research.evaluation.predictions import likeliest
from research.evaluation.trained import Scores, Trained
from research.models.families import DecoderConfig, EncoderConfig, FamilyConfig

DRAWN = 2  # what random streams of samples begin with: no window of a data set is drawn so


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
    """Answers to fresh samples of tasks, which become what held-out windows become.

    An answer counts as exact where each of its tokens is the likeliest behind the right ones before it: just then it is
    what the model writes greedily. All runs are asked the same.

    Attributes:
      tasks: each with its label.
      samples: of each task.
    """

    tasks: tuple[tuple[str, Synthetic], ...]
    samples: int = 256

    def __post_init__(self):
        if not self.tasks or self.samples < 1:
            raise ValueError(
                f"Tasks.tasks = {self.tasks}, Tasks.samples = {self.samples}: expected at least one of each"
            )

    def check(self, model: FamilyConfig) -> None:
        """ValueError where the model is an encoder or has a memory, or positions end before the longest task."""
        _check(model, "Tasks.tasks", [task for _, task in self.tasks])

    def __call__(self, trained: Trained) -> Scores:
        """`exact`: the share of answers that are right, and `tokens`: that of their tokens; each by label.

        Raises:
          ValueError: see `check`.
        """
        self.check(trained.trainer.config)
        found = {label: answered(trained, task, self.samples) for label, task in self.tasks}
        return {name: {label: one[name] for label, one in found.items()} for name in ("exact", "tokens")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Where in how long a text something is found: depth by length, of one needle.

    Attributes:
      task: what is hidden; its `tokens` and `depth` are replaced.
      lengths: tokens of a text.
      depths: share of the text that comes before it.
      samples: of each cell.
    """

    task: Passkey | Needle
    lengths: tuple[int, ...]
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    samples: int = 64

    def __post_init__(self):
        if not self.lengths or not self.depths or self.samples < 1:
            raise ValueError(
                f"Grid.lengths = {self.lengths}, Grid.depths = {self.depths}, Grid.samples = {self.samples}: expected "
                "at least one of each"
            )

    def check(self, model: FamilyConfig) -> None:
        """ValueError where the model is an encoder or has a memory, or positions end before the longest text."""
        _check(model, "Grid.lengths", [dataclasses.replace(self.task, tokens=n) for n in self.lengths])

    def __call__(self, trained: Trained) -> Scores:
        """`exact` and `tokens` as `Tasks` has them, by length and in it by depth; `by_length`: the mean of `exact` over
        depths.

        Raises:
          ValueError: see `check`.
        """
        self.check(trained.trainer.config)
        found: dict[str, dict[str, dict[str, float]]] = {"exact": {}, "tokens": {}}
        for length, depth, task in grid(self.task, self.lengths, self.depths):
            for name, share in answered(trained, task, self.samples).items():
                found[name].setdefault(str(length), {})[f"{depth:g}"] = share
        means = {length: float(np.mean(list(row.values()))) for length, row in found["exact"].items()}
        return {**found, "by_length": means}


def answered(trained: Trained, task: Synthetic, samples: int) -> dict[str, float]:
    """Shares of right answers, `exact`, and of their right tokens, `tokens`, of so many samples of a task."""
    text = trained.text
    objective = text.data.scored(text.data.parts[0])
    rng = np.random.default_rng([DRAWN, 0])
    examples = [objective(task.sample(rng, text.tokenizer), rng, text.tokenizer) for _ in range(samples)]
    batches = text.placed(examples)
    right: list[np.ndarray] = []
    for batch, placed in zip(batches, trained.place(batches), strict=True):
        found = np.asarray(likeliest(trained.trainer, trained.params, placed)) == np.asarray(batch.labels)
        right += [row[scored] for row, scored in zip(found, np.asarray(batch.weights) > 0, strict=True)]
    asked = [row for row in right if len(row)]
    return {
        "exact": float(np.mean([row.all() for row in asked])),
        "tokens": float(np.mean(np.concatenate(asked))),
    }


def _check(model: FamilyConfig, name: str, tasks: Sequence[Synthetic]) -> None:
    if isinstance(model, EncoderConfig):
        raise ValueError(f"{name} asks for tokens, which an Encoder does not write; leave the evaluation out")
    if isinstance(model, DecoderConfig):
        require_no_memory(model, f"{name} are lines of their own")
        most = max(getattr(task, "tokens", 0) for task in tasks)
        require_positions(model, most, f"{name} up to {most}")

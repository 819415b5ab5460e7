"""Early stopping."""

import dataclasses
import math

from research.data.documents import Corpus
from research.data.objectives import Objective
from research.data.pipeline import Dataset

FORGOTTEN = "validation_forgotten"  # the measure that a budget is of


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Stop when a held-out measure has not improved for a while, and keep the parameters of its best evaluation
    (Prechelt 1998).

    Attributes:
      every: steps between evaluations.
      patience: evaluations without an improvement after which the run stops.
      metric: what is watched; lower is better.
      least: what counts as an improvement.
    """

    every: int
    patience: int = 3
    metric: str = "validation_loss"
    least: float = 0.0

    def __post_init__(self):
        for name in ("every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{type(self).__name__}.{name} = {getattr(self, name)}: expected at least 1")

    def fingerprints(self, text: Dataset) -> list[str]:
        """Of the documents beside `text`, which the run is tuned on, that decide when it stops."""
        return []

    def spent(self, scores: dict[str, float]) -> bool:
        """Whether the run has to stop at this evaluation, whatever `metric` says."""
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForgettingBudget(EarlyStopping):
    """Early stopping that also stops before more is forgotten of earlier text than it may be: the best evaluation
    within the budget counts.

    Attributes:
      corpus: the earlier text, read in the windows, layout and shares of the run's own; its validation split is used.
      objective: what its windows become; None: as the run's held-out ones.
      budget: by how much the loss of it may be above what it was before the first step, in nats per target.
    """

    corpus: Corpus
    objective: Objective | None = None
    budget: float

    def fingerprints(self, text: Dataset) -> list[str]:
        """Of the earlier text."""
        return [self.read_beside(text).fingerprint]

    def read_beside(self, text: Dataset) -> Dataset:
        """The earlier text as `text`, which the run is tuned on, is read."""
        return text.of(self.corpus, self.objective or text.data.scored(text.data.parts[0]))

    def spent(self, scores: dict[str, float]) -> bool:
        """Whether more is forgotten."""
        return scores[FORGOTTEN] > self.budget


@dataclasses.dataclass
class Watch:
    """How an early-stopped run stands: the best value so far, its step, and the evaluations since."""

    rule: EarlyStopping
    best: float | None = None
    step: int = 0
    since: int = 0

    def see(self, step: int, scores: dict[str, float]) -> bool:
        """Take note of an evaluation; whether it is the best so far, which one that is not finite never is.

        Raises:
          ValueError: it has no such metric, or the first one is over a budget.
        """
        if self.rule.metric not in scores:
            raise ValueError(f"EarlyStopping.metric = {self.rule.metric!r}: expected one of {sorted(scores)}")
        if self.rule.spent(scores):
            if self.best is None:
                name = type(self.rule).__name__
                raise ValueError(
                    f"{name} at step {step}: {FORGOTTEN} = {scores[FORGOTTEN]:.4g} is over the budget at the first "
                    f"evaluation; set {name}.every = {self.rule.every} lower, or the budget higher"
                )
            self.since = self.rule.patience
            return False
        value = scores[self.rule.metric]
        better = math.isfinite(value) and (self.best is None or value < self.best - self.rule.least)
        if better:
            self.best, self.step, self.since = value, step, 0
        else:
            self.since += 1
        return better

    def ranks(self, step: int, scores: dict[str, float]) -> bool:
        """Whether a checkpoint of now may be ranked by these scores: not where it would take the place of the best's,
        because the gain was too small to count or the evaluation was not for the watch to see.
        """
        value = scores.get(self.rule.metric, math.nan)
        return step == self.step or (self.best is not None and value > self.best)

    @property
    def over(self) -> bool:
        """Whether the run should stop."""
        return self.since >= self.rule.patience

    def get_state(self) -> list:
        """The state as JSON."""
        return [self.best, self.step, self.since]

    def set_state(self, state: list) -> None:
        """Go on from there."""
        self.best, self.step, self.since = state

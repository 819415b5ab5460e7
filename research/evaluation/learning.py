"""How training went, by the validation losses that were measured on the way."""

import dataclasses
import statistics

from research.evaluation.trained import Scores, Trained

LEAST = 3  # points of a line that says anything


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepsTo:
    """How soon the validation loss was low enough.

    A run is measured every `Plan.evaluate_every` steps and at its end, so that arms compare where they are measured at
    the same steps.

    Attributes:
      loss: that is to be reached, in nats per target token.
    """

    loss: float

    def __post_init__(self):
        if not self.loss > 0:
            raise ValueError(f"StepsTo.loss = {self.loss}: expected nats per target token, more than 0")

    def __call__(self, trained: Trained) -> Scores:
        """`{"steps": n}`, the first evaluated step with at most this validation loss; nothing is interpolated. None: it
        was not reached, which `research.analysis.rules.RankContrast` takes as censored, or nothing is known of the
        training.
        """
        reached = (step for step, loss in trained.history.items() if loss <= self.loss)
        return {"steps": min(reached, default=None)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convergence:
    """How much the validation loss still fell at the end of training.

    Where the learning rate decays to zero the loss flattens because the steps become small: a small slope then does not
    prove that the run has converged, only that it has come to its end.

    Attributes:
      share: of the evaluated steps, up to the last one, that is taken as the end.
    """

    share: float = 0.2

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"Convergence.share = {self.share}: expected more than 0 and at most 1")

    def __call__(self, trained: Trained) -> Scores:
        """`{"slope": nats}`: by how much the least-squares line through the validation losses of the last `share` of
        the steps falls from its first point to its last; positive: the loss still fell. None: there are fewer than 3.
        """
        last = max(trained.history, default=0)
        since = round((1 - self.share) * last, 6)  # a step that stands at the edge is not lost to rounding
        end = {step: loss for step, loss in trained.history.items() if step >= since}
        if len(end) < LEAST:
            return {"slope": None}
        line = statistics.linear_regression(list(end), list(end.values()))
        return {"slope": -line.slope * (max(end) - min(end))}

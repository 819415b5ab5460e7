"""How fast a little earlier text brings back what tuning has made a model forget."""

import contextlib
import dataclasses
import functools
import itertools
from typing import Literal

import jax
import jax.numpy as jnp

from research.data.corpora import StateOfTheUnion
from research.data.documents import Corpus
from research.data.objectives import Objective
from research.evaluation.trained import Scores, Trained, require_tokens, require_windows
from research.training.optimizers import AdamW, Optimizer
from research.training.schedules import Constant
from research.training.step import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relearning:
    """The loss on earlier text after some steps on it, none of which the run itself takes.

    Where a few steps bring back most of what was lost, little was forgotten of what the text needs, and much of when to
    use it ("spurious forgetting", Zheng et al. 2025).

    Attributes:
      corpus: the earlier text, read in the windows, layout and shares of the run's own data.
      objective: what its training windows become; None: what the run's own do.
      evaluation: what its held-out windows become; None: as the run's held-out ones.
      steps: after which the loss is measured, rising.
      optimizer: that takes them, from a fresh state.
      split: which is measured.
    """

    corpus: Corpus = StateOfTheUnion()
    objective: Objective | None = None
    evaluation: Objective | None = None
    steps: tuple[int, ...] = (10, 30, 100)
    optimizer: Optimizer = AdamW(learning_rate=1e-3, schedule=Constant(), weight_decay=0.0)
    split: Literal["test", "validation"] = "test"

    def __post_init__(self):
        if not self.steps or list(self.steps) != sorted(set(self.steps)) or self.steps[0] < 1:
            raise ValueError(f"Relearning.steps = {self.steps}: expected at least one, rising from 1")

    def __call__(self, trained: Trained) -> Scores:
        """`loss` by steps, in nats per target, from 0 on, and `recovered` by steps: (loss at 0 - loss) / (loss at 0 -
        the loss before tuning); None where nothing was forgotten.

        Raises:
          ValueError: it is not known what the run began with, or the model tells classes or has a memory.
        """
        if trained.base is None:
            raise ValueError(
                "Relearning is of what a run has forgotten, but what it began with is not known; leave it out"
            )
        require_tokens(trained, "Relearning")
        require_windows(trained, "Relearning")
        data = trained.text.data
        earlier = trained.text.of(self.corpus, self.objective)
        scored = trained.text.of(self.corpus, self.evaluation or data.scored(data.parts[0]))
        held_out = trained.place(scored.held_out(self.split))
        functions = _retrained(trained.trainer, self.optimizer, self.steps[-1])
        state = functions.initial(jax.random.key(trained.seed), params=jax.tree.map(jnp.copy, trained.params))
        before = functions.evaluate(trained.base(), held_out)
        loss = {0: functions.evaluate(trained.params, held_out)}
        with contextlib.closing(earlier.training(trained.seed)) as batches:
            for step, batch in enumerate(itertools.islice(batches, self.steps[-1]), 1):
                state, _ = functions.step(state, *trained.place([batch]))
                if step in self.steps:
                    loss[step] = functions.evaluate(state.params, held_out)
        lost = loss[0] - before
        return {
            "loss": {str(step): value for step, value in loss.items()},
            "recovered": {
                str(step): (loss[0] - loss[step]) / lost if lost > 0 else None for step in self.steps
            },
        }


@functools.lru_cache(maxsize=8)  # runs that share their functions share these
def _retrained(trainer: Trainer, optimizer: Optimizer, steps: int) -> Trainer:
    return trainer.trained_by(optimizer, steps)

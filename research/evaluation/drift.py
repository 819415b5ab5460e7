"""How far a run has come from the parameters that it began with, its base."""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from research.batch import Batch
from research.data.corpora import StateOfTheUnion
from research.data.documents import Corpus
from research.data.objectives import Objective
from research.evaluation.forgetting import check_names, delta_nll
from research.evaluation.trained import Scores, Trained, require_tokens, require_windows
from research.models.paths import layers, named
from research.training.remedies import log_probabilities
from research.training.step import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """What a run predicts and what its parameters are, beside those that it began with.

    Attributes:
      corpora: a name without dots, and a corpus, of each text of which it is counted which tokens are known no more;
        read as `forgetting.Retention` reads them.
      objective: what windows of those become; None: as the run's held-out ones.
      split: which, of the run's own text and of these.
    """

    corpora: tuple[tuple[str, Corpus], ...] = (("general", StateOfTheUnion()),)
    objective: Objective | None = None
    split: Literal["test", "validation"] = "test"

    def __post_init__(self):
        check_names("Drift", self.corpora)

    def __call__(self, trained: Trained) -> Scores:
        """Numbers of five kinds.

        - `kl`: KL(base || run) on the run's own held-out text, in nats per target: what forgetting is said to follow
          (Shenfeld et al. 2025, "RL's Razor").
        - `divergence`: by corpus, the same on its held-out text.
        - `forgotten`: by corpus, the loss now less the loss before, in nats per target (`forgetting.delta_nll`).
        - `lost`, `gained`: by corpus, the share of all targets whose likeliest token was the right one before and is
          not now, and the other way round.
        - `layers`: by part (embedding, layer i of each stack, ...), the length of its change over its own before,
          |theta - theta_0| / |theta_0|.

        Raises:
          ValueError: it is not known what the run began with, or the model tells classes or has a memory.
        """
        if trained.base is None:
            raise ValueError(
                "Drift is from what a run began with, which is known neither of published weights nor of a cell of a "
                "study that began with another; give another run folder, or let the study measure it"
            )
        require_tokens(trained, "Drift")
        require_windows(trained, "Drift")
        base, now = trained.base(), trained.params
        objective = self.objective or trained.text.data.scored(trained.text.data.parts[0])
        beside = {
            name: compared(
                trained.trainer,
                base,
                now,
                trained.place(trained.text.of(corpus, objective).held_out(self.split)),
            )
            for name, corpus in self.corpora
        }
        own = compared(trained.trainer, base, now, trained.place(trained.text.held_out(self.split)))
        return {
            "kl": own.divergence,
            "divergence": {name: found.divergence for name, found in beside.items()},
            "forgotten": {name: delta_nll(found.before, found.after) for name, found in beside.items()},
            "lost": {name: found.lost for name, found in beside.items()},
            "gained": {name: found.gained for name, found in beside.items()},
            "layers": moved(base, now),
        }


class Compared(NamedTuple):
    """Two sets of parameters beside each other, over all targets of some text.

    Attributes:
      divergence: KL(base || now), in nats per target.
      before, after: the loss, in nats per target.
      lost, gained: the share of targets whose likeliest token was right before and is not now, and the other way round.
    """

    divergence: float
    before: float
    after: float
    lost: float
    gained: float


def compared(trainer: Trainer, base: Any, params: Any, batches: Iterable[Batch]) -> Compared:
    """`params` beside `base`. ValueError: no batch has a target."""
    sums = np.zeros(7)
    for batch in batches:
        sums += np.asarray(jax.device_get(_compared(trainer, base, params, batch)), np.float64)
    *weighted, weight, lost, gained, targets = sums
    if not targets:
        raise ValueError("Drift: no batch has a target, so there is nothing to compare")
    return Compared(*(total / weight for total in weighted), lost / targets, gained / targets)


@functools.partial(jax.jit, static_argnums=0)
def _compared(trainer: Trainer, base: Any, params: Any, batch: Batch) -> tuple[Array, ...]:
    """Sums over a batch, in which each model reads it once: of divergence, both losses and weights; and how many
    targets are lost, gained and there.
    """
    models = [trainer.model(base), trainer.model(params)]
    hidden = [model.apply(batch).hidden for model in models]
    labels, weights = jnp.asarray(batch.labels), jnp.asarray(batch.weights)

    def row(states: tuple[Array, Array], wanted: Array, weight: Array) -> tuple[Array, ...]:
        """Of one row, since [b t v] is large."""
        then, now = (log_probabilities(model)(state) for model, state in zip(models, states, strict=True))
        apart = jnp.sum(jnp.exp(then) * (then - now), -1)
        losses = [-jnp.take_along_axis(scores, wanted[:, None], -1)[:, 0] for scores in (then, now)]
        right = [jnp.argmax(scores, -1) == wanted for scores in (then, now)]
        real = weight > 0
        return (
            *(jnp.sum(weight * each) for each in (apart, *losses)),
            jnp.sum(weight),
            jnp.sum(right[0] & ~right[1] & real),
            jnp.sum(right[1] & ~right[0] & real),
            jnp.sum(real),
        )

    parts = jax.lax.map(lambda each: row(*each), (tuple(hidden), labels, weights))
    return tuple(jnp.sum(part) for part in parts)


def moved(base: Any, params: Any) -> Mapping[str, float]:
    """|theta - theta_0| / |theta_0| of each part: of the parameters in blocks layer by layer, of others by the first
    two names of their paths; without parts that were zero.
    """
    before, stacks = named(base), layers(base)
    squares = collections.defaultdict[str, Any](lambda: np.zeros(2))  # of the change, and of what was there
    for path, leaf in named(params).items():
        own = np.stack(
            jax.device_get(_squares(before[path], leaf)), axis=-1
        )  # by layer, where there are some
        if path not in stacks:
            squares["_".join(path.split("/")[:2])] += own.sum(0)
            continue
        stack, numbers = stacks[path]
        for layer, each in zip(numbers, own, strict=True):
            squares[f"{stack.strip('/').replace('/', '_')}_{layer}"] += each
    return {name: float(np.sqrt(change / was)) for name, (change, was) in squares.items() if was}


@jax.jit
def _squares(then: Array, now: Array) -> tuple[Array, Array]:
    """Sums of squares of the change and of what was there, along all axes but the first."""
    axes = tuple(range(1, then.ndim))
    return jnp.sum(jnp.square(now - then), axes), jnp.sum(jnp.square(then), axes)

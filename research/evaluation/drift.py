"""How far a run has come from the parameters that it began with, its base."""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from research.batch import Batch
from research.data.corpora import StateOfTheUnion
from research.data.documents import Corpus
from research.data.objectives import Objective
from research.evaluation.forgetting import check_names, delta_nll
from research.evaluation.trained import Scores, Trained
from research.models.families import Encoder
from research.models.paths import layers, named
from research.training.losses import token_divergence
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
        model = trained.trainer.model(trained.params)
        if isinstance(model, Encoder) and model.classes is not None:
            raise ValueError(
                f"Drift is of tokens, but EncoderConfig.classes = {model.classes}; leave the evaluation out"
            )
        if trained.trainer.memory(1) is not None:
            raise ValueError(
                "Drift reads every window by itself, but StackConfig.memory is set; leave the evaluation out"
            )
        base, now = trained.base(), trained.params
        objective = self.objective or trained.text.data.scored(trained.text.data.parts[0])
        apart, forgotten, lost, gained = {}, {}, {}, {}
        for name, corpus in self.corpora:
            batches = trained.place(trained.text.of(corpus, objective).held_out(self.split))
            before, after = (trained.trainer.evaluate(params, batches) for params in (base, now))
            apart[name] = divergence(trained.trainer, base, now, batches)
            forgotten[name] = delta_nll(before, after)
            lost[name], gained[name] = flips(trained.trainer, base, now, batches)
        own = trained.place(trained.text.held_out(self.split))
        return {
            "kl": divergence(trained.trainer, base, now, own),
            "divergence": apart,
            "forgotten": forgotten,
            "lost": lost,
            "gained": gained,
            "layers": moved(base, now),
        }


def divergence(trainer: Trainer, base: Any, params: Any, batches: Iterable[Batch]) -> float:
    """KL(base || params) over all targets of the batches, in nats per target. ValueError: there is none."""
    total = targets = 0.0
    for batch in batches:
        sums = _divergence(trainer, base, params, batch)
        total, targets = total + float(sums[0]), targets + float(sums[1])
    return total / _some(targets)


@functools.partial(jax.jit, static_argnums=0)
def _divergence(trainer: Trainer, base: Any, params: Any, batch: Batch) -> tuple[Array, Array]:
    then, now = trainer.model(base), trainer.model(params)
    hidden, weights = (then.apply(batch).hidden, now.apply(batch).hidden), jnp.asarray(batch.weights)
    total = token_divergence(log_probabilities(then), log_probabilities(now), *hidden, weights)
    return total, jnp.sum(weights)


def flips(trainer: Trainer, base: Any, params: Any, batches: Iterable[Batch]) -> tuple[float, float]:
    """Of all targets, the share that the base has right and `params` has not, and the other way round. ValueError:
    there is no target.
    """
    lost = gained = targets = 0
    for batch in batches:
        counts = [int(count) for count in _flips(trainer, base, params, batch)]
        lost, gained, targets = lost + counts[0], gained + counts[1], targets + counts[2]
    return lost / _some(targets), gained / targets


@functools.partial(jax.jit, static_argnums=0)
def _flips(trainer: Trainer, base: Any, params: Any, batch: Batch) -> tuple[Array, Array, Array]:
    """How many targets are lost, how many gained, and how many there are."""

    def right(params: Any) -> Bool[Array, "b t"]:
        model = trainer.model(params)
        # Row by row, since [b t v] is large.
        rows = jax.lax.map(
            lambda row: jnp.argmax(model.outputs.logits(row), axis=-1), model.apply(batch).hidden
        )
        return rows == jnp.asarray(batch.labels)

    before, after, real = right(base), right(params), jnp.asarray(batch.weights) > 0
    return jnp.sum(before & ~after & real), jnp.sum(after & ~before & real), jnp.sum(real)


def _some(targets: int | float) -> int | float:
    if not targets:
        raise ValueError("Drift: no batch has a target, so there is nothing to compare")
    return targets


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

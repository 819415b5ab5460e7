"""Remedies against forgetting: penalties that hold a model to the parameters that tuning began with, its *base*.

Each is a frozen value in `Recipe.remedies`; they add up, and a gin line switches each one on:

    step.Recipe.remedies = (@remedies.EWC(),)

What a remedy knows of the base is made once, before the first step, and lies in the train state as arrays. Its
strength is a number of the compiled step, so that runs that differ in it share a program; at strength 0 training is
what it would be without. Remedies that are data (replay: `research.data.mixing`), rates, stopping and adapters
(`adapters.LoRA`) are where those are.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from research.batch import Batch
from research.data.documents import Corpus
from research.data.objectives import Objective
from research.data.pipeline import Dataset
from research.models.families import Model
from research.training.losses import token_divergence

Params = Any  # nested dicts of float32 arrays


@dataclasses.dataclass(frozen=True)
class Base:
    """What tuning begins with.

    Attributes:
      params: its parameters.
      log_likelihood: of the labels of a row in nats, by parameters and the row without its axis of rows.
      predict: log-probabilities [b t v] at each place of a batch, by parameters and batch.
      model: the model with given parameters.
      text: that the run is tuned on.
      seed: of the run.
      inherited: the remedies of the run that its parameters come from, and what each kept, where a remedy asks for
        that (`Remedy.inherits`); None: they are drawn.
    """

    params: Params
    log_likelihood: Callable[[Params, Batch], Array]
    predict: Callable[[Params, Batch], Array]
    model: Callable[[Params], Model]
    text: Dataset
    seed: int
    inherited: "Inherited | None" = None


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step has at hand when a penalty is added to its loss.

    Attributes:
      params: as they are, those that are not trained without gradient.
      model: the model with given parameters.
      hidden: f[b t m], what the heads of tokens read.
      batch: that the loss is of, the whole one or a microbatch.
      weight: f32[], of all targets of the whole batch.
      share: of the whole batch that this one is.
      loss: summed loss of the targets of a batch in nats, and their weight, by parameters and batch.
      key: of the step, for what is drawn.
    """

    params: Params
    model: Callable[[Params], Model]
    hidden: Array
    batch: Batch
    weight: Array
    share: float
    loss: Callable[[Params, Batch], tuple[Array, Array]]
    key: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remedy:
    """What all remedies share.

    Attributes:
      strength: weight of the penalty in the loss.
    """

    tunable: ClassVar[tuple[str, ...]] = ("strength",)

    strength: float

    def __post_init__(self):
        if not self.strength >= 0:
            raise ValueError(f"{type(self).__name__}.strength = {self.strength}: expected at least 0")

    @property
    def inherits(self) -> bool:
        """Whether it goes on from what the remedy of its class kept in the run that this one starts from."""
        return False

    def prepare(self, base: Base) -> Any:
        """What it keeps of the base in the train state, a tree of arrays of the shapes of `blank`."""
        raise TypeError(f"{type(self).__name__} defines no prepare(base); every Remedy must")

    def fingerprints(self, text: Dataset) -> list[str]:
        """Of the documents beside `text`, which the run is tuned on, that it learns from."""
        return []

    def rehearsed(self, examples: int) -> "Remedy":
        """The same, made of at most so many examples."""
        return self

    def blank(self, params: Params) -> Any:
        """The shapes of what it keeps, filled with anything."""
        raise TypeError(f"{type(self).__name__} defines no blank(params); every Remedy must")

    def penalty(self, kept: Any, step: Step) -> Float[Array, ""]:
        """What is added to the mean loss in nats per target, those of microbatches summed."""
        return jnp.float32(0)

    def moved(self, updates: Params, kept: Any, params: Params, rate: Array) -> Params:
        """What is added to the parameters in a step at that learning rate, in place of the optimizer's `updates`."""
        return updates

    def observed(self, kept: Any, gradient: Params, params: Params, new: Params) -> Any:
        """What it keeps after a step from `params` to `new`, of which `gradient` was that of what is minimised."""
        return kept

    def _inherited(self, base: Base) -> Any:
        """What the remedy of its class kept in the run that this one starts from; None: there was none.

        Raises:
          ValueError: it was of another model, or there were several.
        """
        own = [kept for remedy, kept in base.inherited or () if isinstance(remedy, type(self))]
        if not own:
            return None
        if len(own) > 1:
            raise ValueError(
                f"{type(self).__name__}: the run that this one starts from had {len(own)} remedies of this class, "
                "expected one to go on from"
            )
        if jax.tree.map(jnp.shape, own[0]) != jax.tree.map(jnp.shape, self.blank(base.params)):
            raise ValueError(
                f"{type(self).__name__}: the run that this one starts from kept it of other parameters, expected those "
                "of this model; begin with that model, or leave it out"
            )
        return own[0]


Inherited = tuple[tuple[Remedy, Any], ...]  # remedies of a run, and what each kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class L2SP(Remedy):
    """The squared distance from the base, strength / 2 |theta - theta_0|^2 (Li, Grandvalet and Davoine 2018, equation
    3; of all parameters, as all have a place to return to).
    """

    def prepare(self, base: Base) -> Any:
        """The base's parameters."""
        return self.blank(base.params)

    def blank(self, params: Params) -> Any:
        """A copy of the parameters."""
        return jax.tree.map(jnp.copy, params)

    def penalty(self, kept: Any, step: Step) -> Float[Array, ""]:
        """Equation 3."""
        distance = _sum(lambda now, then: jnp.square(now - then), step.params, kept)
        return self.strength / 2 * step.share * distance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decay(L2SP):
    """Decoupled weight decay toward the base: in each step parameters go back by strength x the learning rate of what
    they are from it, as AdamW's go toward zero (Loshchilov and Hutter 2019, algorithm 2). Adaptive rates do not scale
    it, as they do the pull of `L2SP`.
    """

    def penalty(self, kept: Any, step: Step) -> Float[Array, ""]:
        """None: it is no part of the loss."""
        return jnp.float32(0)

    def moved(self, updates: Params, kept: Any, params: Params, rate: Array) -> Params:
        """The updates, less that share of the distance before the step; at most all of it."""
        share = jnp.minimum(rate * self.strength, 1)
        return jax.tree.map(lambda move, now, then: move - share * (now - then), updates, params, kept)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighted(Remedy):
    """The distance from the base, weighted by how important each parameter is: strength / 2 sum_i
    w_i (theta_i - theta_0i)^2.

    Attributes:
      normalise: "mean" divides what a text or task adds to w by its mean over all parameters, so that strengths compare
        over models and corpora, and with those of L2SP; "none" leaves it.
    """

    normalise: Literal["mean", "none"] = "mean"

    def blank(self, params: Params) -> Any:
        """Two copies of the parameters."""
        return {
            "params": jax.tree.map(jnp.copy, params),
            "importance": jax.tree.map(jnp.zeros_like, params),
        }

    def penalty(self, kept: Any, step: Step) -> Float[Array, ""]:
        """The weighted distance."""
        weighted = _sum(
            lambda now, then, weight: weight * jnp.square(now - then),
            step.params,
            kept["params"],
            kept["importance"],
        )
        return self.strength / 2 * step.share * weighted

    def _normalised(self, importance: Params, hint: str) -> Params:
        """What a text or task adds. ValueError: there is nothing, for which the hint gives a reason."""
        if self.normalise == "none":
            return importance
        size = sum(leaf.size for leaf in jax.tree.leaves(importance))
        mean = sum(float(jnp.sum(leaf)) for leaf in jax.tree.leaves(importance)) / size
        if not mean > 0:
            raise ValueError(f"{type(self).__name__}: {hint}")
        return jax.tree.map(lambda leaf: leaf / mean, importance)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EWC(Weighted):
    """The distance from the base, weighted by how much its likelihood of earlier text depends on each parameter: w is
    the diagonal F of the Fisher information (Kirkpatrick et al. 2017, equation 3).

    F_i is the mean over examples (rows) of the squared derivative of an example's summed log-likelihood: squared first,
    averaged then. `labels` says of which likelihood:

    - "true": of the labels that the examples have (the empirical Fisher);
    - "sampled": of labels drawn from the base's own predictions, place by place under the true line before it, `draws`
      times an example; that is the Fisher information itself, up to the noise of the draws;
    - "exact": the expectation over all labels, one by one; for examples with a single target, such as a classifier's.

    Attributes:
      corpus: the earlier text, read in the windows, layout and split of the run's own data; its training split is used.
      objective: what its windows become; None: what the run's own do.
      examples: how many are used, the first of the run's order.
      labels, draws: of which likelihood, see above.
      decay: of online EWC (Schwarz et al. 2018, equations 8 and 9): so much of the importance that the run which this
        one starts from was held by is added to that of the earlier text, the anchor is the base alone; None: nothing.
    """

    corpus: Corpus
    objective: Objective | None = None
    examples: int = 1000
    labels: Literal["true", "sampled", "exact"] = "true"
    draws: int = 1
    decay: float | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("examples", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"EWC.{name} = {getattr(self, name)}: expected at least 1")
        if self.decay is not None and not 0 <= self.decay <= 1:
            raise ValueError(f"EWC.decay = {self.decay}: expected a share, from 0 to 1, or None")

    @property
    def inherits(self) -> bool:
        """If it is online."""
        return self.decay is not None

    def fingerprints(self, text: Dataset) -> list[str]:
        """Of the earlier text."""
        return [text.of(self.corpus, self.objective).fingerprint]

    def rehearsed(self, examples: int) -> "EWC":
        """The same, with a Fisher information of so many examples."""
        return dataclasses.replace(self, examples=min(examples, self.examples))

    def prepare(self, base: Base) -> Any:
        """The base's parameters and the Fisher information."""
        text = base.text.of(self.corpus, self.objective)
        found = self._normalised(
            self._fisher(base, _first(text, base.seed, self.examples)),
            f"the mean Fisher information on {self.corpus} is not above 0; is the model of float16, whose small "
            "gradients are lost?",
        )
        if self.decay is not None and (earlier := self._inherited(base)) is not None:
            found = jax.tree.map(lambda new, old: new + self.decay * old, found, earlier["importance"])
        return {"params": jax.tree.map(jnp.copy, base.params), "importance": found}

    def _fisher(self, base: Base, batches: Iterable[tuple[Batch, Array]]) -> Params:
        def labelled() -> Iterator[tuple[Batch, Array]]:
            for number, (batch, shares) in enumerate(batches):
                if self.labels == "true":
                    yield batch, shares
                    continue
                scores = base.predict(base.params, batch)
                if self.labels == "exact":
                    yield from _exact(batch, shares, jnp.exp(scores))
                    continue
                key = jax.random.fold_in(jax.random.key(base.seed), number)
                for draw in jax.random.split(key, self.draws):
                    labels = jax.random.categorical(draw, scores)
                    yield dataclasses.replace(batch, labels=labels), shares / self.draws

        return fisher(base.log_likelihood, base.params, labelled())


def _exact(
    batch: Batch, shares: Float[Array, " b"], likely: Float[Array, "b t v"]
) -> Iterator[tuple[Batch, Array]]:
    """The batch with each label in turn, weighted by how likely it is at the only target."""
    targets = np.sum(np.asarray(batch.weights) > 0, axis=1)
    if np.any(targets > 1):
        raise ValueError(
            f"EWC.labels = 'exact' of examples with {targets.max()} targets: expected one in each, as a classifier's "
            "have; set EWC.labels = 'sampled'"
        )
    here = jnp.sum(likely * (jnp.asarray(batch.weights) > 0)[..., None], axis=1)
    for label in range(here.shape[-1]):
        labels = jnp.full_like(jnp.asarray(batch.labels), label)
        yield dataclasses.replace(batch, labels=labels), shares * here[:, label]


def _first(text: Dataset, seed: int, count: int) -> Iterator[tuple[Batch, Array]]:
    """The first so many training examples, with 1 for each, and 0 for those of the last batch that are too many."""
    with contextlib.closing(text.training(seed)) as batches:
        while count > 0:
            batch = next(batches)
            rows = np.arange(len(batch.labels))
            yield batch, jnp.asarray(rows < count, jnp.float32)
            count -= len(rows)


def fisher(
    log_likelihood: Callable[[Params, Any], Float[Array, ""]],
    params: Params,
    batches: Iterable[tuple[Any, Float[Array, " _"]]],
) -> Params:
    """Diagonal of the Fisher information: the weighted mean over examples of the squared gradient of each one's
    log-likelihood, squared before it is averaged.

    Args:
      log_likelihood: of parameters and one example.
      params: where.
      batches: examples, trees with n of them on the leading axis, and the weight of each. An example may come once for
        each label that it may have, weighted by how likely that is.

    Raises:
      ValueError: no example has a weight.
    """

    total, weight = jax.tree.map(jnp.zeros_like, params), 0.0
    for batch, shares in batches:
        total = _with_squares(log_likelihood, total, params, batch, shares)
        weight += float(jnp.sum(shares))
    if not weight:
        raise ValueError("fisher: no example has a weight, so there is no mean")
    return jax.tree.map(lambda leaf: leaf / weight, total)


@functools.partial(jax.jit, static_argnums=0)
def _with_squares(
    log_likelihood: Callable[[Params, Any], Array], total: Params, params: Params, batch: Any, shares: Array
) -> Params:
    """Row by row: the gradients of all rows of a batch would be as many copies of the parameters."""

    def add(sums: Params, row: Any) -> tuple[Params, None]:
        example, share = row
        gradient = jax.grad(log_likelihood)(params, example)
        return jax.tree.map(lambda so_far, new: so_far + share * jnp.square(new), sums, gradient), None

    return jax.lax.scan(add, total, (batch, shares))[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SI(Weighted):
    """Synaptic intelligence (Zenke, Poole and Ganguli 2017, equations 3 to 5): the distance from the base, weighted by
    how much the way that led to each parameter of it has lowered the loss there, for how far that way was.

    A run with it records its own way, omega = - sum over steps of gradient x change, of all that is minimised but
    this penalty. The run that starts from it adds omega / (distance^2 + damping) to w. So a base is trained with it
    too, at strength 0, and tuning goes on from there. A negative omega counts as 0: nothing is pushed away. The
    paper's c is strength / 2.

    Attributes:
      damping: xi, in squared units of the parameters.
    """

    damping: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        if not self.damping > 0:
            raise ValueError(f"SI.damping = {self.damping}: expected a number above 0")

    @property
    def inherits(self) -> bool:
        """Always: importance is of what came before."""
        return True

    def prepare(self, base: Base) -> Any:
        """The base's parameters, and the importance of all that came before them.

        Raises:
          ValueError: they come from a run without it.
        """
        kept = self.blank(base.params)
        if base.inherited is None:
            return kept
        if (earlier := self._inherited(base)) is None:
            raise ValueError(
                "SI: the run that this one starts from has not recorded how it came there; train it with SI too, at "
                "strength 0"
            )
        added = jax.tree.map(
            lambda now, then, path: jnp.maximum(path, 0) / (jnp.square(now - then) + self.damping),
            base.params,
            earlier["params"],
            earlier["path"],
        )
        added = self._normalised(added, "no step of the run that this one starts from lowered its loss")
        return kept | {"importance": jax.tree.map(jnp.add, earlier["importance"], added)}

    def blank(self, params: Params) -> Any:
        """Three copies of the parameters."""
        return super().blank(params) | {"path": jax.tree.map(jnp.zeros_like, params)}

    def observed(self, kept: Any, gradient: Params, params: Params, new: Params) -> Any:
        """Omega with the step."""

        def went(path: Array, slope: Array, before: Array, after: Array, then: Array, weight: Array) -> Array:
            return path - (slope - self.strength * weight * (before - then)) * (after - before)

        path = jax.tree.map(went, kept["path"], gradient, params, new, kept["params"], kept["importance"])
        return kept | {"path": path}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LwF(Remedy):
    """Learning without forgetting (Li and Hoiem 2016): on the batches that it is tuned on, the model is held to what
    the base predicts there, strength x KL(base || model) in nats per target.

    Attributes:
      temperature: T by which logits are divided before; the divergence counts T^2-fold, so that its gradient does not
        shrink with T (Hinton et al. 2015, section 2).
    """

    temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"LwF.temperature = {self.temperature}: expected a number above 0")

    def prepare(self, base: Base) -> Any:
        """The base's parameters."""
        return self.blank(base.params)

    def blank(self, params: Params) -> Any:
        """A copy of the parameters."""
        return jax.tree.map(jnp.copy, params)

    def penalty(self, kept: Any, step: Step) -> Float[Array, ""]:
        """The mean over targets, weighted as their losses are."""
        base, weights = step.model(kept), jnp.asarray(step.batch.weights, jnp.float32)
        total = token_divergence(
            log_probabilities(base, self.temperature),
            log_probabilities(step.model(step.params), self.temperature),
            jax.lax.stop_gradient(base.apply(step.batch).hidden),
            step.hidden,
            weights,
        )
        return self.strength * self.temperature**2 * total / step.weight


def log_probabilities(model: Model, temperature: float = 1.0) -> Callable[[Array], Array]:
    """From hidden states to log-probabilities of tokens, of logits divided by a temperature."""
    outputs = model.outputs
    return lambda hidden: jax.nn.log_softmax(outputs.logits(hidden).astype(jnp.float32) / temperature)


def _sum(term: Callable[..., Array], *trees: Params) -> Float[Array, ""]:
    """The sum of an elementwise term of trees of one structure."""
    parts = jax.tree.leaves(jax.tree.map(lambda *leaves: jnp.sum(term(*leaves)), *trees))
    return sum(parts, start=jnp.float32(0))

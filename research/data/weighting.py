"""How much each example counts: weights of samples, and resampling of those that the model gets wrong.

Weights have a mean of 1. A step divides its loss by the total weight of its batch, so that a weight counts relative to
those it shares a batch with. Whatever says how difficult an example is must come from
the training split or from another model, never from the test split.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from research.data.mixing import Draw


def by_source(sources: Sequence[str], weights: Mapping[str, float]) -> Float64[np.ndarray, " n"]:
    """Weights by where examples come from, or by their class.

    Args:
      sources: the source of each example.
      weights: of one example of each source, relative to the others'.

    Raises:
      ValueError: a source has no weight, or a weight is negative or not finite, or all are 0.
    """
    unknown = sorted(set(sources) - set(weights))
    if unknown:
        raise ValueError(
            f"by_source: no weight for {unknown[0]!r}; expected one for each source: add it to weights"
        )
    return _normalised("by_source", np.array([weights[source] for source in sources], np.float64))


def by_difficulty(losses: Shaped[np.ndarray, " n"], power: float = 1.0) -> Float64[np.ndarray, " n"]:
    """Weights as a power of the losses: above 0 for the hard examples, below 0 for the easy ones, 0 for all alike.

    Which of them helps depends on how much data there is (Sorscher et al. 2022); where labels are noisy, the hard
    examples are the mislabelled ones.

    Raises:
      ValueError: a loss is negative or not finite, or 0 where `power` is below 0.
    """
    losses = np.asarray(losses, np.float64)
    if not losses.size or not (np.isfinite(losses) & (losses >= 0)).all() or (power < 0 and not losses.all()):
        raise ValueError(
            f"by_difficulty: {losses.size} losses, power = {power}; expected at least one loss, none infinite or below "
            "0, and none of 0 where power is below 0"
        )
    # Ratios of at most 1: no power of them overflows.
    ratios = losses.min() / losses if power < 0 else losses / (losses.max() or 1.0)
    return _normalised("by_difficulty", ratios ** abs(power))


def by_importance(
    log_ratio: Shaped[np.ndarray, " n"], temperature: float = 1.0, clip: float | None = None
) -> Float64[np.ndarray, " n"]:
    """Importance weights, exp(log_ratio / temperature): how much likelier an example is where the model will be used.

    Args:
      log_ratio: natural logarithm of its probability there over its probability in the training data.
      temperature: above 1 evens the weights out.
      clip: ratios above it count as it before the mean is made 1 (truncated importance sampling: Ionides 2008).

    Raises:
      ValueError: temperature or clip is not positive, or a ratio is not finite.
    """
    if temperature <= 0 or (clip is not None and clip <= 0):
        raise ValueError(f"by_importance: temperature = {temperature}, clip = {clip}; expected both above 0")
    exponents = np.asarray(log_ratio, np.float64) / temperature
    if not exponents.size or not np.isfinite(exponents).all():
        raise ValueError(
            f"by_importance: {exponents.size} log_ratios; expected at least one, and none infinite"
        )
    if clip is not None:
        exponents = np.minimum(exponents, np.log(clip))
    return _normalised("by_importance", np.exp(exponents - exponents.max()))


def _normalised(what: str, weights: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """The weights over their mean."""
    if not weights.size or not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise ValueError(
            f"{what}: {weights.size} weights that sum to {weights.sum()}; expected at least one, none negative or "
            "infinite, and not all 0"
        )
    return weights / weights.mean()


def read(path: str, count: int) -> Float64[np.ndarray, " n"]:
    """The weights of `count` training windows, as `numpy.save` wrote them, normalised to a mean of 1.

    Raises:
      ValueError: the file cannot be read, or does not hold as many usable weights.
    """
    try:
        with open(path, "rb") as file:
            weights = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: {why}; expected {count} weights written by numpy.save; change Data.weights or Part.weights"
        ) from error
    if weights.shape != (count,) or weights.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} holds {weights.dtype}{list(weights.shape)}, expected a weight for each of {count} training "
            "windows; was it made for another corpus, Data.window or split?"
        )
    return _normalised(path, weights.astype(np.float64))


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardExamples:
    """Part of every batch is drawn from the windows with the largest losses (online hard example mining, with the
    scores of a sample of the training windows kept for some steps; Shrivastava et al. 2016 score each batch anew).

    Every `every` steps, `scored` says which windows the model is to be scored on, and `hardest` which of them are
    drawn until the next time. Those ids are all the state there is, and what `replaced` does depends on the step
    and on them alone, so that a resumed run goes on as it would have. Before the first scores nothing is replaced.
    With mislabelled data it is these that are the hardest, and drawing them more often hurts.

    Attributes:
      share: of the examples of a batch that are replaced; exact over the steps.
      every: steps between two scorings.
      pool: windows that are scored each time.
      kept: how many of them, the hardest, are drawn.
      seed: of the samples that are scored.
    """

    share: float = 0.25
    every: int = 100
    pool: int = 1024
    kept: int = 128
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"HardExamples.share = {self.share}: expected 0 < share <= 1")
        if self.every < 1 or not 1 <= self.kept <= self.pool:
            raise ValueError(
                f"HardExamples: every = {self.every}, pool = {self.pool}, kept = {self.kept}; expected every >= 1 and "
                "1 <= kept <= pool"
            )

    def refreshes(self, step: int) -> bool:
        """Whether windows are scored before batch `step` is made: not before the first, of an untrained model."""
        return step > 0 and step % self.every == 0

    def scored(self, step: int, windows: int) -> Int64[np.ndarray, " pool"]:
        """Which of so many training windows are scored before that step: `pool` different ones, or all, ascending."""
        rng = np.random.default_rng([self.seed, step])
        return np.sort(rng.choice(windows, min(self.pool, windows), replace=False))

    def hardest(
        self, ids: Int64[np.ndarray, " pool"], losses: Shaped[np.ndarray, " pool"]
    ) -> tuple[int, ...]:
        """The `kept` ids with the largest losses, hardest first; of equal losses the lesser id comes first.

        Raises:
          ValueError: a loss is not a number.
        """
        losses = np.asarray(losses, np.float64)
        if np.isnan(losses).any():
            raise ValueError(
                f"HardExamples: the loss of window {ids[np.isnan(losses)][0]} is not a number; has training diverged?"
            )
        return tuple(ids[np.lexsort((ids, -losses))][: self.kept].tolist())

    def draw(self, step: int, batch: int, hard: Sequence[int]) -> tuple[int, ...]:
        """The windows that take the first places of batch `step`; the hard ones take turns, over the batches too."""
        if not hard:
            return ()
        share = Fraction(str(self.share)) * batch
        return tuple(hard[k % len(hard)] for k in range(int(share * step), int(share * (step + 1))))

    def replaced(
        self,
        draws: Sequence[Draw],
        hard: Sequence[int],
        *,
        step: int,
        rows: Int64[np.ndarray, " n"],
        batch: int,
    ) -> list[Draw]:
        """The draws with the hard windows among them.

        The order of draws is random, so that the first rows of a batch are as good as any. A hard window's epoch is
        the step: what is random in its example is drawn anew each time.

        Args:
          draws: of some rows of a batch.
          hard: ids of windows, hardest first.
          step: of the batch.
          rows: the place of each draw in the batch of all hosts together.
          batch: rows of that batch.
        """
        new = self.draw(step, batch, hard)
        return [
            dataclasses.replace(draw, epoch=step, window=new[row]) if row < len(new) else draw
            for draw, row in zip(draws, rows.tolist(), strict=True)
        ]

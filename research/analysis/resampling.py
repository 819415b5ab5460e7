"""Percentile bootstraps: over seeds and examples, and over the runs of many tasks.

They say how far a mean over runs *and* examples can be trusted, or an aggregate over tasks that has no t interval.
With few runs they are too narrow (the mean of 5 normal values is covered by 0.839 of intervals that say 0.95), so a
verdict never rests on them. `research.analysis.aggregate` makes tables of those over tasks. Those over examples are
for scores that are not in rows, such as samples that a person judged; docs/studies.md shows how. Every
function is a function of its arguments: the same `seed` gives the same interval, in whatever order runs are given.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A value, and the percentiles of it over resampled data: (1 - level) / 2 lie below `low` and above `high`."""

    value: float
    low: float
    high: float


def hierarchical_bootstrap(
    scores: Mapping[int, ArrayLike], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """The mean over seeds of the mean over examples, where every seed has examples of its own, such as samples.

    Seeds are drawn with replacement, then examples within each drawn seed. Where all seeds have the same examples,
    such as one test set, that takes the examples' share of the error for less than it is: use `multi_bootstrap`.

    Args:
      scores: for each seed the scores [examples], whose number may differ; a seed counts as much as any other.
      level: of the interval.
      draws: how often all is drawn again.
      seed: of the drawing.

    Raises:
      ValueError: no seeds, or scores that are empty, not finite or not of one dimension.
    """
    examples = list(_by_seed(scores).values())
    rng = np.random.default_rng(seed)
    means = np.empty((draws, len(examples)))
    for draw in range(draws):
        for place, index in enumerate(rng.integers(len(examples), size=len(examples))):
            own = examples[index]
            means[draw, place] = own[rng.integers(len(own), size=len(own))].mean()
    return _percentiles(float(np.mean([own.mean() for own in examples])), means.mean(axis=1), level)


def multi_bootstrap(
    scores: Mapping[int, ArrayLike], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """The mean over seeds and examples, where all seeds have the same examples in the same order, such as a test set.

    Seeds are drawn with replacement, and so are examples, the same ones for all seeds: the Multi-Bootstrap
    (Sellam et al. 2022, The MultiBERTs, section 3). Arguments as in `hierarchical_bootstrap`.

    Raises:
      ValueError: as `hierarchical_bootstrap`, and seeds with different numbers of examples.
    """
    by_seed = _by_seed(scores)
    sizes = {name: len(own) for name, own in by_seed.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"scores: {sizes} examples by seed, expected the same examples for all; else use hierarchical_bootstrap"
        )
    table = np.stack(list(by_seed.values()))  # [seeds examples]
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for draw in range(draws):
        runs, examples = (rng.integers(size, size=size) for size in table.shape)
        means[draw] = table[runs].mean(axis=0)[examples].mean()
    return _percentiles(float(table.mean()), means, level)


def paired_scores(a: Mapping[int, ArrayLike], b: Mapping[int, ArrayLike]) -> dict[int, np.ndarray]:
    """The scores a - b [examples] of the seeds that both arms have: a bootstrap of these is paired by both.

    Raises:
      ValueError: no seed in common, one with different numbers of examples, or as `hierarchical_bootstrap`.
    """
    first, second = _by_seed(a), _by_seed(b)
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ValueError(
            f"seeds {sorted(first)} and {sorted(second)}: none in common, expected pairs; run the same seeds"
        )
    for name in common:
        if len(first[name]) != len(second[name]):
            raise ValueError(
                f"seed {name}: {len(first[name])} and {len(second[name])} examples, expected the same ones"
            )
    return {name: first[name] - second[name] for name in common}


def interquartile_mean(
    scores: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """The mean of the middle half of all scores (IQM), with the stratified bootstrap of Agarwal et al. 2021.

    A quarter of the scores, rounded down, is left out at either end. Runs are drawn with replacement within each
    task, so the interval is about other runs of the same tasks.

    Args:
      scores: [runs tasks], comparable across tasks (normalised).
      level, draws, seed: as in `hierarchical_bootstrap`.

    Raises:
      ValueError: scores that are empty, not finite or not of two dimensions.
    """
    table = _runs_by_task("scores", scores)
    rng = np.random.default_rng(seed)
    drawn = [_middle_half(_redrawn(table, rng)) for _ in range(draws)]
    return _percentiles(_middle_half(table), drawn, level)


def probability_of_improvement(
    x: ArrayLike, y: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """How often a run of x scores higher than one of y on the same task, mean over tasks; equal scores count half.

    With the stratified bootstrap of Agarwal et al. 2021: runs are drawn with replacement within each task and arm.

    Args:
      x, y: [runs_x tasks] and [runs_y tasks], higher is better.
      level, draws, seed: as in `hierarchical_bootstrap`.

    Raises:
      ValueError: as `interquartile_mean`, and different numbers of tasks.
    """
    first, second = _runs_by_task("x", x), _runs_by_task("y", y)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"x {first.shape} and y {second.shape}: expected [runs tasks] of the same tasks")
    rng = np.random.default_rng(seed)
    drawn = [_superiority(_redrawn(first, rng), _redrawn(second, rng)) for _ in range(draws)]
    return _percentiles(_superiority(first, second), drawn, level)


def _middle_half(scores: np.ndarray) -> float:
    ordered = np.sort(scores, axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def _superiority(x: np.ndarray, y: np.ndarray) -> float:
    return 0.5 + 0.5 * float(np.sign(x[:, None] - y).mean())


def _redrawn(table: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[runs tasks], the runs of each task drawn with replacement."""
    return np.take_along_axis(table, rng.integers(len(table), size=table.shape), axis=0)


def _percentiles(value: float, drawn: Sequence[float] | np.ndarray, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level: {level!r}, expected between 0 and 1, such as 0.95")
    if len(drawn) < 1:
        raise ValueError("draws: 0, expected at least one, such as 2000")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=float(low), high=float(high))


def _by_seed(scores: Mapping[int, ArrayLike]) -> dict[int, np.ndarray]:
    """The scores [examples] in the order of seeds."""
    if not scores:
        raise ValueError("scores: of no seed, expected at least one")
    arrays = {name: np.asarray(scores[name], dtype=np.float64) for name in sorted(scores)}
    for name, own in arrays.items():
        _require_numbers(f"scores of seed {name}", own, "[examples]", 1)
    return arrays


def _runs_by_task(name: str, scores: ArrayLike) -> np.ndarray:
    table = np.asarray(scores, dtype=np.float64)
    _require_numbers(name, table, "[runs tasks]", 2)
    return table


def _require_numbers(name: str, array: np.ndarray, shape: str, dimensions: int) -> None:
    finite = np.isfinite(array).all()
    if array.ndim != dimensions or not array.size or not finite:
        kind = "finite" if finite else "not all finite"
        raise ValueError(f"{name}: shape {array.shape}, {kind}; expected finite numbers {shape}")

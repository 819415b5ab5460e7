"""What seeds say: intervals, tests of one contrast, corrections for many, and ranks of what may not be reached.

Seeds are paired across arms: same initial seed, same data order. Two arms are mappings from seed to value, and only
the seeds that both have are compared. Student's t throughout, because the percentile bootstrap of a mean of 5 normal
values covers 0.839 where it says 0.95 (all 3125 resamples listed, 100,000 studies, standard error 0.001); the
bootstraps are in `research.analysis.resampling`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over `n` seeds and the half width of its interval (nan for one seed), in the
    values' unit."""

    mean: float
    half_width: float
    n: int

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.mean + self.half_width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A paired t test of two arms.

    Attributes:
      estimate: of a - b.
      p: two-sided, of no difference; nan for one seed, which tests nothing.
      deviation: the standard deviation of the differences, in the values' unit; nan for one seed.
      detectable: the least difference that this many seeds of this deviation find with 80 % power, in the values'
        unit; nan for one seed.
    """

    estimate: Estimate
    p: float
    deviation: float
    detectable: float

    @property
    def n(self) -> int:
        """How many seeds were compared."""
        return self.estimate.n


@dataclasses.dataclass(frozen=True, kw_only=True)
class Equivalence:
    """Two one-sided tests of whether two arms are equal.

    Attributes:
      estimate: of a - b, with the interval that lies within the margin where the arms are equivalent.
      margin: what counts as equal, in the values' unit.
      p: the larger one of the two; nan for one seed.
      equivalent: p is below the level.
    """

    estimate: Estimate
    margin: float
    p: float
    equivalent: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class CensoredSummary:
    """Values of which some were not reached: the median (inf where half or more were not), how many were, and of
    how many.
    """

    median: float
    reached: int
    n: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankTest:
    """Mann and Whitney's test: the two-sided p, and how often a value of a is greater than one of b.

    `superiority` is U / (n_a n_b): ties count half, 0.5 where neither side tends to be greater.
    """

    superiority: float
    p: float


def mean_interval(values: Iterable[float], level: float = 0.95) -> Estimate:
    """The mean of independent values with its two-sided t interval; ValueError if none, or one that is not finite."""
    mean, deviation, n = _moments(values)
    _require_level(level)
    return Estimate(mean=mean, half_width=_quantile(level, n) * deviation / math.sqrt(n), n=n)


def prediction_interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float]:
    """Where one new run of an arm falls with this probability, if runs are normal; nan for one value.

    mean ± t(n - 1) * deviation * sqrt(1 + 1 / n); ValueError if there is no value or one is not finite.
    """
    mean, deviation, n = _moments(values)
    _require_level(level)
    half_width = _quantile(level, n) * deviation * math.sqrt(1 + 1 / n)
    return mean - half_width, mean + half_width


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> Estimate:
    """The interval of a - b over the seeds that both have; ValueError if they share none."""
    return mean_interval(_differences(a, b).values(), level)


def paired_test(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> Comparison:
    """The paired t test of a - b over the seeds that both have.

    Differences that are all the same have p = 0, as of parameter counts, or p = 1 where they are zero.

    Args:
      a, b: a value for each seed.
      level: of the interval; what is detectable is so at 1 - level.

    Raises:
      ValueError: no seed in common, or a difference that is not finite (a run that diverged has a rank and no mean:
        see `rank_test`).
    """
    differences = _finite(_differences(a, b))
    mean, deviation, n = _moments(differences)
    detectable = math.nan if n == 1 else deviation * minimum_detectable_effect(n, alpha=1 - level)
    return Comparison(
        estimate=mean_interval(differences, level),
        p=2 * _upper_tail(abs(mean), deviation, n),
        deviation=deviation,
        detectable=detectable,
    )


def equivalence(
    a: Mapping[int, float], b: Mapping[int, float], margin: float, level: float = 0.05
) -> Equivalence:
    """Two one-sided paired t tests of |a - b| >= margin (TOST; Schuirmann 1987).

    A large p of `paired_test` is no evidence that two arms are equal; a small p here is.

    Args:
      a, b: a value for each seed; those of the seeds that both have are compared.
      margin: what counts as equal, in the values' unit; declared before the run.
      level: of each test. The interval, of level 1 - 2 * level, lies within the margin where both reject.

    Raises:
      ValueError: as `paired_test`, and a margin that is not positive.
    """
    if not 0 < margin < math.inf:
        raise ValueError(f"margin: {margin!r}, expected a positive number in the values' unit")
    if not 0 < level < 0.5:
        raise ValueError(f"level: {level!r}, expected between 0 and 0.5, such as 0.05")
    differences = _finite(_differences(a, b))
    mean, deviation, n = _moments(differences)
    p = max(_upper_tail(margin + mean, deviation, n), _upper_tail(margin - mean, deviation, n))
    interval = mean_interval(differences, 1 - 2 * level)
    return Equivalence(estimate=interval, margin=margin, p=p, equivalent=p < level)


@functools.cache
def minimum_detectable_effect(n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The least mean difference that a two-sided paired t test of n pairs finds, in their standard deviations.

    By the noncentral t distribution. A rejection with the wrong sign finds nothing: counting it too, as some
    programs do, changes the power by less than 1e-6 at the defaults.

    Raises:
      ValueError: fewer than two pairs, or an alpha or power for which there is no such difference.
    """
    if n < 2:
        raise ValueError(f"n: {n!r}, expected at least two pairs; run more seeds")
    if not 0 < alpha / 2 < power < 1:
        raise ValueError(f"alpha {alpha!r} and power {power!r}: expected 0 < alpha / 2 < power < 1")
    from scipy.optimize import brentq  # slow to import, and only needed here
    from scipy.stats import nct

    critical = _quantile(1 - alpha, n)

    def missing(effect: float) -> float:
        return float(nct.sf(critical, n - 1, effect * math.sqrt(n))) - power

    high = 1.0
    while missing(high) < 0:
        high *= 2
    return float(brentq(missing, 0.0, high))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p values of a family, adjusted so that one of them falls below alpha by chance with probability alpha at most.

    A nan (not testable, or not run yet) stays nan and counts as a member with p = 1, since the family was declared
    with it. So the others get the greatest values they can have, whatever it turns out to be, and none that is
    significant is lost when it comes. What should not count has to be left out.

    Raises:
      ValueError: a p outside [0, 1].
    """
    return _adjusted(p, lambda ordered, m: np.maximum.accumulate(ordered * np.arange(m, 0, -1)))


def benjamini_hochberg(p: Mapping[str, float]) -> dict[str, float]:
    """p values of a family, adjusted so that of those below alpha a share of alpha at most is expected to be chance.

    For independent tests and those that depend positively; nan and ValueError as in `holm`.
    """
    return _adjusted(
        p, lambda ordered, m: np.minimum.accumulate((ordered * m / np.arange(1, m + 1))[::-1])[::-1]
    )


def censored_summary(values: Iterable[float | None]) -> CensoredSummary:
    """The median and how many were reached, of values such as steps to a threshold; None or inf: not reached.

    Raises:
      ValueError: no value, or nan.
    """
    ordered = sorted(_censored(values))
    n = len(ordered)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return CensoredSummary(median=median, reached=sum(map(math.isfinite, ordered)), n=n)


def rank_test(a: Mapping[int, float | None], b: Mapping[int, float | None]) -> RankTest:
    """Whether the values of one arm tend to be greater; None or inf (not reached) is greater than any other value.

    Mann and Whitney's test with the exact distribution of U given the ties, at any size; meant for seeds, its time
    grows with the fourth power of their number. p is twice the smaller tail. It does not pair the seeds: what they
    share makes it cautious. A test that pairs them by ranks or by flipping signs (Wilcoxon's) cannot reach
    0.05 with five seeds, where its least p is 2 / 2**5 = 0.0625; here it is 2 / 252 = 0.008.

    Args:
      a, b: a value for each seed; the seeds need not be the same.

    Raises:
      ValueError: an arm without a value, or nan.
    """
    first, second = _censored(a.values()), _censored(b.values())
    m, total = len(first), len(first) + len(second)
    _, order, counts = np.unique(first + second, return_inverse=True, return_counts=True)
    ranks = (2 * np.cumsum(counts) - counts + 1)[order]  # twice the midrank, an integer

    # chance[j, s]: of j values in the first arm, with ranks that sum to s, if all went there alike and independently.
    chance = np.zeros((m + 1, ranks.sum() + 1))
    chance[0, 0] = 1.0
    share = m / total
    for rank in ranks:
        moved = chance[:-1, : chance.shape[1] - rank] * share
        chance *= 1 - share
        chance[1:, rank:] += moved
    exact = chance[m] / chance[m].sum()

    found = ranks[:m].sum()
    tail = min(exact[: found + 1].sum(), exact[found:].sum())
    superiority = (found - m * (m + 1)) / (2 * m * (total - m))
    return RankTest(superiority=float(superiority), p=min(1.0, 2 * float(tail)))


def p_text(p: float) -> str:
    """A p value as it is printed."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _differences(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
    common = sorted(a.keys() & b.keys())
    if not common:
        raise ValueError(
            f"seeds {sorted(a)} and {sorted(b)}: none in common, expected pairs; run the same seeds"
        )
    return {seed: a[seed] - b[seed] for seed in common}


def _finite(differences: Mapping[int, float]) -> list[float]:
    for seed, difference in differences.items():
        if not math.isfinite(difference):
            raise ValueError(
                f"seed {seed}: a difference of {difference}, expected finite; compare ranks instead"
            )
    return list(differences.values())


def _moments(values: Iterable[float]) -> tuple[float, float, int]:
    """Mean, standard deviation (nan of one value) and number; exact where all values are the same."""
    values = [float(value) for value in values]
    n = len(values)
    if n == 0:
        raise ValueError("values: found none, expected at least one to take a mean of")
    if strange := [value for value in values if not math.isfinite(value)]:
        raise ValueError(
            f"values: found {strange[0]} among {n}, expected finite numbers; leave out what was not measured, or "
            "compare ranks"
        )
    if n == 1:
        return values[0], math.nan, 1
    if min(values) == max(values):
        return values[0], 0.0, n
    mean = math.fsum(values) / n
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)), n


def _quantile(level: float, n: int) -> float:
    """What |t| of n values stays below with this probability; nan for one value."""
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(n - 1, (1 + level) / 2)) if n > 1 else math.nan


def _upper_tail(mean: float, deviation: float, n: int) -> float:
    """The probability of a mean as great as this of n values where the true one is 0; nan for one value."""
    from scipy.special import stdtr

    if deviation == 0:
        return 0.5 - 0.5 * float(np.sign(mean))
    return float(stdtr(n - 1, -mean * math.sqrt(n) / deviation)) if n > 1 else math.nan


def _adjusted(p: Mapping[str, float], adjust: Callable[[np.ndarray, int], np.ndarray]) -> dict[str, float]:
    """The p values by name, adjusted in ascending order."""
    for name, value in p.items():
        if not (0 <= value <= 1 or math.isnan(value)):
            raise ValueError(f"p of {name}: {value!r}, expected between 0 and 1, or nan")
    counted = {name: 1.0 if math.isnan(value) else float(value) for name, value in p.items()}
    names = sorted(counted, key=counted.__getitem__)
    adjusted = np.minimum(1.0, adjust(np.array([counted[name] for name in names]), len(names)))
    found = dict(zip(names, adjusted.tolist(), strict=True))
    return {name: math.nan if math.isnan(value) else found[name] for name, value in p.items()}


def _censored(values: Iterable[float | None]) -> list[float]:
    numbers = [math.inf if value is None else float(value) for value in values]
    if not numbers:
        raise ValueError("values: found none, expected at least one, reached or not")
    if any(map(math.isnan, numbers)):
        raise ValueError("values: found nan, expected a number, or None where it was not reached")
    return numbers


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: {level!r}, expected between 0 and 1, such as 0.95")

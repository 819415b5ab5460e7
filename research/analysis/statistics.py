"""Intervals over seeds. Seeds are paired across arms: same initial seed, same data order.

Student's t intervals, because a percentile bootstrap of 5 seeds covers 0.83 where it says 0.95.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over `n` seeds and the half width of its interval (nan for one seed), in the
    values' unit."""

    mean: float
    half_width: float
    n: int


def mean_interval(values: Iterable[float], level: float = 0.95) -> Estimate:
    """The mean of independent values with its two-sided t interval; ValueError if there is none."""
    values = [float(value) for value in values]
    n = len(values)
    if n == 0:
        raise ValueError("values: found none, expected at least one to take a mean of")
    if not 0 < level < 1:
        raise ValueError(f"level: {level!r}, expected between 0 and 1, such as 0.95")
    if n == 1:
        return Estimate(mean=values[0], half_width=math.nan, n=1)
    if min(values) == max(values):  # exact, where a sum and a division may round
        return Estimate(mean=values[0], half_width=0.0, n=n)
    from scipy.stats import t  # slow to import, and only needed here

    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    quantile = float(t.ppf((1 + level) / 2, df=n - 1))
    return Estimate(mean=mean, half_width=quantile * math.sqrt(variance / n), n=n)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> Estimate:
    """The interval of a - b over the seeds that both have; ValueError if they share none."""
    common = sorted(a.keys() & b.keys())
    if not common:
        raise ValueError(
            f"seeds {sorted(a)} and {sorted(b)}: none in common, expected pairs; run the same seeds"
        )
    return mean_interval((a[seed] - b[seed] for seed in common), level)

"""The rules that a study may declare for its claims; `research.analysis.decisions` says what a rule is."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import numpy as np

from research.analysis import frontiers, statistics
from research.analysis.decisions import (
    ALPHA,
    ClaimError,
    Decision,
    Expect,
    Family,
    Measured,
    PairedTest,
    Reading,
    Rule,
    Seeds,
    Undecidable,
    Values,
    Verdict,
    constant,
    differences,
    require_seeds,
)
from research.analysis.statistics import Estimate

COUNTED = ("budget.", "metrics.cost.")  # where numbers are counted: they do not depend on the seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """`metric` of `arm` minus `baseline_metric` of `baseline`, by seed.

    What is left out of the baseline is as in the first: another arm on the same metric, or the same arm on another
    metric. ClaimError: nothing differs.
    """

    metric: str
    arm: str
    baseline: str = ""
    baseline_metric: str = ""

    def __post_init__(self):
        if len(set(self.reads())) == 1:
            raise ClaimError(
                f"{self.metric} of {self.arm}: compared with itself; give it a baseline or a baseline_metric"
            )

    def reads(self) -> tuple[Reading, ...]:
        return (self.arm, self.metric), (self.baseline or self.arm, self.baseline_metric or self.metric)

    def words(self) -> tuple[str, str]:
        """Both sides in words."""
        first, second = (f"{metric} of {arm}" for arm, metric in self.reads())
        return first, second

    def sides(self, values: Values) -> tuple[Seeds, Seeds]:
        first, second = (values[reading] for reading in self.reads())
        return first, second

    def by_seed(self, values: Values) -> Seeds:
        first, second = self.sides(values)
        return {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast(Difference, PairedTest):
    """One value against another, such as an arm's loss against its baseline's."""

    expect: Expect

    def explain(self) -> str:
        return self.sentence(*self.words())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level(PairedTest):
    """A value against a number that is known beforehand: chance, a published constant, a share to be reached."""

    metric: str
    arm: str
    value: float
    expect: Expect

    def explain(self) -> str:
        return self.sentence(f"{self.metric} of {self.arm}", f"{self.value:g}")

    def reads(self) -> tuple[Reading, ...]:
        return ((self.arm, self.metric),)

    def sides(self, values: Values) -> tuple[Seeds, Seeds]:
        measured = values[self.arm, self.metric]
        return measured, dict.fromkeys(measured, self.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Between:
    """One difference minus another, by seed."""

    first: Difference
    second: Difference

    def reads(self) -> tuple[Reading, ...]:
        return self.first.reads() + self.second.reads()

    def words(self) -> tuple[str, str]:
        """Both differences in words."""
        first, second = (f"({' minus '.join(part.words())})" for part in (self.first, self.second))
        return first, second

    def sides(self, values: Values) -> tuple[Seeds, Seeds]:
        return self.first.by_seed(values), self.second.by_seed(values)

    def by_seed(self, values: Values) -> Seeds:
        first, second = self.sides(values)
        return {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interaction(Between, PairedTest):
    """One difference against another: whether something matters more under one condition than under another."""

    expect: Expect

    def explain(self) -> str:
        return self.sentence(*self.words())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every(PairedTest):
    """Several differences of which the same is expected, such as one for each architecture.

    Less or greater: seed by seed, the one that has least of it is tested against zero. Equal: all of them lie within
    the margin (the greatest p of their TOSTs: Berger 1982), which is refuted where one lies beyond it (the least p,
    times their number); the effect is that of the one with the least p.
    """

    of: tuple[Difference | Between, ...]
    expect: Expect

    def __post_init__(self):
        if len(self.of) < 2:
            raise ClaimError(
                f"Every of {len(self.of)} differences: expected at least 2; use Contrast for one"
            )

    def explain(self) -> str:
        parts = "; ".join(" minus ".join(part.words()) for part in self.of)
        which = "the one furthest from" if self.expect == "equal" else "the one nearest to or beyond"
        return f"of the differences ({parts}) {self.sentence(f'{which} zero', 'zero')}"

    def reads(self) -> tuple[Reading, ...]:
        return tuple(dict.fromkeys(reading for part in self.of for reading in part.reads()))

    def sides(self, values: Values) -> tuple[Seeds, Seeds]:
        differences = [part.by_seed(values) for part in self.of]
        common = sorted(set(differences[0]).intersection(*differences[1:]))
        choose = min if self.expect == "greater" else max
        found = {seed: choose(by_seed[seed] for by_seed in differences) for seed in common}
        return found, dict.fromkeys(found, 0.0)

    def measure(self, values: Values, level: float = ALPHA) -> Measured:
        if self.expect != "equal":
            return super().measure(values, level)
        tests = ((Contrast if isinstance(part, Difference) else Interaction, part) for part in self.of)
        parts = [
            test(**vars(part), expect="equal", margin=self.margin).measure(values, level)
            for test, part in tests
        ]
        worst = min(parts, key=lambda part: cast(float, part.p))
        effects = ", ".join(f"{part.effect.mean:+.4g}" for part in parts)
        return dataclasses.replace(
            worst,
            p=min(1.0, len(parts) * cast(float, worst.p)),
            p_equal=max(cast(float, part.p_equal) for part in parts),
            p_null=None,
            note=f"differences {effects}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained(PairedTest):
    """How much of the variance of one metric over arms a straight line of another explains: R^2, seed by seed, against
    a number.
    """

    metric: str
    by: str
    arms: tuple[str, ...]
    value: float
    expect: Literal["less", "greater"]

    def __post_init__(self):
        if len(self.arms) < 4:
            raise ClaimError(f"Explained over {len(self.arms)} arms: expected at least 4 points of a line")

    def explain(self) -> str:
        return self.sentence(
            f"R^2 of {self.metric} by {self.by} over {', '.join(self.arms)}", f"{self.value:g}"
        )

    def reads(self) -> tuple[Reading, ...]:
        return tuple((arm, metric) for arm in self.arms for metric in (self.by, self.metric))

    def sides(self, values: Values) -> tuple[Seeds, Seeds]:
        common = set.intersection(*(set(values[reading]) for reading in self.reads()))
        found = {}
        for seed in sorted(common):
            x, y = ([values[arm, metric][seed] for arm in self.arms] for metric in (self.by, self.metric))
            if len(set(x)) == 1 or len(set(y)) == 1:
                raise Undecidable(
                    Verdict.INCONCLUSIVE, f"at seed {seed} all arms measured the same, so there is no line"
                )
            found[seed] = float(np.corrcoef(x, y)[0, 1] ** 2)
        return found, dict.fromkeys(found, self.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trend(PairedTest):
    """Values in order: the last against the first is tested, and every step between has that sign on the mean.

    `metrics` and `arms` are as long as each other, or one of them is a single one that stands for all.
    """

    metrics: tuple[str, ...]
    arms: tuple[str, ...]
    expect: Literal["rising", "falling"]

    def __post_init__(self):
        points = {len(self.metrics), len(self.arms)}
        if max(points) < 2 or 0 in points or len(points - {1}) > 1:
            raise ClaimError(
                f"Trend of {len(self.metrics)} metrics and {len(self.arms)} arms: expected as many of both, or one "
                "of either, and two points or more"
            )

    def direction(self) -> str:
        return "greater" if self.expect == "rising" else "less"

    def explain(self) -> str:
        what = ", ".join(self.metrics), ", ".join(self.arms)
        more = f" by more than {self.least:g} from end to end" if self.least else ""
        return f"{what[0]} of {what[1]}, in this order: {self.expect}{more}; ends equal within {self.margin:g} refute"

    def reads(self) -> tuple[Reading, ...]:
        length = max(len(self.metrics), len(self.arms))
        arms, metrics = (part * length if len(part) == 1 else part for part in (self.arms, self.metrics))
        return tuple(zip(arms, metrics, strict=True))

    def sides(self, values: Values) -> tuple[Seeds, Seeds]:
        first, *_, last = self.reads()
        return values[last], values[first]

    def measure(self, values: Values, level: float = ALPHA) -> Measured:
        points = [values[reading] for reading in self.reads()]
        sign = 1 if self.expect == "rising" else -1
        steps = [statistics.paired_difference(b, a).mean for a, b in zip(points, points[1:], strict=False)]
        orderly = all(step * sign > 0 for step in steps)
        shown = ", ".join(f"{step:+.4g}" for step in steps)
        return dataclasses.replace(super().measure(values, level), orderly=orderly, note=f"steps {shown}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matched(PairedTest):
    """A metric at the same value of another: forgetting at matched learning, quality at matched cost.

    Each side is a frontier, the arms of one sweep, interpolated linearly, seed by seed, at `at_value` of the metric
    `at`. Without an `at_value` it is what the single arm of the first side measured. Nothing is extrapolated: a
    frontier that does not reach that far does not compare.
    """

    metric: str
    at: str
    arms: tuple[str, ...]
    baseline: tuple[str, ...]
    expect: Expect
    at_value: float | None = None

    def __post_init__(self):
        if self.at_value is None and len(self.arms) != 1:
            raise ClaimError(
                f"Matched.at_value: none for the arms {list(self.arms)}; give it a value of {self.at}"
            )

    def explain(self) -> str:
        value = f"{self.arms[0]}'s {self.at}" if self.at_value is None else f"{self.at} = {self.at_value:g}"
        first, second = (f"{self.metric} of {', '.join(arms)}" for arms in (self.arms, self.baseline))
        return f"at {value}: {self.sentence(first, second)}"

    def reads(self) -> tuple[Reading, ...]:
        return tuple((arm, metric) for arm in self.arms + self.baseline for metric in (self.at, self.metric))

    def sides(self, values: Values) -> tuple[Seeds, Seeds]:
        own = values[self.arms[0], self.at]
        at = own if self.at_value is None else dict.fromkeys(own, self.at_value)
        return self._frontier(values, self.arms, at), self._frontier(values, self.baseline, at)

    def _frontier(self, values: Values, arms: Sequence[str], at: Seeds) -> Seeds:
        common = set(at).intersection(*(values[arm, self.at] for arm in arms))
        found = {}
        for seed in sorted(common):
            points = sorted((values[arm, self.at][seed], values[arm, self.metric][seed]) for arm in arms)
            try:
                height = frontiers.interpolated(points, at[seed])
            except ValueError as error:
                raise Undecidable(
                    Verdict.INCONCLUSIVE,
                    f"not comparable: at seed {seed} two of {', '.join(arms)} measured the same {self.at}",
                ) from error
            if height is None:
                raise Undecidable(
                    Verdict.INCONCLUSIVE,
                    f"not comparable: at seed {seed} {', '.join(arms)} measured {self.at} from {points[0][0]:.4g} to "
                    f"{points[-1][0]:.4g}, expected a range that holds {at[seed]:.4g}",
                )
            found[seed] = height
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankContrast(Difference, PairedTest):
    """A contrast of censored values, such as steps to a threshold, by Mann and Whitney's rank test.

    A value of None was not reached, which is greater than any other. The effect is how often a value of the first
    side is greater than one of the second, minus 1/2; medians and how many seeds reached it are printed beside it.
    `least` is asked of that estimate, and no margin makes ranks equal.

    Attributes:
      censored: numbers that stand for "not reached" too, such as the ends of a grid of temperatures.
    """

    families: ClassVar[tuple[Family, ...]] = ("difference",)
    expect: Literal["less", "greater"]
    censored: tuple[float, ...] = ()

    def explain(self) -> str:
        first, second = self.words()
        least = f", P(greater) estimated {self.least:g} or more from 1/2" if self.least else ""
        return f"{first} tends to be {self.expect} than {second}, by rank{least}"

    def unreached(self) -> tuple[Reading, ...]:
        return self.reads()

    def measure(self, values: Values, level: float = ALPHA) -> Measured:
        first, second = self.sides(values)
        n = min(len(first), len(second))
        require_seeds(n)
        found = statistics.rank_test(first, second)
        medians = [statistics.censored_summary(side.values()).median for side in (first, second)]
        reached = [
            sum(math.isfinite(value) and value not in self.censored for value in side.values())
            for side in (first, second)
        ]
        return Measured(
            effect=Estimate(mean=found.superiority - 0.5, half_width=math.nan, n=n),
            p=found.p,
            p_equal=None,
            p_null=found.p,
            note=f"P(greater) - 1/2; medians {medians[0]:.4g} and {medians[1]:.4g}; reached by {reached[0]} of "
            f"{len(first)} and {reached[1]} of {len(second)}",
        )

    def judge(self, found: Measured, p: float, p_equal: float) -> Decision:
        decision = super().judge(found, p, p_equal)
        if decision.verdict is Verdict.SUPPORTED and abs(found.effect.mean) < self.least:
            return Decision(verdict=Verdict.INCONCLUSIVE, reason=f"estimated at less than {self.least:g}")
        return decision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted(Rule):
    """A comparison of what is counted and not sampled, such as FLOPs: the same at every seed, so no test.

    ClaimError: a metric outside COUNTED, or another rule than a contrast or a level.
    """

    of: Contrast | Level

    def __post_init__(self):
        if not isinstance(self.of, Contrast | Level):
            raise ClaimError(f"Counted.of = {type(self.of).__name__}: expected a Contrast or a Level")
        for arm, metric in self.of.reads():
            if not metric.startswith(COUNTED):
                raise ClaimError(
                    f"Counted on {metric} of {arm}: expected a path that begins with {' or '.join(COUNTED)}, where "
                    "numbers are counted; test all others"
                )

    def explain(self) -> str:
        return f"{self.of.explain()}; counted, not tested"

    def reads(self) -> tuple[Reading, ...]:
        return self.of.reads()

    def direction(self) -> str:
        return self.of.direction()

    def measure(self, values: Values, level: float = ALPHA) -> Measured:
        found = differences(*self.of.sides(values))
        if not found or not constant(found):
            raise Undecidable(Verdict.INCONCLUSIVE, f"not the same at every seed: {found}")
        effect = Estimate(mean=found[0], half_width=0.0, n=len(found))
        return Measured(effect=effect, p=None, p_equal=None)

    def judge(self, found: Measured, p: float, p_equal: float) -> Decision:
        size = abs(found.effect.mean)
        equal = size <= self.of.margin
        as_expected = self.of.as_expected(found) and size > self.of.least
        holds = equal if self.direction() == "equal" else as_expected and not equal
        reason = f"counted, equal within {self.of.margin:g}" if equal else "counted"
        return Decision(verdict=Verdict.SUPPORTED if holds else Verdict.REFUTED, reason=reason)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NotTestable(Rule):
    """Nothing that is run at this scale can decide it, and why."""

    reason: str

    def explain(self) -> str:
        return "none"

    def reads(self) -> tuple[Reading, ...]:
        return ()

    def measure(self, values: Values, level: float = ALPHA) -> Measured:
        raise Undecidable(Verdict.NOT_TESTABLE, self.reason)

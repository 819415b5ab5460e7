"""Rules that decide a claim from the rows of a study, each one small class.

A rule compares two sides, paired by seed, and says what it expects of their difference (the first minus the second).
It knows numbers by arm, metric and seed only: `research.analysis.verdicts` reads them from rows, corrects p values
over all tests of a study, and asks the rule what follows.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from research.analysis import statistics
from research.analysis.statistics import Estimate

ALPHA = 0.05  # of every test, after Holm's correction
Expect = Literal["less", "greater", "equal"]
Family = Literal["difference", "equivalence"]
Reading = tuple[str, str]  # an arm and a metric: the dotted path of a value in a row
Seeds = Mapping[int, float]  # a value for each seed
Values = Mapping[Reading, Seeds]


class ClaimError(ValueError):
    """A claim, a rule or a document that is declared wrongly. One line."""


class Verdict(enum.StrEnum):
    """The five verdicts, and the three states in which there is none."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    PARTLY = "partly"
    INCONCLUSIVE = "inconclusive"
    NOT_TESTABLE = "not testable at this scale"
    NOT_RUN = "not run yet"
    EXPLORATORY = "exploratory"
    UNDECLARED = "no rule declared yet"


class Undecidable(Exception):
    """All rows are there, and still the rule cannot compare them: the verdict, and why."""

    def __init__(self, verdict: Verdict, reason: str):
        super().__init__(reason)
        self.verdict, self.reason = verdict, reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What a rule found in the rows.

    Attributes:
      effect: first side minus second, in the metric's unit.
      p: two-sided, uncorrected, of no difference; None where nothing was tested.
      p_equal: uncorrected, of a difference as great as the margin; None where nothing was tested.
      detectable: the least effect found with 80 % power; nan where unknown.
      orderly: what the rule asks of the means beside its test holds.
      note: what is printed beside the effect.
    """

    effect: Estimate
    p: float | None
    p_equal: float | None
    detectable: float = math.nan
    orderly: bool = True
    note: str = ""


class Rule:
    """What decides a sub-claim. `families`: those that its p values are corrected in; none where nothing is tested."""

    families: ClassVar[tuple[Family, ...]] = ()

    def explain(self) -> str:
        """The rule in words."""
        raise NotImplementedError

    def reads(self) -> tuple[Reading, ...]:
        """The values that it needs, for every declared seed of their arms."""
        raise NotImplementedError

    def unreached(self) -> tuple[Reading, ...]:
        """Those of which a row's None says that it was not reached, and not that it was not measured."""
        return ()

    def measure(self, values: Values) -> Measured:
        """What it finds in the values. Undecidable: they do not compare."""
        raise NotImplementedError

    def judge(self, found: Measured, p: float, p_equal: float) -> tuple[Verdict, str]:
        """The verdict and the reason for it, from corrected p values."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedTest(Rule):
    """A rule with a paired t test of difference and two one-sided ones of equivalence (TOST).

    Less or greater: supported if the difference is significant, has that sign and is at least `least`; refuted if
    it is significant with the other sign, or lies within `margin` of zero (TOST); else inconclusive. Equal:
    supported if it lies within the margin (TOST); refuted if it is significant and greater; else inconclusive.

    Attributes:
      margin: what counts as equal, in the metric's unit (nats; 2 points of a share are 0.02 too).
      least: the smallest difference that supports.
    """

    families: ClassVar[tuple[Family, ...]] = ("difference", "equivalence")
    expect: str  # narrowed by every subclass
    margin: float = 0.02
    least: float = 0.0

    def direction(self) -> str:
        """What is expected of the first side: less, greater or equal."""
        return self.expect

    def sides(self, values: Values) -> tuple[Seeds, Seeds]:
        """What is compared, by seed. Undecidable: no such two sides."""
        raise NotImplementedError

    def measure(self, values: Values) -> Measured:
        first, second = _paired(*self.sides(values))
        compared = statistics.paired_test(first, second)
        equal = statistics.equivalence(first, second, self.margin)
        return Measured(
            effect=compared.estimate, p=compared.p, p_equal=equal.p, detectable=compared.detectable
        )

    def judge(self, found: Measured, p: float, p_equal: float) -> tuple[Verdict, str]:
        size, differs, equal = abs(found.effect.mean), p < ALPHA, p_equal < ALPHA
        if self.direction() == "equal":
            if equal:
                return Verdict.SUPPORTED, f"equal within {self.margin:g}"
            if differs and size > self.margin:
                return Verdict.REFUTED, f"differs by more than {self.margin:g}"
            return Verdict.INCONCLUSIVE, f"neither equal within {self.margin:g} nor different by more"
        if differs and not self.as_expected(found):
            return Verdict.REFUTED, "the difference has the other sign"
        if differs and size >= self.least and found.orderly:
            return Verdict.SUPPORTED, ""
        if equal:
            return Verdict.REFUTED, f"equal within {self.margin:g}"
        if differs and not found.orderly:
            return Verdict.INCONCLUSIVE, "the ends differ, but a step between them goes the other way"
        return Verdict.INCONCLUSIVE, f"smaller than {self.least:g}" if differs else "not significant"

    def as_expected(self, found: Measured) -> bool:
        """Whether the difference has the expected sign; nothing is as expected where `equal` is."""
        sign = {"less": -1, "greater": 1, "equal": 0}[self.direction()]
        return found.effect.mean * sign > 0

    def sentence(self, first: str, second: str) -> str:
        """The rule in words, from its sides in words."""
        if self.direction() == "equal":
            return f"{first} equals {second} within {self.margin:g}"
        least = f" by at least {self.least:g}" if self.least else ""
        return f"{first} is {self.direction()} than {second}{least}; equal within {self.margin:g} refutes"


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
class Interaction(PairedTest):
    """One difference against another: whether something matters more under one condition than under another."""

    first: Difference
    second: Difference
    expect: Expect

    def explain(self) -> str:
        first, second = (f"({' minus '.join(part.words())})" for part in (self.first, self.second))
        return self.sentence(first, second)

    def reads(self) -> tuple[Reading, ...]:
        return self.first.reads() + self.second.reads()

    def sides(self, values: Values) -> tuple[Seeds, Seeds]:
        return self.first.by_seed(values), self.second.by_seed(values)


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
        return (
            f"{what[0]} of {what[1]}, in this order: {self.expect}; ends equal within {self.margin:g} refute"
        )

    def reads(self) -> tuple[Reading, ...]:
        length = max(len(self.metrics), len(self.arms))
        arms, metrics = (part * length if len(part) == 1 else part for part in (self.arms, self.metrics))
        return tuple(zip(arms, metrics, strict=True))

    def sides(self, values: Values) -> tuple[Seeds, Seeds]:
        first, *_, last = self.reads()
        return values[last], values[first]

    def measure(self, values: Values) -> Measured:
        points = [values[reading] for reading in self.reads()]
        sign = 1 if self.expect == "rising" else -1
        steps = [statistics.paired_difference(b, a).mean for a, b in zip(points, points[1:], strict=False)]
        orderly = all(step * sign > 0 for step in steps)
        shown = ", ".join(f"{step:+.4g}" for step in steps)
        return dataclasses.replace(super().measure(values), orderly=orderly, note=f"steps {shown}")


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
            places, heights = zip(*points, strict=True)
            if not places[0] <= at[seed] <= places[-1]:
                raise Undecidable(
                    Verdict.INCONCLUSIVE,
                    f"not comparable: at seed {seed} {', '.join(arms)} measured {self.at} from {places[0]:.4g} to "
                    f"{places[-1]:.4g}, expected a range that holds {at[seed]:.4g}",
                )
            found[seed] = float(np.interp(at[seed], places, heights))
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankContrast(Difference, PairedTest):
    """A contrast of censored values, such as steps to a threshold, by Mann and Whitney's rank test.

    A value of None was not reached, which is greater than any other. The effect is how often a value of the first
    side is greater than one of the second, minus 1/2; medians and how many seeds reached it are printed beside it.

    Attributes:
      censored: numbers that stand for "not reached" too, such as the ends of a grid of temperatures.
    """

    families: ClassVar[tuple[Family, ...]] = ("difference",)
    expect: Literal["less", "greater"]
    censored: tuple[float, ...] = ()

    def explain(self) -> str:
        first, second = self.words()
        return f"{first} tends to be {self.expect} than {second}, by rank"

    def unreached(self) -> tuple[Reading, ...]:
        return self.reads()

    def measure(self, values: Values) -> Measured:
        first, second = self.sides(values)
        found = statistics.rank_test(first, second)
        medians = [statistics.censored_summary(side.values()).median for side in (first, second)]
        reached = [
            sum(math.isfinite(value) and value not in self.censored for value in side.values())
            for side in (first, second)
        ]
        return Measured(
            effect=Estimate(
                mean=found.superiority - 0.5, half_width=math.nan, n=min(len(first), len(second))
            ),
            p=found.p,
            p_equal=None,
            note=f"P(greater) - 1/2; medians {medians[0]:.4g} and {medians[1]:.4g}; reached by {reached[0]} of "
            f"{len(first)} and {reached[1]} of {len(second)}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted(Rule):
    """A comparison of what is counted and not sampled, such as bytes or FLOPs: the same at every seed, so no test."""

    of: PairedTest

    def explain(self) -> str:
        return f"{self.of.explain()}; counted, not tested"

    def reads(self) -> tuple[Reading, ...]:
        return self.of.reads()

    def measure(self, values: Values) -> Measured:
        first, second = self.of.sides(values)
        found = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
        if not found or not all(math.isclose(value, found[0], rel_tol=1e-9) for value in found):
            raise Undecidable(Verdict.INCONCLUSIVE, f"not the same at every seed: {found}")
        effect = Estimate(mean=found[0], half_width=0.0, n=len(found))
        return Measured(effect=effect, p=None, p_equal=None)

    def judge(self, found: Measured, p: float, p_equal: float) -> tuple[Verdict, str]:
        size = abs(found.effect.mean)
        if self.of.direction() == "equal":
            holds = size <= self.of.margin
        else:
            holds = self.of.as_expected(found) and size >= self.of.least
        return (Verdict.SUPPORTED if holds else Verdict.REFUTED), "counted"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NotTestable(Rule):
    """Nothing that is run at this scale can decide it, and why."""

    reason: str

    def explain(self) -> str:
        return "none"

    def reads(self) -> tuple[Reading, ...]:
        return ()

    def measure(self, values: Values) -> Measured:
        raise Undecidable(Verdict.NOT_TESTABLE, self.reason)


def _paired(first: Seeds, second: Seeds) -> tuple[Seeds, Seeds]:
    """Both sides on the seeds that both declare."""
    common = sorted(first.keys() & second.keys())
    if len(common) < 2:
        raise Undecidable(
            Verdict.INCONCLUSIVE, f"{len(common)} paired seeds, expected 2 or more to test anything"
        )
    return {seed: first[seed] for seed in common}, {seed: second[seed] for seed in common}

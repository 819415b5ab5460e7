"""What a rule is that decides a claim, and the paired test that most rules are; `research.analysis.rules` has them all.

A rule compares two sides, paired by seed, and says what it expects of their difference (the first minus the second).
It knows numbers by arm, metric and seed only: `research.analysis.verdicts` reads them from rows, corrects p values
over all tests of a study, and asks the rule what follows.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from research.analysis import statistics
from research.analysis.statistics import Estimate

ALPHA = 0.05  # of every test, after Holm's correction
LEAST_SEEDS = 5  # of a test
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
    """What a rule found in the rows. The p values are uncorrected, and None where nothing was tested.

    Attributes:
      effect: first side minus second, in the metric's unit.
      p: of the difference that decides: one of zero or, where the rule asks for more, of any that is not enough.
      p_equal: of a difference as great as the margin (TOST).
      p_null: two-sided, of no difference; what a negative control is rejected by.
      detectable: the least effect that the test of difference finds with 80 % power; nan where there is none.
      orderly: what the rule asks of the means beside its test holds.
      note: what is printed beside the effect.
    """

    effect: Estimate
    p: float | None
    p_equal: float | None
    p_null: float | None = None
    detectable: float = math.nan
    orderly: bool = True
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """A verdict, the reason for it, and the family whose p decided: the one to be shown."""

    verdict: Verdict
    reason: str = ""
    by: Family = "difference"


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

    def direction(self) -> str:
        """What is expected of the first side: less, greater or equal; "" where nothing is."""
        return ""

    def measure(self, values: Values, level: float = ALPHA) -> Measured:
        """What it finds in the values; `level`: at which an effect is to be detectable. Undecidable: they do not
        compare.
        """
        raise NotImplementedError

    def judge(self, found: Measured, p: float, p_equal: float) -> Decision:
        """What follows from corrected p values."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedTest(Rule):
    """A rule with a paired t test of difference and two one-sided ones of equivalence (TOST).

    Less or greater: refuted if the difference lies within `margin` of zero (TOST), or is significant with the other
    sign; supported if it is significantly greater than `least`, with the expected sign. Equal: supported if it lies
    within the margin (TOST); refuted if it is significantly greater than that. Else inconclusive.

    Attributes:
      margin: what counts as equal, in the metric's unit (nats; 2 points of a share are 0.02 too).
      least: what a difference that supports exceeds.
    """

    families: ClassVar[tuple[Family, ...]] = ("difference", "equivalence")
    expect: str  # narrowed by every subclass
    margin: float = 0.02
    least: float = 0.0

    def direction(self) -> str:
        return self.expect

    def sides(self, values: Values) -> tuple[Seeds, Seeds]:
        """What is compared, by seed. Undecidable: no such two sides."""
        raise NotImplementedError

    def undecided(self) -> tuple[float, float]:
        """From which difference to which the test of difference decides nothing, if it is the true one."""
        zones = {
            "less": (-self.least, 0.0),
            "greater": (0.0, self.least),
            "equal": (-self.margin, self.margin),
        }
        return zones[self.direction()]

    def measure(self, values: Values, level: float = ALPHA) -> Measured:
        first, second = paired(*self.sides(values))
        compared = statistics.paired_test(first, second)
        beyond = math.nan
        if self.direction() != "equal":
            deviations = statistics.minimum_detectable_effect(compared.n, alpha=level)
            beyond = self.least + compared.deviation * deviations
        return Measured(
            effect=compared.estimate,
            p=_outside(first, second, *self.undecided()),
            p_equal=statistics.equivalence(first, second, self.margin).p,
            p_null=compared.p,
            detectable=beyond,
        )

    def judge(self, found: Measured, p: float, p_equal: float) -> Decision:
        differs, equal = p < ALPHA, p_equal < ALPHA
        within = f"equal within {self.margin:g}"
        if self.direction() == "equal":
            if equal:
                return Decision(verdict=Verdict.SUPPORTED, reason=within, by="equivalence")
            if differs:
                return Decision(verdict=Verdict.REFUTED, reason=f"differs by more than {self.margin:g}")
            unknown = f"neither {within} nor different by more"
            return Decision(verdict=Verdict.INCONCLUSIVE, reason=unknown, by="equivalence")
        if equal:
            return Decision(verdict=Verdict.REFUTED, reason=within, by="equivalence")
        if not differs:
            short = f"not significantly more than {self.least:g}" if self.least else "not significant"
            return Decision(verdict=Verdict.INCONCLUSIVE, reason=short)
        if not self.as_expected(found):
            return Decision(verdict=Verdict.REFUTED, reason="the difference has the other sign")
        if not found.orderly:
            step = "the ends differ, but a step between them goes the other way"
            return Decision(verdict=Verdict.INCONCLUSIVE, reason=step)
        return Decision(verdict=Verdict.SUPPORTED)

    def as_expected(self, found: Measured) -> bool:
        """Whether the difference has the expected sign; nothing is as expected where `equal` is."""
        sign = {"less": -1, "greater": 1, "equal": 0}[self.direction()]
        return found.effect.mean * sign > 0

    def sentence(self, first: str, second: str) -> str:
        """The rule in words, from its sides in words."""
        if self.direction() == "equal":
            return f"{first} equals {second} within {self.margin:g}"
        more = f" by more than {self.least:g}" if self.least else ""
        return f"{first} is {self.direction()} than {second}{more}; equal within {self.margin:g} refutes"


def paired(first: Seeds, second: Seeds) -> tuple[Seeds, Seeds]:
    """Both sides on the seeds that both have. Undecidable: too few, or nothing varies."""
    common = sorted(first.keys() & second.keys())
    require_seeds(len(common))
    if constant(differences(first, second)):
        raise Undecidable(
            Verdict.INCONCLUSIVE,
            "the same difference at every seed, so nothing is tested; use Counted for what is counted",
        )
    return {seed: first[seed] for seed in common}, {seed: second[seed] for seed in common}


def require_seeds(n: int) -> None:
    """Undecidable where a test has fewer seeds than LEAST_SEEDS."""
    if n < LEAST_SEEDS:
        raise Undecidable(Verdict.INCONCLUSIVE, f"{n} seeds, expected at least {LEAST_SEEDS}")


def differences(first: Seeds, second: Seeds) -> list[float]:
    """First minus second, on the seeds that both have."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def constant(values: Sequence[float]) -> bool:
    """Whether they are one number, but for rounding."""
    return all(math.isclose(value, values[0], rel_tol=1e-9, abs_tol=1e-12) for value in values)


def _outside(first: Seeds, second: Seeds, low: float, high: float) -> float:
    """p, two-sided, of a true difference in [low, high]: twice the smaller one of the one-sided t tests at its ends."""
    return min(1.0, 2 * min(_beyond(first, second, low, -1), _beyond(first, second, high, 1)))


def _beyond(first: Seeds, second: Seeds, bound: float, sign: int) -> float:
    """p, one-sided, of a true difference that is not beyond the bound on the side of the sign."""
    found = statistics.paired_test(first, {seed: value + bound for seed, value in second.items()})
    return found.p / 2 if found.estimate.mean * sign > 0 else 1 - found.p / 2

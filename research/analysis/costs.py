"""A rule of two measures at once: what helps, and what it may cost."""

import dataclasses
import math
from typing import ClassVar, cast

from research.analysis import statistics
from research.analysis.decisions import (
    ALPHA,
    ClaimError,
    Decision,
    Family,
    Measured,
    Reading,
    Rule,
    Values,
    Verdict,
    paired,
)
from research.analysis.rules import Contrast, Difference


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtNoCost(Rule):
    """A benefit at no more than a stated cost, as of a remedy on repetition and on quality.

    Supported where both hold: the benefit is significant with its sign, and the cost is significantly below `most`
    (non-inferiority); p is the greater of the two (an intersection-union test: Berger 1982). Refuted where one of them
    significantly does not: a benefit of the other sign, or a cost above `most`; p is the least of those that say so,
    times their number. Else inconclusive. The effect is the benefit's.

    Attributes:
      benefit: a contrast that expects less or greater.
      cost: what is bad where it is positive.
      most: of it, in its unit.
    """

    families: ClassVar[tuple[Family, ...]] = ("difference",)
    benefit: Contrast
    cost: Difference
    most: float

    def __post_init__(self):
        if self.benefit.expect == "equal" or not math.isfinite(self.most):
            raise ClaimError(
                f"AtNoCost: benefit.expect = {self.benefit.expect!r}, most = {self.most}; expected 'less' or "
                "'greater', and a number"
            )

    def explain(self) -> str:
        (first, second), (worse, than) = self.benefit.words(), self.cost.words()
        gain = f"{first} is {self.benefit.expect} than {second}"
        return f"{gain}, and {worse} is less than {self.most:g} above {than}"

    def reads(self) -> tuple[Reading, ...]:
        return tuple(dict.fromkeys(self.benefit.reads() + self.cost.reads()))

    def direction(self) -> str:
        return self.benefit.direction()

    def measure(self, values: Values, level: float = ALPHA) -> Measured:
        gain = self.benefit.measure(values, level)
        first, second = self.cost.sides(values)
        allowed = {seed: value + self.most for seed, value in second.items()}
        beyond = statistics.paired_test(*paired(first, allowed))
        holds = [self.benefit.as_expected(gain), beyond.estimate.mean < 0]
        p = [cast(float, gain.p), beyond.p]
        failing = [each for each, one in zip(p, holds, strict=True) if not one]
        return Measured(
            effect=gain.effect,
            p=min(1.0, len(failing) * min(failing)) if failing else max(p),
            p_equal=None,
            orderly=not failing,
            note=f"cost {beyond.estimate.mean + self.most:+.4g} ± {beyond.estimate.half_width:.2g}",
        )

    def judge(self, found: Measured, p: float, p_equal: float) -> Decision:
        if p >= ALPHA:
            return Decision(verdict=Verdict.INCONCLUSIVE, reason="not significant")
        if found.orderly:
            return Decision(verdict=Verdict.SUPPORTED)
        harms = not self.benefit.as_expected(found)
        reason = "the difference has the other sign" if harms else f"it costs more than {self.most:g}"
        return Decision(verdict=Verdict.REFUTED, reason=reason)

"""Verdicts on sub-claims: the rules of a study applied to its rows.

Every test of a study, negative controls included, is in one family: Holm's correction is over all of them, once for
the tests of difference and once for those of equivalence. A test without rows counts with p = 1, so that no verdict
is lost when they come, and so does one that the rows name and the study no longer declares.
"""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from research.analysis import results, statistics
from research.analysis.claims import (
    SubClaim,
    canonical,
    require_distinct,
    rule_hash,
)
from research.analysis.results import Row
from research.analysis.rules import (
    ALPHA,
    ClaimError,
    Measured,
    PairedTest,
    Reading,
    Rule,
    Undecidable,
    Values,
    Verdict,
)

MOST_TESTS = 6  # of a study, beside its negative controls
Rows = Mapping[str, Sequence[Row]]  # by arm
Outcomes = Mapping[str, Measured | Undecidable]  # by rule, as canonical text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A sub-claim with its verdict.

    Attributes:
      reason: of the verdict, in words; may be empty.
      found: what the rule measured, its p values uncorrected, or None.
      p: of the difference, or of equivalence where the rule expects that; after Holm's correction, or None.
      stamps: what a reader must be told beside the verdict, such as a rejected negative control.
    """

    subclaim: SubClaim
    study: str
    scale: str
    verdict: Verdict
    reason: str = ""
    found: Measured | None = None
    p: float | None = None
    stamps: tuple[str, ...] = ()


def judge(
    subclaims: Sequence[SubClaim],
    rows: Iterable[Row],
    *,
    study: str,
    scale: str,
    seeds: Mapping[str, Sequence[int]],
) -> tuple[Finding, ...]:
    """The sub-claims of a study with their verdicts.

    Args:
      rows: of the study at this scale.
      seeds: those declared, by arm.

    Raises:
      ClaimError: an arm that the study lacks, a metric that is a series, an id twice or more than MOST_TESTS tests.
      ResultError: two rows for one cell.
    """
    _check(subclaims, study, seeds)
    rows = list(rows)
    by_arm = {arm: results.select(rows, [arm], declared) for arm, declared in seeds.items()}
    states = {one.id: _state(one, by_arm, seeds) for one in subclaims}
    ready = [one for one in subclaims if states[one.id] is None]

    measured: dict[str, Measured | Undecidable] = {}
    for subclaim in ready:
        values = _values(subclaim, by_arm)
        for rule in (subclaim.rule, *subclaim.controls):
            measured.setdefault(canonical(rule), _measure(rule, values))
    p, p_equal = _corrected(subclaims, measured, _withdrawn(subclaims, by_arm))

    findings = []
    for subclaim in subclaims:
        found, stamped, key = None, (), canonical(subclaim.rule)
        if (state := states[subclaim.id]) is not None:
            verdict, reason = state
        else:
            verdict, reason, found = _outcome(subclaim, by_arm, measured, p, p_equal)
            stamped = _rejections(subclaim, measured, p) + _sizes(subclaim, by_arm, seeds)
            stamped += _stale(subclaim, by_arm)
        findings.append(
            Finding(
                subclaim=subclaim,
                study=study,
                scale=scale,
                verdict=verdict,
                reason=reason,
                found=found,
                p=None if found is None else (p_equal if of_equality(subclaim.rule) else p).get(key),
                stamps=stamped,
            )
        )
    return tuple(findings)


def _check(subclaims: Sequence[SubClaim], study: str, arms: Collection[str]) -> None:
    where = f"Table.claims in configs/{study}/study.gin"
    require_distinct([one.id for one in subclaims], where)
    for subclaim in subclaims:
        read = [*subclaim.reads(), *(reading for size in subclaim.sizes for reading in size.reads())]
        for arm, _ in read:
            if arm not in arms:
                raise ClaimError(f"{where}: {subclaim.id} reads arm {arm!r}, expected one of {sorted(arms)}")
    tests = {canonical(one.rule): one.id for one in subclaims if one.rule.families}
    if len(tests) > MOST_TESTS:
        raise ClaimError(
            f"{where}: {len(tests)} confirmatory tests ({', '.join(tests.values())}), expected at most {MOST_TESTS}; "
            "drop some, or share a rule"
        )


def _state(subclaim: SubClaim, rows: Rows, seeds: Mapping[str, Sequence[int]]) -> tuple[Verdict, str] | None:
    """Why the sub-claim cannot be judged, or None where it can."""
    involved = [row for arm in dict(subclaim.reads()) for row in rows[arm]]
    if any(row.rules.get(subclaim.id) != rule_hash(subclaim) for row in involved):
        return Verdict.EXPLORATORY, "the rule was changed after the runs"
    missing = _missing(_values(subclaim, rows), rows, seeds)
    return (Verdict.NOT_RUN, "; ".join(missing)) if missing else None


def _missing(values: Values, rows: Rows, seeds: Mapping[str, Sequence[int]]) -> list[str]:
    """What is not there of the declared seeds."""
    lacking = []
    for (arm, metric), by_seed in values.items():
        name = f"{metric} of {arm}" if rows[arm] else arm
        line = f"{name} has {len(by_seed)} of {len(seeds[arm])} seeds"
        if (len(by_seed) < len(seeds[arm]) or not seeds[arm]) and line not in lacking:
            lacking.append(line)
    return lacking


def _values(subclaim: SubClaim, rows: Rows) -> Values:
    """What its verdict needs."""
    return _numbers(subclaim.reads(), rows, subclaim.unreached())


def _numbers(readings: Iterable[Reading], rows: Rows, unreached: Collection[Reading] = ()) -> Values:
    """The numbers at these places by seed, without those that were not measured."""
    found: dict[Reading, dict[int, float]] = {}
    for arm, metric in readings:
        none = math.inf if (arm, metric) in unreached else None
        numbers = {row.seed: _number(row, metric, none) for row in rows[arm]}
        found[arm, metric] = {seed: number for seed, number in numbers.items() if number is not None}
    return found


def _number(row: Row, metric: str, none: float | None) -> float | None:
    """A row's number, or None where it has none; `none`: what its None stands for."""
    try:
        value = row.value(metric)
    except KeyError:
        return None
    if isinstance(value, Mapping):
        raise ClaimError(f"{metric} of {row.name}: a series, expected a number; add one of {sorted(value)}")
    if value is None:
        return none
    return float(value) if math.isfinite(value) else None


def _measure(rule: Rule, values: Values) -> Measured | Undecidable:
    try:
        return rule.measure(values)
    except Undecidable as found:
        return found


def _outcome(
    subclaim: SubClaim, rows: Rows, measured: Outcomes, p: Mapping[str, float], p_equal: Mapping[str, float]
) -> tuple[Verdict, str, Measured | None]:
    """The verdict on a sub-claim whose rows are there, the reason, and the numbers where they may be shown."""
    found, key = measured[canonical(subclaim.rule)], canonical(subclaim.rule)
    if failed := _failed_gates(subclaim, rows):
        return Verdict.INCONCLUSIVE, failed, None
    if isinstance(found, Undecidable):
        return found.verdict, found.reason, None
    return *subclaim.rule.judge(found, p.get(key, 1.0), p_equal.get(key, 1.0)), found


def of_equality(rule: Rule) -> bool:
    """Whether the test that the rule rests on is that of equivalence."""
    return isinstance(rule, PairedTest) and rule.direction() == "equal"


def _withdrawn(subclaims: Sequence[SubClaim], rows: Rows) -> set[str]:
    """Sub-claims that were declared when rows ran and are not any more."""
    return {name for some in rows.values() for row in some for name in row.rules} - {
        one.id for one in subclaims
    }


def _corrected(
    subclaims: Sequence[SubClaim], measured: Outcomes, withdrawn: Collection[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Corrected p values of difference and of equivalence, by rule."""
    rules = {canonical(one.rule) for one in subclaims if one.rule.families}
    controls = {canonical(control) for one in subclaims for control in one.controls}

    def p_values(name: str, keys: Collection[str]) -> dict[str, float]:
        family = dict.fromkeys(sorted({*keys, *withdrawn}), math.nan)  # which counts as p = 1
        tested = {key: getattr(found, name) for key, found in measured.items() if isinstance(found, Measured)}
        return statistics.holm(
            family | {key: p for key, p in tested.items() if key in family and p is not None}
        )

    return p_values("p", rules | controls), p_values("p_equal", rules)


def _rejections(subclaim: SubClaim, measured: Outcomes, p: Mapping[str, float]) -> tuple[str, ...]:
    """What is wrong with the negative controls."""
    stamps = []
    for control in subclaim.controls:
        found = measured[canonical(control)]
        corrected = p[canonical(control)]
        if isinstance(found, Undecidable):
            stamps.append(f"negative control not compared: {control.explain()}: {found.reason}")
        elif corrected < ALPHA and not control.as_expected(found):
            effect = f"{found.effect.mean:+.4g}, p = {p_text(corrected)}"
            stamps.append(f"negative control rejected: {control.explain()}: {effect}")
    return tuple(stamps)


def _sizes(subclaim: SubClaim, rows: Rows, seeds: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Whether the difference has one sign at all sizes."""
    if not subclaim.sizes:
        return ()
    readings = [reading for size in subclaim.sizes for reading in size.reads()]
    values = _numbers(readings, rows)
    if missing := _missing(values, rows, seeds):
        return (f"trend with size {Verdict.NOT_RUN}: {'; '.join(missing)}",)
    means = [statistics.paired_difference(*size.sides(values)).mean for size in subclaim.sizes]
    shown = ", ".join(f"{mean:+.4g}" for mean in means)
    if all(mean > 0 for mean in means) or all(mean < 0 for mean in means):
        return (f"one sign at {len(means)} sizes: {shown}",)
    return (f"small scale only, the sign changes with size: {shown}",)


def _stale(subclaim: SubClaim, rows: Rows) -> tuple[str, ...]:
    """Whether code has changed what some of the rows measured."""
    stale = [row.name for arm in dict(subclaim.reads()) for row in rows[arm] if row.code.get("stale")]
    return (f"{len(stale)} stale rows, such as {stale[0]}: run them again",) if stale else ()


def _failed_gates(subclaim: SubClaim, rows: Rows) -> str:
    values = _values(subclaim, rows)
    failures = [gate.failure(values[gate.arm, gate.metric].values()) for gate in subclaim.gates]
    return "; ".join(failure for failure in failures if failure is not None)


def stamps(findings: Iterable[Finding]) -> tuple[str, ...]:
    """What has to stand below a table of these findings' study, each line once: rejected negative controls."""
    found = (
        stamp for finding in findings for stamp in finding.stamps if stamp.startswith("negative control")
    )
    return tuple(dict.fromkeys(found))


def p_text(p: float) -> str:
    """A p value as it is printed."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"

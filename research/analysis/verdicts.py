"""Verdicts on sub-claims: the rules of a study applied to its rows.

The tests of a study are two families, each corrected by Holm's method: the tests of difference, negative controls
included, and those of equivalence, which controls are not in. A test without a result counts with p = 1, so that no
verdict is lost when it comes, and so does one that rows record and the study no longer declares.
"""

import dataclasses
import enum
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from research.analysis import results, statistics, tables
from research.analysis.claims import (
    SubClaim,
    canonical,
    declared,
    key_of,
    key_of_control,
    recorded_tests,
    require_distinct,
    seeds_of,
)
from research.analysis.decisions import (
    ALPHA,
    LEAST_SEEDS,
    ClaimError,
    Decision,
    Family,
    Measured,
    PairedTest,
    Reading,
    Rule,
    Undecidable,
    Values,
    Verdict,
)
from research.analysis.results import Row

MOST_TESTS = 14  # of a study, beside its negative controls
CAVEAT = ", but a negative control was rejected"
Rows = Mapping[str, Sequence[Row]]  # by arm
Outcome = Measured | Undecidable
P = Mapping[Family, Mapping[str, float]]  # corrected p values, by family and test


class Kind(enum.Enum):
    """What a stamp is about."""

    REJECTED = "negative control rejected"
    NOT_COMPARED = "negative control not compared"
    SIZES = "sizes"
    DIRTY = "rows of uncommitted code"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stamp:
    """What a reader must be told beside a verdict."""

    kind: Kind
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A sub-claim with its verdict.

    Attributes:
      reason: of the verdict, in words; may be empty.
      found: what the rule measured, its p values uncorrected, or None.
      p: that which decided, after Holm's correction, or None; `by`: the family that it is of.
      stamps: what a reader must be told beside the verdict.
    """

    subclaim: SubClaim
    study: str
    scale: str
    verdict: Verdict
    reason: str = ""
    found: Measured | None = None
    p: float | None = None
    by: Family = "difference"
    stamps: tuple[Stamp, ...] = ()

    @property
    def rejected(self) -> bool:
        """Whether a negative control was rejected, so that the verdict stands on doubtful ground."""
        return any(stamp.kind is Kind.REJECTED for stamp in self.stamps)

    @property
    def said(self) -> str:
        """The verdict as it has to be stated."""
        return f"{self.verdict}{CAVEAT if self.rejected else ''}"


def judge(
    subclaims: Sequence[SubClaim],
    rows: Iterable[Row],
    *,
    study: str,
    scale: str,
    arms: Collection[str],
    seeds: Sequence[int],
    fewer: Mapping[str, Sequence[int]] | None = None,
    varied: bool = False,
) -> tuple[Finding, ...]:
    """The sub-claims of a study with their verdicts.

    Args:
      rows: of the study at this scale, whatever arm and seed they are of.
      arms, seeds: those that the study declares at this scale.
      fewer: by arm, the seeds of those that run not all of them.
      varied: whether arms are trained on different data; see `tables.check_comparable`.

    Raises:
      ClaimError: an arm that the study lacks, a metric that is a series, an id twice or more than MOST_TESTS tests.
      ResultError: two rows for one cell.
    """
    _check(subclaims, study, arms)
    stored = list(rows)
    by_arm = {arm: results.select(stored, [arm], seeds) for arm in arms}
    own = dict.fromkeys(arms, seeds) | dict(fewer or {})
    run = {one.id: seeds_of(one, seeds, own) for one in subclaims}
    present = declared(subclaims, seeds, own)
    families = _families([*present.values(), *(value for row in stored for value in row.rules.values())])
    level = ALPHA / max(1, len(families["difference"]))

    blocked = {
        one.id: _blocked(one, present[one.id], stored, by_arm, run[one.id], own)
        or _differing([row for arm in dict(one.deciding()) for row in by_arm[arm]], varied)
        for one in subclaims
    }
    rules: dict[str, Outcome] = {
        key_of(one.rule): _measured(one.rule, by_arm, level) for one in subclaims if blocked[one.id] is None
    }
    controls: dict[str, Outcome] = {
        key_of_control(control): _control(control, by_arm, level, varied)
        for one in subclaims
        for control in one.controls
        if not _missing(_values(control, by_arm), by_arm, run[one.id])
    }
    p = _corrected(families, rules, controls)
    return tuple(
        _finding(
            Finding(subclaim=one, study=study, scale=scale, verdict=Verdict.NOT_RUN),
            blocked[one.id] or rules[key_of(one.rule)],
            p,
            by_arm,
            (*_rejections(one, controls, p), *_dirty(one, by_arm)),
            run[one.id],
            varied,
        )
        for one in subclaims
    )


def _finding(
    blank: Finding,
    outcome: Outcome,
    p: P,
    rows: Rows,
    stamps: tuple[Stamp, ...],
    seeds: Sequence[int],
    varied: bool,
) -> Finding:
    """The finding with the verdict that follows from what its rule measured, or why that says nothing."""
    subclaim, key = blank.subclaim, key_of(blank.subclaim.rule)
    if isinstance(outcome, Undecidable):
        return dataclasses.replace(blank, verdict=outcome.verdict, reason=outcome.reason, stamps=stamps)
    if failed := _failed_gates(subclaim, rows):
        return dataclasses.replace(blank, verdict=Verdict.INCONCLUSIVE, reason=failed, stamps=stamps)
    corrected = {family: found[key] for family, found in p.items() if key in found}
    decision: Decision = subclaim.rule.judge(
        outcome, corrected.get("difference", 1.0), corrected.get("equivalence", 1.0)
    )
    return dataclasses.replace(
        blank,
        verdict=decision.verdict,
        reason=decision.reason,
        found=outcome,
        p=corrected.get(decision.by),
        by=decision.by,
        stamps=(*stamps, *_sizes(subclaim, outcome.effect.mean, rows, seeds, varied)),
    )


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


def _families(records: Iterable[str]) -> dict[Family, set[str]]:
    """The tests of each family that any of these values of `declared` names."""
    found: dict[Family, set[str]] = {"difference": set(), "equivalence": set()}
    for tests in map(recorded_tests, set(records)):
        for family in found:
            found[family] |= tests.get(family, frozenset())
    return found


def _blocked(
    subclaim: SubClaim,
    present: str,
    stored: Sequence[Row],
    rows: Rows,
    seeds: Sequence[int],
    own: Mapping[str, Sequence[int]],
) -> Undecidable | None:
    """Why the sub-claim cannot be judged by its rows, or None where it can; `own`: the seeds of each arm."""
    arms = dict(subclaim.deciding())
    involved = [row for arm in arms for row in rows[arm]]
    if any(row.rules.get(subclaim.id) != present for row in involved):
        return Undecidable(Verdict.EXPLORATORY, "the rule or the declared seeds were changed after the runs")
    more = {
        row.seed
        for row in stored
        if row.arm in arms and subclaim.id in row.rules and row.seed not in own[row.arm]
    }
    if more:
        were, are = ("were", "are") if len(more) > 1 else ("was", "is")
        return Undecidable(Verdict.EXPLORATORY, f"{_seeds(more)} {were} run and {are} not declared")
    if stale := [row.name for row in involved if row.code.get("stale")]:
        return Undecidable(
            Verdict.EXPLORATORY,
            f"stale: the code or the arms have come to be others than those of {len(stale)} rows, such as {stale[0]}",
        )
    values = dict(_numbers([(gate.arm, gate.metric) for gate in subclaim.gates], rows))
    for rule in (subclaim.rule, *subclaim.controls):
        values |= _values(rule, rows)
    if missing := _missing(values, rows, seeds):
        return Undecidable(Verdict.NOT_RUN, "; ".join(missing))
    return None


def _differing(rows: Sequence[Row], varied: bool) -> Undecidable | None:
    """Why numbers of these rows do not compare, or None where they do."""
    try:
        tables.check_comparable(rows, varied=varied)
    except tables.TableError as error:
        return Undecidable(Verdict.INCONCLUSIVE, f"rows do not compare: {error}")
    return None


def _missing(values: Values, rows: Rows, seeds: Sequence[int]) -> list[str]:
    """What is not there of the declared seeds."""
    lacking: list[str] = []
    for (arm, metric), by_seed in values.items():
        name = f"{metric} of {arm}" if rows[arm] else arm
        absent = [seed for seed in seeds if seed not in by_seed]
        line = f"{name} lacks {_seeds(absent)}" if seeds else "no seeds are declared at this scale"
        if (absent or not seeds) and line not in lacking:
            lacking.append(line)
    return lacking


def _seeds(seeds: Collection[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}"


def _values(rule: Rule, rows: Rows) -> Values:
    """What the rule needs."""
    return _numbers(rule.reads(), rows, rule.unreached())


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


def _measured(rule: Rule, rows: Rows, level: float) -> Outcome:
    try:
        return rule.measure(_values(rule, rows), level)
    except Undecidable as found:
        return found


def _control(control: PairedTest, rows: Rows, level: float, varied: bool) -> Outcome:
    own = [row for arm in dict(control.reads()) for row in rows[arm]]
    if (differing := _differing(own, varied)) is not None:
        return differing
    found = _measured(control, rows, level)
    return _none(control, rows) or found if isinstance(found, Undecidable) else found


def _none(control: PairedTest, rows: Rows) -> Measured | None:
    """What a control of equality has measured where both sides are the same number at every seed, as at a ceiling:
    there is nothing to test, and it is as expected. None: they are not.
    """
    if control.direction() != "equal":
        return None
    try:
        first, second = control.sides(_values(control, rows))
    except Undecidable:
        return None
    if first != second or len(first) < LEAST_SEEDS:
        return None
    return Measured(effect=statistics.Estimate(mean=0.0, half_width=0.0, n=len(first)), p=None, p_equal=None)


def _corrected(
    families: Mapping[Family, Collection[str]], rules: Mapping[str, Outcome], controls: Mapping[str, Outcome]
) -> P:
    """Corrected p values by family and test; 1 where a test has no result."""
    raw: dict[Family, dict[str, float]] = {
        family: dict.fromkeys(sorted(names), math.nan) for family, names in families.items()
    }
    for key, found in rules.items():
        if isinstance(found, Measured) and found.p is not None:
            raw["difference"][key] = found.p
        if isinstance(found, Measured) and found.p_equal is not None:
            raw["equivalence"][key] = found.p_equal
    for key, found in controls.items():
        if isinstance(found, Measured) and found.p_null is not None:
            raw["difference"][key] = found.p_null
    return {family: statistics.holm(values) for family, values in raw.items()}


def _rejections(subclaim: SubClaim, controls: Mapping[str, Outcome], p: P) -> tuple[Stamp, ...]:
    """What is wrong with the negative controls that were run, whatever became of the rule."""
    stamps = []
    for control in subclaim.controls:
        key = key_of_control(control)
        found = controls.get(key)
        if isinstance(found, Undecidable):
            text = f"{Kind.NOT_COMPARED.value}: {control.explain()}: {found.reason}"
            stamps.append(Stamp(kind=Kind.NOT_COMPARED, text=text))
        elif found is not None and p["difference"][key] < ALPHA and not control.as_expected(found):
            effect = f"{found.effect.mean:+.4g}, p = {statistics.p_text(p['difference'][key])}"
            text = f"{Kind.REJECTED.value}: {control.explain()}: {effect}"
            stamps.append(Stamp(kind=Kind.REJECTED, text=text))
    return tuple(stamps)


def _sizes(
    subclaim: SubClaim, effect: float, rows: Rows, seeds: Sequence[int], varied: bool
) -> tuple[Stamp, ...]:
    """Whether the difference has the sign of the effect at all sizes."""
    if not subclaim.sizes:
        return ()
    readings = [reading for size in subclaim.sizes for reading in size.reads()]
    values = _numbers(readings, rows)
    if missing := _missing(values, rows, seeds):
        text = f"trend with size is missing: {'; '.join(missing)}"
    elif differing := _differing([row for arm in dict(readings) for row in rows[arm]], varied):
        text = f"trend with size unknown: {differing.reason}"
    else:
        means = [statistics.paired_difference(*size.sides(values)).mean for size in subclaim.sizes]
        same = all(mean * effect > 0 for mean in means)
        shown = ", ".join(f"{mean:+.4g}" for mean in means)
        text = f"{'the same sign' if same else 'small scale only, not the same sign'} at {len(means)} sizes: {shown}"
    return (Stamp(kind=Kind.SIZES, text=text),)


def _dirty(subclaim: SubClaim, rows: Rows) -> tuple[Stamp, ...]:
    """Whether some of the rows come from code that no commit has."""
    dirty = [row.name for arm in dict(subclaim.reads()) for row in rows[arm] if row.dirty]
    text = f"{Kind.DIRTY.value}: {len(dirty)}, such as {dirty[0]}" if dirty else ""
    return (Stamp(kind=Kind.DIRTY, text=text),) if dirty else ()


def _failed_gates(subclaim: SubClaim, rows: Rows) -> str:
    values = _numbers([(gate.arm, gate.metric) for gate in subclaim.gates], rows)
    failures = [gate.failure(values[gate.arm, gate.metric].values()) for gate in subclaim.gates]
    return "; ".join(failure for failure in failures if failure is not None)


def stamps(findings: Iterable[Finding]) -> tuple[str, ...]:
    """What has to stand below a table of these findings' study, each line once: rejected negative controls and those
    that did not compare.
    """
    of_controls = (Kind.REJECTED, Kind.NOT_COMPARED)
    found = (stamp.text for one in findings for stamp in one.stamps if stamp.kind in of_controls)
    return tuple(dict.fromkeys(found))

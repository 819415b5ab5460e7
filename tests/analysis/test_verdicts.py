"""Verdicts on synthetic rows: every way in which a sub-claim can end."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from research.analysis import verdicts
from research.analysis.claims import Gate, SubClaim, rule_hash
from research.analysis.results import ResultError, Row
from research.analysis.rules import (
    ClaimError,
    Contrast,
    Counted,
    Difference,
    Level,
    NotTestable,
    RankContrast,
    Verdict,
)
from research.analysis.verdicts import judge

SEEDS = range(5)
JITTER = (0.004, -0.004, 0.002, -0.002, 0.0)
WIDE = (0.4, -0.4, 0.3, -0.2, -0.1)
FLAT = (0.0,) * 5


def row(arm, seed, metrics, rules, key="0" * 16):
    """A row that says this; its other fields are as empty as their types allow."""
    empty: dict[Any, Any] = {str: "", int: 0, bool: False}
    fields = {field.name: empty.get(field.type, {}) for field in dataclasses.fields(Row)}
    given = {"arm": arm, "seed": seed, "key": key, "metrics": metrics, "rules": rules}
    return Row(**{**fields, **given})


def rows_of(subclaims, means, jitters: Mapping[str, Any] | None = None, **metrics):
    """Five rows an arm with a loss around its mean, as they were when these sub-claims were declared."""
    rules = {one.id: rule_hash(one) for one in subclaims}
    jitters = jitters or {}
    return [
        row(arm, seed, {"loss": mean + seed + jitters.get(arm, FLAT)[seed], **metrics}, rules)
        for arm, mean in means.items()
        for seed in SEEDS
    ]


def contrast(arm, baseline="base", expect="less", **fields):
    return Contrast(metric="metrics.loss", arm=arm, baseline=baseline, expect=expect, **fields)


def subclaim(name="C1.loss", rule=None, **fields):
    return SubClaim(id=name, text="what is said", rule=rule or contrast("a"), **fields)


MEANS = {"base": 2.0, "base_again": 2.0, "a": 1.8, "b": 2.2, "c": 2.05}
JITTERS = {"base_again": JITTER, "a": JITTER, "b": JITTER, "c": WIDE}


def judged(*subclaims, rows=None, declared=SEEDS, arms=tuple(MEANS)):
    rows = rows_of(subclaims, MEANS, JITTERS) if rows is None else rows
    return judge(subclaims, rows, study="study", scale="small", seeds=dict.fromkeys(arms, declared))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (contrast("a"), Verdict.SUPPORTED),
        (contrast("b"), Verdict.REFUTED),
        (contrast("c"), Verdict.INCONCLUSIVE),
        (NotTestable(reason="too large"), Verdict.NOT_TESTABLE),
        (Counted(of=Level(metric="seed", arm="a", value=0, expect="equal")), Verdict.INCONCLUSIVE),
    ],
)
def test_a_verdict_from_rows(rule, expected):
    (finding,) = judged(subclaim(rule=rule))
    assert finding.verdict == expected


def test_a_finding_carries_effect_interval_p_n_and_what_was_detectable():
    (finding,) = judged(subclaim())
    assert finding.found is not None
    assert finding.found.effect.mean == pytest.approx(-0.2)
    assert 0.0 < finding.found.effect.half_width < 0.01
    assert finding.found.effect.n == 5
    assert finding.p == finding.found.p  # one test, nothing to correct
    assert finding.p is not None
    assert finding.p < 0.001
    assert finding.found.detectable > 0
    assert (finding.study, finding.scale, finding.stamps) == ("study", "small", ())


def test_seeds_and_arms_that_are_not_there_are_named_and_not_averaged_over():
    claim = subclaim()
    rows = rows_of([claim], MEANS, JITTERS)
    (finding,) = judged(claim, rows=[one for one in rows if (one.arm, one.seed) != ("a", 3)])
    assert (finding.verdict, finding.reason) == (Verdict.NOT_RUN, "metrics.loss of a has 4 of 5 seeds")
    (finding,) = judged(claim, rows=[one for one in rows if one.arm != "base"])
    assert (finding.verdict, finding.reason) == (Verdict.NOT_RUN, "base has 0 of 5 seeds")
    assert finding.found is None


def test_a_metric_that_was_not_measured_is_missing():
    claim = subclaim()
    rows = rows_of([claim], MEANS, JITTERS)
    rows[0] = dataclasses.replace(rows[0], metrics={"loss": None})
    rows[1] = dataclasses.replace(rows[1], metrics={})
    (finding,) = judged(claim, rows=rows)
    assert (finding.verdict, finding.reason) == (Verdict.NOT_RUN, "metrics.loss of base has 3 of 5 seeds")


def test_what_was_not_reached_is_a_rank_and_not_missing():
    rule = RankContrast(metric="metrics.steps", arm="a", baseline="base", expect="less")
    rules = {"C1.loss": rule_hash(subclaim(rule=rule))}
    rows = [
        row(arm, seed, {"steps": steps}, rules) for arm, steps in (("a", 5), ("base", None)) for seed in SEEDS
    ]
    (finding,) = judged(subclaim(rule=rule), rows=rows)
    assert finding.verdict == Verdict.SUPPORTED
    assert finding.found is not None
    assert "medians 5 and inf; reached by 5 of 5 and 0 of 5" in finding.found.note
    (finding,) = judged(subclaim(rule=rule), rows=[row("a", seed, {}, rules) for seed in SEEDS] + rows[5:])
    assert finding.verdict == Verdict.NOT_RUN


def test_a_study_without_seeds_at_this_scale_is_not_run():
    (finding,) = judged(subclaim(), rows=[], declared=())
    assert (finding.verdict, finding.found) == (Verdict.NOT_RUN, None)


@pytest.mark.parametrize("part", ["a", "base", "gate", "control"])
@pytest.mark.parametrize("forgotten", [True, False])
def test_a_rule_that_was_changed_after_an_involved_arm_ran_gives_no_verdict(part, forgotten):
    claim = subclaim(
        gates=(Gate(metric="metrics.loss", arm="b", least=0.0),),
        controls=(contrast("base_again", expect="equal"),),
    )
    arm = {"gate": "b", "control": "base_again"}.get(part, part)
    rules = {} if forgotten else {claim.id: rule_hash(subclaim(rule=contrast("a", margin=0.5)))}
    rows = [
        dataclasses.replace(one, rules=rules) if (one.arm, one.seed) == (arm, 4) else one
        for one in rows_of([claim], MEANS, JITTERS)
    ]
    (finding,) = judged(claim, rows=rows)
    assert (finding.verdict, finding.found, finding.p) == (Verdict.EXPLORATORY, None, None)
    assert finding.reason == "the rule was changed after the runs"


def test_rows_of_other_arms_may_be_older_than_the_rule():
    claim = subclaim()
    rows = [
        dataclasses.replace(one, rules={}) if one.arm == "c" else one
        for one in rows_of([claim], MEANS, JITTERS)
    ]
    assert judged(claim, rows=rows)[0].verdict == Verdict.SUPPORTED


def test_a_failed_gate_withholds_verdict_and_effect():
    claim = subclaim(gates=(Gate(metric="metrics.induction", arm="a", least=0.8),))
    passed = rows_of([claim], MEANS, JITTERS, induction=0.9)
    assert judged(claim, rows=passed)[0].verdict == Verdict.SUPPORTED
    (finding,) = judged(claim, rows=rows_of([claim], MEANS, JITTERS, induction=0.3))
    assert (finding.verdict, finding.found, finding.p) == (Verdict.INCONCLUSIVE, None, None)
    assert (
        finding.reason
        == "gate failed: expected metrics.induction of a at least 0.8, found 0.3 at the median seed"
    )


def uncorrected(*subclaims):
    return [finding.found.p for finding in judged(*subclaims)]


def test_holm_is_over_all_tests_of_the_study():
    # Three tests, one of them far from significant: the smallest p counts three times, the next twice.
    claims = [
        subclaim("C1.a", contrast("a")),
        subclaim("C1.b", contrast("b")),
        subclaim("C1.c", contrast("c")),
    ]
    raw = uncorrected(*claims)
    order = sorted(range(3), key=raw.__getitem__)
    expected = [0.0] * 3
    for rank, index in enumerate(order):
        expected[index] = min(1.0, max([raw[i] * (3 - r) for r, i in enumerate(order[: rank + 1])]))
    assert [finding.p for finding in judged(*claims)] == pytest.approx(expected)


def test_negative_controls_are_tests_of_the_family_each_once():
    control = contrast("base_again", expect="equal")
    (alone,) = judged(subclaim())
    (controlled,) = judged(subclaim(controls=(control,)))
    both = judged(subclaim("C1.a", controls=(control,)), subclaim("C1.b", contrast("c"), controls=(control,)))
    assert controlled.p == pytest.approx(2 * alone.p)
    assert both[0].p == pytest.approx(3 * alone.p)
    assert controlled.stamps == ()


def test_one_rule_of_two_subclaims_is_one_test():
    (alone,) = judged(subclaim())
    assert [finding.p for finding in judged(subclaim("C1.a"), subclaim("C2.a"))] == [alone.p] * 2


def test_a_test_that_is_not_run_yet_counts_as_if_it_had_found_nothing():
    claims = subclaim("C1.a"), subclaim("C1.b", contrast("b"))
    rows = [one for one in rows_of(claims, MEANS, JITTERS) if one.arm != "b"]
    (alone,) = judged(claims[0])
    before = judged(*claims, rows=rows)
    assert [finding.verdict for finding in before] == [Verdict.SUPPORTED, Verdict.NOT_RUN]
    assert before[0].p == pytest.approx(2 * alone.p)
    assert judged(*claims)[0].p <= before[0].p  # and no verdict is lost when it comes


def test_a_subclaim_that_is_withdrawn_after_the_runs_stays_in_the_family():
    claims = subclaim("C1.a"), subclaim("C1.b", contrast("b"))
    (alone,) = judged(claims[0])
    (kept,) = judged(claims[0], rows=rows_of(claims, MEANS, JITTERS))
    assert kept.p == pytest.approx(2 * alone.p)


def test_an_equality_shows_the_p_of_equivalence():
    (finding,) = judged(subclaim(rule=contrast("base_again", expect="equal")))
    assert finding.verdict == Verdict.SUPPORTED
    assert finding.found is not None
    assert finding.p == finding.found.p_equal


def test_a_rejected_negative_control_stamps_its_subclaims_and_the_table():
    rejected = subclaim("C1.a", controls=(contrast("b", expect="equal"),))
    findings = judged(rejected, subclaim("C1.b", contrast("c")))
    assert findings[0].verdict == Verdict.SUPPORTED
    (stamp,) = findings[0].stamps
    assert stamp.startswith("negative control rejected: metrics.loss of b equals metrics.loss of base")
    assert findings[1].stamps == ()
    assert verdicts.stamps(findings) == (stamp,)


def test_a_control_may_move_to_the_side_that_it_expects():
    # Tuning on more of the same must not forget; that it learns more is no rejection.
    assert judged(subclaim(controls=(contrast("a", expect="less"),)))[0].stamps == ()
    (stamp,) = judged(subclaim(controls=(contrast("a", expect="greater"),)))[0].stamps
    assert stamp.startswith("negative control rejected")


@pytest.mark.parametrize(
    ("sizes", "stamp"),
    [
        ((), ()),
        (("a", "c"), ("small scale only, the sign changes with size: -0.2, +0.05",)),
        (("b", "c"), ("one sign at 2 sizes: +0.2, +0.05",)),
        (("a", "later"), ("trend with size not run yet: later has 0 of 5 seeds",)),
    ],
)
def test_a_verdict_says_whether_its_sign_holds_at_other_sizes(sizes, stamp):
    differences = tuple(Difference(metric="metrics.loss", arm=arm, baseline="base") for arm in sizes)
    (finding,) = judged(subclaim(sizes=differences), arms=(*MEANS, "later"))
    assert (finding.verdict, finding.stamps) == (Verdict.SUPPORTED, stamp)


def test_a_verdict_says_which_rows_are_stale():
    claim = subclaim()
    rows = [
        dataclasses.replace(one, code={"stale": one.seed == 2 and one.arm in ("a", "c")})
        for one in rows_of([claim], MEANS, JITTERS)
    ]
    (finding,) = judged(claim, rows=rows)
    assert finding.stamps == ("1 stale rows, such as a-s2-000000000000.json: run them again",)


def test_at_most_six_tests_beside_controls_and_counts():
    seven = [contrast(arm, margin=margin) for arm, margin in itertools.product("ab", (0.1, 0.2, 0.3))]
    seven.append(contrast("c"))
    claims = [subclaim(f"C1.x{index}", rule) for index, rule in enumerate(seven)]
    with pytest.raises(ClaimError, match=r"7 confirmatory tests \(C1.x0, .*C1.x6\), expected at most 6"):
        judged(*claims)
    control = contrast("base_again", expect="equal")
    counted = subclaim("C1.counted", Counted(of=Level(metric="seed", arm="a", value=0, expect="equal")))
    assert len(judged(*claims[:5], subclaim("C1.x6", seven[6], controls=(control,)), counted)) == 7


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ([subclaim(), subclaim()], "configs/study/study.gin: 'C1.loss' is declared twice"),
        ([subclaim(rule=contrast("z"))], "C1.loss reads arm 'z', expected one of"),
        (
            [subclaim(sizes=(Difference(metric="m", arm="a", baseline="z"),))],
            "C1.loss reads arm 'z', expected one of",
        ),
    ],
)
def test_what_is_declared_wrongly_is_said_in_one_line(claims, message):
    with pytest.raises(ClaimError, match=message) as caught:
        judged(*claims)
    assert "\n" not in str(caught.value)


def test_a_series_is_no_number_and_two_rows_are_no_cell():
    claim = subclaim()
    rows = rows_of([claim], MEANS, JITTERS)
    series = dataclasses.replace(rows[0], metrics={"loss": {"64": 2.0, "128": 3.0}})
    with pytest.raises(ClaimError, match=r"a series, expected a number; add one of \['128', '64'\]"):
        judged(claim, rows=[series, *rows[1:]])
    with pytest.raises(ResultError, match="expected one row"):
        judged(claim, rows=[*rows, dataclasses.replace(rows[0], key="1" * 16)])

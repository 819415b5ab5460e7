"""Verdicts on synthetic rows: every way in which a sub-claim can end."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import scipy.stats

from research.analysis import statistics, verdicts
from research.analysis.claims import Gate, SubClaim, declared
from research.analysis.decisions import ClaimError, Verdict
from research.analysis.results import ResultError, Row
from research.analysis.rules import Contrast, Counted, Difference, Level, NotTestable, RankContrast
from research.analysis.verdicts import Kind, Stamp, judge

SEEDS = range(5)
JITTER = (0.004, -0.004, 0.002, -0.002, 0.0)
WIDE = (0.4, -0.4, 0.3, -0.2, -0.1)
FLAT = (0.0,) * 5


def row(arm, seed, metrics, rules, **changes):
    """A row that says this; its other fields are as empty as their types allow."""
    empty: dict[Any, Any] = {str: "", int: 0, bool: False}
    fields = {field.name: empty.get(field.type, {}) for field in dataclasses.fields(Row)}
    given = {"study": "study", "scale": "small", "arm": arm, "seed": seed, "key": "0" * 16, "design": arm}
    comparable = {
        "environment": {"attention": "dense", "matmul_precision": "float32"},
        "data": {"fingerprint": "data", "order": f"order {seed}"},
    }
    return Row(**{**fields, **given, **comparable, "metrics": metrics, "rules": rules, **changes})


def rows_of(subclaims, means, jitters: Mapping[str, Any] | None = None, seeds=SEEDS, **metrics):
    """Five rows an arm with a loss around its mean, as they were when these sub-claims were declared."""
    rules = declared(subclaims, seeds)
    jitters = jitters or {}
    return [
        row(arm, seed, {"loss": mean + seed + jitters.get(arm, FLAT)[seed], **metrics}, rules)
        for arm, mean in means.items()
        for seed in SEEDS
    ]


def changed(rows, where, **changes):
    """The rows, those of `where` (arm -> seeds) changed."""
    return [
        dataclasses.replace(one, **changes) if one.seed in where.get(one.arm, ()) else one for one in rows
    ]


def contrast(arm, baseline="base", expect="less", **fields):
    return Contrast(metric="metrics.loss", arm=arm, baseline=baseline, expect=expect, **fields)


def subclaim(name="C1.loss", rule=None, **fields):
    return SubClaim(id=name, text="what is said", rule=rule or contrast("a"), **fields)


MEANS = {"base": 2.0, "base_again": 2.0, "a": 1.8, "b": 2.2, "c": 2.05}
JITTERS = {"base_again": JITTER, "a": JITTER, "b": JITTER, "c": WIDE}


def judged(*subclaims, rows=None, seeds=SEEDS, arms=tuple(MEANS), **options):
    rows = rows_of(subclaims, MEANS, JITTERS) if rows is None else rows
    return judge(subclaims, rows, study="study", scale="small", arms=arms, seeds=seeds, **options)


def texts(finding):
    return tuple(stamp.text for stamp in finding.stamps)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (contrast("a"), Verdict.SUPPORTED),
        (contrast("b"), Verdict.REFUTED),
        (contrast("c"), Verdict.INCONCLUSIVE),
        (NotTestable(reason="too large"), Verdict.NOT_TESTABLE),
        (Counted(of=Level(metric="budget.flops", arm="a", value=0, expect="equal")), Verdict.INCONCLUSIVE),
    ],
)
def test_a_verdict_from_rows(rule, expected):
    rows = rows_of([subclaim(rule=rule)], MEANS, JITTERS)
    rows = [dataclasses.replace(one, budget={"flops": one.seed}) for one in rows]
    (finding,) = judged(subclaim(rule=rule), rows=rows)
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
    assert (finding.verdict, finding.reason) == (Verdict.NOT_RUN, "metrics.loss of a lacks seed 3")
    (finding,) = judged(claim, rows=[one for one in rows if one.arm != "base"])
    assert (finding.verdict, finding.reason) == (Verdict.NOT_RUN, "base lacks seeds 0, 1, 2, 3, 4")
    assert finding.found is None


def test_a_metric_that_was_not_measured_is_missing():
    claim = subclaim()
    rows = rows_of([claim], MEANS, JITTERS)
    rows[0] = dataclasses.replace(rows[0], metrics={"loss": None})
    rows[1] = dataclasses.replace(rows[1], metrics={})
    (finding,) = judged(claim, rows=rows)
    assert (finding.verdict, finding.reason) == (Verdict.NOT_RUN, "metrics.loss of base lacks seeds 0, 1")


def test_what_was_not_reached_is_a_rank_and_not_missing():
    rule = RankContrast(metric="metrics.steps", arm="a", baseline="base", expect="less")
    rules = declared([subclaim(rule=rule)], SEEDS)
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
    (finding,) = judged(subclaim(), rows=[], seeds=())
    assert (finding.verdict, finding.found) == (Verdict.NOT_RUN, None)
    assert finding.reason == "no seeds are declared at this scale"


@pytest.mark.parametrize("part", ["a", "base", "gate"])
@pytest.mark.parametrize("forgotten", [True, False])
def test_a_rule_that_was_changed_after_an_involved_arm_ran_gives_no_verdict(part, forgotten):
    claim = subclaim(
        gates=(Gate(metric="metrics.loss", arm="b", least=0.0),),
        controls=(contrast("base_again", expect="equal"),),
    )
    arm = {"gate": "b"}.get(part, part)
    rules = {} if forgotten else declared([subclaim(rule=contrast("a", margin=0.5))], SEEDS)
    rows = changed(rows_of([claim], MEANS, JITTERS), {arm: [4]}, rules=rules)
    (finding,) = judged(claim, rows=rows)
    assert (finding.verdict, finding.found, finding.p) == (Verdict.EXPLORATORY, None, None)
    assert finding.reason == "the rule or the declared seeds were changed after the runs"


@pytest.mark.parametrize("now", [range(6), range(1, 6), range(4)])
def test_seeds_that_are_added_or_dropped_after_the_runs_give_no_verdict(now):
    # Whoever tries seeds until p is small enough has changed what was declared.
    claim = subclaim()
    rows = rows_of([claim], MEANS, JITTERS)
    rows += [dataclasses.replace(one, seed=5, key="1" * 16) for one in rows if one.seed == 0]
    (finding,) = judged(claim, rows=[one for one in rows if one.seed in now], seeds=now)
    assert finding.verdict == Verdict.EXPLORATORY
    assert finding.reason == "the rule or the declared seeds were changed after the runs"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([5, 6], "seeds 5, 6 were run and are not declared"),
        ([7], "seed 7 was run and is not declared"),
    ],
)
def test_rows_of_seeds_that_are_not_declared_give_no_verdict(more, reason):
    claim = subclaim()
    rows = rows_of([claim], MEANS, JITTERS)
    further = [dataclasses.replace(rows[0], seed=seed) for seed in more]
    (finding,) = judged(claim, rows=[*rows, *further])
    assert (finding.verdict, finding.reason) == (Verdict.EXPLORATORY, reason)
    elsewhere = [dataclasses.replace(one, arm="c") for one in further]
    older = [dataclasses.replace(one, rules={}) for one in further]
    for others in (elsewhere, older):  # of an arm that it does not read, or from before it was declared
        assert judged(claim, rows=[*rows, *others])[0].verdict == Verdict.SUPPORTED


@pytest.mark.parametrize(
    ("where", "changes", "reason"),
    [
        ({"a": SEEDS}, {"environment": {"attention": "cudnn", "matmul_precision": "float32"}}, "attention"),
        ({"base": SEEDS}, {"environment": {"attention": "dense", "matmul_precision": "tf32"}}, "precision"),
        ({"a": [3]}, {"data": {"fingerprint": "other", "order": "order 3"}}, "fingerprint"),
        ({"a": [3]}, {"data": {"fingerprint": "data", "order": "order 2"}}, "data.order"),
        ({"a": [3]}, {"study": "another"}, "study: "),
        ({"a": SEEDS}, {"scale": "base"}, "scale: "),
        ({"a": [3]}, {"design": "a, longer"}, "rows of one arm"),
    ],
)
def test_rows_that_do_not_compare_decide_nothing(where, changes, reason):
    claim = subclaim()
    (finding,) = judged(claim, rows=changed(rows_of([claim], MEANS, JITTERS), where, **changes))
    assert (finding.verdict, finding.found) == (Verdict.INCONCLUSIVE, None)
    assert finding.reason.startswith("rows do not compare: ")
    assert reason in finding.reason
    elsewhere = changed(rows_of([claim], MEANS, JITTERS), {"c": SEEDS}, **changes)
    assert judged(claim, rows=elsewhere)[0].verdict == Verdict.SUPPORTED


def test_rows_of_uncommitted_code_are_stamped():
    claim = subclaim()
    rows = changed(rows_of([claim], MEANS, JITTERS), {"a": [1, 2], "c": SEEDS}, dirty=True)
    (finding,) = judged(claim, rows=rows)
    assert finding.verdict == Verdict.SUPPORTED
    text = "rows of uncommitted code: 2, such as a-s1-000000000000.json"
    assert finding.stamps == (Stamp(kind=Kind.DIRTY, text=text),)


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


def test_a_subclaim_that_is_withdrawn_after_the_runs_stays_in_the_family_with_all_its_tests():
    kept, gone = (
        subclaim("C1.a"),
        subclaim("C1.b", contrast("b"), controls=(contrast("base_again", expect="equal"),)),
    )
    (alone,) = judged(kept)
    (left,) = judged(kept, rows=rows_of([kept, gone], MEANS, JITTERS))
    assert left.p == pytest.approx(3 * alone.p)


def test_controls_and_rules_that_rows_record_stay_in_the_family():
    controlled = subclaim("C1.b", contrast("b"), controls=(contrast("base_again", expect="equal"),))
    kept, bare = subclaim("C1.a"), subclaim("C1.b", contrast("b", margin=0.03))
    (alone,) = judged(kept)
    rows = rows_of([kept, controlled], MEANS, JITTERS)
    found = judged(kept, bare, rows=rows)
    assert [one.verdict for one in found] == [Verdict.SUPPORTED, Verdict.EXPLORATORY]
    assert found[0].p == pytest.approx(4 * alone.p)  # itself, the old rule, its control, and the new rule


def test_what_is_declared_later_counts_too():
    kept, later = subclaim("C1.a"), subclaim("C1.b", contrast("b"))
    (alone,) = judged(kept)
    assert judged(kept, later, rows=rows_of([kept], MEANS, JITTERS))[0].p == pytest.approx(2 * alone.p)


def test_controls_are_not_in_the_family_of_equivalence():
    rule = contrast("base_again", expect="equal")
    (alone,) = judged(subclaim(rule=rule))
    (controlled,) = judged(subclaim(rule=rule, controls=(contrast("b", expect="greater"),)))
    assert controlled.p == alone.p
    both = judged(subclaim("C1.a", rule), subclaim("C1.b", contrast("a")))
    assert both[0].p == pytest.approx(2 * alone.p)


def test_what_was_detectable_is_so_after_the_correction():
    claims = [subclaim(f"C1.{arm}", contrast(arm)) for arm in "abc"]
    for number in (1, 3):
        found = judged(*claims[:number])[0].found
        expected = statistics.minimum_detectable_effect(5, alpha=0.05 / number)
        assert found is not None
        assert found.detectable == pytest.approx(expected * np.std(JITTER, ddof=1))


def test_an_equality_shows_the_p_of_equivalence():
    (finding,) = judged(subclaim(rule=contrast("base_again", expect="equal")))
    assert finding.verdict == Verdict.SUPPORTED
    assert finding.found is not None
    assert (finding.p, finding.by) == (finding.found.p_equal, "equivalence")


@pytest.mark.parametrize(("arm", "by"), [("a", "difference"), ("base_again", "equivalence")])
def test_the_p_that_is_shown_is_the_one_that_decided(arm, by):
    (finding,) = judged(subclaim(rule=contrast(arm)))
    assert finding.by == by
    assert finding.p == {"difference": finding.found.p, "equivalence": finding.found.p_equal}[by]
    assert finding.p < 0.05


def test_a_rejected_negative_control_stamps_its_subclaims_and_the_table():
    rejected = subclaim("C1.a", controls=(contrast("b", expect="equal"),))
    findings = judged(rejected, subclaim("C1.b", contrast("c")))
    assert findings[0].verdict == Verdict.SUPPORTED
    assert findings[0].said == "supported, but a negative control was rejected"
    (stamp,) = findings[0].stamps
    assert stamp.kind is Kind.REJECTED
    assert stamp.text.startswith("negative control rejected: metrics.loss of b equals metrics.loss of base")
    assert (findings[1].stamps, findings[1].said) == ((), "inconclusive")
    assert verdicts.stamps(findings) == (stamp.text,)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [("rule", Verdict.EXPLORATORY), ("arm", Verdict.NOT_RUN), ("comparable", Verdict.INCONCLUSIVE)],
)
def test_a_control_is_judged_whatever_becomes_of_the_rule(change, verdict):
    control = contrast("b", expect="equal")
    claim = subclaim(controls=(control,))
    rows = rows_of([claim], MEANS, JITTERS)
    if change == "rule":
        claim = subclaim(rule=contrast("a", margin=0.5), controls=(control,))
    if change == "arm":
        rows = [one for one in rows if one.arm != "a"]
    if change == "comparable":
        rows = changed(rows, {"a": [0]}, scale="base")
    (finding,) = judged(claim, rows=rows)
    assert (finding.verdict, [stamp.kind for stamp in finding.stamps]) == (verdict, [Kind.REJECTED])
    assert finding.said == f"{verdict}, but a negative control was rejected"


def test_a_control_without_its_rows_or_with_rows_that_do_not_compare_is_not_judged():
    claim = subclaim(controls=(contrast("b", expect="equal"),))
    rows = rows_of([claim], MEANS, JITTERS)
    assert judged(claim, rows=[one for one in rows if one.arm != "b"])[0].stamps == ()
    (finding,) = judged(claim, rows=changed(rows, {"b": [0]}, scale="base"))
    (stamp,) = finding.stamps
    assert stamp.kind is Kind.NOT_COMPARED
    assert "rows do not compare: scale" in stamp.text
    assert verdicts.stamps([finding]) == (stamp.text,)


def test_an_a_a_control_is_rejected_at_the_nominal_rate_and_not_by_the_margin():
    # A difference within the margin that is significant all the same: the machine is not repeating itself.
    small = {**MEANS, "base_again": 2.015}
    claim = subclaim(controls=(contrast("base_again", expect="equal"),))
    (finding,) = judged(claim, rows=rows_of([claim], small, JITTERS))
    assert [stamp.kind for stamp in finding.stamps] == [Kind.REJECTED]


def test_a_control_that_is_the_same_number_at_every_seed_is_as_expected():
    """As at a ceiling. The same difference other than none stays untested."""
    claim = subclaim(controls=(contrast("base_again", expect="equal"),))
    same = {name: jitter for name, jitter in JITTERS.items() if name != "base_again"}
    assert judged(claim, rows=rows_of([claim], MEANS, same))[0].stamps == ()
    (stamp,) = judged(claim, rows=rows_of([claim], {**MEANS, "base_again": 2.01}, same))[0].stamps
    assert stamp.kind is Kind.NOT_COMPARED
    # The same numbers of rows that do not compare say nothing.
    (stamp,) = judged(claim, rows=changed(rows_of([claim], MEANS, same), {"base_again": [0]}, scale="base"))[
        0
    ].stamps
    assert "rows do not compare: scale" in stamp.text


def test_a_control_may_move_to_the_side_that_it_expects():
    # Tuning on more of the same must not forget; that it learns more is no rejection.
    assert judged(subclaim(controls=(contrast("a", expect="less"),)))[0].stamps == ()
    (stamp,) = judged(subclaim(controls=(contrast("a", expect="greater"),)))[0].stamps
    assert stamp.kind is Kind.REJECTED


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((), ()),
        (("a", "a", "a"), ("the same sign at 3 sizes: -0.2, -0.2, -0.2",)),
        (("a", "a", "c"), ("small scale only, not the same sign at 3 sizes: -0.2, -0.2, +0.05",)),
        # one sign, but not that of the effect, which is -0.2
        (("b", "b", "c"), ("small scale only, not the same sign at 3 sizes: +0.2, +0.2, +0.05",)),
        (("a", "a", "later"), ("trend with size is missing: later lacks seeds 0, 1, 2, 3, 4",)),
    ],
)
def test_a_verdict_says_whether_its_sign_holds_at_other_sizes(sizes, expected):
    differences = tuple(Difference(metric="metrics.loss", arm=arm, baseline="base") for arm in sizes)
    (finding,) = judged(subclaim(sizes=differences), arms=(*MEANS, "later"))
    assert (finding.verdict, texts(finding)) == (Verdict.SUPPORTED, expected)


def test_stale_rows_give_no_verdict():
    claim = subclaim()
    rows = changed(rows_of([claim], MEANS, JITTERS), {"a": [2], "c": SEEDS}, code={"stale": "code"})
    (finding,) = judged(claim, rows=rows)
    assert (finding.verdict, finding.found) == (Verdict.EXPLORATORY, None)
    assert finding.reason == (
        "stale: the code or the arms have come to be others than those of 1 rows, such as a-s2-000000000000.json"
    )


def test_at_most_so_many_tests_beside_controls_and_counts():
    margins = [index / 10 for index in range(1, 8)]
    many = [contrast(arm, margin=margin) for arm, margin in itertools.product("ab", margins)]
    many.append(contrast("c"))
    claims = [subclaim(f"C1.x{index}", rule) for index, rule in enumerate(many)]
    with pytest.raises(ClaimError, match=r"15 confirmatory tests \(C1.x0, .*C1.x14\), expected at most 14"):
        judged(*claims)
    control = contrast("base_again", expect="equal")
    counted = subclaim(
        "C1.counted", Counted(of=Level(metric="budget.flops", arm="a", value=0, expect="equal"))
    )
    assert len(judged(*claims[:13], subclaim("C1.x14", many[14], controls=(control,)), counted)) == 15


def test_arms_of_different_data_compare_where_the_study_says_so():
    claim = subclaim()
    rows = changed(
        rows_of([claim], MEANS, JITTERS), {"a": SEEDS}, data={"fingerprint": "another", "order": "o"}
    )
    (finding,) = judged(claim, rows=rows)
    assert finding.verdict == Verdict.INCONCLUSIVE
    assert finding.reason.startswith("rows do not compare: data.fingerprint")
    (finding,) = judged(claim, rows=rows, varied=True)
    assert finding.verdict == Verdict.SUPPORTED


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ([subclaim(), subclaim()], "configs/study/study.gin: 'C1.loss' is declared twice"),
        ([subclaim(rule=contrast("z"))], "C1.loss reads arm 'z', expected one of"),
        (
            [subclaim(sizes=(Difference(metric="m", arm="a", baseline="z"),) * 3)],
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


@pytest.mark.slow
def test_a_study_of_several_claims_about_nothing_is_wrong_in_one_of_twenty():
    # Six claims, four of which share a baseline, all about arms that do not differ; noise far above the margin.
    random, studies = np.random.default_rng(0), 300
    arms = ("base", "a", "b", "c", "d", "e", "f")
    claims = [
        subclaim(f"C1.{arm}", contrast(arm, expect=("less", "greater")[arm > "c"])) for arm in arms[1:5]
    ]
    claims += [subclaim(f"C2.{arm}", contrast(arm, baseline="d", expect="equal")) for arm in arms[5:]]
    rules = declared(claims, SEEDS)
    wrong = 0
    for _ in range(studies):
        rows = [row(arm, seed, {"loss": random.normal(2.0, 1.0)}, rules) for arm in arms for seed in SEEDS]
        found = judged(*claims, rows=rows, arms=arms)
        wrong += any(finding.verdict in (Verdict.SUPPORTED, Verdict.REFUTED) for finding in found)
    band = scipy.stats.binom(studies, 0.05).interval(0.99)
    assert band[0] <= wrong <= band[1]


def test_an_arm_that_runs_fewer_seeds_is_judged_by_those():
    claim, whole, few = subclaim(), range(6), {"a": tuple(SEEDS)}
    rules = declared([claim], whole, few)
    assert rules != declared([claim], whole)
    rows = [dataclasses.replace(one, rules=rules) for one in rows_of([claim], MEANS, JITTERS)]
    of = {"study": "study", "scale": "small", "arms": tuple(MEANS), "seeds": whole}
    (finding,) = judge([claim], rows, fewer=few, **of)
    assert finding.verdict is Verdict.SUPPORTED
    assert finding.found is not None
    assert finding.found.effect.n == 5
    (finding,) = judge([claim], rows, **of)
    assert finding.reason == "the rule or the declared seeds were changed after the runs"
    more = [*rows, row("a", 5, {"loss": 1.8}, rules)]
    (finding,) = judge([claim], more, fewer=few, **of)
    assert finding.reason == "seed 5 was run and is not declared"


def test_a_control_may_be_of_other_data_and_from_before_the_claim_was_declared():
    control = contrast("base_again", "other", expect="equal")
    claim, earlier = subclaim(controls=(control,)), subclaim("C1.earlier", contrast("b"))
    rules = declared([earlier, claim], SEEDS)
    own = [dataclasses.replace(one, rules=rules) for one in rows_of([], {"base": 2.0, "a": 1.8}, JITTERS)]
    known = [
        dataclasses.replace(one, rules=declared([earlier], SEEDS), data={**one.data, "fingerprint": "else"})
        for one in rows_of([], {"base_again": 2.0, "other": 2.0}, JITTERS)
    ]
    arms = ("base", "a", "b", "base_again", "other")
    (finding, _) = judged(claim, earlier, rows=own + known, arms=arms)
    assert finding.verdict is Verdict.SUPPORTED
    assert not finding.rejected
    gated = subclaim(gates=(Gate(metric="metrics.loss", arm="other", most=9.0),))
    (finding,) = judged(gated, rows=own + known, arms=arms)
    assert finding.verdict is Verdict.EXPLORATORY  # a gate decides

"""What follows from verdicts on sub-claims, the page that says it, and what documents may say of it."""

import itertools
from html import escape

import pytest

from research.analysis import claim_cards, claim_words
from research.analysis.claims import Claim, Gate, Ledger, Published, SubClaim
from research.analysis.claims_page import markdown
from research.analysis.conclusions import Judged, conclude, whole
from research.analysis.decisions import ClaimError, Measured, Verdict
from research.analysis.rules import Contrast
from research.analysis.statements import contradictions, stated
from research.analysis.statistics import Estimate
from research.analysis.verdicts import Finding, Kind, Stamp

S, R, P, I, T, N, E, U = Verdict  # noqa: E741


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((), U),
        ((S,), S),
        ((S, S), S),
        ((R, R), R),
        ((T, T), T),
        ((I, I), I),
        ((S, R), P),
        ((S, I), P),
        ((S, T), P),
        ((S, R, I, T), P),
        ((R, I), I),
        ((R, T), I),
        ((I, T), I),
        ((N,), N),
        ((S, N), N),
        ((R, N), N),
        ((E,), E),
        ((S, E), E),
        ((S, E, N), N),
        ((S, R, N), P),
        ((S, I, E), P),
    ],
)
def test_the_verdict_of_a_claim(parts, expected):
    assert all(whole(order) == expected for order in itertools.permutations(parts))


def test_no_result_that_is_still_to_come_changes_the_verdict_of_a_claim():
    given = (S, R, I, T)
    for parts in itertools.product((*given, N), repeat=3):
        ends = {
            whole([next(rest) if part is N else part for part in parts])
            for rest in map(iter, itertools.product(given, repeat=3))
        }
        assert whole(parts) is N or ends == {whole(parts)}


LEDGER = Ledger(
    claims=(
        Claim(id="C1", text="one | two", published=(Published(figure="44.2", source="a paper", tag="L2"),)),
        Claim(id="C2", text="another"),
    )
)


RULE = Contrast(metric="metrics.loss", arm="a", baseline="base", expect="less")
GATE = Gate(metric="metrics.loss", arm="a", most=0.0)
FOUND = Measured(
    effect=Estimate(mean=-0.2, half_width=0.00391, n=5), p=1e-9, p_equal=1.0, detectable=0.0053, note="a note"
)


REJECTED = Stamp(kind=Kind.REJECTED, text="negative control rejected: this")


def finding(name="C1.loss", verdict=Verdict.SUPPORTED, found: Measured | None = FOUND, **fields):
    subclaim = SubClaim(id=name, text="what is said", rule=RULE, unit="nats", gates=fields.pop("gates", ()))
    p = None if found is None else 2e-9
    return Finding(
        subclaim=subclaim, study="study", scale="small", verdict=verdict, found=found, p=p, **fields
    )


def concluded() -> tuple[Judged, ...]:
    gated = finding("C1.gated", I, None, gates=(GATE,), reason=f"gate failed: expected {GATE.explain()}")
    return conclude(LEDGER, [finding(stamps=(REJECTED,)), gated])


def test_every_claim_is_concluded():
    first, second = concluded()
    assert (first.verdict, second.verdict) == (Verdict.PARTLY, Verdict.UNDECLARED)
    assert [one.subclaim.id for one in first.findings] == ["C1.loss", "C1.gated"]
    assert second.findings == ()


def test_a_subclaim_of_no_claim_or_of_two_studies_is_refused():
    with pytest.raises(ClaimError, match="C9.loss of study study: no claim 'C9' in configs/claims.gin"):
        conclude(LEDGER, [finding("C9.loss")])
    with pytest.raises(ClaimError, match="'C1.loss' is declared twice"):
        conclude(LEDGER, [finding(), finding()])


def test_a_claim_waits_for_all_of_its_parts():
    claim = Claim(id="C1", text="this", parts={"loss": "one part", "cost": "another"})
    (judged,) = conclude(Ledger(claims=(claim,)), [finding()])
    assert judged.verdict is Verdict.UNDECLARED
    assert judged.undeclared == {"C1.cost": "another"}
    assert "\n- C1.cost: another\n" in markdown([judged])
    (judged,) = conclude(Ledger(claims=(claim,)), [finding(), finding("C1.cost")])
    assert (judged.verdict, judged.undeclared) == (Verdict.SUPPORTED, {})
    assert "without a rule" not in markdown([judged])
    with pytest.raises(
        ClaimError, match=r"C1.size of study study: not among the parts of C1 .* \['C1.loss', 'C1.cost'\]"
    ):
        conclude(Ledger(claims=(claim,)), [finding("C1.size")])


def test_the_page_shows_verdicts_numbers_and_sources():
    page = markdown(concluded())
    assert "\n## C1: partly, but a negative control was rejected\n" in page
    assert "\n## C2: no rule declared yet\n" in page
    assert "\n- 44.2 [L2] (a paper)\n" in page
    (line,) = [line for line in page.splitlines() if line.startswith("| C1.loss: what is said | ")]
    assert line.split(" | ")[1:8] == [
        "supported, but a negative control was rejected; negative control rejected: this",
        "-0.2 ± 0.0039 nats (a note)",
        "< 0.001, of difference",
        "5",
        "0.0053 nats",
        "study, small",
        "metrics.loss of a is less than metrics.loss of base; equal within 0.02 refutes",
    ]
    assert (
        "| C1.gated: what is said | inconclusive: gate failed: expected metrics.loss of a at most 0" in page
    )
    assert "only if: metrics.loss of a at most 0 |" in page
    assert "| C1 | one \\| two | partly, but a negative control was rejected |" in page


def test_what_decided_is_named_beside_its_p():
    equal = finding(by="equivalence")
    assert claim_words.facts(equal)["p"] == ("< 0.001, of equivalence",)
    assert claim_words.facts(finding(found=None))["p"] == ()


def test_the_card_and_the_page_say_the_same_of_a_finding():
    gated = finding(gates=(GATE,), reason="because of this", stamps=(REJECTED,))
    page = markdown(conclude(LEDGER, [gated]))
    card = claim_cards.card(gated)
    for texts in claim_words.facts(gated).values():
        for text in texts:
            assert text in page
            assert escape(text) in card
    for said in (gated.said, REJECTED.text):
        assert said in page
        assert said in card


def test_a_rejected_control_stands_in_the_overview():
    overview = claim_cards.overview(concluded(), ())
    assert 'class="verdict open">partly, but a negative control was rejected<' in overview
    assert 'class="verdict open">supported, but a negative control was rejected<' in overview
    plain = claim_cards.overview(conclude(LEDGER, [finding()]), ())
    assert plain.count('class="verdict good">supported<') == 2


def test_the_page_states_what_the_ledger_says():
    page, known = markdown(concluded()), concluded()
    assert contradictions(page, known) == ()
    assert {name for name, _ in stated(page)} == {"C1", "C2", "C1.loss", "C1.gated"}

"""What follows from verdicts on sub-claims, and what documents may say of it."""

import itertools

import pytest

from research.analysis.claims import Claim, Gate, Ledger, Published, SubClaim
from research.analysis.conclusions import Judged, conclude, contradictions, markdown, stated, whole
from research.analysis.rules import ClaimError, Contrast, Measured, Verdict
from research.analysis.statistics import Estimate
from research.analysis.verdicts import Finding

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


def finding(name="C1.loss", verdict=Verdict.SUPPORTED, found: Measured | None = FOUND, **fields):
    subclaim = SubClaim(id=name, text="what is said", rule=RULE, unit="nats", gates=fields.pop("gates", ()))
    p = None if found is None else 2e-9
    return Finding(
        subclaim=subclaim, study="study", scale="small", verdict=verdict, found=found, p=p, **fields
    )


def concluded() -> tuple[Judged, ...]:
    gated = finding("C1.gated", I, None, gates=(GATE,), reason=f"gate failed: expected {GATE.explain()}")
    return conclude(LEDGER, [finding(stamps=("negative control rejected: this",)), gated])


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


def test_the_page_shows_verdicts_numbers_and_sources():
    page = markdown(concluded())
    assert "\n## C1: partly\n" in page
    assert "\n## C2: no rule declared yet\n" in page
    assert "\n- 44.2 [L2] (a paper)\n" in page
    (line,) = [line for line in page.splitlines() if line.startswith("| C1.loss: what is said | ")]
    assert line.split(" | ")[1:8] == [
        "supported; negative control rejected: this",
        "-0.2 ± 0.0039 nats (a note)",
        "< 0.001",
        "5",
        "0.0053",
        "study, small",
        "metrics.loss of a is less than metrics.loss of base; equal within 0.02 refutes",
    ]
    assert (
        "| C1.gated: what is said | inconclusive: gate failed: expected metrics.loss of a at most 0" in page
    )
    assert "if: metrics.loss of a at most 0 |" in page
    assert "| C1 | one \\| two | partly |" in page


def test_the_page_states_what_the_ledger_says():
    page, known = markdown(concluded()), concluded()
    assert contradictions(page, known) == ()
    assert {name for name, _ in stated(page)} == {"C1", "C2", "C1.loss", "C1.gated"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C5: supported", (("C5", S),)),
        ("**C5.diversity** \u2014 Refuted, by 0.3 nats", (("C5.diversity", R),)),
        ("| C12 | SFT forgets | not run yet |", (("C12", N),)),
        ("- C1 is partly supported", (("C1", P),)),
        ("C2 and C3: not testable at this scale", (("C3", T),)),
        ("C2: supported; C3: inconclusive (gate failed)", (("C2", S), ("C3", I))),
        ("C7 is measured\nsupported by nobody", ()),
        ("unsupported C5", ()),
        ("C5 is unsupported", ()),
        ("BC5: supported", ()),
    ],
)
def test_what_counts_as_stating_a_verdict(text, expected):
    assert stated(text) == expected


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("C1: partly\nC1.loss: supported\nC2 has no rule declared yet", 0),
        ("C1: supported", 1),
        ("C1.loss: refuted", 1),
        ("C9: supported", 1),
        ("C1.other: supported\nC2: refuted", 2),
    ],
)
def test_what_a_document_states_is_what_the_ledger_says(text, lines):
    found = contradictions(text, concluded())
    assert len(found) == lines
    assert all("see docs/CLAIMS.md" in line for line in found)

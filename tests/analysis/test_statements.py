"""What documents state of the claims, and whether the ledger says so."""

import pytest

from research.analysis.claims import Claim, Ledger, SubClaim
from research.analysis.conclusions import conclude
from research.analysis.decisions import Verdict
from research.analysis.rules import Contrast
from research.analysis.statements import contradictions, stated
from research.analysis.verdicts import Finding, Kind, Stamp

RULE = Contrast(metric="metrics.loss", arm="a", baseline="base", expect="less")
CAVEAT = "supported, but a negative control was rejected"


def finding(name, verdict, *stamps):
    subclaim = SubClaim(id=name, text="what is said", rule=RULE)
    return Finding(subclaim=subclaim, study="study", scale="small", verdict=verdict, stamps=stamps)


def judged():
    """C1 is partly, C2 has no rule, C3 is refuted, C4 supported with a rejected control."""
    ledger = Ledger(claims=tuple(Claim(id=f"C{number}", text="what is claimed") for number in range(1, 5)))
    rejected = Stamp(kind=Kind.REJECTED, text="negative control rejected: this")
    return conclude(
        ledger,
        [
            finding("C1.loss", Verdict.SUPPORTED),
            finding("C1.gated", Verdict.INCONCLUSIVE),
            finding("C3.loss", Verdict.REFUTED),
            finding("C4.loss", Verdict.SUPPORTED, rejected),
        ],
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C5: supported", {"C5": "supported"}),
        ("**C5.diversity** \u2014 Refuted, by 0.3 nats", {"C5.diversity": "refuted"}),
        ("| C12 | SFT forgets | not run yet |", {"C12": "not run yet"}),
        ("- C1 is partly supported", {"C1": "partly"}),
        ("C9: no rule declared yet", {"C9": "no rule declared yet"}),
        (
            "C2 and C3: not testable at this scale",
            {"C2": "not testable at this scale", "C3": "not testable at this scale"},
        ),
        ("C1 and C2 are supported", {"C1": "supported", "C2": "supported"}),
        ("C1, C2: supported", {"C1": "supported", "C2": "supported"}),
        ("C1-C3 are refuted", {"C1": "refuted", "C2": "refuted", "C3": "refuted"}),
        ("C1\u2013C2 and C4 to C5: refuted", dict.fromkeys(("C1", "C2", "C4", "C5"), "refuted")),
        ("C2: supported; C3: inconclusive (gate failed)", {"C2": "supported", "C3": "inconclusive"}),
        ("supported: C1", {"C1": "supported"}),
        ("**Supported:** C1, C2. Refuted: C3", {"C1": "supported", "C2": "supported", "C3": "refuted"}),
        ("| supported | C1 |", {"C1": "supported"}),
        (f"C4: {CAVEAT}, see below", {"C4": CAVEAT}),
        ("C1 is not supported", {"C1": "not supported"}),
        ("C1 isn't refuted", {"C1": "not refuted"}),
        ("C1 is, at this scale, no longer supported", {"C1": "not supported"}),
        ("neither C1 nor C2 is supported", {"C1": "not supported", "C2": "not supported"}),
        ("C5 is unsupported", {"C5": "not supported"}),
        ("unsupported C5", {"C5": "not supported"}),
        ("C5: supported, not refuted", {"C5": "not refuted"}),
        ("| C12 | SFT does not forget | supported |", {"C12": "supported"}),
        ("C1.loss is refuted: C2 explains it", {"C1.loss": "refuted"}),
        ("C7 is measured\nsupported by nobody", {}),
        ("C7 is measured, supported by nobody: see C8", {"C7": "supported"}),
        ("BC5: supported", {}),
        ("what is supported by C5", {}),
    ],
)
def test_what_counts_as_stating_a_verdict(text, expected):
    assert dict(stated(text)) == expected


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("C1: partly\nC1.loss: supported\nC2 has no rule declared yet", 0),
        (f"C3 is refuted, and so is C3.loss: refuted; C4: {CAVEAT}", 0),
        ("C1: supported", 1),
        ("C1.loss: refuted", 1),
        ("C9: supported", 1),
        ("C1.other: supported\nC2: refuted", 2),
        ("C3 is not supported", 1),  # it is refuted, which is more
        ("C3 is not refuted", 1),
        ("C1.loss is unsupported", 1),
        ("C1-C3 are refuted", 2),
        ("C4 is supported", 1),  # says nothing of the control
        ("C4.loss: supported", 1),
        (f"C3: refuted{CAVEAT.removeprefix('supported')}", 1),
    ],
)
def test_what_a_document_states_is_what_the_ledger_says(text, lines):
    found = contradictions(text, judged())
    assert len(found) == lines
    assert all("see docs/CLAIMS.md" in line for line in found)

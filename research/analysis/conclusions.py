"""What follows for the claims, the page that says so, and whether other documents say the same."""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

from research.analysis.claims import Claim, Ledger, Published, require_distinct
from research.analysis.rules import ALPHA, ClaimError, Measured, Verdict
from research.analysis.verdicts import Finding, of_equality, p_text

_PENDING = (Verdict.NOT_RUN, Verdict.EXPLORATORY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim with its verdict and the findings that it follows from."""

    claim: Claim
    verdict: Verdict
    findings: tuple[Finding, ...]


def conclude(ledger: Ledger, findings: Iterable[Finding]) -> tuple[Judged, ...]:
    """Every claim of the ledger with its verdict, from the findings of all studies.

    Raises:
      ClaimError: a sub-claim of no claim, or one that two studies declare.
    """
    findings = list(findings)
    require_distinct([finding.subclaim.id for finding in findings], "Table.claims of all studies")
    known = [claim.id for claim in ledger.claims]
    for finding in findings:
        if finding.subclaim.claim not in known:
            raise ClaimError(
                f"{finding.subclaim.id} of study {finding.study}: no claim {finding.subclaim.claim!r} in "
                f"configs/claims.gin, expected one of {known}"
            )
    judged = []
    for claim in ledger.claims:
        own = tuple(finding for finding in findings if finding.subclaim.claim == claim.id)
        judged.append(Judged(claim=claim, verdict=whole([finding.verdict for finding in own]), findings=own))
    return tuple(judged)


def whole(parts: Sequence[Verdict]) -> Verdict:
    """The verdict of a claim from those of its sub-claims.

    All supported, or all refuted, or none testable: so is the claim. Some supported and some not: partly. Otherwise
    inconclusive: none is supported, and not all are refuted. Where some have no verdict yet the claim has none
    either, unless no result that is still to come can change it: supported beside not supported stays partly.
    """
    if not parts:
        return Verdict.UNDECLARED
    given = {part for part in parts if part not in _PENDING}
    if Verdict.SUPPORTED in given and len(given) > 1:
        return Verdict.PARTLY
    if Verdict.NOT_RUN in parts:
        return Verdict.NOT_RUN
    if Verdict.EXPLORATORY in parts:
        return Verdict.EXPLORATORY
    return given.pop() if len(given) == 1 else Verdict.INCONCLUSIVE


_STATED = re.compile(
    rf"\b(C\d+(?:\.\w+)?)\b(?:(?!\bC\d+\b)[^\n])*?\b(?i:({'|'.join(map(re.escape, Verdict))}))\b"
)


def stated(text: str) -> tuple[tuple[str, Verdict], ...]:
    """The verdicts that a document states: on one line the id of a claim or sub-claim, and a verdict after it.

    The first verdict after an id counts, as in `C5: supported` or `C5.diversity is refuted`.
    """
    return tuple((found[1], Verdict(found[2].lower())) for found in _STATED.finditer(text))


def contradictions(text: str, judged: Iterable[Judged]) -> tuple[str, ...]:
    """What a document states and the ledger does not say, one line each."""
    known: dict[str, Verdict] = {}
    for one in judged:
        known[one.claim.id] = one.verdict
        known |= {finding.subclaim.id: finding.verdict for finding in one.findings}
    return tuple(
        f"{name} is stated as {verdict}, the ledger says {known.get(name, 'nothing of it')}; see docs/CLAIMS.md"
        for name, verdict in stated(text)
        if known.get(name) != verdict
    )


_HEAD = f"""# Claims

Written by `python -m experiments.ledger` from configs/claims.gin, the claims in every study.gin and the committed
rows. A rule is fixed before its study runs: rows carry a hash of it, and where it was changed since, there is no
verdict. A document that states a verdict names the claim and the verdict on one line, and a test compares the two.

A sub-claim is decided by one test over seeds, paired across arms, at p < {ALPHA:g} after Holm's correction over all
tests of its study, negative controls included; effects are the first side minus the second with 95 % t intervals, and
*detectable* is the least effect that is found with 80 % power. Equality is a result of its own, two one-sided tests
against a margin. A claim is what all its sub-claims are; *partly* where some are supported and others are not.

Published figures: [L] was read in the source, [L2] in somebody's notes on it.
"""
_COLUMNS = ("sub-claim", "verdict", "effect", "p", "n", "detectable", "scale", "rule", "published")


def markdown(judged: Sequence[Judged]) -> str:
    """The page of all claims, docs/CLAIMS.md."""
    summary = [("claim", "text", "verdict")]
    summary += [(one.claim.id, one.claim.text, str(one.verdict)) for one in judged]
    return "\n".join([_HEAD, _table(summary), *map(_section, judged)])


def _section(judged: Judged) -> str:
    claim = judged.claim
    parts = [f"## {claim.id}: {judged.verdict}\n", f"{claim.text}\n"]
    if claim.published:
        parts.append("\n".join(f"- {_published(one)}" for one in claim.published) + "\n")
    if judged.findings:
        parts.append(_table([_COLUMNS, *map(_line, judged.findings)]))
    return "\n".join(parts)


def _line(finding: Finding) -> tuple[str, ...]:
    subclaim, found = finding.subclaim, finding.found
    verdict = f"{finding.verdict}: {finding.reason}" if finding.reason else str(finding.verdict)
    conditions = [("if", gate.explain()) for gate in subclaim.gates]
    conditions += [("control", control.explain()) for control in subclaim.controls]
    rule = "; ".join([subclaim.rule.explain(), *(f"{word}: {text}" for word, text in conditions)])
    detectable = math.nan if found is None else found.detectable
    return (
        f"{subclaim.id}: {subclaim.text}",
        "; ".join([verdict, *finding.stamps]),
        "" if found is None else _effect(found, subclaim.unit),
        "" if finding.p is None else p_text(finding.p) + (" (TOST)" if of_equality(subclaim.rule) else ""),
        "" if found is None else str(found.effect.n),
        "" if math.isnan(detectable) else f"{detectable:.2g}",
        f"{finding.study}, {finding.scale}",
        rule,
        "; ".join(map(_published, subclaim.published)),
    )


def _effect(found: Measured, unit: str) -> str:
    interval = "" if math.isnan(found.effect.half_width) else f" ± {found.effect.half_width:.2g}"
    note = f" ({found.note})" if found.note else ""
    return f"{found.effect.mean:+.4g}{interval} {unit}".rstrip() + note


def _published(one: Published) -> str:
    return f"{one.figure} [{one.tag}] ({one.source})"


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    rows = [head, ["---"] * len(head), *body]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows) + "\n"
    )

"""What follows for the claims from the verdicts on their sub-claims."""

import dataclasses
from collections.abc import Iterable, Sequence

from research.analysis.claims import Claim, Ledger, require_distinct
from research.analysis.decisions import ClaimError, Verdict
from research.analysis.verdicts import CAVEAT, Finding

_PENDING = (Verdict.NOT_RUN, Verdict.EXPLORATORY, Verdict.UNDECLARED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim with its verdict and the findings that it follows from."""

    claim: Claim
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """That of the claim as a whole."""
        undeclared = [Verdict.UNDECLARED] * len(self.undeclared)
        return whole([*(finding.verdict for finding in self.findings), *undeclared])

    @property
    def undeclared(self) -> dict[str, str]:
        """Its sub-claims that no study has declared a rule for, by id."""
        declared = {finding.subclaim.id for finding in self.findings}
        return {name: text for name, text in self.claim.subclaims.items() if name not in declared}

    @property
    def rejected(self) -> bool:
        """Whether a negative control of any of its sub-claims was rejected."""
        return any(finding.rejected for finding in self.findings)

    @property
    def said(self) -> str:
        """The verdict as it has to be stated."""
        return f"{self.verdict}{CAVEAT if self.rejected else ''}"


def conclude(ledger: Ledger, findings: Iterable[Finding]) -> tuple[Judged, ...]:
    """Every claim of the ledger with its verdict, from the findings of all studies.

    Raises:
      ClaimError: a sub-claim of no claim, one that its claim does not have, or one that two studies declare.
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
    return tuple(
        _judged(claim, [finding for finding in findings if finding.subclaim.claim == claim.id])
        for claim in ledger.claims
    )


def _judged(claim: Claim, findings: Sequence[Finding]) -> Judged:
    for finding in findings:
        if claim.parts and finding.subclaim.id not in claim.subclaims:
            raise ClaimError(
                f"{finding.subclaim.id} of study {finding.study}: not among the parts of {claim.id} in "
                f"configs/claims.gin, expected one of {list(claim.subclaims)}"
            )
    return Judged(claim=claim, findings=tuple(findings))


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
    if Verdict.UNDECLARED in parts:
        return Verdict.UNDECLARED
    return given.pop() if len(given) == 1 else Verdict.INCONCLUSIVE

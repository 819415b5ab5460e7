"""The page of all claims with their verdicts, in Markdown: docs/CLAIMS.md."""

from collections.abc import Sequence

from research.analysis import claim_words
from research.analysis.conclusions import Judged
from research.analysis.decisions import ALPHA, LEAST_SEEDS
from research.analysis.verdicts import Finding

_HEAD = f"""# Claims

Written by `python -m experiments.ledger` from configs/claims.gin, the claims in every study.gin and the committed
rows. A rule and its seeds are fixed before a study runs: rows carry a hash of both. Where either was changed since,
where other seeds were run too, or where the code has come to measure something else, there is no verdict. A document
that states a verdict names the claim and the verdict on one line, and a test compares the two.

Most sub-claims are decided by paired t tests over {LEAST_SEEDS} or more seeds: one of difference, beyond the least that
counts where the rule names one, and two one-sided ones of equivalence within a margin (TOST). What some seeds may not
reach is compared by a rank test, which does not pair them. What is counted, such as FLOPs, is compared without a test,
and some sub-claims are not testable here. Tests decide at p < {ALPHA:g} after Holm's correction, over all tests of
difference of the study with its negative controls, or over all of equivalence; the p that is shown is the one that
decided. A rejected negative control is said with every verdict beside which it was declared.

Effects are the first side minus the second with 95 % t intervals, uncorrected. *Detectable* is the least effect that
is found with 80 % power if it is the first that Holm's correction has to pass; where equality is expected there is
none. A claim is what all its sub-claims are; *partly* where some are supported and others are not.

Published figures: [L] was read in the source, [L2] in somebody's notes on it.
"""
_COLUMNS = ("sub-claim", "verdict", "effect", "p", "n", "detectable", "scale", "rule", "published")


def markdown(judged: Sequence[Judged]) -> str:
    """The page."""
    summary = [("claim", "text", "verdict")]
    summary += [(one.claim.id, one.claim.text, one.said) for one in judged]
    return "\n".join([_HEAD, _table(summary), *map(_section, judged)])


def _section(judged: Judged) -> str:
    claim = judged.claim
    parts = [f"## {claim.id}: {judged.said}\n", f"{claim.text}\n"]
    if claim.published:
        parts.append("\n".join(f"- {claim_words.published(one)}" for one in claim.published) + "\n")
    if judged.findings:
        parts.append(_table([_COLUMNS, *map(_line, judged.findings)]))
    if judged.undeclared:
        parts.append("Sub-claims without a rule so far:\n")
        parts.append("\n".join(f"- {name}: {text}" for name, text in judged.undeclared.items()) + "\n")
    return "\n".join(parts)


def _line(finding: Finding) -> tuple[str, ...]:
    subclaim, facts = finding.subclaim, claim_words.facts(finding)
    verdict = ": ".join([finding.said, *facts["because"]])
    conditions = [f"{name}: {text}" for name in ("only if", "negative controls") for text in facts[name]]
    return (
        f"{subclaim.id}: {subclaim.text}",
        "; ".join([verdict, *(stamp.text for stamp in finding.stamps)]),
        *("; ".join(facts[name]) for name in ("effect", "p", "n", "detectable")),
        f"{finding.study}, {finding.scale}",
        "; ".join([*facts["rule"], *conditions]),
        "; ".join(map(claim_words.published, subclaim.published)),
    )


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    rows = [head, ["---"] * len(head), *body]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows) + "\n"
    )

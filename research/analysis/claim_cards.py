"""Claims with their verdicts in HTML: the list of all of them, and a card for each sub-claim of a study."""

import math
from collections.abc import Collection, Iterable, Sequence
from html import escape

from research.analysis.claims import Published
from research.analysis.conclusions import Judged
from research.analysis.fragments import Section, items, link, place_in, scrolled
from research.analysis.rules import Measured, Verdict
from research.analysis.verdicts import Finding, of_equality, p_text

_LOOKS = {Verdict.SUPPORTED: "good", Verdict.REFUTED: "bad"}  # the word says it, the colour helps


def place_of(finding: Finding) -> str:
    """The id of a sub-claim's card in a page."""
    return place_in(finding.study, finding.scale, "claim", finding.subclaim.id)


def overview(judged: Sequence[Judged], places: Collection[str]) -> str:
    """A table of claims with the sub-claims that decide them, linked where their card is one of `places`."""
    lines = []
    for one in judged:
        parts = []
        for finding in one.findings:
            name, place = finding.subclaim.id, place_of(finding)
            shown = link(place, name) if place in places else escape(name)
            parts.append(f"<li>{shown}: {_verdict(finding.verdict)}")
        lines.append(
            f'<tr><th scope="row">{escape(one.claim.id)}</th><td>{_verdict(one.verdict)}</td>'
            f'<td class="prose">{escape(one.claim.text)}{_published(one.claim.published)}</td>'
            f'<td class="prose"><ul>{"".join(parts)}</ul></td></tr>\n'
        )
    heads = "".join(
        f'<th scope="col">{name}</th>' for name in ("claim", "verdict", "what is claimed", "decided by")
    )
    return scrolled(
        "claims",
        f'<table class="claims">\n<caption>A claim is what its sub-claims are.</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody>\n</table>",
    )


def cards(section: Section) -> str:
    """The sub-claims that a study declares, as its rows decide them at this scale."""
    return "".join(map(_card, section.findings))


def _card(finding: Finding) -> str:
    subclaim, found = finding.subclaim, finding.found
    facts = {
        "because": escape(finding.reason),
        "effect": "" if found is None else _effect(found, subclaim.unit),
        "p": "" if finding.p is None else _p(finding),
        "rule": escape(subclaim.rule.explain()),
        "only if": items(gate.explain() for gate in subclaim.gates),
        "negative controls": items(control.explain() for control in subclaim.controls),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items() if text)
    stamps = "".join(f'<p class="refused">{escape(stamp)}</p>' for stamp in finding.stamps)
    return (
        f'<article class="card" id="{place_of(finding)}" tabindex="-1">\n'
        f"<h5>{escape(subclaim.id)}: {_verdict(finding.verdict)}</h5>\n<p>{escape(subclaim.text)}</p>\n{stamps}"
        f"<dl>{listed}</dl>{_published(subclaim.published)}</article>\n"
    )


def _verdict(verdict: Verdict) -> str:
    return f'<span class="verdict {_LOOKS.get(verdict, "open")}">{escape(verdict)}</span>'


def _effect(found: Measured, unit: str) -> str:
    mean, half, n = found.effect.mean, found.effect.half_width, found.effect.n
    parts = [f"{mean:+.4g} {unit}".rstrip()]
    if not math.isnan(half):
        parts.append(f"95 % interval {mean - half:+.4g} to {mean + half:+.4g}")
    parts.append(f"n = {n}")
    if not math.isnan(found.detectable):
        parts.append(f"detectable with 80 % power: {found.detectable:.2g}")
    return escape("; ".join([*parts, found.note] if found.note else parts))


def _p(finding: Finding) -> str:
    of = "equivalence" if of_equality(finding.subclaim.rule) else "difference"
    return f"{escape(p_text(finding.p or 0.0))}, of {of}, after Holm's correction"


def _published(published: Iterable[Published]) -> str:
    """Published figures, folded; [L]: read in the source, [L2]: in somebody's notes on it."""
    listed = items(f"{one.figure} [{one.tag}] ({one.source})" for one in published)
    return f"<details><summary>published</summary>{listed}</details>" if listed else ""

"""Claims with their verdicts in HTML: the list of all of them, and a card for each sub-claim of a study."""

from collections.abc import Collection, Iterable, Sequence
from html import escape

from research.analysis import claim_words
from research.analysis.claims import Published
from research.analysis.conclusions import Judged
from research.analysis.decisions import Verdict
from research.analysis.fragments import Section, items, link, place_in, scrolled
from research.analysis.verdicts import Finding

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
            parts.append(f"<li>{shown}: {_verdict(finding)}")
        lines.append(
            f'<tr><th scope="row">{escape(one.claim.id)}</th><td>{_verdict(one)}</td>'
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
    return "".join(map(card, section.findings))


def card(finding: Finding) -> str:
    """A sub-claim with its verdict and all there is to say of it."""
    listed = "".join(
        f"<dt>{name}</dt><dd>{escape(texts[0]) if len(texts) == 1 else items(texts)}</dd>"
        for name, texts in claim_words.facts(finding).items()
        if texts
    )
    stamps = "".join(f'<p class="refused">{escape(stamp.text)}</p>' for stamp in finding.stamps)
    subclaim = finding.subclaim
    return (
        f'<article class="card" id="{place_of(finding)}" tabindex="-1">\n'
        f"<h5>{escape(subclaim.id)}: {_verdict(finding)}</h5>\n<p>{escape(subclaim.text)}</p>\n{stamps}"
        f"<dl>{listed}</dl>{_published(subclaim.published)}</article>\n"
    )


def _verdict(judged: Judged | Finding) -> str:
    looks = "open" if judged.rejected else _LOOKS.get(judged.verdict, "open")
    return f'<span class="verdict {looks}">{escape(judged.said)}</span>'


def _published(published: Iterable[Published]) -> str:
    """Published figures, folded; [L]: read in the source, [L2]: in somebody's notes on it."""
    listed = items(map(claim_words.published, published))
    return f"<details><summary>published</summary>{listed}</details>" if listed else ""

"""Whether documents say of the claims what the ledger says."""

import re
from collections.abc import Iterable, Iterator

from research.analysis.conclusions import Judged
from research.analysis.decisions import Verdict
from research.analysis.verdicts import CAVEAT

_VERDICT = "|".join(map(re.escape, sorted(Verdict, key=len, reverse=True)))
_TOKEN = re.compile(
    r"\b(?P<first>C\d+)(?:-|–| to )C?(?P<last>\d+)\b"
    r"|\b(?P<id>C\d+(?:\.\w+)?)\b"
    rf"|\b(?P<un>(?i:un|non-))?(?P<verdict>(?i:{_VERDICT}))\b(?: (?:supported|refuted)\b)?"
    rf"(?P<caveat>{re.escape(CAVEAT)})?(?P<heads>\W{{0,4}}[:|])?"
)
_NOT = re.compile(r"\b(?:not|never|no longer|none|cannot|hardly|neither|nor|\w+n['’]t)\b", re.IGNORECASE)
_CLAUSE = re.compile(r"[;:|]|\.\s")


def stated(text: str) -> tuple[tuple[str, str], ...]:
    """The verdicts that a document states: a claim or sub-claim, and the verdict as it is stated.

    On one line, a verdict is that of all claims before it, back to the verdict before: `C1 and C2 are supported`,
    `C1-C3: refuted; C4: partly`. With none before it and a colon or a bar after it, it is that of the claims behind
    it: `supported: C1, C2`. What is denied, as in `C1 is not supported` or `C1 is unsupported`, is stated as
    "not supported", which no ledger says.
    """
    return tuple(found for line in text.splitlines() for found in _of_line(line))


def contradictions(text: str, judged: Iterable[Judged]) -> tuple[str, ...]:
    """What a document states and the ledger does not say, one line each."""
    known: dict[str, str] = {}
    for one in judged:
        known[one.claim.id] = one.said
        known |= {finding.subclaim.id: finding.said for finding in one.findings}
    return tuple(
        f"{name} is stated as {said!r}, the ledger says {known.get(name, 'nothing of it')!r}; see docs/CLAIMS.md"
        for name, said in stated(text)
        if known.get(name) != said
    )


def _of_line(line: str) -> Iterator[tuple[str, str]]:
    every: list[str] = []  # claims so far
    waiting: list[str] = []  # those that no verdict has followed yet
    heading, end = "", 0  # the verdict of claims that come, and where the last verdict ends
    for token in _TOKEN.finditer(line):
        if token["verdict"] is None:
            names = _names(token)
            every += names
            if heading:
                yield from ((name, heading) for name in names)
            else:
                waiting += names
            continue
        clause = _CLAUSE.split(line[end : token.start()])[-1]
        denied = token["un"] or _NOT.search(clause)
        said = f"{'not ' if denied else ''}{token['verdict'].lower()}{token['caveat'] or ''}"
        yield from ((name, said) for name in waiting or (every if denied else []))
        heading = said if (token["heads"] or token["un"]) and not waiting else ""
        waiting, end = [], token.end()


def _names(token: re.Match[str]) -> list[str]:
    if token["id"]:
        return [token["id"]]
    first, last = int(token["first"][1:]), int(token["last"])
    return [f"C{number}" for number in range(first, last + 1)]

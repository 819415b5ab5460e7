"""What there is to say of a finding, in words; the page of claims and the report only lay it out."""

import math

from research.analysis import statistics
from research.analysis.claims import Published
from research.analysis.decisions import Measured
from research.analysis.verdicts import Finding


def facts(finding: Finding) -> dict[str, tuple[str, ...]]:
    """By what they are: none, one, or as many as there are of it. `detectable` is the least effect that is found with
    80 % power at the level that the smallest p of the study's family is held to.
    """
    subclaim, found = finding.subclaim, finding.found
    shown: dict[str, tuple[str, ...]] = {
        "because": (finding.reason,) if finding.reason else (),
        "effect": (),
        "p": () if finding.p is None else (f"{statistics.p_text(finding.p)}, of {finding.by}",),
        "n": (),
        "detectable": (),
        "rule": (subclaim.rule.explain(),),
        "only if": tuple(gate.explain() for gate in subclaim.gates),
        "negative controls": tuple(control.explain() for control in subclaim.controls),
    }
    if found is not None:
        shown |= {"effect": (_effect(found, subclaim.unit),), "n": (str(found.effect.n),)}
        if not math.isnan(found.detectable):
            shown["detectable"] = (f"{found.detectable:.2g} {subclaim.unit}".rstrip(),)
    return shown


def published(one: Published) -> str:
    """A published figure with its tag and source."""
    return f"{one.figure} [{one.tag}] ({one.source})"


def _effect(found: Measured, unit: str) -> str:
    interval = "" if math.isnan(found.effect.half_width) else f" ± {found.effect.half_width:.2g}"
    note = f" ({found.note})" if found.note else ""
    return f"{found.effect.mean:+.4g}{interval} {unit}".rstrip() + note

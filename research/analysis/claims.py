"""Claims, their sub-claims, and what has to be declared before a run so that its rows can decide them."""

import dataclasses
import hashlib
import json
import math
import re
import statistics as standard
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from research.analysis.decisions import ALPHA, ClaimError, PairedTest, Reading, Rule
from research.analysis.rules import Difference

LEAST_SIZES = 3  # that show whether a sign holds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A published figure and where it stands. `tag`: L, read in the source; L2, in somebody's notes on it.

    ClaimError: no figure or no source.
    """

    figure: str
    source: str
    tag: Literal["L", "L2"]

    def __post_init__(self):
        for name in ("figure", "source"):
            if not getattr(self, name).strip():
                raise ClaimError(
                    f"Published.{name} is empty beside {(self.figure.strip() or self.source)!r}, expected what was "
                    "published and where it stands; see configs/claims.gin"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence to be tested, and what is published about it.

    Attributes:
      id: C1, C2, ...
      parts: by name, the sub-claims that it takes, before any study declares how one is decided: the names of
        `SubClaim`s, without the claim's. A study may declare no others; where there are none it may declare any.
    """

    id: str
    text: str
    parts: dict[str, str] = dataclasses.field(default_factory=dict)
    published: tuple[Published, ...] = ()

    @property
    def subclaims(self) -> dict[str, str]:
        """The texts of its parts by the ids of sub-claims."""
        return {f"{self.id}.{name}": text for name, text in self.parts.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """All claims, in order. ClaimError: two of one id."""

    claims: tuple[Claim, ...]

    def __post_init__(self):
        require_distinct([claim.id for claim in self.claims], "Ledger.claims in configs/claims.gin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """A precondition on an arm, judged by its median seed; no seed is dropped. ClaimError: no bound."""

    metric: str
    arm: str
    least: float | None = None
    most: float | None = None

    def __post_init__(self):
        if self.least is None and self.most is None:
            raise ClaimError(f"Gate on {self.metric} of {self.arm}: no bound; give it a least or a most")

    def explain(self) -> str:
        bounds = [("at least", self.least), ("at most", self.most)]
        expected = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        return f"{self.metric} of {self.arm} {expected}"

    def failure(self, seeds: Iterable[float]) -> str | None:
        """Why the gate fails at these values, or None."""
        median = standard.median(seeds)
        least = -math.inf if self.least is None else self.least
        most = math.inf if self.most is None else self.most
        if least <= median <= most:
            return None
        return f"gate failed: expected {self.explain()}, found {median:.4g} at the median seed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubClaim:
    """A part of a claim that one rule decides.

    Attributes:
      id: the claim's and a name, such as C1.efficiency.
      rule: decides it.
      gates: preconditions; where one fails the verdict is inconclusive.
      controls: negative controls, tests that must come out null: rejected where the difference is significant and
        not of the expected sign (A/A contrasts expect `equal`). They are tests of the study as the rules are.
      sizes: the same difference at LEAST_SIZES or more model sizes, smallest first: where one has another sign than
        the effect of the rule the verdict says so.
      unit: of the effect.
      published: what it compares with.

    ClaimError: another id, or sizes that show no trend: too few, or of a rule that expects equality or nothing.
    """

    id: str
    text: str
    rule: Rule
    gates: tuple[Gate, ...] = ()
    controls: tuple[PairedTest, ...] = ()
    sizes: tuple[Difference, ...] = ()
    unit: str = ""
    published: tuple[Published, ...] = ()

    def __post_init__(self):
        if not re.fullmatch(r"C\d+\.\w+", self.id):
            raise ClaimError(
                f"SubClaim.id = {self.id!r}: expected a claim and a name, such as 'C1.efficiency'"
            )
        if self.sizes and len(self.sizes) < LEAST_SIZES:
            raise ClaimError(
                f"SubClaim.sizes of {self.id}: {len(self.sizes)}, expected at least {LEAST_SIZES}"
            )
        if self.sizes and self.rule.direction() not in ("less", "greater"):
            raise ClaimError(f"SubClaim.sizes of {self.id}: expected none, since its rule expects no sign")

    @property
    def claim(self) -> str:
        """The id of its claim."""
        return self.id.partition(".")[0]

    def reads(self) -> tuple[Reading, ...]:
        """All values that its verdict needs, each once."""
        controls = (reading for control in self.controls for reading in control.reads())
        return tuple(dict.fromkeys((*self.deciding(), *controls)))

    def deciding(self) -> tuple[Reading, ...]:
        """Those of its rule and gates, which have to be measured after they were declared, on the same data. Controls
        may be of other data and known before: a null says that noise is what it should be, and nothing of the effect.
        """
        gates = ((gate.arm, gate.metric) for gate in self.gates)
        return tuple(dict.fromkeys((*self.rule.reads(), *gates)))


def declared(
    subclaims: Iterable[SubClaim], seeds: Iterable[int], fewer: Mapping[str, Sequence[int]] | None = None
) -> dict[str, str]:
    """What a row records of the sub-claims of its study, by id: what is declared of them when the cell begins to run.

    A value is a SHA-256 of all that decides the verdict (rule, gates, controls, sizes, level and declared seeds; not
    texts, units or sources), and after it the tests that the sub-claim brings into each family: `<hash>
    difference:1f2e3d4c,5a6b7c8d equivalence:1f2e3d4c`. So a test that is withdrawn later is still counted.

    Args:
      seeds: those of the study at this scale.
      fewer: by arm, the seeds of those that run not all of them.
    """
    run = tuple(sorted(set(seeds)))
    return {
        one.id: " ".join([_hash(one, seeds_of(one, run, fewer or {})), *_tests(one)]) for one in subclaims
    }


def seeds_of(subclaim: SubClaim, seeds: Sequence[int], fewer: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The seeds that all arms which it reads run; see `declared`."""
    few = [set(fewer[arm]) for arm in dict(subclaim.reads()) if arm in fewer]
    return tuple(sorted(set(seeds).intersection(*few)))


def recorded_tests(value: str) -> dict[str, frozenset[str]]:
    """The tests in each family, of a value of `declared`."""
    families = (part.partition(":") for part in value.split()[1:])
    return {family: frozenset(filter(None, names.split(","))) for family, _, names in families}


def key_of(rule: Rule) -> str:
    """The name of a rule's test in a family: equal rules are one test."""
    return _digest(rule)[:8]


def key_of_control(control: PairedTest) -> str:
    """The name of a negative control's test, which is another one than that of an equal rule."""
    return _digest(("control", control))[:8]


def _hash(subclaim: SubClaim, seeds: tuple[int, ...]) -> str:
    return _digest((subclaim.rule, subclaim.gates, subclaim.controls, subclaim.sizes, ALPHA, seeds))


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def _tests(subclaim: SubClaim) -> list[str]:
    names = {family: {key_of(subclaim.rule)} for family in subclaim.rule.families}
    if subclaim.controls:
        controls = {key_of_control(control) for control in subclaim.controls}
        names["difference"] = names.get("difference", set()) | controls
    return [f"{family}:{','.join(sorted(found))}" for family, found in sorted(names.items())]


def canonical(value: Any) -> str:
    """A rule, or several, as text: the same for equal rules in any process."""
    return json.dumps(_plain(value), sort_keys=True)


def require_distinct(ids: Sequence[str], where: str) -> None:
    """ClaimError where an id stands twice."""
    if twice := sorted({one for one in ids if ids.count(one) > 1}):
        raise ClaimError(f"{where}: {twice[0]!r} is declared twice, expected once")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"": type(value).__name__, **fields}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return float(value) if isinstance(value, int | float) else value  # gin reads 1 and 1.0 as two things

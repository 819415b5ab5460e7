"""What a page of results is made of: sections of runs and pictures, and the small pieces of HTML that all parts use."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from research.analysis import drawing, tables
from research.analysis.results import Row
from research.analysis.verdicts import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PER_INCH = 80  # pixels of a picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """An SVG image, what it is called, and what it shows for who cannot see it; `width` and `height` in pixels."""

    caption: str
    alt: str
    svg: bytes
    width: int
    height: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A row, and what its run folder has beside it where there is one: the entries of its log, texts it wrote."""

    row: Row
    log: tuple[Mapping[str, Any], ...] = ()
    samples: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tabled:
    """A table under its title; `baselines`: of each arm the one that its column `difference` is to."""

    title: str
    table: tables.Table
    baselines: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A study at one scale.

    Attributes:
      study, scale: their names.
      runs: of all arms and seeds that are declared, in that order.
      compared: the arms that are compared with each other, by a name for them: the first is the baseline.
      tables: of the runs; where one was refused `notes` say so.
      figures, masks: the study's figures; what the arms' masks look like.
      findings: the study's sub-claims with their verdicts.
      notes: what else there is to say.
    """

    study: str
    scale: str
    runs: tuple[Run, ...]
    compared: Mapping[str, Sequence[str]]
    tables: tuple[Tabled, ...] = ()
    figures: tuple[Picture, ...] = ()
    masks: tuple[Picture, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """How the section is called where others are."""
        return f"{self.study}, {self.scale}"

    @property
    def arms(self) -> tuple[str, ...]:
        """Those that have a run."""
        return tuple(dict.fromkeys(run.row.arm for run in self.runs))

    def of(self, arm: str) -> list[Run]:
        """The runs of an arm."""
        return [run for run in self.runs if run.row.arm == arm]

    def place(self, *parts: str) -> str:
        """An id of the page; see `place_in`."""
        return place_in(self.study, self.scale, *parts)

    def place_of(self, run: Run) -> str:
        """The id of a run's row."""
        return self.place("arm", run.row.arm, "seed", str(run.row.seed))


def picture(figure: Figure, *, caption: str, alt: str) -> Picture:
    """A matplotlib figure as an image: the same bytes for the same figure."""
    import matplotlib

    file = io.BytesIO()
    with drawing.styled(), matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text: smaller
        drawing.write_svg(figure, file)
    width, height = (round(inches * PER_INCH) for inches in figure.get_size_inches())
    return Picture(caption=caption, alt=alt, svg=file.getvalue(), width=width, height=height)


def scrolled(label: str, inner: str) -> str:
    """What may be wider than the page, in a box of its own that the keyboard reaches."""
    return f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">\n{inner}\n</div>\n'


def place_in(*parts: str) -> str:
    """An id that no other parts have: letters, digits and "_.-~%/", so that it needs no escaping and a link to it is
    found as it stands.
    """
    return "/".join(quote(part, safe="") for part in parts)


def items(texts: Iterable[str]) -> str:
    """A list; nothing where there are none."""
    listed = "".join(f"<li>{escape(text)}" for text in texts)
    return f"<ul>{listed}</ul>" if listed else ""


def link(place: str, text: str) -> str:
    """A link to an id of the page."""
    return f'<a href="#{place}">{escape(text)}</a>'

"""Rows, tables and pictures as one HTML page that needs nothing else: no network, no server, no second file.

All that is read is plain HTML and folds with <details>; `report.js` only sorts, zooms and unfolds. What comes from
rows, logs and configs is escaped, and the page's own policy lets no other script run and nothing be fetched.
"""

import base64
import contextlib
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from research.analysis import arms, claim_cards, curves, verdicts
from research.analysis.conclusions import Judged
from research.analysis.fragments import Picture, Run, Section, Tabled, items, link, scrolled
from research.analysis.rendering import Cell, Measure, counted


def page(sections: Sequence[Section], judged: Sequence[Judged] = (), *, title: str) -> str:
    """The whole page of claims and of sections, those of a study beside each other. Equal ones give equal text.

    What occurs several times (a config, a picture) is in it once and linked from the other places.
    """
    style, script = (_packaged(f"report.{kind}") for kind in ("css", "js"))
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    seen: dict[Any, str] = {}
    studies = itertools.groupby(sections, key=lambda section: section.study)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the results</a>\n'
        f"<header>\n<h1>{escape(title)}</h1>\n<p>{_READING}</p>\n</header>\n"
        f'<nav aria-label="Contents">\n<ul>\n{"".join(_contents(judged, sections))}</ul>\n</nav>\n'
        f'<main id="main" tabindex="-1">\n{_claims(judged, sections)}'
        f"{''.join(_study(*study, seen) for study in studies)}</main>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


_READING = (
    "Each number of a table is a mean over seeds with the half width of its 95 % t interval; open it for the seeds "
    "it is made of, and follow a seed to its run: the whole row, curves, config and samples. Columns sort, curves zoom."
)


def table(section: Section, shown: Tabled) -> str:
    """A table, each number of it open to the seeds that it is made of."""
    columns = shown.table.columns
    labels = ["arm", "seeds", *(column.label for column in columns)]
    heads = "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
    body = []
    for line in shown.table.lines:
        name = link(section.place("arm", line.arm), line.arm) if line.found else escape(line.arm)
        cells = []
        for index, cell in enumerate(line.cells):
            differs = columns[index].name == "difference"  # of what stands before it
            measure = columns[index - differs].measure
            values = {} if measure is None else _numbers(section, line.arm, measure)
            if differs and measure is not None:
                theirs = _numbers(section, shown.baselines.get(line.arm, ""), measure)
                values = {seed: value - theirs[seed] for seed, value in values.items() if seed in theirs}
            cells.append(_cell(section, line.arm, measure, cell, values))
        body.append(
            f'<tr><th scope="row" data-value="{escape(line.arm)}">{name}</th>'
            f'<td data-value="{line.found}">{escape(line.seeds)}</td>{"".join(cells)}</tr>\n'
        )
    after = section.place("table", shown.title, "notes")
    return (
        f'<a class="skip" href="#{after}">Skip the table</a>\n'
        + scrolled(
            f"table: {shown.title}",
            f'<table class="sortable">\n<caption>{escape(shown.title)}</caption>\n'
            f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{''.join(body)}</tbody>\n</table>",
        )
        + f'<div class="notes" id="{after}" tabindex="-1">{items(shown.table.notes)}</div>\n'
    )


def _cell(
    section: Section, arm: str, measure: Measure | None, cell: Cell, values: Mapping[int, float]
) -> str:
    """A number opens to its interval and to the `values` that it is the mean of, each with a link to its run."""
    if cell.estimate is None:
        return f"<td>{escape(cell.text)}</td>"
    mean, half, n = cell.estimate.mean, cell.estimate.half_width, cell.estimate.n
    if measure is None or not values:
        return f'<td data-value="{mean!r}">{escape(cell.text)}</td>'

    def text(value: float) -> str:
        return escape(f"{value / measure.size:z{measure.format}}{measure.unit}")

    seeds = [
        f"<li>{link(section.place_of(run), f'seed {run.row.seed}')}: {text(values[run.row.seed])}"
        for run in section.of(arm)
        if run.row.seed in values
    ]
    interval = (
        f"<li>95 % interval over {n} seeds: {text(mean - half)} to {text(mean + half)}"
        if math.isfinite(half)
        else ""
    )
    return (
        f'<td data-value="{mean!r}"><details><summary>{escape(cell.text)}</summary>'
        f"<ul>{''.join(seeds)}{interval}</ul></details></td>"
    )


def _numbers(section: Section, arm: str, measure: Measure) -> dict[int, float]:
    """What the runs of an arm have measured, by seed."""
    found = {}
    for run in section.of(arm):
        with contextlib.suppress(KeyError):
            found[run.row.seed] = run.row.value(measure.path)
    return {seed: value for seed, value in found.items() if value is not None and math.isfinite(value)}


def learning_curves(section: Section) -> str:
    """A chart for arms that are compared with each other: the loss in training, the mean over the seeds of an arm."""
    charts = []
    for together, members in section.compared.items():
        lines = [_mean_curve(arm, section.of(arm), colour) for colour, arm in enumerate(members)]
        place = section.place("curves", together)
        charts.append(
            curves.chart(lines, place=place, title=f"{together}: mean over seeds", of="training loss (nats)")
        )
    return "".join(charts)


def _mean_curve(arm: str, runs: Sequence[Run], colour: int) -> curves.Line:
    """The mean of all runs that have a curve, as far as all of them go; the label says so where one stopped early."""
    logs = {run.row.seed: curves.points(run.log, "loss") for run in runs}
    logs = {seed: points for seed, points in logs.items() if points}
    mean = curves.mean(list(logs.values()))
    said = counted(len(logs), "seed")
    if len(logs) < len(runs):
        said = f"{len(logs)} of {counted(len(runs), 'seed')}"
    last = max((points[-1][0] for points in logs.values()), default=0)
    if stopped := [str(seed) for seed, points in logs.items() if points[-1][0] < last]:
        end = f"{mean[-1][0]:g}" if mean else "0"
        said += f"; to step {end}, the last that all have, of {last:g}: {', '.join(stopped)} stopped early"
    return curves.Line(label=f"{arm} ({said})", points=mean, colour=colour)


def pictures(section: Section, drawn: Iterable[Picture], seen: dict[Any, str]) -> str:
    """Images with their captions; one that the page already has is a link."""
    found = []
    for number, each in enumerate(drawn):
        place = section.place("picture", each.caption, str(number))
        shown = seen.setdefault((each.svg, each.alt), place)
        caption = f"<figcaption>{escape(each.caption)}</figcaption>"
        if shown != place:
            found.append(f"<figure>{caption}<p>{link(shown, 'The same picture as above')}</p></figure>\n")
            continue
        source = base64.b64encode(each.svg).decode()
        size = "narrow" if each.width <= 480 else "medium" if each.width < 900 else "wide"
        image = (
            f'<img class="{size}" src="data:image/svg+xml;base64,{source}" alt="{escape(each.alt)}" '
            f'width="{each.width}" height="{each.height}">'
        )
        found.append(f'<figure id="{place}">{caption}{scrolled(each.caption, image)}</figure>\n')
    return f'<div class="pictures">\n{"".join(found)}</div>\n' if found else ""


def _claims(judged: Sequence[Judged], sections: Iterable[Section]) -> str:
    if not judged:
        return ""
    places = {claim_cards.place_of(finding) for section in sections for finding in section.findings}
    return f'<section id="claims">\n<h2>Claims</h2>\n{claim_cards.overview(judged, places)}</section>\n'


def _contents(judged: Sequence[Judged], sections: Sequence[Section]) -> Iterator[str]:
    if judged:
        yield f"<li>{link('claims', 'Claims')}\n"
    for section in sections:
        declared = {line.arm: line.declared for shown in section.tables for line in shown.table.lines}
        count = f"{len(section.runs)} of {counted(sum(declared.values()), 'run')}" if declared else "no table"
        yield f'<li>{link(section.place(), section.title)} <span class="quiet">{count}</span>\n'


def _study(name: str, sections: Iterable[Section], seen: dict[Any, str]) -> str:
    scales = "".join(_scale(section, seen) for section in sections)
    return f"<section>\n<h2>{escape(name)}</h2>\n{scales}</section>\n"


def _scale(section: Section, seen: dict[Any, str]) -> str:
    parts = {
        "Claims": claim_cards.cards(section),
        "Tables": "".join(table(section, shown) for shown in section.tables),
        "Figures": pictures(section, section.figures, seen),
        "Learning curves": learning_curves(section),
        "Masks": pictures(section, section.masks, seen),
        "Runs": "".join(arms.folded(section, arm, seen) for arm in section.arms),
    }
    said = (*section.notes, *verdicts.stamps(section.findings))
    notes = "".join(f'<p class="refused">{escape(note)}</p>\n' for note in said)
    body = "".join(f"<h4>{name}</h4>\n{text}" for name, text in parts.items() if text)
    return (
        f'<section id="{section.place()}">\n<h3>Scale {escape(section.scale)}</h3>\n{notes}{body}</section>\n'
    )


def _packaged(name: str) -> str:
    return resources.files("research.analysis").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

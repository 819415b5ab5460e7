"""Rows, tables and pictures as one HTML page that needs nothing else: no network, no server, no second file.

All that is read is plain HTML and folds with <details>; `report.js` only sorts, zooms and unfolds. What comes from
rows, logs and configs is escaped, and the page's own policy lets no other script run and nothing be fetched.
"""

import base64
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from typing import Any

from research.analysis import arms, curves, tables
from research.analysis.fragments import Picture, Section, counted, link, scrolled
from research.analysis.tables import Cell, Column, Measure, Table


def page(sections: Sequence[Section], *, title: str) -> str:
    """The whole page of sections, those of a study beside each other. Equal sections give equal text.

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
        f'<nav aria-label="Studies">\n<ul>\n{"".join(_contents(sections))}</ul>\n</nav>\n'
        f'<main id="main" tabindex="-1">\n{"".join(_study(*study, seen) for study in studies)}</main>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


_READING = (
    "Each number of a table is a mean over seeds with the half width of its 95 % t interval; open it for the seeds "
    "it is made of, and follow a seed to its run: the whole row, curves, config and samples. Columns sort, curves zoom."
)


def table(section: Section, table: Table) -> str:
    """The table, each number of it open to the seeds that it is made of."""
    labels = ["arm", "seeds", *(column.label for column in table.columns)]
    heads = "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
    body = []
    for line in table.lines:
        name = link(section.place("arm", line.arm), line.arm) if line.found else escape(line.arm)
        cells = zip(table.columns, line.cells, strict=True)
        body.append(
            f'<tr><th scope="row" data-value="{escape(line.arm)}">{name}</th>'
            f'<td data-value="{line.found}">{escape(line.seeds)}</td>'
            f"{''.join(_cell(section, line.arm, column, cell) for column, cell in cells)}</tr>\n"
        )
    after = section.place("table", "notes")
    return (
        f'<a class="skip" href="#{after}">Skip the table</a>\n'
        + scrolled(
            f"table of {section.title}",
            f'<table class="sortable">\n<caption>{escape(section.title)}</caption>\n'
            f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{''.join(body)}</tbody>\n</table>",
        )
        + f'<ul class="notes" id="{after}" tabindex="-1">{_items(table.notes)}</ul>\n'
    )


def _cell(section: Section, arm: str, column: Column, cell: Cell) -> str:
    """A number opens to its interval and to the numbers that it is the mean of, each with a link to its run."""
    if cell.estimate is None:
        return f"<td>{escape(cell.text)}</td>"
    mean, half = cell.estimate.mean, cell.estimate.half_width
    measure = tables.MEASURES["loss" if column.name == "difference" else column.name]
    values = _numbers(section, arm, measure)
    if column.name == "difference":
        baseline = next(members[0] for members in section.groups.values() if arm in members)
        theirs = _numbers(section, baseline, measure)
        values = {seed: values[seed] - theirs[seed] for seed in values if seed in theirs}

    def text(value: float) -> str:
        return escape(f"{value / measure.size:z{measure.format}}{measure.unit}")

    items = [
        f"<li>{link(section.place_of(run), f'seed {run.row.seed}')}: {text(values[run.row.seed])}"
        for run in section.of(arm)
        if run.row.seed in values
    ]
    if math.isfinite(half):
        items.append(f"<li>{text(mean - half)} to {text(mean + half)}")
    return (
        f'<td data-value="{mean!r}"><details><summary>{escape(cell.text)}</summary>'
        f"<ul>{''.join(items)}</ul></details></td>"
    )


def _numbers(section: Section, arm: str, measure: Measure) -> dict[int, float]:
    """What was measured of an arm, by seed."""
    values = {run.row.seed: run.row.value(measure.path) for run in section.of(arm)}
    return {seed: value for seed, value in values.items() if value is not None}


def learning_curves(section: Section) -> str:
    """A chart for each group of arms: the loss in training, the mean over the seeds of an arm."""
    charts = []
    for group, members in section.groups.items():
        lines = []
        for colour, arm in enumerate(members):
            logs = [curves.points(run.log, "loss") for run in section.of(arm) if run.log]
            label = f"{arm} ({counted(len(logs), 'seed')})"
            lines.append(curves.Line(label=label, points=curves.mean(logs), colour=colour))
        place = section.place("curves", group)
        charts.append(
            curves.chart(lines, place=place, title=f"{group}: mean over seeds", of="training loss (nats)")
        )
    return "".join(charts)


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


def _contents(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        declared = 0 if section.table is None else sum(line.declared for line in section.table.lines)
        count = f"{len(section.runs)} of {counted(declared, 'run')}" if declared else "no table"
        yield f'<li>{link(section.place(), section.title)} <span class="quiet">{count}</span>\n'


def _study(name: str, sections: Iterable[Section], seen: dict[Any, str]) -> str:
    scales = "".join(_scale(section, seen) for section in sections)
    return f"<section>\n<h2>{escape(name)}</h2>\n{scales}</section>\n"


def _scale(section: Section, seen: dict[Any, str]) -> str:
    parts = {
        "Table": "" if section.table is None else table(section, section.table),
        "Figures": pictures(section, section.figures, seen),
        "Learning curves": learning_curves(section),
        "Masks": pictures(section, section.masks, seen),
        "Runs": "".join(arms.folded(section, arm, seen) for arm in section.arms),
    }
    notes = "".join(f'<p class="refused">{escape(note)}</p>\n' for note in section.notes)
    body = "".join(f"<h4>{name}</h4>\n{text}" for name, text in parts.items() if text)
    return (
        f'<section id="{section.place()}">\n<h3>Scale {escape(section.scale)}</h3>\n{notes}{body}</section>\n'
    )


def _items(texts: Iterable[str]) -> str:
    return "".join(f"<li>{escape(text)}" for text in texts)


def _packaged(name: str) -> str:
    return resources.files("research.analysis").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

"""All there is of an arm's runs, folded: curves, the rows side by side, the config, samples."""

import dataclasses
import difflib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from research.analysis import curves
from research.analysis.fragments import Run, Section, link, scrolled
from research.analysis.rendering import counted
from research.analysis.results import Row

SAMPLES = 20  # of a run that are shown,
CHARACTERS = 4000  # and of each of them


def folded(section: Section, arm: str, seen: dict[Any, str]) -> str:
    """What there is of an arm. `seen`: the id of each config that the page has already, read and added to."""
    runs = section.of(arm)
    samples = "".join(
        f'<details class="block"><summary>Samples of seed {run.row.seed} ({len(run.samples)})</summary>'
        + "".join(f'<pre class="text">{escape(text[:CHARACTERS])}</pre>' for text in run.samples[:SAMPLES])
        + "</details>\n"
        for run in runs
        if run.samples
    )
    return (
        f'<details class="block"><summary>{escape(arm)}: {counted(len(runs), "run")}</summary>\n'
        f'<div id="{section.place("arm", arm)}" tabindex="-1">\n{"".join(_charts(section, arm, runs))}'
        f"{_values(section, arm, runs)}{_config(section, arm, runs, seen)}{samples}</div></details>\n"
    )


def _charts(section: Section, arm: str, runs: Sequence[Run]) -> Iterator[str]:
    """Of the loss, in training and held out, and of each other held-out score; a colour a seed."""

    def lines(name: str, words: str, dashed: bool = False) -> list[curves.Line]:
        return [
            curves.Line(
                label=f"seed {run.row.seed}{words}",
                points=curves.points(run.log, name),
                colour=colour,
                dashed=dashed,
            )
            for colour, run in enumerate(runs)
        ]

    losses = lines("loss", ", training")
    held_out = lines("validation_loss", ", validation", dashed=True)
    losses += held_out if any(line.points for line in held_out) else []
    place = section.place("arm", arm, "loss")
    yield curves.chart(losses, place=place, title=f"{arm}: loss", of="loss (nats)")
    for name in dict.fromkeys(name for run in runs for name in curves.held_out(run.log)):
        if name != "validation_loss":
            place = section.place("arm", arm, "score", name)
            yield curves.chart(lines(name, ""), place=place, title=f"{arm}: {name}", of=name)


def _values(section: Section, arm: str, runs: Sequence[Run]) -> str:
    """The rows of an arm side by side, a line a value; one that all have is written once."""
    rows = [dict(_flat(run.row)) for run in runs]
    lines = []
    for name in dict.fromkeys(name for row in rows for name in row):
        texts = [row.get(name, "none") for row in rows]
        if len(set(texts)) == 1:
            cells = f'<td colspan="{len(texts)}">{escape(texts[0])}</td>'
        else:
            cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>\n')
    heads = "".join(f'<th scope="col" id="{section.place_of(run)}">seed {run.row.seed}</th>' for run in runs)
    return scrolled(
        f"rows of {arm}, {section.title}",
        f'<table class="values">\n<caption>Rows of {escape(arm)}</caption>\n'
        f'<thead><tr><th scope="col">value</th>{heads}</tr></thead>\n<tbody>\n{"".join(lines)}</tbody>\n</table>',
    )


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted paths of a row and what is there as text; without what the page says elsewhere."""
    if isinstance(value, Row):
        for field in dataclasses.fields(value):
            if field.name not in ("study", "scale", "arm", "seed", "config"):
                yield from _flat(getattr(value, field.name), field.name)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}")
    elif value is None:
        yield path, "not measured"
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)


def _config(section: Section, arm: str, runs: Sequence[Run], seen: dict[Any, str]) -> str:
    """The config of the first run, and the lines in which those of the others differ."""
    first, *others = (run.row.config for run in runs)
    place = section.place("arm", arm, "config")
    shown = seen.setdefault(first, place)
    text = [f'<pre id="{place}" tabindex="0">{escape(first)}</pre>']
    if shown != place:
        text = [f'<p id="{place}">The same as {link(shown, "an arm above")}.</p>']
    for run, other in zip(runs[1:], others, strict=True):
        lines = difflib.unified_diff(first.splitlines(), other.splitlines(), n=0, lineterm="")
        differing = "\n".join(line for line in itertools.islice(lines, 2, None) if not line.startswith("@@"))
        text.append(
            f"<p>Seed {run.row.seed} {'differs in' if differing else 'has the same'}</p>"
            + (f"<pre>{escape(differing)}</pre>" if differing else "")
        )
    return f'<details class="block"><summary>Config of seed {runs[0].row.seed}</summary>{"".join(text)}</details>\n'

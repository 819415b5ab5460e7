"""All results as one HTML file: python -m experiments.report [--out=runs/report.html]

Every study with rows under `results/` at every scale: its table, figures, masks, curves and runs. The file needs
nothing beside it. Curves and samples come from run folders, where this machine has them; all else comes from rows.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments import configs, experiment, folders, ledger, masks, start, study, tabulate
from research.analysis import figures, fragments, html, results, tables
from research.analysis.conclusions import Judged
from research.analysis.fragments import Picture, Run, Section, Tabled
from research.analysis.results import Row
from research.analysis.verdicts import Finding

FLAGS = flags.FLAGS
TITLE = "What does the architecture do?"
TOKENS = 16  # of the lines whose masks are drawn


def sections(results_dir: Path, runs_dir: Path, judged: Sequence[Judged] = ()) -> Iterator[Section]:
    """Studies with rows by name and scale. What is `judged` already is not judged again.

    Raises:
      ConfigError: rows of a study or scale that `configs/` does not have.
      ResultError: a file that is no row, or two rows of one cell.
    """
    known: dict[Any, Picture] = {}
    for folder in sorted(results_dir.glob("*/*/cells")):
        if any(folder.glob("*.json")):
            planned = study.load(folder.parent.parent.name, folder.parent.name)
            yield section(planned, results_dir, runs_dir, findings(planned, results_dir, judged), known)


def findings(planned: study.Study, results_dir: Path, judged: Sequence[Judged] = ()) -> tuple[Finding, ...]:
    """The verdicts on the study's sub-claims at its scale, from those that are judged already where they are."""
    if planned.scale in study.UNTUNED:
        return ()
    if not judged or planned.scale != ledger.SCALE:
        return ledger.of_study(planned.name, results_dir, planned.scale)
    return tuple(one for claim in judged for one in claim.findings if one.study == planned.name)


def section(
    planned: study.Study,
    results_dir: Path,
    runs_dir: Path,
    found: tuple[Finding, ...] = (),
    known: dict[Any, Picture] | None = None,
) -> Section:
    """A study at one scale with the findings on its claims; a table that is refused is a note. `known` keeps pictures
    of masks for the next one.
    """
    stored = results.load(tabulate.folder(planned, results_dir) / "cells")
    arms = tuple(arm for arms in planned.groups.values() for arm in arms)
    rows = results.select(stored, arms, planned.seeds)
    left_out = len(stored) - len(rows)
    notes = (
        [f"Left out: {left_out} rows of arms or seeds that the study does not declare."] if left_out else []
    )
    tabled, refused = rendered(planned, rows)
    drawn, undrawn = drawn_figures(planned, rows)
    masked, unmasked = mask_pictures(rows, {} if known is None else known)
    return Section(
        study=planned.name,
        scale=planned.scale,
        runs=tuple(run(row, runs_dir) for row in rows),
        compared={
            together: tuple(
                dict.fromkeys([first, *(arm for arm in arms if planned.compared[arm] == together)])
            )
            for together, first in planned.baselines.items()
        },
        tables=tuple(tabled),
        figures=tuple(drawn),
        masks=tuple(masked),
        findings=found,
        notes=(*notes, *refused, *undrawn, *unmasked),
    )


def rendered(planned: study.Study, rows: list[Row]) -> tuple[list[Tabled], list[str]]:
    """The table of the study, those over its tasks and of its sweeps, and which were refused and why."""
    found, refused, title = [], [], f"{planned.name}, {planned.scale}"
    try:
        baselines = {arm: planned.baselines[planned.compared[arm]] for arm in planned.arms}
        for name, table in tabulate.built(planned, rows).items():
            of = ": ".join([title, *(part.replace("_", " ") for part in name.split("_", 1)[1:])])
            found.append(Tabled(title=of, table=table, baselines=baselines))
        for name, table in tabulate.task_tables(planned, rows).items():
            found.append(Tabled(title=f"{title}: {name.replace('_', ' ')}", table=table, baselines=baselines))
        for number, table in enumerate(tabulate.sweep_tables(planned, rows), 1):
            files = {line.arm: planned.file(line.arm) for line in table.lines}
            found.append(Tabled(title=f"{title}: sweep {number}", table=table, baselines=files))
    except tables.TableError as error:
        refused.append(f"No table: {error}")
    return found, refused


def drawn_figures(planned: study.Study, rows: Sequence[Row]) -> tuple[list[Picture], list[str]]:
    """The figures that the study declares, and which could not be drawn and why."""
    pictures, undrawn = [], []
    for spec, arms, seeds in tabulate.figured(planned, rows):
        try:
            figure = spec.draw(rows, arms, seeds)
            words = figures.alt(spec, rows, arms, seeds)
        except figures.FigureError as error:
            undrawn.append(f"Not drawn: {error}")
            continue
        pictures.append(fragments.picture(figure, caption=spec.caption or spec.title, alt=words))
    return pictures, undrawn


def run(row: Row, runs_dir: Path) -> Run:
    """A row, and what its run folder has."""
    folder = runs_dir / row.study / row.scale / row.name.removesuffix(".json")
    samples = (text for path in sorted(folder.glob("samples*")) for text in _samples(path))
    return Run(row=row, log=tuple(folders.entries(folder / "metrics.jsonl")), samples=tuple(samples))


def _samples(path: Path) -> Iterable[str]:
    if path.suffix == ".txt":
        return [path.read_text(encoding="utf-8")]
    if path.suffix == ".jsonl":
        return [
            "\n".join(f"{name}: {value}" for name, value in entry.items()) for entry in folders.entries(path)
        ]
    return []


def mask_pictures(rows: Iterable[Row], known: dict[Any, Picture]) -> tuple[list[Picture], list[str]]:
    """What the masks of the arms look like, as the configs in their rows say, and which could not be drawn and why.

    Arms whose masks are the same share a picture. `known`: pictures by what they show, read and added to.
    """
    arms: dict[Any, list[str]] = {}
    undrawn = []
    firsts: dict[str, Row] = {}
    for row in rows:
        firsts.setdefault(row.arm, row)
    for arm, first in firsts.items():
        try:
            planned = configs.load(experiment.train, (), [first.config])
            panels = masks.panels(planned.model, masks.example(planned.data, TOKENS))
        except ValueError as error:  # a config of another version of the code
            undrawn.append(f"The mask of {arm} is not drawn: {error}")
            continue
        shown = tuple(
            (each.title, each.mask, each.memory, masks.kinds(each).tobytes(), each.k.length)
            for each in panels
        )
        arms.setdefault(shown, []).append(arm)
        if shown not in known:
            words = [f"{each.title}, {each.mask}: {each.mask.explain()}" for each in panels]
            alt = f"Which keys (columns) each query (row) sees. {'; '.join(words)}."
            known[shown] = fragments.picture(masks.draw(panels), caption="", alt=alt)
    pictures = [dataclasses.replace(known[shown], caption=", ".join(names)) for shown, names in arms.items()]
    return pictures, undrawn


def main(argv: list[str]) -> int:
    """Write the page. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --out=...")
    start.process()
    out = Path(FLAGS.out)
    try:
        judged = ledger.judged(FLAGS.results_dir)
        found = list(sections(Path(FLAGS.results_dir), Path(FLAGS.runs_dir), judged))
        if not found:
            raise results.ResultError(
                f"--results_dir={FLAGS.results_dir}: no rows in <study>/<scale>/cells; run python -m experiments.launch"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html.page(found, judged, title=TITLE), encoding="utf-8")
    except (ValueError, OSError) as error:
        return start.fail(error)
    print(out)
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/report.html", "the page")
    flags.DEFINE_string("results_dir", "results", "folder of the result rows")
    flags.DEFINE_string("runs_dir", "runs", "folder of the run folders, for curves and samples")
    app.run(main)

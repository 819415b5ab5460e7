"""All results as one HTML file: python -m experiments.report [--out=runs/report.html]

Every study with rows under `results/` at every scale: its table, figures, masks, curves and runs. The file needs
nothing beside it. Curves and samples come from run folders, where this machine has them; all else comes from rows.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments import configs, experiment, masks, start, study, tabulate
from research.analysis import fragments, html, results, tables
from research.analysis.fragments import Picture, Run, Section
from research.analysis.results import Row

FLAGS = flags.FLAGS
TITLE = "What does the architecture do?"
TOKENS = 16  # of the lines whose masks are drawn


def sections(results_dir: Path, runs_dir: Path) -> Iterator[Section]:
    """Studies with rows by name and scale.

    Raises:
      ConfigError: rows of a study or scale that `configs/` does not have.
      ResultError: a file that is no row, or two rows of one cell.
    """
    known: dict[Any, Picture] = {}
    for cells in sorted(results_dir.glob("*/*/cells")):
        if any(cells.glob("*.json")):
            planned = study.load(cells.parent.parent.name, cells.parent.name)
            yield section(planned, results_dir, runs_dir, known)


def section(
    planned: study.Study, results_dir: Path, runs_dir: Path, known: dict[Any, Picture] | None = None
) -> Section:
    """A study at one scale; a table that is refused is a note. `known` keeps pictures of masks for the next one."""
    every = results.load(tabulate.folder(planned, results_dir) / "cells")
    rows = results.select(every, planned.arms, planned.seeds)
    notes = []
    if others := len(every) - len(rows):
        notes.append(f"{others} rows of arms or seeds that the study does not declare are left out.")
    try:
        table = tabulate.render(planned, results_dir)
    except tables.TableError as error:
        table = None
        notes.append(f"No table: {error}")
    drawn, undrawn = mask_pictures(rows, {} if known is None else known)
    groups = {
        group: tuple(arm for arm in planned.arms if planned.groups[arm] == group)
        for group in planned.baselines
    }
    return Section(
        study=planned.name,
        scale=planned.scale,
        runs=tuple(run(row, runs_dir) for row in rows),
        groups=groups,
        table=table,
        masks=tuple(drawn),
        notes=(*notes, *undrawn),
    )


def run(row: Row, runs_dir: Path) -> Run:
    """A row, and what its run folder has."""
    folder = runs_dir / row.study / row.scale / row.name.removesuffix(".json")
    samples = (text for path in sorted(folder.glob("samples*")) for text in _samples(path))
    return Run(row=row, log=tuple(_entries(folder / "metrics.jsonl")), samples=tuple(samples))


def _entries(path: Path) -> Iterator[Mapping[str, Any]]:
    """The whole lines of a file of JSON objects; a kill may have cut the last one short."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return (json.loads(line) for line in lines if line.endswith("\n"))


def _samples(path: Path) -> Iterable[str]:
    if path.suffix == ".txt":
        return [path.read_text(encoding="utf-8")]
    if path.suffix == ".jsonl":
        return ["\n".join(f"{name}: {value}" for name, value in entry.items()) for entry in _entries(path)]
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
        found = list(sections(Path(FLAGS.results_dir), Path(FLAGS.runs_dir)))
        if not found:
            raise results.ResultError(
                f"--results_dir={FLAGS.results_dir}: no rows in <study>/<scale>/cells; run python -m experiments.launch"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html.page(found, title=TITLE), encoding="utf-8")
    except (ValueError, OSError) as error:
        return start.fail(error)
    print(out)
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/report.html", "the page")
    flags.DEFINE_string("results_dir", "results", "folder of the result rows")
    flags.DEFINE_string("runs_dir", "runs", "folder of the run folders, for curves and samples")
    app.run(main)

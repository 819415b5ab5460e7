"""Renders a study's rows as a table: python -m experiments.tabulate --study=... --scale=..."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

from absl import app, flags

from experiments import start
from research.analysis import results, tables


class Study(Protocol):
    """What a table needs of an `experiments.study.Study`."""

    @property
    def name(self) -> str: ...
    @property
    def scale(self) -> str: ...
    @property
    def arms(self) -> tuple[str, ...]: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def groups(self) -> dict[str, str]: ...
    @property
    def baselines(self) -> dict[str, str]: ...


def folder(study: Study, results_dir: Path | str) -> Path:
    """Where the study's cells and rendered tables lie."""
    return Path(results_dir) / study.name / study.scale


def render(study: Study, results_dir: Path | str) -> tables.Table:
    """The table of the rows that the study has; TableError if it has none."""
    cells = folder(study, results_dir) / "cells"
    rows = results.load(cells)
    if not rows:
        raise tables.TableError(
            f"{cells}: no rows, expected at least one; run python -m experiments.launch "
            f"--study={study.name} --scale={study.scale}"
        )
    return tables.build(
        rows,
        arms=study.arms,
        seeds=study.seeds,
        columns=study.columns,
        baseline=study.baselines,
        groups=study.groups,
    )


def write(table: tables.Table, into: Path) -> None:
    """Writes table.md, table.csv and table.tex."""
    into.mkdir(parents=True, exist_ok=True)
    (into / "table.md").write_text(tables.markdown(table), encoding="utf-8")
    (into / "table.csv").write_text(tables.csv(table), encoding="utf-8")
    (into / "table.tex").write_text(tables.latex(table), encoding="utf-8")


def update_block(path: Path, study: Study, table: tables.Table) -> None:
    """Rewrites the table between the study's two marker comments in a Markdown file."""
    start, end = f"<!-- table:{study.name}/{study.scale} -->", "<!-- /table -->"
    before, found_start, rest = path.read_text(encoding="utf-8").partition(start)
    old, found_end, after = rest.partition(end)
    if not found_start or not found_end or "<!-- table:" in old:
        raise tables.TableError(
            f"{path}: no block {start} ... {end}; add the two marker lines where the table belongs"
        )
    text = f"{before}{start}\n{tables.markdown(table)}{end}{after}"
    path.write_text(text, encoding="utf-8")


def main(argv: list[str]) -> None:
    from experiments import study as studies

    arguments = flags.FLAGS
    try:
        if argv[1:]:
            raise tables.TableError(f"{argv[1]!r}: not a flag; see --help")
        study = studies.load(arguments.study, arguments.scale)
        table = render(study, arguments.results_dir)
        write(table, folder(study, arguments.results_dir))
        if arguments.readme:
            update_block(Path(arguments.readme), study, table)
    except (ValueError, OSError) as error:
        print("tabulate:", *str(error).split(), file=sys.stderr)  # one line, whatever raised it
        sys.exit(1)
    start.console().print(tables.rich_table(table))


if __name__ == "__main__":  # flags are global: defined here, so that launch can import `render`
    flags.DEFINE_string("study", None, "Name of the study, a folder in configs/.", required=True)
    flags.DEFINE_string("scale", "smoke", "Scale of the study: smoke, small or base.")
    flags.DEFINE_string("results_dir", "results", "Folder of the result rows.")
    flags.DEFINE_string("readme", None, "Markdown file whose block of this study is rewritten.")
    app.run(main)

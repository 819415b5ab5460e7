"""A study with all that study.gin may say, from launch to tables, figures and claims."""

import json
import shutil
import subprocess
import sys

import pytest
from test_launch import launched, project, rows  # noqa: F401 (a fixture)

from experiments import configs, study, tabulate

STUDY = """
from __gin__ import dynamic_registration
from experiments import study
from experiments import sweeps
from research.analysis import claims
from research.analysis import figures
from research.analysis import rules
{imported}

study.Table:
  arms = ('causal', 'prefix')
  seeds = {{'smoke': (0, 1)}}
  columns = ('loss', 'parameters'{column})
  compared = {{'all': ('causal', 'prefix')}}
  groups = {{'headline': ('causal',), 'extended': ('prefix',)}}
  sweeps = (@sweeps.Sweep(),)
  figures = (@figures.Response(),)
  claims = (@claims.SubClaim(),)
  {evaluated}

sweeps.Sweep.arms = ('causal',)
sweeps.Sweep.points = @sweeps.Values()
sweeps.Values.binding = 'AdamW.learning_rate'
sweeps.Values.values = (1e-3, 1e-2)

figures.Response.name = 'rates'
figures.Response.title = 'Loss by learning rate'
figures.Response.binding = 'AdamW.learning_rate'
figures.Response.metric = 'metrics.loss'

claims.SubClaim.id = 'C2.free_text'
claims.SubClaim.text = 'A prefix does not help.'
claims.SubClaim.rule = @rules.Contrast()
rules.Contrast.metric = 'metrics.loss'
rules.Contrast.arm = 'causal'
rules.Contrast.baseline = 'prefix'
rules.Contrast.expect = 'less'
"""


def declare(project, *, evaluated):  # noqa: F811
    text = STUDY.format(
        imported="from research.evaluation import positions" if evaluated else "",
        column=", 'metrics.positions.loss.first_4'" if evaluated else "",
        evaluated="evaluations = {'positions': @positions.ByPosition()}" if evaluated else "",
    )
    (project / "configs" / "tiny" / "study.gin").write_text(text)


@pytest.mark.slow
def test_a_study_with_sweeps_figures_claims_and_an_evaluation_that_comes_later(project):  # noqa: F811
    declare(project, evaluated=False)
    code, said, wrong = launched(project)
    assert code == 0, wrong
    assert "6 of 6 cells to run" in said  # the headline, and the arm of it at two learning rates
    first = rows(project)
    folder = project / "results" / "tiny" / "smoke"
    names = ("table.md", "table.csv", "table.tex", "sweep_1.md", "figures/rates.svg", "figures/rates.png")
    assert all((folder / name).exists() for name in names)
    assert "| prefix | missing |" in (folder / "table.md").read_text()  # which is extended
    assert "| causal@learning_rate=0.01 | 2 |" in (folder / "sweep_1.md").read_text()
    rates = {
        row["arm"]: row["config"].split("AdamW.learning_rate = ")[1].split()[0] for row in first.values()
    }
    assert rates == {
        "causal": "0.003",
        "causal@learning_rate=0.001": "0.001",
        "causal@learning_rate=0.01": "0.01",
    }
    hashes = [row["rules"] for row in first.values() if row["arm"] == "causal"]
    assert len(hashes) == 2
    assert hashes[0] == hashes[1]
    assert list(hashes[0]) == ["C2.free_text"]

    code, said, wrong = launched(project, "--only=extended")
    assert code == 0, wrong
    assert "2 of 2 cells to run" in said
    first = rows(project)

    # An evaluation that is declared later is made from the checkpoints; where one is gone its cell trains again.
    gone = sorted((project / "runs" / "tiny" / "smoke").glob("causal-s1-*"))[0]
    shutil.rmtree(gone)
    logs = {log: log.read_bytes() for log in project.glob("runs/tiny/smoke/*/metrics.jsonl")}
    declare(project, evaluated=True)
    code, said, wrong = launched(project, "--only=headline,extended", "--how=alone")
    assert code == 0, wrong
    assert "8 of 8 cells to run" in said
    second = rows(project)
    assert set(second) == set(first)
    for name, row in second.items():
        assert row["metrics"]["loss"] == first[name]["metrics"]["loss"]
        losses = row["metrics"]["positions"]["loss"]
        assert losses["all"] == pytest.approx(row["metrics"]["loss"], rel=1e-6)
        assert losses["first_4"] != losses["first_16"]
        assert list(row["evaluations"]) == ["positions"]
    assert (gone / "metrics.jsonl").exists()
    assert {log: log.read_bytes() for log in logs} == logs
    assert "positions loss first 4" in (folder / "table.md").read_text()
    code, said, _ = launched(project, "--only=headline,extended")
    assert "0 of 8 cells to run" in said

    # The rows alone rebuild every file.
    files = {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "cells"
    }
    for path in files:
        path.unlink()
    shutil.rmtree(project / "runs")
    words = ["-m", "experiments.tabulate", "--study=tiny", "--scale=smoke"]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=project,
        env={"PYTHONPATH": str(project), "PATH": ""},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.parametrize(
    "cells", sorted(configs.ROOT.glob("results/*/*/cells")), ids=lambda path: "/".join(path.parts[-3:-1])
)
def test_committed_rows_rebuild_the_committed_tables_byte_for_byte(cells, tmp_path):
    name, scale = cells.parts[-3:-1]
    planned = study.load(name, scale)
    shutil.copytree(cells, tmp_path / name / scale / "cells")
    tabulate.write(planned, tabulate.render(planned, tmp_path), tmp_path)
    built = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    files = [path for path in cells.parent.rglob("*.*") if path.is_file()]
    kept = [path for path in files if not {"tuning", "samples.html"} & {*path.parts}]  # which runs make
    assert built == {path.relative_to(configs.ROOT / "results"): path.read_bytes() for path in kept}
    assert not any(json.loads(path.read_text())["dirty"] for path in cells.glob("*.json"))

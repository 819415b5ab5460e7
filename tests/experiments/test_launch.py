"""A study from the first cell to the table."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from experiments import configs


def launch(folder, *words):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.launch", "--study=tiny", "--scale=smoke"),
            *(f"--results_dir={folder / 'results'}", f"--runs_dir={folder / 'runs'}", *words),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def project(tmp_path):
    """A copy of the project with a study of two arms on the standard library's source."""
    for name in ("research", "experiments", "configs"):
        shutil.copytree(configs.ROOT / name, tmp_path / name)
    study = tmp_path / "configs" / "tiny"
    study.mkdir()
    for arm, family in (("causal", "causal"), ("prefix", "prefix")):
        (study / f"{arm}.gin").write_text(
            "include 'configs/base.gin'\n"
            f"include 'configs/family/{family}.gin'\n"
            "include 'configs/objective/prefix_lm.gin'\n"
        )
    (study / "study.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom experiments import study\n"
        "study.Table.arms = ('causal', 'prefix')\n"
        "study.Table.seeds = {'smoke': (0, 1)}\n"
        "study.Table.columns = ('loss', 'parameters', 'tokens_per_second')\n"
        "study.Table.groups = {'all': ('causal', 'prefix')}\n"
    )
    scale = tmp_path / "configs" / "scale" / "smoke.gin"
    scale.write_text(
        scale.read_text().replace("steps = 80", "steps = 4")
        + "from research.data import corpora\n"
        + "pipeline.Data.corpus = @corpora.StandardLibrary()\n"
    )
    return tmp_path


def cells(project):
    folder = project / "results" / "tiny" / "smoke" / "cells"
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def test_a_study_runs_what_is_missing_and_nothing_else(project):
    code, said, wrong = launch(project, "--how=processes", "--workers=2")
    assert code == 0, wrong
    assert "tiny/smoke: 4 of 4 cells to run" in said
    first = cells(project)
    assert len(first) == 4
    assert all(row["timing"]["wall_seconds"] is None for row in first.values())  # shared the machine
    assert all(row["timing"]["tokens_per_second"] > 0 for row in first.values())  # timed when it was quiet
    orders = {(row["seed"], row["data"]["order"]) for row in first.values()}
    assert len(orders) == 2  # both arms of a seed saw the same windows

    code, said, _ = launch(project)
    assert code == 0
    assert "0 of 4 cells to run" in said
    assert cells(project) == first

    # Changing one arm runs that arm again, in place of its old rows.
    arm = project / "configs" / "tiny" / "prefix.gin"
    arm.write_text(
        "from __gin__ import dynamic_registration\nfrom research.models import config\n"
        + arm.read_text()
        + "config.StackConfig.softcap = 20.0\n"
    )
    code, said, wrong = launch(project)
    assert code == 0, wrong
    assert "2 of 4 cells to run" in said
    second = cells(project)
    assert {name for name in second if name.startswith("causal")} < set(first)
    assert len(second) == 4
    assert not {name for name in second if name.startswith("prefix")} & set(first)
    assert re.search(r"\| prefix \| 2 \|", (project / "results/tiny/smoke/table.md").read_text())


@pytest.mark.slow
def test_an_ensemble_has_the_rows_of_cells_that_ran_alone(project):
    arms = "--only=causal"
    code, _, wrong = launch(project, "--how=alone", arms)
    assert code == 0, wrong
    alone = cells(project)
    shutil.rmtree(project / "results")
    shutil.rmtree(project / "runs")
    code, said, wrong = launch(project, "--how=ensemble", arms)
    assert code == 0, wrong
    together = cells(project)
    assert set(together) == set(alone)
    for name, row in together.items():
        assert row["metrics"]["loss"] == pytest.approx(alone[name]["metrics"]["loss"], rel=1e-5)
        for part in ("key", "data", "budget", "config"):
            assert row[part] == alone[name][part]
        assert row["timing"]["wall_seconds"] is None
        assert alone[name]["timing"]["wall_seconds"] > 0


def test_a_cell_that_fails_is_named_and_the_others_are_kept(project):
    arm = project / "configs" / "tiny" / "prefix.gin"
    arm.write_text(
        "from __gin__ import dynamic_registration\n"
        "from research.data import corpora\nfrom research.data import pipeline\n" + arm.read_text()
    )
    scale = project / "configs" / "scale" / "smoke.gin"
    text = scale.read_text().replace("pipeline.Data.corpus = @corpora.StandardLibrary()\n", "")
    scale.write_text(text)
    for name, corpus in (("causal", "@corpora.StandardLibrary()"), ("prefix", "@local.TextFiles()")):
        path = project / "configs" / "tiny" / f"{name}.gin"
        modules = ("__gin__ import dynamic_registration", "research.data import corpora")
        head = "".join(f"from {module}\n" for module in (*modules, "research.data import pipeline"))
        body = path.read_text().replace(head, "")
        path.write_text(f"{head}from research.data import local\n{body}pipeline.Data.corpus = {corpus}\n")
    with (project / "configs" / "tiny" / "prefix.gin").open("a") as file:
        file.write("local.TextFiles.pattern = 'nowhere/*.txt'\n")
    code, said, wrong = launch(project, "--seeds=1")
    assert code == 1
    assert "prefix seed 0  failed" in said
    assert "error: prefix seed 0: TextFiles.pattern 'nowhere/*.txt' matches no file" in wrong
    assert [name.split("-")[0] for name in cells(project)] == ["causal"]
    assert "missing" in (project / "results/tiny/smoke/table.md").read_text()

"""Which rows a change of the code makes stale."""

import json
import math
import os
import shutil
import subprocess
import sys
import time

import pytest
from test_launch import launched, project, rows, started  # noqa: F401 (a fixture)

from experiments import replays

REPLAY = {"losses": [3.0, 2.0, 1.0], "evaluation": 1.5, "scores": {"x": {"loss": {"first": 2.0}}}}


@pytest.mark.parametrize(
    ("after", "moved"),
    [
        (REPLAY, 0.0),
        ({**REPLAY, "evaluation": 1.5 * (1 + 1e-4)}, 1e-4),
        ({**REPLAY, "losses": [3.0, 2.0 * (1 - 1e-3), 1.0]}, 1e-3),
        ({**REPLAY, "losses": [3.0, 2.0]}, math.inf),
        ({**REPLAY, "losses": [3.0, math.nan, 1.0]}, math.inf),
        ({**REPLAY, "scores": {"x": {"loss": {"first": 2.2}}}}, 0.1),
        ({**REPLAY, "scores": {"x": {"loss": {"last": 2.0}}}}, math.inf),
        ({**REPLAY, "scores": {"y": {"loss": 7.0}}}, 0.0),  # an evaluation that only one of them knows
    ],
)
def test_the_furthest_loss_counts(after, moved):
    assert replays.furthest(REPLAY, after) == pytest.approx(moved, rel=1e-3)


def edit(project, name, before, after):  # noqa: F811
    path = project / name
    text = path.read_text()
    assert text.count(before) >= 1, (name, before)
    path.write_text(text.replace(before, after))


@pytest.mark.slow
def test_only_what_moves_a_loss_makes_rows_stale(project):  # noqa: F811
    """A second arm uses YaRN, whose scores have a scale of their own."""
    folder = project / "configs" / "tiny"
    (folder / "prefix.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "from research.attention import positions\nfrom research.attention import rotary\n"
        "from research.models import config\n"
        + (folder / "causal.gin").read_text()
        + "config.StackConfig.positions = @positions.Rotary()\n"
        "positions.Rotary.scaling = @rotary.YaRN()\nrotary.YaRN.factor = 4.0\nrotary.YaRN.trained = 32\n"
    )
    edit(project, "configs/tiny/study.gin", ", 'tokens_per_second'", "")
    code, _, wrong = launched(project)
    assert code == 0, wrong
    first = rows(project)

    edit(project, "research/attention/core.py", "of the scores; 1 / sqrt(d)", "of all scores; 1 / sqrt(d)")
    edit(project, "research/attention/core.py", "\ndef attend(", "\n# a comment\ndef attend(")
    code, said, wrong = launched(project)
    assert code == 0, wrong
    assert "replaying" not in said
    assert "0 of 4 cells to run" in said
    assert rows(project) == first

    edit(project, "research/attention/core.py", "needs_lse", "wants_lse")  # a rename
    edit(project, "research/attention/rotary.py", "_angles(", "_turns(")
    code, said, wrong = launched(project)
    assert code == 0, wrong
    assert "the code of 4 rows has changed; replaying their first steps" in said
    assert "stale" not in said
    assert "0 of 4 cells to run" in said
    renamed = rows(project)
    for name, row in renamed.items():
        assert row["code"]["fingerprint"] == first[name]["code"]["fingerprint"] != row["code"]["checked"]
        assert not row["code"]["stale"]
        assert {**row, "code": None} == {**first[name], "code": None}
    code, said, _ = launched(project)  # what was compared once is not compared again
    assert "replaying" not in said

    edit(
        project, "research/attention/rotary.py", "0.1 * math.log(self.factor)", "0.3 * math.log(self.factor)"
    )
    code, said, wrong = launched(project)
    assert code == 0, wrong
    assert "prefix seed 0  is stale: a number moved by" in said
    assert "prefix seed 1  is stale: a number moved by" in said
    assert "causal seed" not in said
    assert "0 of 4 cells to run" in said
    assert {row["arm"] for row in rows(project).values() if row["code"]["stale"]} == {"prefix"}
    table = (project / "results/tiny/smoke/table.md").read_text()
    assert "Stale, since the code has come to measure something else: prefix (seeds 0, 1)." in table

    code, said, wrong = launched(project, "--stale=rerun")
    assert code == 0, wrong
    assert "2 of 4 cells to run" in said
    again = rows(project)
    assert not any(row["code"]["stale"] for row in again.values())
    for name, row in again.items():
        moved = row["metrics"]["loss"] != first[name]["metrics"]["loss"]
        assert moved == (row["arm"] == "prefix")
    aside = sorted((project / "runs" / "tiny" / "smoke").glob("prefix-*/aside_1/result.json"))
    assert [json.loads(path.read_text())["code"] for path in aside] == [
        row["code"] for row in first.values() if row["arm"] == "prefix"
    ]  # nothing that was finished is lost
    assert "Stale" not in (project / "results/tiny/smoke/table.md").read_text()

    # Back and forth: what is put aside never comes back.
    for factor, before in (("0.1", "0.3"), ("0.3", "0.1")):
        edit(
            project,
            "research/attention/rotary.py",
            f"{before} * math.log(self.factor)",
            f"{factor} * math.log(self.factor)",
        )
        code, said, wrong = launched(project, "--stale=rerun")
        assert code == 0, wrong
        assert "2 of 4 cells to run" in said
        assert "is finished" not in said
        wanted = first if factor == "0.1" else again
        assert {name: row["metrics"] for name, row in rows(project).items()} == {
            name: row["metrics"] for name, row in wanted.items()
        }

    # An arm whose config has changed and that has not run again is told from what it was.
    arm = folder / "prefix.gin"
    arm.write_text(arm.read_text().replace("factor = 4.0", "factor = 8.0"))
    code, said, wrong = launched(project, "--only=causal")
    assert code == 0, wrong
    assert not any(row["code"]["stale"] for row in rows(project).values())  # the arm was not asked for
    done = subprocess.run(
        [sys.executable, "-m", "experiments.tabulate", "--study=tiny", "--verify"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {row["arm"]: row["code"]["stale"] for row in rows(project).values()} == {
        "causal": "",
        "prefix": "config",
    }
    arm.write_text(arm.read_text().replace("factor = 8.0", "factor = 4.0"))
    code, said, wrong = launched(project)
    assert code == 0, wrong
    assert "0 of 4 cells to run" in said
    assert not any(row["code"]["stale"] for row in rows(project).values())


@pytest.mark.slow
def test_a_run_that_other_code_began_begins_anew_unless_it_measured_the_same(project):  # noqa: F811
    scale = project / "configs" / "scale" / "smoke.gin"
    scale.write_text(
        scale.read_text().replace("steps = 4", "steps = 400")
        + "pipeline.Data.window = 32\npipeline.Data.batch = 4\n"
        + "from research.training import loop\nloop.Plan.checkpoint_every = 20\n"
    )
    words = ("--only=causal", "--seeds=1", "--how=alone")
    for anew in (False, True):
        process = started(project, *words)
        began = time.monotonic()
        while not any((project / "runs").glob("tiny/smoke/*/checkpoints/*0/*")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() - began < 120
            time.sleep(0.02)
        process.kill()
        process.communicate()
        if anew:
            edit(
                project,
                "research/models/layers.py",
                "scale=config.attention_scale",
                "scale=0.9 * config.attention_scale",
            )
        else:
            edit(project, "research/attention/core.py", "needs_lse", "wants_lse")
        code, said, wrong = launched(project, *words)
        assert code == 0, wrong
        assert ("begins anew: the code has come to measure something else" in said) == anew
        assert ("resumed at step" in said) != anew
        for name in ("results", "runs"):
            shutil.rmtree(project / name)


@pytest.mark.slow
def test_an_evaluation_whose_code_measures_something_else_makes_its_rows_stale(project):  # noqa: F811
    study = project / "configs" / "tiny" / "study.gin"
    study.write_text(
        study.read_text().replace(
            "from experiments import study\n",
            "from experiments import study\nfrom research.evaluation import positions\n",
        )
        + "study.Table.evaluations = {'positions': @positions.ByPosition()}\n"
    )
    words = ("--only=causal", "--seeds=1")
    code, _, wrong = launched(project, *words)
    assert code == 0, wrong
    edit(project, "research/evaluation/positions.py", "rank <= count", "rank < count")
    code, said, wrong = launched(project, *words)
    assert code == 0, wrong
    assert "causal seed 0  is stale: a number moved by" in said

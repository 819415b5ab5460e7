"""A study that is killed again and again."""

import json
import os
import random
import shutil
import signal
import time

import pytest
from test_launch import launched, project, rows, started  # noqa: F401 (a fixture)

KILLS, STEPS, CELLS = 20, 300, 4


def progress(project):  # noqa: F811
    """Steps that all runs have logged so far."""
    steps = 0
    for log in project.glob("runs/tiny/smoke/*/metrics.jsonl"):
        whole = [line for line in log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        steps += json.loads(whole[-1])["step"] if whole else 0
    return steps


@pytest.mark.slow
def test_a_study_killed_at_random_moments_ends_with_the_table_of_one_that_was_not(project):  # noqa: F811
    """Each kill waits for a random amount of progress, so that there are as many on any machine."""
    scale = project / "configs" / "scale" / "smoke.gin"
    scale.write_text(
        scale.read_text().replace("steps = 4", f"steps = {STEPS}")
        + "pipeline.Data.window = 32\npipeline.Data.batch = 4\nconfig.StackConfig.dropout = 0.1\n"
        + "from research.training import loop\nloop.Plan.checkpoint_every = 10\nloop.Plan.log_every = 2\n"
    )
    study = project / "configs" / "tiny" / "study.gin"
    study.write_text(study.read_text().replace(", 'tokens_per_second'", ""))
    chance = random.Random(0)
    moments = sorted(chance.randrange(1, STEPS * CELLS - 20) for _ in range(KILLS))
    for moment in moments:
        process = started(project, "--how=alone")
        began = time.monotonic()
        while progress(project) < moment:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() - began < 120
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    code, _, wrong = launched(project, "--how=alone")
    assert code == 0, wrong
    results = project / "results"
    killed = {path.name: path.read_bytes() for path in (results / "tiny" / "smoke").glob("table.*")}
    losses = {name: row["metrics"] for name, row in rows(project).items()}
    assert set(killed) == {"table.md", "table.csv", "table.tex"}
    assert len(losses) == CELLS

    for folder in ("results", "runs"):
        shutil.rmtree(project / folder)
    code, _, wrong = launched(project, "--how=alone")
    assert code == 0, wrong
    assert {name: row["metrics"] for name, row in rows(project).items()} == losses
    assert {path.name: path.read_bytes() for path in (results / "tiny" / "smoke").glob("table.*")} == killed

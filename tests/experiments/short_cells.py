"""Cells of a study that take a few steps."""

import math

from experiments import cells, replays, running


def check_takes_steps(planned, arm, folder):
    """An arm moves in three steps, and makes its evaluations."""
    first, *_ = cells.of(planned, [arm], folder / "results", folder / "runs", None)
    found = running.replay(first.job, None)
    assert len(found["losses"]) == replays.STEPS
    assert len(set(found["losses"])) == replays.STEPS  # it moves
    assert found["scores"].keys() == planned.evaluations(arm).keys()
    assert all(math.isfinite(value) for _, value in replays.numbers(found))

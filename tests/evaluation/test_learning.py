"""How training went, by losses that were measured on the way."""

from unittest.mock import Mock

import pytest

from research.data.pipeline import Dataset
from research.evaluation.learning import Convergence, StepsTo
from research.evaluation.trained import Evaluation, Trained
from research.training.step import Trainer


def trained(**history):
    """Nothing but the history is read."""
    return Trained(trainer=Mock(spec=Trainer), params={}, text=Mock(spec=Dataset), seed=0, **history)


@pytest.mark.parametrize(
    ("loss", "steps"),
    [
        (3.0, 10),  # the first
        (2.5, 20),  # exactly
        (2.4999, 40),  # between 20 and 40: not interpolated
        (2.0, 40),  # lower again later: the first counts
        (1.9, 50),
        (1.7, None),
    ],
)
def test_the_first_evaluated_step_that_is_low_enough(loss, steps):
    history = {10: 3.0, 20: 2.5, 30: 2.6, 40: 2.0, 50: 1.8}
    assert StepsTo(loss=loss)(trained(history=history)) == {"steps": steps}
    assert StepsTo(loss=loss)(trained(history=dict(reversed(history.items())))) == {"steps": steps}


@pytest.mark.parametrize(
    ("history", "share", "slope"),
    [
        # A straight line: what it falls by from step 80 to step 100.
        ({step: 5 - step / 100 for step in range(10, 101, 10)}, 0.2, 0.2),
        ({step: 5 - step / 100 for step in range(10, 101, 10)}, 1.0, 0.9),  # from the first that was measured
        ({step: 1 + step / 100 for step in range(10, 101, 10)}, 0.2, -0.2),  # it rose
        # Only the end counts; the line through (80, 1.3), (90, 1.0), (100, 1.0) falls by 0.015 a step.
        ({10: 9.0, 70: 7.0, 80: 1.3, 90: 1.0, 100: 1.0}, 0.2, 0.3),
        # Unevenly: from their means, steps are -50, -20 and 70 thirds and losses 5, -1 and -4 thirds.
        ({20: 9.0, 60: 5.0, 70: 3.0, 100: 2.0}, 0.4, 40 * 510 / 7800),
        ({75: 1.0, 80: 1.0, 90: 1.0, 100: 1.0}, 0.25, 0.0),
    ],
)
def test_how_much_the_line_through_the_end_falls(history, share, slope):
    assert Convergence(share=share)(trained(history=history)) == {"slope": pytest.approx(slope, abs=1e-12)}


def test_what_is_not_known_is_none_under_the_same_name():
    for history in ({}, {100: 1.0}, {90: 2.0, 100: 1.0}, {10: 3.0, 79: 2.0, 80: 1.5, 100: 1.0}):
        assert Convergence()(trained(history=history)) == {"slope": None}
    assert StepsTo(loss=1.0)(trained(history={})) == {"steps": None}
    assert StepsTo(loss=1.0)(trained()) == {"steps": None}  # as of whoever has no history


@pytest.mark.parametrize("edge", range(1, 100))
def test_a_step_at_the_edge_counts_whatever_the_share_is_rounded_to(edge):
    history = {999 - 10 * edge: 50.0, 1000 - 10 * edge: 2.0, 999: 1.0, 1000: 1.0}
    assert Convergence(share=edge / 100)(trained(history=history))["slope"] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda: StepsTo(loss=0.0), r"StepsTo\.loss = 0\.0: expected nats"),
        (lambda: StepsTo(loss=float("nan")), r"StepsTo\.loss = nan: expected nats"),
        (lambda: Convergence(share=0.0), r"Convergence\.share = 0\.0: expected more than 0"),
        (lambda: Convergence(share=1.1), r"Convergence\.share = 1\.1: expected more than 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, wrong):
    with pytest.raises(ValueError, match=wrong):
        make()


def test_they_are_evaluations():
    assert isinstance(StepsTo(loss=1.0), Evaluation)
    assert isinstance(Convergence(), Evaluation)

"""Aggregates over tasks: normalised scores by hand, and intervals of the bootstraps that they name."""

import csv
import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.analysis import resampling, tables
from research.analysis.aggregate import across
from research.analysis.results import Row
from research.analysis.tables import TableError

TASKS = {"metrics.score": "higher", "metrics.loss": "lower"}
SCORES = {  # by arm: of each seed a score, and a loss in another unit
    "base": [(1.0, 200.0), (3.0, 400.0), (2.0, 300.0)],
    "good": [(4.0, 100.0), (5.0, 200.0), (6.0, 300.0)],
    "bad": [(1.0, 500.0), (2.0, 500.0), (0.0, 500.0)],
}


def row(arm, seed, metrics, **changes):
    given = {
        **{"arm": arm, "seed": seed, "key": "0123456789abcdef"},
        "environment": {"attention": "dense", "matmul_precision": "float32"},
        "data": {"fingerprint": "feedbeef", "order": f"windows-{seed}"},
        "metrics": metrics,
        **changes,
    }
    kinds = {str: "", int: 0, bool: False}
    return Row(**{field.name: kinds.get(field.type, {}) for field in dataclasses.fields(Row)} | given)


def rows(scores=SCORES):
    return [
        row(arm, seed, {"score": score, "loss": loss})
        for arm, runs in scores.items()
        for seed, (score, loss) in enumerate(runs)
    ]


def found(given=None, arms=("base", "good", "bad"), seeds=(0, 1, 2), metrics=None, baseline="base"):
    return across(
        rows() if given is None else given,
        arms=arms,
        seeds=seeds,
        metrics=TASKS if metrics is None else metrics,
        baseline=baseline,
    )


def numbers(table):
    return {
        line.arm: [None if cell.estimate is None else cell.estimate.mean for cell in line.cells]
        for line in table.lines
    }


def test_scores_are_normalised_by_the_baselines_mean_and_the_range_of_all_runs():
    # score: mean 2, range 6; loss: mean 300, range 400, and less is better
    good = np.array([[2 / 6, 200 / 400], [3 / 6, 100 / 400], [4 / 6, 0]])
    values = numbers(found())
    expected = resampling.interquartile_mean(good)
    assert values["good"][:3] == pytest.approx([expected.value, expected.low, expected.high])
    assert values["good"][0] == pytest.approx(
        (1 / 4 + 1 / 3 + 1 / 2 + 1 / 2) / 4
    )  # without the least and the greatest
    rank = resampling.probability_of_improvement(
        [[4, -100], [5, -200], [6, -300]], [[1, -200], [3, -400], [2, -300]]
    )
    assert values["good"][3:] == [rank.value, rank.low, rank.high]
    assert values["good"][3] == pytest.approx((1 + 7 / 9) / 2)
    assert values["base"][3:] == [None] * 3
    assert found().lines[0].cells[3].text == "baseline"
    assert values["bad"][0] < 0 < values["good"][0]


@settings(max_examples=10)
@given(
    st.lists(st.lists(st.integers(-9, 9), min_size=4, max_size=4), min_size=2, max_size=4),
    st.floats(0.5, 100),
    st.integers(-50, 50),
)
def test_units_of_a_task_do_not_matter(runs, scale, shift):
    first = {"base": [tuple(run[:2]) for run in runs], "other": [tuple(run[2:]) for run in runs]}
    second = {arm: [(score, scale * loss + shift) for score, loss in own] for arm, own in first.items()}
    one, two = (
        numbers(found(rows(scores), arms=("base", "other"), seeds=range(len(runs))))["other"]
        for scores in (first, second)
    )
    assert one == pytest.approx(two, abs=1e-9)


def test_the_other_direction_is_the_other_sign():
    higher, lower = (
        numbers(found(metrics={"metrics.score": direction}))["good"] for direction in ("higher", "lower")
    )
    assert lower[0] == pytest.approx(-higher[0])
    assert lower[3] == pytest.approx(1 - higher[3])


def test_a_seed_counts_where_it_has_all_tasks_and_what_is_missing_is_named():
    some = [*rows()[:-3], row("bad", 0, {"score": 1.0, "loss": 2.0}), row("bad", 1, {"score": 1.0})]
    table = found(some)
    bad = table.lines[2]
    assert (bad.seeds, bad.cells[0].text[-6:]) == ("2/3 seeds", " (n=1)")
    assert [cell.text for cell in bad.cells[1:3]] == ["", ""]  # one seed has no interval
    assert "A seed counts where it has all tasks; bad has metrics.loss of 1 seed." in table.notes
    without = found([one for one in rows() if one.arm != "base"])
    assert [line.cells[0].text for line in without.lines] == ["n/a"] * 3
    assert [line.cells[0].text for line in found([]).lines] == ["n/a"] * 3


def test_a_task_on_which_all_are_the_same_tells_nothing():
    same = [row(arm, seed, {"score": 1.0}) for arm in ("base", "good") for seed in (0, 1)]
    values = numbers(found(same, ("base", "good"), (0, 1), {"metrics.score": "higher"}))
    assert values["good"] == [0, 0, 0, 0.5, 0.5, 0.5]


def test_it_renders_as_any_table_and_says_how_it_was_made():
    text = tables.markdown(found())
    for words in (
        "metrics.loss (lower is better)",
        "0 is the mean of base",
        "probability of improvement over base",
    ):
        assert words in text
    (_, good, _) = csv.DictReader(io.StringIO(tables.csv(found())))
    assert float(good["iqm_low"]) <= float(good["iqm"]) <= float(good["iqm_high"])
    assert found() == found(rows()[::-1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": {}}, "tasks: none, expected paths"),
        ({"metrics": {"metrics.score": "up"}}, "'up' is better, expected 'higher' or 'lower'"),
        ({"baseline": "bas"}, "baseline 'bas' over tasks: expected one of"),
        ({"metrics": {"metrics.scor": "higher"}}, "no value 'metrics.scor'"),
        ({"given": [*rows(), row("bad", 3, {}, design="x")], "seeds": range(4)}, "more than their seed"),
    ],
)
def test_what_is_declared_wrongly_is_said_in_one_line(changes, said):
    with pytest.raises(TableError, match=said) as caught:
        found(**changes)
    assert "\n" not in str(caught.value)

"""Rows of cells: what is kept of an earlier one, and what is recorded of a cell that has none."""
# ruff: noqa: F811 (fixtures)

import dataclasses

import pytest
from test_launch import matched, project  # noqa: F401

from experiments import cells, configs
from research.analysis import results


def result(cell, **given):
    """What a run of the cell would have measured."""
    given = {
        "key": cell.job.folder.name.rsplit("-", 1)[1],
        "code": {"fingerprint": "f", "checked": "f", "stale": ""},
        "rules": {"C1.x": "as the run began"},
        "metrics": {"loss": 2.5},
        "timing": {"tokens_per_second": 10.0, "peak_memory_bytes": 5},
        **given,
    }
    empty = {str: "", int: 0, bool: False}
    own = {"study", "scale", "arm", "seed"}
    fields = {field.name: empty.get(field.type, {}) for field in dataclasses.fields(results.Row)}
    return {name: value for name, value in (fields | given).items() if name not in own}


@pytest.fixture
def cell(matched, tmp_path):
    planned = matched()
    first, *_ = cells.of(planned, planned.arms, tmp_path / "results", tmp_path / "runs", None)
    return first


def test_the_rules_of_a_row_stay_when_the_same_experiment_is_run_again(cell):
    assert cell.row is None
    assert cells.save(cell, result(cell), timed=True) == 2.5
    assert cell.row.rules == {"C1.x": "as the run began"}
    other = {"fingerprint": "g", "checked": "g", "stale": ""}
    cells.save(
        cell, result(cell, rules={"C1.x": "changed since"}, metrics={"loss": 2.25}, code=other), timed=True
    )
    assert cell.row.rules == {"C1.x": "as the run began"}
    assert cell.row.value("metrics.loss") == 2.25
    assert cell.row.code == other


def test_an_evaluation_that_comes_later_leaves_what_is_known_of_the_run(cell):
    cells.save(cell, result(cell), timed=True)
    found = {"checked": "g", "stale": "code"}
    results.save(dataclasses.replace(cell.saved, code={**cell.saved.code, **found}), cell.rows)
    cells.save(cell, result(cell, metrics={"loss": 2.5, "x": 1.0}), timed=False)
    assert cell.row.value("metrics.x") == 1.0
    assert cell.row.code == {"fingerprint": "f", **found}
    assert cell.row.timing["tokens_per_second"] == 10.0


def test_the_rows_of_an_arm_as_it_was_make_way(cell):
    cells.save(cell, result(cell), timed=True)
    other = dataclasses.replace(cell.saved, key="0123456789abcdef")
    beside = dataclasses.replace(other, seed=7)
    for row in (other, beside):
        results.save(row, cell.rows)
    cells.save(cell, result(cell), timed=True)
    assert {path.name for path in cell.rows.iterdir()} == {cell.path.name, beside.name}


def test_a_stale_row_counts_unless_it_is_to_be_run_again(cell):
    cells.save(cell, result(cell, code={"fingerprint": "f", "checked": "g", "stale": "code"}), timed=True)
    again = dataclasses.replace(cell, again=True)
    assert cell.row is not None
    assert again.row is None
    assert again.saved is not None
    other = {"fingerprint": "g", "checked": "g", "stale": ""}
    cells.save(again, result(again, code=other), timed=True)
    assert again.row is not None


def test_cells_that_cannot_be_planned_are_told_from_the_others(matched, tmp_path):
    arm = configs.ROOT / "configs" / "tiny" / "prefix.gin"
    arm.write_text(arm.read_text() + "nothing.Nowhere.like = 'that'\n")
    planned = matched()
    every = cells.of(planned, planned.arms, tmp_path / "results", tmp_path / "runs", None)
    sound, broken = cells.sound(every)
    assert [cell.title for cell in sound] == ["causal seed 0", "causal seed 1"]
    assert [cell.title for cell in broken] == ["prefix seed 0", "prefix seed 1"]
    assert all(
        isinstance(error, configs.ConfigError) and "Nowhere" in str(error) for error in broken.values()
    )


def test_seeds_are_the_first_of_those_declared(matched):
    planned = matched(seeds={"smoke": (3, 1, 4)})
    assert planned.limited(2).seeds == (3, 1)
    with pytest.raises(
        configs.ConfigError, match=r"^--seeds=4: study tiny has 3 at scale smoke; see Table.seeds in"
    ):
        planned.limited(4)

"""Rows of cells: what is kept of an earlier one, and what is recorded of a cell that has none."""
# ruff: noqa: F811 (fixtures)

import dataclasses
import json

import pytest
from test_launch import matched, project  # noqa: F401

from experiments import cells, configs
from research.analysis import results


def result(cell, **given):
    """What a run of the cell would have measured."""
    given = {
        "key": cell.job.folder.name.rsplit("-", 1)[1],
        "code": {"fingerprint": "f", "checked": "f", "stale": False},
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
    cells.save(cell, result(cell, rules={"C1.x": "changed since"}, metrics={"loss": 2.25}), timed=True)
    assert cell.row.rules == {"C1.x": "as the run began"}
    assert cell.row.value("metrics.loss") == 2.25


def test_the_rows_of_an_arm_as_it_was_make_way(cell):
    cells.save(cell, result(cell), timed=True)
    other = dataclasses.replace(cell.saved, key="0123456789abcdef")
    beside = dataclasses.replace(other, seed=7)
    for row in (other, beside):
        results.save(row, cell.rows)
    cells.save(cell, result(cell), timed=True)
    assert {path.name for path in cell.rows.iterdir()} == {cell.path.name, beside.name}


def test_a_stale_row_counts_unless_it_is_to_be_run_again(cell):
    cells.save(cell, result(cell, code={"fingerprint": "f", "checked": "g", "stale": True}), timed=True)
    again = dataclasses.replace(cell, again=True)
    assert cell.row is not None
    assert again.row is None
    assert again.saved is not None
    cells.save(again, result(again), timed=True)
    assert again.row is not None


def test_a_failure_is_recorded_until_the_cell_has_a_row(cell):
    folder = cell.rows.parent
    assert cells.failures(folder) == []
    cells.save_failure(cell, RuntimeError("no memory:\n  for that"))
    assert cells.failures(folder) == ["causal seed 0: no memory: for that"]
    cells.save(cell, result(cell), timed=False)
    assert cells.failures(folder) == []


def test_cells_that_cannot_be_planned_are_told_from_the_others(matched, tmp_path):
    arm = configs.ROOT / "configs" / "tiny" / "prefix.gin"
    arm.write_text(arm.read_text() + "pipeline.Data.corpus = @local.TextFiles()\n")  # which is not imported
    planned = matched()
    every = cells.of(planned, planned.arms, tmp_path / "results", tmp_path / "runs", None)
    sound, broken = cells.sound(every)
    assert [cell.title for cell in sound] == ["causal seed 0", "causal seed 1"]
    assert [cell.title for cell in broken] == ["prefix seed 0", "prefix seed 1"]
    assert all(isinstance(error, configs.ConfigError) and "local" in str(error) for error in broken.values())


def test_seeds_are_the_first_of_those_declared(matched):
    planned = matched(seeds={"smoke": (3, 1, 4)})
    assert planned.limited(2).seeds == (3, 1)
    with pytest.raises(
        configs.ConfigError, match=r"^--seeds=4: study tiny has 3 at scale smoke; see Table.seeds in"
    ):
        planned.limited(4)


def test_what_is_recorded_is_json_of_one_line_of_text(cell):
    cells.save_failure(cell, ValueError("a\nb"))
    assert json.loads(cell.failure.read_text()) == {"arm": "causal", "seed": 0, "error": "a b"}

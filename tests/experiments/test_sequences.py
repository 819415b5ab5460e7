"""Matrices of continual learning out of rows."""

import dataclasses

import numpy as np
import pytest

from experiments.sequences import Tasks
from research.analysis.results import Row
from research.analysis.tables import TableError

# Losses on three tasks after each: the first is forgotten by 1 and by 2 more, the second by 0.5.
LOSSES = np.array([[1.0, 4.0, 5.0], [2.0, 1.0, 4.5], [4.0, 1.5, 1.0]])
SPEC = Tasks(
    name="time",
    ways={"plain": ("a", "b", "c")},
    losses=("metrics.t.one", "metrics.t.two", "metrics.t.three"),
    untrained=5.0,
)
KNOWN = dict.fromkeys("abcd", (0, 1))


def row(arm, seed, losses):
    kinds = {str: "", int: 0, bool: False}
    blank = {field.name: kinds.get(field.type, {}) for field in dataclasses.fields(Row)}
    return Row(
        **blank
        | {
            "arm": arm,
            "seed": seed,
            "key": "0123456789abcdef",
            "environment": {"attention": "dense", "matmul_precision": "highest"},
            "data": {"fingerprint": arm, "order": arm},
            "metrics": {"t": dict(zip(("one", "two", "three"), losses.tolist(), strict=True))},
        }
    )


ROWS = [
    row(arm, seed, losses + 0.1 * seed) for arm, losses in zip("abc", LOSSES, strict=True) for seed in (0, 1)
]


def numbers(table):
    return {
        column.name: cell.estimate.mean
        for column, cell in zip(table.columns, table.lines[0].cells, strict=True)
    }


def test_metrics_of_a_matrix_worked_by_hand():
    """All seeds forget alike: what is added to all losses cancels out of differences."""
    found = numbers(SPEC.table(ROWS, KNOWN))
    assert found == pytest.approx(
        {
            "acc": -(4.0 + 1.5 + 1.0) / 3 - 0.05,
            "bwt": -(3.0 + 0.5) / 2,
            "bwt@gem": -(3.0 + 0.5) / 3,
            "forgetting": (3.0 + 0.5) / 2,
            "forgetting@avalanche": (3.0 + 0.5) / 2,
            "fwt": ((5 - 4.0) + (5 - 4.5)) / 2 - 0.05,
            "fwt@gem": ((5 - 4.0) + (5 - 4.5) - 0.1) / 3,
        }
    )
    table = SPEC.table(ROWS, KNOWN)
    assert table.lines[0].seeds == "2"
    assert "1.050 4.050 5.050; 2.050 1.050 4.550; 4.050 1.550 1.050" in table.notes[0]
    without = dataclasses.replace(SPEC, untrained=None).table(ROWS, KNOWN)
    assert [column.name for column in without.columns] == list(found)[:-2]


def test_a_seed_without_all_tasks_is_left_out():
    table = SPEC.table(ROWS[:-1], KNOWN)
    assert table.lines[0].seeds == "1/2 seeds"
    table = SPEC.table([row for row in ROWS if row.arm != "b"], KNOWN)
    assert table.lines[0].seeds == "missing"
    assert {cell.text for cell in table.lines[0].cells} == {"n/a"}


def test_what_cannot_be_is_one_line():
    with pytest.raises(TableError, match="Tasks 'time': plain has 2 arms for 3 losses"):
        dataclasses.replace(SPEC, ways={"plain": ("a", "b")})
    with pytest.raises(TableError, match="Tasks 'time': no arm 'x'"):
        dataclasses.replace(SPEC, ways={"plain": ("a", "b", "x")}).table(ROWS, KNOWN)

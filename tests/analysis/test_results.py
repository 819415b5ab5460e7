"""Rows survive the disk exactly, and what is not a whole row says so in one line."""

import dataclasses
import json
import os
from typing import Any

import pytest

from research.analysis import results
from research.analysis.results import ResultError, Row


def row(arm="causal", seed=0, key="0123456789abcdef", **changes):
    fields: dict[str, Any] = {
        "study": "architecture",
        "scale": "smoke",
        "arm": arm,
        "seed": seed,
        "key": key,
        "design": "fedcba",
        "commit": "c0ffee",
        "dirty": False,
        "config": "train.steps = 3\n",
        "code": {"fingerprint": "f", "checked": "f", "stale": ""},
        "replay": {"losses": [3.0, 2.9, 2.8], "evaluation": 2.7},
        "rules": {"C1.efficiency": "beef"},
        "evaluations": {},
        "environment": {"attention": "dense", "matmul_precision": "highest"},
        "data": {"fingerprint": "feedbeef", "order": "0"},
        "budget": {"parameters": 210_000},
        "metrics": {"loss": 0.1 + 0.2, "bits_per_byte": 1e-17},
        "timing": {"wall_seconds": None},
    }
    return Row(**{**fields, **changes})


def test_a_saved_row_is_loaded_unchanged(tmp_path):
    path = results.save(row(), tmp_path / "cells")
    assert path == tmp_path / "cells" / "causal-s0-0123456789ab.json"
    assert results.load(tmp_path / "cells") == [row()]


def test_a_row_is_written_sorted_indented_and_the_same_every_time(tmp_path):
    shuffled = row(metrics={"bits_per_byte": 1e-17, "loss": 0.1 + 0.2})
    first = results.save(row(), tmp_path / "a").read_bytes()
    assert results.save(shuffled, tmp_path / "b").read_bytes() == first
    assert first.endswith(b"}\n")
    assert list(json.loads(first)) == sorted(field.name for field in dataclasses.fields(Row))
    assert b'\n    "loss": 0.30000000000000004\n' in first


def test_a_kill_before_the_end_leaves_the_old_row_and_no_rest(tmp_path, monkeypatch):
    results.save(row(), tmp_path)

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        results.save(row(commit="other"), tmp_path)
    assert results.load(tmp_path) == [row()]
    assert len(list(tmp_path.iterdir())) == 1


def test_rows_are_loaded_by_arm_then_seed_as_a_number(tmp_path):
    for arm, seed in [("prefix", 0), ("causal", 10), ("causal", 9)]:
        results.save(row(arm, seed), tmp_path)
    loaded = [(each.arm, each.seed) for each in results.load(tmp_path)]
    assert loaded == [("causal", 9), ("causal", 10), ("prefix", 0)]
    assert results.load(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "not a JSON row"),
        (lambda text: "[1]", "missing or unknown row fields"),
        (lambda text: text.replace('"commit"', '"comit"'), r"\['comit', 'commit'\]"),
        (lambda text: text.replace('"seed": 0', '"seed": "0"'), "seed is '0', expected int"),
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "holds the row of causal-s1"),
    ],
)
def test_a_file_that_is_not_its_row_is_named_in_one_line(tmp_path, change, message):
    path = results.save(row(), tmp_path)
    path.write_text(change(path.read_text()))
    with pytest.raises(ResultError, match=message) as caught:
        results.load(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_are_found_by_dotted_path():
    assert row().value("metrics.loss") == 0.1 + 0.2
    assert row().value("timing.wall_seconds") is None
    assert row().value("seed") == 0
    curve = {"uniq": {"0": 1, "0.5": 2}}
    measured = dataclasses.replace(row(), metrics={**row().metrics, "repetition": curve})
    assert [measured.value(f"metrics.repetition.uniq.{label}") for label in ("0", "0.5")] == [1, 2]


@pytest.mark.parametrize("path", ["metrics.los", "metric.loss", "metrics.loss.x"])
def test_an_absent_value_is_named_with_its_row(path):
    with pytest.raises(KeyError) as caught:
        row().value(path)
    assert path in caught.value.args[0]
    assert row().name in caught.value.args[0]
    assert "\n" not in caught.value.args[0]


def test_select_keeps_the_cells_asked_for_in_the_order_asked_for():
    rows = [row("a", 0), row("a", 1), row("b", 0), row("c", 0), row("a", 2)]
    chosen = results.select(rows, arms=["b", "a"], seeds=[1, 0])
    assert [(each.arm, each.seed) for each in chosen] == [("b", 0), ("a", 1), ("a", 0)]


def test_select_refuses_two_rows_for_a_cell_unless_a_key_tells_them_apart():
    rows = [row(key="old" * 4), row(key="new" * 4)]
    with pytest.raises(ResultError, match=r"causal-s0-old.*causal-s0-new.*remove the stale one"):
        results.select(rows, arms=["causal"], seeds=[0])
    assert results.select(rows, ["causal"], [0], keys={"new" * 4}) == [rows[1]]

"""The table of a sweep: paired differences to a baseline point, and p values adjusted over all of them."""

import dataclasses
import re

import pytest

from experiments.sweeps import Product, Sweep, Values
from research.analysis import statistics, sweeping, tables
from research.analysis.results import Row
from research.analysis.tables import TableError

SWEEP = Sweep(
    arms=("causal", "prefix"),
    points=Product(parts=(Values(binding="AdamW.learning_rate", values=(0.001, 0.003, 0.01)),)),
)
ARMS = tuple(SWEEP.expanded())
BASE = "learning_rate=0.003"


def row(arm, seed, loss):
    given = {
        "arm": arm,
        "seed": seed,
        "key": "0123456789abcdef",
        "environment": {"attention": "dense", "matmul_precision": "float32"},
        "data": {"fingerprint": "feedbeef", "order": f"windows-{seed}"},
        "metrics": {"loss": loss},
    }
    kinds = {str: "", int: 0, bool: False}
    return Row(**{field.name: kinds.get(field.type, {}) for field in dataclasses.fields(Row)} | given)


LOSSES = {
    "causal@learning_rate=0.001": (2.3, 2.5, 2.7, 2.9),
    "causal@learning_rate=0.003": (2.0, 2.2, 2.4, 2.7),
    "causal@learning_rate=0.01": (2.1, 2.1, 2.5, 2.6),
    "prefix@learning_rate=0.001": (1.9, 2.0, 2.4, 2.4),
    "prefix@learning_rate=0.003": (1.5, 1.7, 2.0, 2.1),
    "prefix@learning_rate=0.01": (1.6, 1.9, 2.0, 2.2),
}
ROWS = [row(arm, seed, loss) for arm, losses in LOSSES.items() for seed, loss in enumerate(losses)]


def table(rows=ROWS, arms=ARMS, baseline=BASE, seeds=(0, 1, 2, 3)):
    return sweeping.sweep_table(rows, arms=arms, seeds=seeds, metric="loss", baseline=baseline)


def column(found, name):
    place = [one.name for one in found.columns].index(name)
    return {line.arm: line.cells[place] for line in found.lines}


def compared(arm, seeds=range(4)):
    base = f"{arm.partition('@')[0]}@{BASE}"
    ours, theirs = ({seed: LOSSES[name][seed] for seed in seeds} for name in (arm, base))
    return statistics.paired_test(ours, theirs)


def test_each_point_is_compared_with_the_baseline_point_of_its_own_arm():
    differences = column(table(), "difference")
    assert differences["causal@learning_rate=0.003"].text == "baseline"
    assert (
        differences["prefix@learning_rate=0.001"].estimate == compared("prefix@learning_rate=0.001").estimate
    )
    assert differences["prefix@learning_rate=0.001"].text.startswith("+0.3500 ± 0.")


def test_p_values_are_adjusted_over_all_differences_of_the_table():
    others = [arm for arm in ARMS if not arm.endswith(BASE)]
    plain = {arm: compared(arm).p for arm in others}
    expected = statistics.benjamini_hochberg(plain)
    assert {arm: column(table(), "p")[arm].estimate.mean for arm in others} == plain
    assert {arm: column(table(), "adjusted_p")[arm].estimate.mean for arm in others} == expected
    assert expected != plain
    assert "adjusted over 4 differences" in table().notes[-1]


def test_what_is_not_run_yet_counts_in_the_family_and_has_no_number():
    rows = [one for one in ROWS if one.arm != "prefix@learning_rate=0.01"]
    adjusted = column(table(rows), "adjusted_p")
    assert adjusted["prefix@learning_rate=0.01"].text == ""
    assert column(table(rows), "difference")["prefix@learning_rate=0.01"].text == "n/a"
    others = [arm for arm in LOSSES if not arm.endswith(BASE) and arm != "prefix@learning_rate=0.01"]
    family = {arm: compared(arm).p for arm in others} | {"missing": 1.0}
    assert adjusted[others[0]].estimate.mean == statistics.benjamini_hochberg(family)[others[0]]
    assert "adjusted over 4 differences" in table(rows).notes[-1]


def test_one_seed_in_common_tests_nothing_and_says_so():
    rows = [one for one in ROWS if one.arm.endswith(BASE) or one.arm.endswith("0.001") or one.seed == 0]
    arm = "causal@learning_rate=0.01"
    assert column(table(rows), "p")[arm].text == "n/a"
    assert column(table(rows), "difference")[arm].text == "+0.1000"
    fewer = [one for one in ROWS if one.seed != 3 or not one.arm.endswith(BASE)]
    assert column(table(fewer), "difference")[arm].text.endswith("(n=3)")


def test_the_arm_without_a_sweep_may_be_the_baseline():
    rows = [*ROWS, *(row("causal", seed, 2.0) for seed in range(4))]
    arms = ("causal", "causal@learning_rate=0.001")
    found = table(rows, arms, baseline="")
    assert [line.cells[1].text for line in found.lines] == ["baseline", "+0.6000 ± 0.4109"]
    assert "Differences are to the arm as it is" in found.notes[-1]


def test_a_table_without_rows_is_all_missing():
    found = table([])
    assert {line.seeds for line in found.lines} == {"missing"}
    assert column(found, "p")["causal@learning_rate=0.01"].text == ""


@pytest.mark.parametrize("render", [tables.markdown, tables.csv, tables.latex])
def test_it_renders_as_any_table(render):
    assert "0.0" in render(table())


def test_the_metric_may_be_any_path_of_a_row_and_what_no_seed_measured_is_missing():
    def other(one):
        metrics = {"long": {"loss": {"64": one.metrics["loss"] - 1}}}
        return dataclasses.replace(
            one, metrics=metrics, budget={"parameters": 2e6}, timing={"wall_seconds": None}
        )

    rows = [other(one) for one in ROWS]
    options = {"arms": ARMS, "seeds": (0, 1, 2, 3), "baseline": BASE}
    arm = "prefix@learning_rate=0.001"
    found = sweeping.sweep_table(rows, metric="metrics.long.loss.64", **options)
    assert column(found, "difference")[arm].estimate.mean == pytest.approx(compared(arm).estimate.mean)
    assert found.columns[0].label == "long loss 64"
    counted = sweeping.sweep_table(rows, metric="budget.parameters", **options)
    assert column(counted, "budget.parameters")[arm].text == "2.000 M"
    assert column(counted, "difference")[arm].text == "+0.000 M"
    unmeasured = sweeping.sweep_table(rows, metric="timing.wall_seconds", **options)
    assert column(unmeasured, "difference")[arm].text == "n/a"
    with pytest.raises(TableError, match="metrics.long.loss: a series .*: 64"):
        sweeping.sweep_table(rows, metric="metrics.long.loss", **options)
    with pytest.raises(TableError, match="a median, expected what has a mean"):
        sweeping.sweep_table(rows, metric="median(metrics.long.loss.64)", **options)


def test_p_values_are_printed_as_everywhere():
    found = column(table(), "p")
    assert all(statistics.p_text(cell.estimate.mean) == cell.text for cell in found.values() if cell.estimate)


def test_an_arm_without_the_baseline_point_is_refused_in_one_line():
    with pytest.raises(TableError, match=re.escape("did you mean 'causal@learning_rate=0.003'")) as caught:
        table(baseline="learning_rate=0.03")
    assert "\n" not in str(caught.value)

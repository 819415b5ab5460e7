"""Where a number of a table comes from, and whether it comes out again."""
# ruff: noqa: F811 (fixtures)

import dataclasses
import io
import json
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console
from test_launch import launched, matched, project, rows  # noqa: F401

from experiments import cells, checking, configs
from research.analysis import results, statistics, tables
from research.training import loop

HERE = {name: f"this {name}" for name in checking.SAME}


def row(arm, seed, loss=2.0, *, key="0123456789abcdef", **given):
    given = {
        **{"arm": arm, "seed": seed, "key": key, "commit": "c0ffee" * 7, "environment": HERE},
        **{"metrics": {"loss": loss, "long": {"64": loss + 1}}, "data": {"fingerprint": "feedbeef" * 8}},
        "budget": {"parameters": 1000, "train_flops": 1.0},
        **given,
    }
    empty = {str: "", int: 0, bool: False}
    return results.Row(
        **{field.name: empty.get(field.type, {}) for field in dataclasses.fields(results.Row)} | given
    )


def test_a_number_is_traced_to_the_row_of_every_seed(matched):
    planned = matched(seeds={"smoke": (0, 1, 2)})
    found = [row("causal", 0, 2.25), row("prefix", 1, 9.0), row("causal", 2, 2.5, dirty=True)]
    found.append(row("causal", 7, 5.0))  # of no seed of the study
    assert list(checking.trace(planned, found, "causal/loss")) == [
        "seed 0  metrics.loss = 2.25  causal-s0-0123456789ab.json  commit c0ffeec0ffee  data feedbeeffeed",
        "seed 1  missing",
        "seed 2  metrics.loss = 2.5  causal-s2-0123456789ab.json  commit c0ffeec0ffee and changes  "
        "data feedbeeffeed",
    ]
    assert list(checking.trace(planned, found, "prefix/metrics.long.64"))[1] == (
        "seed 1  metrics.long.64 = 10.0  prefix-s1-0123456789ab.json  commit c0ffeec0ffee  data feedbeeffeed"
    )
    assert list(checking.trace(planned, [], "prefix/parameters")) == [
        *(f"seed {seed}  missing" for seed in range(3)),
    ]


@pytest.mark.parametrize(
    ("cell", "wrong"),
    [
        (
            "suffix/loss",
            "expected ARM/COLUMN with one of the arms ['causal', 'prefix']; did you mean 'prefix'?",
        ),
        ("causal", "expected ARM/COLUMN with one of the arms ['causal', 'prefix']"),
        ("causal/paramters", "expected one of ['loss', "),
        ("causal/paramters", "or a path such as metrics.loss; did you mean 'parameters'?"),
        ("causal/difference", "'difference' is no number of a row, expected one of ['loss', "),
        ("causal/metrics.lost", "no value 'metrics.lost'"),
        (
            "causal/metrics.long",
            "metrics.long of causal-s0-0123456789ab.json is a series, expected a number; add ",
        ),
        ("causal/metrics.long", "one of its labels: 64"),
    ],
)
def test_what_cannot_be_traced_is_one_line(matched, cell, wrong):
    with pytest.raises(tables.TableError) as raised:
        list(checking.trace(matched(), [row("causal", 0)], cell))
    assert str(raised.value).startswith(f"--trace={cell}: ")
    assert wrong in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_loss_that_is_measured_again_may_differ_by_what_rounding_or_seeds_do():
    low, high, why = checking._bounds(2.0, [2.0, 3.0], [])
    assert (low, high) == pytest.approx((1.9998, 2.0002))
    assert why == "within 0.0001"
    low, high, why = checking._bounds(2.0, [2.0, 2.2, 2.4], ["processor"])
    assert (low, high) == statistics.prediction_interval([2.0, 2.2, 2.4])
    assert low < 1.9
    assert high > 2.5
    assert "processor" in why
    for losses in ([], [2.0]):
        with pytest.raises(configs.ConfigError, match="another jax, processor and its arm has one seed"):
            checking._bounds(2.0, losses, ["jax", "processor"])


@pytest.fixture
def measured(matched, tmp_path, monkeypatch):
    """Save rows of the study's cells; then check some of them, which have this loss and environment now."""
    planned = matched()
    every = cells.of(planned, planned.arms, tmp_path / "results", "runs", None)
    seen = []

    def save(arm, seed, loss, **given):
        (cell,) = [one for one in every if (one.arm, one.seed) == (arm, seed)]
        results.save(row(arm, seed, loss, key=cell.job.folder.name.rsplit("-", 1)[1], **given), cell.rows)

    def check(*names, loss=2.0, environment=HERE):
        def run(job, **_):
            seen.append(job)
            if isinstance(loss, Exception):
                raise loss
            return {"metrics": {"loss": loss}, "environment": environment}

        monkeypatch.setattr(checking.running, "run", run)
        out = io.StringIO()
        failed = checking.check(planned, tmp_path / "results", names, None, Console(file=out, width=300))
        return failed, out.getvalue().splitlines()

    return save, check, seen


def test_the_cheapest_cell_is_run_apart_from_what_there_is(measured):
    save, check, seen = measured
    save("causal", 0, 2.0, budget={"train_flops": 3.0})
    save("prefix", 1, 2.0, budget={"train_flops": 2.0})
    failed, said = check()
    assert failed == []
    assert said == [
        "prefix seed 1: loss 2.000000, its row has 2.000000; expected 1.999800 to 2.000200, within 0.0001: agrees"
    ]
    (job,) = seen
    assert job.planned.seed == 1
    assert job.folder.is_absolute()
    assert not job.folder.exists()


@pytest.mark.parametrize(
    ("loss", "agrees"), [(2.00019, True), (2.00021, False), (1.99981, True), (1.99979, False)]
)
def test_on_the_same_machine_a_loss_agrees_to_a_ten_thousandth(measured, loss, agrees):
    save, check, _ = measured
    save("causal", 0, 2.0)
    failed, (said,) = check(loss=loss)
    assert said.endswith("agrees" if agrees else "differs")
    assert len(failed) == (not agrees)
    assert not any("\n" in line for line in failed)


def test_elsewhere_a_loss_has_to_be_that_of_a_new_run(measured):
    save, check, _ = measured
    elsewhere = {**HERE, "processor": "another"}
    save("causal", 0, 2.0)
    with pytest.raises(configs.ConfigError, match="another processor and its arm has one seed") as raised:
        check(environment=elsewhere)
    assert "\n" not in str(raised.value)
    save("causal", 1, 2.1)
    low, high = statistics.prediction_interval([2.0, 2.1])
    for loss, agrees in [(low + 0.01, True), (high - 0.01, True), (low - 0.01, False), (high + 0.01, False)]:
        failed, (said,) = check("causal:0", loss=loss, environment=elsewhere)
        assert bool(failed) != agrees
        assert "95 % of new runs, since processor differ" in said


def test_on_another_number_of_cores_it_has_too_and_an_old_row_does_not_say(measured):
    save, check, _ = measured
    fewer = {**HERE, "cores": 1}
    save("causal", 0, 2.0)
    save("causal", 1, 2.1)
    _, (said,) = check("causal:0", loss=2.01, environment=fewer)
    assert said.endswith("since cores differ: agrees")
    save("causal", 0, 2.0, environment={name: HERE[name] for name in HERE if name != "cores"})
    failed, (said,) = check("causal:0", loss=2.01, environment=fewer)
    assert failed
    assert "within 0.0001" in said


def test_cells_are_named_by_arm_or_seed(measured):
    save, check, seen = measured
    with pytest.raises(configs.ConfigError, match="no cell has a row of its experiment as it is now"):
        check()
    for arm, seed in (("causal", 0), ("causal", 1), ("prefix", 0)):
        save(arm, seed, 2.0)
    check("causal", "prefix:0")
    assert [job.title for job in seen] == ["causal seed 0", "causal seed 1", "prefix seed 0"]
    for name in ("suffix", "prefix:1", "causal:2", "causal:one"):
        with pytest.raises(configs.ConfigError, match=rf"^--cells={name}: no such cell with a row") as raised:
            check(name)
        assert "\n" not in str(raised.value)


def test_a_cell_that_diverges_now_does_not_come_out_again(measured):
    save, check, seen = measured
    save("causal", 0, 2.0)
    save("prefix", 0, 2.0)
    failed, said = check("causal", "prefix", loss=loop.Diverged("step 3: loss = nan"))
    assert failed == ["step 3: loss = nan, but its row has loss 2.000000"] * 2
    assert len(seen) == 2


@pytest.fixture
def broken(matched, tmp_path):
    """The study, whose arm `causal` has a row and whose arm `prefix` cannot be planned."""
    planned = matched(seeds={"smoke": (0,)})
    arm = configs.ROOT / "configs" / "tiny" / "prefix.gin"
    arm.write_text(f"{arm.read_text()}from experiments import experiment\nexperiment.train.stepps = 1\n")
    (cell,) = cells.of(planned, ["causal"], tmp_path / "results", "runs", None)
    results.save(row("causal", 0, key=cell.job.folder.name.rsplit("-", 1)[1]), cell.rows)
    return planned


def test_an_arm_that_cannot_be_planned_is_told_and_the_others_are_checked(broken, tmp_path, monkeypatch):
    found = {"metrics": {"loss": 2.0}, "environment": HERE}
    monkeypatch.setattr(checking.running, "run", lambda *_, **__: found)
    console = Console(file=io.StringIO())
    for names in ((), ("causal",)):
        assert checking.check(broken, tmp_path / "results", names, None, console) == []
    with pytest.raises(configs.ConfigError, match=r"^--cells=prefix:0: .*stepps"):
        checking.check(broken, tmp_path / "results", ["prefix:0"], None, console)
    seen = []
    monkeypatch.setattr(checking.staleness, "check", lambda cells, _: seen.extend(cells))
    (said,) = checking.verify(broken, tmp_path / "results", None, console)
    assert said.startswith("prefix seed 0: ")
    assert "stepps" in said
    assert [cell.title for cell in seen] == ["causal seed 0"]


def tabulated(project, *words):
    found = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.tabulate", "--study=tiny", "--scale=smoke"),
            *(f"--results_dir={project / 'results'}", *words),
        ],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return found.returncode, found.stdout, found.stderr


def edit(project, name, change):
    path = project / "results" / "tiny" / "smoke" / "cells" / name
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.slow
def test_a_row_comes_out_again_and_one_that_was_edited_does_not(project):
    code, _, wrong = launched(project, "--how=ensemble", "--only=causal")
    assert code == 0, wrong
    first, second = sorted(rows(project))
    code, said, _ = tabulated(project, "--trace=causal/loss")
    assert (code, said.splitlines()[0].split()[:3]) == (0, ["seed", "0", "metrics.loss"])
    code, said, wrong = tabulated(project, "--trace=causal/lost")
    assert (code, wrong.count("\n")) == (1, 1)
    assert wrong.startswith("error: --trace=causal/lost: ")

    before, kept = rows(project), {path.name for path in (project / "runs/tiny/smoke").iterdir()}
    code, said, wrong = tabulated(project, "--check")
    assert (code, wrong) == (0, ""), said
    assert re.search(r"causal seed 0: loss .* within 0.0001: agrees", said)
    assert rows(project) == before
    assert {path.name for path in (project / "runs/tiny/smoke").iterdir()} == kept

    edit(project, first, lambda record: record["metrics"].update(loss=record["metrics"]["loss"] * 1.0003))
    code, said, wrong = tabulated(project, "--check", "--cells=causal:0")
    assert (code, wrong.count("\n")) == (1, 1), said
    assert wrong.startswith("error: causal seed 0: loss ")
    assert "differs" in said

    # Another processor may differ by more; the same loss is one that a new run could have.
    edit(project, first, lambda record: record["environment"].update(processor="another"))
    code, said, wrong = tabulated(project, "--check", "--cells=causal:0")
    assert (code, wrong) == (0, ""), said
    assert "95 % of new runs, since processor differ: agrees" in said
    (project / "results/tiny/smoke/cells" / second).unlink()
    code, said, wrong = tabulated(project, "--check")
    assert (code, wrong.count("\n")) == (1, 1)
    assert "another processor and its arm has one seed: expected two" in wrong

"""An experiment under several names is trained once, and measured under each."""
# ruff: noqa: F811 (fixtures)

import dataclasses
import io
from pathlib import Path

import filelock
import pytest
from rich.console import Console
from test_launch import matched, project  # noqa: F401
from test_stages import equal, evaluated, of, run, work

from experiments import configs, launch, lineage, running, staleness
from research.evaluation.learning import StepsTo


@pytest.fixture
def twins(matched):
    """A study whose arms `causal`, `again` and `often` are one experiment; the last is evaluated on its way."""
    folder = configs.ROOT / "configs" / "tiny"
    causal = (folder / "causal.gin").read_text()
    (folder / "again.gin").write_text(causal)
    (folder / "often.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom research.training import loop\n"
        f"{causal}loop.Plan.evaluate_every = 2\n"
    )
    found = matched(
        seeds={"smoke": (0,)},
        arms=("causal", "prefix", "again", "often"),
        compared={"all": ("causal", "prefix"), "same": ("again",), "way": ("often",)},
    )
    measured = {"all": (), "same": ("reached",), "way": ("reached",)}
    table = dataclasses.replace(found.table, evaluations={"reached": StepsTo(loss=100.0)}, measured=measured)
    return dataclasses.replace(found, table=table)


@pytest.fixture
def trained(monkeypatch):
    """Titles of the runs that were trained."""
    titles, train = [], running._train

    def counted(runs, console):
        titles.extend(run.job.title for run in runs)
        train(runs, console)

    monkeypatch.setattr(running, "_train", counted)
    return titles


def test_one_that_is_evaluated_on_its_way_is_trained_for_the_others(twins, trained, tmp_path):
    every = of(twins, tmp_path)
    causal, prefix, again, often = every
    assert lineage.leaders(every) == {causal: often, again: often}
    assert lineage.waves(every) == [[prefix, often], [causal, again]]
    assert run(every)[0] == {}
    assert trained == ["prefix seed 0", "often seed 0"]

    rows = {cell.arm: cell.row for cell in every}
    loss = rows["often"].metrics["loss"]
    assert [rows[arm].metrics["loss"] for arm in ("causal", "again")] == [loss, loss]
    assert rows["prefix"].metrics["loss"] != loss
    # Each has what its arm is measured by, as it was evaluated.
    assert [row.metrics.get("reached") for row in rows.values()] == [None, None, {"steps": 2}, {"steps": 2}]
    assert [set(row.evaluations) for row in rows.values()] == [set(), set(), {"reached"}, {"reached"}]
    assert set(rows["causal"].replay["scores"]) == set()
    assert "evaluate_every = 2" in rows["often"].config
    assert "evaluate_every = 2" not in rows["causal"].config
    assert causal.job.folder != often.job.folder
    equal(evaluated(causal), evaluated(often))

    said = io.StringIO()
    assert staleness.check(every, Console(file=said)) == []
    assert "has changed" not in said.getvalue()  # so nothing had to be replayed


def test_what_was_not_evaluated_on_its_way_is_no_twin_of_one_that_asks_for_it(twins, trained, tmp_path):
    causal, _, again, often = of(twins, tmp_path)
    for cell in (causal, often, again):  # each in a launch of its own
        assert run([cell])[0] == {}
    assert trained == ["causal seed 0", "often seed 0"]
    assert often.row.metrics["reached"] == {"steps": 2}
    assert again.row.metrics["loss"] == causal.row.metrics["loss"]


def test_a_run_that_has_begun_or_whose_twin_has_no_parameters_is_trained(twins, trained, tmp_path):
    causal, _, again, _ = of(twins, tmp_path)
    run([causal])
    (causal.job.folder / "checkpoints").rename(tmp_path / "gone")
    run([again])
    assert trained == ["causal seed 0", "again seed 0"]


def test_a_twin_that_another_launch_is_at_is_not_taken(twins, trained, tmp_path):
    causal, _, again, _ = of(twins, tmp_path)
    run([causal])
    with filelock.FileLock(causal.job.folder / ".lock"):
        run([again])
    assert trained == ["causal seed 0", "again seed 0"]
    assert again.row.metrics["loss"] == causal.row.metrics["loss"]


def test_a_copy_that_was_cut_short_is_no_run(twins, trained, tmp_path, monkeypatch):
    causal, _, again, _ = of(twins, tmp_path)
    run([causal])
    rename = Path.rename

    def killed(path, target):
        if path.name == "run.json":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        run([again])
    assert again.row is None
    assert not (again.job.folder / "run.json").exists()
    monkeypatch.setattr(Path, "rename", rename)
    run([again])
    assert trained == ["causal seed 0"]
    assert again.row.metrics["loss"] == causal.row.metrics["loss"]


def test_a_dry_run_counts_its_work_once(twins, tmp_path):
    every = of(twins, tmp_path)
    _, prefix, _, often = every
    found = launch.price(twins, "headline", every)
    assert (found.cells, found.missing) == (4, 4)
    assert found.teraflops == pytest.approx((work(prefix) + work(often)) / 1e12)

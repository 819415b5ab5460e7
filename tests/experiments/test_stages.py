"""Arms that start from what another arm of the study has learned."""
# ruff: noqa: F811 (fixtures)

import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console
from test_launch import launched, matched, project, rows  # noqa: F401
from tiny_models import QUIET, command, gin_of, planned, texts

from experiments import (
    cells,
    checking,
    configs,
    experiment,
    folders,
    launch,
    lineage,
    origins,
    replays,
    running,
    study,
    tuning,
)
from research.analysis import results
from research.models.paths import named
from research.training.loop import Diverged
from research.training.optimizers import AdamW
from research.training.step import Recipe
from research.training.stopping import EarlyStopping

IMPORTS = (
    "from __gin__ import dynamic_registration\n"
    "from experiments import experiment\nfrom experiments import stages\n"
    "from research.training import step\nfrom research.training import optimizers\n"
)
STARTS = "experiment.train.init_from = @stages.Stage()\nstages.Stage.arm = '{}'\n"
DIFFERS = "stages.Stage.differing = ('DecoderConfig.mask',)\n"


@pytest.fixture
def staged(matched):
    """A study in which `prefix` starts from `causal`, whose parameters are averaged, and `deep` from `prefix`."""
    folder = configs.ROOT / "configs" / "tiny"
    causal = (folder / "causal.gin").read_text()
    prefix = (folder / "prefix.gin").read_text()
    (folder / "causal.gin").write_text(f"{IMPORTS}{causal}step.Recipe.average = 0.5\n")
    (folder / "prefix.gin").write_text(f"{IMPORTS}{prefix}{STARTS.format('causal')}{DIFFERS}")
    (folder / "deep.gin").write_text(f"{IMPORTS}{prefix}{STARTS.format('prefix')}")
    (folder / "study.gin").write_text(
        (folder / "study.gin").read_text().replace("'prefix')", "'prefix', 'deep')")
    )
    scale = configs.ROOT / "configs" / "scale"
    (scale / "small.gin").write_text((scale / "smoke.gin").read_text())
    return matched(seeds={"smoke": (0, 1), "small": (0, 1)})


def write(arm, text):
    (configs.ROOT / "configs" / "tiny" / f"{arm}.gin").write_text(text)


def of(planned, folder, *arms, seeds=None, **options):
    planned = planned if seeds is None else planned.limited(seeds)
    return cells.of(planned, arms or planned.arms, folder / "results", folder / "runs", None, **options)


def run(todo, *, how="alone"):
    """Run cells as `launch` does; those that failed, and what was said."""
    out = io.StringIO()
    failed = launch.Launcher(how, 1, 8, None, Console(file=out, width=300)).run(todo)
    return {cell.title: str(error) for cell, error in failed.items()}, out.getvalue()


def evaluated(cell):
    """The parameters that the result of a cell's run has scored, from its checkpoint."""
    return named(origins.run(str(cell.job.folder), None).read())


def initial(cell):
    """The state before the first step of a cell."""
    one = cell.job.planned
    functions = experiment.trainer(one, experiment.dataset(one.data, None).tokenizer.vocab_size)
    return functions.initial(jax.random.key(one.seed), one.numbers, params=experiment.started(one, None))


def equal(one, other):
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)


def fake(cell, **given):
    """A row of a cell that nothing has run."""
    empty = {str: "", int: 0, bool: False}
    fields = {field.name: empty.get(field.type, {}) for field in dataclasses.fields(results.Row)}
    key = cell.job.folder.name.rsplit("-", 1)[1]
    code = {"fingerprint": "f", "checked": "f", "stale": ""}
    row = {"arm": cell.arm, "seed": cell.seed, "key": key, "code": code, "metrics": {"loss": 2.5}, **given}
    results.save(results.Row(**{**fields, **row}), cell.rows)


def test_what_an_arm_starts_from_decides_its_key_before_anything_is_trained(staged, tmp_path):
    causal, prefix, deep = of(staged, tmp_path, seeds=1)
    assert prefix.base.arm == "causal"
    assert [cell.arm for cell in lineage.bases([deep])] == ["causal", "prefix"]
    assert prefix.base.job.folder == causal.job.folder
    assert deep.base.base.job.folder == causal.job.folder
    start = prefix.job.planned.init_from
    assert start.fingerprint(None) == experiment.key(causal.job.planned, None)
    assert start.place == str(causal.job.folder)
    assert not (tmp_path / "runs").exists()
    before = {cell.arm: cell.job.folder for cell in (causal, prefix, deep)}
    text = (configs.ROOT / "configs/tiny/causal.gin").read_text()
    write("causal", text.replace("0.5", "0.25"))
    assert all(cell.job.folder != before[cell.arm] for cell in of(staged, tmp_path, seeds=1))


def test_the_seeds_of_an_arm_start_from_other_parameters_and_are_of_one_design(staged, tmp_path):
    one, other = (cell.job.planned for cell in of(staged, tmp_path, "deep"))
    assert one.init_from.fingerprint(None) != other.init_from.fingerprint(None)
    assert one.init_from.base.seed == one.init_from.base.init_from.base.seed == 0
    assert other.init_from.base.seed == 1
    assert (
        experiment.design(one, None)
        == experiment.design(other, None)
        != experiment.design(dataclasses.replace(one, init_from=None), None)
    )


@pytest.mark.parametrize(
    ("causal", "wrong"),
    [
        ("suffix", "arm causal of study tiny starts from 'suffix', which is none of its arms"),
        ("causal", "arm causal of study tiny would start from itself (causal from causal)"),
        ("deep", "would start from itself (causal from deep from prefix from causal)"),
    ],
)
def test_an_arm_that_cannot_start_is_one_line(staged, tmp_path, causal, wrong):
    write("causal", f"{(configs.ROOT / 'configs/tiny/causal.gin').read_text()}{STARTS.format(causal)}")
    _, broken = cells.sound(of(staged, tmp_path, seeds=1))
    errors = [str(error) for cell, error in broken.items() if cell.arm == "causal"]
    assert len(errors) == 1
    assert wrong in errors[0]
    assert "change stages.Stage.arm in configs/tiny/" in errors[0]
    assert "\n" not in errors[0]
    assert {cell.arm for cell in broken} == {"causal", "prefix", "deep"}  # these start there


def test_what_others_start_from_runs_their_seeds_and_has_a_learning_rate(matched, staged, tmp_path):
    groups = {"core": ("prefix", "deep"), "extended": ("causal",)}
    compared = {"one": ("causal",), "other": ("prefix", "deep")}
    fewer = matched(groups=groups, compared=compared, fewer={"extended": {"smoke": 1}})
    _, broken = cells.sound(of(fewer, tmp_path, "prefix"))
    assert [str(error) for error in broken.values()] == [
        "arm prefix of study tiny starts from causal, which does not run seed 1 at scale smoke; let it run as many "
        "seeds, see Table.fewer in configs/tiny/study.gin"
    ]
    small = dataclasses.replace(study.load("tiny", "small"), rates={"prefix": 0.003})
    table = dataclasses.replace(small.table, tuning=study.Tuning())
    (cell, _) = of(dataclasses.replace(small, table=table), tmp_path, "prefix")
    with pytest.raises(
        configs.ConfigError, match="arm causal of study tiny has no learning rate for scale small"
    ):
        _ = cell.base


@pytest.mark.slow
@pytest.mark.parametrize("how", ["alone", "ensemble"])
def test_a_cell_begins_with_the_parameters_that_its_base_has_scored(staged, tmp_path, how, monkeypatch):
    trained = []
    train = running._train
    monkeypatch.setattr(running, "_train", lambda runs, said: (trained.extend(runs), train(runs, said)))
    write("deep", (configs.ROOT / "configs/tiny/prefix.gin").read_text())  # two that start from one
    causal, *others = of(staged, tmp_path, seeds=1)
    failed, said = run(others, how=how)
    assert failed == {}
    assert [line.split("  ")[0] for line in said.splitlines() if "held-out" in line] == [
        "causal seed 0",
        "prefix seed 0",
        "deep seed 0",
    ]
    assert [one.job.title for one in trained].count("causal seed 0") == 1
    saved, state = evaluated(causal), initial(others[0])
    equal(named(state.params), saved)
    assert int(state.step) == 0
    with pytest.raises(AssertionError):  # it is the average that was scored
        equal(saved, last(causal))
    row = others[0].row
    assert row.data["init_from"] == {"arm": "causal", "seed": 0, "key": causal.row.key}
    assert str(tmp_path) not in json.dumps(row.data)


def last(cell):
    """The parameters of its last step, not averaged."""
    one = cell.job.planned
    functions = experiment.trainer(one, experiment.dataset(one.data, None).tokenizer.vocab_size)
    like = jax.eval_shape(functions.initial, jax.random.key(0), one.numbers)
    with origins.Checkpoints(cell.job.folder / "checkpoints", one.keep) as checkpoints:
        return named(checkpoints.restore_params(like.params)[0])


@pytest.mark.slow
def test_a_machine_with_rows_and_no_runs_trains_again_what_a_missing_cell_starts_from(staged, tmp_path):
    causal, prefix, deep = every = of(staged, tmp_path, seeds=1)
    assert run(every)[0] == {}
    equal(named(initial(deep).params), evaluated(prefix))
    before, loss = causal.path.read_bytes(), deep.row.value("metrics.loss")
    shutil.rmtree(tmp_path / "runs")
    assert lineage.needed(cells.missing(every)) == []  # rows are enough
    deep.path.unlink()
    prefix.path.unlink()
    todo = lineage.needed(cells.missing([deep]))
    assert [cell.arm for cell in todo] == ["causal", "prefix", "deep"]
    assert run([deep])[0] == {}
    assert deep.row.value("metrics.loss") == loss
    assert prefix.row is not None  # it had none
    assert causal.path.read_bytes() == before
    assert lineage.needed([deep]) == [deep]


@pytest.mark.slow
def test_a_result_whose_parameters_are_gone_is_made_again_for_those_that_start_there(staged, tmp_path):
    causal, prefix, _ = of(staged, tmp_path, seeds=1)
    run([causal])
    saved = evaluated(causal)
    shutil.rmtree(causal.job.folder / "checkpoints" / "4")
    with pytest.raises(
        configs.ConfigError, match="no parameters of a finished run of arm causal there"
    ) as raised:
        initial(prefix)
    assert "\n" not in str(raised.value)
    assert run([prefix])[0] == {}
    assert (causal.job.folder / "aside_1" / "result.json").exists()
    equal(named(initial(prefix).params), saved)
    (damaged,) = (causal.job.folder / "checkpoints" / "4" / "record").glob("metadata")
    damaged.write_text(damaged.read_text().replace('"crc32": ', '"crc32": 1'))
    with pytest.raises(configs.ConfigError, match="launch the study again, which trains arm causal anew"):
        initial(prefix)


@pytest.mark.slow
def test_a_cell_that_has_trained_needs_no_base_for_another_evaluation(staged, tmp_path):
    causal, prefix, _ = of(staged, tmp_path, seeds=1)
    run([prefix])
    shutil.rmtree(causal.job.folder)
    prefix.path.unlink()
    assert lineage.needed([prefix]) == [prefix]
    assert run([prefix])[0] == {}
    anew = dataclasses.replace(prefix, again=True)
    assert [cell.arm for cell in lineage.needed([anew])] == ["causal", "prefix"]


def test_what_starts_from_a_cell_that_fails_is_not_run(staged, tmp_path, monkeypatch):
    def train(runs, said):
        for one in runs:
            one.error = Diverged("loss is nan")

    monkeypatch.setattr(running, "_train", train)
    every = of(staged, tmp_path, seeds=1)
    assert run(every)[0] == {
        "causal seed 0": "loss is nan",
        "prefix seed 0": "it starts from causal seed 0, which failed",
        "deep seed 0": "it starts from prefix seed 0, which failed",
    }


@pytest.mark.slow
def test_a_replay_needs_no_run_and_tells_what_the_base_s_code_has_come_to_do(staged, tmp_path):
    (deep,) = of(staged, tmp_path, "deep", seeds=1)
    before = running.replay(deep.job, None)
    assert not (tmp_path / "runs").exists()
    assert replays.furthest(before, running.replay(deep.job, None)) == 0
    start = deep.job.planned.init_from
    base = dataclasses.replace(start.base, optimizer=AdamW(learning_rate=1e-4))
    other = dataclasses.replace(deep.job.planned, init_from=dataclasses.replace(start, base=base))
    after = running.replay(dataclasses.replace(deep.job, planned=other), None)
    assert replays.furthest(before, after) > replays.TOLERANCE


@pytest.mark.slow
def test_a_cell_is_checked_by_training_what_it_starts_from_apart_too(staged, tmp_path):
    (prefix,) = of(staged, tmp_path, "prefix", seeds=1)
    run([prefix])
    shutil.rmtree(tmp_path / "runs")
    assert checking.check(staged, tmp_path / "results", ["prefix:0"], None, QUIET) == []
    assert not (tmp_path / "runs").exists()


def test_the_grid_of_learning_rates_starts_from_the_base_at_its_own_rate(staged, tmp_path):
    table = dataclasses.replace(staged.table, tuning=study.Tuning())
    tuned = dataclasses.replace(staged, table=table, rates={"causal": 0.002, "prefix": 0.003})
    folders_ = (tmp_path / "results", tmp_path / "runs", None)
    grid = tuning.Grid(tuned, ("prefix",), (0.001, 0.003, 0.01), *folders_)
    found = grid.cells
    assert [cell.job.planned.optimizer.learning_rate for cell in found] == [0.001, 0.003, 0.01]
    (base,) = lineage.bases(found)
    assert (base.arm, base.seed, base.job.planned.optimizer.learning_rate) == ("causal", 1000, 0.002)
    (own, *_) = of(tuned, tmp_path, "causal")
    assert (base.runs, base.rows) == (found[0].runs, found[0].rows)  # not those of the table
    assert own.rows != base.rows


def test_a_dry_run_lists_and_prices_what_only_runs_for_others_to_start_from(matched, staged, tmp_path):
    planned = matched(groups={"core": ("prefix", "deep"), "headline": ("causal",)})
    every = of(planned, tmp_path, "deep", seeds=1)
    out = io.StringIO()
    launch.list_missing(every, Console(file=out, width=300))
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == [
        "causal seed 0",
        "prefix seed 0",
        "deep seed 0",
    ]
    found = launch.price(planned, "core", every)
    assert (found.cells, found.missing) == (3, 3)
    assert found.teraflops == pytest.approx(sum(map(work, lineage.needed(every))) / 1e12)
    for cell in lineage.needed(every):
        fake(cell, budget={"train_flops": 1.0, "tokens_seen": 1}, timing={"tokens_per_second": None})
    assert launch.price(planned, "core", every).missing == 0
    assert launch.price(planned, "headline", every).cells == 0


def work(cell):
    one = cell.job.planned
    return experiment.cost(one.model, one.data, None).train_flops * one.steps


@pytest.mark.slow
def test_a_run_is_read_as_its_result_has_scored_it(tmp_path):
    """Stopped early, that is not its newest checkpoint."""
    one = planned(
        texts(tmp_path / "texts"),
        optimizer=AdamW(learning_rate=0.5),
        early_stopping=EarlyStopping(every=1, patience=3),
        recipe=Recipe(average=0.1),
        steps=8,
    )
    result = running.run(running.Job(one, gin_of(one), tmp_path / "run"), console=QUIET)
    assert folders.scored(result) == result["metrics"]["steps"] < result["budget"]["steps"]
    assert folders.trained(tmp_path / "run")
    text = experiment.dataset(one.data, None)
    functions = experiment.trainer(one, text.tokenizer.vocab_size)
    read = origins.run(str(tmp_path / "run"), None).read()
    assert functions.evaluate(read, text.held_out("test")) == result["metrics"]["loss"]


@pytest.mark.slow
def test_outside_of_a_study_it_needs_a_run(staged, tmp_path):
    files = [
        f"--gin_file={configs.ROOT}/configs/tiny/prefix.gin",
        f"--gin_file={configs.ROOT}/configs/scale/smoke.gin",
    ]
    code, _, wrong = command("experiments.train", *files, f"--run_dir={tmp_path / 'own'}")
    assert (code, wrong.count("\n")) == (1, 1)
    assert "launch the study, or give experiments.train --init_from=RUN" in wrong
    assert not (tmp_path / "own").exists()
    (causal, *_) = of(staged, tmp_path, "causal", seeds=1)
    run([causal])
    again = [
        f"--init_from={causal.job.folder}",
        "--gin_param=\"Parameters.differing=('DecoderConfig.mask',)\"",
    ]
    again = [word.replace('"', "") for word in again]
    code, said, wrong = command("experiments.train", *files, *again, f"--run_dir={tmp_path / 'own'}")
    assert code == 0, wrong
    assert "loss " in said


@pytest.mark.slow
@pytest.mark.parametrize("how", [("--how=processes", "--workers=2"), ("--launcher=slurm", "--cluster=local")])
def test_a_launch_runs_what_others_start_from_first(staged, tmp_path, how):
    code, said, wrong = launched(tmp_path, *how, "--only=deep", "--seeds=1")
    assert code == 0, wrong
    assert "1 of 1 cells to run, and 2 before that they start from" in said
    assert [name.split("-")[0] for name in rows(tmp_path)] == ["causal", "deep", "prefix"]
    code, said, wrong = launched(tmp_path, *how)
    assert code == 0, wrong
    assert "3 of 6 cells to run" in said
    assert len(rows(tmp_path)) == 6

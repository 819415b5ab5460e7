"""A study's grid of learning rates: its cells, how it grows, and what it binds."""
# ruff: noqa: F811 (fixtures)

import dataclasses

import pytest
from test_launch import launched, matched, project, rows  # noqa: F401

from experiments import cells, configs, study, tuning
from research.analysis import results
from research.analysis.tuning import Choice

TUNING = (
    "study.Table.tuning = @study.Tuning()\n"
    "study.Tuning.rates = (0.001, 0.003, 0.01)\n"
    "study.Table.seeds = {'smoke': (0, 1), 'small': (0, 1)}\n"
)


def written(*lines):
    """The study, with these lines in study.gin."""
    path = configs.ROOT / "configs" / "tiny" / "study.gin"
    text = path.read_text().replace("study.Table.seeds = {'smoke': (0, 1)}\n", "")
    imported = "from experiments import study\n"
    text = text.replace(imported, f"{imported}from experiments import sweeps\n")
    path.write_text(text + "".join(lines))
    return study.load("tiny", "smoke")


@pytest.fixture
def tuned(matched):
    return written(TUNING)


@pytest.fixture
def grid(tuned, tmp_path):
    assert tuned.table.tuning is not None
    folders = (tmp_path / "results", tmp_path / "runs")
    return tuning.Grid(tuned, tuned.arms, tuned.table.tuning.rates, *folders, None)


def rate_of(cell):
    return cell.job.planned.optimizer.learning_rate


class Runs:
    """Gives the cells that it is to run rows with a loss for each arm and rate, without training; None: it fails."""

    def __init__(self, loss):
        self.loss = loss
        self.asked = []

    def __call__(self, todo):
        self.asked.append([(cell.study.file(cell.arm), rate_of(cell)) for cell in todo])
        for cell in todo:
            loss = self.loss(cell.study.file(cell.arm), rate_of(cell))
            if loss is not None:
                save(cell, {"validation_loss": loss})


def save(cell, metrics):
    empty = {str: "", int: 0, bool: False}
    fields = {field.name: empty.get(field.type, {}) for field in dataclasses.fields(results.Row)}
    given = {"arm": cell.arm, "seed": cell.seed, "metrics": metrics}
    name = cell.job.folder.name
    row = results.Row(**{**fields, **given, "key": name.rsplit("-", 1)[1]})
    assert results.save(row, cell.rows) == cell.path


def test_a_best_rate_at_an_edge_extends_the_grid_for_every_arm(grid):
    best = {"causal": 0.003, "prefix": 0.033}
    runs = Runs(lambda arm, rate: 2 + abs(rate - best[arm]))
    found = tuning.run(grid, runs)
    arms = ("causal", "prefix")
    assert runs.asked == [
        [(arm, rate) for arm in arms for rate in (0.001, 0.003, 0.01)],
        [(arm, 0.033) for arm in arms],
        [(arm, 0.11) for arm in arms],
    ]
    assert {arm: choice.rate for arm, choice in found.items()} == best
    assert found["causal"].losses[0.033] == pytest.approx(2.03)
    again = Runs(None)
    assert tuning.run(grid, again) == found  # from the rows
    assert again.asked == [[], [], []]


def test_a_grid_whose_best_rates_are_inside_is_run_once(grid):
    runs = Runs(lambda arm, rate: abs(rate - 0.003) if rate != 0.01 else None)  # 0.01 diverges
    found = tuning.run(grid, runs)
    assert len(runs.asked) == 1
    assert found["prefix"] == Choice(losses={0.001: 0.002, 0.003: 0.0, 0.01: None})


def test_a_cell_that_failed_is_not_run_again_where_the_grid_is_extended(grid):
    """The least rate of an arm fails, and its best one is above the grid."""
    runs = Runs(lambda arm, rate: None if rate == 0.001 else 2 + abs(rate - 0.033))
    found = tuning.run(grid, runs)
    tried = [one for asked in runs.asked for one in asked]
    assert ("causal", 0.001) in tried
    assert len(tried) == len(set(tried))
    assert found["causal"].losses[0.001] is None
    again = Runs(lambda arm, rate: 9.0)  # another command tries it
    tuning.run(grid, again)
    assert again.asked[0] == [("causal", 0.001), ("prefix", 0.001)]


def test_the_grid_is_that_of_the_arms_that_are_asked_for(grid):
    only = dataclasses.replace(grid, arms=("prefix",))
    runs = Runs(lambda arm, rate: abs(rate - 0.003))
    assert list(tuning.run(only, runs)) == ["prefix"]
    assert runs.asked == [[("prefix", rate) for rate in grid.rates]]
    found = tuning.run(dataclasses.replace(grid, arms=("causal",)), runs)
    assert list(tuning.measured(only, found)) == ["causal", "prefix"]  # of both commands


def test_an_arm_that_cannot_be_planned_is_left_out_of_the_grid(grid):
    arm = configs.ROOT / "configs" / "tiny" / "prefix.gin"
    arm.write_text(f"{arm.read_text()}from experiments import experiment\nexperiment.train.stepps = 1\n")
    runs = Runs(lambda arm, rate: abs(rate - 0.003))
    assert list(tuning.run(grid, runs)) == ["causal"]
    assert runs.asked == [[("causal", rate) for rate in grid.rates]]
    arm.unlink()
    assert tuning.run(dataclasses.replace(grid, arms=("prefix",)), runs) == {}


def test_a_grid_that_is_far_off_is_given_up(grid):
    runs = Runs(lambda arm, rate: -rate if arm == "prefix" else abs(rate - 0.003))
    with pytest.raises(configs.ConfigError) as raised:
        tuning.run(grid, runs)
    assert len(runs.asked) == tuning.EXTENSIONS + 1
    assert str(raised.value) == (
        "the best learning rates are still at an edge of (0.001, 0.003, 0.01, 0.033, 0.11, 0.37) (prefix at 0.37); "
        "set Tuning.rates in configs/tiny/study.gin"
    )


def test_an_arm_that_no_rate_trains_is_named(grid):
    with pytest.raises(configs.ConfigError, match=r"^arm prefix: no learning rate of .* gave a loss$"):
        tuning.run(grid, Runs(lambda arm, rate: None if arm == "prefix" else abs(rate - 0.003)))


def test_a_metric_that_no_row_has_is_one_line(grid):
    def save_other(todo):
        for cell in todo:
            save(cell, {"loss": 1.0})

    with pytest.raises(
        configs.ConfigError, match=r"no value 'metrics.validation_loss'.*Tuning.metric"
    ) as raised:
        tuning.run(grid, save_other)
    assert "\n" not in str(raised.value)


def test_the_cells_of_the_grid_have_a_seed_and_a_folder_of_their_own(grid, tuned):
    found = {(cell.study.file(cell.arm), rate_of(cell), cell.seed) for cell in grid.cells}
    assert found == {(arm, rate, 1000) for arm in ("causal", "prefix") for rate in (0.001, 0.003, 0.01)}
    table = cells.of(tuned, tuned.arms, grid.results_dir, grid.runs_dir, None)
    assert {cell.rows for cell in grid.cells}.isdisjoint({cell.rows for cell in table})
    assert {cell.runs for cell in grid.cells}.isdisjoint({cell.runs for cell in table})


def test_chosen_rates_bind_the_arms_and_not_the_grid(grid):
    planned = written(
        "study.Table.learning_rates = {'smoke': {'causal': 0.005}}\n",
        "study.Table.sweeps = (@sweeps.Sweep(),)\n",
        "sweeps.Sweep.arms = ('causal',)\nsweeps.Sweep.points = @sweeps.Values()\n",
        "sweeps.Values.binding = 'StackConfig.layers'\nsweeps.Values.values = (1,)\n",
    )
    rates = {
        arm: planned.experiment(arm, 0)[0].optimizer.learning_rate
        for arm in ("causal", "causal@layers=1", "prefix")
    }
    assert rates == {"causal": 0.005, "causal@layers=1": 0.005, "prefix": 0.003}
    assert "AdamW.learning_rate = 0.005" in planned.experiment("causal", 0)[1]
    same = dataclasses.replace(grid, study=planned)
    assert [rate_of(cell) for cell in same.cells] == [0.001, 0.003, 0.01] * 2
    other = dataclasses.replace(planned, scale="small", rates={})
    assert other.experiment("causal", 0)[0].optimizer.learning_rate != 0.005


def test_a_scale_that_claims_something_needs_rates(tuned):
    study.require_rates(tuned, tuned.arms)
    with pytest.raises(configs.ConfigError, match="--tune and put what it prints into") as raised:
        study.require_rates(study.load("tiny", "small"), ("causal", "prefix"))
    assert str(raised.value).startswith("arm causal of study tiny has no learning rate for scale small")
    written("study.Table.learning_rates = {'small': {'causal': 0.005}}\n")
    with pytest.raises(configs.ConfigError, match="arm prefix of study tiny has no learning rate"):
        study.require_rates(study.load("tiny", "small"), ("causal", "prefix"))
    study.require_rates(study.load("tiny", "small"), ("causal",))  # the others are not asked for
    written("study.Table.learning_rates = {'small': {'causal': 0.005, 'prefix': 0.01}}\n")
    study.require_rates(study.load("tiny", "small"), ("causal", "prefix"))
    bare = dataclasses.replace(study.load("tiny", "small"), table=untuned(tuned.table), rates={})
    study.require_rates(bare, bare.arms)


def untuned(table):
    return dataclasses.replace(table, tuning=None)


def test_what_the_grid_prints_is_gin_that_binds_it(tuned):
    text = tuning.binding(
        dataclasses.replace(tuned, scale="small"),
        {"causal": Choice(losses={0.001: 1.0, 1e-05: 0.5}), "prefix": Choice(losses={0.033: 1.0})},
    )
    assert text == "study.Table.learning_rates = {'small': {'causal': 1e-05, 'prefix': 0.033}}"
    planned = written(f"{text}\n")
    assert planned.table.learning_rates == {"small": {"causal": 1e-05, "prefix": 0.033}}
    assert study.load("tiny", "small").rates == {"causal": 1e-05, "prefix": 0.033}


def test_what_was_chosen_before_stays_bound(tuned):
    planned = written("study.Table.learning_rates = {'smoke': {'prefix': 0.1}, 'small': {'causal': 0.2}}\n")
    text = tuning.binding(planned, {"causal": Choice(losses={0.5: 1.0})})
    assert text == (
        "study.Table.learning_rates = {'smoke': {'causal': 0.5, 'prefix': 0.1}, 'small': {'causal': 0.2}}"
    )
    text = tuning.binding(planned, {"prefix": Choice(losses={0.5: 1.0})})
    assert text.startswith("study.Table.learning_rates = {'smoke': {'prefix': 0.5}, ")


def test_a_grid_of_whole_numbers_is_one_too(tuned):
    assert tuned.table.tuning is not None
    sparse = dataclasses.replace(tuned.table.tuning, binding="train.steps", rates=(1, 2, 4))
    planned = dataclasses.replace(tuned, table=dataclasses.replace(tuned.table, tuning=sparse))
    found = tuning.Grid(planned, planned.arms, (1, 2, 4), "results", "runs", None).choices()
    assert found == {arm: Choice(losses=dict.fromkeys((1, 2, 4))) for arm in ("causal", "prefix")}


@pytest.mark.parametrize("rates", [(), (0.1, 0.2), (0.1, 0.3, 0.2), (0.1, 0.1, 0.2)])
def test_a_grid_has_three_rising_rates(rates):
    with pytest.raises(ValueError, match="expected at least 3, rising"):
        study.Tuning(rates=rates)


def test_a_study_without_a_grid_has_none(matched):
    with pytest.raises(
        configs.ConfigError, match="study tiny has no Table.tuning; see configs/tiny/study.gin"
    ):
        matched().grid((0.1, 0.2, 0.3), ("causal",))


@pytest.mark.slow
def test_tune_prints_what_to_put_into_the_study(project, monkeypatch):
    """The greatest rate spoils an arm in four steps, so that the best one is inside."""
    path = project / "configs" / "tiny" / "study.gin"
    path.write_text(path.read_text() + TUNING.replace("(0.001, 0.003, 0.01)", "(0.001, 0.02, 5.0)"))
    code, said, wrong = launched(project, "--scale=small")
    assert (code, wrong.count("\n")) == (1, 1)
    assert "has no learning rate for scale small: run the same command with --tune" in wrong
    code, said, wrong = launched(project, "--tune", "--only=prefix", "--dry_run")
    assert code == 0, wrong
    assert [line.split()[0] for line in said.splitlines()] == [
        f"prefix@learning_rate={rate}" for rate in ("0.001", "0.02", "5.0")
    ]
    assert not (project / "results").exists()
    code, said, wrong = launched(project, "--tune")
    assert code == 0, wrong
    assert (
        (project / "results/tiny/smoke/tuning/table.md")
        .read_text()
        .splitlines()[0]
        .startswith("| arm | 0.001")
    )
    assert not rows(project)  # of the table
    assert len(list((project / "results/tiny/smoke/tuning/cells").glob("*-s1000-*.json"))) == 6
    (line,) = [line for line in said.splitlines() if line.startswith("study.Table.learning_rates")]
    path.write_text(f"{path.read_text()}{line}\n")
    monkeypatch.setattr(configs, "ROOT", project)
    monkeypatch.chdir(project)
    assert study.load("tiny", "smoke").rates == {"causal": 0.02, "prefix": 0.02}

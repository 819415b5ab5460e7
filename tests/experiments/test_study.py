"""What study.gin says: groups, comparisons, sweeps, knobs, evaluations and claims, and what each group takes."""
# ruff: noqa: F811 (fixtures)

import dataclasses
import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from test_launch import matched, project  # noqa: F401

from experiments import cells, configs, experiment, grouping, launch, study
from research.analysis import claims, matching, results
from research.analysis.rules import Contrast

SWEPT = """
study.Table.sweeps = (@sweeps.Sweep(),)
sweeps.Sweep.arms = ('prefix',)
sweeps.Sweep.points = @sweeps.Values()
sweeps.Values.binding = 'StackConfig.layers'
sweeps.Values.values = (1, 3)
"""
POINTS = ("prefix@layers=1", "prefix@layers=3")


def written(text, *, modules=()):
    """The study, with this in study.gin beside what it has."""
    path = configs.ROOT / "configs" / "tiny" / "study.gin"
    head = "from experiments import study\n"
    imports = "".join(f"{line}\n" for line in ("from experiments import sweeps", *modules))
    path.write_text(path.read_text().replace(head, head + imports, 1) + text)
    return study.load("tiny", "smoke")


def test_a_name_that_nothing_is_compared_under_is_no_comparison(matched):
    planned = matched(compared={"all": ("prefix", "causal"), "none": ()})
    assert planned.baselines == {"all": "prefix"}


def test_without_groups_all_arms_are_headline(matched):
    assert matched().groups == {"headline": ("causal", "prefix")}


def test_groups_stand_in_their_order_and_arms_in_that_of_the_table(matched):
    planned = matched(groups={"core": ("prefix",), "headline": ("causal",)})
    assert list(planned.groups.items()) == [("headline", ("causal",)), ("core", ("prefix",))]
    assert matched(groups={"core": ("prefix", "causal")}).groups == {"core": ("causal", "prefix")}
    assert matched(groups={"core": ("all",)}).groups == {"core": ("causal", "prefix")}  # by their comparison


def test_a_swept_arm_is_where_its_file_is_or_where_its_own_name_stands(matched):
    planned = written(f"{SWEPT}study.Table.groups = {{'headline': ('causal',), 'core': ('prefix',)}}\n")
    assert planned.groups == {"headline": ("causal",), "core": ("prefix", *POINTS)}
    groups = {"headline": ("causal",), "core": ("prefix",), "extended": (POINTS[1],)}
    assert matched(groups=groups).groups == {
        "headline": ("causal",),
        "core": ("prefix", POINTS[0]),
        "extended": (POINTS[1],),
    }


def test_a_sweep_makes_cells_with_its_bindings(matched):
    planned = written(SWEPT)
    assert planned.arms == ("causal", "prefix")  # of the table
    assert {arm: planned.file(arm) for arm in POINTS} == dict.fromkeys(POINTS, "prefix")
    assert planned.compared == dict.fromkeys(("causal", "prefix", *POINTS), "all")
    every = cells.of(planned, planned.groups["headline"], "results", "runs", None)
    assert [cell.title for cell in every][4:] == [f"{arm} seed {seed}" for arm in POINTS for seed in (0, 1)]
    layers = [cell.job.planned.model.stack.layers for cell in every]
    assert layers == [2, 2, 2, 2, 1, 1, 3, 3]
    assert len({cell.path for cell in every}) == len(set(every)) == 8
    assert "StackConfig.layers = 3" in every[-1].job.config


def test_a_point_that_binds_nothing_is_the_arm_itself(matched):
    planned = written(
        SWEPT.replace("@sweeps.Values()", "@sweeps.Chain()")
        + "sweeps.Chain.parts = (@sweeps.Product(), @sweeps.Values())\nsweeps.Product.parts = ()\n"
    )
    assert planned.groups == {"headline": ("causal", "prefix", *POINTS)}


def test_the_knob_of_a_file_is_turned_at_each_point(matched):
    written(SWEPT)
    planned = matched(match={"all": "params"}, knobs={"prefix": ("StackConfig.hidden", 4)})
    assert [planned.knob(arm) for arm in ("causal", "prefix", POINTS[0])] == [
        None,
        *["StackConfig.hidden"] * 2,
    ]
    loaded = {arm: planned.experiment(arm, 0)[0] for arm in ("causal", POINTS[0])}
    total = {
        arm: matching.total(experiment.cost(one.model, one.data, None), one.steps, "params")
        for arm, one in loaded.items()
    }
    assert total[POINTS[0]] == pytest.approx(total["causal"], rel=0.02)
    assert loaded[POINTS[0]].model.stack.layers == 1
    assert loaded[POINTS[0]].model.stack.hidden == planned.matched(POINTS[0]).value


@pytest.fixture
def probing(matched, tmp_path, monkeypatch):
    """A module with an evaluation."""
    (tmp_path / "probing.py").write_text(
        "import dataclasses\n\n\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\nclass Seed:\n    times: int = 1\n\n"
        "    def __call__(self, trained):\n        return {'seed': self.times * trained.seed}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "import probing"


EVALUATED = "study.Table.evaluations = {'twice': @probing.Seed()}\nprobing.Seed.times = 2\n"


def test_evaluations_are_bound_and_belong_to_every_cell(probing):
    planned = written(EVALUATED, modules=[probing])
    assert planned.table.evaluations["twice"](SimpleNamespace(seed=4)) == {"seed": 8}
    (cell, *_) = cells.of(planned, planned.arms, "results", "runs", None)
    assert cell.job.evaluations == planned.table.evaluations


def test_a_comparison_has_data_and_evaluations_of_its_own(probing):
    """Its gin file is read after that of the scale."""
    apart = (
        "study.Table.compared = {'all': ('causal',), 'sums': ('prefix',)}\n"
        "study.Table.data = {'sums': 'configs/data/addition.gin'}\n"
        "study.Table.measured = {'sums': ()}\n"
        "study.Table.match = {'sums': 'params'}\n"
    )
    planned = written(EVALUATED + apart, modules=[probing])
    causal, prefix = (planned.experiment(arm, 0)[0] for arm in planned.arms)
    assert (type(causal.data.corpus).__name__, causal.data.window) == ("StandardLibrary", 128)
    assert type(prefix.data.corpus).__name__ == "Addition"
    assert prefix.data.window != 128
    assert causal.steps == prefix.steps == 4
    assert (planned.matched("causal"), planned.matched("prefix").residual) == (None, 0)
    assert [list(planned.evaluations(arm)) for arm in planned.arms] == [["twice"], []]
    grid = written("study.Table.tuning = @study.Tuning()\n").grid((1e-3, 3e-3, 1e-2), ("prefix",))
    assert type(grid.experiment(grid.arms[0], 1000)[0].data.corpus).__name__ == "Addition"
    for field, value, wrong in [
        ("measured", {"sums": ("thrice",)}, "Table.measured of study tiny names 'thrice'"),
        ("data", {"some": "configs/data/addition.gin"}, "Table.data of study tiny names 'some'"),
    ]:
        with pytest.raises(configs.ConfigError, match=wrong) as raised:
            written(f"study.Table.{field} = {value!r}\n")
        assert "\n" not in str(raised.value)


def test_a_cell_whose_row_lacks_an_evaluation_or_made_another_is_missing(probing, tmp_path):
    planned = written(EVALUATED, modules=[probing])
    (cell, *_) = cells.of(planned, planned.arms, tmp_path / "results", "runs", None)
    made = {name: experiment.hash_of(one) for name, one in cell.job.evaluations.items()}
    for evaluations, missing in [({}, True), ({"twice": "0" * 64}, True), ({**made, "more": ""}, False)]:
        save(cell, evaluations=evaluations)
        assert (cell.row is None) == missing
    assert cells.missing([cell]) == []


def save(cell, **given):
    empty = {str: "", int: 0, bool: False}
    fields = {field.name: empty.get(field.type, {}) for field in dataclasses.fields(results.Row)}
    given |= {"arm": cell.arm, "seed": cell.seed, "key": cell.job.folder.name.rsplit("-", 1)[1]}
    assert results.save(results.Row(**{**fields, **given}), cell.rows) == cell.path


CLAIMED = """
study.Table.claims = (@claims.SubClaim(),)
claims.SubClaim.id = 'C1.loss'
claims.SubClaim.text = 'the prefix helps'
claims.SubClaim.rule = @rules.Contrast()
rules.Contrast.metric = 'metrics.loss'
rules.Contrast.arm = 'prefix'
rules.Contrast.baseline = 'causal'
rules.Contrast.expect = 'less'
"""


def test_claims_are_bound_and_a_cell_knows_the_rules_of_its_study(matched):
    planned = written(
        SWEPT + CLAIMED,
        modules=["from research.analysis import claims", "from research.analysis import rules"],
    )
    (claim,) = planned.table.claims
    assert claim.rule == Contrast(metric="metrics.loss", arm="prefix", baseline="causal", expect="less")
    every = cells.of(planned, ("causal", "prefix", POINTS[0]), "results", "runs", None)
    declared = claims.declared([claim], planned.seeds)
    assert list(declared) == ["C1.loss"]
    assert all(cell.job.rules == declared for cell in every)
    fewer = cells.of(planned.limited(1), ("causal",), "results", "runs", None)
    assert fewer[0].job.rules == declared  # the seeds that are declared, whichever are run


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"groups": {"headlin": ("causal", "prefix")}}, "Table.groups of study tiny has 'headlin'"),
        ({"groups": {"core": ("causal",)}}, "arm 'prefix' of study tiny is in none of Table.groups"),
        (
            {"groups": {"core": ("causal", "prefix", "suffix")}},
            "Table.groups of study tiny names 'suffix', which is none of its arms",
        ),
        (
            {"groups": {"headline": ("causal",), "core": ("causal", "prefix")}},
            "arm 'causal' of study tiny stands twice in Table.groups",
        ),
        ({"compared": {"all": ("causal",)}}, "arm 'prefix' of study tiny is in none of Table.compared"),
        (
            {"compared": {"all": ("causal", "prefix"), "some": ("prefix",)}},
            "arm 'prefix' of study tiny stands twice in Table.compared",
        ),
        (
            {"compared": {"all": ("suffix", "causal", "prefix")}},
            "Table.compared of study tiny names 'suffix', which is none of Table.arms",
        ),
        ({"arms": ("causal", "suffix")}, "arm 'suffix' of study tiny has no file configs/tiny/suffix.gin"),
        ({"learning_rates": {"smoke": {"suffix": 0.1}}}, "Table.learning_rates of study tiny names 'suffix'"),
        ({"evaluations": {"loss": 3}}, "Table.evaluations = {'loss': 3}: expected"),
        ({"seeds": {"small": (0,)}}, "--scale=smoke: study tiny has the scales ['small']"),
        ({"match": "size"}, "Table.match = 'size': expected"),
        ({"arms": ("causal", "prefix", "causal")}, "Table.arms of study tiny has 'causal' twice"),
        (
            {"seeds": {"smoke": (0, 1), "small": (3, 4, 3)}},
            "Table.seeds of scale small of study tiny has 3 twice",
        ),
        ({"columns": ("loss", "parameters", "loss")}, "Table.columns of study tiny has 'loss' twice"),
        (
            {"columns": ("loss", "paramters")},
            "Table.columns of study tiny: column 'paramters': not a measure",
        ),
        (
            {"varied": True},
            "Table.varied of study tiny, but 'loss' is of what each run is trained on",
        ),
        ({"tasks": {"los": "lower"}}, "Table.tasks of study tiny: column 'los': not a measure"),
        ({"tasks": {"metrics.loss": "less"}}, "Table.tasks = {'metrics.loss': 'less'}: expected"),
    ],
)
def test_a_mistake_is_one_line(matched, changes, wrong):
    with pytest.raises(configs.ConfigError) as raised:
        matched(**changes)
    assert str(raised.value).startswith((wrong, f"study.{wrong}"))
    assert "\n" not in str(raised.value)


def test_a_study_that_is_not_there_is_one_line(matched):
    with pytest.raises(configs.ConfigError) as raised:
        study.load("tinny", "smoke")
    assert str(raised.value) == (
        "--study=tinny: no configs/tinny/study.gin; expected one of "
        "['architecture', 'forgetting', 'long_context', 'repetition', 'tiny']"
    )


def test_a_sweep_of_no_arm_is_one_line(matched):
    with pytest.raises(configs.ConfigError, match="Table.sweeps of study tiny names 'suffix'"):
        written(SWEPT.replace("('prefix',)", "('suffix',)"))


@pytest.mark.parametrize("columns", [(), ("median(metrics.steps)", "loss")])
def test_sweeps_without_a_number_to_compare_are_one_line(matched, columns):
    matched(columns=columns)
    with pytest.raises(configs.ConfigError, match=r"^Table.columns of study tiny are .* to have a mean$"):
        written(SWEPT)


TWO_SWEEPS = """
study.Table.sweeps = (@one/sweeps.Sweep(), @two/sweeps.Sweep())
one/sweeps.Sweep.arms = ('prefix',)
one/sweeps.Sweep.points = @one/sweeps.Values()
one/sweeps.Values.binding = 'Fixed.learning_rate'
one/sweeps.Values.values = (0.1, 0.2)
two/sweeps.Sweep.arms = ('causal', 'prefix')
two/sweeps.Sweep.points = @two/sweeps.Values()
two/sweeps.Values.binding = 'AdamW.learning_rate'
two/sweeps.Values.values = (0.2, 0.3)
"""


def test_two_sweeps_may_share_points_but_not_names(matched):
    """The name of a point is the last word of its binding, which two bindings may have."""
    with pytest.raises(configs.ConfigError) as raised:
        written(TWO_SWEEPS)
    said = str(raised.value)
    assert said.startswith("Table.sweeps of study tiny: 'prefix@learning_rate=0.2' is the name of ")
    assert "AdamW.learning_rate=0.2" in said
    assert "Fixed.learning_rate=0.2" in said
    assert "\n" not in said
    planned = written("one/sweeps.Values.binding = 'AdamW.learning_rate'\n")
    rates = {arm: point.items for arm, (_, point) in planned.points.items()}
    assert rates == {
        f"{arm}@learning_rate={rate}": (("AdamW.learning_rate", rate),)
        for arm, rate in [("prefix", 0.1), ("prefix", 0.2), ("causal", 0.2), ("causal", 0.3), ("prefix", 0.3)]
    }


def test_a_point_with_the_name_of_an_arm_of_the_table_is_one_line(matched):
    folder = configs.ROOT / "configs" / "tiny"
    (folder / f"{POINTS[0]}.gin").write_text((folder / "prefix.gin").read_text())
    arms = ("causal", "prefix", POINTS[0])
    matched(arms=arms, compared={"all": arms})
    with pytest.raises(configs.ConfigError, match="'prefix@layers=1' is the name of .* an arm of the table"):
        written(SWEPT)


@pytest.mark.parametrize("binding", ["train.seed", "experiment.train.seed"])
def test_a_point_that_binds_the_seed_of_a_cell_is_one_line(matched, binding):
    with pytest.raises(
        configs.ConfigError, match=r"^arm prefix@seed=1 .* binds train.seed, which the seed of"
    ):
        written(SWEPT.replace("StackConfig.layers", binding))


def test_a_figure_of_no_number_is_one_line(matched):
    with pytest.raises(
        configs.ConfigError, match=r"^figure 'long' of Table.figures of study tiny: .*'metric.long'"
    ):
        written(
            "study.Table.figures = (@figures.Curves(),)\nfigures.Curves.name = 'long'\n"
            "figures.Curves.title = 'by length'\nfigures.Curves.metric = 'metric.long'\n",
            modules=["from research.analysis import figures"],
        )


def test_a_figure_that_is_declared_twice_is_one_line(matched):
    figures = "".join(
        f"{name}/figures.Curves.{field} = {value!r}\n"
        for name in ("one", "two")
        for field, value in {"name": "lengths", "title": name, "metric": "metrics.long"}.items()
    )
    with pytest.raises(configs.ConfigError, match="Table.figures of study tiny has 'lengths' twice"):
        written(
            f"study.Table.figures = (@one/figures.Curves(), @two/figures.Curves())\n{figures}",
            modules=["from research.analysis import figures"],
        )


def test_whether_arms_ask_for_the_same_order_is_known_without_looking_for_devices(matched, monkeypatch):
    planned = matched(match={"all": "params"}, knobs={"prefix": ("StackConfig.hidden", 4)})
    monkeypatch.setattr(experiment, "cost", lambda *_: pytest.fail("it was counted"))
    assert not planned.deterministic(planned.arms)
    arm = configs.ROOT / "configs" / "tiny" / "prefix.gin"
    arm.write_text(
        f"{arm.read_text()}from experiments import experiment\nexperiment.train.deterministic = True\n"
    )
    assert planned.deterministic(planned.arms)
    assert not planned.deterministic(["causal"])
    arm.write_text(f"{arm.read_text()}experiment.train.stepps = 1\n")
    assert not planned.deterministic(planned.arms)  # which is told when it is planned


def test_a_launch_leaves_out_what_is_extended_unless_it_is_asked_for(matched):
    planned = matched(groups={"headline": ("causal",), "extended": ("prefix",)})
    assert launch.chosen(planned, None) == ("causal",)
    assert launch.chosen(planned, ["extended", "headline", "causal"]) == ("prefix", "causal")
    assert launch.chosen(planned, ["prefix"]) == ("prefix",)
    with pytest.raises(
        configs.ConfigError, match=r"^--only=core: study tiny has \['causal', 'prefix', 'head"
    ):
        launch.chosen(planned, ["core"])


@pytest.fixture
def small(matched, tmp_path):
    """The study at scale small, one arm a group, and its cells."""
    scales = configs.ROOT / "configs" / "scale"
    (scales / "small.gin").write_text((scales / "smoke.gin").read_text())
    path = configs.ROOT / "configs" / "tiny" / "study.gin"
    path.write_text(path.read_text().replace("{'smoke': (0, 1)}", "{'smoke': (0, 1), 'small': (0, 1)}"))
    matched(groups={"headline": ("causal",), "core": ("prefix",)})
    planned = study.load("tiny", "small")
    return planned, cells.of(planned, planned.arms, tmp_path / "results", "runs", None)


def work(cell):
    one = cell.job.planned
    return experiment.cost(one.model, one.data, None).train_flops * one.steps


def test_a_group_takes_the_time_of_its_work_at_a_guessed_or_measured_speed(small):
    planned, every = small
    found = launch.price(planned, "headline", every)
    assert (found.cells, found.missing) == (2, 2)
    assert found.teraflops * 1e12 == pytest.approx(2 * work(every[0]))
    assert found.minutes * 60 == pytest.approx(2 * work(every[0]) / grouping.SLOW)
    budget = {"train_flops": work(every[0]), "tokens_seen": 1000}
    for cell, rate in zip(every[:2], (50.0, 150.0), strict=True):
        save(cell, budget=budget, timing={"tokens_per_second": rate})
    save(every[2], budget=budget, timing={"tokens_per_second": None})  # ran beside others
    timed = launch.price(planned, "headline", every)
    assert timed.missing == 0
    assert timed.minutes * 60 == pytest.approx(2 * 1000 / 100)
    other = launch.price(planned, "core", every)  # at the speed of the arm that was timed
    assert other.missing == 1
    assert other.minutes == pytest.approx(timed.minutes * work(every[2]) / work(every[0]))


def printed(planned, every):
    out = io.StringIO()
    launch.dry_run(planned, every, Console(file=out, width=160))
    return out.getvalue()


def test_a_dry_run_prints_what_would_run_and_what_each_group_takes(small):
    planned, every = small
    budget = {"train_flops": 1e6 * work(every[0]), "tokens_seen": 1000}
    save(every[0], budget=budget, timing={"tokens_per_second": 10.0 * 1e-6})
    lines = printed(planned, every).splitlines()
    assert [line.split("  ") for line in lines[:3]] == [
        [cell.title, str(cell.job.folder)] for cell in every[1:]
    ]
    table = [[word.strip() for word in line.split("│")[1:-1]] for line in lines if "│" in line]
    teraflops = [f"{2 * work(cell) / 1e12:,.1f}" for cell in (every[0], every[2])]
    assert [row[:4] for row in table] == [
        ["headline", "2", "1", teraflops[0]],
        ["core", "2", "2", teraflops[1]],
    ]


@pytest.mark.parametrize(
    ("minutes", "over"),
    [
        (
            {"headline": 3.9, "core": 99.0},
            "group headline takes 4 minutes with those before it, expected at most 4",
        ),
        (
            {"headline": 5.0, "core": 7.9},
            "group core takes 8 minutes with those before it, expected at most 8",
        ),
        ({"headline": 5.0, "core": 8.5}, None),
        ({"headline": 5.0}, None),  # what has no limit may take any time
    ],
)
def test_a_group_over_its_budget_is_refused(small, monkeypatch, minutes, over):
    planned, every = small
    monkeypatch.setattr(study, "MINUTES", minutes)
    monkeypatch.setattr(launch.grouping, "SLOW", work(every[0]) / 120)  # a cell takes two minutes
    if over is None:
        assert "core" in printed(planned, every)
        return
    with pytest.raises(configs.ConfigError) as raised:
        printed(planned, every)
    assert str(raised.value).startswith(
        f"{over}; move arms to a later group in Table.groups of configs/tiny/"
    )
    at_smoke = dataclasses.replace(planned, scale="smoke", folder="tiny/smoke")
    assert "core" in printed(at_smoke, cells.of(at_smoke, planned.arms, "results", "runs", None))


def test_a_sweep_over_the_knob_of_its_arm_is_one_line(matched):
    turned = "study.Table.knobs = {'prefix': ('StackConfig.layers', 1)}\n"
    text = f"{SWEPT}study.Table.match = {{'all': 'params'}}\n{turned}"
    with pytest.raises(
        configs.ConfigError, match=r"^arm prefix@.* binds .*, which Table.knobs turns; take it out"
    ):
        written(text)

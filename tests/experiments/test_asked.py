"""Evaluations that ask what another arm of the study has learned."""
# ruff: noqa: F811 (fixtures)

import dataclasses

import jax
import pytest
from test_launch import matched, project  # noqa: F401
from test_stages import of, run

from experiments import configs, experiment, folders, lineage, replays, running
from experiments.configs import ConfigError

ASKS = """
from experiments import stages
from research.evaluation import decoding
from research.evaluation import samples
from research.generation import engine

study.Table.compared = {'judges': ('causal',), 'judged': ('prefix',)}
study.Table.evaluations = {'decoding': @decoding.Decoding()}
study.Table.measured = {'judges': (), 'judged': ('decoding',)}
decoding.Decoding:
  ways = (('greedy', @decoding.Way()),)
  samples = @samples.Repetition()
  reference = @stages.Stage()
stages.Stage.arm = 'causal'
decoding.Way.how = @engine.Generation()
engine.Generation.choice = @engine.Greedy()
samples.Repetition:
  prompts = 2
  length = 6
  n = 2
"""


GROUP = """
from experiments import stages
from research.evaluation import recl

study.Table.compared = {'first': ('causal',), 'second': ('prefix',)}
study.Table.evaluations = {'used': @recl.RelativeContext()}
study.Table.measured = {'first': (), 'second': ('used',)}
recl.RelativeContext:
  own = 'prefix'
  group = (('causal', @stages.Stage()),)
  lengths = (4, 8)
  stride = 4
  stretches = 2
  tokens = 8
stages.Stage.arm = 'causal'
"""


def test_an_evaluation_may_ask_several_arms_each_with_a_name(matched, tmp_path):
    path = configs.ROOT / "configs" / "tiny" / "study.gin"
    path.write_text(path.read_text() + GROUP)
    planned = matched(seeds={"smoke": (0,)})
    (prefix,) = of(planned, tmp_path, "prefix")
    assert [cell.arm for cell in prefix.asked] == ["causal"]
    ((name, stage),) = prefix.job.evaluations["used"].group
    assert (name, stage.place) == ("causal", str(of(planned, tmp_path, "causal")[0].job.folder))
    failed, _ = run([prefix])
    assert not failed
    assert prefix.row.metrics["used"]["all"].keys() == {"causal", "prefix"}


@pytest.fixture
def asking(matched):
    """A study in which an evaluation of `prefix` asks `causal`."""
    path = configs.ROOT / "configs" / "tiny" / "study.gin"
    path.write_text(path.read_text() + ASKS)
    return matched(seeds={"smoke": (0,)})


def test_what_an_evaluation_asks_is_trained_before_and_decides_what_is_measured(asking, tmp_path):
    causal, prefix = of(asking, tmp_path)
    assert prefix.base is None
    assert [cell.arm for cell in prefix.asked] == ["causal"]
    assert [cell.arm for cell in lineage.bases([prefix])] == ["causal"]
    stage = prefix.job.evaluations["decoding"].reference
    assert stage.base == causal.job.planned
    assert stage.place == str(causal.job.folder)

    def hashed(stage):
        return experiment.hash_of(
            dataclasses.replace(prefix.job.evaluations["decoding"], reference=stage), texts=True
        )

    assert hashed(stage) == hashed(dataclasses.replace(stage, place="elsewhere"))
    assert stage.key == experiment.key(causal.job.planned, None)
    # The key knows of texts and of what that arm starts from, of which a description of its experiment says nothing.
    assert hashed(stage) != hashed(dataclasses.replace(stage, key="another"))


def test_the_arm_that_is_asked_rates_and_is_trained_where_it_is_not_there(asking, tmp_path):
    failed, _ = run(of(asking, tmp_path, "prefix"))
    assert not failed
    (cell,) = of(asking, tmp_path, "prefix")
    scores = cell.row.metrics["decoding"]
    assert scores["reference_distance"]["greedy"] == pytest.approx(
        abs(scores["reference_loss"]["greedy"] - scores["human"]["reference_loss"])
    )
    (causal,) = of(asking, tmp_path, "causal")
    assert folders.trained(causal.job.folder)
    judge, params = cell.job.evaluations["decoding"].reference.trained(
        experiment.dataset(cell.job.planned.data, None)
    )
    assert judge.config == causal.job.planned.model
    assert jax.tree.leaves(params)
    # A replay asks what a short run makes of it, without any run folder.
    place = dataclasses.replace(cell.job.evaluations["decoding"].reference, place="nowhere")
    alone = dataclasses.replace(cell.job.evaluations["decoding"], reference=place)
    job = dataclasses.replace(cell.job, evaluations={"decoding": alone})
    assert replays.furthest(cell.row.replay, running.replay(job, None)) < replays.TOLERANCE
    with pytest.raises(ConfigError, match="nowhere: no parameters of a finished run of arm causal"):
        place.trained(experiment.dataset(cell.job.planned.data, None))


def test_where_the_arm_that_is_asked_fails_nothing_is_rated(asking, tmp_path, monkeypatch):
    def fails(jobs, **_):
        return [RuntimeError("no luck")] * len(jobs)

    monkeypatch.setattr(running, "run_all", fails)
    failed, _ = run(of(asking, tmp_path, "prefix"))
    assert failed == {
        "causal seed 0": "no luck",
        "prefix seed 0": "it is rated by causal seed 0, which failed",
    }


def test_an_arm_cannot_be_rated_by_itself_or_by_one_that_is_not_there(matched, tmp_path):
    path = configs.ROOT / "configs" / "tiny" / "study.gin"
    text = path.read_text()
    for arm, wrong in (("prefix", "would start from itself"), ("suffix", "which is none of its arms")):
        path.write_text(text + ASKS.replace("Stage.arm = 'causal'", f"Stage.arm = '{arm}'"))
        planned = matched(seeds={"smoke": (0,)})
        (cell,) = of(planned, tmp_path, "prefix")
        with pytest.raises(ConfigError, match=wrong) as error:
            _ = cell.job
        assert "configs/tiny/study.gin" in str(error.value)

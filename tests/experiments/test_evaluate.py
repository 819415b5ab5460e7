"""Evaluations by name, on any model."""

import dataclasses
import importlib
import inspect
import json
import pkgutil
from types import SimpleNamespace

import pytest
from tiny_models import MASKED, QUIET, STATES, command, gin_of, planned, published, texts

import research.evaluation
from experiments import configs, convert, evaluating, origins, pretrained, running, study
from experiments.configs import ConfigError
from research.evaluation.likelihood import Likelihood
from research.evaluation.positions import ByPosition
from research.evaluation.trained import Evaluation


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, and as it is published."""
    folder = tmp_path_factory.mktemp("measured")
    one = planned(texts(folder / "texts"))
    evaluations = {"positions": ByPosition(first=(4,))}
    job = running.Job(one, gin_of(one), folder / "run", evaluations=evaluations)
    result = running.run(job, console=QUIET)
    convert.to_hub(origins.opened(str(folder / "run"), None), folder / "hub", None, QUIET)
    return folder, result


def measured(place, *bindings, files=(), names="likelihood,positions"):
    origin = origins.opened(str(place), None)
    found, _ = evaluating.load(origin, files, bindings)
    chosen = evaluating.chosen(found.evaluations, names, "here")
    return evaluating.measure(origin, found.experiment, chosen, None)


def test_a_run_measured_again_has_the_numbers_of_its_result(place):
    folder, result = place
    found = measured(folder / "run", "ByPosition.first=(4,)")
    assert found.scores["likelihood"]["loss"] == result["metrics"]["loss"]
    assert found.scores["likelihood"]["bits_per_byte"] == result["metrics"]["bits_per_byte"]
    assert found.scores["positions"] == result["metrics"]["positions"]
    assert found.record["data"] == result["data"]["fingerprint"]
    assert found.record["evaluations"]["positions"] == result["evaluations"]["positions"]


def test_published_weights_on_the_same_data_have_the_same_numbers(place):
    folder, result = place
    data = (
        "Data.corpus=@TextFiles()",
        f"TextFiles.pattern='{folder}/texts/*.txt'",
        "Data.window=32",
        "Data.batch=4",
        "Data.held_out=8",
        "Data.test=0.2",
    )
    found = measured(folder / "hub", *data)
    assert found.scores["likelihood"]["loss"] == result["metrics"]["loss"]
    assert found.record["data"] == result["data"]["fingerprint"]
    same = pretrained.Parameters(place=str(folder / "run")).fingerprint(None)
    assert found.record["parameters"]["fingerprint"] == same


def test_a_run_is_measured_on_other_data_than_its_own(place, tmp_path):
    folder, result = place
    texts(tmp_path / "more", seed=1)
    own = tmp_path / "other.gin"
    own.write_text(
        "from __gin__ import dynamic_registration\n"
        "from research.data import local\n"
        "from research.data import pipeline\n"
        "pipeline.Data.corpus = @local.TextFiles()\n"
        f"local.TextFiles.pattern = '{tmp_path}/more/*.txt'\n"
    )
    found = measured(folder / "run", files=[str(own)], names="likelihood")
    assert found.record["data"] != result["data"]["fingerprint"]
    assert found.scores["likelihood"]["loss"] != result["metrics"]["loss"]


def test_another_model_or_a_binding_that_nothing_reads_is_refused(place):
    folder, _ = place
    with pytest.raises(ConfigError, match=r"StackConfig\.layers = 3, but the parameters"):
        measured(folder / "run", "StackConfig.layers=3")
    with pytest.raises(ConfigError, match=r"Chunk\.c is used by nothing"):
        measured(folder / "run", "Chunk.c=3")
    with pytest.raises(ConfigError, match="did you mean 'likelihood'"):
        measured(folder / "run", names="liklihood")


def test_a_published_model_without_a_head_of_tokens_has_no_likelihood(place, tmp_path):
    folder, _ = place
    data = ("Data.corpus=@TextFiles()", f"TextFiles.pattern='{folder}/texts/*.txt'")
    data += ("Data.window=32", "Data.batch=4", "Data.held_out=8", "Data.test=0.2")
    states = published(tmp_path / "states", STATES, architecture="bert")
    for names in ("likelihood", "positions"):
        with pytest.raises(
            ConfigError, match=r"states: published without a head of tokens.*likelihood"
        ) as raised:
            measured(states, *data, names=names)
        assert len(str(raised.value).splitlines()) == 1
    masked = published(tmp_path / "masked", MASKED, architecture="bert")
    assert measured(masked, *data, names="likelihood").scores["likelihood"]["loss"] > 0


def test_every_evaluation_that_there_is_has_a_name():
    modules = [
        importlib.import_module(f"research.evaluation.{found.name}")
        for found in pkgutil.iter_modules(research.evaluation.__path__)
    ]
    classes = {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and dataclasses.is_dataclass(value)
        and issubclass(value, Evaluation)
    }
    assert {Likelihood, ByPosition} <= classes
    named = configs.load(
        evaluating.evaluate, ["configs/architecture/causal_lm.gin", "configs/evaluations.gin"]
    ).evaluations
    assert {type(value) for value in named.values()} == classes
    for path in configs.ROOT.glob("configs/*/study.gin"):
        used = study.declared(path.parent.name).evaluations
        assert {type(value) for value in used.values()} <= classes


def test_a_study_without_evaluations_is_one_line(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(study, "declared", lambda name: SimpleNamespace(evaluations={}, compared={}))
        with pytest.raises(ConfigError, match=r"Table\.evaluations in configs/bare/study\.gin is empty"):
            evaluating.of_study("bare")
    known, first = evaluating.of_study("architecture")
    assert first == ("positions", "cuts")
    assert {"positions", "cuts", "answers", "accuracy"} <= known.keys()
    with pytest.raises(ConfigError, match="no configs/nothing/study"):
        evaluating.of_study("nothing")


def test_the_command_prints_a_table_and_writes_a_file(place, tmp_path):
    folder, result = place
    out = tmp_path / "scores.json"
    code, said, wrong = command(
        "experiments.evaluate", f"--run_dir={folder / 'run'}", "--evals=likelihood", f"--out={out}"
    )
    assert code == 0, wrong
    record = json.loads(out.read_text())
    assert record["metrics"]["likelihood"]["loss"] == pytest.approx(result["metrics"]["loss"], abs=1e-5)
    assert f"{record['metrics']['likelihood']['loss']:.6g}" in said
    assert "TextFiles.pattern" in record["config"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ((), "expected one of them"),
        (("--run_dir=nowhere",), "no config.gin there"),
        (("--init_from=nowhere",), "no such folder"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, wrong):
    code, _, said = command("experiments.evaluate", *words)
    assert (code, len(said.splitlines())) == (1, 1)
    assert wrong in said

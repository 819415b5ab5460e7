"""The repetition of a published model's samples, from the command line."""

import json

import numpy as np
import pytest
from tiny_models import command, published, texts

from experiments import configs, evaluating
from research.evaluation.samples import METRICS


def measured(tmp_path, *bindings, evals):
    """Scores of published weights by the command line, and what it said."""
    texts(tmp_path / "texts")
    place, out = published(tmp_path / "hub"), tmp_path / "scores.json"
    bindings = (
        *("Data.corpus=@TextFiles()", f"TextFiles.pattern='{tmp_path}/texts/*.txt'"),
        *("Data.window=32", "Data.batch=4", "Data.test=0.2"),
        *("Repetition.prompts=4", "Repetition.length=16", "Repetition.n=8", *bindings),
    )
    words = (f"--init_from={place}", f"--evals={evals}", *(f"--gin_param={each}" for each in bindings))
    code, said, wrong = command("experiments.evaluate", *words, f"--out={out}")
    assert code == 0, wrong
    return json.loads(out.read_text())["metrics"], said


def test_the_command_measures_how_much_published_weights_repeat(tmp_path):
    reinforcement = ("prompt=4", "most=6", "phrases=3", "times=3")
    found, said = measured(
        tmp_path,
        "Repetition.temperatures=(0.0,1.0)",
        *(f"SelfReinforcement.{each}" for each in reinforcement),
        evals="repetition,reinforcement",
    )
    scores = found["repetition"]
    assert set(scores) - {"t50", "t50@holtzman-paper"} == {"tokens", "human", *METRICS}
    for name in METRICS:
        assert set(scores[name]) == {"0", "1"}
        assert np.isfinite([*scores[name].values(), scores["human"][name]]).all()
    assert f"{scores['zipf']['1']:.6g}" in said
    assert set(found["reinforcement"]["tp"]) == {"0", "1", "2"}


@pytest.mark.slow
def test_every_way_to_write_is_measured_by_the_command(tmp_path):
    scores, _ = measured(tmp_path, evals="decoding")
    scores = scores["decoding"]
    ways = dict(
        configs.load(evaluating.evaluate, ["configs/architecture/causal_lm.gin", "configs/evaluations.gin"])
        .evaluations["decoding"]
        .ways
    )
    assert set(scores["tokens"]) == set(ways)
    for way in ways.values():
        assert set(way.filters) <= METRICS.keys()
    assert scores["seq_rep@welleck"]["blocked"] == 0  # of 8-grams, where no 4-gram comes twice
    assert all(np.isfinite(list(scores["length_distance"].values())))

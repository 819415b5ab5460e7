"""Runs that are held to what they start from: resumed, replayed and told apart from others."""

import dataclasses
import json

import pytest
from test_history import Stopping
from tiny_models import QUIET, gin_of, planned, texts

from experiments import experiment, replays, running
from research.training import loop
from research.training.remedies import EWC, L2SP
from research.training.step import Recipe


@pytest.fixture(scope="module")
def remedied(tmp_path_factory):
    """A folder, and an experiment with two remedies."""
    folder = tmp_path_factory.mktemp("remedied")
    earlier = EWC(strength=10.0, corpus=texts(folder / "earlier", seed=1), examples=40)
    recipe = Recipe(remedies=(earlier, L2SP(strength=0.1)))
    plan = loop.Plan(log_every=1, checkpoint_every=2)
    return folder, planned(texts(folder / "texts"), steps=6, plan=plan, recipe=recipe)


def run(one, folder):
    job = running.Job(one, gin_of(one), folder, replayed=True)
    return running.run(job, console=QUIET)


@pytest.mark.slow
def test_a_resumed_run_is_held_to_where_it_began(remedied):
    folder, one = remedied
    whole = run(one, folder / "whole")
    with pytest.raises(loop.Interrupted):
        run(dataclasses.replace(one, trackers=(Stopping(at=4),)), folder / "stopped")
    assert run(one, folder / "stopped")["metrics"] == whole["metrics"]
    lines = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert replays.furthest(whole["replay"], replays.replayed(one, {}, None, None)) == 0
    penalties = [line["penalty"] for line in lines if "penalty" in line]
    assert penalties[0] == 0 < penalties[-1]

    plain = run(dataclasses.replace(one, recipe=Recipe()), folder / "plain")
    assert plain["metrics"]["loss"] < whole["metrics"]["loss"]  # of what it is tuned on
    assert plain["key"] != whole["key"]


def test_a_replay_learns_the_base_from_a_few_examples(remedied):
    folder, one = remedied
    short = one.recipe.rehearsed(replays.WINDOWS).remedies
    assert [short[0].examples, short[0].strength, short[1]] == [16, 10.0, L2SP(strength=0.1)]
    known = replays.replayed(one, {}, None, None)
    assert replays.furthest(known, replays.replayed(one, {}, None, None)) == 0
    weaker = dataclasses.replace(one, recipe=Recipe(remedies=(short[1],)))
    assert replays.furthest(known, replays.replayed(weaker, {}, None, None)) > replays.TOLERANCE


def test_another_earlier_text_is_another_experiment(remedied):
    folder, one = remedied
    earlier, other = one.recipe.remedies
    changed = dataclasses.replace(earlier, corpus=texts(folder / "changed", seed=2))
    copied = dataclasses.replace(earlier, corpus=texts(folder / "copied", seed=1))
    key, same, differs = (
        experiment.key(dataclasses.replace(one, recipe=Recipe(remedies=(each, other))), None)
        for each in (earlier, copied, changed)
    )
    assert key == same != differs


def test_without_remedies_a_key_is_what_it_was_before_there_were_any(remedied):
    _, one = remedied
    before = {"is", "accumulate", "z_loss", "average", "loss_scale", "compression"}
    assert experiment.describe(Recipe()).keys() == before
    assert experiment.describe(Recipe(base_share=0.5)).keys() == before | {"base_share"}
    assert [each["is"] for each in experiment.describe(one.recipe)["remedies"]] == ["EWC", "L2SP"]

"""Runs that are held to what they start from: resumed, replayed and told apart from others."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from test_history import Stopping
from tiny_models import QUIET, gin_of, planned, texts

from experiments import experiment, pretrained, replays, running
from experiments.scoring import HeldOut
from research.data.local import TextFiles
from research.data.pipeline import Dataset
from research.evaluation.relearning import Relearning
from research.training import loop
from research.training.remedies import EWC, L2SP, SI
from research.training.step import Recipe
from research.training.stopping import EarlyStopping, ForgettingBudget, Watch


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


@pytest.mark.slow
def test_a_run_goes_on_from_what_the_remedies_of_the_run_before_kept(remedied):
    """Synaptic intelligence and online EWC, from a run folder, resumed and replayed."""
    folder, one = remedied
    ewc = dataclasses.replace(one.recipe.remedies[0], decay=0.5)
    first = dataclasses.replace(one, recipe=Recipe(remedies=(SI(strength=0.0), ewc)))
    run(first, folder / "first")
    start = pretrained.Parameters(place=str(folder / "first"))
    kept = start.kept(None)
    assert [type(remedy) for remedy, _ in kept] == [SI, EWC]
    assert any(np.any(leaf) for leaf in jax.tree.leaves(kept[0][1]["path"]))

    second = dataclasses.replace(
        one, init_from=start, recipe=Recipe(remedies=(ewc, SI(strength=3.0))), seed=1
    )
    whole = run(second, folder / "second")
    with pytest.raises(loop.Interrupted):
        run(dataclasses.replace(second, trackers=(Stopping(at=4),)), folder / "halted")
    assert run(second, folder / "halted")["metrics"] == whole["metrics"]
    assert replays.furthest(whole["replay"], replays.replayed(second, {}, None, None)) == 0
    (_, online), (_, way) = pretrained.Parameters(place=str(folder / "second")).kept(None)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(way["importance"]))
    importance = jax.tree.leaves(online["importance"])  # its mean is 1, and half of the 1 before
    mean = sum(leaf.sum() for leaf in importance) / sum(leaf.size for leaf in importance)
    assert mean == pytest.approx(1.5, rel=1e-3)

    bare = run(dataclasses.replace(one, recipe=Recipe()), folder / "bare")
    assert bare["key"] != whole["key"]
    unheard = dataclasses.replace(second, init_from=pretrained.Parameters(place=str(folder / "bare")))
    with pytest.raises(ValueError, match="SI: the run that this one starts from has not recorded"):
        run(unheard, folder / "unheard")


@pytest.mark.slow
def test_a_run_stops_before_it_forgets_more_than_it_may(remedied, monkeypatch):
    """And never reads the test split before it has stopped."""
    folder, one = remedied
    (folder / "numbers").mkdir()
    for i in range(24):
        digits = (f"{i * place % 97:02}" for place in range(120))
        (folder / "numbers" / f"{i}.txt").write_text(" ".join(digits))
    earlier = TextFiles(pattern=f"{folder}/numbers/*.txt")
    data = dataclasses.replace(one.data, corpus=earlier)
    base = dataclasses.replace(one, recipe=Recipe(), data=data, steps=60)
    run(base, folder / "base")
    rule = ForgettingBudget(corpus=earlier, every=1, patience=100, budget=100.0)
    tuned = dataclasses.replace(
        one,
        recipe=Recipe(),
        steps=20,
        init_from=pretrained.Parameters(place=str(folder / "base")),
        early_stopping=rule,
    )

    def forgotten(name, **changes):
        """By step, and the step whose parameters count."""
        stopping = dataclasses.replace(rule, **changes)
        result = run(dataclasses.replace(tuned, early_stopping=stopping), folder / name)
        lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        values = {
            line["step"]: line["validation_forgotten"] for line in lines if "validation_forgotten" in line
        }
        return values, result["metrics"]["steps"]

    free, _ = forgotten("free")
    assert list(free) == list(range(1, 21))
    spent = max(list(free)[1:], key=free.__getitem__)
    budget = max(value for step, value in free.items() if step < spent) if spent > 2 else free[1]
    scored, score = [], HeldOut.score
    monkeypatch.setattr(
        HeldOut, "score", lambda self, params, split: scored.append(split) or score(self, params, split)
    )
    read, held_out = [], Dataset.held_out
    monkeypatch.setattr(
        Dataset,
        "held_out",
        lambda self, split, *rest: read.append((self.data.corpus, split)) or held_out(self, split, *rest),
    )
    values, counts = forgotten("held", budget=budget)
    assert values == {step: value for step, value in free.items() if step <= spent}
    assert counts < spent
    assert scored.index("test") == len(scored) - 2
    assert {split for corpus, split in read if corpus == earlier} == {"validation"}
    held = dataclasses.replace(tuned, early_stopping=dataclasses.replace(rule, budget=budget))
    other = dataclasses.replace(held.early_stopping, corpus=one.data.corpus)
    assert experiment.key(held, None) != experiment.key(dataclasses.replace(held, early_stopping=other), None)


def test_a_budget_that_is_spent_at_once_is_one_line(remedied):
    _, one = remedied
    watch = Watch(ForgettingBudget(corpus=one.data.corpus, every=5, budget=0.1))
    with pytest.raises(ValueError, match="ForgettingBudget at step 5: validation_forgotten = 0.2 is over"):
        watch.see(5, {"validation_loss": 1.0, "validation_forgotten": 0.2})
    assert watch.see(10, {"validation_loss": 1.0, "validation_forgotten": 0.1})
    assert not watch.see(15, {"validation_loss": 0.5, "validation_forgotten": 0.11})
    assert watch.over
    assert watch.step == 10
    assert not EarlyStopping(every=1).spent({})


def test_an_evaluation_of_another_text_is_another_evaluation(remedied):
    folder, one = remedied
    own, other = one.data.corpus, one.recipe.remedies[0].corpus
    hashes = {experiment.hash_of(Relearning(corpus=corpus), texts=True) for corpus in (own, other)}
    hashes |= {experiment.hash_of(Relearning(), texts=True)}
    assert len(hashes) == 3
    # Corpora that are the default were never part of it.
    assert experiment.hash_of(Relearning(), texts=True) == experiment.hash_of(Relearning())


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

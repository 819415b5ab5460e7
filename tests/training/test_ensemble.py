"""Engines: an ensemble trains each of its members as a run of its own would."""

import dataclasses

import jax
import numpy as np
import pytest
from test_step import CAUSAL, batch, close, stack

from research.models.families import DecoderConfig
from research.training import hyperparameters
from research.training.ensemble import Ensemble, Solo
from research.training.optimizers import AdamW
from research.training.step import Recipe, Trainer

DROPPING = DecoderConfig(stack=stack(dropout=0.2))
MEMBERS = [  # (seed, learning rate, weight decay, weight of log(Z)^2)
    (0, 1e-3, 0.1, 1e-4),
    (1, 3e-3, 0.0, 1e-2),
    (2, 1e-2, 1.0, 0.0),
]


def parts(seed, rate, decay, z):
    return AdamW(learning_rate=rate, weight_decay=decay), Recipe(z_loss=z, average=0.9)


def shared(config=CAUSAL):
    optimizer, recipe = (hyperparameters.form(part) for part in parts(*MEMBERS[0]))
    return Trainer(config, vocab=40, optimizer=optimizer, recipe=recipe, steps=20)


def fresh(trainer):
    numbers = [
        hyperparameters.numbers(optimizer) | hyperparameters.numbers(recipe)
        for optimizer, recipe in (parts(*member) for member in MEMBERS)
    ]
    seeds = [member[0] for member in MEMBERS]
    return [trainer.initial(jax.random.key(seed), own) for seed, own in zip(seeds, numbers, strict=True)]


def batches(step):
    return [batch(100 * seed + step) for seed, *_ in MEMBERS]


@pytest.mark.slow
def test_each_member_equals_its_run_alone_after_twenty_steps():
    trainer = shared(DROPPING)
    engine, running = Ensemble(trainer, len(MEMBERS)), np.ones(len(MEMBERS), bool)
    group = engine.join(fresh(trainer))
    for step in range(20):
        group, metrics = engine.step(group, engine.place(batches(step)), running)
    for index, member in enumerate(MEMBERS):
        optimizer, recipe = parts(*member)
        trainer = Trainer(DROPPING, vocab=40, optimizer=optimizer, recipe=recipe, steps=20)
        alone = Solo(trainer, rows=4)
        state = alone.initial(jax.random.key(member[0]), trainer.numbers)
        for step in range(20):
            state, own = alone.step(state, alone.place([batches(step)[index]]), running[:1])
        np.testing.assert_allclose(metrics["loss"][index], own["loss"][0], rtol=1e-5)
        np.testing.assert_allclose(metrics["learning_rate"][index], own["learning_rate"][0], rtol=1e-6)
        together = engine.member(group, index)
        close(together.params, state.params, 1e-4)
        close(together.average, state.average, 1e-4)
        assert jax.tree.structure(together) == jax.tree.structure(state)


def test_members_that_diverge_or_are_stopped_freeze_and_the_others_go_on():
    trainer = shared()
    engine = Ensemble(trainer, 3)
    group = engine.join(fresh(trainer))
    group, _ = engine.step(group, engine.place(batches(0)), np.ones(3, bool))
    before = [jax.tree.map(np.array, engine.member(group, index).params) for index in range(3)]
    broken = batches(1)
    broken[1] = dataclasses.replace(broken[1], weights=np.full_like(broken[1].weights, np.nan))
    group, metrics = engine.step(group, engine.place(broken), np.array([False, True, True]))
    assert np.isnan(metrics["loss"]).tolist() == [False, True, False]
    assert metrics["finite"].tolist() == [True, False, True]
    after = [engine.member(group, index) for index in range(3)]
    assert [int(state.step) for state in after] == [1, 1, 2]
    for index in (0, 1):
        close(after[index].params, before[index], 0)
    with pytest.raises(AssertionError):
        close(after[2].params, before[2], 1e-4)
    group, _ = engine.step(group, engine.place(batches(2)), np.ones(3, bool))
    assert [int(engine.member(group, index).step) for index in range(3)] == [2, 1, 3]  # diverged is diverged


@pytest.mark.parametrize("several", [False, True])
def test_a_step_takes_the_old_state_over(several):
    """Every buffer of it: two states would not fit where one just does."""
    trainer = shared()
    engine = Ensemble(trainer, len(MEMBERS)) if several else Solo(trainer, rows=4)
    count = len(MEMBERS) if several else 1
    group = engine.join(fresh(trainer)[:count])
    new, _ = engine.step(group, engine.place(batches(0)[:count]), np.ones(count, bool))
    old = [leaf for leaf in jax.tree.leaves(group) if isinstance(leaf, jax.Array)]
    assert len(old) > 20
    assert [leaf.shape for leaf in old if not leaf.is_deleted()] == []
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))

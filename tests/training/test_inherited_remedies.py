"""Remedies that go on from what the run before has kept, and text that the base writes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_remedies import EARLIER, drawn_kept, near, prepared, same, text, trainer
from test_step import CAUSAL, STACK, VOCAB, batch

from research.models.families import EncoderConfig, EncoderDecoderConfig
from research.training.adapters import LoRA
from research.training.ensemble import Solo
from research.training.optimizers import SGD
from research.training.precision import LossScale
from research.training.rehearsal import GenerativeReplay
from research.training.remedies import L2SP, SI
from research.training.schedules import Constant
from research.training.step import Recipe, Trainer


def descent(remedies, rate=1e-3, steps=40):
    """Plain gradient descent."""
    optimizer = SGD(learning_rate=rate, schedule=Constant(), clip=None, momentum=None)
    return Trainer(CAUSAL, vocab=VOCAB, optimizer=optimizer, steps=steps, recipe=Recipe(remedies=remedies))


def total(tree):
    return float(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree)))


# Synaptic intelligence


def test_what_was_lowered_along_the_way_sums_up_to_what_the_loss_has_fallen_by():
    """Zenke et al. 2017, equation 3: in small steps on one batch."""
    functions = descent((SI(strength=0.0),))
    state, rows = functions.initial(jax.random.key(0)), batch()
    losses = []
    for _ in range(40):
        state, metrics = functions.step(state, rows)
        losses.append(float(metrics["loss"]))
    _, metrics = functions.step(jax.tree.map(jnp.copy, state), rows)
    fallen = losses[0] - float(metrics["loss"])
    assert fallen > 0.05
    assert total(state.kept[0]["path"]) == pytest.approx(fallen, rel=0.05)
    near(state.kept[0]["params"], functions.initial(jax.random.key(0)).params, rtol=0)


def test_its_own_pull_is_no_part_of_the_way():
    remedy = SI(strength=0.7)
    plain, held = descent(()), descent((remedy,))
    state = held.initial(jax.random.key(0))
    kept = drawn_kept(remedy, state.params) | {"path": jax.tree.map(jnp.zeros_like, state.params)}
    state, before = dataclasses.replace(state, kept=(kept,)), jax.tree.map(jnp.copy, state.params)
    other, _ = plain.step(plain.initial(jax.random.key(0)), batch())
    gradient = jax.tree.map(lambda old, new: (old - new) / 1e-3, before, other.params)
    new, _ = held.step(state, batch())
    expected = jax.tree.map(lambda slope, old, new: -slope * (new - old), gradient, before, new.params)
    near(new.kept[0]["path"], expected, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"loss_scale": LossScale()}])
def test_the_way_is_that_of_the_whole_batch_and_of_gradients_without_a_scale(options):
    ways = []
    for given in ({}, options):
        optimizer = SGD(learning_rate=1e-2, schedule=Constant(), clip=None, momentum=None)
        recipe = Recipe(remedies=(SI(strength=0.0),), **given)
        functions = Trainer(CAUSAL, vocab=VOCAB, optimizer=optimizer, steps=3, recipe=recipe)
        state = functions.initial(jax.random.key(0))
        for seed in range(3):
            state, _ = functions.step(state, batch(seed))
        ways.append(state.kept[0]["path"])
    assert total(ways[0]) > 0
    near(ways[1], ways[0], rtol=1e-3, atol=1e-7)


def test_with_low_rank_factors_the_way_is_that_of_whole_matrices():
    optimizer = LoRA(learning_rate=1e-2, schedule=Constant(), clip=None)
    functions = Trainer(
        CAUSAL, vocab=VOCAB, optimizer=optimizer, steps=3, recipe=Recipe(remedies=(SI(strength=0.0),))
    )
    state, rows = functions.initial(jax.random.key(0)), batch()
    for _ in range(2):  # in the first step half of the factors are zero
        before = jax.tree.map(jnp.copy, (state.params, state.kept[0]["path"]))
        state, _ = functions.step(state, rows)

    def loss(params):
        summed, weight = functions.loss(params, rows)
        return summed / weight

    slope = jax.grad(loss)(before[0])
    expected = jax.tree.map(
        lambda path, down, old, new: path - down * (new - old), before[1], slope, before[0], state.params
    )
    near(state.kept[0]["path"], expected, rtol=1e-3, atol=1e-7)
    assert total(state.kept[0]["path"]) != 0


def test_the_next_run_adds_the_way_for_how_far_it_was():
    words, remedy = text(), SI(strength=1.0, damping=0.01, normalise="none")
    functions = trainer(vocab=words.tokenizer.vocab_size, remedies=(remedy,))
    state = functions.initial(jax.random.key(0))
    first = functions.prepared(state, words, 0)
    assert total(first.kept[0]["importance"]) == 0  # parameters that are drawn stand for nothing
    earlier = drawn_kept(remedy, state.params)
    earlier["path"] = jax.tree.map(lambda leaf: leaf - 0.5, earlier["path"])  # some of them below zero
    found = functions.prepared(state, words, 0, ((L2SP(strength=1.0), earlier["params"]), (remedy, earlier)))
    expected = jax.tree.map(
        lambda old, path, now, then: old + np.maximum(path, 0) / ((now - then) ** 2 + 0.01),
        earlier["importance"],
        earlier["path"],
        state.params,
        earlier["params"],
    )
    near(found.kept[0]["importance"], expected, rtol=1e-5)
    same(found.kept[0]["params"], state.params)
    assert total(found.kept[0]["path"]) == 0

    scaled = trainer(vocab=words.tokenizer.vocab_size, remedies=(SI(strength=1.0),))
    added = jax.tree.map(
        jnp.subtract,
        scaled.prepared(state, words, 0, ((remedy, earlier),)).kept[0]["importance"],
        earlier["importance"],
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(added))
    assert total(added) / size == pytest.approx(1, rel=1e-3)


def test_without_what_it_goes_on_from_it_says_so():
    words, remedy = text(), SI(strength=1.0)
    functions = trainer(vocab=words.tokenizer.vocab_size, remedies=(remedy,))
    state = functions.initial(jax.random.key(0))
    with pytest.raises(ValueError, match="SI: the run that this one starts from has not recorded"):
        functions.prepared(state, words, 0, ())
    other = jax.tree.map(lambda leaf: leaf[:1], remedy.blank(state.params))
    with pytest.raises(ValueError, match="SI: the run that this one starts from kept it of other parameters"):
        functions.prepared(state, words, 0, ((remedy, other),))
    with pytest.raises(ValueError, match="SI: no step of the run"):
        functions.prepared(state, words, 0, ((remedy, remedy.blank(state.params)),))
    two = ((remedy, drawn_kept(remedy, state.params)),) * 2
    with pytest.raises(
        ValueError, match="SI: the run that this one starts from had 2 remedies of this class"
    ):
        functions.prepared(state, words, 0, two)
    for averaged in ({"average": 0.9}, {"base_share": 0.5}):
        with pytest.raises(ValueError, match="SI, which counts the way to the parameters that are trained"):
            trainer(remedies=(remedy,), **averaged)
    with pytest.raises(ValueError, match=r"SI.damping = 0"):
        SI(strength=1.0, damping=0.0)
    with pytest.raises(ValueError, match=r"EWC.decay = 1.5: expected a share"):
        dataclasses.replace(EARLIER, decay=1.5)


# Online EWC


def test_online_ewc_adds_a_share_of_the_importance_before():
    words = text()
    _, alone, _ = prepared(EARLIER, words=words)
    online = dataclasses.replace(EARLIER, decay=0.25)
    functions, first, _ = prepared(online, words=words)
    same(first.kept[0]["importance"], alone.kept[0]["importance"])  # nothing came before
    earlier = drawn_kept(EARLIER, first.params)
    found = Solo(functions, rows=8).prepared(
        functions.initial(jax.random.key(3)), words, 3, ((EARLIER, earlier),)
    )
    expected = jax.tree.map(
        lambda new, old: new + 0.25 * old, alone.kept[0]["importance"], earlier["importance"]
    )
    near(found.kept[0]["importance"], expected, rtol=1e-6)
    same(found.kept[0]["params"], first.params)
    assert online.inherits
    assert not EARLIER.inherits


# Generative replay

WRITTEN = GenerativeReplay(strength=0.5, examples=150, length=6, rows=3)


def test_what_the_base_writes_is_drawn_from_what_it_predicts():
    """Its loss on it is its entropy, place by place."""
    functions, state, words = prepared(dataclasses.replace(WRITTEN, examples=600))
    rows = state.kept[0]
    assert rows.shape == (600, 7)
    assert np.all(rows[:, 0] == words.tokenizer.bos)
    assert len(np.unique(rows, axis=0)) > 500
    scores = functions.predict(state.params, batch_of(rows))
    chosen = jnp.take_along_axis(scores, rows[:, 1:, None], -1)[..., 0]
    entropy = -jnp.sum(jnp.exp(scores) * scores, -1)
    assert float(jnp.mean(-chosen)) == pytest.approx(float(jnp.mean(entropy)), abs=0.1)
    _, cold, _ = prepared(dataclasses.replace(WRITTEN, temperature=1e-4), words=words)
    ids = cold.kept[0]
    likeliest = jnp.argmax(functions.predict(cold.params, batch_of(ids)), -1)
    np.testing.assert_array_equal(ids[:, 1:], likeliest)


def batch_of(ids):
    rows = batch()
    slots = type(rows.target.slots).arange(ids.shape[1] - 1, (len(ids),))
    target = dataclasses.replace(rows.target, ids=ids[:, :-1], slots=slots)
    return dataclasses.replace(
        rows, target=target, labels=ids[:, 1:], weights=jnp.ones(ids[:, 1:].shape, jnp.float32)
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_on_some_of_its_rows_is_added(accumulate):
    words = text()
    vocab = words.tokenizer.vocab_size
    functions = trainer(vocab=vocab, remedies=(WRITTEN,), accumulate=accumulate)
    state = functions.prepared(functions.initial(jax.random.key(3)), words, 3)
    one = next(iter(words.held_out("test")))
    each = -functions.predict(state.params, batch_of(state.kept[0]))
    losses = jnp.take_along_axis(each, state.kept[0][:, 1:, None], -1)[..., 0].mean(-1)
    first, metrics = functions.step(jax.tree.map(jnp.copy, state), one)
    assert 0.5 * losses.min() < metrics["penalty"] < 0.5 * losses.max()
    again, repeated = functions.step(dataclasses.replace(jax.tree.map(jnp.copy, state)), one)
    assert metrics["penalty"] == repeated["penalty"]
    same(first.params, again.params)
    _, later = functions.step(first, one)
    assert later["penalty"] != metrics["penalty"]  # other rows

    weak = trainer(vocab=vocab, remedies=(dataclasses.replace(WRITTEN, strength=0.0),))
    bare = trainer(vocab=vocab)
    plain, _ = bare.step(bare.initial(jax.random.key(3)), one)
    held = dataclasses.replace(weak.initial(jax.random.key(3)), kept=state.kept)
    same(weak.step(held, one)[0].params, plain.params)


def test_it_keeps_a_model_at_what_the_base_wrote():
    words = text()
    losses = []
    for strength in (0.0, 3.0):
        functions, state, _ = prepared(
            dataclasses.replace(WRITTEN, strength=strength, temperature=0.3), words=words
        )
        written, batches = batch_of(jnp.copy(state.kept[0])), words.training(0)
        for _ in range(30):
            state, _ = functions.step(state, next(batches))
        batches.close()
        losses.append(functions.evaluate(state.params, [written]))
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("family", ["EncoderDecoder", "Encoder"])
def test_generative_replay_is_of_decoders(family):
    stack = dataclasses.replace(STACK, layers=1)
    configs = {
        "EncoderDecoder": EncoderDecoderConfig(encoder=stack, decoder=stack),
        "Encoder": EncoderConfig(stack=stack),
    }
    functions = trainer(configs[family], vocab=text().tokenizer.vocab_size, remedies=(WRITTEN,))
    with pytest.raises(ValueError, match=f"GenerativeReplay of {family}: expected a Decoder"):
        functions.prepared(functions.initial(jax.random.key(0)), text(), 0)
    assert WRITTEN.rehearsed(16).examples == 16
    for field, value in (("rows", 0), ("temperature", 0.0)):
        with pytest.raises(ValueError, match=f"GenerativeReplay.{field} = 0"):
            dataclasses.replace(WRITTEN, **{field: value})

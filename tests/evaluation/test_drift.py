"""How far a run has come from what it began with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_words import Words

from research.data.layouts import Concatenate
from research.data.objectives import CausalLM
from research.data.pipeline import Data
from research.evaluation.drift import Drift, compared, moved
from research.evaluation.trained import Trained
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from research.models.paths import named
from research.training.optimizers import AdamW
from research.training.step import Trainer

STACK = StackConfig(layers=2, width=16, heads=2)


@pytest.fixture(scope="module")
def text():
    data = Data(corpus=Words(), objective=CausalLM(), layout=Concatenate(), window=8, batch=4, held_out=10)
    return data.load()


@pytest.fixture(scope="module")
def models(text):
    """The functions of a model, what it began with, and what it came to."""
    trainer = Trainer(
        DecoderConfig(stack=STACK), vocab=text.tokenizer.vocab_size, optimizer=AdamW(), steps=10
    )
    return trainer, *(trainer.initial(jax.random.key(seed)).params for seed in (0, 1))


def log_probabilities(trainer, params, batch):
    model = trainer.model(params)
    return np.asarray(jax.nn.log_softmax(model.outputs.logits(model.apply(batch).hidden)), np.float64)


def test_the_divergence_is_the_mean_over_all_targets(text, models):
    trainer, base, now = models
    batches = text.held_out("test")
    assert len(batches) > 1
    assert not np.all(batches[-1].weights)  # it is filled up with padding
    each, weights = [], []
    for batch in batches:
        then, after = (log_probabilities(trainer, params, batch) for params in (base, now))
        each.append(np.sum(np.exp(then) * (then - after), -1))
        weights.append(batch.weights)
    expected = np.average(np.concatenate(each), weights=np.concatenate(weights))
    found = compared(trainer, base, now, batches)
    assert found.divergence == pytest.approx(expected, rel=1e-5)
    assert found.before == pytest.approx(trainer.evaluate(base, batches), rel=1e-5)
    assert found.after == pytest.approx(trainer.evaluate(now, batches), rel=1e-5)
    assert compared(trainer, base, base, batches).divergence == pytest.approx(0, abs=1e-6)


def test_tokens_are_lost_and_gained_where_the_likeliest_one_was_or_has_become_right(text, models):
    trainer, base, now = models
    batches = text.held_out("test")
    right = [
        [np.argmax(log_probabilities(trainer, params, batch), -1) == batch.labels for batch in batches]
        for params in (base, now)
    ]
    real = np.concatenate([batch.weights > 0 for batch in batches])
    before, after = (np.concatenate(side)[real] for side in right)
    found = compared(trainer, base, now, batches)
    assert found.lost == pytest.approx(np.mean(before & ~after))
    assert found.gained == pytest.approx(np.mean(after & ~before))
    assert compared(trainer, base, base, batches)[-2:] == (0, 0)


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (DecoderConfig(stack=STACK), {"embedding_table", "stack_norm", "stack_0", "stack_1"}),
        (
            DecoderConfig(stack=dataclasses.replace(STACK, layers=4, pattern=(BlockSpec(), BlockSpec()))),
            {"embedding_table", "stack_norm", "stack_0", "stack_1", "stack_2", "stack_3"},
        ),
        (
            EncoderDecoderConfig(encoder=STACK, decoder=STACK),
            {"embedding_table", "encoder_norm", "decoder_norm"}
            | {f"{stack}_{layer}" for stack in ("encoder", "decoder") for layer in (0, 1)},
        ),
    ],
)
def test_distances_are_told_layer_by_layer(config, parts):
    trainer = Trainer(config, vocab=30, optimizer=AdamW(), steps=10)
    base = trainer.initial(jax.random.key(0)).params
    assert moved(base, base) == dict.fromkeys(parts, 0.0)
    assert moved(base, jax.tree.map(lambda leaf: 1.25 * leaf, base)) == pytest.approx(
        dict.fromkeys(parts, 0.25), rel=1e-5
    )


def test_a_layer_of_a_pattern_is_counted_among_all():
    stack = dataclasses.replace(STACK, layers=4, pattern=(BlockSpec(), BlockSpec()))
    trainer = Trainer(DecoderConfig(stack=stack), vocab=30, optimizer=AdamW(), steps=10)
    base = trainer.initial(jax.random.key(0)).params

    def third(path, leaf):  # the second of those at the first place
        return leaf.at[1].multiply(2) if "blocks/0/" in path else leaf

    changed = {path: third(path, jnp.asarray(leaf)) for path, leaf in named(base).items()}
    found = moved(named(base), changed)
    assert found.pop("stack_2") == pytest.approx(1)
    assert set(found.values()) == {0.0}


def test_a_run_is_measured_beside_what_it_began_with(text, models):
    trainer, base, now = models
    trained = Trained(trainer=trainer, params=now, text=text, seed=0, base=lambda: base)
    earlier = Words(seed=1)
    found = Drift(corpora=(("earlier", earlier), ("own", Words())))(trained)
    assert found["kl"] == compared(trainer, base, now, text.held_out("test")).divergence
    assert found["layers"] == moved(base, now)
    for name, words in (("earlier", text.of(earlier)), ("own", text)):
        beside = compared(trainer, base, now, words.held_out("test"))
        assert found["divergence"][name] == beside.divergence
        assert found["forgotten"][name] == beside.after - beside.before
        assert (found["lost"][name], found["gained"][name]) == beside[-2:]


def test_what_it_cannot_measure_is_one_line(text, models):
    trainer, base, now = models
    with pytest.raises(ValueError, match="known neither of published weights nor of a cell"):
        Drift()(Trained(trainer=trainer, params=now, text=text, seed=0))
    for corpora in ((), (("a.b", Words()),), (("a", Words()), ("a", Words(seed=1)))):
        with pytest.raises(ValueError, match="Drift.corpora has the names .* all different and without dots"):
            Drift(corpora=corpora)
    with pytest.raises(ValueError, match="no batch has a target"):
        compared(trainer, base, now, [])
    classes = Trainer(
        EncoderConfig(stack=STACK, classes=2),
        vocab=text.tokenizer.vocab_size,
        optimizer=AdamW(),
        steps=10,
    )
    params = classes.initial(jax.random.key(0)).params
    with pytest.raises(ValueError, match="EncoderConfig.classes = 2; leave the evaluation out"):
        Drift()(Trained(trainer=classes, params=params, text=text, seed=0, base=lambda: params))

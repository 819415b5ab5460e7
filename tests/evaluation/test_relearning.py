"""How fast earlier text brings back what was forgotten."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from random_words import Words

from research.data.layouts import Concatenate
from research.data.objectives import CausalLM, PrefixLM
from research.data.pipeline import Data
from research.evaluation.relearning import Relearning
from research.evaluation.trained import Trained
from research.models.config import StackConfig
from research.models.families import DecoderConfig, EncoderConfig
from research.training.optimizers import AdamW
from research.training.precision import LossScale
from research.training.step import Recipe, Trainer

STACK = StackConfig(layers=1, width=16, heads=2)
EARLIER = Words(seed=1, words=("alpha", "beta", "gamma", "delta"))


@pytest.fixture(scope="module")
def tuned():
    """A model of earlier words, tuned on others until it has forgotten something."""
    data = Data(corpus=Words(), objective=CausalLM(), layout=Concatenate(), window=8, batch=8, held_out=16)
    words, config = data.load(), DecoderConfig(stack=STACK)
    optimizer = AdamW(learning_rate=1e-2)
    functions = Trainer(config, vocab=words.tokenizer.vocab_size, optimizer=optimizer, steps=60)
    state, states = functions.initial(jax.random.key(0)), []
    for corpus in (words.of(EARLIER), words):
        batches = corpus.training(0)
        for _ in range(60):
            state, _ = functions.step(state, next(batches))
        batches.close()
        states.append(jax.tree.map(jnp.copy, state.params))
    return Trained(trainer=functions, params=states[1], text=words, seed=0, base=lambda: states[0])


def test_it_goes_on_with_earlier_text_and_leaves_the_run_as_it_is(tuned):
    before = jax.tree.map(jnp.copy, tuned.params)
    one = Relearning(corpus=EARLIER, steps=(2, 5), evaluation=PrefixLM())
    found = one(tuned)
    assert all(map(jnp.array_equal, jax.tree.leaves(before), jax.tree.leaves(tuned.params)))
    assert list(found["loss"]) == ["0", "2", "5"]
    assert list(found["recovered"]) == ["2", "5"]
    held_out = tuned.text.of(EARLIER, PrefixLM()).held_out("test")
    assert found["loss"]["0"] == tuned.trainer.evaluate(tuned.params, held_out)

    functions = tuned.trainer.trained_by(one.optimizer, 5)
    state = functions.initial(jax.random.key(0), params=jax.tree.map(jnp.copy, tuned.params))
    batches = tuned.text.of(EARLIER).training(0)
    for _ in range(5):
        state, _ = functions.step(state, next(batches))
    batches.close()
    after, base = (functions.evaluate(params, held_out) for params in (state.params, tuned.base()))
    assert found["loss"]["5"] == pytest.approx(after, rel=1e-6)
    assert found["loss"]["0"] > base
    share = (found["loss"]["0"] - after) / (found["loss"]["0"] - base)
    assert found["recovered"]["5"] == pytest.approx(share, rel=1e-5)
    assert dataclasses.replace(one, steps=(5,))(tuned)["loss"]["5"] == found["loss"]["5"]


def test_what_was_never_lost_cannot_be_recovered(tuned):
    found = Relearning(corpus=EARLIER, steps=(1,))(dataclasses.replace(tuned, base=lambda: tuned.params))
    assert found["recovered"] == {"1": None}


def test_what_it_cannot_measure_is_one_line(tuned):
    with pytest.raises(ValueError, match="what it began with is not known"):
        Relearning()(dataclasses.replace(tuned, base=None))
    config = EncoderConfig(stack=STACK, classes=2)
    vocab = tuned.text.tokenizer.vocab_size
    classifier = Trainer(config, vocab=vocab, optimizer=AdamW(), steps=1)
    params = classifier.initial(jax.random.key(0)).params
    with pytest.raises(ValueError, match=r"EncoderConfig.classes = 2; leave the evaluation out"):
        Relearning()(dataclasses.replace(tuned, trainer=classifier, params=params))
    for steps in ((), (3, 2), (0, 1)):
        with pytest.raises(ValueError, match="expected at least one, rising from 1"):
            Relearning(steps=steps)


def test_a_model_of_float16_relearns_with_its_loss_scale(tuned):
    config = DecoderConfig(stack=dataclasses.replace(STACK, dtype="float16"))
    vocab = tuned.text.tokenizer.vocab_size
    functions = Trainer(
        config, vocab=vocab, optimizer=AdamW(), steps=60, recipe=Recipe(loss_scale=LossScale())
    )
    found = Relearning(corpus=EARLIER, steps=(8,), evaluation=PrefixLM())(
        dataclasses.replace(tuned, trainer=functions)
    )
    assert found["loss"]["8"] < found["loss"]["0"]

"""Models that are changed without training: by nothing, to what was asked, or not at all."""

import dataclasses

import jax
import pytest
from random_words import Words

from research.attention.masks import Window
from research.attention.positions import ALiBi, Interpolation, Learned, Relative, Rotary, YaRN
from research.attention.recurrence import Recurrent
from research.data.layouts import Concatenate
from research.data.objectives import CausalLM
from research.data.pipeline import Data
from research.evaluation.adapted import Adapted
from research.evaluation.checked import Checked
from research.evaluation.likelihood import Likelihood
from research.evaluation.long_context import LengthCurve
from research.evaluation.streaming import Streamed
from research.evaluation.trained import Evaluation, Trained
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig, EncoderDecoderConfig
from research.training.optimizers import AdamW
from research.training.step import Trainer

STACK = StackConfig(layers=1, width=16, heads=2, hidden=16)
CURVE = LengthCurve(lengths=(4, 8, 16), stride=4, stretches=2, tokens=16)


@pytest.fixture(scope="module")
def text():
    return Data(
        corpus=Words(), objective=CausalLM(), layout=Concatenate(), window=16, batch=4, near_duplicates=None
    ).load()


def trained(text, **changes):
    config = DecoderConfig(stack=dataclasses.replace(STACK, **changes))
    trainer = Trainer(config, vocab=text.tokenizer.vocab_size, optimizer=AdamW(), steps=1)
    return Trained(trainer=trainer, params=trainer.initial(jax.random.key(0)).params, text=text, seed=0)


def test_a_change_that_changes_nothing(text):
    found = CURVE(trained(text))
    for same in (Rotary(scaling=Interpolation(factor=1.0)), Rotary()):
        adapted = Adapted(evaluation=CURVE, positions=same)
        assert isinstance(adapted, Evaluation)
        assert isinstance(adapted, Checked)
        assert adapted(trained(text)) == found
    assert Adapted(evaluation=CURVE, window=Window(16))(trained(text)) == found


def test_it_measures_the_model_that_was_asked_for(text):
    """The same parameters in a model that is built so."""
    scaled, window = Rotary(scaling=YaRN(factor=4.0, trained=8)), Window(5)
    adapted = Adapted(evaluation=CURVE, positions=scaled, window=window)
    built = trained(text, positions=scaled, pattern=(BlockSpec(window=window),))
    assert adapted(trained(text)) == CURVE(built)
    assert adapted(trained(text)) != CURVE(trained(text))
    # A block that is local already stays so.
    local = trained(text, pattern=(BlockSpec(window=Window(3)),))
    assert Adapted(evaluation=CURVE, window=window)(local) == CURVE(local)


def test_schemes_without_parameters_take_each_others_place(text):
    assert Adapted(evaluation=CURVE, positions=ALiBi())(trained(text)) == CURVE(
        trained(text, positions=ALiBi())
    )
    with pytest.raises(ValueError, match=r"Adapted\.positions = Relative.* other parameters"):
        Adapted(evaluation=CURVE, positions=Relative())(trained(text))


def test_a_memory_of_another_length(text):
    streamed = Streamed(tokens=24, scored=12, segment=4, stretches=2)
    short, long = Recurrent(length=4), Recurrent(length=8)
    adapted = Adapted(evaluation=streamed, memory=long)
    assert adapted(trained(text, memory=short)) == streamed(trained(text, memory=long))
    assert adapted(trained(text, memory=short))["loss"] != streamed(trained(text, memory=short))["loss"]
    with pytest.raises(ValueError, match=r"the model was trained without one"):
        adapted.check(DecoderConfig(stack=STACK))


def test_what_it_measures_may_refuse_the_changed_model():
    adapted = Adapted(evaluation=CURVE, positions=Learned(length=8))
    with pytest.raises(
        ValueError, match=r"LengthCurve\.lengths = .* windows of up to 16 tokens, but Learned"
    ):
        adapted.check(DecoderConfig(stack=STACK))
    Adapted(evaluation=Likelihood(), window=Window(2)).check(DecoderConfig(stack=STACK))
    with pytest.raises(ValueError, match="expected a decoder"):
        adapted.check(EncoderDecoderConfig(encoder=STACK, decoder=STACK))
    with pytest.raises(ValueError, match="Adapted changes nothing of the model"):
        Adapted(evaluation=CURVE)

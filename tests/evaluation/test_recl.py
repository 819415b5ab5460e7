"""RECL: by hand on losses that are known, and of models that see no further than their windows."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_words import Words

from research.attention.masks import Window
from research.attention.positions import Learned, NoPosition
from research.data.layouts import Concatenate
from research.data.objectives import CausalLM
from research.data.pipeline import Data
from research.evaluation.checked import Checked
from research.evaluation.long_context import scored_losses, sliding, stretches
from research.evaluation.recl import RelativeContext, relative_context, relative_gain
from research.evaluation.trained import Known, Trained
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig
from research.training.optimizers import AdamW
from research.training.step import Trainer

STACK = StackConfig(layers=1, width=16, heads=2, hidden=16, positions=NoPosition())


class Unasked:
    """Another model, of which nothing is read."""

    def trained(self, text):
        raise AssertionError


def test_a_gain_by_hand():
    short = [np.array([1.0, 3.0, 2.0, 4.0]), np.array([2.0, 2.0, 2.0, 5.0])]  # the best: 1, 2, 2, 4
    long = np.array([0.0, 3.0, 1.0, 2.0])  # of which 0, 2, 1, 2 counts
    assert relative_gain(short, long, 1.0) == pytest.approx(1 - np.exp((5 - 9) / 4))
    assert relative_gain(short, long, 0.5) == pytest.approx(1 - np.exp((2 + 2 - 4 - 2) / 2))
    assert relative_gain(short, long + 9, 1.0) == 0.0


def test_a_model_that_gains_what_another_has_already_gains_nothing():
    """`late` falls as far as `early` did, a length later."""
    flat = np.ones(5)
    early = {16: 3 * flat, 32: 2 * flat, 64: 1 * flat, 128: 1 * flat}
    late = {16: 4 * flat, 32: 3 * flat, 64: 2 * flat, 128: 1 * flat}
    assert relative_context({"early": early, "late": late}, 1.0) == {"early": 64, "late": 16}
    assert relative_context({"late": late}, 1.0) == {"late": 128}


@given(st.lists(st.floats(0.0, 5.0), min_size=4, max_size=4), st.floats(0.1, 1.0))
@settings(max_examples=30, deadline=None)
def test_a_gain_is_a_share(losses, hard):
    short, long = np.array(losses), np.array(losses[::-1])
    gain = relative_gain([short], long, hard)
    assert 0 <= gain < 1
    assert relative_gain([short, long], long, hard) == 0


def test_who_sees_no_further_gains_nothing():
    """With 4 in sight a token is predicted alike in windows of 8, whose last 4 are scored, and in longer ones."""
    text = Data(
        corpus=Words(), objective=CausalLM(), layout=Concatenate(), window=24, batch=4, near_duplicates=None
    ).load()
    narrow = dataclasses.replace(STACK, pattern=(BlockSpec(window=Window(4)),))
    full, four = (
        Trainer(DecoderConfig(stack=stack), vocab=text.tokenizer.vocab_size, optimizer=AdamW(), steps=1)
        for stack in (STACK, narrow)
    )
    params = full.initial(jax.random.key(0)).params
    measure = RelativeContext(
        group=(("four", Known(four, params)),),
        own="full",
        lengths=(8, 12, 16),
        stride=4,
        stretches=2,
        tokens=8,
    )
    found = measure(Trained(trainer=full, params=params, text=text, seed=0))
    assert found["all"].keys() == {"full", "four"}
    assert found["all"]["four"] == found["hardest"]["four"] == 8
    # Where all is seen losses do change with the length, and are those of the model itself.
    own = Trained(trainer=full, params=params, text=text, seed=0)
    lines = stretches(text, "test", 20, 2, "here")
    spans = {n: sliding(12, 20, n, 4) for n in (8, 16)}
    narrow = [scored_losses(dataclasses.replace(own, trainer=four), lines, spans[n])[0] for n in spans]
    wide = [scored_losses(own, lines, spans[n])[0] for n in spans]
    np.testing.assert_allclose(*narrow, rtol=1e-5)
    assert np.abs(wide[0] - wide[1]).max() > 1e-4


def test_what_cannot_be_measured_is_said_before():
    one = RelativeContext(group=(("b", Unasked()),), own="a", lengths=(4, 8), stride=4)
    assert isinstance(one, Checked)
    short = DecoderConfig(stack=dataclasses.replace(STACK, positions=Learned(length=4)))
    with pytest.raises(ValueError, match=r"RelativeContext.lengths = \(4, 8\).*end at 4"):
        one.check(short)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"group": (("a", Unasked()),)}, "each name once"),
        ({"lengths": (8, 4)}, "two rising numbers"),
        ({"stride": 5}, "expected 1 to 4"),
        ({"hard": 0.0}, "at most 1"),
    ],
)
def test_settings_that_say_nothing(settings, said):
    with pytest.raises(ValueError, match=said):
        RelativeContext(
            **{"group": (("b", Unasked()),), "own": "a", "lengths": (4, 8), "stride": 4, **settings}
        )

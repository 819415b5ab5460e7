"""What reading costs, against counts by hand."""

import dataclasses

import jax
import pytest
from random_words import Words

from research.attention.masks import Window
from research.attention.positions import Learned
from research.attention.recurrence import Recurrent
from research.data.layouts import Concatenate
from research.data.objectives import CausalLM
from research.data.pipeline import Data
from research.evaluation.checked import Checked
from research.evaluation.cost import Cost
from research.evaluation.trained import Evaluation, Trained
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig
from research.training.optimizers import AdamW
from research.training.step import Trainer

STACK = StackConfig(layers=2, width=16, heads=2, hidden=16)
COST = Cost(lengths=(8, 16, 64))


@pytest.fixture(scope="module")
def text():
    return Data(
        corpus=Words(), objective=CausalLM(), layout=Concatenate(), window=16, batch=4, near_duplicates=None
    ).load()


def cost(text, **changes):
    config = DecoderConfig(stack=dataclasses.replace(STACK, **changes))
    trainer = Trainer(config, vocab=text.tokenizer.vocab_size, optimizer=AdamW(), steps=1)
    params = trainer.initial(jax.random.key(0)).params
    return COST(Trained(trainer=trainer, params=params, text=text, seed=0))


def test_full_attention_adds_a_pair_for_every_token_before(text):
    assert isinstance(COST, Evaluation)
    assert isinstance(COST, Checked)
    found = cost(text)["flops_per_token"]
    # Of n (n + 1) / 2 pairs each costs 2 (d + d) FLOPs, d = 8, in 2 heads of 2 layers.
    pairs = {n: 2 * 16 * 2 * 2 * (n + 1) / 2 for n in COST.lengths}
    assert found["64"] - found["8"] == pytest.approx(pairs[64] - pairs[8])


def test_a_window_costs_the_same_at_every_length(text):
    seen = cost(text, pattern=(BlockSpec(window=Window(4)),))
    full = cost(text)
    # A window of 4 shows 4 n - 6 pairs of n tokens.
    assert seen["flops_per_token"]["64"] - seen["flops_per_token"]["8"] == pytest.approx(
        128 * (6 / 8 - 6 / 64)
    )
    assert 1 < seen["slope"] < 1.02 < full["slope"] < 2


def test_what_is_not_counted():
    remembering = DecoderConfig(stack=dataclasses.replace(STACK, memory=Recurrent(length=4)))
    with pytest.raises(ValueError, match=r"StackConfig\.memory = .* reads in segments"):
        COST.check(remembering)
    with pytest.raises(ValueError, match=r"up to 64 tokens, but Learned positions of the model end at 32"):
        COST.check(DecoderConfig(stack=dataclasses.replace(STACK, positions=Learned(length=32))))
    with pytest.raises(ValueError, match="at least two rising numbers"):
        Cost(lengths=(4,))

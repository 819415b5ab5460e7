"""Knobs are turned until arms cost the same."""

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.analysis import budget, matching
from research.analysis.budget import Budget
from research.attention.masks import Slots
from research.batch import Batch, Tokens
from research.models.config import StackConfig
from research.models.families import DecoderConfig, EncoderDecoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """An experiment as far as matching knows it."""

    model: DecoderConfig | EncoderDecoderConfig
    steps: int = 100


STACK = StackConfig(layers=4, width=32, heads=4)
DECODER = Arm(model=DecoderConfig(stack=STACK))
ENCODER_DECODER = Arm(model=EncoderDecoderConfig(encoder=STACK, decoder=STACK))


@functools.cache
def cost(arm, vocab=64, rows=2, length=8):
    line = Tokens(np.ones((rows, length), np.int32), Slots.arange(length, (rows,)))
    source = line if isinstance(arm.model, EncoderDecoderConfig) else None
    batch = Batch(line, np.ones((rows, length), np.int32), np.ones((rows, length), np.float32), source)
    return budget.count(arm.model, vocab=vocab, batches=[batch])


@given(
    growth=st.lists(st.integers(0, 50), min_size=1, max_size=60),
    target=st.integers(-10, 2000),
    low=st.integers(1, 5),
)
@settings(max_examples=200)
def test_the_nearest_value_is_that_of_trying_all(growth, target, low):
    curve = np.cumsum(growth)
    high = low + len(curve) - 1
    value, measured = matching.solve(lambda value: float(curve[value - low]), target, low, high)
    assert low <= value <= high
    assert measured == curve[value - low]
    assert abs(measured - target) == np.abs(curve - target).min()


def test_few_values_are_tried():
    tried = []
    matching.solve(lambda value: tried.append(value) or float(value), 1000, 1, 2**20)
    assert len(tried) == len(set(tried)) < 25


@pytest.mark.parametrize(
    ("by", "knob", "multiple"),
    [
        ("params", "model.stack.hidden", 1),
        pytest.param("flops", "model.stack.hidden", 8, marks=pytest.mark.slow),
        ("flops", "steps", 1),
        ("tokens_seen", "steps", 1),
        ("loss_tokens", "steps", 1),
    ],
)
def test_a_decoder_is_made_to_cost_what_an_encoder_decoder_costs(by, knob, multiple):
    target = matching.total(cost(ENCODER_DECODER), ENCODER_DECODER.steps, by)
    found = matching.match(DECODER, by=by, target=target, knob=knob, cost=cost, multiple=multiple)
    assert matching.value_at(found.arm, knob) == found.value
    assert found.value % multiple == 0
    assert matching.total(cost(found.arm), found.arm.steps, by) == found.measured
    assert found.measured == pytest.approx(target, rel=matching.TOLERANCE)
    assert found.residual == pytest.approx(found.measured / target - 1)
    assert matching.replaced(found.arm, knob, matching.value_at(DECODER, knob)) == DECODER


def test_a_knob_may_be_of_both_stacks():
    target = 1.2 * cost(ENCODER_DECODER).parameters
    knob = ("model.encoder.hidden", "model.decoder.hidden")
    model = matching.match(ENCODER_DECODER, by="params", target=target, knob=knob, cost=cost).arm.model
    assert model.encoder.hidden == model.decoder.hidden > STACK.mlp_width


def test_what_cannot_be_matched_is_one_line():
    target = 10.0 * cost(DECODER).parameters
    one = {"cost": cost, "target": target, "knob": "model.stack.layers"}
    with pytest.raises(
        ValueError, match=r"layers = \d+ is nearest, but costs .* expected within 0%.*finer knob"
    ):
        matching.match(DECODER, by="params", tolerance=0.0, **one)
    with pytest.raises(ValueError, match=r"layers = 6 is nearest"):
        matching.match(DECODER, by="params", high=6, **one)
    with pytest.raises(ValueError, match=r"match by 'size': expected one of \['flops'"):
        matching.match(DECODER, by="size", **one)
    with pytest.raises(ValueError, match="StackConfig has no field 'depth', expected one of"):
        matching.match(DECODER, by="params", cost=cost, target=target, knob="model.stack.depth")
    with pytest.raises(ValueError, match="int has no field 'more', expected one of none"):
        matching.replaced(DECODER, "steps.more", 1)


def test_an_arm_that_refuses_a_value_says_so_itself():
    with pytest.raises(ValueError, match=r"StackConfig.width = \d+ is not a multiple of StackConfig.heads"):
        matching.match(DECODER, by="params", target=1e6, knob="model.stack.width", cost=cost)


def test_totals_are_those_of_a_run():
    one = Budget(
        parameters=7,
        forward_flops=2.0,
        attention_flops=0.5,
        train_flops=6.0,
        tokens=5.0,
        loss_tokens=3.0,
    )
    totals = [matching.total(one, 10, by) for by in ("params", "flops", "tokens_seen", "loss_tokens")]
    assert totals == [7, 60, 50, 30]

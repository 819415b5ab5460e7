"""Counts against arithmetic by hand."""

import dataclasses

import numpy as np
import pytest

from research.analysis import budget
from research.attention.masks import Causal, Full, Prefix, Slots, Window
from research.batch import Batch, Tokens
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig, EncoderDecoderConfig

V, M, F, L, B, N = 50, 16, 24, 3, 2, 10
STACK = StackConfig(layers=L, width=M, heads=4, kv_heads=2, hidden=F, activation="swiglu")
LAYER = 2 * M * M + 2 * M * (M // 2) + 3 * M * F  # query, output; key, value at half the heads; MLP


def line(length=N, given=0):
    slots = Slots.arange(length, (B,))
    prefix = np.broadcast_to(np.arange(length) < given, (B, length))
    return Tokens(np.ones((B, length), np.int32), dataclasses.replace(slots, prefix=prefix))


def batch(given=0, source=None):
    weights = np.ones((B, N), np.float32)
    return Batch(line(given=given), np.ones((B, N), np.int32), weights, source and line(source))


def count(config, *batches):
    return budget.count(config, vocab=V, batches=batches)


def products(tokens=B * N):
    return 2 * tokens * (L * LAYER + M * V)


@pytest.mark.parametrize("unroll", [1, 3])
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize(
    ("mask", "given", "pairs"), [(Causal(), 0, N * (N + 1) // 2), (Full(), 0, N * N), (Prefix(), 4, 55 + 6)]
)
def test_a_decoder_by_hand(mask, given, pairs, remat, unroll):
    config = DecoderConfig(stack=dataclasses.replace(STACK, remat=remat, unroll=unroll), mask=mask)
    counted = count(config, batch(given))
    assert counted.forward_flops == products() + L * B * pairs * 2 * 2 * M
    assert counted.attention_flops == L * B * pairs * 2 * 2 * M
    assert counted.attention_share == pytest.approx(1 - products() / counted.forward_flops)
    assert counted.backward_flops == 2 * counted.forward_flops == counted.train_flops - counted.forward_flops
    assert counted.parameters == L * (LAYER + 2 * M) + V * M + M
    assert counted.tokens == counted.loss_tokens == B * N


def test_a_pattern_counts_each_layer_under_its_own_mask():
    stack = dataclasses.replace(STACK, pattern=(BlockSpec(), BlockSpec(window=Window(2))))
    counted = count(DecoderConfig(stack=stack), batch())
    pairs = 2 * (N * (N + 1) // 2) + (2 * N - 1)  # layers 0 and 2 are global, layer 1 local
    assert counted.forward_flops == products() + B * pairs * 4 * M


def test_an_encoder_decoder_by_hand():
    counted = count(EncoderDecoderConfig(encoder=STACK, decoder=STACK), batch(source=6))
    cross_q, cross_kv = 2 * M * M, 2 * M * (M // 2)
    expected = 2 * B * 6 * L * LAYER + products() + 2 * B * L * (N * cross_q + 6 * cross_kv)
    pairs = 6 * 6 + N * 6 + N * (N + 1) // 2
    assert counted.forward_flops == expected + L * B * pairs * 4 * M
    assert counted.tokens == B * (N + 6)


def test_batches_are_averaged():
    config = DecoderConfig(stack=STACK, mask=Prefix())
    both = count(config, batch(0), batch(8)).forward_flops
    assert both == (count(config, batch(0)).forward_flops + count(config, batch(8)).forward_flops) / 2

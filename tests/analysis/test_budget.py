"""Counts against arithmetic by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from research.analysis import budget
from research.attention.masks import Causal, Full, Prefix, Sinks, Slots, Window
from research.attention.positions import Relative
from research.attention.recurrence import Convolution, MeanPooling, Recurrent
from research.batch import Batch, Tokens
from research.models.config import BlockSpec, EmbeddingConfig, StackConfig
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


PAIRS = L * B * (N * (N + 1) // 2)


def test_an_adaptive_softmax_by_hand():
    embedding = EmbeddingConfig(cutoffs=(10, 20), shrink=2, head_projection=True)
    counted = count(DecoderConfig(stack=STACK, embedding=embedding), batch())
    sizes, widths = (10, 10, 30), (16, 8, 4)
    table, projections = sum(n * w for n, w in zip(sizes, widths, strict=True)), sum(widths) * M
    products = L * LAYER + table + 2 * projections + 2 * M
    assert counted.forward_flops == 2 * B * N * products + PAIRS * 4 * M
    vocabulary = table + projections + M * M + 2 * (M + 1) + V
    assert counted.parameters == L * (LAYER + 2 * M) + M + vocabulary


def test_what_lies_before_and_after_scores_by_hand():
    embedding = EmbeddingConfig(rows=64, types=2, transform=True, bias=True)
    counted = count(DecoderConfig(stack=STACK, embedding=embedding), batch())
    assert counted.forward_flops == 2 * B * N * (L * LAYER + M * M + 64 * M) + PAIRS * 4 * M
    assert counted.parameters == L * (LAYER + 2 * M) + M + (64 + 2) * M + M * (M + 2) + 64


@pytest.mark.parametrize(
    ("own", "parameters"),
    [("nothing", M * M + 2 * M), ("projection", L * M * M + 2 * M), ("everything", L * (M * M + 2 * M))],
)
def test_relative_positions_cost_the_same_whoever_has_them(own, parameters):
    stack = dataclasses.replace(STACK, positions=Relative(layers=own))
    counted = count(DecoderConfig(stack=stack), batch())
    turned = L * 2 * B * N * M * M
    assert counted.forward_flops == products() + turned + PAIRS * 2 * (4 * (4 + M) + M)
    assert counted.parameters == L * (LAYER + 2 * M) + V * M + M + parameters


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


def remembered(tokens, pairs):
    """Forward FLOPs where keys and values are made of `tokens` states and each row shows `pairs`."""
    keys = 2 * M * (M // 2)
    return products() + L * B * (2 * (tokens - N) * keys + pairs * 4 * M)


RECENT, OLD, RATE = 4, 3, 5


@pytest.mark.parametrize("unroll", [1, 3])
@pytest.mark.parametrize(
    ("mask", "pairs"),
    [
        (Causal(), 55 + N * RECENT),
        (Window(5), N * 5),
        (Window(8), sum(min(8, i + 1 + RECENT) for i in range(N))),
    ],
)
def test_a_memory_is_full_and_counts_by_what_the_mask_shows_of_it(mask, pairs, unroll):
    stack = dataclasses.replace(STACK, memory=Recurrent(length=RECENT), unroll=unroll)
    counted = count(DecoderConfig(stack=stack, mask=mask), batch())
    assert counted.forward_flops == remembered(N + RECENT, pairs)
    assert counted.attention_flops == L * B * pairs * 4 * M
    assert counted.tokens == B * N


def compressive(kind, mask=Causal()):  # noqa: B008
    memory = Recurrent(length=RECENT, compression=kind(length=OLD, rate=RATE))
    return count(DecoderConfig(stack=dataclasses.replace(STACK, memory=memory), mask=mask), batch())


def test_a_compressed_memory_is_full_too():
    tokens, pairs = N + RECENT + OLD, 55 + N * (RECENT + OLD)
    assert compressive(MeanPooling).forward_flops == remembered(tokens, pairs)
    # Compressed slots stand at -5, -10 and -15, and Window(12) sees 12 positions.
    older = sum(q + distance < 12 for q in range(N) for distance in (5, 10, 15))
    recent = sum(min(12, q + 1 + RECENT) for q in range(N))
    assert compressive(MeanPooling, Window(12)).forward_flops == remembered(tokens, older + recent)


def test_a_compression_that_learns_costs_its_products_and_its_reconstruction():
    """What the queries read, projected, from N states that leave and from the N / RATE that they become."""
    read = N + N // RATE
    made = 2 * N * M * M + 2 * read * 2 * M * (M // 2) + 2 * (2 * N * M * M)
    plain = compressive(MeanPooling).forward_flops
    learned = compressive(Convolution).forward_flops
    assert learned - plain == L * B * (made + N * read * 4 * M)


def test_a_memory_is_hidden_from_the_second_document_of_a_row():
    config = DecoderConfig(stack=dataclasses.replace(STACK, memory=Recurrent(length=RECENT)))
    one = batch()
    slots = dataclasses.replace(one.target.slots, segment=np.repeat([[1] * 6 + [2] * 4], B, 0))
    two = dataclasses.replace(one, target=dataclasses.replace(one.target, slots=slots))
    assert count(config, two).forward_flops == remembered(N + RECENT, 6 * 7 // 2 + 6 * RECENT + 4 * 5 // 2)


def test_a_memory_has_no_sinks_of_the_beginning_of_its_stream():
    config = DecoderConfig(
        stack=dataclasses.replace(STACK, memory=Recurrent(length=RECENT)),
        mask=Causal() & (Sinks(2) | Window(3)),
    )
    assert count(config, batch()).forward_flops == remembered(N + RECENT, N * 3)


def test_the_slots_of_a_full_memory_are_those_that_a_stream_leaves():
    memory = Recurrent(length=RECENT, compression=MeanPooling(length=OLD, rate=RATE))
    model = DecoderConfig(stack=dataclasses.replace(STACK, memory=memory)).build(
        vocab=V, key=jax.random.key(0)
    )
    carry, steps = None, 3
    for step in range(steps):
        here = Slots.arange(N, (B,), start=step * N)
        carry = model.apply(dataclasses.replace(batch(), target=Tokens(line().ids, here)), carry=carry).carry
    recent, older = memory.full(Slots.arange(N, (B,), start=steps * N))
    found = carry.slots, jax.tree.map(lambda leaf: leaf[0], carry.layers[0][1][1])
    for ours, theirs in zip(jax.tree.leaves((recent, older)), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_batches_are_averaged():
    config = DecoderConfig(stack=STACK, mask=Prefix())
    both = count(config, batch(0), batch(8)).forward_flops
    assert both == (count(config, batch(0)).forward_flops + count(config, batch(8)).forward_flops) / 2

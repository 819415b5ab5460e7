"""From tokens to vectors and from states to scores: every option of `EmbeddingConfig` against its formula."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.attention.masks import Slots
from research.attention.memory import Whole
from research.batch import Batch, Tokens
from research.generation import engine
from research.generation.engine import Generation, Greedy, Sample, prompt
from research.generation.noise import noisy
from research.models.config import EmbeddingConfig, StackConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from research.models.paths import path_of
from research.training import optimizers
from research.training.step import Trainer

VOCAB, WIDTH, ROWS, LENGTH = 30, 16, 2, 15
STACK = StackConfig(layers=1, width=WIDTH, heads=4, hidden=24)
ADAPTIVE = {
    "one width": EmbeddingConfig(cutoffs=(6, 14)),
    "narrower": EmbeddingConfig(cutoffs=(6, 14), shrink=2),
    "own projection": EmbeddingConfig(cutoffs=(6, 14), shrink=4, head_projection=True, types=2),
}
SLOW = pytest.mark.slow
adaptive = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW if name == "narrower" else ()) for name in ADAPTIVE]
)
generate = jax.jit(engine.generate, static_argnums=3)


def build(embedding, *, vocab=VOCAB, tied=True, family=DecoderConfig, **changes):
    """A model whose biases and norms are no zeros and ones."""
    config = family(stack=STACK, tied_embeddings=tied, embedding=embedding, **changes)
    model = config.build(vocab=vocab, key=jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape)), model)


def batch(types=None):
    """Every id once."""
    ids = np.random.default_rng(0).permutation(VOCAB).reshape(ROWS, LENGTH).astype(np.int32)
    labels = np.roll(ids, 1)
    return Batch(Tokens(ids, Slots.arange(LENGTH, (ROWS,)), types), labels, np.ones(ids.shape, np.float32))


@jax.jit
def scores(model, one):
    return model(one)


@jax.jit
def states(model, one):
    return model.apply(one).hidden


def hidden(model, one=None):
    return np.asarray(states(model, one or batch()), np.float64)


def table(model):
    return np.asarray(model.embedding.table[...], np.float64)


def rms(x, scale, epsilon=1e-6):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + epsilon) * np.asarray(scale)


# The adaptive softmax.


@adaptive
def test_log_probabilities_sum_to_one(name):
    logits = scores(build(ADAPTIVE[name]), batch())
    assert logits.shape == (ROWS, LENGTH, VOCAB)
    np.testing.assert_allclose(jnp.exp(logits).sum(-1), 1, rtol=1e-5)


def test_a_cluster_of_one_token_is_the_plain_softmax_with_a_row_of_its_own():
    model = build(EmbeddingConfig(cutoffs=(VOCAB - 1,)))
    own = model.embedding
    rows = np.concatenate([own.tables[0][...], own.clusters[...].T])
    bias = np.concatenate([own.token_biases[0][...], own.cluster_bias[...]])
    expected = jax.nn.log_softmax(hidden(model) @ rows.T + bias)
    np.testing.assert_allclose(scores(model, batch()), expected, atol=1e-5)


def test_a_cluster_as_likely_as_its_tokens_is_no_cluster():
    """Where a cluster scores the logarithm of the sum that its tokens have, grouping them changes nothing."""
    model = build(EmbeddingConfig(cutoffs=(10,)))
    own, state = model.embedding, hidden(model)[:1, :1]
    each = np.concatenate(
        [state @ part[...].T + bias[...] for part, bias in zip(own.tables, own.token_biases, strict=True)], -1
    )
    own.clusters[...] = jnp.zeros_like(own.clusters[...])
    own.cluster_bias[...] = jnp.log(jnp.exp(each[0, 0, 10:]).sum())[None]
    np.testing.assert_allclose(model.logits(jnp.float32(state)), jax.nn.log_softmax(each), atol=1e-5)


def test_each_cluster_has_its_vectors_and_widths():
    model = build(ADAPTIVE["narrower"])
    assert [part.shape for part in model.embedding.tables] == [(6, 16), (8, 8), (16, 4)]
    ids = np.array([[0, 5, 6, 13, 14, 29]], np.int32)
    got = model.embedding(Tokens(ids, Slots.arange(6, (1,))))
    for token, vector in zip(ids[0], got[0], strict=True):
        cluster = 0 if token < 6 else 1 if token < 14 else 2
        row = model.embedding.tables[cluster][...][token - (0, 6, 14)[cluster]]
        expected = row @ model.embedding.projections[cluster][...] * WIDTH**0.5
        np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-6)


@adaptive
def test_gradients_reach_every_parameter_and_a_step_changes_it(name):
    config = DecoderConfig(stack=STACK, embedding=ADAPTIVE[name])
    trainer = Trainer(
        config,
        vocab=VOCAB,
        steps=10,
        optimizer=optimizers.AdamW(learning_rate=1e-2, schedule=optimizers.Constant()),
    )
    types = np.arange(ROWS * LENGTH, dtype=np.int32).reshape(ROWS, LENGTH) % 2
    one = batch(types if config.embedding.types else None)
    gradient = jax.jit(jax.grad(lambda params: trainer.loss(params, one)[0]))(
        trainer.initial(jax.random.key(0)).params
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all()
        assert (np.abs(leaf).reshape(leaf.shape[0], -1).max(-1) > 0).all(), path_of(path)
    state = trainer.initial(jax.random.key(0))
    before = jax.device_get(state.params)
    losses = []
    for _ in range(4):
        state, metrics = trainer.step(state, one)
        losses.append(float(metrics["loss"]))
    assert losses == sorted(losses, reverse=True)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True):
        assert (old != np.asarray(new)).any()


def test_token_vectors_and_projections_decay_and_biases_do_not():
    own = nnx.to_pure_dict(nnx.state(build(ADAPTIVE["own projection"]).embedding))
    paths = {f"embedding/{path_of(path)}" for path, _ in jax.tree_util.tree_leaves_with_path(own)}
    spared = {path for path in paths if not re.search(optimizers.DECAYED, path)}
    biases = {f"embedding/token_biases/{i}" for i in range(3)}
    assert spared == {"embedding/cluster_bias", "embedding/types", *biases}


# Plain tables.


def test_scores_are_scaled_biased_and_capped():
    model = build(EmbeddingConfig(logit_scale=1.5, bias=True, softcap=2.0, scale=1.0))
    plain = hidden(model) @ table(model).T * 1.5 + np.asarray(model.finish.bias[...])
    np.testing.assert_allclose(scores(model, batch()), 2 * np.tanh(plain / 2), atol=1e-5)
    assert np.abs(plain).max() > 2


def test_the_transform_is_a_dense_layer_the_activation_and_a_norm():
    model = build(EmbeddingConfig(transform=True), tied=False)
    dense, norm = model.finish.transform.dense, model.finish.transform.norm
    x = hidden(model) @ np.asarray(dense.kernel[...]) + np.asarray(dense.bias[...])
    x = rms(x / (1 + np.exp(-x)), norm.scale[...])
    np.testing.assert_allclose(scores(model, batch()), x @ np.asarray(model.head.kernel[...]), atol=1e-5)


@pytest.mark.parametrize(("scale", "factor"), [(None, 4.0), (1.0, 1.0), (0.5, 0.5)])
def test_vectors_are_scaled_at_the_input(scale, factor):
    model = build(EmbeddingConfig(scale=scale))
    np.testing.assert_allclose(
        model.embedding(batch().target), table(model)[batch().target.ids] * factor, rtol=1e-6
    )


def test_kinds_of_tokens_add_a_vector_each():
    model, types = (
        build(EmbeddingConfig(types=3)),
        np.arange(ROWS * LENGTH, dtype=np.int32).reshape(ROWS, LENGTH) % 3,
    )
    plain = table(model)[batch().target.ids] * WIDTH**0.5
    kinds = np.asarray(model.embedding.types[...])
    np.testing.assert_allclose(
        model.embedding(batch(types).target), plain + kinds[types], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(model.embedding(batch().target), plain + kinds[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "embedding", [EmbeddingConfig(), EmbeddingConfig(cutoffs=(9,))], ids=["plain", "adaptive"]
)
def test_types_for_a_model_that_tells_none_apart_are_refused(embedding):
    with pytest.raises(ValueError, match=r"set EmbeddingConfig\.types"):
        build(embedding)(batch(np.zeros((ROWS, LENGTH), np.int32)))


# Rows of the table behind the tokenizer's ids.

PADDED = {
    "tied": {"embedding": EmbeddingConfig(rows=400, bias=True)},
    "untied": {"embedding": EmbeddingConfig(rows=400), "tied": False},
    "adaptive": {"embedding": EmbeddingConfig(rows=400, cutoffs=(9,))},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "tied" else SLOW) for name in PADDED]
)
def test_rows_of_no_token_have_no_score_and_are_never_generated(name):
    model, whole = build(**PADDED[name]), build(**PADDED[name], vocab=400)
    found, expected = (scores(one, batch()) for one in (model, whole))
    assert (found.shape[-1], expected.shape[-1]) == (VOCAB, 400)
    np.testing.assert_allclose(found, expected[..., :VOCAB], atol=1e-6)
    keys = jax.random.split(jax.random.key(1), 8)
    config = Generation(tokens=20, choice=Sample())
    given = prompt([[1]] * 8, pad=0)
    ids, wild = (generate(one, given, keys, config).history.ids for one in (model, whole))
    assert int(ids.max()) < VOCAB <= int(wild.max())


def test_an_encoder_decoder_has_the_same_outputs():
    embedding = EmbeddingConfig(rows=40, types=2, bias=True, logit_scale=0.5, softcap=3.0)
    config = EncoderDecoderConfig(encoder=STACK, decoder=STACK, embedding=embedding)
    model = config.build(vocab=VOCAB, key=jax.random.key(0))
    one = dataclasses.replace(batch(), source=batch().target)
    plain = hidden(model, one) @ table(model)[:VOCAB].T * 0.5
    np.testing.assert_allclose(scores(model, one), 3 * np.tanh(plain / 3), atol=1e-5)
    assert model.finish.bias.shape == (40,)


# Reading token by token.

EVERYTHING = EmbeddingConfig(
    rows=33, scale=2.0, types=2, transform=True, bias=True, logit_scale=0.5, softcap=5.0
)


@pytest.mark.parametrize(
    "embedding",
    [
        ADAPTIVE["own projection"],
        EVERYTHING,
        *(pytest.param(ADAPTIVE[name], marks=SLOW) for name in ("one width", "narrower")),
    ],
    ids=["own projection", "everything", "one width", "narrower"],
)
def test_reading_in_pieces_and_generating_is_reading_at_once(embedding):
    model = build(embedding)
    types = np.arange(ROWS * LENGTH, dtype=np.int32).reshape(ROWS, LENGTH) % 2 if embedding.types else None
    one = batch(types)

    def part(start, stop):
        ids = one.target.ids[:, start:stop]
        slots = dataclasses.replace(Slots.arange(stop - start, (ROWS,), start), start=0)
        return Tokens(ids, slots, None if types is None else types[:, start:stop])

    @jax.jit
    def pieces(model):
        out, cache = model.prefill(part(0, 9), cache=Whole(capacity=LENGTH))
        return jnp.concatenate([out, model.extend(cache, part(9, LENGTH))[0]], 1)

    np.testing.assert_allclose(pieces(model), scores(model, one), atol=5e-5)

    line = [3, 17, 8]
    config, keys = Generation(tokens=4, choice=Greedy()), jax.random.split(jax.random.key(0), 1)
    found = generate(model, prompt([line], pad=0), keys, config)
    for _ in range(4):
        padded = prompt([line], pad=0, length=LENGTH, given=False)
        read = Batch(padded, padded.ids, np.ones(padded.ids.shape, np.float32))
        line.append(int(scores(model, read)[0, len(line) - 1].argmax()))
    assert found.history.ids[0].tolist() == line


def test_noise_on_adaptive_vectors():
    model, keys = build(ADAPTIVE["narrower"]), jax.random.split(jax.random.key(0), ROWS)
    plain = model.embedding(batch().target)
    off = noisy(model, keys, 0.1).embedding(batch().target) - plain
    size = float(jnp.sqrt(jnp.square(off).mean() / jnp.square(plain).mean()))
    assert 0.08 < size < 0.12


# Classes.


def test_classes_are_told_from_pooled_states():
    """What makes scores of tokens has no part in it."""
    embedding = EmbeddingConfig(transform=True, bias=True, softcap=1.0)
    model = build(embedding, family=EncoderConfig, classes=3, pooler=True)
    dense = model.pooler.dense
    pooled = np.tanh(hidden(model) @ np.asarray(dense.kernel[...]) + np.asarray(dense.bias[...]))
    np.testing.assert_allclose(scores(model, batch()), pooled @ np.asarray(model.head.kernel[...]), atol=1e-5)
    np.testing.assert_allclose(model.pooled(model.apply(batch()).hidden), pooled[:, 0], atol=1e-5)


def test_a_pooler_has_no_part_in_scores_of_tokens():
    model = build(EmbeddingConfig(), family=EncoderConfig, pooler=True)
    np.testing.assert_allclose(scores(model, batch()), hidden(model) @ table(model).T, atol=1e-5)
    with pytest.raises(ValueError, match=r"set EncoderConfig\.pooler = True"):
        build(EmbeddingConfig(), family=EncoderConfig).pooled(jnp.zeros((1, 1, WIDTH)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cutoffs": (5, 5)}, r"EmbeddingConfig\.cutoffs = \(5, 5\)"),
        ({"cutoffs": (0,)}, r"the first at least 1"),
        ({"shrink": 2}, r"EmbeddingConfig\.shrink = 2 says nothing without"),
        ({"cutoffs": (5,), "head_projection": True}, r"EmbeddingConfig\.head_projection = True"),
        ({"types": -1}, r"EmbeddingConfig\.types = -1"),
        ({"rows": 29}, r"EmbeddingConfig\.rows = 29: the tokenizer has 30 ids"),
        ({"cutoffs": (30,)}, r"expected less than the 30 rows"),
        ({"cutoffs": (5, 9), "shrink": 20}, r"would have no feature left"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_in_one_line(wrong, said):
    with pytest.raises(ValueError, match=said) as caught:
        build(EmbeddingConfig(**wrong))
    assert "\n" not in str(caught.value)


def test_an_adaptive_softmax_is_for_tied_decoders():
    embedding = EmbeddingConfig(cutoffs=(5,))
    with pytest.raises(ValueError, match=r"DecoderConfig\.tied_embeddings = False"):
        DecoderConfig(embedding=embedding, tied_embeddings=False)
    with pytest.raises(ValueError, match="is for decoders"):
        EncoderDecoderConfig(embedding=embedding)

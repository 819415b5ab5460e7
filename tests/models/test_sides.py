"""The token tables of the two sides of an encoder-decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.attention.masks import Slots
from research.attention.memory import Whole
from research.batch import Batch, Tokens
from research.generation.noise import noisy
from research.models.config import EmbeddingConfig, StackConfig
from research.models.families import EncoderDecoderConfig

STACK = StackConfig(layers=2, width=16, heads=2, hidden=24)
SHARED = EncoderDecoderConfig(encoder=STACK, decoder=STACK, embedding=EmbeddingConfig(types=2))
APART = dataclasses.replace(SHARED, shared_embeddings=False)


def build(config):
    return config.build(vocab=11, key=jax.random.key(0))


def batch(length=5):
    ids = np.random.default_rng(0).integers(0, 11, (2, 2, length), dtype=np.int32)
    source, target = (Tokens(line, Slots.arange(length, (2,))) for line in ids)
    return Batch(target, labels=target.ids, weights=jnp.ones(target.ids.shape), source=source)


def size(model):
    return sum(leaf.size for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize("tied", [False, True])
def test_equal_tables_are_a_shared_one(tied):
    shared, apart = (build(dataclasses.replace(config, tied=tied)) for config in (SHARED, APART))
    assert size(apart) - size(shared) == (11 + 2) * 16
    assert not np.allclose(apart(batch()), shared(batch()))
    apart.source_embedding = shared.embedding
    np.testing.assert_array_equal(apart(batch()), shared(batch()))


def test_each_side_reads_its_own():
    given = batch()
    graph, params = nnx.split(build(dataclasses.replace(APART, tied_embeddings=False)))
    gradient = jax.grad(lambda params: jnp.square(nnx.merge(graph, params)(given)).sum())(params)
    for name, tokens in (("source_embedding", given.source), ("embedding", given.target)):
        read = np.abs(gradient[name].table[...]).max(-1) > 0
        assert np.flatnonzero(read).tolist() == np.unique(tokens.ids).tolist()


def test_a_source_is_read_by_its_table_when_text_is_written():
    model, given = build(APART), batch()
    logits, _ = model.prefill(given.target, given.source, cache=Whole(capacity=5))
    np.testing.assert_allclose(logits, model(given), atol=1e-5)


def test_noise_is_on_both_sides():
    model, given, keys = build(APART), batch(), jax.random.split(jax.random.key(1), 2)
    changed = noisy(model, keys, 0.5)
    for name, tokens in (("source_embedding", given.source), ("embedding", given.target)):
        plain, off = getattr(model, name)(tokens), getattr(changed, name)(tokens)
        assert 0.3 < np.sqrt(np.mean(np.square(off - plain)) / np.mean(np.square(plain))) < 0.7
    assert not hasattr(noisy(build(SHARED), keys, 0.5).source_embedding, "plain")

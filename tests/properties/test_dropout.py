"""What a row drops depends on its own key, so microbatches, shards and the whole batch train alike."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.masks import Prefix, Slots
from research.batch import Batch, Tokens
from research.models.config import StackConfig
from research.models.families import DecoderConfig, EncoderDecoderConfig
from research.models.layers import disturbed, dropped, row_keys

VOCAB, ROWS, N = 19, 4, 12
STACK = StackConfig(
    layers=2, width=16, heads=4, kv_heads=2, hidden=24, dropout=0.4, attention_dropout=0.4, backend="dense"
)
KEY = jax.random.key(0)


def batch(family):
    rng = np.random.default_rng(0)

    def tokens(n):
        slots = Slots.arange(n, (ROWS,))
        slots = dataclasses.replace(slots, prefix=slots.position < np.arange(ROWS)[:, None])
        return Tokens(rng.integers(0, VOCAB, (ROWS, n)), slots)

    target = tokens(N)
    source = tokens(N - 3) if family == "encoder-decoder" else None
    return Batch(target, target.ids, np.ones((ROWS, N), np.float32), source)


def build(family, **changes):
    stack = dataclasses.replace(STACK, **changes)
    if family == "encoder-decoder":
        config = EncoderDecoderConfig(encoder=stack, decoder=stack)
    else:
        config = DecoderConfig(stack=stack, mask=Prefix())
    return config.build(vocab=VOCAB, key=KEY)


@jax.jit
def hidden(model, batch, key):
    return model.apply(batch, key=key).hidden


@pytest.mark.parametrize(
    ("family", "rates"),
    [
        pytest.param("decoder", {}, id="decoder"),
        pytest.param("encoder-decoder", {}, id="encoder-decoder"),
        pytest.param("decoder", {"dropout": 0.0}, id="attention alone", marks=pytest.mark.slow),
        pytest.param(
            "encoder-decoder", {"attention_dropout": 0.0}, id="layers alone", marks=pytest.mark.slow
        ),
    ],
)
def test_a_row_drops_the_same_whatever_other_rows_share_its_batch(family, rates):
    model, whole, keys = build(family, **rates), batch(family), row_keys(KEY, ROWS)
    together = hidden(model, whole, keys)
    for half in (slice(0, 2), slice(2, 4)):
        alone = hidden(model, jax.tree.map(lambda leaf: leaf[half], whole), keys[half])  # noqa: B023
        np.testing.assert_allclose(alone, together[half], atol=1e-5)
    moved = hidden(model, whole, keys[::-1])
    assert (np.abs(np.asarray(moved - together)).max((1, 2)) > 1e-2).all()


def test_input_noise_is_uniform_of_its_size_and_training_s_alone():
    alpha, n, m = 4.0, 12, 16
    x = jnp.zeros((200, n, m))
    noise = np.asarray(disturbed(x, alpha, row_keys(KEY, 200)))
    size = alpha / np.sqrt(n * m)
    assert np.abs(noise).max() <= size
    np.testing.assert_allclose(noise.var(), size**2 / 3, rtol=0.02)
    np.testing.assert_allclose(noise.mean(), 0, atol=0.005 * size)
    np.testing.assert_array_equal(noise[:2], disturbed(x[:2], alpha, row_keys(KEY, 2)))
    one = batch("decoder")
    plain, noisy = (
        build("decoder", dropout=0.0, attention_dropout=0.0, input_noise=each) for each in (0.0, alpha)
    )
    np.testing.assert_array_equal(noisy.apply(one).hidden, plain.apply(one).hidden)
    assert np.abs(hidden(noisy, one, KEY) - hidden(plain, one, KEY)).max() > 1e-2
    with pytest.raises(ValueError, match="StackConfig.input_noise = -1"):
        dataclasses.replace(STACK, input_noise=-1.0)


def test_the_key_of_a_row_does_not_depend_on_how_many_rows_there_are():
    few, many = (jax.random.key_data(row_keys(KEY, rows)) for rows in (2, 4))
    assert (few == many[:2]).all()
    assert len(np.unique(many, axis=0)) == 4


@pytest.mark.parametrize("family", ["decoder", pytest.param("encoder-decoder", marks=pytest.mark.slow)])
def test_every_backend_drops_the_same(family):
    dense, blockwise = (
        hidden(build(family, backend=name), batch(family), KEY) for name in ("dense", "blockwise")
    )
    np.testing.assert_allclose(dense, blockwise, atol=1e-4)


def test_rows_tokens_and_features_drop_independently():
    x = np.asarray(dropped(jnp.ones((400, 8, 16)), 0.3, row_keys(KEY, 400)))
    np.testing.assert_allclose(np.unique(x), [0, 1 / 0.7], rtol=1e-6)
    assert abs((x > 0).mean() - 0.7) < 0.01  # 51,200 draws: 5 standard deviations
    for axis in range(3):
        one, next_one = (np.delete(x, place, axis).reshape(-1) for place in (0, -1))
        assert abs(np.corrcoef(one, next_one)[0, 1]) < 0.025


def test_keys_that_are_not_one_for_each_row_are_refused_in_one_line():
    with pytest.raises(ValueError, match="expected one key or") as error:
        build("decoder", dropout=0.5).apply(batch("decoder"), key=row_keys(KEY, 3))
    assert "\n" not in str(error.value)

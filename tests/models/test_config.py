"""Every option of a stack builds, learns and is refused where it makes no sense."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.masks import Slots
from research.batch import Batch, Tokens
from research.models.config import StackConfig
from research.models.families import DecoderConfig

STACK = StackConfig(layers=2, width=16, heads=4)
OPTIONS = [
    {"activation": "gelu"},
    {"activation": "relu", "use_bias": True},
    {"activation": "geglu", "norm": "layer"},
    {"placement": "post", "norm": "layer"},
    {"kv_heads": 1, "head_dim": 6},
    {"softcap": 5.0, "sinks": True},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "remat": "full", "sinks": True},
    {"remat": "dots", "unroll": 2},
]


def batch():
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    return Batch(Tokens(ids, Slots.arange(6, (2,))), ids, np.ones((2, 6), np.float32))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_computes_and_every_parameter_has_a_gradient(options, tied):
    config = DecoderConfig(stack=dataclasses.replace(STACK, **options), tied_embeddings=tied)
    model = config.build(vocab=20, key=jax.random.key(0))
    loss, gradient = jax.jit(jax.value_and_grad(lambda model: jnp.square(model(batch())).mean()))(model)
    assert np.isfinite(float(loss))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert leaf.dtype == jnp.float32  # parameters and gradients, whatever the computation's dtype
        assert np.isfinite(np.asarray(leaf)).all()
        assert np.abs(np.asarray(leaf)).max() > 0, jax.tree_util.keystr(path)
    assert model.apply(batch()).hidden.dtype == jnp.dtype(config.stack.dtype)
    assert model(batch()).dtype == jnp.float32


def test_bfloat16_is_near_float32():
    both = [
        DecoderConfig(stack=dataclasses.replace(STACK, dtype=dtype)).build(vocab=20, key=jax.random.key(0))
        for dtype in ("float32", "bfloat16")
    ]
    wide, narrow = (np.asarray(model(batch())) for model in both)
    assert 0 < np.abs(wide - narrow).max() < 0.1


def test_a_gated_mlp_costs_what_a_plain_one_costs():
    def parameters(activation):
        config = DecoderConfig(stack=StackConfig(layers=1, width=96, heads=4, activation=activation))
        model = jax.eval_shape(lambda: config.build(vocab=20, key=jax.random.key(0)))
        return sum(leaf.size for leaf in jax.tree.leaves(model))

    assert parameters("swiglu") == parameters("gelu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 18}, "not a multiple of StackConfig.heads"),
        ({"kv_heads": 3}, "not a multiple of StackConfig.kv_heads"),
        ({"dropout": 1.0}, "expected 0 <= rate < 1"),
        ({"layers": 0}, "expected at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(change, said):
    with pytest.raises(ValueError, match=said) as caught:
        dataclasses.replace(STACK, **change)
    assert "\n" not in str(caught.value)

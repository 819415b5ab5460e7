"""Named models without a class in transformers are what the config.json of their release describes."""

import dataclasses

import pytest

from experiments import models
from research.interop import annalog
from research.interop.architecture import Settings, normal
from research.interop.hub import ARCHITECTURES

RELEASED = {
    "chatglm_6b": (
        "chatglm",
        {
            "num_layers": 28,
            "hidden_size": 4096,
            "inner_hidden_size": 16384,
            "num_attention_heads": 32,
            "layernorm_epsilon": 1e-5,
            "position_encoding_2d": True,
            "vocab_size": 130528,
        },
    ),
    "chatglm2_6b": (
        "chatglm2",
        {
            "num_layers": 28,
            "hidden_size": 4096,
            "ffn_hidden_size": 13696,
            "num_attention_heads": 32,
            "kv_channels": 128,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "add_qkv_bias": True,
            "add_bias_linear": False,
            "rmsnorm": True,
            "layernorm_epsilon": 1e-5,
            "padded_vocab_size": 65024,
        },
    ),
    "glm_10b": (
        "glm-infilling",
        {
            "num_layers": 48,
            "hidden_size": 4096,
            "num_attention_heads": 64,
            "max_sequence_length": 1024,
            "block_position_encoding": True,
            "vocab_size": 50304,
        },
    ),
    # The released Transformer-XL as it was trained, not as it is measured: with a shorter memory that is seen whole.
    "transformer_xl_wt103_large": (
        "transfo-xl",
        {"mem_len": 384, "same_length": False, "clamp_len": -1},
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_config_describes_the_named_model(name):
    architecture, values = RELEASED[name]
    described = ARCHITECTURES[architecture].model(Settings(values, "config.json"))
    assert normal(described) == normal(models.named(name).model)


def test_annalog_is_what_its_weights_need_but_for_the_vocabulary():
    described = annalog.model(Settings({"vocab_size": 59}, "its vocabulary"))
    named = models.named("annalog").model
    embedding = dataclasses.replace(named.embedding, rows=59)
    assert normal(described) == normal(dataclasses.replace(named, embedding=embedding))

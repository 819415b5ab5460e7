"""The named models of configs/models are those that interop reads of the settings that were released with them."""

import pytest

from experiments import models
from research.interop.architecture import Settings, differences, normal
from research.interop.chatglm import CHATGLM, CHATGLM2
from research.interop.glm import GLM
from research.interop.transformer_xl import TRANSFORMER_XL

RELEASED = {  # of the config.json files; of Transformer-XL the options of the scripts
    "chatglm_6b": (
        CHATGLM,
        {
            "hidden_size": 4096,
            "inner_hidden_size": 16384,
            "layernorm_epsilon": 1e-05,
            "num_attention_heads": 32,
            "num_layers": 28,
            "position_encoding_2d": True,
            "vocab_size": 130528,
        },
    ),
    "chatglm2_6b": (
        CHATGLM2,
        {
            "add_bias_linear": False,
            "add_qkv_bias": True,
            "ffn_hidden_size": 13696,
            "hidden_size": 4096,
            "kv_channels": 128,
            "layernorm_epsilon": 1e-05,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "num_attention_heads": 32,
            "num_layers": 28,
            "padded_vocab_size": 65024,
        },
    ),
    "glm_10b": (
        GLM,
        {
            "block_position_encoding": True,
            "hidden_size": 4096,
            "max_sequence_length": 1024,
            "num_attention_heads": 64,
            "num_layers": 48,
            "vocab_size": 50304,
        },
    ),
    "transformer_xl_wt103_base": (
        TRANSFORMER_XL,
        {
            "clamp_len": -1,
            "d_embed": 410,
            "d_head": 41,
            "d_inner": 2100,
            "d_model": 410,
            "div_val": 1,
            "mem_len": 150,
            "n_head": 10,
            "n_layer": 16,
            "same_length": False,
            "untie_r": False,
        },
    ),
    "transformer_xl_wt103_large": (TRANSFORMER_XL, {"clamp_len": -1, "mem_len": 384, "same_length": False}),
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_named_model_is_what_is_read_of_its_released_settings(name):
    architecture, values = RELEASED[name]
    read = architecture.model(Settings(values, name))
    assert list(differences(normal(models.named(name).model), normal(read))) == []

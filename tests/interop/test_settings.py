"""Settings of the wrong type are refused in one line, by every architecture and whichever of them it reads."""

import pytest

from research.interop import hub
from research.interop.architecture import ConfigError, Settings

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 23}
WIDTHS = {"hidden_size": 32, "intermediate_size": 48}
RATES = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
LLAMA = (
    SIZES | WIDTHS | {"num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5, "attention_dropout": 0.1}
)
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
GIVEN = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 16, "vocab_size": 23}
    | {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "layer_norm_epsilon": 1e-5}
    | {"tie_word_embeddings": False, "is_causal": True},
    "llama": LLAMA
    | {"attention_bias": True, "mlp_bias": False, "tie_word_embeddings": True, "rope_theta": 500.0}
    | {"rope_scaling": YARN, "is_causal": True},
    "mistral": LLAMA | {"sliding_window": 4},
    "glm": LLAMA | {"attention_bias": False, "partial_rotary_factor": 0.5},
    "bert": SIZES
    | WIDTHS
    | RATES
    | {"architectures": ["BertForMaskedLM"], "max_position_embeddings": 16, "type_vocab_size": 2}
    | {"layer_norm_eps": 1e-12, "tie_word_embeddings": True},
    "t5": {"d_model": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 8, "d_ff": 48}
    | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "vocab_size": 23}
    | {"dropout_rate": 0.1, "layer_norm_epsilon": 1e-6, "tie_word_embeddings": True, "is_causal": True},
    "glm-infilling": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 23}
    | {"max_sequence_length": 16, "output_dropout_prob": 0.1, "embedding_dropout_prob": 0.1}
    | {"attention_dropout_prob": 0.1, "layernorm_epsilon": 1e-5, "block_position_encoding": True},
    "chatglm": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "inner_hidden_size": 48}
    | {"vocab_size": 23, "layernorm_epsilon": 1e-5, "tie_word_embeddings": True},
    "chatglm2": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "multi_query_group_num": 2}
    | {"kv_channels": 8, "ffn_hidden_size": 48, "padded_vocab_size": 23, "layernorm_epsilon": 1e-5}
    | {"add_qkv_bias": True, "add_bias_linear": False, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "transfo-xl": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_head": 8, "d_inner": 48}
    | {
        "d_embed": 32,
        "vocab_size": 23,
        "cutoffs": [5, 9],
        "div_val": 2,
        "mem_len": 8,
        "clamp_len": 8,
        "dropout": 0.1,
    }
    | {"dropatt": 0.0, "layer_norm_epsilon": 1e-5, "same_length": True, "untie_r": True},
}
CASES = [(name, setting) for name, values in GIVEN.items() for setting in values if setting != "d_embed"]


def test_every_architecture_is_tested():
    assert GIVEN.keys() == hub.ARCHITECTURES.keys()


def wrong(value):
    """Values of other types, and of the same type that no size, rate or flag can be."""
    if isinstance(value, bool):
        return ["true", [value]]
    if isinstance(value, int):
        return [str(value), float(value), [value], -2, True, float("nan")]
    if isinstance(value, float):
        return [str(value), [value], -value - 1, True, float("inf"), float("nan")]
    if isinstance(value, list):
        return [str(value), 3, [2.5], [[]]]
    return ["yarn", [1], 3]  # of an object


@pytest.mark.parametrize(("name", "setting"), CASES, ids=[f"{name} {setting}" for name, setting in CASES])
def test_another_type_of_a_setting_is_one_line(name, setting):
    read, values = hub.ARCHITECTURES[name].model, GIVEN[name]
    read(Settings(values, "config.json"))
    for other in wrong(values[setting]):
        with pytest.raises(ConfigError) as raised:
            read(Settings(values | {setting: other}, "config.json"))
        (line,) = str(raised.value).split("\n")
        assert line.startswith("config.json: "), line
        assert f"{setting} is {other!r}, expected" in line


@pytest.mark.parametrize(
    ("reader", "good", "bad"),
    [
        ("count", [1, 7], [0, -1, 1.0, True, "1", [1]]),
        ("counts", [[], [1, 2]], [(1,), [0], [1.0], [True], 1, "1"]),
        ("number", [1, 0.5, 1e-12], [0, -0.5, float("inf"), float("nan"), True, "1e-5"]),
        ("rate", [0, 0.0, 0.5], [1, -0.1, float("nan"), False, "0"]),
        ("flag", [True, False], [0, 1, "true", []]),
    ],
)
def test_what_a_reader_takes(reader, good, bad):
    for value in good:
        assert getattr(Settings({"x": value}, "here"), reader)("x") is value
    for value in bad:
        with pytest.raises(ConfigError, match=r"^here: x is .+, expected "):
            getattr(Settings({"x": value}, "here"), reader)("x")
    for absent in ({}, {"x": None}):
        assert getattr(Settings(absent, "here"), reader)("x", None) is None
        with pytest.raises(ConfigError, match=r"^here: x is missing"):
            getattr(Settings(absent, "here"), reader)("x")

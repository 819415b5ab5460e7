"""ChatGLM-6B and ChatGLM2-6B against references in NumPy, and what of a config.json is refused."""

import jax
import numpy as np
import pytest
from flax import nnx
from references import Weights, attention, batch, corrupted, gelu, random, saved, visible_prefix

from research.attention.masks import Slots
from research.attention.memory import Whole
from research.batch import Tokens
from research.interop import hub
from research.interop.architecture import ConfigError, Settings
from research.interop.chatglm import CHATGLM, CHATGLM2
from research.interop.weights import WeightsError

WIDTH, HEADS, LAYERS, HIDDEN, VOCAB = 24, 3, 3, 40, 31
CONFIG = {
    "model_type": "chatglm",
    "hidden_size": WIDTH,
    "inner_hidden_size": HIDDEN,
    "layernorm_epsilon": 1e-5,
    "num_attention_heads": HEADS,
    "num_layers": LAYERS,
    "position_encoding_2d": True,
    "vocab_size": VOCAB,
}
LINES = [(9, [(6, 2), (3, 4)]), (6, [(5, 5)])]  # two spans in reversed order, and one behind its text


def shapes(config=CONFIG):
    width, hidden = config["hidden_size"], config["inner_hidden_size"]
    linear = {
        "attention.query_key_value": (3 * width, width),
        "attention.dense": (width, width),
        "mlp.dense_h_to_4h": (hidden, width),
        "mlp.dense_4h_to_h": (width, hidden),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    tables = ("transformer.word_embeddings.weight", "lm_head.weight")
    found = dict.fromkeys(tables, (config["vocab_size"], width))
    for i in range(config["num_layers"]):
        for name, shape in linear.items():
            found[f"transformer.layers.{i}.{name}.weight"] = shape
            found[f"transformer.layers.{i}.{name}.bias"] = shape[:1]
        found[f"transformer.layers.{i}.attention.rotary_emb.inv_freq"] = (
            width // config["num_attention_heads"] // 4,
        )
    final = dict.fromkeys(
        ("transformer.final_layernorm.weight", "transformer.final_layernorm.bias"), (width,)
    )
    return found | final


def turned(x, place):
    """x [n h d] by angles place * 10000^(-2i/d), feature i with feature i + d/2 (Su et al. 2021)."""
    half = x.shape[-1] // 2
    angle = place[:, None, None] * 10_000.0 ** (-np.arange(half) / half)
    left, right = x[..., :half], x[..., half:]
    return np.concatenate(
        [left * np.cos(angle) - right * np.sin(angle), right * np.cos(angle) + left * np.sin(angle)], -1
    )


def reference(arrays, ids, coords, visible):
    """Logits of one line."""
    w = Weights(arrays)
    x, alpha = w["transformer.word_embeddings.weight"][ids], np.sqrt(2 * LAYERS)
    for i in range(LAYERS):
        layer = f"transformer.layers.{i}"
        n = w.layer_norm(f"{layer}.input_layernorm", x)
        mixed = w.linear(f"{layer}.attention.query_key_value", n).reshape(len(ids), HEADS, -1)
        q, k, v = np.split(mixed, 3, axis=-1)
        q, k = (
            np.concatenate([turned(half, coords[:, a]) for a, half in enumerate(np.split(x, 2, -1))], -1)
            for x in (q, k)
        )
        x = alpha * n + w.linear(f"{layer}.attention.dense", attention(q, k, v, visible))
        n = w.layer_norm(f"{layer}.post_attention_layernorm", x)
        inner = gelu(w.linear(f"{layer}.mlp.dense_h_to_4h", n))
        x = alpha * n + w.linear(f"{layer}.mlp.dense_4h_to_h", inner)
    return w.layer_norm("transformer.final_layernorm", x) @ w["lm_head.weight"].T


def arrays(tied):
    found = random(shapes())
    if tied:
        found["lm_head.weight"] = found["transformer.word_embeddings.weight"].copy()
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_chatglm_6b_fills_blanks_as_its_reference_does(tmp_path, tied):
    weights = arrays(tied)
    opened = hub.open_folder(saved(tmp_path, CONFIG | {"tie_word_embeddings": tied}, weights))
    assert opened.architecture is CHATGLM
    assert opened.vocab == VOCAB
    model, slots = opened.model(), corrupted(LINES)
    ids = np.random.default_rng(1).integers(0, VOCAB, slots.segment.shape)
    logits = jax.jit(lambda model, one: model(one))(model, batch(ids, slots))
    for row in range(len(LINES)):
        visible = visible_prefix(slots, row)
        n = len(visible)
        expected = reference(weights, ids[row, :n], slots.coords[row, :n], visible)
        np.testing.assert_allclose(logits[row, :n], expected, atol=2e-4)


def test_chatglm_6b_reads_an_answer_token_by_token(tmp_path):
    model, slots = (
        hub.open_folder(saved(tmp_path, CONFIG, arrays(tied=True))).model(),
        corrupted([(6, [(5, 5)])]),
    )
    ids = np.random.default_rng(1).integers(0, VOCAB, slots.segment.shape).astype(np.int32)

    def part(start, stop):
        cut = lambda leaf: leaf[:, start:stop]  # noqa: E731
        line = (cut(leaf) for leaf in (slots.position, slots.segment, slots.prefix))
        return Tokens(cut(ids), Slots(*line, coords=cut(slots.coords), start=0))

    extend = jax.jit(lambda model, cache, tokens: model.extend(cache, tokens))
    out, cache = model.prefill(part(0, 6), cache=Whole(capacity=11))
    pieces = [out]
    for i in range(6, 11):
        out, cache = extend(model, cache, part(i, i + 1))
        pieces.append(out)
    np.testing.assert_allclose(np.concatenate(pieces, 1), model(batch(ids, slots)), atol=1e-4)


GROUPS, HEAD = 2, 8
CONFIG2 = {
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "ffn_hidden_size": HIDDEN,
    "hidden_size": WIDTH,
    "kv_channels": HEAD,
    "layernorm_epsilon": 1e-5,
    "multi_query_attention": True,
    "multi_query_group_num": GROUPS,
    "num_attention_heads": 4,
    "num_layers": LAYERS,
    "original_rope": True,
    "padded_vocab_size": VOCAB,
    "post_layer_norm": True,
    "rmsnorm": True,
    "tie_word_embeddings": False,
}


def shapes2(bias):
    size = (4 + 2 * GROUPS) * HEAD
    found = {
        "transformer.embedding.word_embeddings.weight": (VOCAB, WIDTH),
        "transformer.encoder.final_layernorm.weight": (WIDTH,),
        "transformer.output_layer.weight": (VOCAB, WIDTH),
        "transformer.rotary_pos_emb.inv_freq": (HEAD // 4,),
    }
    for i in range(LAYERS):
        layer = f"transformer.encoder.layers.{i}"
        found |= {
            f"{layer}.input_layernorm.weight": (WIDTH,),
            f"{layer}.post_attention_layernorm.weight": (WIDTH,),
            f"{layer}.self_attention.query_key_value.weight": (size, WIDTH),
            f"{layer}.self_attention.query_key_value.bias": (size,),
            f"{layer}.self_attention.dense.weight": (WIDTH, 4 * HEAD),
            f"{layer}.mlp.dense_h_to_4h.weight": (2 * HIDDEN, WIDTH),
            f"{layer}.mlp.dense_4h_to_h.weight": (WIDTH, HIDDEN),
        }
        if bias:
            found |= {
                f"{layer}.self_attention.dense.bias": (WIDTH,),
                f"{layer}.mlp.dense_h_to_4h.bias": (2 * HIDDEN,),
                f"{layer}.mlp.dense_4h_to_h.bias": (WIDTH,),
            }
    return found


def half_turned(x):
    """The first half of the features of a head [n h d], neighbours in pairs; the rest stays."""
    out, turning = x.copy(), x.shape[-1] // 2
    for i in range(0, turning, 2):
        angle = np.arange(len(x))[:, None] * 10_000.0 ** (-i / turning)
        a, b = x[..., i], x[..., i + 1]
        out[..., i] = a * np.cos(angle) - b * np.sin(angle)
        out[..., i + 1] = a * np.sin(angle) + b * np.cos(angle)
    return out


def reference2(arrays, ids):
    w, n = Weights(arrays), len(ids)
    x = w["transformer.embedding.word_embeddings.weight"][ids]
    for i in range(LAYERS):
        layer = f"transformer.encoder.layers.{i}"
        normed = w.rms_norm(f"{layer}.input_layernorm", x)
        mixed = w.linear(f"{layer}.self_attention.query_key_value", normed).reshape(n, -1, HEAD)
        q, k, v = mixed[:, :4], mixed[:, 4 : 4 + GROUPS], mixed[:, 4 + GROUPS :]
        k, v = (np.repeat(part, 4 // GROUPS, axis=1) for part in (half_turned(k), v))
        read = attention(half_turned(q), k, v, np.tril(np.ones((n, n), bool)))
        x = x + w.linear(f"{layer}.self_attention.dense", read)
        gate, up = np.split(
            w.linear(f"{layer}.mlp.dense_h_to_4h", w.rms_norm(f"{layer}.post_attention_layernorm", x)), 2, -1
        )
        x = x + w.linear(f"{layer}.mlp.dense_4h_to_h", gate / (1 + np.exp(-gate)) * up)
    return w.linear("transformer.output_layer", w.rms_norm("transformer.encoder.final_layernorm", x))


@pytest.mark.parametrize("bias", [False, True])
def test_chatglm2_6b_is_its_reference_with_padding_on_the_left(tmp_path, bias):
    weights = random(shapes2(bias))
    opened = hub.open_folder(saved(tmp_path, CONFIG2 | {"add_bias_linear": bias}, weights))
    assert opened.architecture is CHATGLM2
    n, pads = 10, (0, 3)
    place = np.arange(n) - np.array(pads)[:, None]
    slots = Slots(
        np.maximum(place, 0).astype(np.int32), (place >= 0).astype(np.int32), np.zeros(place.shape, bool)
    )
    ids = np.random.default_rng(1).integers(0, VOCAB, (2, n))
    model = opened.model()
    logits = jax.jit(lambda model, one: model(one))(model, batch(ids, slots))
    for row, pad in enumerate(pads):
        np.testing.assert_allclose(logits[row, pad:], reference2(weights, ids[row, pad:]), atol=2e-4)


def test_a_head_whose_pairs_are_not_reordered_would_be_noticed():
    """The reference tells neighbours from halves, so the test above can fail."""
    x = np.random.default_rng(0).standard_normal((5, 2, 8))
    swapped = x[..., [0, 2, 1, 3, 4, 5, 6, 7]]
    assert np.abs(half_turned(swapped)[..., [0, 2, 1, 3, 4, 5, 6, 7]] - half_turned(x)).max() > 0.1


PUBLISHED = {  # settings of the released config.json files
    "chatglm-6b": (
        CHATGLM,
        {
            "hidden_size": 4096,
            "inner_hidden_size": 16384,
            "num_attention_heads": 32,
            "num_layers": 28,
            "vocab_size": 130528,
        },
        6_173_286_400,
    ),
    "chatglm2-6b": (
        CHATGLM2,
        CONFIG2
        | {
            "hidden_size": 4096,
            "ffn_hidden_size": 13696,
            "kv_channels": 128,
            "num_attention_heads": 32,
            "num_layers": 28,
            "padded_vocab_size": 65024,
        },
        6_243_584_000,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models_have_as_many_parameters_as_their_modules_report(name):
    architecture, values, count = PUBLISHED[name]
    config = architecture.model(Settings(values, name))
    rows = config.embedding.rows
    model = jax.eval_shape(lambda: config.build(vocab=rows, key=jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)))) == count


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (CONFIG, {"quantization_bit": 4}, "quantization_bit is 4, expected one of 0"),
        (CONFIG, {"pre_seq_len": 128}, "pre_seq_len is 128"),
        (CONFIG, {"vocab_size": None}, "vocab_size is missing"),
        (CONFIG2, {"rope_ratio": 50}, "rope_ratio is 50"),
        (CONFIG2, {"multi_query_attention": False}, "multi_query_attention is False, expected one of True"),
        (CONFIG2, {"rmsnorm": False}, "rmsnorm is False"),
        (CONFIG2, {"ffn_hidden_size": None}, "ffn_hidden_size is missing"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(tmp_path, config, change, said):
    with pytest.raises(ConfigError, match=said) as caught:
        hub.open_folder(saved(tmp_path, config | change, {}))
    assert "\n" not in str(caught.value)


def test_a_config_of_neither_names_what_each_is_told_by(tmp_path):
    with pytest.raises(ConfigError, match="'chatglm' with inner_hidden_size, 'chatglm' with ffn_hidden_size"):
        hub.open_folder(saved(tmp_path, {"model_type": "chatglm"}, {}))


def test_an_output_table_that_is_no_copy_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"lm_head\.weight"):
        hub.open_folder(saved(tmp_path, CONFIG, arrays(tied=False))).model()


def test_every_name_of_a_layer_too_many_is_said(tmp_path):
    weights = arrays(tied=True)
    opened = hub.open_folder(saved(tmp_path, CONFIG | {"num_layers": LAYERS - 1}, weights))
    with pytest.raises(WeightsError) as caught:
        opened.model()
    named = f"transformer.layers.{LAYERS - 1}."
    assert len(caught.value.lines) == 12  # buffers are not named
    assert all("unexpected" in line and named in line for line in caught.value.lines)

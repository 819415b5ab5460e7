"""GLM against a reference in NumPy, and how it is told from the GLM of transformers."""

import jax
import numpy as np
import pytest
from flax import nnx
from references import Weights, attention, batch, corrupted, gelu, random, saved, visible_prefix

from research.attention.masks import Slots
from research.interop import hub, llama
from research.interop.architecture import ConfigError, Settings
from research.interop.glm import GLM

WIDTH, HEADS, LAYERS, LENGTH, VOCAB = 24, 3, 2, 11, 31
CONFIG = {
    "model_type": "glm",
    "attention_dropout_prob": 0.1,
    "attention_scale": 1.0,
    "block_position_encoding": True,
    "embedding_dropout_prob": 0.1,
    "hidden_size": WIDTH,
    "max_sequence_length": LENGTH,
    "num_attention_heads": HEADS,
    "num_layers": LAYERS,
    "output_dropout_prob": 0.1,
    "relative_encoding": False,
    "spell_length": None,
    "vocab_size": VOCAB,
}
LINES = [(9, [(6, 2), (3, 4)]), (6, [(5, 5)])]


def shapes(prefix="", spans=True):
    linear = {
        "attention.query_key_value": (3 * WIDTH, WIDTH),
        "attention.dense": (WIDTH, WIDTH),
        "mlp.dense_h_to_4h": (4 * WIDTH, WIDTH),
        "mlp.dense_4h_to_h": (WIDTH, 4 * WIDTH),
        "input_layernorm": (WIDTH,),
        "post_attention_layernorm": (WIDTH,),
    }
    found = {
        "word_embeddings.weight": (VOCAB, WIDTH),
        "transformer.position_embeddings.weight": (LENGTH + spans, WIDTH),
        "transformer.final_layernorm.weight": (WIDTH,),
        "transformer.final_layernorm.bias": (WIDTH,),
    }
    if spans:
        found["transformer.block_position_embeddings.weight"] = (LENGTH + 1, WIDTH)
    for i in range(LAYERS):
        for name, shape in linear.items():
            found[f"transformer.layers.{i}.{name}.weight"] = shape
            found[f"transformer.layers.{i}.{name}.bias"] = shape[:1]
    return {prefix + name: shape for name, shape in found.items()}


def reference(arrays, ids, coords, visible):
    """Logits of one line."""
    w = Weights(arrays)
    tables = ("position_embeddings", "block_position_embeddings")[: coords.shape[-1]]
    x = w["word_embeddings.weight"][ids]
    x = x + sum(w[f"transformer.{name}.weight"][coords[:, axis]] for axis, name in enumerate(tables))
    for i in range(LAYERS):
        layer = f"transformer.layers.{i}"
        mixed = w.linear(f"{layer}.attention.query_key_value", w.layer_norm(f"{layer}.input_layernorm", x))
        q, k, v = (part.reshape(len(ids), HEADS, -1) for part in np.split(mixed, 3, axis=-1))
        x = x + w.linear(f"{layer}.attention.dense", attention(q, k, v, visible))
        inner = w.linear(f"{layer}.mlp.dense_h_to_4h", w.layer_norm(f"{layer}.post_attention_layernorm", x))
        x = x + w.linear(f"{layer}.mlp.dense_4h_to_h", gelu(inner))
    return w.layer_norm("transformer.final_layernorm", x) @ w["word_embeddings.weight"].T


@pytest.mark.parametrize("prefix", ["", "glm."])  # the model alone, and in the model with a head
def test_glm_fills_blanks_as_its_reference_does(tmp_path, prefix):
    named = random(shapes(prefix))
    opened = hub.open_folder(saved(tmp_path, CONFIG, named))
    assert opened.architecture is GLM
    model, slots = opened.model(), corrupted(LINES)
    ids = np.random.default_rng(1).integers(0, VOCAB, slots.segment.shape)
    logits = jax.jit(lambda model, one: model(one))(model, batch(ids, slots))
    weights = {name.removeprefix(prefix): array for name, array in named.items()}
    for row in range(len(LINES)):
        visible = visible_prefix(slots, row)
        n = len(visible)
        expected = reference(weights, ids[row, :n], slots.coords[row, :n], visible)
        np.testing.assert_allclose(logits[row, :n], expected, atol=2e-4)


def test_glm_without_places_in_spans_has_one_table(tmp_path):
    weights = random(shapes(spans=False))
    opened = hub.open_folder(saved(tmp_path, CONFIG | {"block_position_encoding": False}, weights))
    ids = np.random.default_rng(1).integers(0, VOCAB, (1, LENGTH))
    logits = opened.model()(batch(ids, Slots.arange(LENGTH, (1,))))
    place = np.arange(LENGTH)
    expected = reference(weights, ids[0], place[:, None], place[:, None] >= place)
    np.testing.assert_allclose(logits[0], expected, atol=2e-4)


def test_glm_10b_has_the_published_number_of_parameters():
    """Settings of the released config.json; the paper's model of 10 billion (Du et al. 2022, section 3.4)."""
    published = {
        "hidden_size": 4096,
        "max_sequence_length": 1024,
        "num_attention_heads": 64,
        "num_layers": 48,
        "vocab_size": 50304,
    }
    config = GLM.model(Settings(CONFIG | published, "glm-10b"))
    model = jax.eval_shape(lambda: config.build(vocab=50304, key=jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model))))
    assert count == (50304 + 2 * 1025) * 4096 + 48 * (12 * 4096**2 + 13 * 4096) + 2 * 4096
    assert round(count / 1e9, 1) == 9.9


def test_it_is_told_from_the_glm_of_transformers():
    assert not GLM.describes({"model_type": "glm", "num_hidden_layers": 40})
    assert llama.GLM4.describes({"model_type": "glm", "num_hidden_layers": 40})
    assert GLM.describes(CONFIG)
    assert not llama.GLM4.describes(CONFIG)
    assert not GLM.describes(CONFIG | {"model_type": "chatglm"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"relative_encoding": True}, "relative_encoding is True, expected one of False"),
        ({"spell_length": 5}, "spell_length is 5"),
        ({"embedding_dropout_prob": 0.2}, "embedding_dropout_prob is 0.2, expected one of 0.1"),
        ({"max_sequence_length": None}, "max_sequence_length is missing"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(tmp_path, change, said):
    with pytest.raises(ConfigError, match=said) as caught:
        hub.open_folder(saved(tmp_path, CONFIG | change, {}))
    assert "\n" not in str(caught.value)


def test_it_is_read_only():
    assert GLM.name not in hub.written()

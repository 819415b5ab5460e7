"""GGUF files: arrays of every type that is read, a strict report, and refusals of one line."""

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gguf_files import GROUPS, HEADS, HIDDEN, LAYERS, METADATA, WIDTH, write

from research.attention.masks import Slots
from research.attention.positions import Interpolation, Llama3, Rotary, YaRN
from research.batch import Batch, Tokens
from research.interop import llama
from research.interop.architecture import ConfigError, Settings
from research.interop.gguf import open_file
from research.interop.hub import Checkpoint
from research.interop.weights import Arrays, WeightsError

VOCAB = 40
CONFIG = {
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e4,
    "vocab_size": VOCAB,
}


def published(*, tied=True, bias=False, width=WIDTH, hidden=HIDDEN):
    """Weights of a LLaMA by the names and in the layout of its safetensors."""
    draw = np.random.default_rng(0)
    head = width // HEADS
    shapes = {"model.embed_tokens.weight": (VOCAB, width), "model.norm.weight": (width,)}
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, width)
    for i in range(LAYERS):
        for name, size in (("q", HEADS * head), ("k", GROUPS * head), ("v", GROUPS * head), ("o", width)):
            shapes[f"model.layers.{i}.self_attn.{name}_proj.weight"] = (size, width)
            if bias:
                shapes[f"model.layers.{i}.self_attn.{name}_proj.bias"] = (size,)
        for name, shape in (("gate", (hidden, width)), ("up", (hidden, width)), ("down", (width, hidden))):
            shapes[f"model.layers.{i}.mlp.{name}_proj.weight"] = shape
        for name in ("input", "post_attention"):
            shapes[f"model.layers.{i}.{name}_layernorm.weight"] = (width,)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


TRANSLATED = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def converted(arrays):
    """The same as llama.cpp's converter names and permutes them."""
    made = {}
    for name, array in arrays.items():
        for part, heads in (("q_proj", HEADS), ("k_proj", GROUPS)):
            if part in name:
                halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
                array = halves.swapaxes(1, 2).reshape(array.shape)
        for theirs, ours in TRANSLATED.items():
            name = name.replace(theirs, ours)
        made[name] = array
    return made


def logits(model):
    ids = np.random.default_rng(1).integers(0, VOCAB, (2, 9), dtype=np.int32)
    target = Tokens(ids, Slots.arange(9, (2,)))
    return model(Batch(target, labels=ids, weights=jnp.ones(ids.shape)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_converted_model_is_the_model(tmp_path, tied, bias):
    arrays = published(tied=tied, bias=bias)
    checkpoint = open_file(write(tmp_path / "a.gguf", converted(arrays)))
    assert checkpoint.vocab == VOCAB
    assert checkpoint.tokenizer is None
    config = CONFIG | {"tie_word_embeddings": tied, "attention_bias": bias}
    plain = Checkpoint(llama.LLAMA.model(Settings(config, "test")), llama.LLAMA, Arrays(arrays, "test"))
    assert checkpoint.config == plain.config
    np.testing.assert_array_equal(logits(checkpoint.model()), logits(plain.model()))


# Steps from 0, or from the least number (Q4_1), to the greatest of a block, and how many of them a number may be off:
# half of one where they are rounded, one where steps of one sign are fewer (Q4_0), and what a float16 step adds.
STEPS = {"Q8_0": (127, 0.5 + 127 * 2**-11), "Q4_0": (8, 1.01), "Q4_1": (15, 0.52)}


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", *STEPS])
def test_arrays_of_every_type(tmp_path, name):
    kind = gguf.GGMLQuantizationType[name]
    arrays = published()
    checkpoint = open_file(write(tmp_path / "a.gguf", converted(arrays), kind=kind))
    for theirs, array in converted(arrays).items():
        found = checkpoint.weights.read(theirs)
        assert found.dtype == np.float32
        assert found.shape == array.shape == checkpoint.weights.specs()[theirs].shape
        if name == "F32" or array.ndim == 1:
            np.testing.assert_array_equal(found, array)
        elif name in STEPS:
            steps, units = STEPS[name]
            blocks, error = array.reshape(-1, 32), np.abs(found - array).reshape(-1, 32)
            extent = np.ptp(blocks, axis=1) if name == "Q4_1" else np.abs(blocks).max(1)
            assert (error.max(1) <= units * extent / steps).all()
            assert error.max() > 0
        else:
            dtype = np.float16 if name == "F16" else jnp.bfloat16
            np.testing.assert_array_equal(found, array.astype(dtype).astype(np.float32))


def test_blocks_of_six_bits(tmp_path):
    """Number i of a block is d * scale * (q - 32), q of four low bits and two high ones (ggml's block_q6_K)."""
    draw = np.random.default_rng(0)
    low, high = draw.integers(0, 256, (256, 128), np.uint8), draw.integers(0, 256, (256, 64), np.uint8)
    scales, d = draw.integers(-128, 128, (256, 16), np.int8), draw.normal(size=(256, 1)).astype(np.float16)
    expected = np.empty((256, 256), np.float32)
    for i in range(256):
        half, within = divmod(i, 128)
        quarter, place = divmod(within, 32)
        nibble = low[:, 64 * half + 32 * (quarter % 2) + place] >> (4 * (quarter // 2)) & 15
        bits = high[:, 32 * half + place] >> (2 * quarter) & 3
        q = (nibble | bits << 4).astype(np.int32) - 32
        expected[:, i] = d[:, 0].astype(np.float32) * scales[:, i // 16] * q
    blocks = np.concatenate([low, high, scales.view(np.uint8), d.view(np.uint8)], axis=1)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    width = {"llama.embedding_length": 256, "llama.rope.dimension_count": 64}
    for key, value in (METADATA | width).items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    for action in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        action()
    writer.close()
    np.testing.assert_allclose(
        open_file(tmp_path / "a.gguf").weights.read("token_embd.weight"), expected, rtol=1e-6
    )


def test_the_report_has_a_line_for_each_name(tmp_path):
    arrays = converted(published())
    del arrays["blk.1.ffn_up.weight"]
    arrays["blk.0.attn_k.weight"] = arrays["blk.0.attn_k.weight"][:-1]
    arrays["blk.0.extra.weight"] = np.ones(3, np.float32)
    path = write(tmp_path / "a.gguf", arrays)
    with pytest.raises(WeightsError) as raised:
        open_file(path).model()
    assert sorted(raised.value.lines) == sorted(
        [
            f"{path}: missing blk.1.ffn_up.weight [96, 64]",
            f"{path}: blk.0.attn_k.weight is [31, 64], expected [32, 64]",
            f"{path}: unexpected blk.0.extra.weight [3]",
        ]
    )


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_truncated_files(tmp_path, share):
    path = write(tmp_path / "a.gguf", converted(published()))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        WeightsError, match=r"^[^\n]*a\.gguf: cannot be read \([^\n]+\), expected a whole GGUF[^\n]*$"
    ):
        open_file(path)


def test_what_is_no_gguf(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(WeightsError, match="magic"):
        open_file(tmp_path / "a.gguf")
    with pytest.raises(WeightsError, match="No such file"):
        open_file(tmp_path / "none.gguf")


def test_other_types_are_refused(tmp_path):
    path = write(tmp_path / "a.gguf", converted(published()), kind=gguf.GGMLQuantizationType.Q5_0)
    with pytest.raises(
        WeightsError, match=r"token_embd\.weight is Q5_0 \(and 14 more are not read\), expected one of F32,"
    ):
        open_file(path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"llama.block_count": None}, "llama.block_count is missing"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        (
            {"llama.attention.sliding_window": 64},
            "llama.attention.sliding_window is 64, which we do not know",
        ),
        ({"llama.attention.head_count_kv": [2, 2]}, "head_count_kv is [2, 2], expected one number"),
        ({"llama.attention.head_count": 0}, "head_count is 0, expected one number above 0"),
        ({"llama.embedding_length": "64"}, "embedding_length is '64', expected one number above 0"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count is 8, expected one of 16"),
        ({"llama.expert_count": 8}, "expert_count is 8, expected one of 0"),
        (
            {"llama.rope.scaling.type": "longrope"},
            "type is 'longrope', expected one of 'none', 'linear', 'yarn'",
        ),
        ({"llama.rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier is 0.1"),
    ],
)
def test_metadata_that_would_change_a_number(tmp_path, metadata, said):
    path = write(tmp_path / "a.gguf", converted(published()), metadata)
    with pytest.raises(ConfigError) as raised:
        open_file(path)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_other_models_are_refused(tmp_path):
    arrays = converted(published())
    with pytest.raises(ConfigError, match="architecture is 'falcon', expected one of 'llama'"):
        open_file(write(tmp_path / "a.gguf", arrays, architecture="falcon"))
    with pytest.raises(WeightsError, match="one of 3 files"):
        open_file(write(tmp_path / "c.gguf", arrays, {"split.count": 3}))


@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        ({}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
        ({"llama.rope.scaling.factor": 4.0}, Interpolation(factor=4.0)),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}, Interpolation(factor=2.0)),
        ({"llama.rope.scale_linear": 8.0}, Interpolation(factor=8.0)),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0},
            YaRN(factor=2.0, trained=128),
        ),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 32,
                "llama.rope.scaling.yarn_beta_fast": 16.0,
            },
            YaRN(factor=4.0, trained=32, beta_fast=16.0),
        ),
    ],
)
def test_rotary_settings(tmp_path, metadata, scaling):
    config = open_file(write(tmp_path / "a.gguf", converted(published()), metadata)).config
    assert config.stack.positions == Rotary(base=5e4, scaling=scaling)


def divisors(factor, width=WIDTH // HEADS, base=5e4, low=1, high=4, trained=8192):
    """What llama.cpp's converter writes for a frequency of Llama 3.1 (released code): 1 for what turns more than `high`
    times within the trained length, `factor` for less than `low`, between them the inverse of a mean.
    """
    turns = trained / (2 * np.pi * base ** (np.arange(0, width, 2) / width))
    smooth = (turns - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.select([turns > high, turns < low], [1.0, factor], between).astype(np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_frequencies_of_llama_3_1(tmp_path, factor):
    arrays = converted(published()) | {"rope_freqs.weight": divisors(factor)}
    assert len(set(arrays["rope_freqs.weight"].tolist())) == 3  # one lies between
    checkpoint = open_file(write(tmp_path / "a.gguf", arrays))
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = CONFIG | {"tie_word_embeddings": True}
    config["rope_scaling"] = scaling | {"original_max_position_embeddings": 8192}
    plain = Checkpoint(llama.LLAMA.model(Settings(config, "test")), llama.LLAMA, Arrays(published(), "test"))
    assert checkpoint.config == plain.config
    assert checkpoint.config.stack.positions.scaling == Llama3(factor=factor, trained=8192)
    np.testing.assert_array_equal(logits(checkpoint.model()), logits(plain.model()))


@pytest.mark.parametrize(
    ("factors", "metadata", "said"),
    [
        (np.ones(8), {}, "rope_freqs.weight does not say what Llama 3.1 (factor 8) or 3.2 (factor 32) does"),
        (divisors(8.0)[:-1], {}, "does with 16 features and base 50000.0"),
        (divisors(8.0) * (1 + 3e-4), {}, "does not say"),
        (divisors(8.0, trained=4096), {}, "does not say"),
        (divisors(8.0), {"llama.rope.freq_base": 5e5}, "base 500000.0"),
        (divisors(8.0), {"llama.rope.scaling.factor": 4.0}, "rope.scaling.factor = 4.0 both scale rotary"),
    ],
)
def test_other_frequencies_are_refused(tmp_path, factors, metadata, said):
    arrays = converted(published()) | {"rope_freqs.weight": factors.astype(np.float32)}
    with pytest.raises(ConfigError) as raised:
        open_file(write(tmp_path / "a.gguf", arrays, metadata))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_all_parameters_are_float32(tmp_path):
    path = write(tmp_path / "a.gguf", converted(published()), kind=gguf.GGMLQuantizationType.F16)
    state = nnx.state(open_file(path).model())
    assert {leaf.dtype for leaf in nnx.to_flat_state(state).leaves} == {jnp.dtype(jnp.float32)}

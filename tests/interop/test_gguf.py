"""GGUF files: arrays of every type that is read, a strict report, refusals of one line, and the tokenizer inside."""

import json
import shutil

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gguf.quants import quantize

from research.attention.masks import Slots
from research.attention.positions import Interpolation, Rotary, YaRN
from research.batch import Batch, Tokens
from research.data.subwords import BPE
from research.data.tokenizers import Tokenizer, TokenizerSource
from research.interop import llama
from research.interop.architecture import ConfigError, Settings
from research.interop.gguf import open_file
from research.interop.gguf_tokenizer import FromGGUF
from research.interop.hub import Checkpoint
from research.interop.weights import Arrays, WeightsError

LAYERS, WIDTH, HEADS, GROUPS, HIDDEN, VOCAB = 2, 64, 4, 2, 96, 40
METADATA = {
    "llama.block_count": LAYERS,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": HIDDEN,
    "llama.context_length": 128,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": GROUPS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": WIDTH // HEADS,
    "llama.rope.freq_base": 5e4,
}
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
F32 = gguf.GGMLQuantizationType.F32


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


def write(path, arrays, metadata=None, *, kind=F32, architecture="llama"):
    """A GGUF file; only matrices are quantised, as always."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (METADATA | (metadata or {})).items():
        if value is None:
            continue
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add.get(type(value), writer.add_array)(key, value)
    for name, array in arrays.items():
        own = kind if array.ndim > 1 and array.dtype == np.float32 else F32
        writer.add_tensor(name, quantize(array, own) if array.dtype == np.float32 else array, raw_dtype=own)
    for action in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        action()
    writer.close()
    return path


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
    arrays["rope_freqs.weight"] = np.ones(8, np.float32)
    with pytest.raises(ConfigError, match="rope_freqs"):
        open_file(write(tmp_path / "b.gguf", arrays))
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


# The tokenizer.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Byte-level pieces; their ids are 4 above those of a file."""
    texts = ["the cat sat on the mat 1999 12  34, the cats\n"] * 3
    return BPE(size=300).ready(texts, tmp_path_factory.mktemp("data"))


def described(trained, **changes):
    """The metadata of a tokenizer: three control tokens, the pieces, one token of the user's."""
    model = json.loads(trained.model)["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    tokens = ["<|end|>", "<|user|>", "<|assistant|>", *pieces, "cat sat"]
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [3, 3, 3, *[1] * len(pieces), 4],
        "merges": [" ".join(pair) for pair in model["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 0,
        "padding_token_id": 0,
        "add_bos_token": False,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items()}


@pytest.fixture
def tokenized(tmp_path, trained):
    """Writes a file with a tokenizer and gives it."""

    def made(**changes):
        path = write(tmp_path / "a.gguf", converted(published()), described(trained, **changes))
        checkpoint = open_file(path)
        assert checkpoint.tokenizer == FromGGUF(path=str(path))
        assert isinstance(checkpoint.tokenizer, TokenizerSource)
        return checkpoint.tokenizer

    return made


def test_tokenizer(tokenized, trained):
    ready = tokenized().ready(())
    assert isinstance(ready, Tokenizer)
    last = 3 + len(json.loads(trained.model)["model"]["vocab"])
    assert (ready.bos, ready.eos) == (1, 0)
    assert (ready.pad, ready.mask, ready.vocab_size) == (last + 1, last + 2, last + 3)  # padding is no end
    for text in ("the cats, naïve 😀\n\n", "  on   the mat", "<|end|> the"):
        ids = ready.encode(text)
        assert ids.tolist() == (trained.encode(text) - 1).tolist()
        assert ready.decode(ids) == text
        assert ready.byte_count(ids) == len(text.encode())
    assert ready.encode("a cat sat").tolist()[-1] == last
    assert ready.decode([1, last, 2, 0]) == "<bos>cat sat<|assistant|><eos>"


def test_where_digits_are_cut(tokenized, trained):
    text = "12  1999"
    plain = (trained.encode(text) - 1).tolist()
    assert tokenized(pre="gpt-2").ready(()).encode(text).tolist() == plain
    assert tokenized(pre="default").ready(()).encode(text).tolist() == plain
    alone = [
        piece
        for part in ("1", "2", "  ", "1", "9", "9", "9")
        for piece in (trained.encode(part) - 1).tolist()
    ]
    assert tokenized(pre="smollm").ready(()).encode(text).tolist() == alone != plain


def test_a_padding_of_its_own(tokenized):
    assert tokenized(padding_token_id=2).ready(()).pad == 2


@pytest.mark.parametrize(
    ("said", "begins"), [({}, False), ({"add_bos_token": False}, False), ({"add_bos_token": True}, True)]
)
def test_the_file_says_whether_lines_begin_with_bos(tokenized, said, begins):
    assert tokenized(**said).ready(()).begins == begins


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model is 'llama', expected 'gpt2'"),
        (
            {"pre": "llama-bpe"},
            "tokenizer.ggml.pre is 'llama-bpe', expected one of 'gpt-2', 'default', 'smollm'",
        ),
        ({"add_space_prefix": True}, "add_space_prefix is True, expected False"),
        ({"merges": ["t h e"]}, "its merges do not fit its tokens"),
        ({"merges": ["zz yy"]}, "its merges do not fit its tokens"),
    ],
)
def test_other_tokenizers_are_refused(tokenized, changes, said):
    source = tokenized(**changes)  # the model is read without it
    with pytest.raises(WeightsError) as raised:
        source.ready(())
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_went_away(tokenized, tmp_path):
    source = tokenized()
    shutil.move(tmp_path / "a.gguf", tmp_path / "b.gguf")
    with pytest.raises(WeightsError, match=r"a\.gguf: cannot be read"):
        source.ready(())


def test_all_parameters_are_float32(tmp_path):
    path = write(tmp_path / "a.gguf", converted(published()), kind=gguf.GGMLQuantizationType.F16)
    state = nnx.state(open_file(path).model())
    assert {leaf.dtype for leaf in nnx.to_flat_state(state).leaves} == {jnp.dtype(jnp.float32)}

"""Published models in and out, without the libraries that published them: what is written is read again bit by bit, and
whatever is wrong with a folder is said in one line for each thing.
"""

import dataclasses
import functools
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from research.attention.masks import Prefix, Window
from research.attention.positions import DynamicNTK, Interpolation, Learned, Llama3, Rotary, T5Bias, YaRN
from research.interop import hub, weights
from research.interop.architecture import ConfigError, Settings, normal
from research.interop.tables import half_rotated
from research.interop.weights import WeightsError
from research.models.config import BlockSpec, EmbeddingConfig, StackConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from research.models.paths import named

VOCAB = 23


def decoder(scale=1.0, tied=True, **changes):
    base = {"layers": 3, "width": 24, "heads": 3, "hidden": 20}
    embedding = EmbeddingConfig(rows=VOCAB, scale=scale)
    return DecoderConfig(stack=StackConfig(**{**base, **changes}), tied_embeddings=tied, embedding=embedding)


def gpt2(tied=True, **changes):
    fixed = {
        "norm": "layer",
        "use_bias": True,
        "positions": Learned(length=16, scale=1.0),
        "activation": "gelu",
    }
    return decoder(tied=tied, **fixed | changes)


def bert(*, masked, tied=True, pooler=None, **changes):
    stack = {"layers": 2, "width": 24, "heads": 3, "hidden": 20, "norm": "layer", "placement": "post"}
    stack |= {"input_norm": True, "use_bias": True, "activation": "gelu_exact", "epsilon": 1e-12}
    stack |= {"positions": Learned(length=16, scale=1.0)}
    embedding = EmbeddingConfig(rows=VOCAB, scale=1.0, types=2, transform=masked, bias=masked)
    pooler = not masked if pooler is None else pooler
    stack = StackConfig(**{**stack, **changes})
    return EncoderConfig(stack=stack, embedding=embedding, tied_embeddings=tied, pooler=pooler)


def t5(*, tied=True, scaled=True, layers=(2, 3), **changes):
    stack = {"width": 24, "heads": 3, "head_dim": 6, "hidden": 20, "scale": 1.0, "activation": "relu"}
    stack |= {"positions": T5Bias(buckets=8, distance=20)}
    encoder, own = (StackConfig(**{**stack, "layers": count, **changes}) for count in layers)
    embedding = EmbeddingConfig(rows=VOCAB, scale=1.0, logit_scale=24**-0.5 if scaled else 1.0)
    return EncoderDecoderConfig(encoder=encoder, decoder=own, tied_embeddings=tied, embedding=embedding)


WINDOW = (BlockSpec(window=Window(5)),)
WRITTEN = {
    "gpt2": ("gpt2", gpt2()),
    "gpt2 untied": ("gpt2", gpt2(tied=False, activation="gelu_exact")),
    "llama": ("llama", decoder(tied=False, kv_heads=1)),
    "llama tied, biased": ("llama", decoder(use_bias=("qkv", "output", "mlp"), activation="geglu")),
    "llama, other heads": ("llama", decoder(head_dim=6, activation="reglu", epsilon=1e-3)),
    "linear": ("llama", decoder(positions=Rotary(scaling=Interpolation(factor=2.0)))),
    "dynamic": ("llama", decoder(positions=Rotary(scaling=DynamicNTK(factor=2.0, trained=64)))),
    "yarn": ("llama", decoder(positions=Rotary(base=500.0, scaling=YaRN(factor=4.0, trained=64)))),
    "llama3": ("llama", decoder(positions=Rotary(scaling=Llama3(factor=8.0, trained=64)))),
    "mistral": ("mistral", decoder(tied=False, pattern=WINDOW)),
    "mistral without window": ("mistral", decoder()),
    "glm": ("glm", decoder(positions=Rotary(fraction=0.5), use_bias=("qkv",), tied=False)),
    "glm without biases": ("glm", decoder(positions=Rotary(fraction=0.25), kv_heads=1)),
    "bert": ("bert", bert(masked=False)),
    "bert, masked": ("bert", bert(masked=True)),
    "bert, masked, untied": ("bert", bert(masked=True, tied=False)),
    "t5": ("t5", t5()),
    "t5 1.1": ("t5", t5(tied=False, scaled=False, activation="geglu")),
    "t5 untied, scaled": ("t5", t5(tied=False, activation="swiglu")),
    "t5 tied, unscaled": ("t5", t5(scaled=False, activation="gelu_exact")),
}


def filled(config, seed=0):
    """The model with random parameters: norms and biases too."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(jax.eval_shape(lambda: config.build(vocab=VOCAB, key=jax.random.key(0))))
    params = nnx.to_pure_dict(state)
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    return nnx.merge(graph, drawn)


def params_of(model):
    return {path: np.asarray(leaf) for path, leaf in named(nnx.to_pure_dict(nnx.state(model))).items()}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        assert leaf.dtype == theirs[path].dtype, path
        assert np.array_equal(leaf, theirs[path]), path


@functools.cache
def model_of(name):
    return filled(WRITTEN[name][1])


def written(folder, name="gpt2", **options):
    """A model of `WRITTEN`, which is now in the folder."""
    hub.export(model_of(name), folder, WRITTEN[name][0], **options)
    return model_of(name)


def change(folder, **settings):
    """config.json with other settings; None takes one away."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def put(folder, arrays):
    save_file(arrays, folder / "model.safetensors")


def lines_of(folder):
    """What reading the folder says is wrong."""
    with pytest.raises((ConfigError, WeightsError)) as caught:
        hub.open_folder(folder).model()
    lines = str(caught.value).split("\n")
    assert all(line.startswith(str(folder)) for line in lines)
    return [line.removeprefix(str(folder)) for line in lines]


# Round trips.


@pytest.mark.parametrize("name", WRITTEN)
def test_a_model_is_read_as_it_was_written(name, tmp_path):
    model = written(tmp_path / "once", name)
    checkpoint = hub.open_folder(tmp_path / "once")
    assert normal(checkpoint.config) == normal(WRITTEN[name][1])
    assert checkpoint.vocab == VOCAB
    read = checkpoint.model()
    same(params_of(read), params_of(model))
    hub.export(read, tmp_path / "twice", WRITTEN[name][0])
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()
    arrays = weights_of(tmp_path / "once")  # by the library of the format
    table = next(
        array for name, array in arrays.items() if re.search("(wte|tokens|word.*|shared).weight", name)
    )
    assert np.array_equal(table, params_of(model)["embedding/table"])


def test_all_architectures_that_are_written_are_tested():
    assert {architecture for architecture, _ in WRITTEN.values()} == set(hub.written())


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=["bf16", "f16"])
def test_half_precision_is_the_rounded_model(dtype, tmp_path):
    model = written(tmp_path, "llama", dtype=dtype)
    rounded = {path: leaf.astype(dtype).astype(np.float32) for path, leaf in params_of(model).items()}
    same(params_of(hub.open_folder(tmp_path).model()), rounded)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == np.dtype(dtype).name
    assert {spec.dtype for spec in hub.open_folder(tmp_path).weights.specs().values()} == {np.dtype(dtype)}


def test_a_model_in_several_files(tmp_path):
    one, many = tmp_path / "one", tmp_path / "many"
    model = written(one)
    files = hub.export(model, many, "gpt2", shard=4000)
    sizes = [file.stat().st_size for file in files if file.suffix == ".safetensors"]
    assert len(sizes) > 3
    index = json.loads((many / "model.safetensors.index.json").read_text())
    arrays = weights_of(one)
    assert index["weight_map"].keys() == arrays.keys()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    for name, file in index["weight_map"].items():
        assert np.array_equal(load_file(many / file)[name], arrays[name])
    for file in set(index["weight_map"].values()):
        held = [array.nbytes for array in load_file(many / file).values()]
        assert sum(held) <= 4000 or len(held) == 1
    same(params_of(hub.open_folder(many).model()), params_of(model))


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_arrays_that_are_read_and_written_in_pieces(name, tmp_path, monkeypatch):
    model = written(tmp_path / "whole", name)
    monkeypatch.setattr(weights, "PIECE", 500)
    written(tmp_path / "pieces", name)
    file = "model.safetensors"
    assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "pieces" / file).read_bytes()
    checkpoint = hub.open_folder(tmp_path / "pieces")
    assert max(len(list(checkpoint.weights.pieces(array))) for array in checkpoint.weights.specs()) > 3
    same(params_of(checkpoint.model()), params_of(model))


def test_another_number_of_files_replaces_the_first(tmp_path):
    written(tmp_path)
    for seed, shard in ((1, 4000), (2, 10**9)):
        model = filled(WRITTEN["gpt2"][1], seed)
        hub.export(model, tmp_path, "gpt2", shard=shard)
        same(params_of(hub.open_folder(tmp_path).model()), params_of(model))


def test_rows_that_the_config_leaves_open_are_those_of_the_table(tmp_path):
    config = gpt2()
    config = dataclasses.replace(config, embedding=dataclasses.replace(config.embedding, rows=None))
    hub.export(filled(config), tmp_path, "gpt2")
    assert hub.open_folder(tmp_path).vocab == VOCAB


# How theirs lie in files.


def test_rotary_pairs_that_are_neighbours_come_apart():
    assert half_rotated(1, 6, 4) == [0, 2, 1, 3, 4, 5]
    assert half_rotated(2, 4, 4) == [0, 2, 1, 3, 4, 6, 5, 7]


def test_layers_of_a_pattern_are_those_of_its_places(tmp_path):
    """Layer i of a pattern of two is row i // 2 of place i % 2."""
    plain = written(tmp_path, "mistral")
    checkpoint = hub.open_folder(tmp_path)
    two = dataclasses.replace(checkpoint.config.stack, pattern=WINDOW * 2)
    model = dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, stack=two)).model()
    expected, got = params_of(plain), params_of(model)
    path = "attention/inner/query/kernel"
    for layer in range(3):
        own = got[f"stack/blocks/{layer % 2}/{path}"][layer // 2]
        assert np.array_equal(own, expected[f"stack/blocks/0/{path}"][layer])


@pytest.mark.parametrize(
    ("name", "prefix"), [("gpt2", "transformer."), ("llama tied, biased", "model."), ("bert", "bert.")]
)
def test_a_bare_model_has_names_without_prefix(name, prefix, tmp_path):
    model = written(tmp_path, name)
    put(tmp_path, {name.removeprefix(prefix): array for name, array in weights_of(tmp_path).items()})
    same(params_of(hub.open_folder(tmp_path).model()), params_of(model))


def test_norms_of_old_files_of_bert(tmp_path):
    model = written(tmp_path, "bert, masked")
    arrays = weights_of(tmp_path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for now, once in old.items():
        arrays = {name.replace(now, once): array for name, array in arrays.items()}
    assert sum("gamma" in name for name in arrays) == 6
    put(tmp_path, arrays)
    same(params_of(hub.open_folder(tmp_path).model()), params_of(model))


def test_buffers_and_what_a_class_does_not_have_are_passed_over(tmp_path):
    buffer = np.zeros((1, 16), np.int64)
    cases = {
        "gpt2": {"transformer.h.0.attn.bias": buffer, "transformer.h.1.attn.masked_bias": buffer},
        "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": buffer},
        "bert, masked": {"bert.embeddings.position_ids": buffer, "cls.seq_relationship.bias": buffer},
        "t5": {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": buffer},
    }
    for name, more in cases.items():
        model = written(tmp_path / name, name)
        put(tmp_path / name, weights_of(tmp_path / name) | more)
        same(params_of(hub.open_folder(tmp_path / name).model()), params_of(model))


COPIES = {
    "gpt2": ("lm_head.weight", "transformer.wte.weight"),
    "llama tied, biased": ("lm_head.weight", "model.embed_tokens.weight"),
    "bert, masked": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "t5": ("encoder.embed_tokens.weight", "shared.weight"),
}


@pytest.mark.parametrize("name", COPIES)
def test_what_is_tied_may_be_there_again_if_it_is_the_same(name, tmp_path):
    model, (copy, original) = written(tmp_path, name), COPIES[name]
    arrays = weights_of(tmp_path)
    put(tmp_path, arrays | {copy: arrays[original].copy()})
    same(params_of(hub.open_folder(tmp_path).model()), params_of(model))
    put(tmp_path, arrays | {copy: arrays[original] + 1})
    assert lines_of(tmp_path) == [
        f"/model.safetensors: {copy} differs from what it is tied to; set tie_word_embeddings to false in config.json"
    ]


def test_a_head_that_transformers_5_calls_tied(tmp_path):
    """It writes that T5 v1.1 is tied; the array says that it is not."""
    model = written(tmp_path, "t5 1.1")
    change(tmp_path, tie_word_embeddings=True)
    same(params_of(hub.open_folder(tmp_path).model()), params_of(model))


def test_the_head_of_bert_in_pretraining(tmp_path):
    config = bert(masked=True, pooler=True)
    both = {**params_of(filled(config))}
    written(tmp_path, "bert, masked")
    kernel, bias = both["pooler/dense/kernel"], both["pooler/dense/bias"]
    pooler = {"bert.pooler.dense.weight": np.ascontiguousarray(kernel.T), "bert.pooler.dense.bias": bias}
    put(tmp_path, weights_of(tmp_path) | pooler | {"cls.seq_relationship.weight": np.zeros((2, 24))})
    assert not hub.open_folder(tmp_path).config.pooler
    change(tmp_path, architectures=["BertForPreTraining"])
    checkpoint = hub.open_folder(tmp_path)
    assert normal(checkpoint.config) == normal(config)
    model = checkpoint.model()
    assert np.array_equal(params_of(model)["pooler/dense/kernel"], kernel)
    with pytest.raises(ConfigError, match=r"^bert cannot say EncoderConfig.pooler = True \(only False\)"):
        hub.export(model, tmp_path / "again", "bert")


# What is wrong with files.


def test_every_wrong_name_has_a_line(tmp_path):
    written(tmp_path)
    arrays = weights_of(tmp_path)
    del arrays["transformer.h.1.attn.c_attn.bias"]
    arrays["transformer.h.2.mlp.c_fc.weight"] = np.zeros((20, 24), np.float32)
    arrays["transformer.h.3.ln_1.weight"] = np.zeros(24, np.float32)
    arrays["transformer.wte.weight"] = np.zeros((VOCAB, 24), np.int8)
    put(tmp_path, arrays)
    assert sorted(lines_of(tmp_path)) == [
        "/model.safetensors: missing transformer.h.1.attn.c_attn.bias [72]",
        "/model.safetensors: transformer.h.2.mlp.c_fc.weight is [20, 24], expected [24, 20]",
        "/model.safetensors: transformer.wte.weight is of int8, expected a floating-point type",
        "/model.safetensors: unexpected transformer.h.3.ln_1.weight [24]",
    ]


def test_a_table_that_is_no_whole_model_says_what_nothing_gives(tmp_path):
    written(tmp_path)
    checkpoint = hub.open_folder(tmp_path)
    config = dataclasses.replace(checkpoint.config, embedding=EmbeddingConfig(rows=VOCAB, bias=True))
    with pytest.raises(WeightsError, match=r"^\S+: nothing gives finish/bias \[23\]$"):
        dataclasses.replace(checkpoint, config=config).model()


@pytest.mark.parametrize("kept", [0, 4, 100, -1], ids=lambda kept: f"{kept} bytes")
def test_a_truncated_file(kept, tmp_path):
    written(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    (line,) = lines_of(tmp_path)
    assert re.fullmatch(
        r"/model.safetensors: cannot be read \(.+\), expected a whole safetensors file; .+", line
    )


def test_a_header_that_is_nonsense(tmp_path):
    written(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"[1, 2,3]" + bytes(50))
    (line,) = lines_of(tmp_path)
    assert line.startswith("/model.safetensors: cannot be read (")


def test_an_index_that_names_what_is_not_there(tmp_path):
    written(tmp_path, shard=4000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name, file = next(iter(index["weight_map"].items()))
    other = next(other for other in index["weight_map"].values() if other != file)

    def said(**entries):
        path.write_text(json.dumps(index | {"weight_map": index["weight_map"] | entries}))
        (line,) = lines_of(tmp_path)
        return line

    assert said(**{name: other}) == (
        f"/{other}: {name} is not in it, but model.safetensors.index.json says so; replace one of them"
    )
    assert said(**{name: "none.safetensors"}).startswith("/none.safetensors: cannot be read (")
    assert said(**{name: "../model.safetensors"}).startswith(
        "/model.safetensors.index.json: cannot be read ('../model.safetensors' is no file beside it)"
    )
    for text in ("", "[]", "{}", '{"weight_map": {"a": 3}}'):
        path.write_text(text)
        (line,) = lines_of(tmp_path)
        assert line.startswith("/model.safetensors.index.json: cannot be read (")


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_are_refused_and_not_run(tmp_path):
    written(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "burst")))
    assert lines_of(tmp_path) == [
        ": expected model.safetensors or model.safetensors.index.json, found only pytorch_model.bin, which may run "
        "code when it is read; save it with safe_serialization=True"
    ]
    assert not (tmp_path / "burst").exists()
    pickle.loads((tmp_path / "pytorch_model.bin").read_bytes())
    assert (tmp_path / "burst").exists()


def test_a_folder_without_weights(tmp_path):
    written(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (line,) = lines_of(tmp_path)
    assert line.startswith(": expected model.safetensors or model.safetensors.index.json, found neither")


# What is wrong with config.json.


@pytest.mark.parametrize("text", ["", "{", "[1]", '"llama"', "{'a': 1}"])
def test_a_config_that_is_no_object(text, tmp_path):
    written(tmp_path)
    (tmp_path / "config.json").write_text(text)
    (line,) = lines_of(tmp_path)
    assert re.fullmatch(r"/config.json: cannot be read \(.+\), expected the config.json of a model", line)


def test_no_config(tmp_path):
    (line,) = lines_of(tmp_path)
    assert line.startswith("/config.json: cannot be read (")


@pytest.mark.parametrize("kind", [None, "xlnet", ["llama"], 3])
def test_an_unknown_model_type(kind, tmp_path):
    written(tmp_path)
    change(tmp_path, model_type=kind)
    (line,) = lines_of(tmp_path)
    assert line.startswith(f"/config.json: model_type is {kind!r}, expected one of 'gpt2', 'llama', ")


ROPE = {"rope_theta": 1e4, "rope_type": "yarn", "factor": 2.0}
UNREADABLE = [
    ("gpt2", {"activation_function": "mish"}, "activation_function is 'mish', expected one of 'gelu'"),
    ("gpt2", {"activation_function": ["gelu"]}, "activation_function is ['gelu'], expected one of"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "is True, expected one of False"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False, expected one of True"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
    ("gpt2", {"embd_pdrop": 0.25}, "embd_pdrop is 0.25, expected one of 0.0"),
    ("gpt2", {"n_head": 5}, "StackConfig.width = 24 is not a multiple of StackConfig.heads = 5"),
    ("gpt2", {"n_layer": "2"}, "n_layer is '2', expected a whole number"),
    ("gpt2", {"is_causal": False}, "is_causal is False, expected one of True"),
    ("mistral", {"is_causal": False}, "is_causal is False, expected one of True"),
    ("t5", {"is_causal": False}, "is_causal is False, expected one of True"),
    ("llama", {"logits_scaling": 8.0}, "logits_scaling is 8.0, expected one of 1"),
    ("llama", {"residual_multiplier": 0.22}, "residual_multiplier is 0.22, expected one of 1"),
    ("llama", {"mlp_multipliers": [1.0, 0.5]}, "mlp_multipliers is [1.0, 0.5], expected one of 1"),
    ("llama", {"use_qk_norm": True}, "use_qk_norm is True, expected one of None, False"),
    ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
    ("mistral", {"num_local_experts": 8}, "num_local_experts is 8"),
    ("llama", {"vocab_size": 23.0}, "vocab_size is 23.0, expected a whole number"),
    ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5', expected a finite number above 0"),
    (
        "llama",
        {"rope_theta": 0, "rope_parameters": None},
        "rope_theta is 0, expected a finite number above 0",
    ),
    ("llama", {"rope_parameters": {"rope_theta": 0}}, "rope_parameters: rope_theta is 0"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": "2"}},
        "rope_parameters: factor is '2', expected",
    ),
    ("bert", {"architectures": []}, "architectures is [], expected one of"),
    ("bert", {"architectures": "BertModel"}, "architectures is 'BertModel', expected one of"),
    ("llama", {"hidden_size": None}, "hidden_size is missing"),
    ("llama", {"vocab_size": None}, "vocab_size is missing"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu', expected one of 'gelu_new'"),
    ("llama", {"num_key_value_heads": 2}, "is not a multiple of StackConfig.kv_heads = 2"),
    (
        "llama",
        {"partial_rotary_factor": 0.5, "rope_parameters": None},
        "partial_rotary_factor is 0.5, expected 1 for 'llama'",
    ),
    ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type is 'longrope', expected one of"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "type 'linear' lacks factor"),
    ("llama", {"rope_parameters": ROPE}, "max_position_embeddings is missing"),
    (
        "llama",
        {"rope_parameters": ROPE | {"long": 1}, "max_position_embeddings": 8},
        "'yarn' does not read long",
    ),
    ("llama", {"rope_parameters": {"full_attention": ROPE}}, "'default' does not read full_attention"),
    ("llama", {"rope_parameters": "yarn"}, "rope_parameters is 'yarn', expected an object"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "Interpolation.factor = 0.5"),
    ("mistral", {"sliding_window": "4"}, "sliding_window is '4', expected a whole number"),
    (
        "glm",
        {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 1.5}},
        "Rotary.fraction",
    ),
    ("bert", {"architectures": None}, "architectures is missing"),
    (
        "bert",
        {"architectures": ["BertForTokenClassification"]},
        "expected one of 'BertModel', 'BertForMaskedLM'",
    ),
    ("bert", {"is_decoder": True}, "is_decoder is True, expected one of False"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ("bert", {"type_vocab_size": 0}, "type_vocab_size is 0, expected a whole number, 1 or more"),
    ("bert", {"hidden_act": "mish"}, "hidden_act is 'mish'"),
    ("t5", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj is 'gated-mish', expected one of 'gelu'"),
    ("t5", {"is_gated_act": True}, "is_gated_act is True, expected one of False"),
    ("t5", {"dense_act_fn": "gelu"}, "dense_act_fn is 'gelu', expected one of 'relu'"),
    ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder is False"),
    ("t5", {"relative_attention_num_buckets": 2}, "T5Bias.buckets = 2"),
]


@pytest.mark.parametrize(
    ("name", "settings", "said"), UNREADABLE, ids=[f"{name} {settings}" for name, settings, _ in UNREADABLE]
)
def test_a_setting_that_would_change_a_number_is_refused(name, settings, said, tmp_path):
    written(tmp_path, name)
    hub.open_folder(tmp_path)
    change(tmp_path, **settings)
    (line,) = lines_of(tmp_path)
    assert line.startswith("/config.json: ")
    assert said in line


def read_config(kind, **settings):
    return hub.ARCHITECTURES[kind].model(Settings(settings, "config.json"))


SIZES = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "vocab_size": VOCAB,
}


def test_settings_of_older_files_are_those_of_today():
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    old = read_config("llama", **SIZES, rope_theta=500.0, rope_scaling=scaling)
    said = {"rope_theta": 500.0, "rope_type": "yarn", "factor": 4.0, "beta_fast": None}
    now = read_config("llama", **SIZES, rope_parameters=said, original_max_position_embeddings=64)
    assert old == now
    assert old.stack.positions == Rotary(base=500.0, scaling=YaRN(factor=4.0, trained=64))


def test_of_two_scalings_the_older_name_counts_as_in_transformers():
    old, now = (
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 5.0},
    )
    both = read_config("llama", **SIZES, rope_scaling=old, rope_parameters=now)
    assert both.stack.positions == Rotary(scaling=Interpolation(factor=2.0))
    for none in (None, {}):
        empty = read_config("llama", **SIZES, rope_scaling=none, rope_parameters=now)
        assert empty.stack.positions == Rotary(base=5.0, scaling=Interpolation(factor=4.0))


def test_what_changes_nothing_in_models_like_llama_is_passed_over():
    neutral = {"logits_scaling": 1.0, "residual_multiplier": 1, "use_qk_norm": False, "clip_qkv": None}
    assert read_config("llama", **SIZES, **neutral, num_local_experts=0) == read_config("llama", **SIZES)


def test_what_transformers_takes_for_a_missing_setting():
    llama, mistral = (
        read_config("llama", **SIZES),
        read_config("mistral", **SIZES | {"num_attention_heads": 8}),
    )
    assert (llama.stack.groups, llama.stack.features, llama.stack.epsilon) == (3, 8, 1e-6)
    assert not llama.tied_embeddings
    assert mistral.stack.groups == 8
    assert mistral.stack.pattern == (BlockSpec(window=Window(4096)),)
    none = read_config("mistral", **SIZES | {"num_attention_heads": 8}, sliding_window=None)
    assert none.stack.pattern == (BlockSpec(),)
    glm = read_config("glm", **SIZES | {"num_attention_heads": 4})
    assert (glm.stack.groups, glm.stack.features, glm.stack.epsilon) == (2, 128, 1.5625e-07)
    assert glm.stack.positions == Rotary(fraction=0.5)
    assert glm.stack.biased("qkv")
    assert not glm.stack.biased("mlp")
    small = read_config("gpt2")
    assert (small.stack.layers, small.stack.width, small.stack.mlp_width) == (12, 768, 3072)
    base = read_config("bert", architectures=["BertModel"])
    assert (base.stack.layers, base.stack.width, base.stack.epsilon) == (12, 768, 1e-12)
    t5 = read_config("t5")
    assert (t5.encoder.layers, t5.decoder.layers, t5.encoder.width) == (6, 6, 512)
    assert t5.tied_embeddings
    assert t5.embedding.logit_scale == 512**-0.5
    assert not read_config("t5", tie_word_embeddings=False).tied_embeddings
    assert read_config("t5", tie_word_embeddings=False).embedding.logit_scale == 1


def test_dynamic_scaling_is_of_the_longest_line_there_may_be():
    said = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 8}
    config = read_config("llama", **SIZES, rope_parameters=said, max_position_embeddings=32)
    assert config.stack.positions.scaling == DynamicNTK(factor=2.0, trained=32)


@pytest.mark.parametrize("gate", ["gated-gelu", "gated-gelu_new", "gelu", "gelu_new"])
def test_gelu_of_t5_is_exact_only_by_itself(gate):
    expected = {"gelu": "gelu_exact", "gelu_new": "gelu"}.get(gate, "geglu")
    assert read_config("t5", feed_forward_proj=gate).encoder.activation == expected


# What theirs cannot say.

INEXPRESSIBLE = [
    ("gpt2", gpt2(norm="rms"), "StackConfig.norm = 'rms' (only 'layer')"),
    ("gpt2", gpt2(positions=Rotary()), "StackConfig.positions = Rotary("),
    ("gpt2", gpt2(activation="swiglu"), "StackConfig.activation = 'swiglu' (only 'silu')"),
    ("gpt2", gpt2(positions=Learned(length=16)), "Learned.scale = None (only 1.0)"),
    ("gpt2", gpt2(kv_heads=1), "StackConfig.kv_heads = 1 (only 3)"),
    ("gpt2", dataclasses.replace(gpt2(), mask=Prefix()), "DecoderConfig.mask = Prefix() (only Causal())"),
    ("llama", decoder(scale=None), "EmbeddingConfig.scale = 4.89"),
    ("llama", decoder(pattern=WINDOW), "StackConfig.pattern = (BlockSpec("),
    ("llama", decoder(sinks=True), "StackConfig.sinks = True (only False)"),
    ("llama", decoder(softcap=3.0), "StackConfig.softcap = 3.0 (only None)"),
    ("llama", decoder(activation="relu"), "StackConfig.activation = 'relu' (only 'reglu')"),
    ("llama", decoder(use_bias=("output",)), "StackConfig.use_bias = ('output',) (only ())"),
    ("mistral", decoder(use_bias=True), "StackConfig.use_bias = ('qkv', 'output', 'mlp') (only ())"),
    ("glm", decoder(positions=Rotary(axes=(0, 1))), "Rotary.axes = (0, 1) (only (0,))"),
    ("bert", bert(masked=True, placement="pre"), "StackConfig.placement = 'pre' (only 'post')"),
    ("bert", dataclasses.replace(bert(masked=False), classes=3), "EncoderConfig.classes = 3 (only None)"),
    ("bert", gpt2(), "bert is a model of EncoderConfig, not of DecoderConfig"),
    ("t5", t5(scale=None), "StackConfig.scale = 0.40"),
    ("t5", dataclasses.replace(t5(), tied=True), "EncoderDecoderConfig.tied = True (only False)"),
    ("t5", t5(positions=Rotary()), "StackConfig.positions = Rotary("),
    ("t5", gpt2(), "not of DecoderConfig"),
    ("gpt2", t5(), "not of EncoderDecoderConfig"),
]


@pytest.mark.parametrize(
    ("name", "config", "said"), INEXPRESSIBLE, ids=[f"{name}: {said}" for name, _, said in INEXPRESSIBLE]
)
def test_what_theirs_cannot_say_is_not_written(name, config, said, tmp_path):
    with pytest.raises(ConfigError) as caught:
        hub.export(filled(config), tmp_path / "folder", name)
    (line,) = str(caught.value).split("\n")
    assert said in line
    assert not (tmp_path / "folder").exists()


def test_how_a_model_is_computed_and_trained_is_not_what_it_is(tmp_path):
    config = decoder(dtype="bfloat16", remat="full", backend="dense", dropout=0.1)
    model = filled(config)
    hub.export(model, tmp_path, "llama")
    same(params_of(hub.open_folder(tmp_path).model()), params_of(model))


def test_layers_that_are_split_are_written_as_they_are_built(tmp_path):
    model = filled(dataclasses.replace(t5(layers=(4, 4)), split_layers=True))
    hub.export(model, tmp_path, "t5")
    config = hub.open_folder(tmp_path).config
    assert (config.encoder.layers, config.decoder.layers) == (2, 2)
    same(params_of(hub.open_folder(tmp_path).model()), params_of(model))


# Streaming.

MEASURE = """
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from research.interop import hub, weights


def kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


small, large, out = sys.argv[1:]
hub.export(hub.open_folder(small).model(), small, "llama")
before = kib("VmRSS")
model = jax.block_until_ready(hub.open_folder(large).model())
read = kib("VmHWM") - before
hub.export(model, out, "llama")
print(read * 1024, (kib("VmHWM") - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("shape", [{"rows": 4000, "layers": 6}, {"rows": 40_000, "layers": 1}], ids=str)
def test_reading_and_writing_need_little_more_memory_than_the_parameters(shape, tmp_path):
    for name, rows, layers in (("small", VOCAB, 1), ("large", shape["rows"], shape["layers"])):
        stack = StackConfig(layers=layers, width=512, heads=8, hidden=2048)
        config = DecoderConfig(stack=stack, embedding=EmbeddingConfig(rows=rows, scale=1.0))
        hub.export(filled(config), tmp_path / name, "llama")
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    assert size > 9e7
    folders = [str(tmp_path / name) for name in ("small", "large", "out")]
    command = [sys.executable, "-c", MEASURE, *folders]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    reading, writing = map(int, run.stdout.split())
    assert reading < 1.3 * size
    assert writing < 1.3 * size
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "large" / "model.safetensors"
    ).read_bytes()

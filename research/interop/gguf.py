"""GGUF files (llama.cpp) as models of ours: the LLaMA class, dequantised."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.attention.positions import Llama3, Rotary
from research.attention.rotary import frequencies
from research.interop import llama
from research.interop.architecture import Architecture, ConfigError, Settings
from research.interop.gguf_file import File
from research.interop.gguf_tokenizer import FromGGUF
from research.interop.hub import Checkpoint
from research.interop.tables import Row
from research.models.families import DecoderConfig

# What GGUF calls the arrays of a LLaMA.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

# Metadata that is read, each by the name that config.json has for it, and what of the rest changes no number.
SETTINGS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
NEEDED = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
ONLY = {
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
}
SILENT = ("rope.scaling.finetuned", "tensor_data_layout")
ELSEWHERE = (
    "attention.value_length",
    "rope.dimension_count",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)

# What each rotary frequency is divided by, and the scalings of which that is known: of Llama 3.1 and of 3.2.
FACTORS = "rope_freqs.weight"
RELEASED = tuple(Llama3(factor=factor, trained=8192) for factor in (8.0, 32.0))


def open_file(path: str | Path) -> Checkpoint:
    """The model in a GGUF file and its tokenizer; no array is read yet.

    Raises:
      WeightsError: the file is missing or damaged, or an array has a type that is not read.
      ConfigError: it is no LLaMA, or its metadata say what we cannot express.
    """
    file = File(Path(path).expanduser())
    config = llama.LLAMA.model(Settings(settings(file), file.place))
    tokenizer = FromGGUF(path=str(path)) if "tokenizer.ggml.model" in file.metadata else None
    return Checkpoint(config, LLAMA, file, tokenizer)


def settings(file: File) -> dict[str, Any]:
    """The metadata as config.json says it; whatever would change a number is read or refused.

    Raises:
      ConfigError: see `open_file`.
    """
    there, arrays = Settings(file.metadata, file.place), file.specs()
    there.only("general.architecture", "llama")
    prefix = "llama."
    for key, value in file.metadata.items():
        name = key.removeprefix(prefix)
        if key != name and name not in (*SETTINGS, *ONLY, *SILENT, *ELSEWHERE):
            raise ConfigError(
                f"{file.place}: {key} is {value!r}, which we do not know; expected a plain LLaMA"
            )
        if name in SETTINGS and key != name and not (isinstance(value, int | float) and value > 0):
            raise ConfigError(f"{file.place}: {key} is {value!r}, expected one number above 0")
    for name in NEEDED:
        there.need(f"{prefix}{name}")
    for name, values in ONLY.items():
        there.only(f"{prefix}{name}", *values)
    said = {name: there.get(f"{prefix}{key}", None) for key, name in SETTINGS.items()}
    width = said["head_dim"] or said["hidden_size"] // said["num_attention_heads"]
    for name in ("rope.dimension_count", "attention.value_length"):
        there.only(f"{prefix}{name}", width)
    if "token_embd.weight" in arrays and said["vocab_size"] is None:
        said["vocab_size"] = arrays["token_embd.weight"].shape[0]
    return said | {
        "rms_norm_eps": there.need(f"{prefix}attention.layer_norm_rms_epsilon"),
        "rope_scaling": _llama3(file, width, there, prefix) or _scaling(there, prefix),
        "attention_bias": "blk.0.attn_q.bias" in arrays,
        "mlp_bias": "blk.0.ffn_up.bias" in arrays,
        "tie_word_embeddings": "output.weight" not in arrays,
    }


def _scaling(there: Settings, prefix: str) -> Mapping[str, Any]:
    """`rope_scaling` of config.json; a factor without a type is linear, as llama.cpp reads it."""
    name = f"{prefix}rope.scaling"
    factor = there.get(f"{name}.factor", there.get(f"{prefix}rope.scale_linear", 1.0))
    kind = there.chosen(f"{name}.type", {kind: kind for kind in ("none", "linear", "yarn")}, "linear")
    if kind == "none" or factor in (0, 1):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": there.get(f"{name}.original_context_length", None),
        "beta_fast": there.get(f"{name}.yarn_beta_fast", None),
        "beta_slow": there.get(f"{name}.yarn_beta_slow", None),
    }


def _llama3(file: File, width: int, there: Settings, prefix: str) -> Mapping[str, Any]:
    """`rope_scaling` of Llama 3.1 and 3.2, of which a file has only what each frequency is divided by; empty where it
    has no such array.
    """
    if FACTORS not in file.specs():
        return {}
    if scaling := _scaling(there, prefix):
        raise ConfigError(
            f"{file.place}: {FACTORS} and {prefix}rope.scaling.factor = {scaling['factor']} both scale rotary "
            "frequencies, expected one of them; open the model's safetensors"
        )
    base = there.number(f"{prefix}rope.freq_base", 10_000.0)
    inverse, found = frequencies(width, base), file.read(FACTORS)
    for scaling in RELEASED:
        scaled, _ = scaling(inverse, base=base)
        if found.shape == inverse.shape and np.allclose(found, inverse / scaled, rtol=1e-4, atol=0):
            return llama.rope_parameters(Rotary(base=base, scaling=scaling))
    raise ConfigError(
        f"{file.place}: {FACTORS} does not say what Llama 3.1 (factor 8) or 3.2 (factor 32) does with {width} features "
        f"and base {base}, expected one of them; open the model's safetensors"
    )


def rows(config: DecoderConfig) -> list[Row]:
    """Which arrays hold which parameters: as in a LLaMA's safetensors, by other names, and the features of queries
    and keys in another order: rotary pairs are neighbours.
    """
    return [Row(_renamed(theirs), ours, form) for theirs, ours, form in llama.rows(config, pairs=True)]


def _renamed(theirs: str) -> str:
    name, _, part = theirs.replace("model.layers.", "blk.").rpartition(".")
    block, _, inner = name.partition("{layer}.")
    return f"{block}{{layer}}.{NAMES[inner]}.{part}" if inner else f"{NAMES[name]}.{part}"


LLAMA = Architecture(
    name="llama in GGUF", model=llama.LLAMA.model, rows=rows, ignored=r"\.attn_rot_embd$|^rope_freqs\.weight$"
)

"""ChatGLM-6B, and ChatGLM2-6B with ChatGLM3-6B, under the names of their released modules. They are read only.

ChatGLM-6B is a small GLM-130B (Zeng et al. 2022) whose residual stream is scaled from the *normalised* input of each
branch, by sqrt(2 layers). Its lines are those of GLM, see there: the prefix ends before the token that starts the
answer. ChatGLM2-6B is a causal decoder with grouped queries. The model_type of both is "chatglm".
"""

from typing import Any

from research.attention.masks import Causal, Prefix
from research.attention.positions import Rotary
from research.interop import glm
from research.interop.architecture import Architecture, Settings
from research.interop.tables import (
    SAME,
    TRANSPOSED,
    Row,
    chain,
    fused,
    fused_by_head,
    half_rotated,
    reordered,
    row,
)
from research.models.config import BIASED, EmbeddingConfig, StackConfig
from research.models.families import DecoderConfig


def model(settings: Settings) -> DecoderConfig:
    """ChatGLM-6B of a config.json. Its files also have an output table, a copy of the token table: the released modules
    report 6,173,286,400 parameters, which counts one of them.
    """
    _plain(settings)
    layers = settings.count("num_layers")
    stack = StackConfig(
        layers=layers,
        width=settings.count("hidden_size"),
        heads=settings.count("num_attention_heads"),
        hidden=settings.count("inner_hidden_size"),
        activation="gelu",
        norm="layer",
        epsilon=settings.number("layernorm_epsilon", 1e-5),
        placement="inner",
        residual=(2 * layers) ** 0.5,
        use_bias=True,
        positions=Rotary(axes=settings.chosen("position_encoding_2d", {True: (0, 1), False: (0,)}, True)),
    )
    return DecoderConfig(
        stack=stack,
        mask=Prefix(),
        tied_embeddings=settings.flag("tie_word_embeddings", True),
        embedding=EmbeddingConfig(rows=settings.count("vocab_size"), scale=1.0),
    )


def model2(settings: Settings) -> DecoderConfig:
    """ChatGLM2-6B or ChatGLM3-6B of a config.json.

    `rope_ratio` (their long-context releases) is refused: it divides places in one release and multiplies the base in
    another. `apply_query_key_layer_scaling` is not read: scores are divided and multiplied by it.
    """
    _plain(settings)
    for name in ("rmsnorm", "post_layer_norm", "original_rope", "multi_query_attention"):
        settings.only(name, True)
    for name in ("apply_residual_connection_post_layernorm", "tie_word_embeddings"):
        settings.only(name, False)
    settings.only("rope_ratio", 1)
    biased = ("qkv",) if settings.flag("add_qkv_bias", False) else False
    stack = StackConfig(
        layers=settings.count("num_layers"),
        width=settings.count("hidden_size"),
        heads=settings.count("num_attention_heads"),
        kv_heads=settings.count("multi_query_group_num"),
        head_dim=settings.count("kv_channels"),
        hidden=settings.count("ffn_hidden_size"),
        activation="swiglu",
        norm="rms",
        epsilon=settings.number("layernorm_epsilon", 1e-5),
        use_bias=settings.flag("add_bias_linear", False) or biased,
        positions=Rotary(fraction=0.5),
        dropout=settings.rate("hidden_dropout", 0.0),
        attention_dropout=settings.rate("attention_dropout", 0.0),
    )
    return DecoderConfig(
        stack=stack,
        mask=Causal(),
        tied_embeddings=False,
        embedding=EmbeddingConfig(rows=settings.count("padded_vocab_size"), scale=1.0),
    )


def _plain(settings: Settings) -> None:
    """Refuse what the tables do not know: quantised weights, and a learned prompt before the text."""
    settings.only("quantization_bit", 0)
    settings.only("pre_seq_len", None)


def rows(config: DecoderConfig) -> list[Row]:
    """Which arrays of ChatGLM-6B hold which parameters."""
    table = [
        row("transformer.word_embeddings.weight", "embedding/table"),
        *glm.layers("transformer", parts=fused_by_head(config.stack.heads, 3)),
    ]
    if not config.tied_embeddings:
        table.append(row("lm_head.weight", "head/kernel", form=TRANSPOSED))
    return table


def rows2(config: DecoderConfig) -> list[Row]:
    """Which arrays of ChatGLM2-6B hold which parameters. Its rotary pairs are neighbours."""
    stack: Any = config.stack
    own, other = "stack/blocks/{layer}", "transformer.encoder.layers.{layer}"
    sizes = [heads * stack.features for heads in (stack.heads, stack.groups, stack.groups)]
    turning = int(stack.features * stack.positions.fraction)
    queries, keys = (
        reordered(half_rotated(heads, stack.features, turning), axis=0)
        for heads in (stack.heads, stack.groups)
    )
    table = [
        row("transformer.embedding.word_embeddings.weight", "embedding/table"),
        row("transformer.encoder.final_layernorm.weight", "stack/norm/scale"),
        row("transformer.output_layer.weight", "head/kernel", form=TRANSPOSED),
        row(f"{other}.input_layernorm.weight", f"{own}/attention/norm/scale"),
        row(f"{other}.post_attention_layernorm.weight", f"{own}/mlp/norm/scale"),
    ]
    biased = tuple(part for part in BIASED if stack.biased(part))
    for weight, kernel, form, there in (
        ("weight", "kernel", TRANSPOSED, BIASED),
        ("bias", "bias", SAME, biased),
    ):
        if "qkv" in there:
            fields = (f"{own}/attention/inner/{name}/{kernel}" for name in ("query", "key", "value"))
            parts = fused(*sizes, axis=0).then(chain(queries, form), chain(keys, form), form)
            table.append(row(f"{other}.self_attention.query_key_value.{weight}", *fields, form=parts))
        if "output" in there:
            dense = f"{other}.self_attention.dense.{weight}"
            table.append(row(dense, f"{own}/attention/inner/output/{kernel}", form=form))
        if "mlp" in there:
            fields = (f"{own}/mlp/inner/{name}/{kernel}" for name in ("gate", "up"))
            both = fused(stack.mlp_width, stack.mlp_width, axis=0).then(form, form)
            table.append(row(f"{other}.mlp.dense_h_to_4h.{weight}", *fields, form=both))
            down = f"{other}.mlp.dense_4h_to_h.{weight}"
            table.append(row(down, f"{own}/mlp/inner/down/{kernel}", form=form))
    return table


_BUFFERS = r"rotary(_pos)?_emb\.inv_freq$"
CHATGLM = Architecture(
    name="chatglm",
    model=model,
    rows=rows,
    ignored=_BUFFERS,
    copies=(row("lm_head.weight", "embedding/table"),),
    told_by="inner_hidden_size",
)
CHATGLM2 = Architecture(
    name="chatglm2",
    model=model2,
    rows=rows2,
    ignored=_BUFFERS,
    model_type="chatglm",
    told_by="ffn_hidden_size",
)

"""GLM (Du et al. 2022), under the names of its released PyTorch modules. It is read only.

A line is a corrupted text, the prefix, and after it the spans that were cut out; coords are the place in the corrupted
text, which for a span is that of its mask token, and the place inside the span, from 1, which in the text is 0.
"""

from typing import Any

from research.attention.masks import Prefix
from research.attention.positions import Learned
from research.interop.architecture import Architecture, Settings
from research.interop.tables import SAME, TRANSPOSED, Form, Place, Row, fused, row
from research.models.config import EmbeddingConfig, StackConfig
from research.models.families import DecoderConfig


def model(settings: Settings) -> DecoderConfig:
    """The configuration of a config.json.

    `attention_scale` is not read: scores are divided and multiplied by it. The activation is the approximation that
    the models were trained with.
    """
    settings.only("relative_encoding", False)
    settings.only("spell_length", None)
    dropout = settings.rate("output_dropout_prob", 0.1)
    settings.only("embedding_dropout_prob", dropout)
    spans = settings.flag("block_position_encoding", True)
    length = settings.count("max_sequence_length")
    stack = StackConfig(
        layers=settings.count("num_layers"),
        width=settings.count("hidden_size"),
        heads=settings.count("num_attention_heads"),
        activation="gelu",
        norm="layer",
        epsilon=settings.number("layernorm_epsilon", 1e-5),
        use_bias=True,
        positions=Learned(length=length + 1 if spans else length, scale=1.0, axes=(0, 1) if spans else (0,)),
        dropout=dropout,
        attention_dropout=settings.rate("attention_dropout_prob", 0.1),
    )
    return DecoderConfig(
        stack=stack,
        mask=Prefix(),
        tied_embeddings=True,
        embedding=EmbeddingConfig(rows=settings.count("vocab_size"), scale=1.0),
    )


def rows(config: DecoderConfig) -> list[Row]:
    """Which arrays hold which parameters."""
    stack: Any = config.stack
    text, span = (
        f"glm.transformer.{name}.weight" for name in ("position_embeddings", "block_position_embeddings")
    )
    table = "stack/positions/0/table"
    if stack.positions.axes == (0,):
        places = [row(text, table)]
    else:
        places = [row(text, Place(table, 0)), row(span, Place(table, 1))]
    return [
        row("glm.word_embeddings.weight", "embedding/table"),
        *places,
        *layers("glm.transformer", parts=fused(*[stack.width] * 3, axis=0)),
    ]


def layers(theirs: str, *, parts: Form) -> list[Row]:
    """Rows of the layers and of the final norm of GLM and of ChatGLM-6B.

    Args:
      theirs: what the names of the transformer begin with.
      parts: how queries, keys and values lie in one array, on its first axis.
    """
    own, other = "stack/blocks/{layer}", f"{theirs}.layers.{{layer}}"
    fields = [f"{own}/attention/inner/{name}" for name in ("query", "key", "value")]
    linear = (
        (f"{other}.attention.dense", f"{own}/attention/inner/output"),
        (f"{other}.mlp.dense_h_to_4h", f"{own}/mlp/inner/up"),
        (f"{other}.mlp.dense_4h_to_h", f"{own}/mlp/inner/down"),
    )
    norms = (
        (f"{other}.input_layernorm", f"{own}/attention/norm"),
        (f"{other}.post_attention_layernorm", f"{own}/mlp/norm"),
        (f"{theirs}.final_layernorm", "stack/norm"),
    )
    table = []
    for weight, kernel, scale, form in (
        ("weight", "kernel", "scale", TRANSPOSED),
        ("bias", "bias", "bias", SAME),
    ):
        all_parts = (f"{field}/{kernel}" for field in fields)
        name = f"{other}.attention.query_key_value.{weight}"
        table.append(row(name, *all_parts, form=parts.then(*[form] * 3)))
        table += [row(f"{name}.{weight}", f"{ours}/{kernel}", form=form) for name, ours in linear]
        table += [row(f"{name}.{weight}", f"{ours}/{scale}") for name, ours in norms]
    return table


GLM = Architecture(
    name="glm-infilling", model=model, rows=rows, prefix="glm.", model_type="glm", told_by="num_layers"
)

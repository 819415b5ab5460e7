"""GPT-2 (Radford et al. 2019), as `GPT2LMHeadModel` lays it out."""

from typing import Any

from research.attention.masks import Causal
from research.attention.positions import Learned
from research.interop.architecture import ACTIVATIONS, THEIRS, Architecture, Settings
from research.interop.tables import TRANSPOSED, Row, fused, row
from research.models.config import EmbeddingConfig, StackConfig
from research.models.families import DecoderConfig


def model(settings: Settings) -> DecoderConfig:
    """The configuration of a config.json."""
    for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        settings.only(name, False)
    for name in ("scale_attn_weights", "is_causal"):
        settings.only(name, True)
    rates = {name: settings.rate(name, 0.1) for name in ("resid_pdrop", "embd_pdrop")}
    if len(set(rates.values())) > 1:
        settings.only("embd_pdrop", rates["resid_pdrop"])
    width = settings.count("n_embd", 768)
    stack = StackConfig(
        layers=settings.count("n_layer", 12),
        width=width,
        heads=settings.count("n_head", 12),
        hidden=settings.count("n_inner", 4 * width),
        activation=settings.chosen("activation_function", ACTIVATIONS, "gelu_new"),
        norm="layer",
        epsilon=settings.number("layer_norm_epsilon", 1e-5),
        use_bias=True,
        positions=Learned(length=settings.count("n_positions", 1024), scale=1.0),
        dropout=rates["resid_pdrop"],
        attention_dropout=settings.rate("attn_pdrop", 0.1),
    )
    return DecoderConfig(
        stack=stack,
        mask=Causal(),
        tied_embeddings=settings.flag("tie_word_embeddings", True),
        embedding=EmbeddingConfig(rows=settings.count("vocab_size", 50257), scale=1.0),
    )


def settings(config: DecoderConfig) -> dict[str, Any]:
    """config.json of a configuration."""
    stack: Any = config.stack
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.embedding.rows,
        "n_positions": stack.positions.limit,
        "n_embd": stack.width,
        "n_layer": stack.layers,
        "n_head": stack.heads,
        "n_inner": stack.mlp_width,
        "activation_function": THEIRS.get(stack.activation),
        "resid_pdrop": stack.dropout,
        "embd_pdrop": stack.dropout,
        "attn_pdrop": stack.attention_dropout,
        "layer_norm_epsilon": stack.epsilon,
        "tie_word_embeddings": config.tied_embeddings,
    }


def rows(config: DecoderConfig) -> list[Row]:
    """Which arrays hold which parameters; their layers are Conv1D, [in out] as ours are."""
    stack: Any = config.stack
    theirs, ours = "transformer.h.{layer}", "stack/blocks/{layer}"
    parts = fused(*[stack.width] * 3, axis=-1)
    table = [
        row("transformer.wte.weight", "embedding/table"),
        row("transformer.wpe.weight", "stack/positions/0/table"),
        row("transformer.ln_f.weight", "stack/norm/scale"),
        row("transformer.ln_f.bias", "stack/norm/bias"),
    ]
    for weight, kernel in (("weight", "kernel"), ("bias", "bias")):
        scale = "scale" if weight == "weight" else "bias"
        fields = [f"{ours}/attention/inner/{name}/{kernel}" for name in ("query", "key", "value")]
        table += [
            row(f"{theirs}.ln_1.{weight}", f"{ours}/attention/norm/{scale}"),
            row(f"{theirs}.ln_2.{weight}", f"{ours}/mlp/norm/{scale}"),
            row(f"{theirs}.attn.c_attn.{weight}", *fields, form=parts),
            row(f"{theirs}.attn.c_proj.{weight}", f"{ours}/attention/inner/output/{kernel}"),
            row(f"{theirs}.mlp.c_fc.{weight}", f"{ours}/mlp/inner/up/{kernel}"),
            row(f"{theirs}.mlp.c_proj.{weight}", f"{ours}/mlp/inner/down/{kernel}"),
        ]
    if not config.tied_embeddings:
        table.append(row("lm_head.weight", "head/kernel", form=TRANSPOSED))
    return table


GPT2 = Architecture(
    name="gpt2",
    model=model,
    rows=rows,
    settings=settings,
    prefix="transformer.",
    ignored=r"\.attn\.(masked_)?bias$",
    copies=(row("lm_head.weight", "embedding/table"),),
)

"""T5 (Raffel et al. 2020), v1.0 and v1.1, as `T5ForConditionalGeneration` lays it out; UL2 has the same names."""

from typing import Any

from research.attention.positions import T5Bias
from research.interop.architecture import ACTIVATIONS, GATED, THEIRS, Architecture, Settings
from research.interop.tables import TRANSPOSED, Row, row
from research.models.config import EmbeddingConfig, StackConfig
from research.models.families import EncoderDecoderConfig

# "gated-gelu" has been the approximation from the beginning, "gelu" is not.
PROJECTIONS = {
    **ACTIVATIONS,
    **{f"gated-{name}": ours for name, ours in GATED.items()},
    "gated-gelu": "geglu",
}


def model(settings: Settings) -> EncoderDecoderConfig:
    """The configuration of a config.json."""
    settings.only("is_encoder_decoder", True)
    settings.only("is_decoder", False)
    settings.only("is_causal", True)  # of the decoder
    activation = settings.chosen("feed_forward_proj", PROJECTIONS, "relu")
    # Files say what they derive from it as well, and it is that which transformers reads.
    gated = activation in GATED.values()
    options = [name for name, ours in (GATED if gated else ACTIVATIONS).items() if ours == activation]
    settings.only("is_gated_act", gated)
    settings.only("dense_act_fn", *options)

    width, layers = settings.count("d_model", 512), settings.count("num_layers", 6)
    encoder, decoder = (
        StackConfig(
            layers=count,
            width=width,
            heads=settings.count("num_heads", 8),
            head_dim=settings.count("d_kv", 64),
            hidden=settings.count("d_ff", 2048),
            activation=activation,
            norm="rms",
            epsilon=settings.number("layer_norm_epsilon", 1e-6),
            scale=1.0,
            positions=T5Bias(
                buckets=settings.count("relative_attention_num_buckets", 32),
                distance=settings.count("relative_attention_max_distance", 128),
            ),
            dropout=settings.rate("dropout_rate", 0.1),
            attention_dropout=settings.rate("dropout_rate", 0.1),
        )
        for count in (layers, settings.count("num_decoder_layers", layers))
    )
    tied = settings.flag("tie_word_embeddings", True)
    scaled = settings.flag("scale_decoder_outputs", tied)
    # transformers 5 writes that v1.1 is tied, though it is not and has an array of its own.
    tied = tied and (scaled or HEAD not in settings.names)
    return EncoderDecoderConfig(
        encoder=encoder,
        decoder=decoder,
        tied_embeddings=tied,
        embedding=EmbeddingConfig(
            rows=settings.count("vocab_size", 32128),
            scale=1.0,
            logit_scale=width**-0.5 if scaled else 1.0,
        ),
    )


def settings(config: EncoderDecoderConfig) -> dict[str, Any]:
    """config.json of a configuration."""
    encoder, decoder = config.stacks()
    positions: Any = encoder.positions
    activation = THEIRS.get(encoder.activation, "")
    if encoder.gated:
        activation = "gated-" + {"gelu_new": "gelu"}.get(activation, activation)
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.embedding.rows,
        "d_model": encoder.width,
        "d_kv": encoder.features,
        "d_ff": encoder.mlp_width,
        "num_layers": encoder.layers,
        "num_decoder_layers": decoder.layers,
        "num_heads": encoder.heads,
        "relative_attention_num_buckets": getattr(positions, "buckets", None),
        "relative_attention_max_distance": getattr(positions, "distance", None),
        "dropout_rate": encoder.dropout,
        "layer_norm_epsilon": encoder.epsilon,
        "feed_forward_proj": activation,
        "tie_word_embeddings": config.tied_embeddings,
        "scale_decoder_outputs": config.embedding.logit_scale != 1,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def rows(config: EncoderDecoderConfig) -> list[Row]:
    """Which arrays hold which parameters."""
    table = [row("shared.weight", "embedding/table")]
    for side, sublayers in (
        ("encoder", (("SelfAttention", "attention"), ("DenseReluDense", "mlp"))),
        (
            "decoder",
            (("SelfAttention", "attention"), ("EncDecAttention", "cross"), ("DenseReluDense", "mlp")),
        ),
    ):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table.append(row(bias, f"{side}/positions/0/bias/table"))
        table.append(row(f"{side}.final_layer_norm.weight", f"{side}/norm/scale"))
        for place, (name, field) in enumerate(sublayers):
            theirs = f"{side}.block.{{layer}}.layer.{place}"
            ours = f"{side}/blocks/{{layer}}/{field}"
            table.append(row(f"{theirs}.layer_norm.weight", f"{ours}/norm/scale"))
            for other, own in _linears(config, field):
                weight, kernel = f"{theirs}.{name}.{other}.weight", f"{ours}/inner/{own}/kernel"
                table.append(row(weight, kernel, form=TRANSPOSED))
    if not config.tied_embeddings:
        table.append(row(HEAD, "head/kernel", form=TRANSPOSED))
    return table


def _linears(config: EncoderDecoderConfig, field: str) -> list[tuple[str, str]]:
    """The linear layers of a sublayer, as they and as we call them."""
    if field != "mlp":
        return [("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")]
    if config.encoder.gated:
        return [("wi_0", "gate"), ("wi_1", "up"), ("wo", "down")]
    return [("wi", "up"), ("wo", "down")]


# The published models begin a target with padding, and their encoders read an end after the source.
SPECIALS: dict[str, Any] = {"bos_token": "<pad>", "after": ("eos",)}
HEAD = "lm_head.weight"
T5 = Architecture(
    name="t5",
    model=model,
    rows=rows,
    settings=settings,
    family=EncoderDecoderConfig,
    # A table of the cross-attention that early files have and nothing reads.
    ignored=r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
    copies=tuple(
        row(name, "embedding/table")
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", HEAD)
    ),
)

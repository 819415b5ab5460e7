"""BERT (Devlin et al. 2019), as `BertModel` and `BertForMaskedLM` lay it out."""

from typing import Any

from research.attention.positions import Learned
from research.interop.architecture import ACTIVATIONS, THEIRS, Architecture, ConfigError, Settings
from research.interop.tables import TRANSPOSED, Row, row
from research.models.config import EmbeddingConfig, StackConfig
from research.models.families import EncoderConfig

# Whether a class has the pooler, and the head of masked tokens. What `BertForPreTraining` has besides, whether a
# sentence is the next, is left out.
CLASSES = {
    "BertModel": (True, False),
    "BertForMaskedLM": (False, True),
    "BertForPreTraining": (True, True),
}


def model(settings: Settings) -> EncoderConfig:
    """The configuration of a config.json, whose `architectures` says which class its arrays are of."""
    for name in ("is_decoder", "add_cross_attention"):
        settings.only(name, False)
    settings.only("position_embedding_type", "absolute")
    named = settings.need("architectures")
    if named not in [[name] for name in CLASSES]:
        raise ConfigError(
            f"{settings.place}: architectures is {named!r}, expected one of {', '.join(map(repr, CLASSES))}"
        )
    pooler, masked = CLASSES[named[0]]
    stack = StackConfig(
        layers=settings.count("num_hidden_layers", 12),
        width=settings.count("hidden_size", 768),
        heads=settings.count("num_attention_heads", 12),
        hidden=settings.count("intermediate_size", 3072),
        activation=settings.chosen("hidden_act", ACTIVATIONS, "gelu"),
        norm="layer",
        placement="post",
        input_norm=True,
        epsilon=settings.number("layer_norm_eps", 1e-12),
        use_bias=True,
        positions=Learned(length=settings.count("max_position_embeddings", 512), scale=1.0),
        dropout=settings.rate("hidden_dropout_prob", 0.1),
        attention_dropout=settings.rate("attention_probs_dropout_prob", 0.1),
    )
    return EncoderConfig(
        stack=stack,
        tied_embeddings=not masked or settings.flag("tie_word_embeddings", True),
        embedding=EmbeddingConfig(
            rows=settings.count("vocab_size", 30522),
            scale=1.0,
            types=settings.count("type_vocab_size", 2),
            transform=masked,
            bias=masked,
        ),
        pooler=pooler,
    )


def settings(config: EncoderConfig) -> dict[str, Any]:
    """config.json of a configuration. One with a pooler and a head of masked tokens is no class of theirs, but for
    `BertForPreTraining`, whose other head we do not have.
    """
    stack: Any = config.stack
    return {
        "architectures": ["BertForMaskedLM" if config.embedding.transform else "BertModel"],
        "model_type": "bert",
        "vocab_size": config.embedding.rows,
        "hidden_size": stack.width,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "intermediate_size": stack.mlp_width,
        "hidden_act": THEIRS.get(stack.activation),
        "hidden_dropout_prob": stack.dropout,
        "attention_probs_dropout_prob": stack.attention_dropout,
        "max_position_embeddings": stack.positions.limit,
        "type_vocab_size": config.embedding.types,
        "layer_norm_eps": stack.epsilon,
        "tie_word_embeddings": config.tied_embeddings,
    }


def rows(config: EncoderConfig) -> list[Row]:
    """Which arrays hold which parameters."""
    theirs, ours = "bert.encoder.layer.{layer}", "stack/blocks/{layer}"
    layers = [
        (f"{theirs}.attention.self.query", f"{ours}/attention/inner/query"),
        (f"{theirs}.attention.self.key", f"{ours}/attention/inner/key"),
        (f"{theirs}.attention.self.value", f"{ours}/attention/inner/value"),
        (f"{theirs}.attention.output.dense", f"{ours}/attention/inner/output"),
        (f"{theirs}.intermediate.dense", f"{ours}/mlp/inner/up"),
        (f"{theirs}.output.dense", f"{ours}/mlp/inner/down"),
    ]
    norms = [
        ("bert.embeddings.LayerNorm", "stack/input_norm"),
        (f"{theirs}.attention.output.LayerNorm", f"{ours}/attention/norm"),
        (f"{theirs}.output.LayerNorm", f"{ours}/mlp/norm"),
    ]
    table = [
        row("bert.embeddings.word_embeddings.weight", "embedding/table"),
        row("bert.embeddings.position_embeddings.weight", "stack/positions/0/table"),
        row("bert.embeddings.token_type_embeddings.weight", "embedding/types"),
    ]
    if config.pooler:
        layers.append(("bert.pooler.dense", "pooler/dense"))
    if config.embedding.transform:
        layers.append(("cls.predictions.transform.dense", "finish/transform/dense"))
        norms.append(("cls.predictions.transform.LayerNorm", "finish/transform/norm"))
        table.append(row("cls.predictions.bias", "finish/bias"))
    if not config.tied_embeddings:
        table.append(row("cls.predictions.decoder.weight", "head/kernel", form=TRANSPOSED))
        table.append(row("cls.predictions.decoder.bias", "finish/bias"))  # of the two this one is added
    for other, own in layers:
        table += [
            row(f"{other}.weight", f"{own}/kernel", form=TRANSPOSED),
            row(f"{other}.bias", f"{own}/bias"),
        ]
    for other, own in norms:
        table += [row(f"{other}.weight", f"{own}/scale"), row(f"{other}.bias", f"{own}/bias")]
    return table


BERT = Architecture(
    name="bert",
    model=model,
    rows=rows,
    settings=settings,
    family=EncoderConfig,
    scores_tokens=lambda config: config.embedding.transform,
    prefix="bert.",
    # `BertForMaskedLM` does not read the pooler that a file of BERT's pretraining has.
    ignored=r"embeddings\.position_ids$|^cls\.seq_relationship\.|^bert\.pooler\.",
    copies=(
        row("cls.predictions.decoder.weight", "embedding/table"),
        row("cls.predictions.decoder.bias", "finish/bias"),
    ),
    older={"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"},
)

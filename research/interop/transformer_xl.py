"""Transformer-XL (Dai et al. 2019), under the names of its PyTorch port, `TransfoXLLMHeadModel`. It is read only.

Two conventions of the port differ from the paper's own code. Clusters of the adaptive softmax are scored in the order
of their ids, as in the paper's TensorFlow code; its PyTorch code reads the scores in reverse. And the port begins with
a memory of zero states that are read; here, as in both, a memory begins empty.
"""

from typing import Any

from research.attention.masks import Causal, Window
from research.attention.positions import Relative
from research.attention.recurrence import Recurrent
from research.interop.architecture import Architecture, ConfigError, Settings
from research.interop.tables import TRANSPOSED, Form, Row, fused, row
from research.models.config import EmbeddingConfig, StackConfig
from research.models.families import DecoderConfig


def model(settings: Settings) -> DecoderConfig:
    """The configuration of a config.json; what it leaves out is as in the release for WikiText-103."""
    for name, value in {
        "attn_type": 0,
        "pre_lnorm": False,  # there is no norm after the last layer, which our "pre" has
        "sample_softmax": -1,
        "tie_weight": True,
        "tie_word_embeddings": True,
    }.items():
        settings.only(name, value)
    width, memory = settings.count("d_model", 1024), settings.count("mem_len", 1600, least=0)
    same_length = settings.flag("same_length", True)
    if not memory:
        settings.only("same_length", False)  # or nothing would be seen
    _unclamped(settings, memory, same_length)
    stack = StackConfig(
        layers=settings.count("n_layer", 18),
        width=width,
        heads=settings.count("n_head", 16),
        head_dim=settings.count("d_head", 64),
        hidden=settings.count("d_inner", 4096),
        activation="relu",
        norm="layer",
        placement="post",
        epsilon=settings.number("layer_norm_epsilon", 1e-5),
        use_bias=("mlp",),
        positions=Relative(layers="everything" if settings.flag("untie_r", True) else "projection"),
        memory=Recurrent(length=memory) if memory else None,
        dropout=settings.rate("dropout", 0.1),
        attention_dropout=settings.rate("dropatt", 0.0),
    )
    return DecoderConfig(
        stack=stack,
        mask=Window(memory) if same_length else Causal(),
        tied_embeddings=True,
        embedding=_embedding(settings, width),
    )


def _unclamped(settings: Settings, memory: int, same_length: bool) -> None:
    """Refuse `clamp_len` where a query may see further."""
    clamp = settings.count("clamp_len", 1000, least=-1)
    if clamp > 0 and not (same_length and memory - 1 <= clamp):
        raise ConfigError(
            f"{settings.place}: clamp_len is {clamp}, so further keys would count as that far, which is not "
            f"supported; set mem_len to at most {clamp + 1} with same_length true, or clamp_len to -1"
        )


def _embedding(settings: Settings, width: int) -> EmbeddingConfig:
    settings.only("d_embed", width)
    rows, cutoffs = (
        settings.count("vocab_size", 267735),
        tuple(settings.counts("cutoffs", [20000, 40000, 200000])),
    )
    if not cutoffs:
        settings.only("div_val", 1)
        return EmbeddingConfig(rows=rows, bias=True)
    shrink = settings.count("div_val", 4)
    first, *others = settings.get("tie_projs", [False, *[True] * len(cutoffs)])
    if shrink > 1 and not all(others):
        raise ConfigError(
            f"{settings.place}: tie_projs is {[first, *others]}, expected true for every cluster but the first"
        )
    return EmbeddingConfig(
        rows=rows, cutoffs=cutoffs, shrink=shrink, head_projection=shrink > 1 and not first
    )


def rows(config: DecoderConfig) -> list[Row]:
    """Which arrays hold which parameters."""
    own, other = "stack/blocks/{layer}", "transformer.layers.{layer}"
    attention, mlp = f"{own}/attention/inner", f"{own}/mlp/inner"
    stack: Any = config.stack
    size = stack.heads * stack.features
    parts = (f"{attention}/{name}/kernel" for name in ("query", "key", "value"))
    table = [
        row(
            f"{other}.dec_attn.qkv_net.weight",
            *parts,
            form=fused(size, size, size, axis=0).then(*[TRANSPOSED] * 3),
        ),
        row(f"{other}.dec_attn.o_net.weight", f"{attention}/output/kernel", form=TRANSPOSED),
        row(f"{other}.dec_attn.r_net.weight", f"{own}/positions/projection", form=_by_head(stack.heads)),
        row(f"{other}.pos_ff.CoreNet.0.weight", f"{mlp}/up/kernel", form=TRANSPOSED),
        row(f"{other}.pos_ff.CoreNet.0.bias", f"{mlp}/up/bias"),
        row(f"{other}.pos_ff.CoreNet.3.weight", f"{mlp}/down/kernel", form=TRANSPOSED),
        row(f"{other}.pos_ff.CoreNet.3.bias", f"{mlp}/down/bias"),
    ]
    for name, field in (("dec_attn", "attention"), ("pos_ff", "mlp")):
        table += [
            row(f"{other}.{name}.layer_norm.weight", f"{own}/{field}/norm/scale"),
            row(f"{other}.{name}.layer_norm.bias", f"{own}/{field}/norm/bias"),
        ]
    untied = stack.positions.layers == "everything"
    for name, field in (("r_w_bias", "content"), ("r_r_bias", "position")):
        if untied:
            table.append(row(f"{other}.dec_attn.{name}", f"{own}/positions/{field}"))
        else:
            table.append(row(f"transformer.{name}", f"stack/positions/0/{field}"))
    return [*table, *_vocabulary(config.embedding)]


def _vocabulary(config: EmbeddingConfig) -> list[Row]:
    """Token vectors and what makes scores of them."""
    vectors, biases = "transformer.word_emb.emb_layers.{}.weight", "crit.out_layers.{}.bias"
    if not config.cutoffs:
        return [row(vectors.format(0), "embedding/table"), row(biases.format(0), "finish/bias")]
    assert config.rows is not None  # a published model says so
    edges = (0, *config.cutoffs, config.rows)
    clusters = range(len(edges) - 1)
    table = [
        row("crit.cluster_weight", "embedding/clusters", form=TRANSPOSED),
        row("crit.cluster_bias", "embedding/cluster_bias"),
    ]
    tables = [f"embedding/tables/{i}" for i in clusters]
    token_biases = [f"embedding/token_biases/{i}" for i in clusters]
    if config.shrink == 1:  # one array for all clusters
        together = fused(*(last - first for first, last in zip(edges, edges[1:], strict=False)), axis=0)
        return [
            *table,
            row(vectors.format(0), *tables, form=together),
            row(biases.format(0), *token_biases, form=together),
        ]
    for i in clusters:
        table += [
            row(vectors.format(i), tables[i]),
            row(biases.format(i), token_biases[i]),
            row(f"transformer.word_emb.emb_projs.{i}", f"embedding/projections/{i}", form=TRANSPOSED),
        ]
    if config.head_projection:
        table.append(row("crit.out_projs.0", "embedding/head_projection", form=TRANSPOSED))
    return table


def _by_head(heads: int) -> Form:
    """[h d, m] as [m h d]."""
    return Form(
        lambda theirs: (theirs.T.reshape(theirs.shape[1], heads, -1),),
        lambda ours: ours.reshape(ours.shape[0], -1).T,
    )


TRANSFORMER_XL = Architecture(
    name="transfo-xl",
    model=model,
    rows=rows,
    # Tied arrays stand under both of their names.
    ignored=r"pos_emb\.inv_freq$|^crit\.out_layers\.\d+\.weight$|^crit\.out_projs\.\d+$|dec_attn\.r_[rw]_bias$",
)

"""From tokens to vectors and from hidden states to scores of tokens."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from research.attention import sharded
from research.batch import Tokens
from research.models.config import EmbeddingConfig, StackConfig
from research.models.layers import ACTIVATIONS, child, linear, norm, product, spread


class Embedding(nnx.Module):
    """Token vectors, of unit size unless `EmbeddingConfig.scale` says otherwise; the table gives logits where they are
    tied.
    """

    def __init__(self, vocab: int, config: EmbeddingConfig, stack: StackConfig, *, key: Array):
        rows, width = config.table_rows(vocab), stack.width
        self.table = nnx.Param(jax.random.normal(key, (rows, width)) * width**-0.5)
        self.types = _types(config, width, key)
        self.scale = width**0.5 if config.scale is None else config.scale
        self.dtype = stack.compute_dtype

    def __call__(self, tokens: Tokens) -> Float[Array, "*b n m"]:
        """Vectors of the tokens."""
        # Over a mesh, rows of the table are made whole before they are read: XLA would gather ids instead.
        table = sharded.placed(self.table[...], sharded.HEADS, ())
        x = spread(jnp.take(table, tokens.ids, axis=0).astype(self.dtype) * self.scale)
        return _typed(x, self.types, tokens)

    def logits(self, hidden: Float[Array, "*b m"]) -> Float[Array, "*b v"]:
        """Scores of every token, in float32."""
        table = self.table[...].astype(hidden.dtype)
        return product(hidden, table.T, jnp.float32)


class Head(nnx.Module):
    """Logits by a table of their own (untied)."""

    def __init__(self, vocab: int, stack: StackConfig, *, key: Array):
        self.kernel = nnx.Param(jax.random.normal(key, (stack.width, vocab)) * stack.width**-0.5)

    def logits(self, hidden: Float[Array, "*b m"]) -> Float[Array, "*b v"]:
        """Scores of every token (or class), in float32."""
        kernel = self.kernel[...].astype(hidden.dtype)
        return product(hidden, kernel, jnp.float32)


class AdaptiveEmbedding(nnx.Module):
    """Vectors that are narrower the rarer their cluster of tokens, projected to the stack's width (Baevski and Auli
    2019), and an adaptive softmax that shares them (Grave et al. 2017).

    Attributes:
      tables: for each cluster [n m / shrink^i].
      projections: for each cluster [m / shrink^i m]; empty where all are as wide as the stack.
      head_projection: [m m], in the place of the first of them for scores, or None.
      clusters: [m / shrink^0 c], a kernel of scores for each cluster but the first, which competes with its tokens.
      token_biases: for each cluster [n]; `cluster_bias` [c].
    """

    def __init__(self, vocab: int, config: EmbeddingConfig, stack: StackConfig, *, key: Array):
        width, edges = stack.width, (0, *config.cutoffs, config.table_rows(vocab))
        self.edges = edges
        sizes = [last - first for first, last in zip(edges, edges[1:], strict=False)]
        widths = [width // config.shrink**i for i in range(len(sizes))]
        if not widths[-1]:
            raise ValueError(
                f"EmbeddingConfig.shrink = {config.shrink}: cluster {len(sizes) - 1} of width {width} would have no "
                "feature left; lower it or give fewer EmbeddingConfig.cutoffs"
            )

        def normal(part: str, size: int, *shape: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(child(key, part), shape) * size**-0.5)

        self.tables = nnx.List(
            [
                normal(f"table {i}", width, size, narrow)
                for i, (size, narrow) in enumerate(zip(sizes, widths, strict=True))
            ]
        )
        projected = range(len(sizes)) if config.shrink > 1 else ()
        self.projections = nnx.List(
            [normal(f"projection {i}", widths[i], widths[i], width) for i in projected]
        )
        own = normal("head projection", width, widths[0], width) if config.head_projection else None
        self.head_projection = own
        self.clusters = normal("clusters", width, widths[0], len(sizes) - 1)
        self.cluster_bias = nnx.Param(jnp.zeros(len(sizes) - 1))
        self.token_biases = nnx.List([nnx.Param(jnp.zeros(size)) for size in sizes])
        self.types = _types(config, width, key)
        self.scale = width**0.5 if config.scale is None else config.scale
        self.dtype = stack.compute_dtype

    def __call__(self, tokens: Tokens) -> Float[Array, "*b n m"]:
        """Vectors of the tokens."""
        ids = jnp.asarray(tokens.ids)
        x: Any = 0
        for i, table in enumerate(self.tables):
            rows = jnp.clip(ids - self.edges[i], 0, table.shape[0] - 1)
            whole = sharded.placed(table[...], sharded.HEADS, ())
            part = jnp.take(whole, rows, axis=0).astype(self.dtype)
            if self.projections:
                part = part @ self.projections[i][...].astype(self.dtype)
            inside = (ids >= self.edges[i]) & (ids < self.edges[i + 1])
            x = x + jnp.where(inside[..., None], part, 0)
        return _typed(spread(x * self.scale), self.types, tokens)

    def logits(self, hidden: Float[Array, "*b m"]) -> Float[Array, "*b v"]:
        """Log-probability of every token, in float32: that of its cluster plus its own within the cluster."""
        scores, projections = [], list(self.projections)
        if self.head_projection is not None:
            projections[0] = self.head_projection
        for i, table in enumerate(self.tables):
            narrow = hidden
            if projections:
                narrow = product(hidden, projections[i][...].T.astype(hidden.dtype))
            own = product(narrow, table[...].T.astype(hidden.dtype), jnp.float32) + self.token_biases[i][...]
            if i == 0:
                kernel = self.clusters[...].astype(hidden.dtype)
                ahead = product(narrow, kernel, jnp.float32) + self.cluster_bias[...]
                both = jax.nn.log_softmax(jnp.concatenate([own, ahead], axis=-1))
                first, rest = jnp.split(both, [table.shape[0]], axis=-1)
                scores.append(first)
            else:
                scores.append(jax.nn.log_softmax(own) + rest[..., i - 1 : i])
        return jnp.concatenate(scores, axis=-1)


TokenVectors = Embedding | AdaptiveEmbedding


class Dense(nnx.Module):
    """A dense layer and what follows it: BERT's pooler (tanh), or the transform of its head (activation and norm)."""

    def __init__(self, stack: StackConfig, *, pooler: bool, key: Array):
        self.dense = linear(stack.width, stack.width, stack, key, bias=True)
        self.activation = jnp.tanh if pooler else ACTIVATIONS[stack.activation]
        self.norm = None if pooler else norm(stack)

    def __call__(self, hidden: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        """The transformed states."""
        x = self.activation(self.dense(hidden))
        return x if self.norm is None else self.norm(x)


class Finish(nnx.Module):
    """What lies between hidden states, a table and logits, as `EmbeddingConfig` says."""

    def __init__(self, vocab: int, config: EmbeddingConfig, stack: StackConfig, *, key: Array):
        self.transform = Dense(stack, pooler=False, key=child(key, "transform")) if config.transform else None
        self.bias = nnx.Param(jnp.zeros(config.table_rows(vocab))) if config.bias else None
        self.scale, self.softcap, self.vocab = config.logit_scale, config.softcap, vocab


class Outputs(nnx.Module):
    """All that makes logits of hidden states."""

    def __init__(self, table: Any, finish: Finish):
        self.table, self.finish = table, finish

    def logits(self, hidden: Float[Array, "*b m"]) -> Float[Array, "*b v"]:
        """Scores of every token, in float32."""
        finish = self.finish
        scores = self.table.logits(hidden if finish.transform is None else finish.transform(hidden))
        scores = scores if finish.scale == 1 else scores * finish.scale
        scores = scores if finish.bias is None else scores + finish.bias[...]
        scores = scores if finish.softcap is None else finish.softcap * jnp.tanh(scores / finish.softcap)
        return scores[..., : finish.vocab]  # rows of the table behind them are of no token


def embedding(vocab: int, config: EmbeddingConfig, stack: StackConfig, *, key: Array) -> Any:
    """The token table that a config asks for."""
    made = AdaptiveEmbedding if config.cutoffs else Embedding
    return made(vocab, config, stack, key=key)


def finish(vocab: int, config: EmbeddingConfig, stack: StackConfig, *, key: Array) -> Finish | None:
    """What lies between states and logits, or None where that is nothing."""
    plain = dataclasses.replace(EmbeddingConfig(), **{name: getattr(config, name) for name in _AT_THE_INPUT})
    nothing = config == plain and config.table_rows(vocab) == vocab
    return None if nothing else Finish(vocab, config, stack, key=key)


def outputs(table: Any, finish: Finish | None) -> Any:
    """What has `logits`: the table, or it and what lies before and after it."""
    return table if finish is None else Outputs(table, finish)


_AT_THE_INPUT = ("rows", "scale", "types", "cutoffs", "shrink", "head_projection")


def _types(config: EmbeddingConfig, width: int, key: Array) -> nnx.Param | None:
    """A vector for each kind of tokens, if there are kinds."""
    if not config.types:
        return None
    return nnx.Param(jax.random.normal(child(key, "types"), (config.types, width)) * width**-0.5)


def _typed(x: Array, table: Any, tokens: Tokens) -> Array:
    """Vectors with those of the tokens' types added."""
    if table is None:
        if tokens.types is not None:
            raise ValueError(
                "the tokens have types, but the model tells none apart; set EmbeddingConfig.types"
            )
        return x
    types = jnp.zeros_like(tokens.ids) if tokens.types is None else tokens.types
    return x + jnp.take(table[...], types, axis=0).astype(x.dtype)

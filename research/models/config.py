"""What a stack of transformer blocks is made of, as frozen values."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp

from research.attention.masks import Mask
from research.attention.positions import Rotary, Scheme
from research.attention.recurrence import Recurrent
from research.settings import LATER


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """How one block of a repeating pattern differs from the stack around it; None: not at all.

    Attributes:
      mask: in place of the family's mask.
      window: in addition to the mask, e.g. `Window(128)` for a local layer.
      positions: in place of the stack's position scheme.
    """

    mask: Mask | None = None
    window: Mask | None = None
    positions: Scheme | None = None

    def visible(self, mask: Mask) -> Mask:
        """The mask of this block in a family whose mask is `mask`."""
        own = self.mask or mask
        return own & self.window if self.window else own


BIASED = ("qkv", "output", "mlp")  # parts of a block whose linear layers may have biases


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """How tokens become vectors and hidden states become logits.

    Attributes:
      rows: of the token table, at least as many as there are ids; None: just so many.
      scale: what a row of the table is multiplied by at the input; None: sqrt(m).
      types: kinds of tokens (`Tokens.types`) with a learned vector each that is added (BERT's segments); 0: none.
      cutoffs: ids, the rarer the higher, at which the next cluster of them begins: narrower vectors at the input and an
        adaptive softmax at the output (Grave et al. 2017; Baevski and Auli 2019). Logits are then log-probabilities.
      shrink: how many times narrower the vectors of a cluster are than those of the cluster before.
      head_projection: scores of the first cluster have a projection of their own (Transformer-XL as released).
      transform: hidden states pass a dense layer, the activation and a norm on their way to the logits (BERT).
      bias: a bias for the logit of each token.
      logit_scale: what logits are multiplied by; T5's are by m^-1/2.
      softcap: of the logits, c tanh(logit / c) (Gemma 2), or None.
    """

    rows: int | None = None
    scale: float | None = None
    types: int = 0
    cutoffs: tuple[int, ...] = ()
    shrink: int = 1
    head_projection: bool = False
    transform: bool = False
    bias: bool = False
    logit_scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self):
        if self.types < 0 or self.shrink < 1:
            raise ValueError(
                f"EmbeddingConfig.types = {self.types}, EmbeddingConfig.shrink = {self.shrink}: expected at least 0 "
                "and at least 1"
            )
        if list(self.cutoffs) != sorted(set(self.cutoffs)) or min(self.cutoffs, default=1) < 1:
            raise ValueError(
                f"EmbeddingConfig.cutoffs = {self.cutoffs}: expected rising ids, the first at least 1"
            )
        if self.shrink > 1 and not self.cutoffs:
            raise ValueError(
                f"EmbeddingConfig.shrink = {self.shrink} says nothing without EmbeddingConfig.cutoffs; set them"
            )
        if self.head_projection and self.shrink == 1:
            raise ValueError(
                "EmbeddingConfig.head_projection = True, but vectors are projected only where EmbeddingConfig.shrink "
                "is more than 1; set one of them"
            )

    def table_rows(self, vocab: int) -> int:
        """Rows of the token table where there are `vocab` ids.

        Raises:
          ValueError: fewer rows than ids, or a cluster without one.
        """
        rows = vocab if self.rows is None else self.rows
        if rows < vocab:
            raise ValueError(
                f"EmbeddingConfig.rows = {rows}: the tokenizer has {vocab} ids; expected at least as many, or None"
            )
        if self.cutoffs and self.cutoffs[-1] >= rows:
            raise ValueError(
                f"EmbeddingConfig.cutoffs = {self.cutoffs}: expected less than the {rows} rows of the table"
            )
        return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A stack of blocks: attention, optional cross-attention and an MLP, repeated.

    Attributes:
      layers: number of blocks.
      width: model dimension m.
      heads, kv_heads, head_dim: attention heads h and g (None: h) of dimension d (None: m / h).
      hidden: width of the MLP (None: 4 m, or 8/3 m rounded up to a multiple of 8 for gated activations, which
        costs the same).
      activation: of the MLP. "gelu" and "geglu" are the tanh approximation (GPT-2, T5 1.1), "gelu_exact" is not (BERT).
      norm: of the block, and `epsilon` of the norm.
      placement: where a branch f and its norm are: "pre" x + f(norm(x)), "post" norm(r x + f(x)), "sandwich"
        x + norm(f(norm(x))) (Gemma 2), "inner" r n + f(n) with n = norm(x) (ChatGLM).
      residual: r, what the residual stream is multiplied by in "post" (DeepNorm, Wang et al. 2022) and "inner".
      input_norm: what enters the first block is normalised, positions included (BERT).
      use_bias: biases in all linear layers, in none, or in those named: "qkv", "output" (of attention) and "mlp".
      scale: of attention scores; None: d^-1/2. T5's are not scaled.
      positions: the position scheme of every block whose spec names none.
      memory: hidden states of earlier segments that every block also reads (Transformer-XL, Compressive
        Transformer), or None. The masks alone say how far back a query sees.
      pattern: block specs repeated over the layers: layer i is `pattern[i % len(pattern)]`.
      dropout, attention_dropout: rates on sublayer outputs and the input; on attention probabilities.
      input_noise: alpha of NEFTune (Jain et al. 2024, algorithm 1): in training the vectors of a line of n tokens are
        off by uniform draws from [-1, 1] times alpha / sqrt(n m). Its authors add 5 to 15 to vectors that are smaller
        than ours, which begin with entries of size 1.
      softcap: of attention scores, or None.
      sinks: a learned attention sink for each head.
      dtype: of the computation; parameters are float32.
      remat: what the backward pass recomputes: "none", "dots" (keeps products without batch dimensions) or "full".
      unroll: scan steps unrolled at a time, where remat is "none"; faster on a CPU, slower to compile.
      backend: of attention; see `research.attention.core`.
    """

    layers: int = 4
    width: int = 256
    heads: int = 4
    kv_heads: int | None = None
    head_dim: int | None = None
    hidden: int | None = None
    activation: Literal["gelu", "gelu_exact", "relu", "silu", "swiglu", "geglu", "reglu"] = "swiglu"
    norm: Literal["rms", "layer"] = "rms"
    placement: Literal["pre", "post", "sandwich", "inner"] = "pre"
    residual: float = 1.0
    input_norm: bool = False
    epsilon: float = 1e-6
    use_bias: bool | tuple[str, ...] = False
    scale: float | None = None
    positions: Scheme = Rotary()
    memory: Recurrent | None = None
    pattern: tuple[BlockSpec, ...] = (BlockSpec(),)
    dropout: float = 0.0
    attention_dropout: float = 0.0
    input_noise: float = dataclasses.field(default=0.0, metadata=LATER)
    softcap: float | None = None
    sinks: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    unroll: int = 1
    backend: str | Callable = "auto"

    def __post_init__(self):
        for name in ("layers", "width", "heads", "unroll"):
            if getattr(self, name) < 1:
                raise ValueError(f"StackConfig.{name} = {getattr(self, name)}: expected at least 1")
        for name in ("kv_heads", "head_dim", "hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"StackConfig.{name} = {value}: expected at least 1, or None")
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(
                f"StackConfig.width = {self.width} is not a multiple of StackConfig.heads = {self.heads}; "
                "change one or set StackConfig.head_dim"
            )
        if self.heads % self.groups:
            raise ValueError(
                f"StackConfig.heads = {self.heads} is not a multiple of StackConfig.kv_heads = {self.kv_heads}"
            )
        if self.residual != 1 and self.placement not in ("post", "inner"):
            raise ValueError(
                f"StackConfig.residual = {self.residual}: placement {self.placement!r} does not read it; expected 1 "
                "or placement 'post' or 'inner'"
            )
        if not isinstance(self.use_bias, bool) and not set(self.use_bias) <= set(BIASED):
            raise ValueError(
                f"StackConfig.use_bias = {self.use_bias!r}: expected True, False or a tuple of some of {BIASED}"
            )
        if not self.input_noise >= 0:
            raise ValueError(f"StackConfig.input_noise = {self.input_noise}: expected at least 0")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"StackConfig.{name} = {getattr(self, name)}: expected 0 <= rate < 1")

    @property
    def groups(self) -> int:
        """Number of key-value heads g."""
        return self.kv_heads or self.heads

    @property
    def features(self) -> int:
        """Dimension d of a head."""
        return self.head_dim or self.width // self.heads

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies two projections."""
        return self.activation in ("swiglu", "geglu", "reglu")

    def biased(self, part: str) -> bool:
        """Whether the linear layers of a part, one of `BIASED`, have biases."""
        return self.use_bias if isinstance(self.use_bias, bool) else part in self.use_bias

    @property
    def attention_scale(self) -> float:
        """What scores of queries and keys are multiplied by."""
        return self.features**-0.5 if self.scale is None else self.scale

    @property
    def mlp_width(self) -> int:
        """Width of the MLP's hidden layer."""
        if self.hidden is not None:
            return self.hidden
        return -(-8 * self.width // 24) * 8 if self.gated else 4 * self.width

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype that activations have."""
        return jnp.dtype(self.dtype)

"""What a stack of transformer blocks is made of, as frozen values."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp

from research.attention.masks import Mask
from research.attention.positions import Rotary, Scheme
from research.attention.recurrence import Recurrent


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A stack of blocks: attention, optional cross-attention and an MLP, repeated.

    Attributes:
      layers: number of blocks.
      width: model dimension m.
      heads, kv_heads, head_dim: attention heads h and g (None: h) of dimension d (None: m / h).
      hidden: width of the MLP (None: 4 m, or 8/3 m rounded up to a multiple of 8 for gated activations, which
        costs the same).
      activation, norm, placement: of the block; "pre" normalises the input of a sublayer, "post" the sum.
      epsilon: of the norm.
      use_bias: biases in linear layers.
      positions: the position scheme of every block whose spec names none.
      memory: hidden states of earlier segments that every block also reads (Transformer-XL, Compressive
        Transformer), or None. The masks alone say how far back a query sees.
      pattern: block specs repeated over the layers: layer i is `pattern[i % len(pattern)]`.
      dropout, attention_dropout: rates on sublayer outputs and the input; on attention probabilities.
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
    activation: Literal["gelu", "relu", "swiglu", "geglu"] = "swiglu"
    norm: Literal["rms", "layer"] = "rms"
    placement: Literal["pre", "post"] = "pre"
    epsilon: float = 1e-6
    use_bias: bool = False
    positions: Scheme = Rotary()
    memory: Recurrent | None = None
    pattern: tuple[BlockSpec, ...] = (BlockSpec(),)
    dropout: float = 0.0
    attention_dropout: float = 0.0
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
        return self.activation in ("swiglu", "geglu")

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

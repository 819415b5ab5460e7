"""The layers of a block. Every parameter's initial value depends on its path and the model's key alone."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from research.attention.core import attend
from research.attention.masks import Mask, Slots
from research.attention.positions import NoPosition, Positions
from research.models.config import StackConfig

ACTIVATIONS = {"gelu": jax.nn.gelu, "relu": jax.nn.relu, "swiglu": jax.nn.silu, "geglu": jax.nn.gelu}


def child(key: Array, name: str) -> Array:
    """The key of the part called `name`: adding a part never changes the others."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def linear(inputs: int, outputs: int, config: StackConfig, key: Array) -> nnx.Linear:
    """A projection in the stack's dtype with float32 parameters."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=config.use_bias,
        dtype=config.compute_dtype,
        rngs=nnx.Rngs(params=key),
    )


def norm(config: StackConfig) -> nnx.RMSNorm | nnx.LayerNorm:
    """The stack's normalisation, statistics in float32."""
    kind = nnx.RMSNorm if config.norm == "rms" else nnx.LayerNorm
    return kind(
        config.width,
        epsilon=config.epsilon,
        dtype=config.compute_dtype,
        rngs=nnx.Rngs(params=jax.random.key(0)),  # scales start at one, biases at zero
    )


class Embedding(nnx.Module):
    """Token vectors of unit size at the input, and logits by the same table where the head is tied."""

    def __init__(self, vocab: int, config: StackConfig, *, key: Array):
        self.table = nnx.Param(jax.random.normal(key, (vocab, config.width)) * config.width**-0.5)
        self.dtype = config.compute_dtype

    def __call__(self, ids: Int[Array | np.ndarray, "*b n"]) -> Float[Array, "*b n m"]:
        """Vectors of the tokens, scaled by sqrt(m)."""
        width = self.table.shape[-1]
        return jnp.take(self.table[...], ids, axis=0).astype(self.dtype) * width**0.5

    def logits(self, hidden: Float[Array, "*b m"]) -> Float[Array, "*b v"]:
        """Scores of every token, in float32."""
        table = self.table[...].astype(hidden.dtype)
        return jnp.einsum("...m,vm->...v", hidden, table, preferred_element_type=jnp.float32)


class Head(nnx.Module):
    """Logits by a table of their own (untied)."""

    def __init__(self, vocab: int, config: StackConfig, *, key: Array):
        self.kernel = nnx.Param(jax.random.normal(key, (config.width, vocab)) * config.width**-0.5)

    def logits(self, hidden: Float[Array, "*b m"]) -> Float[Array, "*b v"]:
        """Scores of every token, in float32."""
        kernel = self.kernel[...].astype(hidden.dtype)
        return jnp.einsum("...m,mv->...v", hidden, kernel, preferred_element_type=jnp.float32)


class Attention(nnx.Module):
    """Multi-head (or grouped-query) attention of a line of tokens to a line of keys, its own or another's."""

    def __init__(self, config: StackConfig, *, key: Array):
        self.config = config
        heads, groups, features = config.heads, config.groups, config.features
        self.query = linear(config.width, heads * features, config, child(key, "query"))
        self.key = linear(config.width, groups * features, config, child(key, "key"))
        self.value = linear(config.width, groups * features, config, child(key, "value"))
        self.output = linear(heads * features, config.width, config, child(key, "output"))
        self.sinks = nnx.Param(jnp.zeros(heads)) if config.sinks else None

    def __call__(
        self,
        x: Float[Array, "*b q m"],
        memory: Float[Array, "*b k m"],
        *,
        mask: Mask,
        q_slots: Slots,
        k_slots: Slots,
        positions: Positions,
        key: Array | None = None,
    ) -> Float[Array, "*b q m"]:
        """What the tokens of `x` read from `memory` under `mask`; `key` switches dropout on."""
        config = self.config

        def split(projected: Array, heads: int) -> Array:
            return projected.reshape(*projected.shape[:-1], heads, config.features)

        out = attend(
            positions.query(split(self.query(x), config.heads), q_slots),
            positions.key(split(self.key(memory), config.groups), k_slots),
            split(self.value(memory), config.groups),
            mask=mask,
            q_slots=q_slots,
            k_slots=k_slots,
            bias=positions.bias,
            softcap=config.softcap,
            sinks=None if self.sinks is None else self.sinks[...],
            dropout=(config.attention_dropout, key) if key is not None and config.attention_dropout else None,
            backend=config.backend,
        )
        return self.output(out.reshape(*out.shape[:-2], -1))  # ty: ignore[missing-union-attribute]


class MLP(nnx.Module):
    """Position-wise feed-forward layer, gated for SwiGLU and GEGLU (Shazeer 2020)."""

    def __init__(self, config: StackConfig, *, key: Array):
        self.config = config
        self.up = linear(config.width, config.mlp_width, config, child(key, "up"))
        gate = linear(config.width, config.mlp_width, config, child(key, "gate")) if config.gated else None
        self.gate = gate
        self.down = linear(config.mlp_width, config.width, config, child(key, "down"))

    def __call__(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        """The feed-forward of every position."""
        act = ACTIVATIONS[self.config.activation]
        hidden = act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x)
        return self.down(hidden)


class Sublayer(nnx.Module):
    """A residual branch with its norm before ("pre") or after ("post") and dropout on its output."""

    def __init__(self, inner: Attention | MLP, config: StackConfig):
        self.inner, self.norm = inner, norm(config)
        self.drop = nnx.Dropout(config.dropout)
        self.pre = config.placement == "pre"

    def __call__(self, x: Float[Array, "*b n m"], call: Any, key: Array | None) -> Float[Array, "*b n m"]:
        """x plus `call(inner, normalised x)`."""
        out = call(self.inner, self.norm(x) if self.pre else x)
        x = x + self.drop(out, deterministic=key is None, rngs=key)
        return x if self.pre else self.norm(x)


class Block(nnx.Module):
    """Self-attention, cross-attention where the stack reads a source, and an MLP."""

    def __init__(self, config: StackConfig, *, cross: bool, key: Array):
        self.attention = Sublayer(Attention(config, key=child(key, "attention")), config)
        self.cross = Sublayer(Attention(config, key=child(key, "cross")), config) if cross else None
        self.mlp = Sublayer(MLP(config, key=child(key, "mlp")), config)

    def __call__(
        self,
        x: Float[Array, "*b n m"],
        *,
        slots: Slots,
        mask: Mask,
        positions: Positions,
        source: tuple[Array, Slots, Mask] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "*b n m"]:
        """One block. `source`: hidden states [*b s m] to cross-attend to, their slots and the cross mask."""

        def keys(name: str) -> tuple[Array | None, Array | None]:
            return (None, None) if key is None else tuple(jax.random.split(child(key, name)))

        inside, outside = keys("attention")
        x = self.attention(
            x,
            lambda inner, y: inner(
                y, y, mask=mask, q_slots=slots, k_slots=slots, positions=positions, key=inside
            ),
            outside,
        )
        if self.cross is not None and source is not None:
            memory, memory_slots, cross_mask = source
            inside, outside = keys("cross")
            x = self.cross(
                x,
                lambda inner, y: inner(
                    y,
                    memory,
                    mask=cross_mask,
                    q_slots=slots,
                    k_slots=memory_slots,
                    positions=NoPosition(),
                    key=inside,
                ),
                outside,
            )
        return self.mlp(x, lambda inner, y: inner(y), keys("mlp")[1])

"""The layers of a block. Every parameter's initial value depends on its path and the model's key alone."""

import dataclasses
import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from research.attention import memory, sharded
from research.attention.core import attend, received
from research.attention.dense import kept
from research.attention.masks import Full, Mask, Slots
from research.attention.memory import Layer, Reading
from research.attention.platforms import platform
from research.attention.positions import Positions, Scheme
from research.models.config import StackConfig

PRODUCT = "product"  # the name of what the rematerialisation policy "dots" keeps
ACTIVATIONS = {
    "gelu": jax.nn.gelu,
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swiglu": jax.nn.silu,
    "geglu": jax.nn.gelu,
    "reglu": jax.nn.relu,
}


def folded(key: Array, data: Any) -> Array:
    """`jax.random.fold_in` of one key, or of the key of each row."""
    return jnp.vectorize(jax.random.fold_in, excluded={1})(key, data)


def child(key: Array, name: str) -> Array:
    """The key of the part called `name`: adding a part never changes the others."""
    return folded(key, zlib.crc32(name.encode()))


def row_keys(key: Array | None, rows: int) -> Array | None:
    """A key for each row: those given, or made of one key and the row's index, whatever other rows there are.

    Raises:
      ValueError: keys, but not one for each row.
    """
    if key is None or key.shape == (rows,):
        return key
    if key.ndim:
        raise ValueError(
            f"key: {key.shape} keys, expected one key or ({rows},), one for each row of the batch"
        )
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def dropped(x: Float[Array, "b n m"], rate: float, key: Array | None) -> Float[Array, "b n m"]:
    """Dropout, where there are keys: what a row loses depends on its own key alone."""
    if key is None or not rate:
        return x
    word = jax.vmap(jax.random.bits)(key)[:, None, None]
    keep = kept(word, jnp.arange(x.shape[1])[:, None], jnp.arange(x.shape[2]), rate)
    return jnp.where(keep, x / (1 - rate), 0)


def disturbed(x: Float[Array, "b n m"], alpha: float, key: Array | None) -> Float[Array, "b n m"]:
    """Uniform noise of size alpha / sqrt(n m), where there are keys (NEFTune); a row's depends on its key alone."""
    if key is None or not alpha:
        return x
    draw = jax.vmap(lambda own: jax.random.uniform(own, x.shape[1:], minval=-1.0, maxval=1.0))(key)
    return x + (alpha * (x.shape[1] * x.shape[2]) ** -0.5 * draw).astype(x.dtype)


def spread(x: Float[Array, "*b n m"]) -> Float[Array, "*b n m"]:
    """Hidden states split over the ambient mesh as attention splits them: by rows and tokens, features whole."""
    return sharded.placed(x, sharded.ROWS, sharded.SEQUENCE, ()) if x.ndim == 3 else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Float[Array, "*b m"], kernel: Float[Array, "m n"], out: Any = None) -> Float[Array, "*b n"]:
    """x @ kernel, in dtype `out` where it is given. Its own rule would make the kernel's gradient as the transpose of a
    transposed product, for which XLA:CPU copies one side and then runs at a third of its speed.
    """
    return _summed("...m,mn->...n", x, kernel, out or x.dtype)


def _product_save(x: Array, kernel: Array, out: Any) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel, out), (x, kernel)


def _product_gradients(out: Any, saved: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    x, kernel = saved
    d = d.astype(x.dtype)
    wide = x.shape[-1] <= d.shape[-1]
    few, many = (x, d) if wide else (d, x)
    # A tall result would be slow as well. The barrier keeps XLA from swapping the sides back.
    found = jax.lax.optimization_barrier(_summed("...m,...n->mn", few, many, kernel.dtype))
    return _summed("...n,mn->...m", d, kernel, x.dtype), found if wide else found.T


def _summed(spec: str, x: Array, y: Array, out: Any) -> Array:
    # XLA:CPU multiplies bfloat16 as such only where the result is float32, at twice the speed.
    wide = jnp.promote_types(out, jnp.float32) if platform() == "cpu" else out
    return jnp.einsum(spec, x, y, preferred_element_type=wide).astype(out)


product.defvjp(_product_save, _product_gradients)


def _dot_general(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    # No rematerialisation policy looks into a custom rule, so it is told by a name.
    return checkpoint_name(product(x, kernel), PRODUCT)


def linear(inputs: int, outputs: int, config: StackConfig, key: Array, *, bias: bool) -> nnx.Linear:
    """A projection in the stack's dtype with float32 parameters."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        dtype=config.compute_dtype,
        dot_general=_dot_general,
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


class Attention(nnx.Module):
    """Multi-head (or grouped-query) attention of a line of tokens to a line of keys, its own or another's."""

    def __init__(self, config: StackConfig, *, key: Array):
        self.config = config
        heads, groups, features = config.heads, config.groups, config.features
        bias, width = config.biased("qkv"), config.width
        self.query = linear(width, heads * features, config, child(key, "query"), bias=bias)
        self.key = linear(width, groups * features, config, child(key, "key"), bias=bias)
        self.value = linear(width, groups * features, config, child(key, "value"), bias=bias)
        self.output = linear(
            heads * features, width, config, child(key, "output"), bias=config.biased("output")
        )
        self.sinks = nnx.Param(jnp.zeros(heads)) if config.sinks else None

    def keys(self, x: Float[Array, "*b k m"]) -> tuple[Float[Array, "*b k g d"], Float[Array, "*b k g d"]]:
        """Keys, positions not yet applied, and values of the tokens of `x`."""
        return self._split(self.key(x), self.config.groups), self._split(self.value(x), self.config.groups)

    def queries(self, x: Float[Array, "*b q m"]) -> Float[Array, "*b q h d"]:
        """Queries of the tokens of `x`, positions not yet applied."""
        return self._split(self.query(x), self.config.heads)

    def __call__(
        self,
        q: Float[Array, "*b q h d"],
        k: Float[Array, "*b k g d"],
        v: Float[Array, "*b k g e"],
        *,
        bias: Any = None,
        key: Array | None = None,
        **line: Any,
    ) -> Float[Array, "*b q m"]:
        """What queries that know their place read; `line`: the mask and the slots of both sides; `key`, one for each
        row, switches dropout on.
        """
        config, dropout = self.config, None
        if key is not None and config.attention_dropout:
            words = jax.vmap(lambda key: jax.random.bits(key, (config.heads,)))(key)
            dropout = config.attention_dropout, words
        out = attend(
            q,
            k,
            v,
            bias=bias,
            scale=config.attention_scale,
            softcap=config.softcap,
            sinks=None if self.sinks is None else self.sinks[...],
            dropout=dropout,
            backend=config.backend,
            **line,
        )
        return self.output(out.reshape(*out.shape[:-2], -1))  # ty: ignore[missing-union-attribute]

    def _split(self, projected: Array, heads: int) -> Array:
        return projected.reshape(*projected.shape[:-1], heads, self.config.features)


class MLP(nnx.Module):
    """Position-wise feed-forward layer, gated for SwiGLU, GEGLU and ReGLU (Shazeer 2020)."""

    def __init__(self, config: StackConfig, *, key: Array):
        self.config = config
        width, hidden, bias = config.width, config.mlp_width, config.biased("mlp")
        self.up = linear(width, hidden, config, child(key, "up"), bias=bias)
        self.gate = linear(width, hidden, config, child(key, "gate"), bias=bias) if config.gated else None
        self.down = linear(hidden, width, config, child(key, "down"), bias=bias)

    def __call__(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        """The feed-forward of every position."""
        act = ACTIVATIONS[self.config.activation]
        if self.gate is None:
            return self.down(act(self.up(x)))
        # Not stored for the backward pass: computing it again is quicker than reading it.
        gated = jax.checkpoint(lambda gate, up: act(gate) * up)
        return self.down(gated(self.gate(x), self.up(x)))


class Sublayer(nnx.Module):
    """A residual branch, its norms where `StackConfig.placement` says, and dropout on its output."""

    def __init__(self, inner: Any, config: StackConfig):
        self.inner, self.norm = inner, norm(config)
        self.after = norm(config) if config.placement == "sandwich" else None
        self.rate, self.placement, self.residual = config.dropout, config.placement, config.residual

    def input(self, x: Float[Array, "*b n m"]) -> Float[Array, "*b n m"]:
        """What the branch reads: x, normalised but where the norm comes last."""
        return x if self.placement == "post" else self.norm(x)

    def add(
        self, x: Float[Array, "*b n m"], out: Float[Array, "*b n m"], key: Array | None
    ) -> Float[Array, "*b n m"]:
        """x plus the branch's output, as the placement adds them."""
        out = dropped(out if self.after is None else self.after(out), self.rate, key)
        stream = self.norm(x) if self.placement == "inner" else x
        x = spread(stream + out if self.residual == 1 else self.residual * stream + out)
        return self.norm(x) if self.placement == "post" else x


class Source(NamedTuple):
    """What a decoder cross-attends to: hidden states [b s m], their slots and the cross mask."""

    hidden: Any
    slots: Slots
    mask: Mask


class Left(NamedTuple):
    """What a block leaves behind: `own` and `cross` fill caches or memories; `loss` of the memory."""

    own: Any
    cross: Any
    loss: Any


class Block(nnx.Module):
    """Self-attention, cross-attention where the stack reads a source, and an MLP."""

    def __init__(self, config: StackConfig, *, cross: bool, positions: Scheme, key: Array):
        self.attention = Sublayer(Attention(config, key=child(key, "attention")), config)
        self.cross = Sublayer(Attention(config, key=child(key, "cross")), config) if cross else None
        self.mlp = Sublayer(MLP(config, key=child(key, "mlp")), config)
        self.positions = positions.layer(
            width=config.width, heads=config.heads, head_dim=config.features, key=child(key, "positions")
        )
        compression = None if config.memory is None else config.memory.compression
        self.compress = (
            None if compression is None else compression.build(width=config.width, key=child(key, "compress"))
        )

    def __call__(
        self,
        x: Float[Array, "*b n m"],
        *,
        reader: Any,
        state: tuple[Any, Any] = (None, None),
        mask: Mask,
        positions: Positions,
        source: Source | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "*b n m"], Left]:
        """One block.

        Args:
          x: hidden states.
          reader: gives the keys of self-attention; see `research.attention.memory`.
          state: what the reader holds for this layer, and the source's keys and values, as `memory.kept` leaves them,
            if known already.
          mask: of self-attention.
          positions: the built position scheme, which the block completes where layers have parts of their own.
          source: what to cross-attend to.
          key: one for each row; switches dropout on.
        """

        def keys(name: str) -> Array | None:
            return None if key is None else child(key, name)

        own, known = state
        positions = positions.with_layer(self.positions)
        out, reading = self._read(x, reader, own, mask, positions, keys("attention/inner"))
        x = self.attention.add(x, out, keys("attention"))
        if self.cross is not None and source is not None:
            attention = self.cross.inner
            if known is None:
                known = memory.kept(*attention.keys(source.hidden))
            out = attention(
                attention.queries(self.cross.input(x)),
                *memory.lines(*known),
                mask=source.mask,
                q_slots=dataclasses.replace(reader.queries, start=None),  # places of two lines do not compare
                k_slots=dataclasses.replace(source.slots, start=None),
                key=keys("cross/inner"),
            )
            x = self.cross.add(x, out, keys("cross"))
        x = self.mlp.add(x, self.mlp.inner(self.mlp.input(x)), keys("mlp"))
        left = known if reader.collect else None
        return x, Left(reading.state, left, reading.loss)

    def _read(
        self, x: Array, reader: Any, state: Any, mask: Mask, positions: Positions, key: Array | None
    ) -> tuple[Array, Reading]:
        """Self-attention through the reader."""
        attention, slots = self.attention.inner, reader.queries
        raw = attention.queries(self.attention.input(x))
        q = positions.query(raw, slots)

        def content(memory: Array, memory_slots: Slots) -> Array:
            frozen = jax.tree.map(jax.lax.stop_gradient, self.attention)
            line = {"mask": Full(), "q_slots": slots, "k_slots": memory_slots}
            return frozen.inner(jax.lax.stop_gradient(raw), *frozen.inner.keys(frozen.input(memory)), **line)

        def usage(k: Array, k_slots: Slots) -> Array:
            return received(
                q,
                k,
                mask=mask,
                q_slots=slots,
                k_slots=k_slots,
                bias=positions.bias,
                scale=attention.config.attention_scale,
                softcap=attention.config.softcap,
                sinks=None if attention.sinks is None else attention.sinks[...],
                backend=attention.config.backend,
            )

        layer = Layer(
            lambda h: attention.keys(self.attention.input(h)), positions.key, content, usage, self.compress
        )
        reading = reader.read(state, x, layer)
        out = attention(
            q,
            reading.k,
            reading.v,
            mask=mask,
            q_slots=slots,
            k_slots=reading.slots,
            bias=positions.bias,
            key=key,
        )
        return out, reading

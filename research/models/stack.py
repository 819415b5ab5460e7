"""A stack: blocks in a repeating pattern, scanned by period, positions built once and shared by the layers."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from research.attention.masks import Mask, Slots
from research.attention.positions import Positions
from research.models.config import BlockSpec, StackConfig
from research.models.layers import Block, child, norm

POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Stack(nnx.Module):
    """`config.layers` blocks under the masks they are called with.

    Parameters of all blocks with the same place in the pattern are stacked on a leading axis; the layers run as
    one scan over whole periods and a tail. Layer i's initial values depend on the key and i only.
    """

    def __init__(self, config: StackConfig, *, mask: Mask, cross: bool = False, key: Array):
        """`mask`: the mask it will mostly be called with; T5's buckets are bidirectional where it looks ahead."""
        self.config = config
        period, layers = len(config.pattern), child(key, "layers")

        def stacked(place: int) -> Block:
            indices = jnp.arange(place, config.layers, period)
            return jax.vmap(lambda i: Block(config, cross=cross, key=jax.random.fold_in(layers, i)))(indices)

        self.blocks = nnx.List([stacked(place) for place in range(min(period, config.layers))])
        self.schemes = tuple(dict.fromkeys(spec.positions or config.positions for spec in config.pattern))
        self.positions = nnx.List(
            [
                scheme.build(
                    width=config.width,
                    heads=config.heads,
                    head_dim=config.features,
                    causal=mask.causal,
                    key=child(key, repr(scheme)),
                )
                for scheme in self.schemes
            ]
        )
        self.drop = nnx.Dropout(config.dropout)
        self.norm = norm(config) if config.placement == "pre" else None

    def __call__(
        self,
        x: Float[Array, "*b n m"],
        *,
        slots: Slots,
        mask: Mask,
        source: tuple[Array, Slots, Mask] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "*b n m"]:
        """Hidden states of the last layer, normalised.

        Args:
          x: token vectors.
          slots: where the tokens are.
          mask: the family's mask; each block's spec may replace or narrow it.
          source: hidden states to cross-attend to, their slots and the cross mask.
          key: switches dropout on.
        """
        config = self.config
        period = len(config.pattern)
        whole, tail = divmod(config.layers, period)
        for positions in self.positions:
            x = positions.embed(x, slots)
        x = self.drop(x, deterministic=key is None, rngs=None if key is None else child(key, "input"))

        def run(x: Array, block: Block, spec: BlockSpec, layer: Array | int) -> Array:
            return block(
                x,
                slots=slots,
                mask=spec.visible(mask),
                positions=self._positions_of(spec),
                source=source,
                key=None if key is None else jax.random.fold_in(key, layer),
            )

        def repeat(x: Array, step: tuple[list[Block], Array]) -> tuple[Array, None]:
            blocks, index = step
            for place, (block, spec) in enumerate(zip(blocks, config.pattern, strict=True)):
                x = run(x, block, spec, index * period + place)
            return x, None

        if config.remat != "none":
            repeat = jax.checkpoint(repeat, prevent_cse=False, policy=POLICIES[config.remat])  # ty: ignore[invalid-assignment]
        if whole:
            scanned = [_rows(block, slice(whole)) for block in self.blocks]
            x, _ = jax.lax.scan(repeat, x, (scanned, jnp.arange(whole)), unroll=min(config.unroll, whole))
        for place in range(tail):
            x = run(x, _rows(self.blocks[place], whole), config.pattern[place], whole * period + place)
        return x if self.norm is None else self.norm(x)

    def _positions_of(self, spec: BlockSpec) -> Positions:
        return self.positions[self.schemes.index(spec.positions or self.config.positions)]


def _rows(block: Block, rows: slice | int) -> Block:
    """The layers `rows` of stacked blocks."""
    return jax.tree.map(lambda leaf: leaf[rows], block)

"""A stack: blocks in a repeating pattern, scanned by period, positions built once and shared by the layers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from research.attention.masks import Mask, Slots
from research.attention.memory import Line
from research.attention.positions import Positions
from research.models.config import BlockSpec, StackConfig
from research.models.layers import PRODUCT, Block, Left, Source, child, disturbed, dropped, folded, norm

POLICIES = {
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Stack(nnx.Module):
    """`config.layers` blocks under the masks they are called with.

    Parameters of all blocks with the same place in the pattern are stacked on a leading axis; the layers run as
    one scan over whole periods and a tail. Layer i's initial values depend on the key and i only.
    """

    def __init__(self, config: StackConfig, *, masks: tuple[Mask, ...], cross: bool = False, key: Array):
        """`masks`: all it will be called with; T5's buckets are bidirectional where one looks ahead."""
        self.config = config
        period, layers = len(config.pattern), child(key, "layers")

        def stacked(place: int) -> Block:
            indices = jnp.arange(place, config.layers, period)
            positions = config.pattern[place].positions or config.positions

            def block(i: Array) -> Block:
                return Block(config, cross=cross, positions=positions, key=jax.random.fold_in(layers, i))

            return jax.vmap(block)(indices)

        self.blocks = nnx.List([stacked(place) for place in range(min(period, config.layers))])
        self.schemes = tuple(dict.fromkeys(spec.positions or config.positions for spec in config.pattern))
        causal = all(spec.visible(mask).causal for spec in config.pattern for mask in masks)
        self.positions = nnx.List(
            [
                scheme.build(
                    width=config.width,
                    heads=config.heads,
                    head_dim=config.features,
                    causal=causal,
                    key=child(key, repr(scheme)),
                )
                for scheme in self.schemes
            ]
        )
        self.input_norm = norm(config) if config.input_norm else None
        self.norm = None if config.placement == "post" else norm(config)

    def __call__(
        self,
        x: Float[Array, "*b n m"],
        *,
        slots: Slots,
        mask: Mask,
        reader: Any = None,
        states: list[Any] | None = None,
        source: Source | None = None,
        known: list[Any] | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "*b n m"], list[Left]]:
        """Hidden states of the last layer, normalised, and for each place of the pattern what its layers left.

        Args:
          x: token vectors.
          slots: where the tokens are.
          mask: the family's mask; each block's spec may replace or narrow it.
          reader: gives the layers their keys; None: the line itself.
          states: for each place of the pattern, what the reader holds for its layers, stacked.
          source: what to cross-attend to.
          known: for each place of the pattern, keys and values of the source, stacked, where known already.
          key: one for each row; switches dropout on.
        """
        config = self.config
        period, layers = len(config.pattern), config.layers
        # A pattern that fills the stack is no loop; as one of a single turn XLA would copy a cache to write into it.
        whole, tail = divmod(layers, period) if layers > period else (0, layers)
        reader = reader or Line(slots)
        x = disturbed(x, config.input_noise, None if key is None else child(key, "noise"))
        for positions in self.positions:
            x = positions.embed(x, slots)
        x = x if self.input_norm is None else self.input_norm(x)
        x = dropped(x, config.dropout, None if key is None else child(key, "input"))

        # Outside of a loop XLA would merge what the backward pass computes again with what it was computed from, and
        # so keep it. There XLA:CPU heeds no barrier either: so nothing is unrolled, and the layers are a real loop.
        unroll = min(config.unroll, whole) if config.remat == "none" else 1

        def run(
            x: Array, block: Block, state: Any, spec: BlockSpec, layer: Array | int, prevent_cse: bool
        ) -> tuple[Array, Left]:
            def call(x: Array, block: Block, state: Any) -> tuple[Array, Left]:
                return block(
                    x,
                    reader=reader,
                    state=state,
                    mask=spec.visible(mask),
                    positions=self._positions_of(spec),
                    source=source,
                    key=None if key is None else folded(key, layer),
                )

            if config.remat != "none":
                call = jax.checkpoint(call, prevent_cse=prevent_cse, policy=POLICIES[config.remat])  # ty: ignore[invalid-assignment]
            return call(x, block, state)

        def repeat(x: Array, step: tuple[list[Block], list[Any], Array]) -> tuple[Array, list[Left]]:
            blocks, held, index = step
            left = []
            for place, (block, state, spec) in enumerate(zip(blocks, held, config.pattern, strict=True)):
                x, leaves = run(x, block, state, spec, index * period + place, prevent_cse=whole == 1)
                left.append(leaves)
            return x, left

        nothing = [None] * len(self.blocks)
        held = list(zip(states or nothing, known or nothing, strict=True))
        left: list[Left] = []
        if whole:
            scanned = [_rows(part, slice(whole)) for part in (self.blocks, held)]
            steps = (list(scanned[0]), scanned[1], jnp.arange(whole))
            x, left = jax.lax.scan(repeat, x, steps, unroll=unroll)
        for place in range(tail):
            last = _rows((self.blocks[place], held[place]), whole)
            x, leaves = run(x, *last, config.pattern[place], whole * period + place, prevent_cse=True)
            leaves = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], leaves)
            joined = lambda a, b: jnp.concatenate([a, b])  # noqa: E731
            left[place:] = [
                jax.tree.map(joined, left[place], leaves) if whole else leaves,
                *left[place + 1 :],
            ]
        return x if self.norm is None else self.norm(x), left

    def unstacked(self) -> "Stack":
        """The same stack, every layer a place of the pattern of its own: read token by token, nothing has to
        be cut out of stacked parameters and caches in every step.
        """
        config, period = self.config, len(self.config.pattern)
        stack = copied(self)
        stack.config = dataclasses.replace(
            config, pattern=tuple(config.pattern[i % period] for i in range(config.layers))
        )
        layers = [divmod(i, period) for i in range(config.layers)]
        stack.blocks = nnx.List([_rows(self.blocks[place], slice(i, i + 1)) for i, place in layers])
        return stack

    def counts(self) -> list[int]:
        """Layers at each place of the pattern."""
        period = len(self.config.pattern)
        return [len(range(place, self.config.layers, period)) for place in range(len(self.blocks))]

    def _positions_of(self, spec: BlockSpec) -> Positions:
        return self.positions[self.schemes.index(spec.positions or self.config.positions)]


def copied(module: Any) -> Any:
    """The module as another object that shares its arrays."""
    leaves, structure = jax.tree.flatten(module)
    return jax.tree.unflatten(structure, leaves)


def _rows(stacked: Any, rows: slice | int) -> Any:
    """The layers `rows` of anything stacked."""
    return jax.tree.map(lambda leaf: leaf[rows], stacked)

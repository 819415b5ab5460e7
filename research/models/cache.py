"""Reading a line in pieces: segment by segment with a memory, or token by token with a cache."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from research.attention.masks import Mask
from research.attention.memory import KeyValues, Line, Rolling, Whole
from research.attention.positions import Positions
from research.attention.recurrence import Recurrence
from research.batch import Tokens
from research.models.layers import Left, Source
from research.models.stack import Stack
from research.models.vocabulary import TokenVectors


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What a model keeps of the tokens it has read.

    Attributes:
      own: keys and values, or the memory of a stack that has one.
      source: slots of the source, where there is one.
      known: keys and values of the source for each place of the pattern, as `memory.kept` leaves them.
    """

    own: KeyValues | Recurrence
    source: Any = None
    known: Any = None

    def next(self, ids: Any) -> Tokens:
        """Plain tokens `ids` [b t] that go on where each row of the cache ends."""
        return Tokens(ids, self.own.continued(ids.shape[-1]))

    def rows(self, index: Int[Array, " r"]) -> "Cache":
        """A cache whose row i is row `index[i]` of this one."""

        def taken(tree: Any, axis: int) -> Any:
            return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=axis), tree)

        own = dataclasses.replace(self.own, slots=taken(self.own.slots, 0), layers=taken(self.own.layers, 1))
        return Cache(own, taken(self.source, 0), taken(self.known, 1))

    def reordered(self, index: Int[Array, " r"]) -> "Cache":
        """A cache whose row i has read what row `index[i]` of this one has; both have the same source."""
        return dataclasses.replace(self.rows(index), source=self.source, known=self.known)

    def loose(self) -> "Cache":
        """The cache of an unstacked model without the axis of layers, each of which is alone: so it is the state of a
        loop, where XLA:CPU would otherwise copy all of it several times to write one token. `bound` undoes it.
        """
        return self._with_layers(lambda leaf: leaf[0])

    def bound(self) -> "Cache":
        """A loose cache as models read it."""
        return self._with_layers(lambda leaf: leaf[None])

    def _with_layers(self, change: Callable[[Array], Array]) -> "Cache":
        layers, known = jax.tree.map(change, (self.own.layers, self.known))
        return Cache(dataclasses.replace(self.own, layers=layers), self.source, known)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """What a model computes from a batch.

    Attributes:
      hidden: [*b t m], one vector for each label.
      carry: the memory of the next segment, or None where the stack has none.
      aux_loss: f32[], what the memory's compression has to learn; 0 elsewhere.
    """

    hidden: Any
    carry: Recurrence | None = None
    aux_loss: Any = 0.0


def remember(
    stack: Stack,
    embedding: TokenVectors,
    tokens: Tokens,
    carry: Recurrence | None,
    *,
    mask: Mask,
    source: Source | None,
    key: Array | None,
) -> Output:
    """One pass over a segment, and the memory it leaves where the stack has one.

    Raises:
      ValueError: a carry for a stack without memory.
    """
    x, slots, memory = embedding(tokens), tokens.slots, stack.config.memory
    if memory is None:
        if carry is not None:
            raise ValueError(
                "a carry was given but StackConfig.memory is None; set it to @memory.Recurrent()"
            )
        return Output(stack(x, slots=slots, mask=mask, source=source, key=key)[0])
    if carry is None:
        carry = memory.empty(x.shape[0], x.shape[-1], stack.counts(), x.dtype)
    reader = carry.reader(slots)
    hidden, left = stack(
        x, slots=slots, mask=mask, reader=reader, states=carry.layers, source=source, key=key
    )
    loss = sum(jnp.sum(place.loss) for place in left) / stack.config.layers
    return Output(hidden, carry.extended(reader, _own(left)), loss)


def prefilled(
    stack: Stack,
    embedding: TokenVectors,
    tokens: Tokens,
    cache: Whole | Rolling | None,
    *,
    mask: Mask,
    source: Source | None,
) -> tuple[Float[Array, "b t m"], Cache]:
    """Hidden states of a prompt and the cache that holds it."""
    _check(stack, mask)
    if stack.config.memory is not None:
        if cache is not None:
            raise ValueError(
                f"cache = {cache}: the stack keeps {stack.config.memory} instead; give no cache, or set "
                "StackConfig.memory = None"
            )
        rows, width = tokens.ids.shape[0], stack.config.width
        empty = stack.config.memory.empty(rows, width, stack.counts(), stack.config.compute_dtype)
        return _recur(stack, embedding, tokens, Cache(empty), mask=mask, source=source)
    if cache is None:
        raise ValueError(
            "a stack without memory needs a cache to be extended; give cache=Whole(capacity=...)"
        )
    _check_reach(stack, mask, cache, 1)
    _check_reindex(stack, cache, tokens.ids.shape[-1])
    slots = tokens.slots
    hidden, left = stack(
        embedding(tokens),
        slots=slots,
        mask=mask,
        reader=Line(slots, collect=True, turned=cache.turned),
        source=source,
    )
    own = KeyValues.of(cache, slots, _own(left))
    return hidden, Cache(own, source and source.slots, source and [place.cross for place in left])


def places(hidden: Float[Array, "b n m"], at: Any) -> Float[Array, "b t m"]:
    """The hidden state of each row at its place `at` [b], or all of them where that is None."""
    return hidden if at is None else jnp.take_along_axis(hidden, jnp.asarray(at)[:, None, None], axis=1)


def extended(
    stack: Stack,
    embedding: TokenVectors,
    cache: Cache,
    tokens: Tokens,
    *,
    mask: Mask,
    cross_mask: Mask | None = None,
) -> tuple[Float[Array, "b t m"], Cache]:
    """Hidden states of the tokens that follow those in the cache. What only running values can tell (a full cache, a
    prefix token that earlier queries should have seen) gives NaN under `jit` and raises outside it.
    """
    source = None if cross_mask is None else Source(None, cache.source, cross_mask)
    if isinstance(cache.own, Recurrence):
        return _recur(stack, embedding, tokens, cache, mask=mask, source=source)
    _check_reach(stack, mask, cache.own.kind, tokens.ids.shape[-1])
    sound = _sound(stack, mask, cache.own, tokens)
    reader = cache.own.reader(tokens.slots)
    hidden, left = stack(
        embedding(tokens),
        slots=tokens.slots,
        mask=mask,
        reader=reader,
        states=cache.own.layers,
        source=source,
        known=cache.known,
    )
    hidden = jnp.where(sound, hidden, jnp.nan)
    return hidden, dataclasses.replace(cache, own=cache.own.extended(reader, _own(left)))


def _recur(
    stack: Stack, embedding: TokenVectors, tokens: Tokens, cache: Cache, *, mask: Mask, source: Source | None
) -> tuple[Array, Cache]:
    """The tokens as the next segment of a memory."""
    memory: Any = cache.own
    for spec in stack.config.pattern:
        reason = memory.spec.refuses(spec.visible(mask))
        if reason is not None:
            raise ValueError(reason)
    reader = memory.reader(tokens.slots)
    reader.collect = cache.known is None
    hidden, left = stack(
        embedding(tokens),
        slots=tokens.slots,
        mask=mask,
        reader=reader,
        states=memory.layers,
        source=source,
        known=cache.known,
    )
    known = cache.known or (source and [place.cross for place in left])
    return hidden, Cache(memory.extended(reader, _own(left)), source and source.slots, known)


def _own(left: list[Left]) -> list[Any]:
    return [place.own for place in left]


def _check(stack: Stack, mask: Mask) -> None:
    """Raises ValueError where the stack cannot be read token by token."""
    config = stack.config
    for spec in config.pattern:
        visible = spec.visible(mask)
        if not visible.extendable:
            raise ValueError(
                f"{visible} lets a query see later keys, so a line cannot be extended without reading it again; "
                "use a mask with Causal() or Prefix()"
            )
    for positions, scheme in zip(stack.positions, stack.schemes, strict=True):
        if positions.reindexes:
            raise ValueError(
                f"{scheme} moves earlier keys as the line grows, so a cache cannot equal the full pass; "
                "score full passes, or use another StackConfig.positions"
            )


def _check_reach(stack: Stack, mask: Mask, cache: Whole | Rolling, tokens: int) -> None:
    for spec in stack.config.pattern:
        reason = cache.refuses(spec.visible(mask), tokens)
        if reason is not None:
            raise ValueError(reason)


def _check_reindex(stack: Stack, cache: Whole | Rolling, tokens: int) -> None:
    if not cache.reindex:
        return
    for positions, scheme in zip(stack.positions, stack.schemes, strict=True):
        if type(positions).embed is not Positions.embed:
            raise ValueError(
                f"Rolling.reindex = True moves tokens in the cache, but {scheme} is part of their states; "
                "set it to False or use a StackConfig.positions that turns keys or adds a bias"
            )
    if tokens > cache.capacity:
        raise ValueError(
            f"a prompt of {tokens} tokens is longer than the cache of {cache.capacity} that Rolling.reindex = True "
            "counts places in; prefill its beginning and extend by the rest"
        )


def _sound(stack: Stack, mask: Mask, cache: KeyValues, tokens: Tokens) -> Any:
    """bool[]: the cache has room, and no token belongs to a prefix that earlier queries should have seen.

    Raises:
      ValueError: not so, as values that are known already tell.
    """
    room = cache.kind.fits(cache.cursor, tokens.ids.shape[-1])
    if not isinstance(room, Tracer) and not room:
        raise ValueError(
            f"a cache of {cache.kind.capacity} holds {int(cache.cursor)} tokens and cannot take "
            f"{tokens.ids.shape[-1]} more; raise Whole.capacity"
        )
    if all(spec.visible(mask).causal for spec in stack.config.pattern):
        return room
    late = tokens.slots.prefix.any()
    if not isinstance(late, Tracer) and late:
        raise ValueError(
            f"{mask} shows a prefix to tokens before it, so a prefix cannot be extended; prefill all of it at once"
        )
    return room & ~late

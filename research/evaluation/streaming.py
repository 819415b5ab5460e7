"""Loss of a long text that is read once, segment by segment, with what a model can keep of it."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Float64, Int32, Int64

from research.attention.masks import Mask, Sinks, Slots, Window
from research.attention.memory import Rolling
from research.attention.positions import Learned, Rotary, Sinusoidal
from research.batch import Batch, Tokens
from research.evaluation.checked import require_decoder, require_positions
from research.evaluation.long_context import by_position, scored_losses, sliding, stretches
from research.evaluation.trained import Scores, Trained
from research.models.decoder import Decoder, DecoderConfig
from research.models.families import FamilyConfig
from research.training.step import Trainer

BOUNDED = 4096  # tokens: who sees as far back is not asked whether there is an end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streamed:
    """Held-out loss of a decoder that reads long stretches as it would read a text without end.

    A model with a memory carries it from segment to segment (Transformer-XL, Compressive Transformer); one whose masks
    see a bounded number of keys keeps those (a window, chunks); any other reads sliding windows of `Data.window`
    tokens, most of each again. With a `cache` a model without a memory keeps what that holds instead and sees nothing
    else: StreamingLLM (Xiao et al. 2024), which needs no training.

    Attributes:
      tokens: of a stretch, a run within one document that begins with BOS.
      scored: the last ones, of which `loss` is the mean: where a stretch has long been longer than anything kept.
      segment: tokens that are read at once; of a memory, as many as it was trained with.
      stride: new tokens of a window, where windows are read.
      cache: what is kept; its window holds a segment, and behind that what the first token of one sees.
      stretches: at most so many, and at most `Data.held_out`.
      gram: tokens of a run that counts as said before; see `told`.
      split: of which documents.
    """

    tokens: int = 4096
    scored: int = 1024
    segment: int = 64
    stride: int = 16
    cache: Rolling | None = None
    stretches: int = 8
    gram: int = 8
    split: Literal["test", "validation"] = "test"

    def __post_init__(self):
        if not 1 <= self.scored <= self.tokens or self.segment < 1 or self.tokens % self.segment:
            raise ValueError(
                f"Streamed.tokens = {self.tokens}, Streamed.scored = {self.scored}, Streamed.segment = {self.segment}: "
                "expected whole segments, of which at most all tokens are scored"
            )
        if self.stride < 1 or self.stretches < 1 or self.gram < 2:
            raise ValueError(
                f"Streamed.stride = {self.stride}, Streamed.stretches = {self.stretches}, Streamed.gram = {self.gram}: "
                "expected at least 1, 1 and 2"
            )
        if self.cache is not None and self.cache.window < self.segment:
            raise ValueError(
                f"Streamed.cache = {self.cache} has no room for Streamed.segment = {self.segment} tokens; raise "
                "Rolling.window"
            )

    def check(self, model: FamilyConfig) -> None:
        """ValueError where the model is no decoder that hides what comes later, has fewer positions than a stretch has
        tokens, a memory where a cache is asked for, one that cannot take segments of that size, or positions that a
        cache cannot hold.
        """
        decoder = require_decoder(model, "Streamed")
        if self.cache is not None and decoder.stack.memory is not None:
            raise ValueError(
                f"Streamed.cache = {self.cache}, but the model keeps StackConfig.memory = {decoder.stack.memory}; "
                "expected None for either"
            )
        memory = decoder.stack.memory
        older = None if memory is None else memory.compression
        if older is not None and self.segment % older.rate:
            raise ValueError(
                f"Streamed.segment = {self.segment} cannot be compressed by {type(older).__name__}.rate = "
                f"{older.rate}; make it a multiple of the rate"
            )
        kept = _kept(self, decoder)
        if kept is not None and not (self.cache and self.cache.reindex):
            require_positions(decoder, self.tokens, f"Streamed.tokens = {self.tokens}")
        if isinstance(kept, Rolling):
            _require_held(decoder, kept)

    def __call__(self, trained: Trained) -> Scores:
        """Nats per token: `loss` of the scored ones, of all tokens `by_position` in the stretch, and of the scored ones
        that were `told` before `by_distance`, how far back they last were; both with the labels of `by_position`.
        `held_bytes`: what a stretch leaves for the next segment, of one row; None where segments are read again.
        `tokens`: how many are scored.

        Raises:
          ValueError: see `check`, or no document is long enough.
        """
        self.check(trained.trainer.config)
        lines = np.stack(stretches(trained.text, self.split, self.tokens, self.stretches, "Streamed.tokens"))
        losses, held = read(self, trained, lines)
        scored = losses[:, -self.scored :]
        places = np.broadcast_to(np.arange(self.tokens), losses.shape)
        back = np.stack([told(line, self.gram)[-self.scored :] for line in lines])
        return {
            "loss": float(scored.mean()),
            "by_position": by_position(losses.ravel(), places.ravel()),
            "by_distance": by_position(scored[back > 0], back[back > 0]),
            "held_bytes": held,
            "tokens": scored.size,
        }


def told(line: Int32[np.ndarray, " n"], gram: int) -> Int64[np.ndarray, " n"]:
    """How far back each token last stood behind the same `gram - 1` tokens, where it did each time they came before; 0:
    they are new, or something else followed them.

    Whoever looks up what followed there is right about these tokens, if it sees as far.
    """
    found = np.zeros(len(line), np.int64)
    if len(line) < gram:
        return found
    _, before = np.unique(
        np.lib.stride_tricks.sliding_window_view(line[:-1], gram - 1), axis=0, return_inverse=True
    )
    place = np.argsort(
        before.ravel(), kind="stable"
    )  # one group of the same tokens after the other, each in order
    group, token = before.ravel()[place], line[gram - 1 :][place]
    first = np.searchsorted(group, group)  # of its group
    others = np.cumsum(token != token[first])  # that do not follow as at first, up to here
    known = (others == others[first]) & (np.arange(len(place)) > first)
    found[gram - 1 + place[known]] = place[known] - place[np.flatnonzero(known) - 1]
    return found


def _require_held(model: DecoderConfig, cache: Rolling) -> None:
    """ValueError where a position scheme of the model does not go with a cache that rolls."""
    for spec in model.stack.pattern:
        scheme = spec.positions or model.stack.positions
        if isinstance(scheme, Rotary) and scheme.reindexes:
            raise ValueError(
                f"{scheme} moves earlier keys as the text grows, so that no cache can hold them; expected another "
                "Rotary.scaling"
            )
        if cache.reindex and isinstance(scheme, Sinusoidal | Learned):
            raise ValueError(
                f"Rolling.reindex = True moves tokens in the cache, but {type(scheme).__name__} positions are part of "
                "their states; set it to False, or leave the evaluation out"
            )


def _kept(streamed: Streamed, model: DecoderConfig) -> Rolling | Literal["memory"] | None:
    """What the model keeps of a text; None: nothing."""
    if model.stack.memory is not None:
        return "memory"
    if streamed.cache is not None:
        return streamed.cache
    tokens = min(streamed.tokens, BOUNDED)
    seen = max(_seen(spec.visible(model.mask), tokens) for spec in model.stack.pattern)
    return Rolling(window=seen + streamed.segment - 1) if seen < tokens else None


@functools.lru_cache(maxsize=64)
def _seen(mask: Mask, tokens: int) -> int:
    """How many tokens back a query of a line of so many sees at most, itself among them."""
    positions = np.arange(tokens, dtype=np.int32)[:, None]

    def slots(positions: np.ndarray) -> Slots:
        return Slots(positions, np.ones_like(positions), np.zeros(positions.shape, bool))

    farther = range(tokens - 1, 0, -1)  # pair by pair, so that not all of them are there at once
    found = (n for n in farther if mask(slots(positions[n:]), slots(positions[: tokens - n])).any())
    return next(found, 0) + 1


def read(
    streamed: Streamed, trained: Trained, lines: Int32[np.ndarray, "b n"]
) -> tuple[Float64[np.ndarray, "b n"], int | None]:
    """The loss of every token of lines of one length, and the bytes of what is kept of a line; None: nothing is."""
    config = trained.trainer.config
    assert isinstance(config, DecoderConfig)
    kept = _kept(streamed, config)
    if kept is None:
        spans = sliding(0, streamed.tokens, trained.text.data.window, streamed.stride)
        losses, _ = scored_losses(trained, list(lines), spans)
        return losses.reshape(lines.shape), None
    functions, cache = trained.trainer, None
    if isinstance(kept, Rolling):
        functions, cache = _seeing(functions, kept, streamed.segment), kept
    found, state = [], None
    for segment in _segments(lines, streamed.segment, trained.text.tokenizer.bos):
        losses, state = _segment(functions, cache, trained.params, segment, state)
        found.append(losses)
    whole = np.concatenate(multihost_utils.process_allgather(found, tiled=True), axis=1)
    bytes_of_rows = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return whole.astype(np.float64), bytes_of_rows // len(lines)


def _segments(lines: Int32[np.ndarray, "b n"], size: int, bos: int) -> Iterator[Batch]:
    """The lines behind BOS, segment by segment; positions run on."""
    before = np.concatenate([np.full((len(lines), 1), bos, np.int32), lines[:, :-1]], axis=1)
    for start in range(0, lines.shape[1], size):
        part = np.s_[:, start : start + size]
        slots = dataclasses.replace(Slots.arange(size, (len(lines),), start), start=None)
        yield Batch(Tokens(before[part], slots), lines[part], np.ones(lines[part].shape, np.float32))


@functools.lru_cache(maxsize=8)  # what is compiled is compiled for a trainer
def _seeing(trainer: Trainer, cache: Rolling, tokens: int) -> Trainer:
    """The functions of the model seeing no more than a cache holds that is given so many tokens at a time: of a
    document its first `cache.sinks` and, for each token, the same number of those before it.
    """
    assert isinstance(trainer.config, DecoderConfig)
    near: Mask = Window(cache.window - tokens + 1)
    shown = near | Sinks(cache.sinks) if cache.sinks else near
    return trainer.of(narrowed(trainer.config, shown))


def narrowed(model: DecoderConfig, window: Mask) -> DecoderConfig:
    """The model with blocks that see, of what they saw, what `window` shows."""
    pattern = tuple(
        dataclasses.replace(spec, window=spec.window & window if spec.window else window)
        for spec in model.stack.pattern
    )
    return dataclasses.replace(model, stack=dataclasses.replace(model.stack, pattern=pattern))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _segment(
    trainer: Trainer, cache: Rolling | None, params: Any, batch: Batch, state: Any
) -> tuple[Float[Array, "b t"], Any]:
    """The loss of each token of a segment, and the state after it; `cache`: None: the model has a memory."""
    model = trainer.model(params)
    assert isinstance(model, Decoder)
    if cache is None:
        out = model.apply(batch, carry=state)
        hidden, state = out.hidden, out.carry
    elif state is None:
        hidden, state = model.prefilled(batch.target, cache=cache)
    else:
        hidden, state = model.extended(state, batch.target)

    def loss(row: tuple[Array, Array]) -> Array:  # one row's logits at a time
        states, labels = row
        return optax.softmax_cross_entropy_with_integer_labels(model.outputs.logits(states), labels)

    return jax.lax.map(loss, (hidden, jnp.asarray(batch.labels))), state

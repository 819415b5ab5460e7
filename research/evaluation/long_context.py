"""Loss by length of context, under the two protocols in which it is reported.

*Non-overlapping* windows cut the text into runs of a length; a token is predicted from what its own run holds before
it, so the first ones of each have next to no context, and a longer window helps for that alone. *Sliding* windows
advance by a stride and score only the new tokens, which all have at least `length - stride` tokens before them. Press
et al. 2022 (ALiBi), tables 3 and 15, show how much the choice changes a curve. Here both score the same tokens, each
once, at every length: what differs between two numbers is the context alone.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Float64, Int, Int32

from research.attention.masks import Slots
from research.batch import Batch, Tokens
from research.data.layouts import Concatenate
from research.data.objectives import Example
from research.data.pipeline import Dataset
from research.data.streams import Stream
from research.data.windows import Tokenized
from research.evaluation.checked import require_decoder, require_no_memory, require_positions
from research.evaluation.trained import Scores, Trained
from research.models.families import FamilyConfig
from research.training.step import Trainer


class Span(NamedTuple):
    """A window of a line of tokens: [start, stop) is read behind BOS, and [scored, stop) is scored."""

    start: int
    scored: int
    stop: int


def non_overlapping(first: int, stop: int, length: int) -> list[Span]:
    """The windows that score tokens [first, stop), one after another; the last may be shorter than `length`."""
    return [Span(begin, begin, min(begin + length, stop)) for begin in range(first, stop, length)]


def sliding(first: int, stop: int, length: int, stride: int) -> list[Span]:
    """The windows that score tokens [first, stop), `stride` new ones each, behind as many as `length` has room for.

    With a stride of 1 each token is predicted from the `length - 1` tokens before it.

    Raises:
      ValueError: a window has no room for its new tokens.
    """
    if not 1 <= stride <= length:
        raise ValueError(f"stride = {stride} in windows of {length} tokens: expected 1 to {length}")
    ends = [(begin, min(begin + stride, stop)) for begin in range(first, stop, stride)]
    return [Span(max(end - length, 0), begin, end) for begin, end in ends]


def effective_context(losses: Mapping[int, float], eps: float) -> int:
    """The smallest length whose loss is at most `eps` nats above that of the greatest length.

    Where it is the greatest one, that is a lower bound. Where longer windows are worse, as past the trained length, it
    says that nothing is gained by them.
    """
    full = losses[max(losses)]
    return min(length for length, loss in losses.items() if loss - full <= eps)


def by_position(losses: Float64[np.ndarray, " n"], positions: Int[np.ndarray, " n"]) -> dict[str, float]:
    """Mean loss of the tokens at positions 0, 1, 2-3, 4-7, ...; each label is the first position of its bucket.

    `positions`: how many tokens each was predicted from.
    """
    bucket = octave(positions)
    return {str(first): float(losses[bucket == first].mean()) for first in np.unique(bucket).tolist()}


def octave(positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The greatest power of two that is at most each; 0 is alone."""
    return np.where(positions > 0, 2 ** np.floor(np.log2(np.maximum(positions, 1))), 0).astype(int)


def icl_score(
    losses: Float64[np.ndarray, " n"],
    positions: Int[np.ndarray, " n"],
    *,
    early: tuple[int, int],
    late: tuple[int, int],
) -> float:
    """Mean loss at the late positions less that at the early ones, in nats (Olsson et al. 2022: that of the 500th token
    less that of the 50th): the more negative, the more is learned in context.

    Args:
      losses, positions: of each token its loss, and how many tokens it was predicted from.
      early, late: the first position and the one after the last.
    """

    def mean(bounds: tuple[int, int]) -> float:
        return float(losses[(positions >= bounds[0]) & (positions < bounds[1])].mean())

    return mean(late) - mean(early)


@functools.partial(jax.jit, static_argnums=0)
def token_losses(trainer: Trainer, params: Any, batch: Batch) -> Float[Array, "b t"]:
    """The loss of each token in nats, whatever its weight, without dropout.

    The summed loss is linear in the weights, so its gradient by them is just that; the loss runs over chunks of tokens,
    and logits [b t v] are never there.
    """
    return jax.grad(lambda weights: trainer.loss(params, dataclasses.replace(batch, weights=weights))[0])(
        batch.weights
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthCurve:
    """Held-out loss of a decoder in windows of several lengths.

    *Stretches* are runs of `lengths[-1] - stride + tokens` tokens of one document each, without overlap, spread evenly
    over the split. The last `tokens` of a stretch are scored; those before them are only read, so that every sliding
    window is full. Each window begins with BOS at position 0, as in training. A prefix decoder is given no prefix, so
    it reads as a causal one.

    Attributes:
      lengths: tokens of a window, rising.
      stride: new tokens of a sliding window.
      stretches: at most so many, and at most `Data.held_out`.
      tokens: how many are scored of each.
      split: of which documents.
      eps: nats; see `effective_context`.
    """

    lengths: tuple[int, ...] = (64, 128, 256)
    stride: int = 32
    stretches: int = 32
    tokens: int = 256
    split: Literal["test", "validation"] = "test"
    eps: float = 0.01

    def __post_init__(self):
        if list(self.lengths) != sorted(set(self.lengths)) or min(self.lengths, default=0) < 2:
            raise ValueError(
                f"LengthCurve.lengths = {self.lengths}: expected rising numbers of at least 2 tokens"
            )
        if not 1 <= self.stride <= self.lengths[0]:
            raise ValueError(
                f"LengthCurve.stride = {self.stride}: expected 1 to {self.lengths[0]}, the shortest of "
                "LengthCurve.lengths"
            )
        if self.tokens < self.lengths[-1]:
            raise ValueError(
                f"LengthCurve.tokens = {self.tokens}: expected at least {self.lengths[-1]}, the longest of "
                "LengthCurve.lengths"
            )
        if self.stretches < 1 or self.eps < 0:
            raise ValueError(
                f"LengthCurve.stretches = {self.stretches}, LengthCurve.eps = {self.eps}: expected at least 1 and at "
                "least 0"
            )

    def check(self, model: FamilyConfig) -> None:
        """ValueError where the model is no decoder that hides what comes later, has a memory or fewer positions than
        the longest window.
        """
        decoder = require_decoder(model, "LengthCurve")
        require_no_memory(decoder, "LengthCurve reads each window alone")
        require_positions(decoder, self.lengths[-1], f"LengthCurve.lengths = {self.lengths}")

    def __call__(self, trained: Trained) -> Scores:
        """Nats per token by length, `non_overlapping` and `sliding`, and `by_position` in the longest non-overlapping
        windows, with the labels of that function. `effective_context` in tokens, by the sliding losses. `icl_score`: of
        the last tenth of the longest window and its second tenth. `tokens`: how many were scored for each number.

        Raises:
          ValueError: see `check`, or no document is long enough.
        """
        self.check(trained.trainer.config)
        first = self.lengths[-1] - self.stride
        lines = stretches(trained.text, self.split, first + self.tokens, self.stretches, _SIZE)
        stop = first + self.tokens
        apart = {n: scored_losses(trained, lines, non_overlapping(first, stop, n)) for n in self.lengths}
        slid = {
            n: float(scored_losses(trained, lines, sliding(first, stop, n, self.stride))[0].mean())
            for n in self.lengths
        }
        longest = self.lengths[-1]
        tenth = max(longest // 10, 1)
        return {
            "non_overlapping": {str(n): float(losses.mean()) for n, (losses, _) in apart.items()},
            "sliding": {str(n): loss for n, loss in slid.items()},
            "by_position": by_position(*apart[longest]),
            "effective_context": effective_context(slid, self.eps),
            "icl_score": icl_score(
                *apart[longest], early=(tenth, 2 * tenth), late=(longest - tenth, longest)
            ),
            "tokens": len(apart[longest][0]),
        }


_SIZE = "the longest of LengthCurve.lengths less LengthCurve.stride, and LengthCurve.tokens"


def stretches(
    text: Dataset, split: str, size: int, most: int, made_of: str
) -> list[Int32[np.ndarray, " size"]]:
    """At most so many runs of `size` tokens of one document each, without overlap, spread evenly over a split.

    `made_of`: the settings that the size is the sum of, for what is said where no document is long enough.

    Raises:
      ValueError: there is no such run, or the split holds no documents.
    """
    found = [
        ids[start : start + size]
        for ids in _documents(text, split)
        for start in range(0, len(ids) - size + 1, size)
    ]
    if not found:
        longest = max(map(len, _documents(text, split)))
        raise ValueError(
            f"stretches of {size} tokens are to be read ({made_of}), but the longest {split} document of "
            f"{text.data.corpus} has {longest}; lower them, or use a corpus of longer documents"
        )
    count = min(most, text.data.held_out, len(found))
    return [found[i] for i in np.linspace(0, len(found) - 1, count).astype(int)]


def _documents(text: Dataset, split: str) -> Iterator[Int32[np.ndarray, " n"]]:
    """The tokens of each document of a split."""
    for part in text.windows:
        windows = part[split]
        if not isinstance(windows, Tokenized) or any(window.record for window in windows):
            raise ValueError(
                f"long documents are to be read, but Data.corpus = {text.data.corpus} has records or is synthetic; "
                "expected free text: bind another corpus or leave the evaluation out"
            )
        for begin, end in zip(windows.bounds[:-1], windows.bounds[1:], strict=True):
            yield windows.ids[begin:end]


def plain(ids: Int32[np.ndarray, "b n"]) -> Batch:
    """Rows of tokens as they are: each is read, and each scored."""
    slots = Slots.arange(ids.shape[1], (len(ids),))
    return Batch(Tokens(ids, slots), ids, np.ones(ids.shape, np.float32))


def scored_losses(
    trained: Trained, lines: Sequence[Int32[np.ndarray, " n"]], spans: Sequence[Span]
) -> tuple[Float64[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """The loss of every scored token of all lines, and how many tokens it was predicted from."""
    losses, positions, text = [], [], trained.text
    if isinstance(text.data.layout, Stream):  # that lays out no windows
        text = text.laid(Concatenate())
    for batch in text.placed([_example(ids, span) for ids in lines for span in spans]):
        (placed,) = trained.place([batch])
        found = token_losses(trained.trainer, trained.params, placed)
        scored = np.asarray(batch.weights) > 0
        losses.append(multihost_utils.process_allgather(found, tiled=True)[scored])
        positions.append(np.asarray(batch.target.slots.position)[scored])
    return np.concatenate(losses).astype(np.float64), np.concatenate(positions)


def _example(ids: Int32[np.ndarray, " n"], span: Span) -> Example:
    """A window as targets only, of which some have weight."""
    weights = (np.arange(span.start, span.stop) >= span.scored).astype(np.float32)
    return Example(ids[:0], ids[span.start : span.stop], weights)

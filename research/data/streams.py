"""Streams: long documents read piece by piece, for models that carry a memory from one step to the next."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int64

from research.data.layouts import Features, Layout
from research.data.objectives import Example, Limits
from research.data.tokenizers import Tokenizer
from research.data.windows import Tokenized


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream(Layout):
    """Row i of step t + 1 continues row i of step t (Transformer-XL: Dai et al. 2019).

    The documents of an epoch, each begun by BOS and ended by predicting EOS, stand one after another; the whole is cut
    into as many rows as a batch has, and step t holds `Data.window` tokens of each. A segment is a document, counted
    along the stream; positions run on and never restart. It takes `CausalLM` with a loss on all tokens.
    """

    def __call__(self, example: Example, tokenizer: Tokenizer) -> Features:
        """Not possible: a stream lays out documents, see `Rows`."""
        raise ValueError(
            "Stream lays out whole documents, not windows; set Data.layout = @layouts.Concatenate()"
        )

    def lengths(self, limits: Limits) -> dict[str, int]:
        """One line of a window's tokens."""
        return {"target": limits.total}


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a stream over one split.

    Attributes:
      text: the documents.
      tokenizer: for BOS and EOS.
      rows, length: of a batch.
      seed: of the documents' order, fresh each epoch; None: their own order.
    """

    text: Tokenized
    tokenizer: Tokenizer
    rows: int
    length: int
    seed: int | None

    def __post_init__(self):
        if not self.steps:
            raise ValueError(
                f"a stream of {self._total} tokens is too short for {self.rows} rows of {self.length}; lower "
                "Data.batch or Data.window, or use a larger corpus"
            )

    @property
    def _total(self) -> int:
        return int(self.text.bounds[-1]) + len(self.text.bounds) - 1  # and a BOS for each document

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self._total // self.rows // self.length

    def order(self, steps: int) -> Int64[np.ndarray, " n"]:
        """The documents in the order in which the epochs of so many steps read them."""
        return np.concatenate([_arranged(self, epoch)[0] for epoch in range(-(-steps // self.steps))])

    def batch(self, step: int) -> Features:
        """The rows of a step, as `layouts.assemble` takes them."""
        epoch, here = divmod(step, self.steps)
        lines = [self._line(epoch, here, row) for row in range(self.rows)]
        names = ("target", "labels", "weights", "target_segment")
        batch = dict(zip(names, (np.stack(parts) for parts in zip(*lines, strict=True)), strict=True))
        first = step * self.length
        position = np.arange(first, first + self.length, dtype=np.int32)
        return {**batch, "target_position": np.broadcast_to(position, batch["target"].shape)}

    def _line(self, epoch: int, here: int, row: int) -> tuple[np.ndarray, ...]:
        """Tokens, labels, weights and segments of one row of one step."""
        order, ends = _arranged(self, epoch)
        start = (row * self.steps + here) * self.length
        pieces, place = [], start
        document = int(np.searchsorted(ends, start, side="right"))
        while place < start + self.length:
            first, last = self.text.bounds[order[document]], self.text.bounds[order[document] + 1]
            own = np.concatenate([[self.tokenizer.bos], self.text.ids[first:last], [self.tokenizer.eos]])
            began = ends[document] - (last - first + 1)
            a, b = place - began, min(start + self.length, ends[document]) - began
            segment = epoch * len(order) + document + 1
            pieces.append((own[a:b], own[a + 1 : b + 1], np.full(b - a, segment)))
            place, document = began + b, document + 1
        tokens, labels, segments = (
            np.concatenate(parts).astype(np.int32) for parts in zip(*pieces, strict=True)
        )
        return tokens, labels, np.ones(self.length, np.float32), segments


@functools.lru_cache(maxsize=4)
def _arranged(rows: Rows, epoch: int) -> tuple[Int64[np.ndarray, " d"], Int64[np.ndarray, " d"]]:
    """The documents in the order of an epoch, and where each ends in the stream."""
    sizes = np.diff(rows.text.bounds) + 1
    order = np.arange(len(sizes))
    if rows.seed is not None:
        order = np.random.default_rng([rows.seed, epoch]).permutation(len(sizes))
    return order, np.cumsum(sizes[order])

"""Windows: the tokens of a document or a record as objectives receive them, how records are written out, and where
all the windows of a split are kept.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from research.data.documents import SPLITS, Document, Item, Record, Speaker, place
from research.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class TokenWindow:
    """The unit of a study: a run of tokens, drawn before any objective touches it.

    Attributes:
      ids: i32[n], the tokens.
      scored: bool[n], which of them are to be learned: all of a free text, the assistant's of a record.
      record: it is a whole record, not a piece of free text.
    """

    ids: np.ndarray
    scored: np.ndarray
    record: bool = False

    @staticmethod
    def text(ids: Int32[np.ndarray, " n"]) -> "TokenWindow":
        """A window of free text."""
        return TokenWindow(ids, np.ones(len(ids), bool))

    @staticmethod
    def pair(inputs: Int32[np.ndarray, " n"], targets: Int32[np.ndarray, " m"]) -> "TokenWindow":
        """A window of given tokens and the targets that follow them."""
        scored = np.arange(len(inputs) + len(targets)) >= len(inputs)
        return TokenWindow(np.concatenate([inputs, targets]).astype(np.int32), scored, record=True)

    @property
    def given(self) -> int:
        """How many tokens come before the last unbroken run of scored tokens (0 for free text)."""
        unscored = np.flatnonzero(~self.scored)
        return int(unscored[-1]) + 1 if unscored.size else 0


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers from 0 to `count` - 1, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist()


@runtime_checkable  # so that a config value can be checked against it
class Synthetic(Protocol):
    """A task whose windows are made, not read."""

    def sample(self, rng: np.random.Generator, tokenizer: Tokenizer) -> TokenWindow:
        """One window; everything random comes from `rng`."""
        ...


@runtime_checkable
class Format(Protocol):
    """How the turns of a record become one line of tokens."""

    def __call__(self, record: Record, tokenizer: Tokenizer) -> TokenWindow:
        """The record's tokens, the assistant's scored."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain:
    """The turns one after another, with nothing between them."""

    def __call__(self, record: Record, tokenizer: Tokenizer) -> TokenWindow:
        """The assistant's tokens are scored."""
        return _line([(turn.text, turn.speaker == "assistant") for turn in record.turns], tokenizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """A dialogue with markers around each turn, as chat models read it.

    What the assistant says and the marker that ends it are scored; the marker that asks for it is given.

    Attributes:
      begin: text before a turn; `{speaker}` is replaced by who speaks.
      end: text after a turn.
    """

    begin: str = "<|{speaker}|>\n"
    end: str = "<|end|>\n"

    def __call__(self, record: Record, tokenizer: Tokenizer) -> TokenWindow:
        """The dialogue, the assistant's words and its end markers scored."""
        pieces = []
        for turn in record.turns:
            pieces.append((self.opening(turn.speaker), False))
            pieces.append((turn.text + self.end, turn.speaker == "assistant"))
        return _line(pieces, tokenizer)

    def opening(self, speaker: Speaker) -> str:
        """The text that asks a model to speak as that speaker."""
        return self.begin.format(speaker=speaker)


def _line(pieces: list[tuple[str, bool]], tokenizer: Tokenizer) -> TokenWindow:
    """Each piece is tokenized alone, so that no token straddles the border of a loss mask."""
    lines = [tokenizer.encode(text) for text, _ in pieces]
    scored = [np.full(len(line), flag) for line, (_, flag) in zip(lines, pieces, strict=True)]
    return TokenWindow(np.concatenate(lines), np.concatenate(scored), record=True)


MADE = (0, 0)  # what random streams of windows begin with: no other stream does


class Tokenized:
    """The windows of documents and records, in their order.

    A document gives every whole run of `length` tokens, without overlap; what fills no window is left out. A record is
    one window, or left out where it is longer than `length`, has nothing to learn, or `admits` says no.

    Attributes:
      ids: i32[n], all tokens of all documents and records.
      bounds: i64[d + 1], where each begins and ends.
      left_out: how many records gave no window.
    """

    def __init__(
        self,
        items: Sequence[Item],
        tokenizer: Tokenizer,
        length: int,
        written: Format,
        admits: Callable[[TokenWindow], bool],
    ):
        lines, spans, ends = [], [], [0]
        self.left_out = 0
        for item in items:
            if isinstance(item, Document):
                line = TokenWindow.text(tokenizer.encode(item.text))
                spans += [(ends[-1] + i, length, False) for i in range(0, len(line.ids) - length + 1, length)]
            else:
                line = written(item, tokenizer)
                if len(line.ids) <= length and line.scored.any() and admits(line):
                    spans.append((ends[-1], len(line.ids), True))
                else:
                    self.left_out += 1
            lines.append(line)
            ends.append(ends[-1] + len(line.ids))
        self.ids = np.concatenate([np.zeros(0, np.int32), *(line.ids for line in lines)])
        self._scored = np.concatenate([np.zeros(0, bool), *(line.scored for line in lines)])
        self.bounds = np.array(ends, np.int64)
        self._spans = np.array(spans, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, i: int) -> TokenWindow:
        start, length, record = self._spans[i].tolist()
        return TokenWindow(
            self.ids[start : start + length], self._scored[start : start + length], bool(record)
        )


@dataclasses.dataclass(frozen=True)
class Made:
    """The windows of a synthetic task: window i is a pure function of the task, the split and i.

    Which split a window belongs to depends on its tokens alone, as with documents, so that none is in two.

    Attributes:
      task, tokenizer: what makes them.
      split: "train", "validation" or "test".
      count: how many there are.
      most: tokens a window may have.
      admits: whether an objective takes a window; those it does not take are made again.
      bounds: least and greatest place (see `documents.place`) of the split.
    """

    task: Synthetic
    tokenizer: Tokenizer
    split: str
    count: int
    most: int
    bounds: tuple[float, float]
    admits: Callable[[TokenWindow], bool]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> TokenWindow:
        return self.drawn(i)[0]

    def drawn(self, i: int) -> tuple[TokenWindow, list[int]]:
        """Window i, and the seed of the generator that the task made it with: what it drew can be drawn again."""
        if not 0 <= i < self.count:
            raise IndexError(i)  # ends an iteration
        for attempt in range(1000):
            seed = [*MADE, SPLITS.index(self.split), i, attempt]
            window = self.task.sample(np.random.default_rng(seed), self.tokenizer)
            if len(window.ids) > self.most:
                raise ValueError(
                    f"{self.task} made a window of {len(window.ids)} tokens, but Data.window = {self.most}; raise it"
                )
            if self.bounds[0] <= place(window.ids.tobytes()) < self.bounds[1] and self.admits(window):
                return window, seed
        raise ValueError(
            f"{self.task} has too few windows for a {self.split} split that the objective takes; make the task larger, "
            "change Data.validation and Data.test, or the objective's bounds"
        )

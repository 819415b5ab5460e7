"""Windows: the tokens of a document or a record as objectives receive them, and how records are written out."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from research.data.documents import Record, Speaker
from research.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Window:
    """The unit of a study: a run of tokens, drawn before any objective touches it.

    Attributes:
      ids: i32[n], the tokens.
      scored: bool[n], which of them are to be learned: all of a free text, the assistant's of a record.
      weight: share of the whole window in the loss (sample weights).
    """

    ids: np.ndarray
    scored: np.ndarray
    weight: float = 1.0

    @staticmethod
    def text(ids: Int32[np.ndarray, " n"]) -> "Window":
        """A window of free text."""
        return Window(ids, np.ones(len(ids), bool))

    @staticmethod
    def pair(inputs: Int32[np.ndarray, " n"], targets: Int32[np.ndarray, " m"]) -> "Window":
        """A window of given tokens and the targets that follow them."""
        scored = np.arange(len(inputs) + len(targets)) >= len(inputs)
        return Window(np.concatenate([inputs, targets]).astype(np.int32), scored)

    @property
    def given(self) -> int:
        """How many tokens come before the last unbroken run of scored tokens (0 for free text)."""
        unscored = np.flatnonzero(~self.scored)
        return int(unscored[-1]) + 1 if unscored.size else 0


@runtime_checkable  # so that a config value can be checked against it
class Synthetic(Protocol):
    """A task whose windows are made, not read."""

    def sample(self, rng: np.random.Generator, tokenizer: Tokenizer) -> Window:
        """One window; everything random comes from `rng`."""
        ...


@runtime_checkable
class Format(Protocol):
    """How the turns of a record become one line of tokens."""

    def __call__(self, record: Record, tokenizer: Tokenizer) -> Window:
        """The record's tokens, the assistant's scored."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain:
    """The turns one after another, with nothing between them."""

    def __call__(self, record: Record, tokenizer: Tokenizer) -> Window:
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

    def __call__(self, record: Record, tokenizer: Tokenizer) -> Window:
        """The dialogue, the assistant's words and its end markers scored."""
        pieces = []
        for turn in record.turns:
            pieces.append((self.opening(turn.speaker), False))
            pieces.append((turn.text + self.end, turn.speaker == "assistant"))
        return _line(pieces, tokenizer)

    def opening(self, speaker: Speaker) -> str:
        """The text that asks a model to speak as that speaker."""
        return self.begin.format(speaker=speaker)


def _line(pieces: list[tuple[str, bool]], tokenizer: Tokenizer) -> Window:
    """Each piece is tokenized alone, so that no token straddles the border of a loss mask."""
    lines = [tokenizer.encode(text) for text, _ in pieces]
    scored = [np.full(len(line), flag) for line, (_, flag) in zip(lines, pieces, strict=True)]
    return Window(np.concatenate(lines), np.concatenate(scored))

"""Tokenizers: text to ids and back.

Bytes are the default: no vocabulary to train or to ship, every text is in it, and losses of all
arms are comparable in bits per byte.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray


@runtime_checkable  # so that a config value can be checked against it
class Tokenizer(Protocol):
    """What every tokenizer provides: `pad`, `bos`, `eos` and `mask` are ids."""

    pad: int
    bos: int
    eos: int
    mask: int

    @property
    def vocab_size(self) -> int:
        """The number of ids; every id is below it."""
        ...

    @property
    def text_ids(self) -> range:
        """The ids that stand for text, as no special does."""
        ...

    @property
    def sentinels(self) -> int:
        """How many sentinels there are."""
        ...

    def sentinel(self, i: int) -> int:
        """The id of sentinel `i`, which counts from 0; a ValueError where there are not that many."""
        ...

    def encode(self, text: str) -> NDArray[np.int32]:
        """The ids `[n]` of a text; no special is added."""
        ...

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids `[n]`; specials are shown by name."""
        ...

    def byte_count(self, ids: ArrayLike) -> int:
        """How many bytes of text ids of any shape stand for."""
        ...

    def ready(self, texts: Iterable[str], data_dir: str | Path | None = None) -> "Tokenizer":
        """A tokenizer that can encode: itself, or one trained on the texts or read from its files."""
        ...


_FIRST_BYTE = 4
_FIRST_SENTINEL = _FIRST_BYTE + 256


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """UTF-8 bytes: ids 0-3 are pad, bos, eos and mask, 4-259 the bytes, 260 on the sentinels.

    Attributes:
        sentinels: how many sentinel ids there are (span corruption marks its gaps with them); the
            default fills the vocabulary up to 288, a multiple of 32.
    """

    sentinels: int = 28

    pad: ClassVar[int] = 0
    bos: ClassVar[int] = 1
    eos: ClassVar[int] = 2
    mask: ClassVar[int] = 3

    def __post_init__(self) -> None:
        """Raise a ValueError for a negative number of sentinels."""
        if self.sentinels < 0:
            raise ValueError(f"Bytes.sentinels is {self.sentinels}, expected 0 or more")

    @property
    def vocab_size(self) -> int:
        """The number of ids; every id is below it."""
        return _FIRST_SENTINEL + self.sentinels

    @property
    def text_ids(self) -> range:
        """The ids that stand for text, as no special does."""
        return range(_FIRST_BYTE, _FIRST_SENTINEL)

    def sentinel(self, i: int) -> int:
        """The id of sentinel `i`, which counts from 0.

        Raises:
            ValueError: there are not that many.
        """
        if not 0 <= i < self.sentinels:
            raise ValueError(
                f"sentinel {i} does not exist, expected 0 to {self.sentinels - 1}; "
                "raise Bytes.sentinels or corrupt fewer spans"
            )
        return _FIRST_SENTINEL + i

    def ready(self, texts: Iterable[str], data_dir: str | Path | None = None) -> "Bytes":
        """Itself: there is nothing to train or to read."""
        return self

    def encode(self, text: str) -> NDArray[np.int32]:
        """The ids `[n]` of the text's n UTF-8 bytes; no special is added.

        Raises:
            ValueError: the text has a lone surrogate, so it isn't Unicode text and has no UTF-8.
        """
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text has the lone surrogate {text[error.start]!a} at index {error.start}, "
                "expected Unicode text; repair the text where it was decoded"
            ) from error
        return np.frombuffer(raw, np.uint8).astype(np.int32) + np.int32(_FIRST_BYTE)

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids `[n]`; `decode(encode(text)) == text` for every text.

        Specials are shown as <bos>, <eos>, <mask>, <s0>, <s1>, ...; padding is dropped; bytes that
        aren't UTF-8, as a model may well write them, become U+FFFD.

        Raises:
            ValueError: `ids` isn't one line of whole numbers, or an id is outside the vocabulary.
        """
        line = self._checked(ids)
        if line.ndim != 1:
            raise ValueError(f"ids have shape {line.shape}, expected [n]; decode row by row")
        pieces = []
        for is_byte, run in groupby(line[line != self.pad].tolist(), key=_is_byte):
            if is_byte:
                pieces.append(bytes(i - _FIRST_BYTE for i in run).decode(errors="replace"))
            else:
                pieces.extend(self._special(i) for i in run)
        return "".join(pieces)

    def byte_count(self, ids: ArrayLike) -> int:
        """How many bytes of text the ids, of any shape, stand for: specials and padding for none.

        Raises:
            ValueError: ids aren't whole numbers, or an id is outside the vocabulary.
        """
        return int(np.count_nonzero(_is_byte(self._checked(ids))))

    def _special(self, i: int) -> str:
        names = {self.bos: "<bos>", self.eos: "<eos>", self.mask: "<mask>"}
        return names.get(i) or f"<s{i - _FIRST_SENTINEL}>"

    def _checked(self, ids: ArrayLike) -> NDArray[np.integer]:
        array = np.asarray(ids)
        if array.size == 0:
            return array.astype(np.int32)  # an empty list comes as floats
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"ids are {array.dtype}, expected whole numbers")
        unknown = array[(array < 0) | (array >= self.vocab_size)]
        if unknown.size:
            raise ValueError(
                f"id {unknown[0]} is unknown, expected 0 to {self.vocab_size - 1}; were the ids "
                "made with another tokenizer or another Bytes.sentinels?"
            )
        return array


def _is_byte(i):
    """Whether an id, or each of an array of ids, stands for a byte."""
    return (i >= _FIRST_BYTE) & (i < _FIRST_SENTINEL)

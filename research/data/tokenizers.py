"""Tokenizers: text to ids and back.

Bytes are the default: no vocabulary to train or to ship, every text is in it, and losses of all arms are comparable
in bits per byte. Symbols are for synthetic tasks; `subwords` has those that are trained or come with real weights.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64
from numpy.typing import ArrayLike

FIRST_TEXT = 4  # the standard layout: pad, bos, eos, mask come first


@runtime_checkable  # so that a config value can be checked against it
class TokenizerSource(Protocol):
    """What a configuration names: a tokenizer, or how to come by one."""

    def ready(self, texts: Iterable[str], data_dir: str | Path | None = None) -> "Tokenizer":
        """A tokenizer that can encode: itself, or one trained on the texts or read from its files."""
        ...


@runtime_checkable
class Tokenizer(TokenizerSource, Protocol):
    """What every tokenizer provides: `pad`, `bos`, `eos` and `mask` are ids."""

    @property
    def pad(self) -> int:
        """The id that fills rows; it stands for nothing."""
        ...

    @property
    def bos(self) -> int:
        """The id before a text."""
        ...

    @property
    def eos(self) -> int:
        """The id after a text; it may be `bos` in tokenizers read from a file."""
        ...

    @property
    def mask(self) -> int:
        """The id that stands where a token was hidden."""
        ...

    @property
    def begins(self) -> bool:
        """Whether the model that the tokenizer was published with reads `bos` before a line; true of our own."""
        ...

    @property
    def vocab_size(self) -> int:
        """The number of ids; every id is below it."""
        ...

    @property
    def text_ids(self) -> range | Int32[np.ndarray, " n"]:
        """The ids that stand for text, as no special does, in rising order."""
        ...

    @property
    def sentinels(self) -> int:
        """How many sentinels there are."""
        ...

    def sentinel(self, i: int) -> int:
        """The id of sentinel `i`, which counts from 0; a ValueError where there are not that many."""
        ...

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The ids of a text; no special is added."""
        ...

    def framed(self, ids: ArrayLike) -> Int32[np.ndarray, " n"]:
        """The ids of a text as the encoder of an encoder-decoder reads them."""
        ...

    def decode(self, ids: ArrayLike, *, continues: bool = False) -> str:
        """The text of ids `[n]`, which goes on from another text or not; specials are shown by name."""
        ...

    def byte_count(self, ids: ArrayLike) -> int:
        """How many bytes of text ids of any shape stand for."""
        ...


class Specials(NamedTuple):
    """The ids that aren't text.

    Attributes:
        pad, bos, eos, mask: see `Tokenizer`.
        sentinels: the ids of the sentinels.
        others: ids of further specials, which nothing here uses, and how they are shown.
        before, after: ids that a published encoder-decoder reads before and after a source.
        begins: whether a published decoder reads `bos` before a line.
    """

    pad: int
    bos: int
    eos: int
    mask: int
    sentinels: Sequence[int]
    others: tuple[tuple[int, str], ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    begins: bool = True


class Vocabulary:
    """What the tokenizers share: specials and their names, checks of ids, text and its bytes."""

    def specials(self) -> Specials:
        """The ids that aren't text."""
        raise NotImplementedError

    @property
    def pieces(self) -> Sequence[bytes]:
        """The bytes of text that each id of the vocabulary stands for; b"" where it stands for none."""
        raise NotImplementedError

    @property
    def pad(self) -> int:
        """The id that fills rows; it stands for nothing."""
        return self.specials().pad

    @property
    def bos(self) -> int:
        """The id before a text."""
        return self.specials().bos

    @property
    def eos(self) -> int:
        """The id after a text."""
        return self.specials().eos

    @property
    def mask(self) -> int:
        """The id that stands where a token was hidden."""
        return self.specials().mask

    @property
    def begins(self) -> bool:
        """Whether the model that the tokenizer was published with reads `bos` before a line; true of our own."""
        return self.specials().begins

    def sentinel(self, i: int) -> int:
        """The id of sentinel `i`, which counts from 0.

        Raises:
            ValueError: there are not that many.
        """
        ids = self.specials().sentinels
        if not 0 <= i < len(ids):
            raise ValueError(
                f"sentinel {i} does not exist, expected 0 to {len(ids) - 1}; "
                f"raise {self._setting}.sentinels or corrupt fewer spans"
            )
        return ids[i]

    def framed(self, ids: ArrayLike) -> Int32[np.ndarray, " n"]:
        """The ids `[n]` of a text between those that the encoder of a published encoder-decoder reads around it."""
        layout = self.specials()
        return np.concatenate([layout.before, np.asarray(ids), layout.after]).astype(np.int32)

    def decode(self, ids: ArrayLike, *, continues: bool = False) -> str:
        """The text of ids `[n]`.

        Specials are shown as <bos>, <eos>, <mask>, <s0>, <s1>, ...; padding is dropped; bytes that aren't UTF-8, as a
        model may well write them, become U+FFFD.

        Args:
            ids: of one line.
            continues: whether they go on from a text, so that a blank before their first word is one: SentencePiece
                writes one before the first word of a text too, which is not shown.

        Raises:
            ValueError: `ids` isn't one line of whole numbers, or an id is outside the vocabulary.
        """
        line = self._checked(ids)
        if line.ndim != 1:
            raise ValueError(f"ids have shape {line.shape}, expected [n]; decode row by row")
        names = self._names
        parts = []
        for special, run in groupby(line[line != self.pad].tolist(), key=lambda i: i in names):
            if special:
                parts.extend(names[i] for i in run)
            else:
                parts.append(self._text(run, continues and not parts))
        return "".join(parts)

    def byte_count(self, ids: ArrayLike) -> int:
        """How many bytes of text the ids, of any shape, stand for: specials and padding for none.

        Raises:
            ValueError: ids aren't whole numbers, or an id is outside the vocabulary.
        """
        return int(self._widths[self._checked(ids)].sum())

    def _text(self, run: Iterable[int], continues: bool) -> str:
        """The text of ids without specials."""
        pieces = self.pieces
        return b"".join(pieces[i] for i in run).decode(errors="replace")

    @property
    def _setting(self) -> str:
        """The class whose settings decide what the vocabulary is."""
        return type(self).__name__

    @cached_property
    def _names(self) -> dict[int, str]:
        ids = self.specials()
        sentinels = {sentinel: f"<s{i}>" for i, sentinel in enumerate(ids.sentinels)}
        return {**dict(ids.others), ids.bos: "<bos>", ids.eos: "<eos>", ids.mask: "<mask>", **sentinels}

    @cached_property
    def _widths(self) -> Int64[np.ndarray, " v"]:
        return np.array([len(piece) for piece in self.pieces], np.int64)

    def _checked(self, ids: ArrayLike) -> np.ndarray:
        array = np.asarray(ids)
        if array.size == 0:
            return array.astype(np.int32)  # an empty list comes as floats
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"ids are {array.dtype}, expected whole numbers")
        size = len(self._widths)
        unknown = array[(array < 0) | (array >= size)]
        if unknown.size:
            raise ValueError(
                f"id {unknown[0]} is unknown, expected 0 to {size - 1}; were the ids "
                f"made with another tokenizer or another {self._setting}.sentinels?"
            )
        return array


@dataclass(frozen=True, kw_only=True)
class Standard(Vocabulary):
    """Ids 0-3 are pad, bos, eos and mask, then come those that stand for text, then the sentinels.

    Attributes:
        sentinels: how many sentinel ids there are (span corruption marks its gaps with them).
    """

    sentinels: int = 28

    def __post_init__(self) -> None:
        """Raise a ValueError for a negative number of sentinels."""
        if self.sentinels < 0:
            raise ValueError(f"{self._setting}.sentinels is {self.sentinels}, expected 0 or more")

    @property
    def count(self) -> int:
        """How many ids stand for text."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """The number of ids; every id is below it."""
        return FIRST_TEXT + self.count + self.sentinels

    @property
    def text_ids(self) -> range:
        """The ids that stand for text, as no special does."""
        return range(FIRST_TEXT, FIRST_TEXT + self.count)

    def specials(self) -> Specials:
        """The ids that aren't text."""
        return Specials(0, 1, 2, 3, range(FIRST_TEXT + self.count, self.vocab_size))


@dataclass(frozen=True, kw_only=True)
class Bytes(Standard):
    """UTF-8 bytes: ids 0-3 are pad, bos, eos and mask, 4-259 the bytes, 260 on the sentinels.

    The default number of sentinels fills the vocabulary up to 288, a multiple of 32. Every text is restored exactly.
    """

    @property
    def count(self) -> int:
        """How many ids stand for text."""
        return 256

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """A byte for each id that is no special."""
        return _BEFORE_TEXT + _BYTES + (b"",) * self.sentinels

    def ready(self, texts: Iterable[str], data_dir: str | Path | None = None) -> "Bytes":
        """Itself: there is nothing to train or to read."""
        return self

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The ids of the text's n UTF-8 bytes; no special is added.

        Raises:
            ValueError: the text has a lone surrogate, so it isn't Unicode text and has no UTF-8.
        """
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32) + np.int32(FIRST_TEXT)


_BEFORE_TEXT = (b"",) * FIRST_TEXT
_BYTES = tuple(bytes([i]) for i in range(256))


@dataclass(frozen=True, kw_only=True)
class Symbols(Standard):
    """Symbols without a meaning, for synthetic tasks; as text they are numbered words: "v0 v17 v3".

    They stand for no bytes, so `byte_count` is 0 and losses are per token, not per byte.

    Attributes:
        size: how many symbols there are; ids 4 to 3 + size.
    """

    size: int

    def __post_init__(self) -> None:
        """Raise a ValueError for too few symbols or sentinels."""
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"Symbols.size is {self.size}, expected 1 or more")

    @property
    def count(self) -> int:
        """How many ids stand for text."""
        return self.size

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """No bytes at all."""
        return (b"",) * self.vocab_size

    def ready(self, texts: Iterable[str], data_dir: str | Path | None = None) -> "Symbols":
        """Itself: there is nothing to train or to read."""
        return self

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The ids of words v0, v1, ... with blanks between them; `encode(decode(ids))` restores ids of symbols.

        Raises:
            ValueError: a word is no symbol.
        """
        words = text.split()
        for word in words:
            if not re.fullmatch(r"v(0|[1-9][0-9]*)", word) or int(word[1:]) >= self.size:
                raise ValueError(
                    f"{word[:40]!r} is no symbol, expected v0 to v{self.size - 1}; raise Symbols.size, or use Bytes() "
                    "for a corpus of text"
                )
        return np.array([FIRST_TEXT + int(word[1:]) for word in words], np.int32)

    def _text(self, run: Iterable[int], continues: bool) -> str:
        return " ".join(f"v{i - FIRST_TEXT}" for i in run)


def utf8(text: str) -> bytes:
    """The UTF-8 of a text.

    Raises:
        ValueError: it has a lone surrogate, so it isn't Unicode text and has no UTF-8.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has the lone surrogate {text[error.start]!a} at index {error.start}, "
            "expected Unicode text; repair the text where it was decoded"
        ) from error

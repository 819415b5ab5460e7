"""Subwords: tokenizers with a vocabulary of pieces, and those that are trained on the corpus.

`BPE` and `Unigram` are frozen descriptions with the layout of their ids; what their `ready` returns can encode.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as hf
from jaxtyping import Int32
from tokenizers import decoders, models, pre_tokenizers, trainers

from research.data.catalog import cache_dir
from research.data.tokenizers import (
    FIRST_TEXT,
    Bytes,
    Specials,
    Standard,
    Tokenizer,
    TokenizerSource,
    Vocabulary,
    utf8,
)


@dataclass(frozen=True, kw_only=True)
class Subwords(Vocabulary):
    """A tokenizer that was trained or read.

    Attributes:
      source: what made it.
      model: the tokenizer in the tokenizers library's format, a `tokenizer.json`.
      offset: an id is the model's id and so many.
      layout: the ids that aren't text.
      vocab_size: the number of ids; every id is below it, not every one need stand for something.
    """

    source: TokenizerSource
    model: str = field(repr=False)
    offset: int
    layout: Specials
    vocab_size: int

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: what is derived from them is made anew where they are unpickled."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def specials(self) -> Specials:
        """The ids that aren't text."""
        return self.layout

    @property
    def sentinels(self) -> int:
        """How many sentinels there are."""
        return len(self.layout.sentinels)

    @property
    def added(self) -> range:
        """Ids after all that the model has: those of specials that its file lacks."""
        return range(max(self._tokens) + 1, self.vocab_size)

    @cached_property
    def text_ids(self) -> range | Int32[np.ndarray, " n"]:
        """The ids that stand for text, as no special does, in rising order; of a trained tokenizer a range."""
        ids = sorted(set(self._tokens) - set(self._names) - {self.pad})
        return range(ids[0], ids[-1] + 1) if self.offset else np.array(ids, np.int32)

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes of text that each id stands for.

        Exact for byte-level tokenizers, and but for the blank before a text for those of SentencePiece that change no
        character (LLaMA's, not T5's). Otherwise they are the bytes of the token itself: those of WordPiece leave out
        the blanks between words and whatever the normalizer removes, so bits per byte come out too high, and only those
        of one tokenizer compare.
        """
        pieces = [b""] * self.vocab_size
        added = self._tokenizer.get_added_tokens_decoder()  # they are written as they are
        for i in np.asarray(self.text_ids).tolist():
            token = self._tokens[i]
            pieces[i] = token.encode() if i - self.offset in added else self._spelled(token)
        return tuple(pieces)

    def ready(self, texts: Iterable[str], data_dir: str | Path | None = None) -> "Subwords":
        """Itself."""
        return self

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The ids of the text; no special is added, nor made of the text where it has the name of one.

        Raises:
          ValueError: the text has a lone surrogate, or the tokenizer has no ids for it.
        """
        utf8(text)
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library has no class of its own
            raise ValueError(
                f"text cannot be encoded by {self.source} ({one_line(error)}), expected one with an id for every "
                "character or for unknown ones; use another tokenizer"
            ) from error
        return np.array(ids, np.int32) + np.int32(self.offset)

    def _text(self, run: Iterable[int], continues: bool) -> str:
        if self._byte_level:
            return super()._text(run, continues)
        if self._blanks is None:
            return self._tokenizer.decode([i - self.offset for i in run], skip_special_tokens=False)
        text = super()._text(run, continues)
        return text if continues else text.removeprefix(self._blanks)

    @property
    def _setting(self) -> str:
        return type(self.source).__name__

    @cached_property
    def _tokenizer(self) -> hf.Tokenizer:
        tokenizer = hf.Tokenizer.from_str(self.model)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # as text
        return tokenizer

    @cached_property
    def _tokens(self) -> dict[int, str]:
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        return {i + self.offset: token for token, i in vocabulary.items()}

    @cached_property
    def _byte_level(self) -> bool:
        return isinstance(self._tokenizer.decoder, decoders.ByteLevel)

    @cached_property
    def _blanks(self) -> str | None:
        """What SentencePiece puts before a text and is not shown, a blank or nothing; None: it is not SentencePiece's,
        whose pieces together are the text, with "▁" for blanks.
        """
        if self._tokenizer.decoder is None:
            return None
        shown = self._tokenizer.decoder.decode(["▁a", "▁b"])
        return {"a b": " ", " a b": ""}.get(shown)

    def _spelled(self, token: str) -> bytes:
        """The bytes that a token of the model's own vocabulary stands for."""
        if self._byte_level and _LETTERS.keys() >= set(token):
            return bytes(_LETTERS[letter] for letter in token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes.fromhex(token[3:5])  # a byte that SentencePiece falls back to
        if isinstance(self._tokenizer.decoder, decoders.WordPiece):
            return token.removeprefix("##").encode()
        return token.replace("▁", " ").encode()


def _letters() -> dict[str, int]:
    """The letter that byte-level tokenizers write each byte as (GPT-2: Radford et al. 2019, section 2.2).

    Visible Latin-1 characters stand for themselves, the other bytes in order are letters from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(visible))
    return {chr(i): i for i in visible} | {chr(256 + n): i for n, i in enumerate(others)}


_LETTERS = _letters()


@dataclass(frozen=True, kw_only=True)
class Trained(Standard):
    """Byte-level pieces that are learned from the training texts: every text is restored exactly.

    Words are cut as GPT-2 cuts them. Ids 0-3 are pad, bos, eos and mask, then come `size` ids for pieces, which are
    not all taken where the texts are too small, then the sentinels. What was trained is kept in the data folder under
    a name made of everything it depends on.

    Attributes:
      size: how many pieces there are, single bytes among them.
    """

    size: int

    def __post_init__(self) -> None:
        """Raise a ValueError for too few pieces or sentinels."""
        super().__post_init__()
        if self.size < 256:
            raise ValueError(f"{self._setting}.size is {self.size}, expected 256 or more: one for each byte")

    @property
    def count(self) -> int:
        """How many ids stand for text."""
        return self.size

    @property
    def pieces(self) -> Sequence[bytes]:
        """Not known yet.

        Raises:
          ValueError: always.
        """
        raise self._untrained()

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """Not possible yet.

        Raises:
          ValueError: always.
        """
        raise self._untrained()

    def ready(self, texts: Iterable[str], data_dir: str | Path | None = None) -> Subwords:
        """The tokenizer trained on the texts, or read from the data folder if it was trained before.

        Raises:
          ValueError: there is no text.
        """
        texts = tuple(texts)
        if not any(texts):
            raise ValueError(
                f"{self} has no text to be trained on, expected a corpus of text; set Data.tokenizer = @Symbols() for "
                "synthetic tasks, or @Bytes()"
            )
        place = cache_dir(data_dir) / f"{self._setting.lower()}-{self.size}-{self._key(texts)}.json"
        model = _kept(place)
        if model is None:
            model = self.train(texts).to_str()
            with suppress(OSError):  # a folder that cannot be written to costs time, no more
                _keep(model, place)
        return Subwords(
            source=self,
            model=model,
            offset=FIRST_TEXT,
            layout=self.specials(),
            vocab_size=self.vocab_size,
        )

    def train(self, texts: Sequence[str]) -> hf.Tokenizer:
        """The tokenizers library's tokenizer, trained; the same on every call."""
        raise NotImplementedError

    def _untrained(self) -> ValueError:
        return ValueError(
            f"{self} is not trained, expected a trained tokenizer; use what its `ready` returns"
        )

    def _key(self, texts: Sequence[str]) -> str:
        settings = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "sentinels"}
        digest = hashlib.sha256(repr((self._setting, settings, hf.__version__)).encode())
        for text in texts:
            encoded = utf8(text)
            # The length keeps ("ab", "c") and ("a", "bc") apart.
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class BPE(Trained):
    """Byte pair encoding: the most frequent pair of neighbours becomes a piece, again and again (Sennrich et al. 2016).

    Attributes:
      least_frequency: pairs that stand in the texts less often are not merged.
    """

    least_frequency: int = 2

    def __post_init__(self) -> None:
        """Raise a ValueError for too few pieces or sentinels, or pairs that needn't be there at all."""
        super().__post_init__()
        if self.least_frequency < 1:
            raise ValueError(f"BPE.least_frequency is {self.least_frequency}, expected 1 or more")

    def train(self, texts: Sequence[str]) -> hf.Tokenizer:
        """Bytes in the order of their letters, then merges in the order in which they were made."""
        tokenizer = byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=self.size,
            min_frequency=self.least_frequency,
            initial_alphabet=sorted(_LETTERS),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer


@dataclass(frozen=True, kw_only=True)
class Unigram(Trained):
    """A unigram language model over pieces; a text is cut where that makes it most probable (Kudo 2018)."""

    def train(self, texts: Sequence[str]) -> hf.Tokenizer:
        """Pieces by falling log probability.

        The library visits words in an order that differs from run to run, which shows in the last digits of scores, in
        the order of equal ones, and in the scores of bytes that the texts don't have, which are a little above the
        least score. So scores are rounded, equal ones sorted, and such bytes given the least score.
        """
        tokenizer = byte_level(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=self.size, initial_alphabet=sorted(_LETTERS), show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        scores = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
        least = min(scores.values())
        for letter in _LETTERS:
            if scores[letter] < least + 0.03:  # 256 steps of 0.0001, and some more
                scores[letter] = least
        ordered = sorted((-round(score, 6), piece) for piece, score in scores.items())
        return byte_level(models.Unigram([(piece, -score) for score, piece in ordered]))


def byte_level(model: models.Model) -> hf.Tokenizer:
    """A tokenizer of words cut as GPT-2 cuts them, each byte written as a letter."""
    tokenizer = hf.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def tokenizer_json(tokenizer: Tokenizer) -> str | None:
    """A `tokenizer.json` that gives every text the same ids, with specials of usual names; None where there is none:
    the ids of a tokenizer that was trained here are not those of its pieces.
    """
    if isinstance(tokenizer, Subwords):
        return None if tokenizer.offset else tokenizer.model
    if not isinstance(tokenizer, Bytes):
        return None
    specials = {"<pad>": tokenizer.pad, "<s>": tokenizer.bos, "</s>": tokenizer.eos, "<mask>": tokenizer.mask}
    specials |= {f"<extra_id_{i}>": tokenizer.sentinel(i) for i in range(tokenizer.sentinels)}
    letters = {letter: FIRST_TEXT + byte for letter, byte in _LETTERS.items()}
    written = byte_level(models.BPE(vocab=specials | letters, merges=[]))
    written.add_special_tokens(list(specials))
    return written.to_str()


def _kept(place: Path) -> str | None:
    """The model in a file of the data folder; None where there is none, or a damaged one."""
    with suppress(Exception):  # the library has no class of its own for what is no tokenizer
        model = place.read_text(encoding="utf-8")
        hf.Tokenizer.from_str(model)
        return model
    return None


def _keep(model: str, place: Path) -> None:
    """Write the file whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".partial-") as partial:
        half = Path(partial) / place.name
        half.write_text(model, encoding="utf-8")
        os.replace(half, place)


def one_line(error: Exception) -> str:
    """What the tokenizers library or a parser says, in one line of moderate length."""
    return " ".join(str(error).split())[:200]

"""What happens to training windows: transforms before the objective, and noise on what a model reads.

A transform changes a window, and so both what is read and what is to be predicted. Noise changes only what is read:
labels stay as they are. Held-out windows get neither.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int32

from research.data import tasks
from research.data.tokenizers import Tokenizer
from research.data.windows import TokenWindow


@runtime_checkable  # so that a config value can be checked against it
class Transform(Protocol):
    """What becomes of a training window before the objective sees it; it never becomes longer."""

    def __call__(self, window: TokenWindow, rng: np.random.Generator, tokenizer: Tokenizer) -> TokenWindow:
        """The new window; everything random comes from `rng`."""
        ...


@runtime_checkable
class Noise(Protocol):
    """What a model reads instead of the tokens that are there."""

    def __call__(
        self,
        ids: Int32[np.ndarray, " n"],
        rng: np.random.Generator,
        tokenizer: Tokenizer,
        unigram: Float64[np.ndarray, " v"],
    ) -> Int32[np.ndarray, " n"]:
        """As many tokens, the specials among them untouched; `unigram` is how often each id stands in training text."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicate:
    """Repetition inside a window of free text: its text goes on, interrupted by copies of what stood before.

    Snippets have random lengths and begin at random places, so that the distance between a snippet and its copy is
    random too: with one length a model learns to copy from a fixed distance, not to find what was there (Li et al.
    2023 ask what repetition in the data does to repetition in the output). The window keeps its length, so as many
    tokens of its end are lost as are copied: the most that snippets of these lengths can make of `rate`.

    Attributes:
      rate: share of the window's tokens that are copies.
      least, most: bounds of a snippet's length, in tokens, drawn uniformly. The last few of a window are drawn so that
        their sum comes out, and none is longer than the text that is not a copy.
      shuffled: the tokens of a copy are in random order: as many tokens come twice, but nothing is said again. A
        negative control.
    """

    rate: float
    least: int = 8
    most: int = 32
    shuffled: bool = False

    def __post_init__(self):
        if not 0 <= self.rate < 1 or not 1 <= self.least <= self.most:
            raise ValueError(
                f"Duplicate: rate = {self.rate}, least = {self.least}, most = {self.most}; expected 0 <= rate < 1 and "
                "1 <= least <= most"
            )

    def __call__(self, window: TokenWindow, rng: np.random.Generator, tokenizer: Tokenizer) -> TokenWindow:
        """A window of as many tokens.

        Raises:
          ValueError: the window is a record's.
        """
        if not window.scored.all():
            raise ValueError(
                "Duplicate repeats free text, but this window is a record with tokens that are only given; take it out "
                "of Data.transforms or set Data.corpus to free text"
            )
        lengths = self._lengths(len(window.ids), rng)
        fresh = len(window.ids) - sum(lengths)
        cuts = np.sort(rng.integers(fresh + 1, size=len(lengths)))
        line, begun = window.ids[:0], 0
        for cut, length in zip(cuts.tolist(), lengths, strict=True):
            # Before a copy there must be as much text as it copies.
            cut = max(cut, begun, length)
            line = np.concatenate([line, window.ids[begun:cut]])
            start = int(rng.integers(len(line) - length + 1))
            copy = line[start : start + length]
            line, begun = np.concatenate([line, rng.permutation(copy) if self.shuffled else copy]), cut
        return dataclasses.replace(window, ids=np.concatenate([line, window.ids[begun:fresh]]))

    def _lengths(self, window: int, rng: np.random.Generator) -> list[int]:
        """The lengths of the snippets."""
        left = int(self.rate * window)
        most = min(self.most, window - left)

        def reachable(total: int) -> bool:
            return total >= -(-total // most) * self.least

        if most < self.least:
            return []
        while not reachable(left):
            left -= 1
        lengths = []
        while left:
            choices = [n for n in range(self.least, min(most, left) + 1) if reachable(left - n)]
            lengths.append(int(rng.choice(choices)))
            left -= lengths[-1]
        return lengths


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDA:
    """Easy data augmentation of what a record gives (Wei & Zou 2019, section 2); what is to be learned stays.

    Each time, one of the operations with a share above 0 is done to about that share of the words: n = share * words,
    at least one. Whatever `Data.format` writes around the turns counts as words too: use it with `Plain`. Words that
    no longer fit into as many tokens as before are dropped from the end.

    Attributes:
      synonym: words replaced by a synonym.
      insert: synonyms of words in the text that are put in at random places.
      swap: pairs of words that change places.
      delete: the chance of each word to be deleted.
      untouched: share of the examples that stay as they are, as they do in a training set of originals and copies.
      words: synonyms of each lower-case word; None: WordNet's, from `data_dir`.
      data_dir: where archives lie, see `catalog.cache_dir`.
    """

    synonym: float = 0.1
    insert: float = 0.1
    swap: float = 0.1
    delete: float = 0.1
    untouched: float = 0.2
    words: Mapping[str, tuple[str, ...]] | None = None
    data_dir: str | Path | None = None

    def __post_init__(self):
        for name in ("synonym", "insert", "swap", "delete", "untouched"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"EDA.{name} = {getattr(self, name)}: expected 0 to 1")
        if not self._operations:
            raise ValueError("EDA: synonym, insert, swap and delete are all 0; expected one of them above 0")

    def __call__(self, window: TokenWindow, rng: np.random.Generator, tokenizer: Tokenizer) -> TokenWindow:
        """A window of as many tokens or fewer.

        Raises:
          ValueError: the window is free text.
        """
        if window.scored.all():
            raise ValueError(
                "EDA changes what a record gives, but this window is free text; take it out of Data.transforms or set "
                "Data.corpus to a supervised task"
            )
        if rng.random() < self.untouched:
            return window
        operation, share = self._operations[rng.integers(len(self._operations))]
        borders = np.flatnonzero(np.diff(window.scored)) + 1
        runs, flags = np.split(window.ids, borders), np.split(window.scored, borders)
        new = [
            run if flag[0] else self._changed(run, operation, share, rng, tokenizer)
            for run, flag in zip(runs, flags, strict=True)
        ]
        scored = [np.full(len(run), flag[0]) for run, flag in zip(new, flags, strict=True)]
        return dataclasses.replace(window, ids=np.concatenate(new), scored=np.concatenate(scored))

    @property
    def _operations(self) -> list[tuple[Callable, float]]:
        pairs = [
            (self._replace, self.synonym),
            (self._insert, self.insert),
            (_swap, self.swap),
            (_delete, self.delete),
        ]
        return [(operation, share) for operation, share in pairs if share > 0]

    def _changed(
        self,
        ids: Int32[np.ndarray, " n"],
        operation: Callable,
        share: float,
        rng: np.random.Generator,
        tokenizer: Tokenizer,
    ) -> Int32[np.ndarray, " m"]:
        text = tokenizer.decode(ids)
        words = [list(pair) for pair in re.findall(r"(\S+)(\s*)", text)]  # each with the blanks after it
        if not words:
            return ids
        before, after = text[: len(text) - len(text.lstrip())], words[-1][1]
        operation(words, share, rng)
        while words:
            words[-1][1] = after
            line = tokenizer.encode(before + "".join(word + blanks for word, blanks in words))
            if len(line) <= len(ids):
                return line
            words.pop()
        return ids  # not even the first of the new words fits

    def _replace(self, words: list[list[str]], share: float, rng: np.random.Generator) -> None:
        known = [i for i, (word, _) in enumerate(words) if self._synonyms(word)]
        for i in rng.permutation(known)[: _number(share, words)]:
            core, synonyms = _core(words[i][0]), self._synonyms(words[i][0])
            # What stands around the word, as a comma does, stays.
            words[i][0] = words[i][0].replace(core, synonyms[rng.integers(len(synonyms))], 1)

    def _insert(self, words: list[list[str]], share: float, rng: np.random.Generator) -> None:
        known = [synonyms for word, _ in words if (synonyms := self._synonyms(word))]
        for _ in range(_number(share, words) if known else 0):
            synonyms = known[rng.integers(len(known))]
            words.insert(int(rng.integers(len(words))), [synonyms[rng.integers(len(synonyms))], " "])

    def _synonyms(self, word: str) -> tuple[str, ...]:
        core = _core(word).lower()
        if core in _FUNCTION_WORDS:
            return ()
        table = _wordnet(self.data_dir) if self.words is None else self.words
        return table.get(core, ())


# WordNet knows `in` as indium and `a` as the vitamin.
_ENGLISH = (
    "a about after all am an and any are as at be been before being but by can could did do does for from had has have "
    "he her here him his how i if in into is it its me more most my no nor not of off on or other our out over own she "
    "so some such than that the their them then there these they this those to too under up very was we were what when "
    "where which while who whom why will with would you your"
)
_FUNCTION_WORDS = frozenset(_ENGLISH.split())


@functools.cache
def _wordnet(data_dir: str | Path | None) -> Mapping[str, tuple[str, ...]]:
    return tasks.synonyms(data_dir)


def _core(word: str) -> str:
    """The word without what stands around it."""
    return re.sub(r"^\W+|\W+$", "", word)


def _number(share: float, words: list[list[str]]) -> int:
    return max(1, int(share * len(words)))


def _swap(words: list[list[str]], share: float, rng: np.random.Generator) -> None:
    if len(words) > 1:
        for _ in range(_number(share, words)):
            i, j = rng.choice(len(words), 2, replace=False)
            words[i][0], words[j][0] = words[j][0], words[i][0]


def _delete(words: list[list[str]], share: float, rng: np.random.Generator) -> None:
    kept = rng.random(len(words)) >= share
    kept[rng.integers(len(words))] |= not kept.any()  # never all of them
    words[:] = [word for word, keep in zip(words, kept, strict=True) if keep]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rated:
    """Noise on a share of the tokens of text: exactly that share on average, and always within one token of it."""

    rate: float

    def __post_init__(self):
        if not 0 <= self.rate <= 1:
            raise ValueError(f"{type(self).__name__}.rate = {self.rate}: expected 0 to 1")

    def _count(self, text: int, rng: np.random.Generator) -> int:
        return int(self.rate * text + rng.random())

    def _some(self, places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """That share of the places, all equally likely."""
        return rng.choice(places, self._count(len(places), rng), replace=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenMasking(_Rated):
    """The mask token in place of single tokens ("blank noising": Xie et al. 2017, section 3.2).

    Attributes:
      rate: share of the tokens of text, all equally likely.
    """

    def __call__(
        self,
        ids: Int32[np.ndarray, " n"],
        rng: np.random.Generator,
        tokenizer: Tokenizer,
        unigram: Float64[np.ndarray, " v"],
    ) -> Int32[np.ndarray, " n"]:
        """As many tokens."""
        chosen = self._some(np.flatnonzero(_is_text(ids, tokenizer)), rng)
        return _with(ids, chosen, tokenizer.mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanMasking(_Rated):
    """The mask token in place of each token of random spans.

    Attributes:
      rate: share of the tokens of text.
      mean_span: mean length of a span; specials do not count, spans may touch, and one may end at the beginning.
    """

    mean_span: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        if self.mean_span < 1:
            raise ValueError(f"SpanMasking.mean_span = {self.mean_span}: expected at least 1")

    def __call__(
        self,
        ids: Int32[np.ndarray, " n"],
        rng: np.random.Generator,
        tokenizer: Tokenizer,
        unigram: Float64[np.ndarray, " v"],
    ) -> Int32[np.ndarray, " n"]:
        """As many tokens."""
        places = np.flatnonzero(_is_text(ids, tokenizer))
        count = self._count(len(places), rng)
        spans = min(count, max(1, round(count / self.mean_span)))
        # Spans and kept tokens in random order, then the masked tokens dealt out among the spans.
        order = np.zeros(len(places) - count + spans, np.int64)
        edges = np.sort(rng.choice(max(count - 1, 0), max(spans - 1, 0), replace=False)) + 1
        lengths = np.diff(np.concatenate([[0], edges, [count]]).astype(np.int64))[:spans]
        order[rng.choice(len(order), spans, replace=False)] = lengths
        masked = np.repeat(order > 0, np.maximum(order, 1))
        # Over the border, so that the first and last tokens are as likely as others.
        masked = np.roll(masked, rng.integers(max(len(masked), 1)))
        return _with(ids, places[masked], tokenizer.mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnigramNoise(_Rated):
    """Tokens as they come in training text in place of others ("unigram noising": Xie et al. 2017, section 3.2).

    Attributes:
      rate: share of the tokens of text that are drawn anew, the same token being possible.
    """

    def __call__(
        self,
        ids: Int32[np.ndarray, " n"],
        rng: np.random.Generator,
        tokenizer: Tokenizer,
        unigram: Float64[np.ndarray, " v"],
    ) -> Int32[np.ndarray, " n"]:
        """As many tokens."""
        chosen = self._some(np.flatnonzero(_is_text(ids, tokenizer)), rng)
        text = np.asarray(tokenizer.text_ids)
        upto = np.cumsum(unigram[text])
        drawn = np.searchsorted(upto / upto[-1], rng.random(len(chosen)), side="right")
        return _with(ids, chosen, text[drawn])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepetitionMasking(_Rated):
    """The mask token in place of what is part of an n-gram that stood in the line before, so that it cannot be read
    that something repeats: what repetition dropout (Li et al. 2023, section 4) does to attention, done to the input.

    Attributes:
      rate: share of those tokens.
      n: of the n-grams, of tokens of text.
    """

    n: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.n < 1:
            raise ValueError(f"RepetitionMasking.n = {self.n}: expected at least 1")

    def __call__(
        self,
        ids: Int32[np.ndarray, " n"],
        rng: np.random.Generator,
        tokenizer: Tokenizer,
        unigram: Float64[np.ndarray, " v"],
    ) -> Int32[np.ndarray, " n"]:
        """As many tokens."""
        again = np.zeros(len(ids), bool)
        if len(ids) >= self.n:
            grams, text = (
                np.lib.stride_tricks.sliding_window_view(line, self.n)
                for line in (ids, _is_text(ids, tokenizer))
            )
            _, first, kind = np.unique(grams, axis=0, return_index=True, return_inverse=True)
            starts = np.flatnonzero((first[kind.ravel()] < np.arange(len(grams))) & text.all(1))
            again[(starts[:, None] + np.arange(self.n)).ravel()] = True
        return _with(ids, self._some(np.flatnonzero(again), rng), tokenizer.mask)


def _is_text(ids: Int32[np.ndarray, " n"], tokenizer: Tokenizer) -> Bool[np.ndarray, " n"]:
    return np.isin(ids, np.asarray(tokenizer.text_ids))


def _with(ids: Int32[np.ndarray, " n"], places: np.ndarray, new: int | np.ndarray) -> Int32[np.ndarray, " n"]:
    changed = ids.copy()
    changed[places] = new
    return changed

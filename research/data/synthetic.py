"""Synthetic tasks: what they share, and those on symbols: recall, copying, induction, permuted alphabets.

A symbol is one of the tokenizer's text ids, and a task numbers them from 0. No task adds a special token: layouts and
objectives do. Every task has `tokens`, the most tokens of a sample, and comes with its own exact solver, `oracle`.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int32, Int64

from research.data.tokenizers import Tokenizer
from research.data.windows import TokenWindow

Numbered = tuple[
    Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]
]  # symbols, numbered from 0; which are scored


@dataclasses.dataclass(frozen=True, kw_only=True)
class SymbolTask:
    """What every task on symbols provides.

    Attributes:
      alphabet: how many symbols the task is written in, the first of the tokenizer's text ids; None: all of them.
    """

    alphabet: int | None = None

    @property
    def tokens(self) -> int:
        """The most tokens of a sample."""
        raise NotImplementedError

    @property
    def needs(self) -> int:
        """The fewest symbols the task can be written in."""
        raise NotImplementedError

    def write(self, rng: np.random.Generator, size: int) -> Numbered:
        """A sample in an alphabet of `size` symbols."""
        raise NotImplementedError

    def answer(self, before: list[int], size: int) -> int:
        """The symbol of a scored place, found from the symbols before it alone."""
        raise NotImplementedError

    def symbols(self, tokenizer: Tokenizer) -> Int32[np.ndarray, " size"]:
        """The ids the task is written in, rising.

        Raises:
          ValueError: the tokenizer has fewer text ids than `alphabet`, or the task needs more.
        """
        name, ids = type(self).__name__, tokenizer.text_ids
        size = len(ids) if self.alphabet is None else self.alphabet
        if size > len(ids):
            raise ValueError(
                f"{name}.alphabet = {size}: expected at most the {len(ids)} text ids of {tokenizer}; lower it or use a "
                "larger tokenizer"
            )
        if size < self.needs:
            raise ValueError(
                f"{name} has an alphabet of {size} symbols: expected at least {self.needs}; raise {name}.alphabet, use "
                "a larger tokenizer or make the task smaller"
            )
        # An array of a long range is slow to make in any other way.
        whole = np.arange(ids.start, ids.stop) if isinstance(ids, range) else ids
        return whole[:size].astype(np.int32)

    def sample(self, rng: np.random.Generator, tokenizer: Tokenizer) -> TokenWindow:
        """One window; everything random comes from `rng`.

        Raises:
          ValueError: see `symbols`.
        """
        symbols = self.symbols(tokenizer)
        line, scored = self.write(rng, len(symbols))
        return TokenWindow(symbols[line], scored, record=True)

    def oracle(self, window: TokenWindow, tokenizer: Tokenizer) -> Int32[np.ndarray, " n"]:
        """The right token of every scored place of a sample, each found from the tokens before it; 0 elsewhere."""
        symbols = self.symbols(tokenizer)
        line = np.searchsorted(symbols, window.ids).tolist()
        answers = np.zeros_like(window.ids)
        for place in np.flatnonzero(window.scored):
            answers[place] = symbols[self.answer(line[:place], len(symbols))]
        return answers


class TextTask:
    """What every task written as text provides: a given text and its answer, which alone is scored.

    Both are tokenized alone, so that no token straddles the border. Subclasses are frozen dataclasses.
    """

    def solve(self, given: str) -> str:
        """The answer, found from the given text alone."""
        raise NotImplementedError

    def oracle(self, window: TokenWindow, tokenizer: Tokenizer) -> Int32[np.ndarray, " n"]:
        """The tokens of the right answer at the scored places of a sample, found from the given text; 0 elsewhere."""
        given = window.given
        answer = tokenizer.encode(self.solve(tokenizer.decode(window.ids[:given])))
        tokens = np.zeros_like(window.ids)
        tokens[given : given + len(answer)] = answer[: len(tokens) - given]
        return tokens


def written(given: str, answer: str, tokenizer: Tokenizer) -> TokenWindow:
    """The window of a text and its answer."""
    return TokenWindow.pair(tokenizer.encode(given), tokenizer.encode(answer))


def _follower(before: list[int]) -> int:
    """What came after the last symbol when it first came."""
    return before[before.index(before[-1]) + 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MQAR(SymbolTask):
    """Multi-query associative recall: pairs of keys and values first, later some keys again, to be answered.

    Arora et al. 2023 (Zoology), as in its `zoology/data/multiquery_ar.py`: the first half of the alphabet are keys, the
    second half values; no key and no value is in two pairs; the rest of the line is cut into slots of two tokens, and
    a query falls into slot k with a probability that goes with k^(power - 1), each slot taken at most once; the other
    tokens are drawn at random. Shapes (tokens, pairs) there: (64, 4), (128, 8), (256, 16), with an alphabet of 8192.

    Different: there the label of a query stands at the key, and what follows the key is random; here its value follows
    the key in the line and is the scored token, so that a model that reads the line predicts it at the same place.
    Random tokens are never keys of the sample, as happens there now and then; and key 0 is a key like others.

    Attributes:
      pairs: how many keys have a value.
      queries: how many of the keys are asked, each once; None: all.
      tokens: length of every sample.
      power: 1 spreads the queries evenly; the smaller, the more of them come early.
    """

    pairs: int = 4
    queries: int | None = None
    tokens: int = 64
    power: float = 0.01

    def __post_init__(self):
        if self.pairs < 1 or not 1 <= self._asked <= self.pairs:
            raise ValueError(
                f"MQAR: pairs = {self.pairs}, queries = {self.queries}; expected 1 <= queries <= pairs, or None"
            )
        if self.tokens < 2 * (self.pairs + self._asked):
            raise ValueError(
                f"MQAR.tokens = {self.tokens}: expected at least {2 * (self.pairs + self._asked)}, two for every pair "
                "and every query; raise it or lower MQAR.pairs"
            )
        if not self.power > 0:
            raise ValueError(f"MQAR.power = {self.power}: expected a positive number")

    @property
    def _asked(self) -> int:
        return self.pairs if self.queries is None else self.queries

    @property
    def needs(self) -> int:
        """A half for the keys, a half for the values."""
        return 2 * self.pairs

    def write(self, rng: np.random.Generator, size: int) -> Numbered:
        """The pairs, then the queries among random symbols; the values of the queries are scored."""
        half = size // 2
        keys = rng.choice(half, self.pairs, replace=False)
        values = half + rng.choice(size - half, self.pairs, replace=False)
        # Random symbols that are no key: numbers of the others, moved up past each key below them.
        line = rng.integers(size - self.pairs, size=self.tokens)
        line += np.searchsorted(np.sort(keys) - np.arange(self.pairs), line, side="right")
        line[: 2 * self.pairs : 2] = keys
        line[1 : 2 * self.pairs : 2] = values
        asked = np.sort(rng.permutation(self.pairs)[: self._asked])
        # Whoever arrives first is drawn first: the order of waiting times is that of draws without replacement.
        slots = np.arange(1, (self.tokens - 2 * self.pairs) // 2 + 1)
        waiting = rng.exponential(size=len(slots)) / slots ** (self.power - 1.0)
        places = 2 * self.pairs + 2 * np.argsort(waiting)[: self._asked]
        line[places] = keys[asked]
        line[places + 1] = values[asked]
        scored = np.zeros(self.tokens, bool)
        scored[places + 1] = True
        return line, scored

    def answer(self, before: list[int], size: int) -> int:
        """The value that followed the key in its pair."""
        return _follower(before)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rearrangement(SymbolTask):
    """Random symbols, a marker, then the same symbols copied, reversed or sorted; these are scored.

    Tasks of length generalization, as copying and reversing are in Kazemnejad et al. 2023: train with a `most` of 20,
    say, and test with a `least` and `most` of 40. Symbols are drawn with replacement; the last of the alphabet is the
    marker. Sorting is by symbol number.

    Attributes:
      rule: what is done to the symbols: "copy", "reverse" or "sort".
      least, most: bounds of how many there are, drawn evenly.
    """

    rule: str = "copy"
    least: int = 1
    most: int = 20

    def __post_init__(self):
        if self.rule not in ("copy", "reverse", "sort"):
            raise ValueError(f"Rearrangement.rule = {self.rule!r}: expected 'copy', 'reverse' or 'sort'")
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"Rearrangement: least = {self.least}, most = {self.most}; expected 1 <= least <= most"
            )

    @property
    def tokens(self) -> int:
        """The most tokens of a sample: `most` symbols twice, and the marker."""
        return 2 * self.most + 1

    @property
    def needs(self) -> int:
        """Two symbols and the marker."""
        return 3

    def write(self, rng: np.random.Generator, size: int) -> Numbered:
        """The symbols, the marker, the symbols again by the rule."""
        given = rng.integers(size - 1, size=rng.integers(self.least, self.most + 1))
        targets = {"copy": given, "reverse": given[::-1], "sort": np.sort(given)}[self.rule]
        line = np.concatenate([given, [size - 1], targets])
        return line, np.arange(len(line)) > len(given)

    def answer(self, before: list[int], size: int) -> int:
        """As many symbols into the rearranged line as have come since the marker."""
        marker = before.index(size - 1)
        given, written = before[:marker], len(before) - marker - 1
        if self.rule == "sort":
            return sorted(given)[written]
        return given[written] if self.rule == "copy" else given[-1 - written]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectiveCopy(SymbolTask):
    """Symbols scattered among noise, a marker, then the symbols in their order; these are scored.

    Selective copying of Poli et al. 2024 (MAD), as in its `mad/data/instances.py` with these defaults and an `alphabet`
    of 16: one symbol is the noise, one the marker. Different: the symbols may stand anywhere, where there no noise
    comes after the last of them; and the answer is read in the line, where noise is read there.

    Attributes:
      tokens: length of every sample, with the answer.
      remembered: how many symbols are to be copied.
      noise: how many symbols are noise, the last of the alphabet before the marker, which is the very last.
    """

    tokens: int = 256
    remembered: int = 16
    noise: int = 1

    def __post_init__(self):
        for name in ("remembered", "noise"):
            if getattr(self, name) < 1:
                raise ValueError(f"SelectiveCopy.{name} = {getattr(self, name)}: expected at least 1")
        if self.tokens < 2 * self.remembered + 1:
            raise ValueError(
                f"SelectiveCopy.tokens = {self.tokens}: expected at least {2 * self.remembered + 1}, the symbols to "
                "remember twice and the marker; raise it or lower SelectiveCopy.remembered"
            )

    @property
    def needs(self) -> int:
        """Two symbols to remember, the noise and the marker."""
        return self.noise + 3

    def write(self, rng: np.random.Generator, size: int) -> Numbered:
        """The noise with the symbols in it, the marker, the symbols."""
        marker, room = size - 1, self.tokens - self.remembered - 1
        line = rng.integers(marker - self.noise, marker, size=self.tokens)
        symbols = rng.integers(marker - self.noise, size=self.remembered)
        line[np.sort(rng.choice(room, self.remembered, replace=False))] = symbols
        line[room] = marker
        line[room + 1 :] = symbols
        return line, np.arange(self.tokens) > room

    def answer(self, before: list[int], size: int) -> int:
        """As many symbols into those that are no noise as have come since the marker."""
        marker = before.index(size - 1)
        symbols = [symbol for symbol in before[:marker] if symbol < size - 1 - self.noise]
        return symbols[len(before) - marker - 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Induction(SymbolTask):
    """A random line in which a trigger stands once; the line ends with the trigger and the symbol that followed it.

    The induction head task of Fu et al. 2023 (H3). The trigger is a symbol of its own, the last of the alphabet; only
    the last token is scored.

    Attributes:
      tokens: length of every sample, with the answer.
    """

    tokens: int = 256

    def __post_init__(self):
        if self.tokens < 4:
            raise ValueError(
                f"Induction.tokens = {self.tokens}: expected at least 4, the trigger and what follows it, twice"
            )

    @property
    def needs(self) -> int:
        """Two symbols and the trigger."""
        return 3

    def write(self, rng: np.random.Generator, size: int) -> Numbered:
        """The random line, the trigger in it and near its end."""
        line = rng.integers(size - 1, size=self.tokens)
        place = rng.integers(self.tokens - 3)
        line[[place, -2]] = size - 1
        line[-1] = line[place + 1]
        return line, np.arange(self.tokens) == self.tokens - 1

    def answer(self, before: list[int], size: int) -> int:
        """What followed the trigger."""
        return _follower(before)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepeatedSequence(SymbolTask):
    """A random sequence over and over, cut off where the window ends: what the induction score is measured on.

    Olsson et al. 2022, on repeated random tokens. Different: the period is drawn anew for every sample, since one fixed
    period teaches to copy from a fixed distance instead of induction; and no symbol comes twice in a period, so that
    the last symbol determines the answer. Scored is everything from the second symbol of the second period on: before
    that, nothing says that the sequence begins again.

    Attributes:
      tokens: length of every sample.
      least, most: bounds of the period, drawn evenly.
    """

    tokens: int = 256
    least: int = 16
    most: int = 128

    def __post_init__(self):
        if not 2 <= self.least <= self.most <= self.tokens - 2:
            raise ValueError(
                f"RepeatedSequence: least = {self.least}, most = {self.most}, tokens = {self.tokens}; expected "
                "2 <= least <= most <= tokens - 2"
            )

    @property
    def needs(self) -> int:
        """As many as the longest period."""
        return self.most

    def write(self, rng: np.random.Generator, size: int) -> Numbered:
        """The period, repeated."""
        period = int(rng.integers(self.least, self.most + 1))
        line = np.resize(rng.choice(size, period, replace=False), self.tokens)
        return line, np.arange(self.tokens) > period

    def answer(self, before: list[int], size: int) -> int:
        """What followed the last symbol the first time."""
        return _follower(before)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Permuted:
    """A task with its symbols permuted, so that one task gives a sequence of tasks for continual learning.

    As permuted MNIST (Goodfellow et al. 2013) permutes pixels: all permutations are equally hard, and nothing of what
    one task's symbols mean holds in another. Markers and triggers are permuted too.

    Attributes:
      task: any task on symbols.
      permutation: number of the permutation; 0 leaves every symbol as it is.
    """

    task: SymbolTask
    permutation: int

    def __post_init__(self):
        if self.permutation < 0:
            raise ValueError(f"Permuted.permutation = {self.permutation}: expected 0 or more")

    @property
    def tokens(self) -> int:
        """The most tokens of a sample."""
        return self.task.tokens

    def sample(self, rng: np.random.Generator, tokenizer: Tokenizer) -> TokenWindow:
        """The task's sample, every token replaced by the one the permutation puts in its place."""
        window = self.task.sample(rng, tokenizer)
        return dataclasses.replace(window, ids=self._table(tokenizer)[window.ids])

    def oracle(self, window: TokenWindow, tokenizer: Tokenizer) -> Int32[np.ndarray, " n"]:
        """The task's own answers to the window with the permutation undone, permuted."""
        table = self._table(tokenizer)
        plain = dataclasses.replace(window, ids=np.argsort(table).astype(np.int32)[window.ids])
        return table[self.task.oracle(plain, tokenizer)]

    def _table(self, tokenizer: Tokenizer) -> Int32[np.ndarray, " vocabulary"]:
        """What each id becomes."""
        table, symbols = np.arange(tokenizer.vocab_size, dtype=np.int32), self.task.symbols(tokenizer)
        if self.permutation:
            table[symbols] = np.random.default_rng(self.permutation).permutation(symbols)
        return table

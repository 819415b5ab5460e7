"""Synthetic tasks on long texts: something is hidden among plain sentences or words, and asked for at the end.

Every sample is filled up to `tokens` tokens, as nearly as one more sentence or word allows. They are the tasks of RULER
(Hsieh et al. 2024) and the passkey (Mohtashami and Jaggi 2023), in words of our own. Different from both: answers have
one right order, so that they can be trained on and scored token by token; where the original takes any order, compare
the parts of an answer as a set.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from research.data.synthetic import TextTask, written
from research.data.tokenizers import Tokenizer
from research.data.windows import TokenWindow

SENTENCES = (
    "The kettle was still warm when they came home.",
    "A narrow path led down to the harbour.",
    "Nobody had swept the stairs since spring.",
    "The children drew boats on the back of the map.",
    "Rain fell on the roof all night.",
    "She folded the letter and put it in a drawer.",
    "The train stopped for a while between two fields.",
    "An old dog slept beside the door of the shop.",
    "He counted the apples and gave half of them away.",
    "The lamp in the hall had to be lit by hand.",
    "Some of the windows looked out on the river.",
    "They planted beans along the southern wall.",
    "The baker opened before the sun was up.",
    "A thin layer of dust lay on the piano.",
    "The road was white and the hills were blue.",
    "Two brothers mended nets on the beach.",
    "Her coat was too heavy for the season.",
    "The bridge is closed to carts in winter.",
    "In the evening the square filled with people.",
    "He read the same page again and smiled.",
    "The garden gate never closed by itself.",
    "Snow had covered the tracks by morning.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongText(TextTask):
    """What the tasks on long texts share.

    Attributes:
      tokens: the most tokens of a sample, with its answer; what a layout adds comes on top.
    """

    tokens: int

    def write(self, rng: np.random.Generator, units: int) -> tuple[str, str]:
        """A text with `units` units of filler, and its answer."""
        raise NotImplementedError

    def sample(self, rng: np.random.Generator, tokenizer: Tokenizer) -> TokenWindow:
        """One window; everything random comes from `rng`.

        Raises:
          ValueError: the text is too long without any filler.
        """
        seed = int(rng.integers(2**63))

        def text(units: int) -> TokenWindow:
            return written(*self.write(np.random.default_rng(seed), units), tokenizer)

        return _fullest(text, self.tokens, type(self).__name__)


def _fullest(text: Callable[[int], TokenWindow], tokens: int, name: str) -> TokenWindow:
    """The text with the most filler that has at most that many tokens."""
    best, low, high = text(0), 0, tokens + 1  # a unit of filler is at least one token
    start = len(best.ids)
    if start > tokens:
        raise ValueError(
            f"{name}.tokens = {tokens}: expected at least the {start} tokens of its text without filler; raise it or "
            "make the task smaller"
        )
    each = tokens / 32
    while high - low > 1:
        # Where the rest would be full if all units were as long as those so far.
        units = min(max(low + int((tokens - len(best.ids)) / each), low + 1), high - 1)
        window = text(units)
        each = max((len(window.ids) - start) / units, 1)
        if len(window.ids) <= tokens:
            best, low = window, units
        else:
            high = units
    return best


def _hidden(
    rng: np.random.Generator, units: int, needles: Sequence[str], depths: Sequence[float] | np.ndarray
) -> str:
    """`units` random sentences with each needle between the two where its share of the filler ends most nearly."""
    pieces = [SENTENCES[i] for i in rng.integers(len(SENTENCES), size=units)]
    ends = np.cumsum([0] + [len(sentence) + 1 for sentence in pieces])
    places = [int(np.abs(ends - depth * ends[-1]).argmin()) for depth in depths]
    order = sorted(range(len(needles)), key=places.__getitem__)
    for i in reversed(order):
        pieces.insert(places[i], needles[i])
    return " ".join(pieces)


def _words(rng: np.random.Generator, count: int) -> list[str]:
    """Different made-up words of three syllables; the first of many are those of few."""
    syllables = [consonant + vowel for consonant in "bdfghjklmnprstvz" for vowel in "aeiou"]
    numbers: dict[int, None] = {}
    while len(numbers) < count:
        numbers |= dict.fromkeys(rng.integers(len(syllables) ** 3, size=count).tolist())
    digits = np.stack(np.unravel_index(list(numbers)[:count], (len(syllables),) * 3), 1)
    return ["".join(syllables[i] for i in word) for word in digits.tolist()]


def _numbers(rng: np.random.Generator, count: int, digits: int) -> list[str]:
    """Different numbers of so many digits, none beginning with 0."""
    least = 10 ** (digits - 1)
    return [str(least + number) for number in rng.choice(9 * least, count, replace=False).tolist()]


def _check_depth(name: str, depth: float | None) -> None:
    if depth is not None and not 0 <= depth <= 1:
        raise ValueError(f"{name}.depth = {depth}: expected 0 <= depth <= 1, or None")


def _check_digits(name: str, digits: int, count: int) -> None:
    if not 1 <= digits <= 18 or 9 * 10 ** (digits - 1) < count:
        raise ValueError(
            f"{name}.digits = {digits}: expected 1 to 18, enough for {count} different numbers; raise it"
        )


def _check_counts(task: LongText, *names: str) -> None:
    for name in names:
        if not 1 <= getattr(task, name) <= 500:  # there are made-up words enough for 500 chains of 500
            raise ValueError(f"{type(task).__name__}.{name} = {getattr(task, name)}: expected 1 to 500")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passkey(LongText):
    """A number hidden in plain sentences, to be told (Mohtashami and Jaggi 2023).

    Attributes:
      depth: share of the filler that comes before the number; None: drawn evenly.
      digits: of the number.
    """

    depth: float | None = None
    digits: int = 5

    def __post_init__(self):
        _check_depth("Passkey", self.depth)
        _check_digits("Passkey", self.digits, 1)

    def write(self, rng: np.random.Generator, units: int) -> tuple[str, str]:
        """The text, which ends with the question, and the number."""
        (key,) = _numbers(rng, 1, self.digits)
        depth = rng.random() if self.depth is None else self.depth
        text = _hidden(
            rng, units, [f"The pass key is {key}. Keep it in mind: {key} is the pass key."], [depth]
        )
        return f"A pass key is hidden in this text. Remember it.\n{text}\nWhat is the pass key?\n", key

    def solve(self, given: str) -> str:
        """The number in the text."""
        return "".join(re.findall(r"pass key is (\d+)", given))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needle(LongText):
    """Numbers that belong to made-up words, hidden in plain sentences; those of some of the words are asked for.

    RULER's four needle-in-a-haystack tasks (Hsieh et al. 2024, section 3.1): single (all 1), multi-key (`keys` above
    `queries`: the others distract), multi-value (`values` above 1) and multi-query (`queries` above 1). The answer
    lists the numbers word by word as asked, those of one word as they come in the text.

    Attributes:
      keys: how many words have numbers.
      values: how many numbers each word has, in a sentence each.
      queries: how many of the words are asked.
      depth: share of the filler that comes before the sentence asked for; None: drawn evenly, as is always that of the
        others. Only where one sentence is asked for.
      digits: of the numbers.
    """

    keys: int = 1
    values: int = 1
    queries: int = 1
    depth: float | None = None
    digits: int = 7

    def __post_init__(self):
        _check_counts(self, "keys", "values", "queries")
        if self.queries > self.keys:
            raise ValueError(f"Needle.queries = {self.queries}: expected at most Needle.keys = {self.keys}")
        _check_depth("Needle", self.depth)
        if self.depth is not None and self.queries * self.values > 1:
            raise ValueError(
                f"Needle.depth = {self.depth}: {self.queries} queries of {self.values} values have no single depth; "
                "set Needle.depth = None, or both to 1"
            )
        _check_digits("Needle", self.digits, self.keys * self.values)

    def write(self, rng: np.random.Generator, units: int) -> tuple[str, str]:
        """The text, which ends with the question, and the numbers."""
        words = _words(rng, self.keys)
        numbers = np.reshape(_numbers(rng, self.keys * self.values, self.digits), (self.keys, self.values))
        depths = np.sort(rng.random((self.keys, self.values)), 1)
        asked = rng.permutation(self.keys)[: self.queries]
        if self.depth is not None:
            depths[asked] = self.depth
        needles = [
            f"The number of {word} is {number}."
            for word, row in zip(words, numbers, strict=True)
            for number in row
        ]
        text = _hidden(rng, units, needles, depths.ravel())
        question = f"What are the numbers of {', '.join(words[i] for i in asked)}?"
        given = f"Numbers of words are hidden in this text. Remember them.\n{text}\n{question}\n"
        return given, " ".join(numbers[asked].ravel().tolist())

    def solve(self, given: str) -> str:
        """Every number of every word asked for."""
        text, question = given.rstrip("\n").rsplit("\n", 1)
        asked = question.removeprefix("What are the numbers of ").rstrip("?").split(", ")
        found = re.findall(r"The number of (\w+) is (\d+)\.", text)
        return " ".join(number for word in asked for key, number in found if key == word)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariableTracking(LongText):
    """Chains of assignments hidden in plain sentences: which variables hold a value? (Hsieh et al. 2024, section 3.2).

    A chain begins with a number and hands it on; its statements come in their order, those of other chains between
    them. The answer lists the variables of one chain in that order.

    Attributes:
      chains: how many there are; one is asked for.
      hops: how often each hands its number on.
    """

    chains: int = 1
    hops: int = 4

    def __post_init__(self):
        _check_counts(self, "chains", "hops")

    def write(self, rng: np.random.Generator, units: int) -> tuple[str, str]:
        """The text, which ends with the question, and the names of the variables."""
        names = np.reshape(_words(rng, self.chains * (self.hops + 1)), (self.chains, -1))
        names = np.strings.upper(names)
        numbers = _numbers(rng, self.chains, 5)
        depths = np.sort(rng.random(names.shape), 1)
        statements = [
            f"VAR {name} = {value}."
            for number, chain in zip(numbers, names.tolist(), strict=True)
            for name, value in zip(chain, [number, *(f"VAR {name}" for name in chain[:-1])], strict=True)
        ]
        asked = int(rng.integers(self.chains))
        text = _hidden(rng, units, statements, depths.ravel())
        given = f"Variables are assigned in this text. Keep track of them.\n{text}\n"
        return f"{given}Which variables hold {numbers[asked]}?\n", " ".join(names[asked].tolist())

    def solve(self, given: str) -> str:
        """Every variable that holds the value when the assignments have been carried out one by one."""
        held: dict[str, str] = {}
        for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", given):
            held[name] = held.get(value, value)
        asked = re.findall(r"Which variables hold (\d+)\?", given)
        return " ".join(name for name, value in held.items() if value in asked)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonWords(LongText):
    """A numbered list of words, some of them common: which ones? (Hsieh et al. 2024, section 3.3).

    The longer the text, the more seldom words it has. The answer lists the common words as they first come. Different:
    the words are made up.

    Attributes:
      words: how many words are common.
      common: how often each of them comes.
      uncommon: how often each of the others comes.
    """

    words: int = 10
    common: int = 30
    uncommon: int = 3

    def __post_init__(self):
        _check_counts(self, "words", "uncommon")
        if self.common <= self.uncommon:
            raise ValueError(
                f"CommonWords.common = {self.common}: expected more than CommonWords.uncommon = {self.uncommon}"
            )

    def write(self, rng: np.random.Generator, units: int) -> tuple[str, str]:
        """The list, which ends with the question, and the common words."""
        words = _words(rng, self.words + units)
        line = rng.permutation(
            np.repeat(words, [self.common] * self.words + [self.uncommon] * units)
        ).tolist()
        answer = [word for word in dict.fromkeys(line) if word in words[: self.words]]
        text = " ".join(f"{i}. {word}" for i, word in enumerate(line, 1))
        question = f"What are the {self.words} most common words?"
        return f"Some words come often in this list. Remember them.\n{text}\n{question}\n", " ".join(answer)

    def solve(self, given: str) -> str:
        """The words with the highest counts."""
        counts = collections.Counter(re.findall(r"\d+\. (\w+)", given))
        common = {word for word, _ in counts.most_common(self.words)}
        return " ".join(word for word in counts if word in common)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrequentWords(LongText):
    """Words whose counts fall with their rank: which are most frequent? (Hsieh et al. 2024, section 3.3).

    The word of rank k comes floor(c k^-alpha) times, with c as large as fits; the word of rank 1 is "..." and does not
    count. The answer lists the words by rank. Different: c is never so small that two words asked for come equally
    often.

    Attributes:
      words: how many are asked for.
      alpha: exponent of the distribution; the smaller, the harder.
    """

    words: int = 3
    alpha: float = 2.0

    def __post_init__(self):
        _check_counts(self, "words")
        if not 1 < self.alpha <= 10:
            raise ValueError(f"FrequentWords.alpha = {self.alpha}: expected more than 1 and at most 10")
        if self.tokens < self._least:
            raise ValueError(
                f"FrequentWords.tokens = {self.tokens}: expected at least {self._least}, one for each of the dots; "
                "raise it or lower FrequentWords.words or FrequentWords.alpha"
            )

    @property
    def _least(self) -> int:
        """The least c with which the counts of the words asked for and of the next differ by at least 1."""
        last = self.words + 1.0  # the lowest rank asked for, after that of the dots
        # One more, so that no rounding makes counts equal.
        return int(np.ceil(1 / (last**-self.alpha - (last + 1) ** -self.alpha))) + 1

    def write(self, rng: np.random.Generator, units: int) -> tuple[str, str]:
        """The words, then the question, and the words asked for."""
        scale = self._least + units
        ranks = np.arange(1, int(scale ** (1 / self.alpha)) + 1)
        counts = np.maximum(np.floor(scale * ranks**-self.alpha), 1).astype(int)
        words = ["...", *_words(rng, len(ranks) - 1)]
        text = " ".join(rng.permutation(np.repeat(words, counts)).tolist())
        question = f"What are the {self.words} most frequent words? The dots are no word."
        given = f"Some words come often in this text. Remember them.\n{text}\n{question}\n"
        return given, " ".join(words[1 : self.words + 1])

    def solve(self, given: str) -> str:
        """The words with the highest counts, the highest first."""
        counts = collections.Counter(given.split("\n")[1].split())
        del counts["..."]
        return " ".join(word for word, _ in counts.most_common(self.words))


def grid(
    task: Passkey | Needle, lengths: Sequence[int], depths: Sequence[float]
) -> tuple[tuple[int, float, Passkey | Needle], ...]:
    """The cells (length, depth, task) of the usual grid of depth by length, row by row.

    Args:
      task: what to measure; its `tokens` and `depth` are replaced.
    """
    return tuple(
        (length, depth, dataclasses.replace(task, tokens=length, depth=depth))
        for length in lengths
        for depth in depths
    )

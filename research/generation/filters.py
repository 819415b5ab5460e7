"""Post-filters: what becomes of a text after it was generated. They read text alone and know no model.

Words are what white space separates, and are compared without case and the punctuation around them. Text in scripts
that put no space between words passes as it is.
"""

import math
import re
import string
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import NamedTuple

# A sentence ends with its mark, a quote or bracket after it, and white space; or with its line.
_END = re.compile(r"""(?<=[.!?…])(?=\s)|(?<=[.!?…]["'”’)\]])(?=\s)|(?<=\S)(?=\s*\n)""")
_PUNCTUATION = string.punctuation + "…“”‘’„«»‹›–—¿¡"


def words(text: str) -> list[str]:
    """The words of a text as they are compared: no case, and no punctuation around them but where it is all."""
    return [_bare(word) for word in text.split()]


def repetition(text: str, size: int) -> float:
    """The share of a text's n-grams that came before: seq-rep-n of Welleck et al. 2020, on words.

    1 - unique n-grams / n-grams; 0 for a text that has none.
    """
    line = words(text)
    grams = [tuple(line[i : i + size]) for i in range(len(line) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True, kw_only=True)
class CutRepeats:
    """Cuts repeated sentences and loops out of a text; see `cut_repeats`.

    Attributes:
      sentence: words of the shortest sentence that is cut where it comes again, so that "Yes." may; None: none is cut.
      phrase: words of the longest phrase that is looked for in loops; None: loops stay.
      times: how often in a row a phrase comes where it is a loop.
    """

    sentence: int | None = 4
    phrase: int | None = 16
    times: int = 3

    def __post_init__(self):
        for name, least in (("sentence", 1), ("phrase", 1), ("times", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"CutRepeats.{name} = {value}: expected at least {least}")

    def __call__(self, text: str) -> str:
        return cut_repeats(text, **asdict(self))


def cut_repeats(text: str, *, sentence: int | None, phrase: int | None, times: int) -> str:
    """The text without sentences that came before and without loops, for arguments see `CutRepeats`.

    What comes first stays, to the letter but for the punctuation at the end of a loop. A loop that breaks off where the
    text ends is cut whole. A text without repeats comes back as it is, and so does one that was cut already.
    """
    while True:
        shorter = text
        if sentence is not None:
            shorter = _cut_sentences(shorter, sentence)
        if phrase is not None:
            shorter = _cut_loops(shorter, phrase, times)
        # A cut may bring together what repeats.
        if shorter == text:
            return text
        text = shorter


class Candidate(NamedTuple):
    """A text and its log-probability (of whatever length normalisation: only differences count)."""

    text: str
    log_probability: float


@dataclass(frozen=True, kw_only=True)
class Rerank:
    """Orders candidates by log-probability - penalty * `repetition`.

    Attributes:
      penalty: nats that a text of nothing but repetition loses; 0 orders by log-probability.
      size: words of the n-grams that are counted.
    """

    penalty: float
    size: int = 4

    def __post_init__(self):
        if not 0 <= self.penalty < math.inf:
            raise ValueError(f"Rerank.penalty = {self.penalty}: expected at least 0")
        if self.size < 1:
            raise ValueError(f"Rerank.size = {self.size}: expected at least 1")

    def cost(self, text: str, log_probability: float) -> float:
        """What candidates are ordered by, in nats: the least is the best.

        Raises:
          ValueError: the log-probability is NaN, which has no place in an order.
        """
        if math.isnan(log_probability):
            raise ValueError("Rerank: log_probability = nan: expected a number")
        return self.penalty * repetition(text, self.size) - log_probability

    def __call__(self, candidates: Iterable[tuple[str, float]]) -> list[Candidate]:
        """The candidates, best first; equals keep their order."""
        return sorted((Candidate(*one) for one in candidates), key=lambda one: self.cost(*one))


def _bare(word: str) -> str:
    return word.strip(_PUNCTUATION).casefold() or word


def _cut_sentences(text: str, least: int) -> str:
    seen, kept = set(), []
    for sentence in _END.split(text):
        line = tuple(words(sentence))
        if len(line) < least or line not in seen:
            kept.append(sentence)
        seen.add(line)
    return "".join(kept)


def _cut_loops(text: str, longest: int, times: int) -> str:
    body = text.rstrip()
    pieces = re.findall(r"\s*\S+", body)
    line = words(body)
    for size in range(1, longest + 1):
        start = 0
        while start + times * size <= len(line):
            end = start + size
            while end < len(line) and line[end] == line[end - size]:
                end += 1
            copies = (end - start) // size
            if copies < times:
                # What starts before the first difference has no more copies before it.
                start = max(start + 1, end - size + 1)
                continue
            first, last = start + size, start + copies * size
            pieces[first - 1] = _with_end_of(pieces[first - 1], pieces[last - 1])
            cut = slice(first, end if end == len(line) else last)
            del pieces[cut], line[cut]
            start += 1
    return "".join(pieces) + text[len(body) :]


def _with_end_of(word: str, other: str) -> str:
    """The word with the punctuation behind the other, so that a sentence cut to its first words still ends."""
    return word.rstrip(_PUNCTUATION) + other[len(other.rstrip(_PUNCTUATION)) :]

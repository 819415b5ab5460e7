"""Held-out loss by where a window is cut: in the middle of a word, or where a sentence ends."""

import dataclasses
import functools
import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int32

from research.data.objectives import Example, cut_range, ones
from research.data.pipeline import Dataset
from research.data.tokenizers import Tokenizer
from research.data.windows import spread
from research.evaluation.positions import limited
from research.evaluation.trained import Scores, Trained

_SENTENCE_END = re.compile(r"""[.!?]["')\]]*\s+$""")
_CUTS = 4  # what the random streams of this evaluation begin with


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByCut:
    """Nats per token of the rest of a window, cut at a random token and where a sentence ends.

    Both are measured on the same windows of the test split: those in which a sentence ends within the share [least,
    most] of the window. A model that reads what is given by another stack than what follows has no local context at the
    first token, which costs it more inside a word; it shows in the first tokens.

    Attributes:
      least, most: where a window may be cut, as shares of it.
      first: how many tokens after the cut are scored apart.
      windows: at most so many are scored, spread evenly.
    """

    least: float = 0.25
    most: float = 0.75
    first: int = 4
    windows: int = 512

    def __post_init__(self):
        if not 0 < self.least <= self.most < 1:
            raise ValueError(
                f"ByCut: least = {self.least}, most = {self.most}; expected 0 < least <= most < 1"
            )
        for name in ("first", "windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"ByCut.{name} = {getattr(self, name)}: expected at least 1")

    def __call__(self, trained: Trained) -> Scores:
        """`{"loss": {"random": nats, "sentence": nats}, "first": {...}}`.

        Raises:
          ValueError: the data is no free text, or no sentence ends where a window may be cut.
        """
        text, examples = trained.text, list(self._examples(trained))
        scores: dict[str, dict[str, float]] = {"loss": {}, "first": {}}
        for name, made in zip(("random", "sentence"), zip(*examples, strict=True), strict=True):
            batches = text.placed(made)
            for what, count in (("loss", None), ("first", self.first)):
                scored = trained.place(limited(batches, count))
                scores[what][name] = trained.trainer.evaluate(trained.params, scored)
        return scores

    def _examples(self, trained: Trained) -> Iterator[tuple[Example, Example]]:
        """The same windows cut at random and where a sentence ends."""
        windows = trained.text.windows[0]["test"]
        least, most = cut_range(trained.text.data.window, self.least, self.most)
        found = _sentence_ends(trained.text, least, most)
        if not found:
            raise ValueError(
                f"ByCut: no sentence of the test split ends in tokens {least} to {most} of a window of "
                f"{trained.text.data.window}; widen ByCut.least and ByCut.most or raise Data.window"
            )
        for index, end in (found[place] for place in spread(len(found), self.windows)):
            ids = windows[index].ids
            # By window and not by seed of the run: every run is scored on the same targets.
            cut = int(np.random.default_rng([_CUTS, index]).integers(least, most + 1))
            yield _cut(ids, cut), _cut(ids, end)


@functools.lru_cache(maxsize=4)  # the cells of a study share their text
def _sentence_ends(text: Dataset, least: int, most: int) -> list[tuple[int, int]]:
    """The test windows in which a sentence ends there, each with the place. ValueError: they are records."""
    windows, found = text.windows[0]["test"], []
    for index in range(len(windows)):
        window = windows[index]
        if window.record:
            raise ValueError(
                "ByCut reads free text, but Data.corpus has records; take the evaluation out or set Data.corpus"
            )
        if (end := sentence_end(window.ids, text.tokenizer, least, most)) is not None:
            found.append((index, end))
    return found


def sentence_end(ids: Int32[np.ndarray, " n"], tokenizer: Tokenizer, least: int, most: int) -> int | None:
    """The last place from `least` to `most` before which a sentence and the space after it end, or None."""
    for place in range(most, least - 1, -1):
        before = tokenizer.decode(ids[max(0, place - 16) : place])
        if _SENTENCE_END.search(before) and not tokenizer.decode(ids[place : place + 1]).isspace():
            return place
    return None


def _cut(ids: Int32[np.ndarray, " n"], place: int) -> Example:
    return Example(ids[:place], ids[place:], ones(ids[place:]))

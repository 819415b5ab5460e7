"""Text that says again what it said some way back: whoever reads that far knows what comes."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from research.data.curation import Curated
from research.data.documents import Document, Item


@dataclass(frozen=True, kw_only=True)
class Echoed(Curated):
    """A corpus of documents that are interrupted by echoes of themselves, held-out text too.

    Real text rewards a long memory so little that a small model does not notice. Here it is rewarded: after its first
    characters an echo is known to whoever sees where it was said before. Echoes have random lengths and distances and
    come at random places; what is echoed may be an echo, so that some of it stands nearer, too. A document keeps its
    length, so its end is lost.

    Attributes:
      corpus: of documents.
      rate: share of the characters that are echoes, on average.
      least, most: bounds of an echo's characters, drawn evenly.
      nearest, farthest: bounds of how many characters before an echo what it says began, drawn evenly, and not before
        the document begins.
      shuffled: the characters of an echo are in random order, so that nothing is said again: a negative control, of
        text that is harder, too.
      validation, test, near_duplicates: as in `Data`.
      seed: of all that is drawn.
    """

    rate: float = 0.5
    least: int = 12
    most: int = 24
    nearest: int = 24
    farthest: int = 384
    shuffled: bool = False

    def __post_init__(self):
        if not 0 < self.rate < 1 or not 1 <= self.least <= self.most <= self.nearest <= self.farthest:
            raise ValueError(
                f"Echoed: rate = {self.rate}, least = {self.least}, most = {self.most}, nearest = {self.nearest}, "
                f"farthest = {self.farthest}; expected 0 < rate < 1 and 1 <= least <= most <= nearest <= farthest"
            )

    def documents(self, data_dir: str | Path | None = None) -> tuple[Item, ...]:
        """The documents, by name.

        Raises:
          ValueError: there is a record.
        """
        items = [item for part in self._split(data_dir).values() for item in part]
        made = []
        for number, item in enumerate(sorted(items, key=lambda item: item.name)):
            if not isinstance(item, Document):
                raise ValueError(
                    f"Echoed needs documents, but {item.name} is a record; set Echoed.corpus to free text"
                )
            made.append(replace(item, text=self.echo(item.text, number)))
        return tuple(made)

    def echo(self, text: str, number: int) -> str:
        """As much text, with echoes; `number`: of the document, so that each has others."""
        # The order has a generator of its own: echoes are where they are without it.
        rng, order = (np.random.default_rng([self.seed, number, stream]) for stream in (0, 1))
        made, begun = "", 0
        while len(made) < len(text):
            length = int(rng.integers(self.least, self.most + 1))
            fresh = int(rng.geometric(min(self.rate / (1 - self.rate) / length, 1.0)))
            made, begun = made + text[begun : begun + fresh], begun + fresh
            if len(made) >= self.nearest:
                start = len(made) - int(rng.integers(self.nearest, min(self.farthest, len(made)) + 1))
                said = list(made[start : start + length])
                made += "".join(order.permutation(said) if self.shuffled else said)
        return made[: len(text)]

"""A corpus that needs no download."""

import dataclasses

import numpy as np

from research.data.documents import Document


@dataclasses.dataclass(frozen=True)
class Words:
    """Documents of random words."""

    seed: int = 0
    words: tuple[str, ...] = ("one", "two", "three", "four", "five")

    def documents(self, data_dir=None):
        rng = np.random.default_rng(self.seed)
        texts = (" ".join(rng.choice(self.words, 12)) for _ in range(60))
        return tuple(Document(name=str(number), text=text) for number, text in enumerate(texts))

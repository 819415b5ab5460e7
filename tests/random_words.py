"""A corpus that needs no download."""

import dataclasses

import numpy as np

from research.data.documents import Document


@dataclasses.dataclass(frozen=True)
class Words:
    """Documents of random words."""

    seed: int = 0

    def documents(self, data_dir=None):
        rng, words = np.random.default_rng(self.seed), ["one", "two", "three", "four", "five"]
        return tuple(Document(name=str(number), text=" ".join(rng.choice(words, 12))) for number in range(60))

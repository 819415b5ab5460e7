"""Text of keys and values whose meaning a document decides: whoever reads further back knows more of it."""

import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from research.data.documents import Document

KEYS, VALUES = string.digits + string.punctuation, string.ascii_letters


@dataclass(frozen=True, kw_only=True)
class Lexicons:
    """Made documents of pairs, each a key and the value that the lexicon of its document has for it.

    Real text rewards a long memory so little that a small model does not notice. Here more in sight is worth more at
    every length: keys come as often as words do (Zipf 1949), some again at once and others hundreds of characters
    later, and a value is known to whoever still sees its key's last pair. What a lexicon says of one document it
    does not say of another, so nothing of it can be learned by heart.

    Attributes:
      count: of documents.
      characters: of each, two for each pair.
      keys: of a lexicon, drawn anew for each, as are their order of frequency and their values, which all differ.
      power: the frequency of the nth key goes with n^-power; 0: all alike.
      lasting: pairs after which another lexicon begins, unannounced; None: a document has one. A negative control: what
        is afar says nothing, and what is near less, as it may be of the lexicon before.
      seed: of all that is drawn.
    """

    count: int = 512
    characters: int = 8192
    keys: int = 32
    power: float = 1.0
    lasting: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.count < 1 or self.characters < 2 or self.characters % 2:
            raise ValueError(
                f"Lexicons: count = {self.count}, characters = {self.characters}; expected at least one document and "
                "an even number of characters"
            )
        if not 1 <= self.keys <= len(KEYS) or self.power < 0:
            raise ValueError(
                f"Lexicons: keys = {self.keys}, power = {self.power}; expected 1 to {len(KEYS)} keys and at least 0"
            )
        if self.lasting is not None and self.lasting < 1:
            raise ValueError(f"Lexicons.lasting = {self.lasting}: expected at least one pair, or None")

    def documents(self, data_dir: str | Path | None = None) -> tuple[Document, ...]:
        """The documents, by name."""
        digits = len(str(self.count - 1))
        return tuple(Document(f"{n:0{digits}}", self.write(n)) for n in range(self.count))

    def write(self, number: int) -> str:
        """The text of a document."""
        rng = np.random.default_rng([self.seed, number])
        pairs = self.characters // 2
        lexicon = np.arange(pairs) // (self.lasting or pairs)
        often = np.arange(1, self.keys + 1) ** -self.power
        drawn = rng.choice(self.keys, p=often / often.sum(), size=pairs)
        kinds = lexicon[-1] + 1
        keys, values = (
            rng.permuted(np.tile(np.array(list(alphabet)), (kinds, 1)), axis=1)[lexicon, drawn]
            for alphabet in (KEYS, VALUES)
        )
        return "".join(np.stack([keys, values], axis=1).ravel())

"""Documents and records: what every corpus is a tuple of, their fingerprint, and their split by content."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

SPLITS = ("train", "validation", "test")

Speaker = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Document:
    """A free text.

    Attributes:
      name: unique within its corpus and free of machine paths.
      text: the text itself.
      group: documents of one group (a book, an author, a version of one text) stay in one split; "": its own.
    """

    name: str
    text: str
    group: str = ""


@dataclass(frozen=True)
class Turn:
    """What one speaker says in a record."""

    speaker: Speaker
    text: str


@dataclass(frozen=True)
class Record:
    """A supervised example or a dialogue: what the assistant says is to be learned, the rest is given.

    Attributes:
      name: unique within its corpus and free of machine paths.
      turns: in order; at least one is the assistant's.
      group: records of one group (a book, a film, a word) stay in one split; "": its own.
    """

    name: str
    turns: tuple[Turn, ...]
    group: str = ""

    @staticmethod
    def pair(name: str, inputs: str, target: str, group: str = "") -> "Record":
        """The record of one input and the output it should have."""
        return Record(name, (Turn("user", inputs), Turn("assistant", target)), group)

    @property
    def text(self) -> str:
        """All turns, one after another."""
        return "\n".join(turn.text for turn in self.turns)


Item = Document | Record


@runtime_checkable  # so that a config value can be checked against it
class Corpus(Protocol):
    """What every corpus provides."""

    def documents(self, data_dir: str | Path | None = None) -> tuple[Item, ...]:
        """Read the documents or records, sorted by name; `data_dir` is where archives lie (`cache_dir`)."""
        ...


def fingerprint(documents: Iterable[Item]) -> str:
    """The sha256 (hex) of all names, groups and texts in their order."""
    digest = hashlib.sha256()
    for document in documents:
        parts = [document.name, document.group]
        if isinstance(document, Record):
            parts += [part for turn in document.turns for part in (turn.speaker, turn.text)]
        else:
            parts.append(document.text)
        for part in parts:
            encoded = part.encode()
            # The length keeps ("ab", "c") and ("a", "bc") apart.
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def together(documents: Sequence[Item], alike: Iterable[Sequence[int]] = ()) -> list[str]:
    """A key for each document: its group, or else its text; documents that are alike, and whatever is in their groups,
    have one key, the one whose `place` is least.

    Args:
        alike: sets of indices of documents that belong together (near-duplicates).
    """
    keys = [document.group or document.text for document in documents]
    least = {key: key for key in keys}
    places = {key: place(key.encode()) for key in least}
    sets = [[keys[index] for index in members] for members in alike]
    # A set may reach through a group into another set: until nothing moves.
    moved = True
    while moved:
        moved = False
        for members in sets:
            chosen = min((least[key] for key in members), key=places.__getitem__)
            for key in members:
                moved |= least[key] != chosen
                least[key] = chosen
    return [least[key] for key in keys]


def split(
    documents: Sequence[Item],
    *,
    validation: float = 0.1,
    test: float = 0.1,
    alike: Iterable[Sequence[int]] = (),
) -> dict[str, tuple[Item, ...]]:
    """Split documents into `train`, `validation` and `test`, each in the given order.

    A document's place depends on its key alone (see `together`): copies of a text never straddle splits, and neither
    adding documents that are like no other nor changing `validation` moves anything into or out of `test`.

    Args:
        validation, test: expected shares of the *number* of documents, in (0, 1) together.
        alike: sets of indices of documents that belong together (near-duplicates).

    Raises:
        ValueError: a split would be empty.
    """
    parts: dict[str, list[Item]] = {name: [] for name in SPLITS}
    for key, document in zip(together(documents, alike), documents, strict=True):
        here = place(key.encode())
        parts["test" if here < test else "validation" if here < test + validation else "train"].append(
            document
        )
    for name, part in parts.items():
        if not part:
            raise ValueError(
                f"split {name!r} is empty: {len(documents)} documents at shares "
                f"validation={validation:g}, test={test:g}; expected at least one document in "
                "each: use a corpus of more documents or change Data.validation and Data.test"
            )
    return {name: tuple(part) for name, part in parts.items()}


def place(key: bytes) -> float:
    """A number in [0, 1) that depends on the key alone: `test` comes first, then `validation`, then `train`."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64

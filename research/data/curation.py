"""Corpora made of other corpora: without duplicates, with more of them, less diverse, or out of order.

They change what is trained on and leave alone what is held out, so that all arms of a study are measured on the same
text. To know which is which they repeat `Data`'s own split; `validation`, `test` and `near_duplicates` must be as in
`Data`. A text that was changed keeps its place in the split, as its group is what its
place depended on. How many sources there are is the business of `Mixture`, which also says how much of each is drawn.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from research.data import duplicates
from research.data.documents import Corpus, Document, Item, Record, split, together


@dataclass(frozen=True, kw_only=True)
class Curated:
    """What the corpora below have in common: whose text it is, and which of it is trained on."""

    corpus: Corpus
    validation: float = 0.1
    test: float = 0.1
    near_duplicates: float | None = 0.8
    seed: int = 0

    def check(self, validation: float, test: float, near_duplicates: float | None) -> None:
        """Refuse to curate for another split than the one that these say."""
        name = type(self).__name__
        mine, theirs = (self.validation, self.test, self.near_duplicates), (validation, test, near_duplicates)
        if mine != theirs:
            raise ValueError(
                f"{name}: validation, test, near_duplicates = {mine}, but Data has {theirs}, so other text would be "
                f"held out; bind {name}'s to Data's"
            )

    def _split(self, data_dir: str | Path | None) -> dict[str, tuple[Item, ...]]:
        items = self.corpus.documents(data_dir)
        alike = () if self.near_duplicates is None else duplicates.near(items, threshold=self.near_duplicates)
        # What is changed is no near-duplicate any more: the group says where it belongs.
        items = [replace(item, group=key) for item, key in zip(items, together(items, alike), strict=True)]
        return split(items, validation=self.validation, test=self.test)

    def _shuffled(self, items: Sequence[Item]) -> list[Item]:
        return [items[i] for i in np.random.default_rng(self.seed).permutation(len(items))]


@dataclass(frozen=True, kw_only=True)
class Deduplicated(Curated):
    """A corpus whose training text has no duplicates (Lee et al. 2022): of each cluster the item first by name is kept.

    Attributes:
      corpus: of documents or records.
      threshold: least similarity of near duplicates, see `duplicates.near`; None: only exact ones go.
      validation, test, near_duplicates: as in `Data`.
      seed: of nothing, as nothing is drawn.
    """

    threshold: float | None = None

    def __post_init__(self):
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(
                f"Deduplicated.threshold = {self.threshold}: expected 0 < threshold <= 1, or None for exact duplicates"
            )

    def documents(self, data_dir: str | Path | None = None) -> tuple[Item, ...]:
        """What is left for training, and all that is held out, by name."""
        parts = self._split(data_dir)
        items = parts["train"]
        if self.threshold is None:
            clusters = duplicates.exact(items)
        else:
            clusters = duplicates.near(items, threshold=self.threshold)
        dropped = {
            i for cluster in clusters for i in cluster if i != min(cluster, key=lambda i: items[i].name)
        }
        kept = [item for i, item in enumerate(items) if i not in dropped]
        return _by_name([*kept, *parts["validation"], *parts["test"]])


@dataclass(frozen=True, kw_only=True)
class Repeated(Curated):
    """A corpus whose training text is partly a small pool, many times over (Hernandez et al. 2022).

    There are as many training characters as before: a share of 1 - `share` of them stands once, a pool of a share of
    `share / repeats` is repeated, and the rest is left out. What stands once is the same for every `repeats`, and the
    pool of fewer repeats begins with the pool of more. A document is cut where a part ends; records are taken whole,
    so that with them the shares are exact but for one record. A pool should hold several windows, as the end of a
    text that fills none is not trained on.

    Attributes:
      corpus: of documents or records.
      share: of the training characters that are repetitions, the first appearance among them.
      repeats: how often each character of the pool stands.
      validation, test, near_duplicates: as in `Data`.
      seed: of what is taken.
    """

    share: float
    repeats: int

    def __post_init__(self):
        if not 0 < self.share <= 1 or self.repeats < 1:
            raise ValueError(
                f"Repeated: share = {self.share}, repeats = {self.repeats}; expected 0 < share <= 1 and repeats >= 1"
            )

    def documents(self, data_dir: str | Path | None = None) -> tuple[Item, ...]:
        """All items, by name; copy k of a pool's item is named `name#k`.

        Raises:
          ValueError: the pool is too small for an item.
        """
        parts = self._split(data_dir)
        total = sum(len(item.text) for item in parts["train"])
        once = round((1 - self.share) * total)
        size = round((total - once) / self.repeats)
        kept, left = _take(self._shuffled(parts["train"]), once)
        pool, _ = _take(left, size)
        if not pool:
            raise ValueError(
                f"Repeated: share = {self.share} and repeats = {self.repeats} of {total} characters make a pool of "
                f"{size}; expected room for at least one character or record; raise share or lower repeats"
            )
        copies = [replace(item, name=f"{item.name}#{k}") for item in pool for k in range(1, self.repeats + 1)]
        return _by_name([*kept, *copies, *parts["validation"], *parts["test"]])


@dataclass(frozen=True, kw_only=True)
class Diversity(Curated):
    """A corpus with less variety in its training text, one kind of variety at a time.

    Words are limited first, then documents are chosen, then they are cut: `documents` of 10 and of 100 at the same
    `characters` differ in variety alone. Lesser numbers of documents are parts of greater ones of the same seed.

    Attributes:
      corpus: of documents or records.
      documents_kept: how many training documents or records, chosen at random; None: all.
      characters: of all training documents together; the longest are cut, all to one length. None: as they are.
      types: only sentences whose every word is among so many most frequent words of the training text, upper and
        lower case being one (a record is one sentence); None: all.
      validation, test, near_duplicates: as in `Data`.
      seed: of the choice.
    """

    documents_kept: int | None = None
    characters: int | None = None
    types: int | None = None

    def __post_init__(self):
        for name in ("documents_kept", "characters", "types"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Diversity.{name} = {value}: expected at least 1, or None")

    def documents(self, data_dir: str | Path | None = None) -> tuple[Item, ...]:
        """What is left for training, and all that is held out, by name.

        Raises:
          ValueError: there is less than what is to be kept, or records are to be cut.
        """
        parts = self._split(data_dir)
        items = parts["train"] if self.types is None else _frequent(parts["train"], self.types)
        if self.documents_kept is not None:
            _enough("documents_kept", self.documents_kept, len(items), "training documents")
            items = self._shuffled(items)[: self.documents_kept]
        if self.characters is not None:
            items = _level(items, self.characters)
        return _by_name([*items, *parts["validation"], *parts["test"]])


@dataclass(frozen=True, kw_only=True)
class ShuffledTargets(Curated):
    """Records whose training targets are permuted among themselves: as many of each target, and nothing to learn of
    what belongs to what. A negative control: whatever is measured of a model that was trained on them is chance.

    Attributes:
      corpus: of records.
      validation, test, near_duplicates: as in `Data`.
      seed: of the permutation.
    """

    def documents(self, data_dir: str | Path | None = None) -> tuple[Item, ...]:
        """All records, by name; those held out are as they were.

        Raises:
          ValueError: the corpus has documents that are no records.
        """
        parts = self._split(data_dir)
        records = [item for item in parts["train"] if isinstance(item, Record)]
        if len(records) < len(parts["train"]):
            raise ValueError(
                f"ShuffledTargets.corpus = {self.corpus}: has documents, expected records; set it to a supervised task"
            )
        order = np.random.default_rng(self.seed).permutation(len(records))
        changed = [
            replace(record, turns=(*record.turns[:-1], records[other].turns[-1]))
            for record, other in zip(records, order, strict=True)
        ]
        return _by_name([*changed, *parts["validation"], *parts["test"]])


@dataclass(frozen=True, kw_only=True)
class ShuffledSentences(Curated):
    """A corpus whose sentences stand in random order, held-out text too: what only a longer memory could use is gone.

    A memory that gains as much on it gains by reading windows with no context missing at their beginning, not by
    reading far back (Dai et al. 2019, table 7: the shuffled One Billion Word corpus). One blank stands between two
    sentences.

    Attributes:
      corpus: of documents.
      across: sentences change places with those of all documents of the same split; False: of the same document,
        which keeps its topic and its names.
      validation, test, near_duplicates: as in `Data`.
      seed: of the order.
    """

    across: bool = True

    def documents(self, data_dir: str | Path | None = None) -> tuple[Item, ...]:
        """The documents, each with as many sentences as before.

        Raises:
          ValueError: there is a record.
        """
        rng = np.random.default_rng(self.seed)
        shuffled = []
        for part in self._split(data_dir).values():
            documents = [_document("ShuffledSentences", item) for item in part]
            for mixed in [documents] if self.across else [[document] for document in documents]:
                lists = [_sentences(document.text) for document in mixed]
                sentences = [sentence for own in lists for sentence in own]
                order = iter(rng.permutation(len(sentences)))
                for document, own in zip(mixed, lists, strict=True):
                    shuffled.append(_changed(document, " ".join(sentences[next(order)] for _ in own)))
        return _by_name(shuffled)


def _by_name(items: Sequence[Item]) -> tuple[Item, ...]:
    return tuple(sorted(items, key=lambda item: item.name))


def _changed(document: Document, text: str) -> Document:
    """The document with another text, in the place that its own had."""
    return replace(document, text=text)


def _document(what: str, item: Item) -> Document:
    if not isinstance(item, Document):
        raise ValueError(
            f"{what} changes free text, but {item.name!r} is a record; use a corpus of documents"
        )
    return item


def _take(items: Sequence[Item], characters: int) -> tuple[list[Item], list[Item]]:
    """The first so many characters of the items, and the rest; a record that does not fit is in the rest."""
    taken, rest = [], []
    for item in items:
        if len(item.text) <= characters:
            taken.append(item)
            characters -= len(item.text)
        elif characters and isinstance(item, Document):
            taken.append(_changed(item, item.text[:characters]))
            rest.append(_changed(item, item.text[characters:]))
            characters = 0
        else:
            rest.append(item)
    return taken, rest


def _level(items: Sequence[Item], characters: int) -> list[Document]:
    """The documents, the longest cut to one length so that so many characters are left."""
    documents = [_document("Diversity.characters", item) for item in items]
    _enough("characters", characters, sum(len(item.text) for item in documents), "characters to train on")
    if characters < len(documents):
        raise ValueError(
            f"Diversity.characters = {characters}: expected at least one for each of {len(documents)} documents; raise "
            "it or lower Diversity.documents_kept"
        )
    kept = []
    for rank, item in enumerate(sorted(documents, key=lambda item: len(item.text))):
        length = min(len(item.text), characters // (len(documents) - rank))
        kept.append(item if length == len(item.text) else _changed(item, item.text[:length]))
        characters -= length
    return kept


def _frequent(items: Sequence[Item], types: int) -> list[Item]:
    """What the items say in the most frequent words alone."""
    counts = Counter(word for item in items for word in _words(item.text))
    known = set(sorted(counts, key=lambda word: (-counts[word], word))[:types])
    kept = []
    for item in items:
        if isinstance(item, Document):
            text = " ".join(line for line in _sentences(item.text) if known.issuperset(_words(line)))
            if text:
                kept.append(_changed(item, text))
        elif known.issuperset(_words(item.text)):
            kept.append(item)
    _enough("types", types, types if kept else 0, "types that make a whole sentence")
    return kept


def _enough(field: str, wanted: int, there: int, what: str) -> None:
    if there < wanted:
        raise ValueError(
            f"Diversity.{field} = {wanted}: the corpus has {there} {what}; change Diversity.{field}"
        )


def _sentences(text: str) -> list[str]:
    """Pieces that end with a full stop, a question or an exclamation mark before a blank."""
    return re.split(r"(?<=[.!?])\s+", text.strip())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def inside(corpus: Any) -> Iterator[Curated]:
    """Every curated corpus that a corpus is or is made of."""
    if isinstance(corpus, Curated):
        yield corpus
    for part in (getattr(corpus, "corpus", None), *getattr(corpus, "parts", ())):
        if part is not None:
            yield from inside(part)

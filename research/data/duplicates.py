"""Exact and near duplicates among documents or records: who says the same, and who says nearly the same.

Near is the Jaccard similarity of the sets of word n-grams (shingles), found by MinHash and locality-sensitive hashing
(Broder 1997; Lee et al. 2022, section 4.2) and then computed on the sets themselves, so that nothing below the
threshold counts. Words are what stands between blanks, as written. A text inside a much longer one is not near it, as
most of the longer one is not shared: that is containment, which nothing here looks for. A language without blanks has
one word a text, so that only equal texts are alike.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import cast

import datasketch
import numpy as np
from jaxtyping import UInt32, UInt64

from research.data.documents import Item

MISSED = 1e-4  # the greatest chance that a pair exactly at the threshold is not looked at

Cluster = tuple[int, ...]


def exact(items: Iterable[Item]) -> list[Cluster]:
    """Indices of items whose texts are equal but for the kind and number of blanks between words.

    Returns:
      The clusters of two and more, each in ascending order, by their first index.
    """
    places: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        places.setdefault(" ".join(item.text.split()), []).append(index)
    return [tuple(members) for members in places.values() if len(members) > 1]


def near(
    items: Sequence[Item], threshold: float = 0.8, shingle: int = 5, permutations: int = 128, seed: int = 0
) -> list[Cluster]:
    """Indices of items that are near duplicates, or are linked by a chain of near duplicates.

    Args:
      items: documents or records; the text of a record is all its turns.
      threshold: least Jaccard similarity of two items' shingles.
      shingle: words in a shingle; a text of fewer words is one shingle.
      permutations: of MinHash: more of them allow a lower threshold.
      seed: of the permutations. Another seed can change only which pairs are missed.

    Returns:
      The clusters of two and more, each in ascending order, by their first index.

    Raises:
      ValueError: an argument is out of its range, or there are too few permutations for the threshold.
    """
    if not 0 < threshold <= 1 or shingle < 1:
        raise ValueError(
            f"near: threshold = {threshold}, shingle = {shingle}; expected 0 < threshold <= 1 and shingle >= 1"
        )
    bands = _bands(threshold, permutations)
    sets = _shingles(items, shingle)
    clusters = _Clusters(len(items))
    kept: dict[bytes, int] = {}  # equal sets are alike without being looked up, however many there are
    for index, own in enumerate(sets):
        clusters.join(kept.setdefault(own.tobytes(), index), index)

    table = datasketch.MinHashLSH(num_perm=permutations, params=bands)
    # Of n shingles at most n / (n + 1) is shared with another set, so a small one is like no other.
    first = [i for i in kept.values() if len(sets[i]) / (len(sets[i]) + 1) >= threshold]
    for i, sketch in zip(first, _sketches([sets[i] for i in first], permutations, seed), strict=True):
        for j in cast(list[int], table.query(sketch)):
            if clusters.of(i) != clusters.of(j) and jaccard(sets[i], sets[j]) >= threshold:
                clusters.join(i, j)
        table.insert(i, sketch)
    return clusters.all()


def jaccard(one: UInt64[np.ndarray, " n"], other: UInt64[np.ndarray, " m"]) -> float:
    """How much of two sets together is in both; each is given without repetition."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


class _Clusters:
    """Disjoint sets of 0..n-1 (union-find); the root of each is its least member."""

    def __init__(self, count: int):
        self._parent = list(range(count))

    def of(self, i: int) -> int:
        """The root of the set that i is in."""
        while self._parent[i] != i:
            self._parent[i] = i = self._parent[self._parent[i]]
        return i

    def join(self, i: int, j: int) -> None:
        """Make one set of those that i and j are in."""
        least, greatest = sorted((self.of(i), self.of(j)))
        self._parent[greatest] = least

    def all(self) -> list[Cluster]:
        """The sets of two and more."""
        members: dict[int, list[int]] = {}
        for i in range(len(self._parent)):
            members.setdefault(self.of(i), []).append(i)
        return [tuple(cluster) for cluster in members.values() if len(cluster) > 1]


class _WordHashes(dict[str, int]):
    """64-bit hashes of words, the same on every machine."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return self.setdefault(word, int.from_bytes(digest, "little"))


def _shingles(items: Iterable[Item], shingle: int) -> list[UInt64[np.ndarray, " _"]]:
    """The set of each item's shingles: 64-bit hashes, in ascending order; never empty."""
    powers = np.cumprod(np.full(shingle, 0x9E3779B97F4A7C15, np.uint64))
    known = _WordHashes()
    sets = []
    for item in items:
        words = item.text.split() or [""]
        hashes = np.fromiter((known[word] for word in words), np.uint64, len(words))
        width = min(shingle, len(words))
        # A polynomial of the words' hashes modulo 2^64; its factors are odd, so that it loses no bit of any word.
        sets.append(np.unique(np.lib.stride_tricks.sliding_window_view(hashes, width) @ powers[:width]))
    return sets


def _sketches(
    sets: Sequence[UInt64[np.ndarray, " _"]], permutations: int, seed: int
) -> Iterable[datasketch.MinHash]:
    """The MinHash of each set."""
    if not sets:
        return
    shared = datasketch.MinHash(permutations, seed=seed).permutations
    hashes: UInt32[np.ndarray, " n"] = (np.concatenate(sets) >> np.uint64(32)).astype(np.uint32)
    starts = np.cumsum([0] + [len(own) for own in sets[:-1]])
    # One permutation of all sets at a time, as only that needs no loop over shingles.
    least = [np.minimum.reduceat(hashes * a + b, starts) for a, b in zip(*shared, strict=True)]
    for values in np.stack(least, 1):
        yield datasketch.MinHash(hashvalues=values, permutations=shared, scheme="affine32")


def _bands(threshold: float, permutations: int) -> tuple[int, int]:
    """How many bands of how many rows: as many rows as miss no more than `MISSED` of the pairs at the threshold.

    A pair of similarity s is looked at with the chance 1 - (1 - s^rows)^bands.
    """
    for rows in range(permutations // 2, 0, -1):
        if (1 - threshold**rows) ** (permutations // rows) <= MISSED:
            return permutations // rows, rows
    raise ValueError(
        f"near: {permutations} permutations are too few to find pairs of similarity {threshold}; raise permutations "
        "or threshold"
    )

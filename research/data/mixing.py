"""Mixtures: which corpus each example comes from, and which of its windows, as pure functions of its number.

Replay is a mixture: the new domain with a weight of 0.95, the old one with 0.05. Proportions are exact over a cycle,
not on average, and the windows of the first part come in the same order whatever they are mixed with.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from research.data.augmentation import Transform
from research.data.documents import Corpus
from research.data.objectives import Objective
from research.data.windows import Format, Synthetic

ORDER = (0, 1)  # what random streams of permutations begin with: no other stream does
CYCLE = 10_000  # the longest cycle; proportions that need a longer one are rounded to it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One corpus of a mixture. What is None, `Data` says.

    Attributes:
      corpus: documents, records, or a synthetic task.
      weight: its share of the windows relative to the other parts'; None: by its number of windows.
      name: in metrics; "": the name of the corpus's class.
      objective, evaluation: what its training and held-out windows become.
      format: how its records are written out.
      transforms: what happens to its training windows before the objective.
      loss_weight: factor on the weights of its targets.
      weights: a .npy file with a weight for each of its training windows, in order, or None.
    """

    corpus: Corpus | Synthetic
    weight: float | None = None
    name: str = ""
    objective: Objective | None = None
    evaluation: Objective | None = None
    format: Format | None = None
    transforms: tuple[Transform, ...] | None = None
    loss_weight: float = 1.0
    weights: str | None = None

    def __post_init__(self):
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise ValueError(f"Part.weight = {self.weight}: expected a positive number, or None")
        if self.loss_weight < 0:
            raise ValueError(f"Part.loss_weight = {self.loss_weight}: expected at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several corpora, window by window.

    Attributes:
      parts: each with its weight, or none with one: then by size.
      temperature: T of sampling by size^(1/T): 1 is proportional, large values approach equal shares
        (Raffel et al. 2020, section 3.5.2). Only without weights.
      limit: sizes above it count as it (T5's artificial limit), or None.
    """

    parts: tuple[Part, ...]
    temperature: float = 1.0
    limit: int | None = None

    def __post_init__(self):
        weights = [part.weight for part in self.parts]
        if not self.parts or (None in weights and any(weight is not None for weight in weights)):
            raise ValueError(
                f"Mixture.parts have weights {weights}: expected at least one part, and a weight for each or none"
            )
        if self.temperature <= 0 or (self.limit is not None and self.limit < 1):
            raise ValueError(
                f"Mixture: temperature = {self.temperature}, limit = {self.limit}; expected both above 0"
            )
        if None not in weights and (self.temperature != 1 or self.limit is not None):
            raise ValueError(
                f"Mixture.temperature = {self.temperature}, limit = {self.limit}: parts have weights {weights}, so "
                "neither does anything; set Part.weight = None"
            )
        names = self.names
        if len(set(names)) != len(names):
            raise ValueError(f"Mixture.parts are named {names}: expected different names; set Part.name")

    @property
    def names(self) -> tuple[str, ...]:
        """What the parts are called in metrics."""
        return tuple(part.name or type(part.corpus).__name__.lower() for part in self.parts)

    def shares(self, sizes: Sequence[int]) -> tuple[Fraction, ...]:
        """The share of each part, which has so many windows; they sum to 1."""
        if self.parts[0].weight is not None:
            exact = [Fraction(str(part.weight)) for part in self.parts]
        else:
            capped = [min(size, self.limit or size) for size in sizes]
            exact = [Fraction(size ** (1 / self.temperature)) for size in capped]
        return tuple(share / sum(exact) for share in exact)


def cycle(shares: Sequence[Fraction]) -> Int64[np.ndarray, " n"]:
    """The parts in the order in which they take turns; each part's turns are exactly its share, evenly spread.

    Shares whose common denominator is above `CYCLE` are rounded to it by largest remainder; none is rounded to 0.
    """
    length = math.lcm(*(share.denominator for share in shares))
    if length > CYCLE:
        length = CYCLE
        turns = [max(int(share * length), 1) for share in shares]
        by_remainder = sorted(range(len(shares)), key=lambda part: turns[part] - shares[part] * length)
        for i in range(length - sum(turns)):
            turns[by_remainder[i % len(turns)]] += 1
    else:
        turns = [int(share * length) for share in shares]
    # Every turn goes to whoever lags most behind its share.
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in turns])
    return np.repeat(np.arange(len(turns)), turns)[np.argsort(places, kind="stable")]


@dataclasses.dataclass(frozen=True)
class Draw:
    """Where an example comes from: window `window` of part `part`, for the `epoch`-th time."""

    part: int
    epoch: int
    window: int


class Order:
    """The endless sequence of draws of one seed: parts take turns, each part's windows in a fresh permutation an epoch.

    Args:
      sizes: number of windows of each part.
      turns: see `cycle`.
      seed: of the permutations.
    """

    def __init__(self, sizes: Sequence[int], turns: Int64[np.ndarray, " n"], seed: int):
        self._sizes, self._turns, self._seed = tuple(sizes), turns, seed
        self._counts = np.bincount(turns, minlength=len(sizes))
        hits = turns[:, None] == np.arange(len(sizes))
        self._ranks = np.take_along_axis(np.cumsum(hits, 0), turns[:, None], 1)[:, 0] - 1

    def __getitem__(self, number: int) -> Draw:
        """The draw of example `number`."""
        lap, slot = divmod(number, len(self._turns))
        part = int(self._turns[slot])
        epoch, place = divmod(lap * int(self._counts[part]) + int(self._ranks[slot]), self._sizes[part])
        return Draw(part, epoch, int(_permutation(self._seed, part, epoch, self._sizes[part])[place]))

    def first(self, count: int) -> Int64[np.ndarray, "count 2"]:
        """Part and window of the first `count` draws."""
        laps = -(-count // len(self._turns))
        parts = np.tile(self._turns, laps)[:count]
        ids = np.empty(count, np.int64)
        for part, size in enumerate(self._sizes):
            mine = np.flatnonzero(parts == part)
            for epoch in range(-(-len(mine) // size)):
                places = mine[epoch * size : (epoch + 1) * size]
                ids[places] = _permutation(self._seed, part, epoch, size)[: len(places)]
        return np.stack([parts, ids], 1)


@functools.lru_cache(maxsize=16)
def _permutation(seed: int, part: int, epoch: int, size: int) -> Int64[np.ndarray, " size"]:
    return np.random.default_rng([*ORDER, seed, part, epoch]).permutation(size)

"""Linear regression in context: a linear function, drawn anew for every window, in symbols; and what solves it."""

import dataclasses

import numpy as np
from jaxtyping import Float64, Int32, Int64

from research.data.synthetic import Numbered, SymbolTask
from research.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRegression(SymbolTask):
    """Pairs of a random linear function, then a query: x_1 y_1 ... x_n y_n x y, each y to be predicted.

    Garg et al. 2022 and Ding et al. 2023, where x and y enter as real vectors. Different: here each coordinate of x and
    each y is one symbol, the number of its bin among `bins` of equal width within `limit` of 0; what lies beyond goes
    into the outermost. x ~ N(0, I) is moved to the centre of its bin, so that the line tells it exactly. y = w.x +
    noise is rounded only as it is written, and w ~ N(0, I / d), so that w.x has a variance of about 1 whatever the
    dimensions (there: d).

    The objective says which y are learned. Every y is scored, so `CausalLM(loss="targets")` learns each from the pairs
    before it, as Garg et al. do. `Seq2Seq` gives the pairs and the query, and the last y is the target: a prefix
    decoder and an encoder read what is given in both directions, and a causal decoder learns from no more than they,
    as in Ding et al., whose arms all learn from queries alone.

    Attributes:
      dimensions: d, of x.
      pairs: n, how many come before the query.
      least: the fewest, drawn evenly between; None: all windows have `pairs`.
      noise: standard deviation of what is added to y.
      bins: how many levels, the symbols 0 to bins - 1, of x and y alike.
      limit: where the outermost bins end, on both sides of 0, in standard deviations of x.
    """

    dimensions: int = 5
    pairs: int = 10
    least: int | None = None
    noise: float = 0.0
    bins: int = 64
    limit: float = 3.0

    def __post_init__(self):
        for name, least in (("dimensions", 1), ("noise", 0), ("bins", 2)):
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"LinearRegression.{name} = {getattr(self, name)}: expected at least {least}"
                )
        if not 1 <= self._fewest <= self.pairs:
            raise ValueError(
                f"LinearRegression: least = {self.least}, pairs = {self.pairs}; expected 1 <= least <= pairs, or None"
            )
        if not self.limit > 0:
            raise ValueError(f"LinearRegression.limit = {self.limit}: expected a positive number")

    @property
    def _fewest(self) -> int:
        return self.pairs if self.least is None else self.least

    @property
    def tokens(self) -> int:
        """The most tokens of a sample."""
        return (self.pairs + 1) * (self.dimensions + 1)

    @property
    def needs(self) -> int:
        """One for each bin."""
        return self.bins

    @property
    def centres(self) -> Float64[np.ndarray, " bins"]:
        """The numbers that the symbols stand for."""
        return ((2 * np.arange(self.bins) + 1) / self.bins - 1) * self.limit

    def draw(
        self, rng: np.random.Generator
    ) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, "n d"], Float64[np.ndarray, " n"]]:
        """The weights, and x and y of all points, the query last; y as it is before it is written."""
        points = int(rng.integers(self._fewest, self.pairs + 1)) + 1
        w = rng.standard_normal(self.dimensions) / np.sqrt(self.dimensions)
        x = self.centres[self._bins(rng.standard_normal((points, self.dimensions)))]
        # A product by a library for matrices would differ between machines in the last bit.
        return w, x, (x * w).sum(-1) + self.noise * rng.standard_normal(points)

    def write(self, rng: np.random.Generator, size: int) -> Numbered:
        """The bins of a draw; every y is scored, the first too, though nothing tells of it yet."""
        _, x, y = self.draw(rng)
        scored = np.tile(np.arange(self.dimensions + 1) == self.dimensions, (len(y), 1))
        return self._bins(np.column_stack([x, y])).ravel(), scored.ravel()

    def answer(self, before: list[int], size: int) -> int:
        """The bin of the least-squares prediction.

        It is no exact solver: the true y may lie in another bin, because of the noise and of what the bins leave out.
        """
        rows = self.centres[np.array([*before, 0]).reshape(-1, self.dimensions + 1)]
        return int(self._bins(least_squares(rows[:, :-1], rows[:, -1]))[-1])

    def values(
        self, ids: Int32[np.ndarray, " m"], tokenizer: Tokenizer
    ) -> tuple[Float64[np.ndarray, "n d"], Float64[np.ndarray, " n"]]:
        """x and y that tokens of whole points stand for: the centres of their bins.

        Raises:
          ValueError: the tokens are no whole points, or some are no bins.
        """
        levels = self.symbols(tokenizer)[: self.bins]
        if len(ids) % (self.dimensions + 1) or not np.isin(ids, levels).all():
            raise ValueError(
                f"LinearRegression.values got {len(ids)} tokens: expected {self.dimensions + 1} for each point, all of "
                f"them among the first {self.bins} text ids"
            )
        rows = self.centres[np.searchsorted(levels, ids).reshape(-1, self.dimensions + 1)]
        return rows[:, :-1], rows[:, -1]

    def bayes(self, x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """At each point, the expected y given the points before it, from numbers as the line tells them.

        Rounding counts as noise of its own, with the variance of an even spread over a bin. That is all but the best
        predictor that is linear in y: it leaves out that numbers beyond the limit are written smaller than they are.
        """
        rounding = (2 * self.limit / self.bins) ** 2 / 12
        return ridge(x, y, self.dimensions * (self.noise**2 + rounding))

    def _bins(self, numbers: Float64[np.ndarray, "*n"]) -> Int64[np.ndarray, "*n"]:
        levels = np.floor((numbers / self.limit + 1) / 2 * self.bins)
        return np.clip(levels, 0, self.bins - 1).astype(np.int64)


def least_squares(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """At each point, the prediction of the least-squares fit to the points before it; of many fits, the smallest."""
    return np.array([x[i] @ np.linalg.lstsq(x[:i], y[:i])[0] for i in range(len(x))])


def ridge(
    x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, " n"], strength: float
) -> Float64[np.ndarray, " n"]:
    """At each point, the prediction of the fit to the points before it that pays `strength` * |w|^2.

    With the variance of the noise divided by that of each weight as strength, it is the mean of the posterior (Hoerl
    and Kennard 1970; Bishop 2006, section 3.3.1).

    Args:
      x, y: of the points.
      strength: above 0.
    """
    penalty = strength * np.eye(x.shape[1])
    return np.array(
        [x[i] @ np.linalg.solve(x[:i].T @ x[:i] + penalty, x[:i].T @ y[:i]) for i in range(len(x))]
    )

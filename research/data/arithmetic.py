"""Synthetic tasks on numbers: addition written as text, and linear regression in context."""

import dataclasses

import numpy as np
from jaxtyping import Float64, Int32, Int64

from research.data.synthetic import Numbered, SymbolTask, TextTask, written
from research.data.tokenizers import Tokenizer
from research.data.windows import TokenWindow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Addition(TextTask):
    """The sum of two numbers of equally many digits, as "12+34=46".

    Plain or with the sum reversed, as in Lee et al. 2023 ("Teaching Arithmetic to Small Transformers"), padded with
    zeros or not.

    Attributes:
      digits: the most digits of a number.
      least: the fewest, drawn evenly between; None: all numbers have `digits`.
      reverse: the sum is written from its last digit to its first; the numbers are not.
      pad: numbers may begin with zeros and the sum always has one digit more than they. Otherwise neither begins with
        one, except for 0 itself.
    """

    digits: int = 3
    least: int | None = None
    reverse: bool = False
    pad: bool = True

    def __post_init__(self):
        # Python reads at most 4300 digits as one number.
        if not 1 <= (self.digits if self.least is None else self.least) <= self.digits <= 4000:
            raise ValueError(
                f"Addition: least = {self.least}, digits = {self.digits}; expected 1 <= least <= digits <= 4000"
            )

    @property
    def tokens(self) -> int:
        """The most characters of a sample, hence the most tokens."""
        return 3 * self.digits + 3

    def sample(self, rng: np.random.Generator, tokenizer: Tokenizer) -> TokenWindow:
        """One window; everything random comes from `rng`."""
        count = int(rng.integers(self.digits if self.least is None else self.least, self.digits + 1))
        numbers = rng.integers(10, size=(2, count))
        if not self.pad and count > 1:
            numbers[:, 0] = rng.integers(1, 10, size=2)
        first, second = ("".join(map(str, digits)) for digits in numbers.tolist())
        total = str(int(first) + int(second)).zfill(count + 1 if self.pad else 1)
        return written(f"{first}+{second}=", total[::-1] if self.reverse else total, tokenizer)

    def solve(self, given: str) -> str:
        """The sum, added digit by digit with a carry."""
        first, second = given.rstrip("=").split("+")
        total, carry = [], 0
        for a, b in zip(reversed(first), reversed(second), strict=True):
            carry, digit = divmod(int(a) + int(b) + carry, 10)
            total.append(str(digit))
        if carry or self.pad:
            total.append(str(carry))
        return "".join(total if self.reverse else reversed(total))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRegression(SymbolTask):
    """Points of a random linear function, one after another: x_1 y_1 x_2 y_2 ..., each y to be predicted.

    Garg et al. 2022: w ~ N(0, I), x ~ N(0, I), y = w.x + noise; the optimum without noise is least squares. Different:
    there x and y enter as real vectors; here each coordinate of x and each y becomes one symbol, the number of its bin
    among `bins` of equal width within three standard deviations of 0; what lies beyond goes into the outermost.

    Attributes:
      dimensions: of x.
      points: in a sample.
      noise: standard deviation of what is added to y.
      bins: how many levels, the symbols 0 to bins - 1.
    """

    dimensions: int = 5
    points: int = 11
    noise: float = 0.0
    bins: int = 64

    def __post_init__(self):
        for name, least in (("dimensions", 1), ("points", 2), ("noise", 0), ("bins", 2)):
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"LinearRegression.{name} = {getattr(self, name)}: expected at least {least}"
                )

    @property
    def tokens(self) -> int:
        """Length of every sample."""
        return self.points * (self.dimensions + 1)

    @property
    def needs(self) -> int:
        """One for each bin."""
        return self.bins

    @property
    def limits(self) -> Float64[np.ndarray, " columns"]:
        """Where the outermost bins end, on both sides of 0: of the coordinates of x, and last of y."""
        spread = np.sqrt(self.dimensions + self.noise**2)
        return 3 * np.append(np.ones(self.dimensions), spread)

    def draw(
        self, rng: np.random.Generator
    ) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, "n d"], Float64[np.ndarray, " n"]]:
        """Real weights, points and their y."""
        w = rng.standard_normal(self.dimensions)
        x = rng.standard_normal((self.points, self.dimensions))
        # A product by a library for matrices would differ between machines in the last bit.
        y = (x * w).sum(-1) + self.noise * rng.standard_normal(self.points)
        return w, x, y

    def write(self, rng: np.random.Generator, size: int) -> Numbered:
        """The bins of a draw; every y is scored, the first too, though nothing tells of it yet."""
        _, x, y = self.draw(rng)
        scored = np.tile(np.arange(self.dimensions + 1) == self.dimensions, (self.points, 1))
        return self._bins(np.column_stack([x, y])).ravel(), scored.ravel()

    def answer(self, before: list[int], size: int) -> int:
        """The bin of the least-squares prediction, from the centres of the bins before.

        It is no exact solver: the true y may lie in another bin, because of the noise and of what the bins leave out.
        """
        rows = self._centres(np.array([*before, 0]).reshape(-1, self.dimensions + 1))
        guess = least_squares(rows[:, :-1], rows[:, -1])[-1]
        return int(self._bins(np.append(np.zeros(self.dimensions), guess))[-1])

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
        rows = self._centres(np.searchsorted(levels, ids).reshape(-1, self.dimensions + 1))
        return rows[:, :-1], rows[:, -1]

    def _bins(self, rows: Float64[np.ndarray, "*n columns"]) -> Int64[np.ndarray, "*n columns"]:
        levels = np.floor((rows / self.limits + 1) / 2 * self.bins)
        return np.clip(levels, 0, self.bins - 1).astype(np.int64)

    def _centres(self, bins: Int64[np.ndarray, "n columns"]) -> Float64[np.ndarray, "n columns"]:
        return ((2 * bins + 1) / self.bins - 1) * self.limits


def least_squares(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """At each point, the prediction of the least-squares fit to the points before it; of many fits, the smallest."""
    return np.array([x[i] @ np.linalg.lstsq(x[:i], y[:i])[0] for i in range(len(x))])

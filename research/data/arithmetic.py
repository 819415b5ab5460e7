"""Synthetic tasks on numbers: addition written as text."""

import dataclasses

import numpy as np

from research.data.synthetic import TextTask, written
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

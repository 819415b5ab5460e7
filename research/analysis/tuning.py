"""Learning rates chosen from a grid, with the same grid for every arm."""

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What a grid says of one arm.

    Attributes:
      losses: by rate; None where it is not known, for instance since the run diverged.
      rate: of the least loss, or None where none is known.
    """

    losses: Mapping[float, float | None]

    @property
    def rate(self) -> float | None:
        known = {rate: loss for rate, loss in self.losses.items() if loss is not None}
        return min(known, key=known.__getitem__) if known else None

    @property
    def edge(self) -> int:
        """-1 or 1 where the best rate is the least or greatest of the grid, so that a better one may lie beyond; 0."""
        rates = sorted(self.losses)
        return {rates[0]: -1, rates[-1]: 1}.get(self.rate, 0)


def extended(rates: Sequence[float], choices: Mapping[str, Choice]) -> tuple[float, ...]:
    """The grid, longer by a rate at each end where some arm has its best; the same where none has.

    The factor between rates is that of the first two, or the last two.
    """
    rates = tuple(sorted(rates))
    edges = {choice.edge for choice in choices.values()}
    below = (_rounded(rates[0] ** 2 / rates[1]),) if -1 in edges else ()
    above = (_rounded(rates[-1] ** 2 / rates[-2]),) if 1 in edges else ()
    return (*below, *rates, *above)


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


def markdown(choices: Mapping[str, Choice], *, seed: int) -> str:
    """The grid as a table: the loss of each arm at each rate, the least in bold."""
    rates = sorted({rate for choice in choices.values() for rate in choice.losses})
    lines = [["arm", *(f"{rate:g}" for rate in rates)], ["---", *["---:"] * len(rates)]]
    for arm, choice in choices.items():
        shown = []
        for rate in rates:
            loss = choice.losses.get(rate)
            text = "none" if loss is None else f"{loss:.4f}"
            shown.append(f"**{text}**" if rate == choice.rate and loss is not None else text)
        lines.append([arm, *shown])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\nHeld-out loss of validation by learning rate, seed {seed}, which no table uses. Bold: chosen.\n"

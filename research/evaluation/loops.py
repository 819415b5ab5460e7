"""Sequences that end in a loop, and the temperature at which half of them do."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from scipy import optimize, special, stats

LONGEST = 90  # tokens of a phrase that the code of Holtzman et al. looks for


@dataclasses.dataclass(frozen=True)
class Loops:
    """How sequences end, i64[b] each.

    Attributes:
      period: tokens of the phrase that is repeated; 0: no loop.
      copies: how often the sequence has it at its end, whole; 1: no loop.
      onset: the place from which on the sequence has that period; its length: no loop.
    """

    period: np.ndarray
    copies: np.ndarray
    onset: np.ndarray

    @property
    def rate(self) -> float:
        """The share of sequences that loop."""
        return float(np.mean(self.period > 0))


def loops_holtzman_code(sequences: Sequence[Int[np.ndarray, " _"]]) -> Loops:
    """The phrase of 1 to 90 tokens of which the end has most copies, the shortest of equals; it is a loop where these
    are at least 2 and the phrase has at least 3 tokens, or where they are more than 50 (the code of Holtzman et al.
    2020). A run of one token is thus none up to 50 times.
    """
    sizes, runs = _runs(sequences, LONGEST)
    copies = _copies(runs)
    best = copies.argmax(1) if len(sizes) else np.zeros(0, int)
    most = copies[np.arange(len(sizes)), best]
    return _loops(sizes, runs, best, (most > 1) & ((best >= 2) | (most > 50)))


def loops_holtzman_paper(sequences: Sequence[Int[np.ndarray, " _"]]) -> Loops:
    """The shortest phrase of at least 2 tokens that the end has at least three times (Holtzman et al. 2020)."""
    longest = max((len(line) for line in sequences), default=0) // 3
    sizes, runs = _runs(sequences, max(longest, 2))
    whole = _copies(runs) >= 3
    whole[:, 0] = False
    return _loops(sizes, runs, whole.argmax(1), np.asarray(whole.any(1)))


def _runs(sequences: Sequence[np.ndarray], longest: int) -> tuple[np.ndarray, np.ndarray]:
    """The lengths, and how many tokens at the end equal the one 1, 2, ..., `longest` places before them, [b p]."""
    sizes = np.array([len(line) for line in sequences], int)
    width = int(sizes.max(initial=0))
    ids = np.zeros((len(sizes), width), np.int64)  # from the right, the last token first
    for row, line in zip(ids, sequences, strict=True):
        row[: len(line)] = line[::-1]
    runs, place = np.zeros((len(sizes), longest), int), np.arange(width)
    for period in range(1, min(longest, width - 1) + 1):
        same = ids[:, : width - period] == ids[:, period:]
        same &= place[: width - period] < sizes[:, None] - period
        runs[:, period - 1] = np.where(same.all(1), width - period, (~same).argmax(1))
    return sizes, runs


def _copies(runs: np.ndarray) -> np.ndarray:
    return 1 + runs // np.arange(1, runs.shape[1] + 1)


def _loops(sizes: np.ndarray, runs: np.ndarray, best: np.ndarray, looping: np.ndarray) -> Loops:
    period, run = best + 1, runs[np.arange(len(sizes)), best]
    return Loops(
        period=np.where(looping, period, 0),
        copies=np.where(looping, 1 + run // period, 1),
        onset=np.where(looping, sizes - run - period, sizes),
    )


@dataclasses.dataclass(frozen=True)
class T50:
    """The temperature at which half the samples loop.

    Attributes:
      value: that temperature; of a censored one the end of the grid beyond which it lies: 0 ("left"), or the highest
        ("right").
      low, high: its interval, within the grid; of a censored one where it may be.
      censored: "left": fewer than half loop even at the lowest temperature; "right": more than half at the highest.
    """

    value: float
    low: float
    high: float
    censored: Literal["left", "right"] | None = None


def t50(
    temperatures: Sequence[float] | np.ndarray,
    looping: Sequence[int] | np.ndarray,
    samples: Sequence[int] | np.ndarray,
    level: float = 0.95,
) -> T50:
    """By a logistic fit of the share of loops, top / (1 + exp((T - m) / width)), to binomial counts: where it is 1/2.

    `top`, more than 1/2 and at most 1, is what the share comes to at low temperatures: a model may leave its loops
    again, and then with a fixed top of 1 the fit would be half of it and not half of the samples. The interval is that
    of the profile likelihood. The width is at least a fiftieth of the grid, so that counts which a step separates have
    a T50, halfway between the two temperatures.

    Args:
      temperatures: the grid, rising.
      looping, samples: how many loop at each temperature, of how many.

    Raises:
      ValueError: fewer than two temperatures, not rising, or counts that are none.
    """
    grid, hits, tries = (np.asarray(each, float) for each in (temperatures, looping, samples))
    if len(grid) < 2 or np.any(np.diff(grid) <= 0) or not len(grid) == len(hits) == len(tries):
        raise ValueError(f"t50 of temperatures {grid.tolist()}: expected at least two, rising, with counts")
    if np.any(hits < 0) or np.any(hits > tries) or np.any(tries < 1):
        raise ValueError(
            f"t50 of {hits.tolist()} loops of {tries.tolist()} samples: expected 0 to all of at least 1"
        )
    first, last = float(grid[0]), float(grid[-1])
    if hits[0] / tries[0] < 0.5:
        return T50(0.0, 0.0, first, "left")
    if hits[-1] / tries[-1] > 0.5:
        return T50(last, last, np.inf, "right")
    span = last - first
    log_widths = np.linspace(np.log(span / 50), np.log(span * 50), 41)
    tops = np.linspace(0.5, 1.0, 26)[1:]
    bounds = ((log_widths[0], log_widths[-1]), (tops[0], 1.0))

    def cost(where: Any, log_width: Any, top: Any) -> np.ndarray:
        """Minus the log-likelihood."""
        where, width, top = (np.asarray(each, float)[..., None] for each in (where, np.exp(log_width), top))
        logit = (where - grid) / width - np.log(2 * top - 1)
        with np.errstate(divide="ignore"):
            loops = np.log(top) + special.log_expit(logit)
            others = np.logaddexp(np.log(1 - top), np.log(top) + special.log_expit(-logit))
        return np.asarray(-np.sum(hits * loops + (tries - hits) * others, axis=-1))

    def profile(where: float) -> float:
        """The least cost of any width and top, from the best of a grid of them."""
        costs = cost(where, log_widths[:, None], tops)
        width, top = np.unravel_index(costs.argmin(), costs.shape)
        found = optimize.minimize(
            lambda at: float(cost(where, at[0], at[1])),
            np.array([log_widths[width], tops[top]]),
            bounds=bounds,
            method="L-BFGS-B",
        )
        return min(float(found.fun), float(costs.min()))

    # From the best of a grid: where a step separates the counts the profile is flat, and flat beyond bad ones.
    coarse = np.linspace(first, last, 101)
    costs = cost(coarse[:, None, None], log_widths[:, None], tops).min((1, 2))
    best = float(coarse[np.flatnonzero(costs <= costs.min() + 1e-9)].mean())
    near = (max(first, best - span / 50), min(last, best + span / 50))
    found = optimize.minimize_scalar(profile, bounds=near, options={"xatol": 1e-6 * span})
    value = float(found.x if found.fun < profile(best) - 1e-9 else best)
    allowed = profile(value) + stats.chi2.ppf(level, 1) / 2

    def end(edge: float) -> float:
        """Where the profile crosses what is allowed between the value and an edge of the grid; the edge if nowhere."""
        if profile(edge) <= allowed or edge == value:
            return edge
        return optimize.brentq(lambda where: profile(where) - allowed, value, edge, xtol=1e-5 * span)

    return T50(value, float(end(first)), float(end(last)))

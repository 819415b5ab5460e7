"""Budget match: one declared knob of an arm is turned until it costs what it should.

An arm is a tree of frozen dataclasses with a field `steps`. A knob is the dotted path of an integer in it, such as
`model.stack.hidden` or `steps`, or several paths that get the same value.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from research.analysis.budget import Budget

# What can be matched, of a run of so many steps.
MEASURES: dict[str, Callable[[Budget, int], float]] = {
    "params": lambda budget, steps: float(budget.parameters),
    "flops": lambda budget, steps: budget.train_flops * steps,
    "tokens_seen": lambda budget, steps: budget.tokens * steps,
    "loss_tokens": lambda budget, steps: budget.loss_tokens * steps,
}
TOLERANCE = 0.02  # of the target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """An arm that costs what it should.

    Attributes:
      arm: the changed arm.
      value: of its knob.
      measured, target: what it costs and what it should.
    """

    arm: Any
    value: int
    measured: float
    target: float

    @property
    def residual(self) -> float:
        """measured / target - 1."""
        return self.measured / self.target - 1


def match(arm: Any, *, knob: str | Sequence[str], **options: Any) -> Match:
    """The arm with its knob turned so that it costs what it should.

    Args:
      arm: to be changed.
      knob: path or paths of the integer to turn; what is measured must grow with it.
      options: see `turned_to`.

    Raises:
      ValueError: no such path, and as `turned_to`.
    """
    paths = (knob,) if isinstance(knob, str) else tuple(knob)

    def turned(value: int) -> Any:
        changed = arm
        for path in paths:
            changed = replaced(changed, path, value)
        return changed

    return turned_to(turned, " and ".join(paths), **options)


def turned_to(
    turned: Callable[[int], Any],
    knob: str,
    *,
    by: str,
    target: float,
    cost: Callable[[Any], Budget],
    low: int = 1,
    high: int = 2**20,
    multiple: int = 1,
    tolerance: float = TOLERANCE,
) -> Match:
    """The arm that costs `target`, of those that a knob can be turned to.

    Args:
      turned: a value of the knob to the arm that has it; what is measured must grow with it.
      knob: what it is called where something is wrong.
      by: a name of MEASURES.
      target: what it should cost; see `total`.
      cost: the budget of a batch of an arm.
      low, high: the range of the knob.
      multiple: what its value has to be a multiple of, e.g. the number of heads for a width.
      tolerance: the greatest |residual|.

    Raises:
      ValueError: no such measure, the arm refuses a value, or no value comes close enough; one line.
    """

    def measure(step: int) -> float:
        changed = turned(step * multiple)
        return total(cost(changed), changed.steps, by)

    step, measured = solve(measure, target, max(1, -(-low // multiple)), max(1, high // multiple))
    found = Match(arm=turned(step * multiple), value=step * multiple, measured=measured, target=target)
    if abs(found.residual) > tolerance:
        raise ValueError(
            f"match by {by!r}: {knob} = {found.value} is nearest, but costs {measured:.6g} for a target of "
            f"{target:.6g} ({found.residual:+.1%}), expected within {tolerance:.0%}; choose a finer knob"
        )
    return found


def total(budget: Budget, steps: int, by: str) -> float:
    """What a run of so many steps costs by that measure.

    Raises:
      ValueError: there is no such measure.
    """
    if by not in MEASURES:
        raise ValueError(f"match by {by!r}: expected one of {sorted(MEASURES)}")
    return MEASURES[by](budget, steps)


def solve(measure: Callable[[int], float], target: float, low: int, high: int) -> tuple[int, float]:
    """The integer in [low, high] whose measure is nearest to the target, and that measure; it must grow with it."""
    below, above = low, low
    known = {low: measure(low)}
    while known[above] < target and above < high:  # look far only where near is not enough
        below, above = above, min(2 * above, high)
        known[above] = measure(above)
    if known[above] < target:
        return above, known[above]
    while above - below > 1:
        middle = (below + above) // 2
        known[middle] = measure(middle)
        below, above = (middle, above) if known[middle] < target else (below, middle)
    nearest = min((below, above), key=lambda value: abs(known[value] - target))
    return nearest, known[nearest]


def value_at(tree: Any, path: str) -> Any:
    """The value at a dotted path of dataclasses.

    Raises:
      ValueError: there is none; one line.
    """
    for name in path.split("."):
        fields = [field.name for field in dataclasses.fields(tree)] if dataclasses.is_dataclass(tree) else []
        if name not in fields:
            raise ValueError(
                f"knob {path!r}: {type(tree).__name__} has no field {name!r}, expected one of {fields or 'none'}"
            )
        tree = getattr(tree, name)
    return tree


def replaced(tree: Any, path: str, value: Any) -> Any:
    """The tree with the value at a dotted path of frozen dataclasses changed.

    Raises:
      ValueError: there is no such path, or a dataclass refuses the value; one line.
    """
    value_at(tree, path)
    name, _, rest = path.partition(".")
    inner = replaced(getattr(tree, name), rest, value) if rest else value
    return dataclasses.replace(tree, **{name: inner})

"""Replays: what the code of now makes of a run of three steps, to tell whether it still measures what a row says.

The steps read the run's first windows, but are a whole run: the learning rate rises, peaks and falls within them, since
in the first three steps of a warm-up an optimiser moves nothing. Held-out losses and evaluations read a few windows.

A replay of an arm that starts from another begins with one of that arm, and goes on from its parameters. It compares
code, for which any parameters will do, so it needs no run folder; and what the code of the other arm has come to do is
found in this one too.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import experiment, machine
from experiments.experiment import Experiment, dataset, trainer
from research.data.pipeline import Dataset
from research.evaluation.trained import Evaluation, Known, Trained
from research.training.ensemble import Solo
from research.training.remedies import Inherited
from research.training.sharding import Placement
from research.training.step import Trainer

STEPS = 3
WINDOWS = 16  # that are held out
TOLERANCE = 1e-5  # relative: rounding moves a loss by less, and hardly any change of what is computed does


def replayed(
    planned: Experiment,
    evaluations: Mapping[str, Evaluation],
    data_dir: str | None,
    placed: Placement | None,
) -> dict[str, Any]:
    """`losses` of each step, `evaluation`, the held-out loss after them, and `scores` of the evaluations then.

    Nothing is saved, and hard examples are not chosen. `placed`: where it runs; see `machine.placement`.
    """
    functions, solo, base, params, losses, _ = _trained(planned, data_dir, placed)
    few = dataset(planned.data, data_dir).fewer(WINDOWS)
    trained = Trained(
        trainer=functions, params=params, text=few, seed=planned.seed, place=solo.whole, base=lambda: base
    )
    return {
        "losses": losses,
        "evaluation": functions.evaluate(params, solo.whole(few.held_out("test"))),
        "scores": {
            name: dict(_rehearsed(evaluation, few, data_dir)(trained))
            for name, evaluation in evaluations.items()
        },
    }


def _rehearsed(evaluation: Evaluation, text: Dataset, data_dir: str | None) -> Evaluation:
    """The evaluation, asking what a short run makes of each model that it asks, so that no run folder is needed."""
    train = functools.partial(_of_base, data_dir=data_dir)
    return experiment.asking(evaluation, lambda stage: Known(*stage.shortly(text, train)))


class _Short(NamedTuple):
    """A run of `STEPS` steps: what it was trained with, the parameters that it began with and those that count, the
    loss of each step, and what its remedies kept.
    """

    functions: Trainer
    solo: Solo
    base: Any
    params: Any
    losses: list[float]
    kept: Inherited


def _trained(planned: Experiment, data_dir: str | None, placed: Placement | None) -> _Short:
    text = dataset(planned.data, data_dir)
    recipe = planned.recipe.rehearsed(WINDOWS)
    short = dataclasses.replace(planned, steps=STEPS, early_stopping=None, recipe=recipe)
    functions = trainer(short, text.tokenizer.vocab_size)
    solo = Solo(functions, rows=planned.data.batch, placement=placed)
    start, base = planned.init_from, functools.partial(_of_base, data_dir=data_dir)
    params, inherited = None, None
    if start is not None:
        params, kept = start.rehearsed(planned.model, text.tokenizer, data_dir, base)
        inherited = experiment.inherited(planned, data_dir) if kept is None else kept
    state = solo.initial(jax.random.key(planned.seed), short.numbers, params)
    begun = jax.tree.map(jnp.copy, state.params)
    state = solo.join([solo.prepared(state, text, planned.seed, inherited)])
    losses = []
    with contextlib.closing(text.training(planned.seed, host=solo.host, hosts=solo.hosts)) as batches:
        for batch in itertools.islice(batches, STEPS):
            state, metrics = solo.step(state, solo.place([batch]), np.ones(1, bool))
            losses.append(float(metrics["loss"][0]))
    done = solo.member(state, 0)
    kept = tuple(zip(recipe.remedies, done.kept, strict=True))
    return _Short(functions, solo, begun, done.evaluated, losses, kept)


def _of_base(base: Experiment, data_dir: str | None) -> tuple[Any, Inherited]:
    """The parameters of a short run of what another experiment starts from, and what its remedies kept."""
    placed = machine.placement(base)
    with machine.surroundings(base, placed):
        short = _trained(base, data_dir, placed)
        return jax.device_get(short.params), tuple((each, jax.device_get(kept)) for each, kept in short.kept)


def furthest(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """The greatest relative difference between the numbers of two replays; infinite where only one has a number, but
    scores of evaluations that only one knows do not count.
    """
    names = before["scores"].keys() & after["scores"].keys()
    one, two = (
        dict(numbers({**replay, "scores": {name: replay["scores"][name] for name in names}}))
        for replay in (before, after)
    )
    if one.keys() != two.keys():
        return math.inf
    moved = [abs(one[path] - two[path]) / max(abs(one[path]), 1e-12) for path in one]
    return math.inf if any(map(math.isnan, moved)) else max(moved)


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in nested mappings and lists, each with the path to it."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from numbers(part, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from numbers(part, f"{path}.{index}")
    elif value is not None:
        yield path, float(value)

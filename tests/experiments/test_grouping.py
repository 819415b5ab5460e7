"""Which cells may train together, and how it is found out whether they should."""

import dataclasses

import pytest
from rich.console import Console

from experiments import experiment, grouping
from research.data.corpora import StandardLibrary
from research.data.weighting import HardExamples

FILES = ["configs/architecture/prefix_lm.gin", "configs/scale/smoke.gin"]


@pytest.fixture(scope="module")
def planned():
    loaded, _ = experiment.load(FILES)
    data = dataclasses.replace(loaded.data, corpus=StandardLibrary(), batch=4, held_out=16, window=64)
    return dataclasses.replace(loaded, data=data)


def changed(planned, **changes):
    return dataclasses.replace(planned, **changes)


def test_seeds_and_numbers_share_a_program_and_masks_and_lengths_do_not(planned):
    faster = dataclasses.replace(planned.optimizer, learning_rate=1.0)
    longer = dataclasses.replace(planned.data, window=32)
    causal, _ = experiment.load(["configs/architecture/causal_lm.gin", FILES[1]])
    cells = [
        planned,
        changed(planned, seed=1),
        changed(planned, optimizer=faster),
        changed(planned, data=longer),
        changed(planned, model=causal.model),
        changed(planned, steps=7),
        changed(planned, matmul_precision="bfloat16"),
    ]
    assert grouping.shapes(cells, None) == [[0, 1, 2], [3], [4], [5], [6]]


def test_what_depends_on_the_model_runs_alone(planned):
    mined = dataclasses.replace(planned.data, hard=HardExamples())
    cells = [changed(planned, data=mined), changed(planned, data=mined, seed=1)]
    assert grouping.shapes(cells, None) == [[0], [1]]


def test_short_work_is_not_worth_a_probe_and_long_work_is(planned):
    assert not grouping.worth_a_probe([planned] * 4, None)
    assert grouping.worth_a_probe([changed(planned, steps=10**6)] * 4, None)
    assert not grouping.worth_a_probe([changed(planned, steps=10**6)], None)


@pytest.mark.slow
def test_the_fastest_way_is_chosen_by_trying_all(planned, capsys):
    cells = [changed(planned, seed=seed) for seed in range(3)]
    with grouping.Workers(2) as workers:
        chosen = grouping.choose(cells, workers, 2, None, Console())
    said = capsys.readouterr().out
    assert chosen in ("alone", "ensemble", "processes")
    for way in ("alone", "ensemble", "processes"):
        assert f"{way} " in said

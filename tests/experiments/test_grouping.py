"""Which cells may train together, and how it is found out whether they should."""

import dataclasses
import os
import signal
import time
from pathlib import Path
from threading import BrokenBarrierError

import pytest
from rich.console import Console

from experiments import experiment, grouping
from research.data import local
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
        changed(
            planned, plan=dataclasses.replace(planned.plan, evaluate_every=7)
        ),  # the loop follows one plan
    ]
    assert grouping.shapes(cells, None) == [[0, 1, 2], [3], [4], [5], [6], [7]]


def test_what_depends_on_the_model_runs_alone(planned):
    mined = dataclasses.replace(planned.data, hard=HardExamples())
    cells = [changed(planned, data=mined), changed(planned, data=mined, seed=1)]
    assert grouping.shapes(cells, None) == [[0], [1]]


def test_short_work_is_not_worth_a_probe_and_long_work_is(planned):
    assert not grouping.worth_a_probe([planned] * 4, None)
    assert grouping.worth_a_probe([changed(planned, steps=10**6)] * 4, None)
    assert not grouping.worth_a_probe([changed(planned, steps=10**6)], None)


class Pool:
    """Workers that say how long a step takes them, or fail."""

    count = 2

    def __init__(self, seconds):
        self.seconds = seconds

    def speed(self, planned, data_dir):
        return ways(self.seconds)


def ways(seconds):
    if seconds is None:
        raise RuntimeError("out of memory,\nand more")
    return seconds


@pytest.mark.parametrize(
    ("alone", "together", "workers", "best"),
    [
        (3.0, 4.0, 5.0, "ensemble"),  # a step of two together is 2 s each, of two processes 2.5 s each
        (3.0, None, 5.0, "processes"),
        (3.0, None, None, "alone"),
        (None, 9.0, None, "ensemble"),
        (None, None, None, "alone"),
    ],
)
def test_a_way_that_fails_is_not_chosen(planned, monkeypatch, capsys, alone, together, workers, best):
    monkeypatch.setattr(grouping, "speed", lambda cells, _: ways(alone if len(cells) == 1 else together))
    assert grouping.choose([planned] * 3, Pool(workers), 2, None, Console(width=200)) == best
    failed = capsys.readouterr().out.count("out of memory, and more")
    assert failed == [alone, together, workers].count(None)


@pytest.mark.slow
def test_workers_that_fail_to_probe_wait_for_nobody_and_can_be_asked_again(planned):
    refused = changed(planned, data=dataclasses.replace(planned.data, corpus=local.TextFiles(pattern="no/*")))
    with grouping.Workers(2) as workers:
        with pytest.raises((ValueError, BrokenBarrierError)):
            workers.speed([planned, refused], None)
        assert workers.speed([planned], None) > 0


@pytest.mark.slow
def test_the_fastest_way_is_chosen_by_trying_all(planned, capsys):
    cells = [changed(planned, seed=seed) for seed in range(3)]
    with grouping.Workers(2) as workers:
        chosen = grouping.choose(cells, workers, 2, None, Console())
    said = capsys.readouterr().out
    assert chosen in ("alone", "ensemble", "processes")
    for way in ("alone", "ensemble", "processes"):
        assert f"{way} " in said


def told_to_stop(_):
    """How the process of a worker takes the signals that stop it, between runs."""
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.slow
def test_a_worker_that_waits_ends_without_a_word_when_it_is_told_to_stop():
    with grouping.Workers(1) as workers:
        ((_, found),) = workers.each(told_to_stop, [0])
    assert found == [signal.SIG_DFL] * 2


def runs(number):
    """Whether there is a process of this number."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def counted(item):
    """Note that it was begun; some are killed, each time or until they run alone."""
    folder, number, fate = item
    # A process that is stopped leaves its file; that it does not run is seen by its number.
    others = [path for path in Path(folder).glob("*.running") if runs(int(path.stem))]
    own = Path(folder) / f"{os.getpid()}.running"
    own.touch()
    with (Path(folder) / f"{number}.begun").open("a") as file:
        file.write("x")
    if fate == "killed" or (fate == "crowded" and others):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    own.unlink()
    return number


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_only_the_item_that_dies_alone_too(tmp_path):
    """One runs out of memory wherever it runs, one where another runs beside it."""
    fates = ["whole", "crowded", "whole", "killed", "whole", "whole"]
    items = [(str(tmp_path), number, fate) for number, fate in enumerate(fates)]
    with grouping.Workers(2) as workers:
        found = {number: made for (_, number, _), made in workers.each(counted, items)}
    assert sorted(found) == list(range(6))
    assert "its process was killed twice" in str(found.pop(3))
    assert found == {number: number for number in found}
    begun = [len((tmp_path / f"{number}.begun").read_text()) for number in range(6)]
    assert begun[3] == 2
    assert max(begun) == 2
    assert begun.count(1) >= 2  # what waited was not touched

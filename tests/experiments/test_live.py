"""What a terminal shows of a launch is what the run folders say."""

import io
import json
import os
from types import SimpleNamespace

import pytest
from rich.console import Console

from experiments import live
from experiments.live import Board

BEGAN = 1000.0


@pytest.fixture
def clock(monkeypatch):
    """The time, which only a test changes."""
    now = SimpleNamespace(seconds=BEGAN)
    monkeypatch.setattr(live, "time", SimpleNamespace(time=lambda: now.seconds))
    return now


@pytest.fixture
def cells(tmp_path, clock):
    """Four cells of 100 steps; a board that shows them begins now."""
    return [
        SimpleNamespace(
            title=f"causal seed {seed}",
            job=SimpleNamespace(planned=SimpleNamespace(steps=100), folder=tmp_path / str(seed)),
        )
        for seed in range(4)
    ]


def log(cell, *lines, rest="", at=BEGAN + 1):
    folder = cell.job.folder
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + rest)
    os.utime(folder / "metrics.jsonl", (at, at))


def shown(board):
    out = io.StringIO()
    Console(file=out, width=120).print(board.view())
    return [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]


def test_before_anything_runs_there_are_cells_and_nothing_else(cells):
    assert shown(Board(cells)) == ["0 of 4 cells done, 0 running"]


def test_a_cell_that_runs_has_its_step_loss_and_speed(cells, clock):
    board = Board(cells)
    log(cells[0], {"step": 10, "loss": 9.0}, {"step": 20, "loss": 3.14159, "tokens_per_second": 12345.6})
    log(cells[2], {"step": 30, "validation_loss": 2.0})  # of an evaluation
    log(cells[3], {"step": 10, "loss": None, "tokens_per_second": None})  # not a number
    clock.seconds += 60
    head, *lines = shown(board)
    assert head == "0 of 4 cells done, 3 running, about 6 min left"  # 60 of 400 steps took a minute
    assert [line.replace("━", "").replace("╸", "").replace("╺", "").split() for line in lines] == [
        ["causal", "seed", "0", "20/100", "loss", "3.142", "12,346", "tokens/s"],
        ["causal", "seed", "2", "30/100"],
        ["causal", "seed", "3", "10/100"],
    ]


def test_a_cell_that_ended_is_counted_and_one_that_failed_is_named(cells, clock):
    board = Board(cells)
    log(cells[0], {"step": 100, "loss": 1.0})
    log(cells[1], {"step": 40, "loss": 1.0})
    log(cells[2], {"step": 50, "loss": 2.0})
    board.done(cells[0], 1.0)
    board.done(cells[1], RuntimeError("its loss is no number"))
    clock.seconds += 900
    lines = shown(board)
    assert lines[0] == "2 of 4 cells done, 1 running, about 9 min left"  # 250 of 400 steps took 15
    assert lines[1].startswith("causal seed 2")
    assert lines[2:] == ["failed: causal seed 1"]


def test_a_line_that_is_being_written_waits(cells):
    board = Board(cells)
    log(cells[0], {"step": 20, "loss": 3.0}, rest='{"step": 30, "lo')
    log(cells[1], rest='{"st')
    log(cells[2])
    head, line = shown(board)
    assert head.startswith("0 of 4 cells done, 1 running")
    assert line.endswith("20/100  loss 3.000")


def test_the_newest_line_is_found_in_a_long_log(cells):
    log(cells[0], *({"step": step, "loss": 1 / step} for step in range(1, 1000)))
    assert live.last(cells[0].job.folder, since=0) == {"step": 999, "loss": 1 / 999}


def test_what_an_earlier_launch_left_does_not_run(cells):
    board = Board(cells)
    log(cells[0], {"step": 90, "loss": 1.0}, at=BEGAN - 1)
    assert shown(board) == ["0 of 4 cells done, 0 running"]


@pytest.mark.parametrize("before", [20, 80])
def test_steps_of_an_earlier_launch_do_not_count_for_the_speed(cells, clock, before):
    log(cells[0], {"step": before, "loss": 1.0}, at=BEGAN - 1)
    board = Board(cells[:1])
    log(cells[0], {"step": before - 10, "loss": 1.0})  # from an earlier checkpoint
    clock.seconds += 60
    assert shown(board)[0] == "0 of 1 cells done, 1 running"
    log(cells[0], {"step": before + 10, "loss": 1.0})
    minutes = (100 - before - 10) // 10 * 2
    clock.seconds += 60
    assert shown(board)[0] == f"0 of 1 cells done, 1 running, about {minutes} min left"


def test_steps_of_this_launch_count_from_the_first(cells, clock):
    board = Board(cells[:1])
    log(cells[0], {"step": 80, "loss": 1.0})  # more than half before the first look
    clock.seconds += 240
    assert shown(board)[0] == "0 of 1 cells done, 1 running, about 1 min left"


def test_a_launch_of_many_cells_at_once_stays_on_the_screen(tmp_path, cells):
    many = [SimpleNamespace(title=f"arm [{i}]", job=cells[0].job) for i in range(live.SHOWN + 5)]
    log(cells[0], {"step": 20, "loss": 3.0})
    head, *lines = shown(Board(many))
    assert f"{live.SHOWN + 5} running" in head
    assert len(lines) == live.SHOWN
    assert lines[0].startswith("arm [0] ")  # a name is no markup


@pytest.mark.parametrize("terminal", [True, False])
def test_it_is_shown_in_a_terminal_and_nowhere_else(cells, terminal):
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=terminal)
    with Board(cells).shown(console):
        pass
    assert ("0 of 4 cells done" in out.getvalue()) == terminal
    assert bool(out.getvalue()) == terminal
    empty = io.StringIO()
    with Board([]).shown(Console(file=empty, force_terminal=terminal)):
        pass
    assert empty.getvalue() == ""

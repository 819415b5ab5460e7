"""Trackers: what TensorBoard reads is the log, each step once, and a tracker that fails ends nothing."""

import dataclasses
import io
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from test_loop import Batches, lines, member
from test_step import CAUSAL

from experiments import configs, experiment
from research.training import loop, meters, trackers
from research.training.checkpoints import Checkpoints
from research.training.ensemble import Ensemble, Solo
from research.training.optimizers import AdamW
from research.training.step import Trainer

CONFIG = "train.steps = 30\ntrain.seed = 1"


@pytest.fixture(scope="module")
def trainer():
    return Trainer(CAUSAL, vocab=40, optimizer=AdamW(learning_rate=1e-2), steps=60)


def events(folder):
    """All records of a folder's event files in the order in which readers take them."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            parts = data[:8], data[12 : 12 + length]
            sums = struct.unpack("<I", data[8:12]) + struct.unpack("<I", data[12 + length : 16 + length])
            assert sums == tuple(masked_crc32c(part) for part in parts)
            yield Event.FromString(parts[1])
            data = data[16 + length :]


def scalars(folder):
    """(step, name, value) that are shown: a start drops what stands at its step and later ones."""
    shown = []
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            shown = [one for one in shown if one[0] < event.step]
        values = event.summary.value
        shown += [(event.step, v.tag, v.simple_value) for v in values if v.HasField("simple_value")]
    return shown


def texts(folder):
    values = [value for event in events(folder) for value in event.summary.value]
    return [v.tensor.string_val[0].decode() for v in values if v.metadata.plugin_data.plugin_name == "text"]


def logged(folder):
    """The same of metrics.jsonl; TensorBoard keeps float32."""
    return [
        (line["step"], name, float(np.float32(value)))
        for line in lines(folder)
        for name, value in line.items()
        if name != "step" and value is not None
    ]


def go(trainer, members, steps=30, *, engine=None, console=None, **plan):
    engine = engine or (Solo(trainer, rows=4) if len(members) == 1 else Ensemble(trainer, len(members)))
    return loop.run(
        engine,
        [dataclasses.replace(one, config=CONFIG) for one in members],
        steps=steps,
        plan=loop.Plan(**plan),
        work=loop.Work(tokens=lambda batch: 24, flops=1e6, peak=1e9),
        console=console or Console(quiet=True),
    )


class Spiking(Solo):
    """Says of one step that its loss was five times what it is."""

    steps = 0

    def step(self, group, batches, running):
        state, metrics = super().step(group, batches, running)
        self.steps += 1
        return state, metrics | {"loss": metrics["loss"] * (5 if self.steps == 43 else 1)}


def test_events_are_the_lines_of_the_log_and_the_config_as_text(trainer, tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        one = member(trainer, tmp_path / "run", checkpoints, trackers=(trackers.TensorBoard(),))
        go(trainer, [one], 60, engine=Spiking(trainer, rows=4), evaluate_every=20)
    assert scalars(tmp_path / "run") == logged(tmp_path / "run")
    names = {name for _, name, _ in scalars(tmp_path / "run")}
    assert {"loss", "grad_norm", "tokens_per_second", "utilisation", "validation_loss", "spike"} <= names
    (config,) = texts(tmp_path / "run")
    assert [line.strip() for line in config.splitlines()] == CONFIG.splitlines()


def test_a_run_that_went_beyond_its_checkpoint_and_died_shows_each_step_once(trainer, tmp_path):
    for broken in ([12], [27], []):
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            one = member(trainer, tmp_path / "run", checkpoints, trackers=(trackers.TensorBoard(),))
            one = dataclasses.replace(one, batches=Batches(0, broken))
            go(trainer, [one], log_every=1, checkpoint_every=5)
    steps = [step for step, name, _ in scalars(tmp_path / "run") if name == "loss"]
    assert steps == list(range(1, 31))
    assert scalars(tmp_path / "run") == logged(tmp_path / "run")
    everything = [v for event in events(tmp_path / "run") for v in event.summary.value if v.tag == "loss"]
    assert len(everything) > 30  # what was superseded is there, and not shown
    assert len(texts(tmp_path / "run")) == 1


def test_members_of_an_ensemble_have_their_own_events(trainer, tmp_path):
    with Checkpoints(tmp_path / "a") as first, Checkpoints(tmp_path / "b") as second:
        members = [
            member(trainer, tmp_path / f"run-{seed}", kept, seed=seed, trackers=(trackers.TensorBoard(),))
            for seed, kept in enumerate((first, second))
        ]
        go(trainer, members, 20)
    shown = [scalars(tmp_path / f"run-{seed}") for seed in range(2)]
    assert shown == [logged(tmp_path / f"run-{seed}") for seed in range(2)]
    assert shown[0] != shown[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failing(trackers.Tracker):
    """Fails where it is told to: "open", "write" or "close"; what it was asked is in `heard`."""

    where: str
    heard: list = dataclasses.field(default_factory=list, compare=False)

    def open(self, folder, title, config, *, first):
        return _Failing(self)._act("open", first)


class _Failing(trackers.Writer):
    def __init__(self, tracker):
        self._tracker = tracker

    def _act(self, what, value):
        self._tracker.heard.append((what, value))
        if what == self._tracker.where:
            raise OSError("no route to [host]")
        return self

    def write(self, step, values):
        self._act("write", step)

    def close(self, *, complete):
        self._act("close", complete)


@pytest.mark.parametrize(
    ("where", "said", "heard"),
    [
        ("open", "cannot be opened", [("open", 0)]),
        (
            "write",
            "failed at step 10 and is switched off",
            [("open", 0), ("write", 10), ("close", False)],
        ),
        (
            "close",
            "could not be closed",
            [("open", 0), ("write", 10), ("write", 20), ("write", 30), ("close", True)],
        ),
    ],
)
def test_a_tracker_that_fails_is_reported_once_and_ends_nothing(trainer, tmp_path, where, said, heard):
    console, failing = Console(file=io.StringIO(), width=300), Failing(where=where)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        one = member(trainer, tmp_path / "run", checkpoints, trackers=(failing, trackers.TensorBoard()))
        (outcome,) = go(trainer, [one], console=console)
    assert outcome.error is None
    assert int(outcome.state.step) == 30
    assert failing.heard == heard
    assert console.file.getvalue().splitlines() == [
        f"tracker Failing {said}: no route to [host]; the run and its metrics.jsonl go on"
    ]
    assert [line["step"] for line in lines(tmp_path / "run")] == [10, 20, 30]
    assert scalars(tmp_path / "run") == logged(tmp_path / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_events_that_find_no_room_leave_the_log_whole(trainer, tmp_path, monkeypatch):
    opened, full = Path.open, Path("/dev/full")
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, *how, **named: opened(full if "tfevents" in path.name else path, *how, **named),
    )
    console = Console(file=io.StringIO(), width=300)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        one = member(trainer, tmp_path / "run", checkpoints, trackers=(trackers.TensorBoard(),))
        (outcome,) = go(trainer, [one], 20, console=console)
    assert outcome.error is None
    assert [line["step"] for line in lines(tmp_path / "run")] == [10, 20]
    (said,) = console.file.getvalue().splitlines()
    assert said.startswith("tracker TensorBoard cannot be opened: [Errno 28] No space left on device")


def test_a_run_that_does_not_arrive_is_not_complete(trainer, tmp_path):
    tracker = Failing(where="nowhere")
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        one = member(trainer, tmp_path / "run", checkpoints, broken=[12], trackers=(tracker,))
        (outcome,) = go(trainer, [one])
        assert isinstance(outcome.error, loop.Diverged)
        one = dataclasses.replace(one, batches=Batches(0))
        go(trainer, [one])
    assert [event for event in tracker.heard if event[0] != "write"] == [
        ("open", 0),
        ("close", False),
        ("open", 0),
        ("close", True),
    ]


@pytest.mark.parametrize(("process", "heard"), [(0, ["open", "write", "close"]), (1, [])])
def test_each_tracker_is_opened_once_and_in_the_first_process_only(tmp_path, monkeypatch, process, heard):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    tracker = Failing(where="nowhere")
    tracking = trackers.Tracking((tracker, trackers.TensorBoard(), tracker), say=pytest.fail)
    tracking.open(tmp_path, "run", CONFIG, first=0)
    tracking.write({"step": 1, "loss": 1.0})
    tracking.close(complete=True)
    assert [what for what, _ in tracker.heard] == heard
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == (process == 0)


def test_what_the_log_has_as_null_is_left_out(tmp_path):
    tracking = trackers.Tracking((trackers.TensorBoard(),), say=pytest.fail)
    tracking.open(tmp_path, "run", CONFIG, first=0)
    log = meters.Metrics(tmp_path / "metrics.jsonl", first=0)
    tracking.write(log.write(step=1, loss=float("nan"), speed=None, gradient_norm=2.0))
    tracking.close(complete=True)
    assert scalars(tmp_path) == logged(tmp_path) == [(1, "gradient_norm", 2.0)]


@pytest.mark.parametrize(
    ("tracker", "package"),
    [(trackers.WeightsAndBiases(), "wandb"), (trackers.MLflow(), "mlflow")],
)
def test_a_package_that_is_missing_ends_the_run_before_its_first_step(
    trainer, tmp_path, monkeypatch, tracker, package
):
    monkeypatch.setitem(sys.modules, package, None)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        one = member(trainer, tmp_path / "run", checkpoints, trackers=(trackers.TensorBoard(), tracker))
        (outcome,) = go(trainer, [one])
    name = type(tracker).__name__
    assert isinstance(outcome.error, trackers.TrackerError)
    assert str(outcome.error) == (
        f"tracker {name} needs the package {package}, which is not installed; install it (versions are in "
        f"requirements-parity.txt) or take @trackers.{name}() out of train.trackers"
    )
    assert int(outcome.state.step) == 0


CAUSAL_LM = ["configs/architecture/causal_lm.gin"]


def test_one_line_of_gin_adds_a_tracker_and_leaves_the_key(tmp_path):
    plain, _ = experiment.load(CAUSAL_LM)
    (tmp_path / "tracked.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "from experiments import experiment\n"
        "from research.training import trackers\n"
        f"include '{CAUSAL_LM[0]}'\n"
        "experiment.train.trackers = (@trackers.WeightsAndBiases(), @trackers.MLflow())\n"
    )
    both = (trackers.WeightsAndBiases(), trackers.MLflow())
    for files, bindings in (
        ([str(tmp_path / "tracked.gin")], []),
        (CAUSAL_LM, ["train.trackers=(@WeightsAndBiases(), @MLflow())"]),
    ):
        tracked, _ = experiment.load(files, bindings)
        assert tracked.trackers == both
        assert tracked.key() == plain.key()
        assert dataclasses.replace(tracked, trackers=()) == plain


def test_what_is_no_tracker_is_refused_in_one_line():
    with pytest.raises(configs.ConfigError, match=r"Experiment.trackers = \(AdamW\(.*: expected .*Tracker"):
        experiment.load(CAUSAL_LM, ["train.trackers=(@AdamW(),)"])


def test_a_project_and_a_mode_are_gin_lines_of_their_own():
    tracked, _ = experiment.load(
        CAUSAL_LM, ["train.trackers=(@WeightsAndBiases(),)", "WeightsAndBiases.project='mine'"]
    )
    assert tracked.trackers == (trackers.WeightsAndBiases(project="mine"),)
    with pytest.raises(configs.ConfigError, match="WeightsAndBiases.mode = 'of': expected"):
        experiment.load(CAUSAL_LM, ["train.trackers=(@WeightsAndBiases(),)", "WeightsAndBiases.mode='of'"])


def test_heavy_packages_are_not_imported_with_the_library():
    code = "import sys, experiments.running; print(*{'tensorboardX', 'wandb', 'mlflow'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=configs.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []

"""Weights & Biases offline and MLflow in a database, read back; needs requirements-parity.txt (`make test-parity`)."""

import json
import struct
import sys
import time
from pathlib import Path

import pytest
from test_loop import lines, member
from test_step import CAUSAL
from test_trackers import CONFIG, go

from research.training import trackers
from research.training.checkpoints import Checkpoints
from research.training.optimizers import AdamW
from research.training.step import Trainer


@pytest.fixture(scope="module")
def trainer():
    return Trainer(CAUSAL, vocab=40, optimizer=AdamW(learning_rate=1e-2), steps=60)


def needs(package):
    return pytest.importorskip(
        package, reason=f"{package} is in requirements-parity.txt; run `make test-parity`"
    )


def logged(folder):
    return {
        (line["step"], name): value
        for line in lines(folder)
        for name, value in line.items()
        if name != "step" and value is not None
    }


def unhurried(numbers):
    """All but the speeds, which differ when a step is taken again."""
    return {at: v for at, v in numbers.items() if at[1] not in ("tokens_per_second", "utilisation")}


def train(trainer, folder, tracker, *, broken=(), steps=30):
    """One process's part of a run, which says nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        one = member(trainer, folder, checkpoints, broken=broken, trackers=(tracker,))
        (outcome,) = go(trainer, [one], steps, log_every=1, checkpoint_every=5, evaluate_every=10)
    return outcome.error


# Weights & Biases


def records(path):
    """The records of a `.wandb` file: a header of 7 bytes, then LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits in the rest of a block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of it, or its last part
            yield Record.FromString(whole)
            whole = b""


def parts(folder):
    """Of each time the run was opened: its run record, its numbers by step and name, and its exit code."""
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        found, numbers, code = None, {}, None
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                found = record.run
            if kind == "exit":
                code = record.exit.exit_code
            if kind == "history":
                values = {
                    ".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item
                }
                step = values["_step"]
                numbers |= {(step, name): v for name, v in values.items() if not name.startswith("_")}
        yield found, numbers, code


def test_weights_and_biases_offline_has_the_lines_of_the_log(trainer, tmp_path):
    needs("wandb")
    tracker = trackers.WeightsAndBiases(project="ours")
    assert train(trainer, tmp_path / "run", tracker) is None
    ((run, numbers, code),) = parts(tmp_path / "run")
    assert (run.project, run.display_name, code) == ("ours", "run", 0)
    assert numbers == logged(tmp_path / "run")
    (config,) = [json.loads(one.value_json) for one in run.config.update if one.key == "config"]
    assert config == CONFIG


def test_a_resumed_run_is_the_same_run_of_weights_and_biases_and_its_newest_folder_is_whole(
    trainer, tmp_path
):
    needs("wandb")
    tracker = trackers.WeightsAndBiases()
    assert train(trainer, tmp_path / "run", tracker, broken=[12]) is not None
    assert train(trainer, tmp_path / "run", tracker) is None
    (first, _, failed), (second, numbers, arrived) = parts(tmp_path / "run")
    assert first.run_id == second.run_id
    assert (failed, arrived) == (1, 0)
    assert numbers == logged(tmp_path / "run")


def test_members_of_an_ensemble_are_runs_of_their_own(trainer, tmp_path):
    needs("wandb")
    with Checkpoints(tmp_path / "a") as first, Checkpoints(tmp_path / "b") as second:
        members = [
            member(trainer, tmp_path / f"run-{i}", kept, seed=i, trackers=(trackers.WeightsAndBiases(),))
            for i, kept in enumerate((first, second))
        ]
        go(trainer, members, 20)
    ((one, first_numbers, _),), ((two, second_numbers, _),) = (parts(tmp_path / f"run-{i}") for i in range(2))
    assert one.run_id != two.run_id
    assert [first_numbers, second_numbers] == [logged(tmp_path / f"run-{i}") for i in range(2)]


# MLflow


def client(tracker, folder):
    from mlflow import MlflowClient

    return MlflowClient(tracker.uri or f"sqlite:///{folder}/mlflow.db")


def stored(tracker, folder):
    """The runs that are there, and all numbers of the first by step and name, with repeats."""
    store = client(tracker, folder)
    (experiment,) = [one for one in store.search_experiments() if one.name == tracker.experiment]
    runs = store.search_runs([experiment.experiment_id])
    numbers = [
        ((point.step, name), point.value)
        for name in runs[0].data.metrics
        for point in store.get_metric_history(runs[0].info.run_id, name)
    ]
    return runs, numbers


@pytest.mark.parametrize("where", [None, "sqlite:///{}/shared.db"])
def test_mlflow_has_the_lines_of_the_log_and_goes_on_in_the_same_run(trainer, tmp_path, monkeypatch, where):
    for package in ("mlflow", "sqlalchemy", "alembic"):
        needs(package)
    monkeypatch.chdir(tmp_path)  # where MLflow keeps the files of a database that has no place for them
    tracker = trackers.MLflow(experiment="ours", uri=where and where.format(tmp_path))
    folder = tmp_path / "run"
    for broken, status in (([12], "KILLED"), ([], "FINISHED")):
        assert (train(trainer, folder, tracker, broken=broken) is None) == (not broken)
        (run,), numbers = stored(tracker, folder)
        assert (run.info.run_name, run.info.status) == ("run", status)
        assert len(dict(numbers)) == len(numbers)  # each step once
    assert unhurried(dict(numbers)) == unhurried(logged(folder))
    assert set(dict(numbers)) >= set(logged(folder))
    artifact = client(tracker, folder).download_artifacts(run.info.run_id, "config.gin")
    assert Path(artifact).read_text() == CONFIG


def test_a_database_without_its_package_is_named(tmp_path, monkeypatch):
    needs("mlflow")
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(trackers.TrackerError, match="tracker MLflow needs the package sqlalchemy"):
        trackers.MLflow().open(tmp_path, "run", CONFIG, first=0)


def test_a_server_that_does_not_answer_is_reported_and_soon_left(tmp_path, monkeypatch):
    needs("mlflow")
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    said, began = [], time.monotonic()
    tracking = trackers.Tracking((trackers.MLflow(uri="http://127.0.0.1:9"),), said.append)
    tracking.open(tmp_path, "run", CONFIG, first=0)
    tracking.write({"step": 1, "loss": 1.0})
    tracking.close(complete=True)
    assert time.monotonic() - began < 60
    (line,) = said
    assert line.startswith("tracker MLflow cannot be opened: API request to http://127.0.0.1:9/")


# TensorBoard


def test_the_reader_of_tensorboard_shows_each_step_once(trainer, tmp_path):
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for broken in ([12], []):
        train(trainer, tmp_path / "run", trackers.TensorBoard(), broken=broken)
    shown = EventAccumulator(str(tmp_path / "run"), size_guidance={"scalars": 0}).Reload()
    numbers = {(p.step, name): p.value for name in shown.Tags()["scalars"] for p in shown.Scalars(name)}
    count = sum(len(shown.Scalars(name)) for name in shown.Tags()["scalars"])
    assert count == len(numbers)
    assert numbers == pytest.approx(logged(tmp_path / "run"), rel=1e-6)
    assert "config/text_summary" in shown.Tags()["tensors"]

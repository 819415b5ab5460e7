"""Where the lines of `metrics.jsonl` also go: TensorBoard, Weights & Biases, MLflow.

A tracker is a frozen config; opened for a run, it is a writer. The packages behind them are imported when they are
opened. `Tracking` holds the writers of one run: one that fails is reported and left, since a run is worth more than
its curves, which `metrics.jsonl` has in any case.
"""

import abc
import contextlib
import dataclasses
import importlib
import json
import logging
import os
import struct
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax


class TrackerError(RuntimeError):
    """Why a tracker cannot be opened at all, in one line."""


class Writer(abc.ABC):
    """An open tracker of one run."""

    @abc.abstractmethod
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Note the numbers of a step; there may be several calls for one step, with other names."""

    @abc.abstractmethod
    def close(self, *, complete: bool) -> None:
        """Write what is not yet written; `complete`: the run took all its steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracker(abc.ABC):
    """What to tell of a run, and whom."""

    @abc.abstractmethod
    def open(self, folder: Path, title: str, config: str, *, first: int) -> Writer:
        """Begin or go on.

        Args:
          folder: the run folder.
          title: what the run is called.
          config: its effective config, as text.
          first: steps done before, where `metrics.jsonl` ends; what a killed run wrote of later ones counts no longer.

        Raises:
          TrackerError: its package is not installed.
        """


class Tracking:
    """The writers of one run; of several processes the first one has them.

    Args:
      trackers: each is opened once, however often it is named.
      say: prints a line.
    """

    def __init__(self, trackers: Sequence[Tracker], say: Callable[[str], None]):
        self._trackers, self._say = tuple(dict.fromkeys(trackers)), say
        self._writers: dict[Tracker, Writer] = {}

    def open(self, folder: Path, title: str, config: str, *, first: int) -> None:
        """See `Tracker.open`."""
        if jax.process_index() == 0:
            for tracker in self._trackers:
                try:
                    self._writers[tracker] = tracker.open(folder, title, config, first=first)
                except TrackerError:
                    raise
                except Exception as error:
                    self._report(tracker, "cannot be opened", error)

    def write(self, line: Mapping[str, Any]) -> None:
        """Hand on a line of `metrics.jsonl`: `step`, and numbers by name; what is None is left out."""
        step, values = _read(line)
        for tracker, writer in list(self._writers.items()):
            try:
                writer.write(step, values)
            except Exception as error:
                self._report(tracker, f"failed at step {step} and is switched off", error)
                del self._writers[tracker]
                with contextlib.suppress(Exception):
                    writer.close(complete=False)

    def close(self, *, complete: bool) -> None:
        """See `Writer.close`."""
        for tracker, writer in self._writers.items():
            try:
                writer.close(complete=complete)
            except Exception as error:
                self._report(tracker, "could not be closed", error)
        self._writers.clear()

    def _report(self, tracker: Tracker, what: str, error: Exception) -> None:
        why = " ".join(str(error).split()) or type(error).__name__
        self._say(f"tracker {type(tracker).__name__} {what}: {why}; the run and its metrics.jsonl go on")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorBoard(Tracker):
    """Event files in the run folder: `tensorboard --logdir` of the folder above compares runs."""

    def open(self, folder: Path, title: str, config: str, *, first: int) -> Writer:
        return _Events(folder, config, first)


class _Events(Writer):
    """An event file, written without a thread: what a line says is with the system when `write` returns."""

    def __init__(self, folder: Path, config: str, first: int):
        proto = "tensorboardX.proto."
        self._event = _package("tensorboardX", TensorBoard(), proto + "event_pb2").Event
        self._summary = _package("tensorboardX", TensorBoard(), proto + "summary_pb2").Summary
        self._checksum = _package("tensorboardX", TensorBoard(), "tensorboardX.record_writer").masked_crc32c
        begun = any(folder.glob("events.out.tfevents.*"))
        # Readers take the files in the order of their names: by time and, within a second, by step.
        self._file = (folder / f"events.out.tfevents.{int(time.time()):010d}.{first:09d}").open("ab")
        with contextlib.ExitStack() as stack:
            stack.callback(self._file.close)
            self._append(file_version="brain.Event:2")
            # A start makes readers drop what earlier files have of this step and later ones.
            self._append(step=first + 1, session_log={"status": "START"})
            if not begun:
                text = _package("tensorboardX", TensorBoard(), "tensorboardX.summary").text
                indented = "\n".join(
                    f"    {line}" for line in config.splitlines()
                )  # a code block of Markdown
                self._append(step=first, summary=text("config", indented))
            stack.pop_all()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        named = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self._append(step=step, summary=self._summary(value=named))

    def close(self, *, complete: bool) -> None:
        self._file.close()

    def _append(self, **fields: Any) -> None:
        """Write a record: its length and its bytes, each with a checksum (the TFRecord format)."""
        data = self._event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = (struct.pack("<I", self._checksum(part)) for part in (length, data))
        self._file.write(b"".join((length, next(checksums), data, next(checksums))))
        self._file.flush()


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsAndBiases(Tracker):
    """Weights & Biases (the package `wandb`).

    Attributes:
      project: where its runs are listed.
      mode: "offline" writes into the run folder, and `wandb sync` sends `wandb/latest-run`; "online" sends at once.
      entity: the user or team, or None for the one who is logged in.
    """

    project: str = "architecture-ablations"
    mode: Literal["offline", "online"] = "offline"
    entity: str | None = None

    def open(self, folder: Path, title: str, config: str, *, first: int) -> Writer:
        wandb = _package("wandb", self)
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            name=title,
            id=_identity(folder),
            resume="allow" if self.mode == "online" else None,
            reinit="create_new",  # members of an ensemble are open at once
            dir=folder,
            config={"config": config},
            settings=wandb.Settings(console="off", silent=True),
        )
        writer, known = _WeightsAndBiases(run), run.step
        # What a kill took from its buffers; offline that is all, so the newest folder holds the whole run.
        log = folder / "metrics.jsonl"
        for line in log.read_text().splitlines() if log.exists() else ():
            step, values = _read(json.loads(line))
            if step >= known:
                writer.write(step, values)
        return writer


class _WeightsAndBiases(Writer):
    def __init__(self, run: Any):
        self._run = run

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, complete: bool) -> None:
        self._run.finish(exit_code=0 if complete else 1)


# By itself MLflow asks a server that does not answer for many minutes, and the run would wait for it.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLflow(Tracker):
    """MLflow (the package `mlflow-skinny`, or `mlflow`; a database takes `sqlalchemy` and `alembic` too).

    Attributes:
      experiment: the name of the MLflow experiment that its runs are part of.
      uri: of the tracking store (a server, a database), or None for `mlflow.db` in the run folder.
    """

    experiment: str = "architecture-ablations"
    uri: str | None = None

    def open(self, folder: Path, title: str, config: str, *, first: int) -> Writer:
        mlflow = _package("mlflow", self)
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        folder = folder.absolute()
        uri = self.uri or f"sqlite:///{folder}/mlflow.db"
        if uri.startswith("sqlite"):
            _package("sqlalchemy", self)
            _package("alembic", self, "alembic.migration")
            logging.getLogger("mlflow.store.db.utils").setLevel(
                logging.WARNING
            )  # else it tells of its tables
        client = mlflow.MlflowClient(uri)
        files = (folder / "mlflow").as_uri() if self.uri is None else None
        return _MLflow(client, self._run(client, files, _identity(folder), title, config))

    def _run(self, client: Any, files: str | None, identity: str, title: str, config: str) -> str:
        """The id of the run that this folder has there; a new one where it has none."""
        if client.get_experiment_by_name(self.experiment) is None:
            with contextlib.suppress(importlib.import_module("mlflow.exceptions").MlflowException):
                client.create_experiment(self.experiment, files)  # another run may have made it meanwhile
        experiment = client.get_experiment_by_name(self.experiment).experiment_id
        for run in client.search_runs([experiment], f"tags.identity = '{identity}'"):
            client.update_run(run.info.run_id, "RUNNING")
            return run.info.run_id
        run = client.create_run(experiment, tags={"identity": identity}, run_name=title).info.run_id
        client.log_text(run, config, "config.gin")
        return run


class _MLflow(Writer):
    """A store keeps every number it was ever given, so those that a killed run had given it are not given again."""

    def __init__(self, client: Any, run: str):
        self._client, self._run_id = client, run
        self._metric = importlib.import_module("mlflow.entities").Metric
        self._last = {
            name: max(point.step for point in client.get_metric_history(run, name))
            for name in client.get_run(run).data.metrics
        }

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        fresh = [
            self._metric(name, value, now, step)
            for name, value in values.items()
            if step > self._last.get(name, -1)
        ]
        self._client.log_batch(self._run_id, metrics=fresh)

    def close(self, *, complete: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if complete else "KILLED")


def _read(line: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """The step and the numbers of a line of the log."""
    return line["step"], {name: v for name, v in line.items() if name != "step" and v is not None}


def _identity(folder: Path) -> str:
    """By what services know the run of a folder: drawn once and kept there, so a resumed run is the same run."""
    path = folder / "identity"
    if not path.exists():
        path.write_text(uuid.uuid4().hex)
    return path.read_text()


def _package(name: str, tracker: Tracker, module: str | None = None) -> ModuleType:
    """A module of a package that a tracker needs; the package itself if none is named."""
    try:
        return importlib.import_module(module or name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise TrackerError(
            f"tracker {type(tracker).__name__} needs the package {name}, which is not installed; install it (versions "
            f"are in requirements-parity.txt) or take @trackers.{type(tracker).__name__}() out of train.trackers"
        ) from error

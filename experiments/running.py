"""Run folders: train and score experiments in them, resume them, and say what a result was made with."""

import contextlib
import dataclasses
import datetime
import difflib
import importlib.metadata
import json
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from experiments import configs, start
from experiments.experiment import Experiment, classes, cost, dataset, example, stacks, trainer
from research.analysis import budget, hardware
from research.attention import core
from research.data.pipeline import Batches
from research.evaluation import likelihood
from research.training import hyperparameters, loop
from research.training.checkpoints import CheckpointError, Checkpoints
from research.training.ensemble import Ensemble, Solo
from research.training.sharding import Placement
from research.training.trackers import TensorBoard


class RunError(RuntimeError):
    """Why a run folder cannot be used, in one line."""


@dataclasses.dataclass(frozen=True)
class Job:
    """An experiment, the gin text it was made from, its run folder, and what it is called where progress is shown."""

    planned: Experiment
    config: str
    folder: Path
    title: str = "train"


Result = dict[str, Any]


def run(job: Job, *, data_dir: str | None = None, console: Console) -> Result:
    """Train and score the experiment in its run folder, going on where an earlier call was stopped.

    Returns the result, also in `result.json`: key, commit, dirty, config, environment, data, budget, metrics and
    timing. A finished folder is returned as it is.

    Raises:
      RunError: the folder belongs to another experiment.
      CheckpointError: a checkpoint cannot be written or read.
      loop.Interrupted, loop.Diverged: see `loop.run`.
    """
    (result,) = run_all([job], data_dir=data_dir, console=console)
    if isinstance(result, Exception):
        raise result
    return result


def run_all(
    jobs: Sequence[Job], *, data_dir: str | None = None, console: Console
) -> list[Result | Exception]:
    """Several experiments that `group` says may share a compiled step, as one ensemble; see `run`.

    A member that fails leaves its error in place of its result; the others go on without it.

    Raises:
      loop.Interrupted: all of them are stopped, and saved.
    """
    found: list[Any] = []
    todo: dict[int, _Run] = {}
    for index, job in enumerate(jobs):
        try:
            one = _Run(job, data_dir, together=len(jobs) > 1)
        except Exception as error:
            found.append(error)
            continue
        found.append(one.finished)
        if one.finished is None:
            todo[index] = one
        else:
            console.print(f"{job.title} is finished: {job.folder / 'result.json'}")
    if todo:
        _train(list(todo.values()), console)
    for index, one in todo.items():
        found[index] = one.finished if one.error is None else one.error
    return found


def group(planned: Experiment, data_dir: str | None) -> tuple[Any, ...]:
    """What must be equal in experiments that train as one ensemble: the program, the shapes of its batches, and when
    it logs, evaluates and saves.
    """
    batch, vocab = example(planned, data_dir)
    leaves, structure = jax.tree.flatten(batch)
    return (
        planned.model,
        hyperparameters.form(planned.optimizer),
        hyperparameters.form(planned.recipe),
        vocab,
        planned.steps,
        planned.matmul_precision,
        planned.deterministic,
        planned.plan,
        structure,
        tuple((leaf.shape, leaf.dtype) for leaf in leaves),
    )


def alone(planned: Experiment) -> str | None:
    """Why an experiment cannot be part of an ensemble, or None."""
    if planned.data.hard is not None:
        return "Data.hard chooses examples by the model"
    if any(getattr(planned.parallelism, axis) != 1 for axis in ("fsdp", "tensor", "sequence")):
        return "Parallelism spreads the run over devices"
    return None


def _train(runs: Sequence["_Run"], console: Console) -> None:
    """Train and score runs that share a program; one that cannot begin is left out, with its error."""
    planned = runs[0].job.planned
    with surroundings(planned, runs[0].placement), contextlib.ExitStack() as stack:
        try:
            members = {one: member for one in runs if (member := one.begin(stack, console)) is not None}
            if not members:
                return
            first = next(iter(members))
            engine: Solo | Ensemble
            engine = first.solo if len(members) == 1 else Ensemble(first.trainer, len(members))
            outcomes = loop.run(
                engine,
                list(members.values()),
                steps=planned.steps,
                plan=planned.plan,
                work=loop.Work(
                    # Every process counts its own rows; steps are taken together.
                    tokens=lambda batch: budget.tokens_read(batch) * first.solo.hosts,
                    flops=first.price.train_flops,
                    peak=_peak_flops(planned),
                ),
                console=console,
            )
            for one, outcome in zip(members, outcomes, strict=True):
                one.finish(outcome, timed=len(members) == 1)
        except BaseException as error:
            stopped = isinstance(error, loop.Interrupted | KeyboardInterrupt)
            for one in runs:
                if one.finished is None and one.error is None:
                    one.note("interrupted" if stopped else "failed", error)
            raise


class _Run:
    """A job in its folder; `together`: it is one of an ensemble."""

    def __init__(self, job: Job, data_dir: str | None, *, together: bool):
        self.job = job
        planned = job.planned
        self._text = dataset(planned.data, data_dir)
        self.finished = _open(job, planned.key(), self._text.fingerprint)
        self.error: Exception | None = None
        if self.finished is not None:
            return
        self.trainer = trainer(planned, self._text.tokenizer.vocab_size)
        self.price = cost(planned.model, planned.data, data_dir)
        # An ensemble spreads its members over the devices, each of which is on one.
        self.placement = None if together else placement(planned)
        self.solo = Solo(self.trainer, rows=planned.data.batch, placement=self.placement)
        names = planned.data.mixture.names
        parts: dict[str, int | None] = {"": None}
        parts |= {f"{name}_": part for part, name in enumerate(names)} if len(names) > 1 else {}
        self._sets = {
            split: {prefix: self._text.held_out(split, part) for prefix, part in parts.items()}
            for split in ("test", "validation")
        }
        self._record = self._describe()

    def begin(self, stack: contextlib.ExitStack, console: Console) -> loop.Member | None:
        """What the loop needs of it, or None where it cannot begin; what has to be closed is entered into `stack`."""
        try:
            self.status("running")
            return self._member(stack, console)
        except Exception as error:
            self._fail(error)
            return None

    def _member(self, stack: contextlib.ExitStack, console: Console) -> loop.Member:
        planned, folder, solo = self.job.planned, self.job.folder, self.solo
        if solo.hosts > 1 and planned.data.pack > 1:
            raise ValueError(
                f"Data.pack = {planned.data.pack} in {solo.hosts} processes: what waits to be packed differs between "
                "them and could not be resumed; set Data.pack = 1"
            )
        keep, plan = planned.keep, planned.plan
        if planned.early_stopping is not None:  # which saves whenever it has seen nothing better
            keep = dataclasses.replace(
                keep, best=max(keep.best, 1), metric=planned.early_stopping.metric, lowest=True
            )
        elif keep.best and not 0 < math.lcm(plan.evaluate_every, plan.checkpoint_every) < planned.steps:
            raise ValueError(
                f"Keep.best = {keep.best}, but no checkpoint is both evaluated and saved before step {planned.steps}: "
                f"set Plan.evaluate_every = {plan.evaluate_every} and Plan.checkpoint_every = {plan.checkpoint_every} "
                "so that they meet"
            )
        batches = self._text.training(
            planned.seed, host=solo.host, hosts=solo.hosts, workers=planned.plan.workers
        )
        stack.callback(batches.close)
        self._checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", keep, say=console.print))
        return loop.Member(
            title=self.job.title,
            folder=folder,
            fresh=lambda: solo.initial(jax.random.key(planned.seed), planned.numbers),
            batches=batches,
            checkpoints=self._checkpoints,
            evaluate=self._evaluated,
            prepare=None
            if planned.data.hard is None
            else lambda step, params: self._mine(step, params, batches),
            stopping=planned.early_stopping,
            trackers=(TensorBoard(), *planned.trackers),
            config=self.job.config,
        )

    def finish(self, outcome: loop.Outcome, *, timed: bool) -> None:
        """Score the trained parameters and write the result; if there is none, keep and write why."""
        try:
            if outcome.error is not None:
                raise outcome.error
            self._finish(outcome, timed=timed)
        except Exception as error:
            with contextlib.suppress(CheckpointError):  # on leaving `Checkpoints` it would end the others
                self._checkpoints.wait()
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Keep and write why there is no result."""
        self.error = error
        self.note("failed", error)

    def _finish(self, outcome: loop.Outcome, *, timed: bool) -> None:
        params = outcome.state.evaluated
        metrics = {**self._score(params, "test"), **self._score(params, "validation")}
        if wrong := [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]:
            raise loop.Diverged(
                f"{self.job.title}: {', '.join(wrong)} after training; lower Optimizer.learning_rate"
            )
        self._checkpoints.wait()
        timing = {
            "tokens_per_second": outcome.tokens_per_second,
            "utilisation": outcome.utilisation,
            "wall_seconds": outcome.seconds,
            "peak_memory_bytes": _peak_memory(),
        }
        taken = {"steps": int(outcome.state.step)} if self.job.planned.early_stopping is not None else {}
        self.finished = {
            **self._record,
            "metrics": {**metrics, **taken},
            "timing": timing if timed else dict.fromkeys(timing),
        }
        _write(self.job.folder / "result.json", _json(self.finished))
        self.status("done")

    def status(self, status: str, error: str | None = None) -> None:
        """Write `run.json`."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        value = {"status": status, "time": now, "error": error, **self._record}
        _write(self.job.folder / "run.json", _json(value))

    def note(self, status: str, error: BaseException) -> None:
        """Write how it ended, if that can be written: what it ended with is what has to be told."""
        with contextlib.suppress(OSError, RunError):
            self.status(status, str(error))

    def _evaluated(self, params: Any) -> dict[str, float]:
        """Measures of the validation split, by which early stopping or `Keep` ranks the checkpoints."""
        scores, keep = self._score(params, "validation"), self.job.planned.keep
        if keep.best and self.job.planned.early_stopping is None and keep.metric not in scores:
            raise ValueError(f"Keep.metric = {keep.metric!r}: expected one of {sorted(scores)}")
        return scores

    def _score(self, params: Any, split: str) -> dict[str, float]:
        """Measures of a split and, of a mixture, of each part of it; those of validation are named so."""
        name = "" if split == "test" else f"{split}_"
        tokenizer = None if classes(self.job.planned.model) else self._text.tokenizer
        return {
            f"{name}{prefix}{measure}": value
            for prefix, batches in self._sets[split].items()
            for measure, value in likelihood.held_out(
                self.trainer, params, batches, tokenizer, place=self.solo.whole
            ).items()
        }

    def _mine(self, step: int, params: Any, batches: Batches) -> None:
        """Choose hard examples where it is time to."""
        hard, seed = self.job.planned.data.hard, self.job.planned.seed
        assert hard is not None
        if hard.refreshes(step):
            ids = hard.scored(step, len(self._text.windows[0]["train"]))
            rows = [
                multihost_utils.process_allgather(self.trainer.row_losses(params, batch), tiled=True)
                for batch in self.solo.whole(self._text.rows(seed, ids.tolist()))
            ]
            batches.mined(hard.hardest(ids, np.concatenate(rows)[: len(ids)]))

    def _describe(self) -> Result:
        planned, price, text = self.job.planned, self.price, self._text
        return {
            "key": planned.key(),
            **_commit(),
            "config": self.job.config,
            "environment": self._environment(),
            "data": {"fingerprint": text.fingerprint, "order": text.order(planned.seed, planned.steps)},
            "budget": {
                "parameters": price.parameters,
                "flops_per_token": price.flops_per_token,
                "train_flops": price.train_flops * planned.steps,
                "tokens_seen": price.tokens * planned.steps,
                "loss_tokens": price.loss_tokens * planned.steps,
                "steps": planned.steps,
            },
        }

    def _environment(self) -> Result:
        """What the run was made with; which attention there is depends on the mesh."""
        with surroundings(self.job.planned, self.placement):
            return _environment(self.job.planned) | start.settings()


def placement(planned: Experiment) -> Placement | None:
    """Where a run of its own lives; None: on the one device that there is."""
    mesh = planned.parallelism.mesh(rows=planned.data.batch)
    return Placement(planned.parallelism, mesh) if mesh.size > 1 else None


@contextlib.contextmanager
def surroundings(planned: Experiment, placed: Placement | None) -> Generator[None]:
    """What is set while steps are compiled: the precision of products, and the mesh where there is one."""
    mesh = contextlib.nullcontext() if placed is None else jax.set_mesh(placed.mesh)
    with jax.default_matmul_precision(planned.matmul_precision), mesh:
        yield


def _peak_flops(planned: Experiment) -> float | None:
    """FLOP/s that all devices could do in the dtype of the model's products."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return hardware.measured_roof() * jax.process_count()  # its own devices share the cores
    dtype = stacks(planned.model)[0].dtype
    # float32 products are rounded to what `matmul_precision` names.
    peak = hardware.peak(device.device_kind, planned.matmul_precision if dtype == "float32" else dtype)
    return None if peak is None else peak * jax.device_count()


def _open(job: Job, key: str, fingerprint: str) -> Result | None:
    """Make the folder this experiment's own; its result if it is finished."""
    folder, config = job.folder, job.config
    folder.mkdir(parents=True, exist_ok=True)
    status = folder / "run.json"
    if status.exists():
        known = json.loads(status.read_text())
        if known["key"] != key:
            before, now = known["config"].splitlines(), config.splitlines()
            lines = [line for line in difflib.ndiff(before, now) if line[0] in "+-" and "=" in line]
            raise RunError(
                f"run folder {folder} holds another experiment ({'; '.join(lines) or 'another version'}); "
                "choose another --run_dir or remove the folder"
            )
        if known["data"]["fingerprint"] != fingerprint:
            raise RunError(
                f"run folder {folder} read data {known['data']['fingerprint'][:12]}, but now the corpus or the weights "
                f"are {fingerprint[:12]}; choose another --run_dir or remove the folder"
            )
    _write(folder / "config.gin", config)
    result = folder / "result.json"
    return json.loads(result.read_text()) if result.exists() else None


def _json(value: Result) -> str:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or what was there before; of several processes the first one
    writes.

    Raises:
      RunError: it cannot be written.
    """
    if jax.process_index():
        return
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(
            f"cannot write {path}: {error.strerror}; make room there, or make it writable, and the same command goes on"
        ) from error


def _commit() -> Result:
    """The commit of the code, and whether it was changed since."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=configs.ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    code = ("research", "experiments", "configs", "requirements.txt")
    return {
        "commit": git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(git("status", "--porcelain", "--", *code)),
    }


def _environment(experiment: Experiment) -> Result:
    device = jax.devices()[0]
    backends = {
        core.resolved_name(stack.backend)
        for stack in stacks(experiment.model)
        if isinstance(stack.backend, str)
    }
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": importlib.metadata.version("flax"),
        "platform": device.platform,
        "device": device.device_kind,
        "attention": "+".join(sorted(backends)),
        "matmul_precision": experiment.matmul_precision,
    }


def _peak_memory() -> int:
    """Most bytes this process (or its accelerator) has held so far."""
    statistics = jax.devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return statistics.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)

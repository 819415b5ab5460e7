"""Run folders: train and score experiments in them, resume them, and say what a result was made with."""

import contextlib
import dataclasses
import datetime
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from experiments import code, folders, machine, replays, scoring, start, twins
from experiments.experiment import (
    Experiment,
    cost,
    dataset,
    design,
    inherited,
    key,
    started,
    trainer,
)
from experiments.scoring import HeldOut
from research.analysis import budget
from research.data.pipeline import Batches
from research.evaluation.forgetting import delta_nll
from research.evaluation.trained import Evaluation, Trained
from research.training import loop
from research.training.checkpoints import CheckpointError, Checkpoints
from research.training.ensemble import Ensemble, Solo
from research.training.step import TrainState
from research.training.stopping import FORGOTTEN, ForgettingBudget
from research.training.trackers import TensorBoard

# Steps whose windows the record of a run hashes: arms of a seed read the same, as far as each goes.
ORDERED = 100
# What the metrics of a result have beside evaluations.
MEASURES = {"loss", "bits_per_byte", "validation_loss", "validation_bits_per_byte", "steps"}


@dataclasses.dataclass(frozen=True)
class Job:
    """What there is to run.

    Attributes:
      planned: the experiment.
      config: the gin text it was made from.
      folder: the run folder.
      title: what it is called where progress is shown.
      evaluations: what is measured beside the loss, by name, none of them in MEASURES.
      anew: a result that other code has measured does not count.
      kept: nor does one whose parameters are gone.
      replayed: whether a replay is recorded, by which it is known later whether the code still measures the same.
      twins: pattern of the names of run folders beside it that hold the same experiment; such a run is taken, not made
        again. None: there are none, or that is not wanted.
      rules: hashes of the rules that it decides, for the record; see `research.analysis.claims.declared`.
    """

    planned: Experiment
    config: str
    folder: Path
    title: str = "train"
    evaluations: Mapping[str, Evaluation] = dataclasses.field(default_factory=dict)
    anew: bool = False
    kept: bool = False
    replayed: bool = False
    twins: str | None = None
    rules: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def evaluated(self) -> set[int]:
        """The steps after which it is evaluated, the last one among them; none where it is not, on the way."""
        every, steps = self.planned.plan.evaluate_every, self.planned.steps
        return {*range(every, steps, every), steps} if every else set()

    def __post_init__(self):
        if named := sorted(self.evaluations.keys() & MEASURES):
            raise ValueError(
                f"{self.title}: an evaluation is called {named[0]!r}, as a measure of every run is; give it another "
                "name in Table.evaluations"
            )


Result = dict[str, Any]


def run(job: Job, *, data_dir: str | None = None, console: Console) -> Result:
    """Train and score the experiment in its run folder, going on where an earlier call was stopped.

    Returns the result, also in `result.json`: the fields of `research.analysis.results.Row` but study, scale, arm and
    seed. A finished folder is returned as it is, after evaluations that it lacks.

    Raises:
      RunError: the folder belongs to another experiment.
      InUse: another process is at work in it.
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
    """Several experiments that may share a compiled step (`grouping.shapes`), as one ensemble; see `run`.

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
            one.close()
    try:
        if todo:
            _train(list(todo.values()), console)
    finally:
        for one in todo.values():
            one.close()
    for index, one in todo.items():
        found[index] = one.finished if one.error is None else one.error
    return found


def _train(runs: Sequence["_Run"], console: Console) -> None:
    """Train and score runs that share a program; one that cannot begin is left out, with its error."""
    planned = runs[0].job.planned
    with machine.surroundings(planned, runs[0].placement), contextlib.ExitStack() as stack:
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
                    peak=machine.peak_flops(planned),
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
        self._key, self._design = key(planned, data_dir), design(planned, data_dir)
        self._folder = folders.RunFolder(
            job.folder, key=self._key, fingerprint=self._text.fingerprint, config=job.config
        )
        self.error: Exception | None = None
        self._data_dir, self._code = data_dir, code.fingerprint((planned, *job.evaluations.values()))
        try:
            if job.twins is not None and jax.process_count() == 1:
                twins.take(
                    self._folder,
                    job.twins,
                    config=job.config,
                    code=self._code,
                    hashes=scoring.hashes(job.evaluations),
                    steps=job.evaluated,
                )
            self.finished: Result | None = self._folder.result
            if self.finished is not None and not self._counts(self.finished):
                self._folder.set_aside()
                self.finished = None
            lacking = self._lacking()
            if self.finished is None or lacking:
                self._prepare(data_dir, together)
            if self.finished is not None and lacking:
                self._catch_up(self.finished, lacking)
        except BaseException:
            self.close()
            raise

    def _counts(self, finished: Result) -> bool:
        """Whether there is no need to train again."""
        job = self.job
        outdated = job.anew and finished["code"]["fingerprint"] != self._code
        return not outdated and (not job.kept or folders.trained(job.folder))

    def _prepare(self, data_dir: str | None, together: bool) -> None:
        planned = self.job.planned
        start = planned.init_from
        self._drawn = None
        if start is not None and self.finished is None:
            self._drawn = start.check(planned.model, self._text.tokenizer, data_dir)
        self.trainer = trainer(planned, self._text.tokenizer.vocab_size)
        self.price = cost(planned.model, planned.data, data_dir)
        # An ensemble spreads its members over the devices, each of which is on one.
        self.placement = None if together else machine.placement(planned)
        self.solo = Solo(self.trainer, rows=planned.data.batch, placement=self.placement)
        self._held_out = HeldOut(planned, self._text, self.trainer, self.solo.whole)
        self._record = self._describe()

    def close(self) -> None:
        """Let another process have the folder."""
        self._folder.close()

    def _lacking(self) -> dict[str, str]:
        """Evaluations that a finished run has not made, or made otherwise, with their hashes."""
        made = {} if self.finished is None else self.finished["evaluations"]
        return {
            name: value
            for name, value in scoring.hashes(self.job.evaluations).items()
            if self.finished is not None and made.get(name) != value
        }

    def _catch_up(self, finished: Result, lacking: dict[str, str]) -> None:
        """Make the evaluations that a finished run lacks; where its checkpoint is gone it has to train again."""
        planned = self.job.planned
        state = jax.eval_shape(self.trainer.initial, jax.random.key(0), planned.numbers)
        field = "params" if state.average is None else "average"
        try:
            with Checkpoints(self.job.folder / "checkpoints", planned.keep) as checkpoints:
                params, _ = checkpoints.restore_params(state.params, folders.scored(finished), field=field)
        except CheckpointError:
            self._folder.set_aside()
            self.finished = None
            return
        with machine.surroundings(planned, self.placement):
            scores = self._evaluate(params, lacking, finished)
            replay = replays.replayed(planned, self.job.evaluations, self._data_dir, self.placement)
        known = {**finished["replay"]["scores"], **{name: replay["scores"][name] for name in lacking}}
        self.finished = {
            **finished,
            "metrics": {**finished["metrics"], **scores},
            "evaluations": {**finished["evaluations"], **lacking},
            "replay": {**finished["replay"], "scores": known},
        }
        self._folder.finish(self.finished)

    def begin(self, stack: contextlib.ExitStack, console: Console) -> loop.Member | None:
        """What the loop needs of it, or None where it cannot begin; what has to be closed is entered into `stack`."""
        try:
            if self.job.replayed:
                self._record["replay"] = self._replayed(console)
            self.status("running")
            return self._member(stack, console)
        except Exception as error:
            self._fail(error)
            return None

    def _replayed(self, console: Console) -> Result:
        """What the code of now makes of the first steps. Where a run was begun by code that made something else of
        them, it begins anew: the rest of it would be of another experiment.
        """
        known, names = self._folder.known, self.job.evaluations.keys()
        before = known.get("replay")
        if (
            before is not None
            and known["code"]["fingerprint"] == self._code
            and before["scores"].keys() == names
        ):
            return before
        now = replays.replayed(self.job.planned, self.job.evaluations, self._data_dir, self.placement)
        if before is not None and replays.furthest(before, now) > replays.TOLERANCE:
            console.print(f"{self.job.title} begins anew: the code has come to measure something else")
            self._folder.set_aside()
        return now

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
        if self._drawn is not None and self._checkpoints.latest is None:
            console.print(self._drawn, markup=False, highlight=False)
        return loop.Member(
            title=self.job.title,
            folder=folder,
            fresh=self._fresh,
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

    def _initial(self) -> TrainState:
        """The state before the first step, without what remedies keep."""
        planned = self.job.planned
        start = started(planned, self._data_dir)
        return self.solo.initial(jax.random.key(planned.seed), planned.numbers, start)

    def _fresh(self) -> TrainState:
        """The state before the first step; of a run that goes on, what remedies keep is in its checkpoint."""
        state = self._initial()
        if self._checkpoints.latest is not None:
            return state
        kept = inherited(self.job.planned, self._data_dir)
        return self.solo.prepared(state, self._text, self.job.planned.seed, kept)

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
        metrics: Result = {
            **self._held_out.score(params, "test"),
            **self._held_out.score(params, "validation"),
        }
        if wrong := [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]:
            raise loop.Diverged(
                f"{self.job.title}: {', '.join(wrong)} after training; lower Optimizer.learning_rate"
            )
        taken = {"steps": int(outcome.state.step)} if self.job.planned.early_stopping is not None else {}
        result: Result = {
            **self._record,
            "budget": self._budget(outcome.steps),
            "evaluations": scoring.hashes(self.job.evaluations),
            "metrics": {**metrics, **taken},
        }
        result["metrics"] |= self._evaluate(params, self.job.evaluations, result)
        self._checkpoints.wait()
        timing = {
            "tokens_per_second": outcome.tokens_per_second,
            "utilisation": outcome.utilisation,
            "wall_seconds": outcome.seconds,
            "peak_memory_bytes": machine.peak_memory(),
        }
        self.finished = {**result, "timing": timing if timed else dict.fromkeys(timing)}
        self._folder.finish(self.finished)
        self.status("done")

    def status(self, status: str, error: str | None = None) -> None:
        """Write `run.json`."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        value = {"status": status, "time": now, "error": error, **self._record}
        folders.write(self.job.folder / "run.json", folders.text_of(value))

    def note(self, status: str, error: BaseException) -> None:
        """Write how it ended, if that can be written: what it ended with is what has to be told."""
        with contextlib.suppress(OSError, folders.RunError):
            self.status(status, str(error))

    def _evaluated(self, params: Any) -> dict[str, float]:
        """Measures of the validation split, by which early stopping or `Keep` ranks the checkpoints."""
        scores, keep = self._held_out.score(params, "validation"), self.job.planned.keep
        if isinstance(self.job.planned.early_stopping, ForgettingBudget):
            scores[FORGOTTEN] = delta_nll(self._before, self._earlier(params))
        if keep.best and self.job.planned.early_stopping is None and keep.metric not in scores:
            raise ValueError(f"Keep.metric = {keep.metric!r}: expected one of {sorted(scores)}")
        return scores

    @functools.cached_property
    def _before(self) -> float:
        """The loss of earlier text before the first step."""
        return self._earlier(self._initial().params)

    def _earlier(self, params: Any) -> float:
        """The loss of the text of which only so much may be forgotten."""
        rule = self.job.planned.early_stopping
        assert isinstance(rule, ForgettingBudget)
        batches = rule.read_beside(self._text).held_out("validation")
        return self.trainer.evaluate(params, self.solo.whole(batches))

    def _evaluate(self, params: Any, names: Iterable[str], result: Result) -> Result:
        """The scores of these evaluations by name; `result`: what else the run has measured."""
        trained = Trained(
            trainer=self.trainer,
            params=params,
            text=self._text,
            seed=self.job.planned.seed,
            place=self.solo.whole,
            history=folders.history(self.job.folder, result),
            base=lambda: self._initial().params,
        )
        return scoring.evaluated(
            {name: self.job.evaluations[name] for name in names}, trained, self.job.title
        )

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
        planned, text = self.job.planned, self._text
        return {
            "key": self._key,
            "design": self._design,
            **folders.commit(),
            "code": {"fingerprint": self._code, "checked": self._code, "stale": ""},
            # As they were when the run began: a rule that is written afterwards does not count.
            "rules": self._folder.known.get("rules", dict(self.job.rules)),
            "config": self.job.config,
            "environment": self._environment(),
            "data": {
                "fingerprint": text.fingerprint,
                "order": text.order(planned.seed, ORDERED),
                **self._start(),
            },
            "budget": self._budget(planned.steps),
        }

    def _start(self) -> Result:
        """What its parameters start from, if they are not drawn."""
        start = self.job.planned.init_from
        return {} if start is None else {"init_from": start.record(self._data_dir)}

    def _budget(self, steps: int) -> Result:
        """What so many steps cost."""
        price = self.price
        return {
            "parameters": price.parameters,
            "flops_per_token": price.flops_per_token,
            "train_flops": price.train_flops * steps,
            "tokens_seen": price.tokens * steps,
            "loss_tokens": price.loss_tokens * steps,
            "steps": steps,
        }

    def _environment(self) -> Result:
        """What the run was made with; which attention there is depends on the mesh."""
        with machine.surroundings(self.job.planned, self.placement):
            return machine.environment(self.job.planned) | start.settings()


def replay(job: Job, data_dir: str | None) -> Result:
    """What the code of now makes of a run of a few steps; see `replays.replayed`."""
    placed = machine.placement(job.planned)
    with machine.surroundings(job.planned, placed):
        return replays.replayed(job.planned, job.evaluations, data_dir, placed)

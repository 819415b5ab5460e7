"""The loop: steps, logs, evaluations, checkpoints, progress. It resumes exactly where a run was stopped.

It takes a group of runs at once; most groups have one. While the devices take a step, the batches of the next one are
made and sent to them, and nothing waits for a number before a line of the log needs it.
"""

import collections
import contextlib
import dataclasses
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from research.batch import Batch
from research.training.checkpoints import Checkpoints
from research.training.ensemble import Engine
from research.training.meters import SPIKES, Clock, Metrics, Profiler
from research.training.step import AHEAD, TrainState
from research.training.stopping import EarlyStopping, Watch
from research.training.trackers import Tracker, Tracking


class Interrupted(Exception):
    """The run was stopped by Ctrl-C or SIGTERM; what is said is from where it goes on."""


class Diverged(Exception):
    """The loss is no longer a number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """When to do what; none of it changes the numbers of a run.

    Attributes:
      log_every: steps between lines of metrics.jsonl.
      evaluate_every: steps between evaluations during the run; 0: none.
      checkpoint_every: steps between checkpoints; 0: at the end only.
      workers: processes that make examples; 0: a thread.
      profile: (first, last) steps of which `jax.profiler` writes a trace to the run folder, or None.
    """

    log_every: int = 10
    evaluate_every: int = 0
    checkpoint_every: int = 500
    workers: int = 0
    profile: tuple[int, int] | None = None

    def __post_init__(self):
        if self.workers < 0:
            raise ValueError(f"Plan.workers = {self.workers}: expected at least 0")
        if self.log_every < 1:
            raise ValueError(f"Plan.log_every = {self.log_every}: expected at least 1")
        if self.profile is not None and not 0 <= self.profile[0] < self.profile[1]:
            raise ValueError(f"Plan.profile = {self.profile}: expected two steps, the first before the last")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a step costs, to report its speed.

    Attributes:
      tokens: tokens of a batch that are read.
      flops: model FLOPs of a step.
      peak: FLOP/s that the devices could do, or None where unknown.
    """

    tokens: Callable[[Batch], int]
    flops: float = 0.0
    peak: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a group.

    Attributes:
      title: what it is called where progress is shown.
      folder: the run folder.
      fresh: its state before the first step.
      batches: an iterator with `get_state` and `set_state`.
      checkpoints: where its state is saved.
      evaluate: parameters -> named numbers.
      prepare: called with the steps done and the parameters before each batch is taken: data that depends on the
        model is chosen there.
      stopping: early stopping, or None.
      trackers: who else gets the lines of metrics.jsonl.
      config: what trackers show as the config of the run.
    """

    title: str
    folder: Path
    fresh: Callable[[], TrainState]
    batches: Any
    checkpoints: Checkpoints
    evaluate: Callable[[Any], dict[str, float]]
    prepare: Callable[[int, Any], None] | None = None
    stopping: EarlyStopping | None = None
    trackers: tuple[Tracker, ...] = ()
    config: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one run went.

    Attributes:
      state: its last state, or the best one under early stopping.
      steps: that were taken, those of earlier processes included.
      tokens_per_second: read by the whole group; None if no step was timed.
      utilisation: share of the devices' peak that went into model FLOPs, or None.
      seconds: of this process's part.
      error: why it ended before its time (it diverged, a checkpoint could not be written, ...), or None.
    """

    state: TrainState
    steps: int
    tokens_per_second: float | None
    utilisation: float | None
    seconds: float
    error: Exception | None


def run(
    engine: Engine, members: Sequence[Member], *, steps: int, plan: Plan, work: Work, console: Console
) -> list[Outcome]:
    """Take every member to `steps` steps, each from its newest checkpoint if it has one.

    A member that diverges, fails or stops early freezes; the others go on.

    Raises:
      Interrupted: on Ctrl-C or SIGTERM, after saving; on a second Ctrl-C, or one in several processes, at once.
    """
    runs = [_Run(member, steps, console) for member in members]
    group = engine.join([run.start() for run in runs])
    began, clock, pending = time.perf_counter(), Clock(), []
    profiler = Profiler(plan.profile, members[0].folder / "profile")

    def take() -> Any:
        """The next batches; those who do not run are given another's, which changes nothing."""
        for index, run in enumerate(runs):
            run.attempt(run.take, lambda index=index: engine.member(group, index).params)
        if not any(run.running for run in runs):
            return None
        spare = next(run.batch for run in runs if run.batch is not None)
        return engine.place([spare if run.batch is None else run.batch for run in runs])

    def settle() -> None:
        """Hand every run the losses of the steps since the last time; the one place that waits for the devices."""
        for losses, finite, taken in jax.device_get(pending):
            for index in np.flatnonzero(taken):
                run = runs[index]
                run.attempt(run.lost, int(taken[index]), float(losses[index]), bool(finite[index]))
        pending.clear()

    def save(index: int) -> None:
        settle()
        if runs[index].error is None:
            runs[index].attempt(runs[index].save, engine.member(group, index))
        clock.restart()

    with _tracked(runs), _at_once(runs), _Stop() as stop, profiler, _progress(console) as progress:
        task = progress.add_task(
            members[0].title if len(runs) == 1 else f"{len(runs)} runs",
            total=steps,
            completed=min(run.done for run in runs),
            note="",
        )
        batches = take()
        while any(run.running for run in runs):
            running = np.array([run.running for run in runs])
            moving = [run for run in runs if run.running]
            profiler.before(moving[0].done)
            group, metrics = engine.step(group, batches, running)
            for run in moving:
                run.done += 1
                clock.count(work.tokens(run.batch), work.flops)
            pending.append(
                (metrics["loss"], metrics.pop("finite"), np.where(running, [run.done for run in runs], 0))
            )
            if len(pending) > AHEAD:  # as in an evaluation, no more steps than that are under way
                jax.block_until_ready(pending[-1 - AHEAD])
            profiler.after(moving[0].done, group)
            batches = take()  # while the devices work
            logged = [i for i, run in enumerate(runs) if running[i] and run.due(plan.log_every, last=True)]
            if logged:
                values = jax.device_get(metrics)
                settle()
                clock.lap()
                for index in logged:
                    own = {name: float(value[index]) for name, value in values.items()}
                    runs[index].attempt(runs[index].report, own, clock.speed(work.peak))
                progress.update(
                    task, completed=min(run.done for run in moving), note=_note(values["loss"], clock)
                )
            for index, run in enumerate(runs):
                # The last state is scored by whoever gets it, but early stopping has to know.
                scores_now = run.due(run.stops_every) or (run.due(plan.evaluate_every) and run.done < steps)
                saves_now = run.due(plan.checkpoint_every, last=True)
                if not (running[index] and (scores_now or saves_now)):
                    continue
                settle()
                better = False
                if scores_now and run.error is None:
                    better = run.attempt(run.score, engine.member(group, index).evaluated)
                    clock.restart()
                if better or run.over or saves_now:
                    save(index)
            if stop.asked or _preempted(members[0].checkpoints, moving[0].done):
                for index in range(len(runs)):
                    save(index)
                done = min(run.done for run in moving)
                unsaved = [f"but: {run.error}" for run in moving if run.error is not None]
                then = "; ".join(unsaved or ["the same command goes on from there"])
                raise Interrupted(f"{members[0].title} stopped at step {done}; {then}")
    seconds = time.perf_counter() - began
    outcomes = []
    for index, run in enumerate(runs):
        state = engine.member(group, index)
        chosen = run.attempt(run.best, state) or state
        outcomes.append(Outcome(chosen, run.done, *clock.overall(work.peak), seconds, run.error))
    return outcomes


class _Run:
    """One member on its way."""

    def __init__(self, member: Member, steps: int, console: Console):
        self.member, self._steps, self._console = member, steps, console
        self.done = 0
        self.batch: Any = None
        self.error: Exception | None = None
        self._position: Any = None
        self._scored: tuple[int, dict[str, float]] = (0, {})  # a step, and what its checkpoint is ranked by
        self._watch = None if member.stopping is None else Watch(member.stopping)
        self._losses: collections.deque[float] = collections.deque(maxlen=SPIKES.window)
        self._tracking = Tracking(
            member.trackers, functools.partial(console.print, markup=False, highlight=False)
        )

    @property
    def running(self) -> bool:
        return self.done < self._steps and self.error is None and not self.over

    @property
    def over(self) -> bool:
        """Whether it was stopped early."""
        return self._watch is not None and self._watch.over

    @property
    def stops_every(self) -> int:
        return 0 if self.member.stopping is None else self.member.stopping.every

    def attempt(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """What `act` returns; a failure is this run's end and nobody else's."""
        if self.error is None:
            try:
                return act(*arguments)
            except Exception as error:
                self.error = error
        return None

    def start(self) -> TrainState:
        """The state to begin with, and data, log and watch at the same place."""
        state = self.member.fresh()
        return self.attempt(self._resumed, state) or state

    def _resumed(self, state: TrainState) -> TrainState:
        checkpoints = self.member.checkpoints
        if checkpoints.latest is not None:
            state, saved = checkpoints.restore(state)
            self.member.batches.set_state(saved["batches"])
            self._losses.extend(saved["losses"])
            if self._watch is not None:
                self._watch.set_state(saved["watch"])
            self._console.print(f"{self.member.title} resumed at step {int(state.step)}")
        self.done = int(state.step)
        self._position = self.member.batches.get_state()
        self._log = Metrics(self.member.folder / "metrics.jsonl", first=self.done)
        self._tracking.open(self.member.folder, self.member.title, self.member.config, first=self.done)
        return state

    def take(self, params: Callable[[], Any]) -> None:
        """The next batch, if it is running; where the data stood before is what a checkpoint keeps."""
        self._position = self.member.batches.get_state()
        if self.running:
            if self.member.prepare is not None:
                self.member.prepare(self.done, params())
            self.batch = next(self.member.batches)

    def due(self, every: int, *, last: bool = False) -> bool:
        return bool(every and self.done % every == 0) or (last and self.done == self._steps)

    def lost(self, step: int, loss: float, finite: bool) -> None:
        """Note a step's loss, and say so if it stands out.

        Raises:
          Diverged: the loss or its gradient is not finite.
        """
        if not finite:
            said = f"loss is {loss}" + (", its gradient is not finite" if math.isfinite(loss) else "")
            raise Diverged(
                f"{self.member.title} step {step}: {said}; newest checkpoint: step "
                f"{self.member.checkpoints.latest} in {self.member.folder}; lower Optimizer.learning_rate"
            )
        usual = SPIKES.usual(self._losses)
        if usual is not None and loss > usual:
            self._console.print(
                f"{self.member.title} step {step}: the loss spiked to {loss:.3f} (usual: {usual:.3f})"
            )
            self._write(step=step, spike=loss)
        self._losses.append(loss)

    def report(self, metrics: dict[str, float], speed: dict[str, float | None]) -> None:
        """A line of the log."""
        self._write(step=self.done, **speed, **metrics)

    def _write(self, **values: Any) -> None:
        self._tracking.write(self._log.write(**values))

    def untrack(self) -> None:
        """Close its trackers."""
        self._tracking.close(complete=self.error is None and not self.running)

    def score(self, params: Any) -> bool:
        """Evaluate; whether early stopping has seen nothing better."""
        scores = self.member.evaluate(params)
        self._write(step=self.done, **scores)
        watch = self._watch
        better = watch is not None and self.due(self.stops_every) and watch.see(self.done, scores)
        if watch is None or watch.ranks(self.done, scores):
            self._scored = self.done, scores
        return better

    def save(self, state: TrainState) -> None:
        """Save the state and where everything beside it stands."""
        assert int(state.step) == self.done, (int(state.step), self.done)
        watch = None if self._watch is None else self._watch.get_state()
        data = {"batches": self._position, "losses": list(self._losses), "watch": watch}
        step, scores = self._scored
        self.member.checkpoints.save(state, data, scores if step == self.done else None)

    def best(self, state: TrainState) -> TrainState:
        """The state that counts: the last, or early stopping's choice."""
        if self._watch is None or self._watch.best is None or self._watch.step == self.done:
            return state
        return self.member.checkpoints.restore(state, self._watch.step)[0]


class _Stop:
    """Notes Ctrl-C and SIGTERM, so that a step is never cut in half; a second Ctrl-C stops at once.

    Of several processes each could stop at another step, so there Orbax's notice of preemption counts instead.
    """

    def __enter__(self) -> "_Stop":
        self.asked = False
        self._before = {}
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note_signal)
        return self

    def _note_signal(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _tracked(runs: Sequence["_Run"]) -> Generator[None]:
    """However the runs end, their trackers are closed."""
    try:
        yield
    finally:
        for run in runs:
            run.untrack()


@contextlib.contextmanager
def _at_once(runs: Sequence["_Run"]) -> Generator[None]:
    """Ctrl-C that nothing else takes saves nothing."""
    try:
        yield
    except KeyboardInterrupt:
        saved = min(run.member.checkpoints.latest or 0 for run in runs)
        raise Interrupted(
            f"{runs[0].member.title} stopped at once; the same command goes on from "
            + (
                f"step {saved}, the newest that is saved"
                if saved
                else "the beginning, since nothing is saved"
            )
        ) from None


def _preempted(checkpoints: Checkpoints, step: int) -> bool:
    return jax.process_count() > 1 and checkpoints.reached_preemption(step)


def _note(losses: np.ndarray, clock: Clock) -> str:
    speed = clock.speed(None)["tokens_per_second"]
    least = np.fmin.reduce(losses)  # of those that are numbers, and without a warning where none is
    return f"loss {least:.3f}" + ("" if speed is None else f"  {speed:,.0f} tokens/s")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

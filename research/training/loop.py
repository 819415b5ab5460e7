"""The loop: steps, logs, evaluations, checkpoints, progress. It resumes exactly where a run was stopped.

It takes a group of runs at once; most groups have one. While the devices take a step, the batches of the next one are
made and sent to them, and nothing waits for a number before a line of the log needs it.
"""

import collections
import dataclasses
import json
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from research.batch import Batch
from research.training.checkpoints import Checkpoints
from research.training.ensemble import Engine
from research.training.step import TrainState
from research.training.stopping import EarlyStopping, Watch


class Interrupted(Exception):
    """The run was stopped by Ctrl-C or SIGTERM and saved its state."""


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
    """

    title: str
    folder: Path
    fresh: Callable[[], TrainState]
    batches: Any
    checkpoints: Checkpoints
    evaluate: Callable[[Any], dict[str, float]]
    prepare: Callable[[int, Any], None] | None = None
    stopping: EarlyStopping | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one run went.

    Attributes:
      state: its last state, or the best one under early stopping.
      tokens_per_second: read by the whole group; None if no step was timed.
      utilisation: share of the devices' peak that went into model FLOPs, or None.
      seconds: of this process's part.
      error: why it ended before its time, or None.
    """

    state: TrainState
    tokens_per_second: float | None
    utilisation: float | None
    seconds: float
    error: Diverged | None


def run(
    engine: Engine, members: Sequence[Member], *, steps: int, plan: Plan, work: Work, console: Console
) -> list[Outcome]:
    """Take every member to `steps` steps, each from its newest checkpoint if it has one.

    A member that diverges or stops early freezes; the others go on.

    Raises:
      Interrupted: on Ctrl-C or SIGTERM, after saving.
    """
    runs = [_Run(member, steps, console) for member in members]
    group = engine.join([run.start() for run in runs])
    began, clock, pending = time.perf_counter(), _Clock(), []
    profiler = _Profiler(plan.profile, members[0].folder / "profile")

    def take() -> Any:
        """The next batches; those who do not run are given another's, which changes nothing."""
        for index, run in enumerate(runs):
            run.take(lambda index=index: engine.member(group, index).params)
        if not any(run.running for run in runs):
            return None
        spare = next(run.batch for run in runs if run.batch is not None)
        return engine.place([spare if run.batch is None else run.batch for run in runs])

    def settle() -> None:
        """Hand every run the losses of the steps since the last time; the one place that waits for the devices."""
        for losses, finite, taken in jax.device_get(pending):
            for index in np.flatnonzero(taken):
                runs[index].lost(int(taken[index]), float(losses[index]), bool(finite[index]))
        pending.clear()

    def save(index: int, **scores: float) -> None:
        settle()
        if runs[index].error is None:
            runs[index].save(engine.member(group, index), scores)
        clock.restart()

    with _Stop() as stop, profiler, _progress(console) as progress:
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
            profiler.after(moving[0].done, group)
            batches = take()  # while the devices work
            logged = [i for i, run in enumerate(runs) if running[i] and run.due(plan.log_every, last=True)]
            if logged:
                values = jax.device_get(metrics)
                settle()
                clock.lap()
                for index in logged:
                    own = {name: float(value[index]) for name, value in values.items()}
                    runs[index].report(own, clock.speed(work.peak))
                progress.update(
                    task, completed=min(run.done for run in moving), note=_note(values["loss"], clock)
                )
            for index, run in enumerate(runs):
                if not (running[index] and run.running):
                    continue
                if run.due(plan.evaluate_every) or run.due(run.stops_every):
                    better, scores = run.score(engine.member(group, index).evaluated)
                    clock.restart()
                    if better:
                        save(index, **scores)
                    elif run.over:
                        save(index)
                if run.due(plan.checkpoint_every, last=True):
                    save(index)
            if stop.asked or _preempted(members[0].checkpoints, moving[0].done):
                for index in range(len(runs)):
                    save(index)
                done = min(run.done for run in moving)
                raise Interrupted(
                    f"{members[0].title} stopped at step {done}; the same command goes on from there"
                )
    seconds = time.perf_counter() - began
    return [
        Outcome(run.best(engine.member(group, index)), *clock.overall(work.peak), seconds, run.error)
        for index, run in enumerate(runs)
    ]


class _Run:
    """One member on its way."""

    def __init__(self, member: Member, steps: int, console: Console):
        self.member, self._steps, self._console = member, steps, console
        self.done = 0
        self.batch: Any = None
        self.error: Diverged | None = None
        self._position: Any = None
        self._watch = None if member.stopping is None else Watch(member.stopping)
        self._losses: collections.deque[float] = collections.deque(maxlen=SPIKES.window)

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

    def start(self) -> TrainState:
        """The state to begin with, and data, log and watch at the same place."""
        state, checkpoints = self.member.fresh(), self.member.checkpoints
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
        """Note a step's loss, and say so if it stands out; one that is not finite, or whose gradient is not, ends the
        run.
        """
        if not finite:
            said = f"loss is {loss}" + (", its gradient is not finite" if math.isfinite(loss) else "")
            self.error = self.error or Diverged(
                f"{self.member.title} step {step}: {said}; newest checkpoint: step "
                f"{self.member.checkpoints.latest} in {self.member.folder}; lower Optimizer.learning_rate"
            )
            return
        usual = SPIKES.usual(self._losses)
        if usual is not None and loss > usual:
            self._console.print(
                f"{self.member.title} step {step}: the loss spiked to {loss:.3f} (usual: {usual:.3f})"
            )
            self._log.write(step=step, spike=loss)
        self._losses.append(loss)

    def report(self, metrics: dict[str, float], speed: dict[str, float | None]) -> None:
        """A line of the log."""
        self._log.write(step=self.done, **speed, **metrics)

    def score(self, params: Any) -> tuple[bool, dict[str, float]]:
        """Evaluate; whether early stopping has seen nothing better, and the scores."""
        scores = self.member.evaluate(params)
        self._log.write(step=self.done, **scores)
        if self._watch is None or not self.due(self.stops_every):
            return False, scores
        return self._watch.see(self.done, scores), scores

    def save(self, state: TrainState, scores: dict[str, float]) -> None:
        """Save the state and where everything beside it stands."""
        watch = None if self._watch is None else self._watch.get_state()
        data = {"batches": self._position, "losses": list(self._losses), "watch": watch}
        self.member.checkpoints.save(state, data, scores or None)

    def best(self, state: TrainState) -> TrainState:
        """The state that counts: the last, or early stopping's choice."""
        if self._watch is None or self._watch.best is None or self._watch.step == self.done:
            return state
        return self.member.checkpoints.restore(state, self._watch.step)[0]


@dataclasses.dataclass(frozen=True)
class Spikes:
    """What counts as a spike: a loss so many deviations above the median of the last `window`."""

    window: int = 50
    deviations: float = 8.0

    def usual(self, losses: Sequence[float]) -> float | None:
        """The greatest loss that is no spike; None before there are enough to tell."""
        if len(losses) < self.window // 2:
            return None
        middle = statistics.median(losses)
        spread = statistics.median(abs(loss - middle) for loss in losses) * 1.4826  # of a normal distribution
        return middle + self.deviations * max(spread, 0.01 * abs(middle))


SPIKES = Spikes()


class Metrics:
    """`metrics.jsonl`: one JSON object a line, in order of steps; of several processes the first one writes it."""

    def __init__(self, path: Path, *, first: int):
        """Lines after step `first`, which a killed run wrote beyond its last checkpoint, are dropped."""
        self._path, self._writes = path, jax.process_index() == 0
        if self._writes:
            kept = [line for line in self._lines() if json.loads(line)["step"] <= first]
            path.write_text("".join(kept))

    def _lines(self) -> Iterator[str]:
        if self._path.exists():
            # A line that a kill cut short is the last one and has no newline.
            yield from (line for line in self._path.read_text().splitlines(True) if line.endswith("\n"))

    def write(self, **values: Any) -> None:
        """Append one line."""
        if self._writes:
            with self._path.open("a") as file:
                file.write(json.dumps(values) + "\n")


class _Clock:
    """Tokens and FLOPs per second between laps; the first lap, which compiles, and pauses are left out."""

    def __init__(self):
        self._rate: np.ndarray | None = None
        self._now, self._all = np.zeros(2), np.zeros(2)
        self._since: float | None = None
        self._seconds = 0.0

    def count(self, tokens: int, flops: float) -> None:
        self._now += (tokens, flops)

    def lap(self) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self._rate = self._now / (now - self._since)
            self._all += self._now
            self._seconds += now - self._since
        self._since, self._now = now, np.zeros(2)

    def restart(self) -> None:
        """Do not count what happened since the last lap."""
        if self._since is not None:
            self._since, self._now = time.perf_counter(), np.zeros(2)

    def speed(self, peak: float | None) -> dict[str, float | None]:
        """Of the last lap."""
        return dict(zip(("tokens_per_second", "utilisation"), self._speed(self._rate, peak), strict=True))

    def overall(self, peak: float | None) -> tuple[float | None, float | None]:
        """Tokens per second and utilisation over all laps."""
        return self._speed(self._all / self._seconds if self._seconds else None, peak)

    @staticmethod
    def _speed(rate: np.ndarray | None, peak: float | None) -> tuple[float | None, float | None]:
        if rate is None:
            return None, None
        return float(rate[0]), None if peak is None else float(rate[1]) / peak


class _Profiler:
    """Writes a trace of some steps; those that a run does not reach are left out."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self._steps, self._folder, self._on = steps, folder, False

    def before(self, done: int) -> None:
        if self._steps is not None and done == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def after(self, done: int, group: Any) -> None:
        if self._steps is not None and done == self._steps[1]:
            jax.block_until_ready(group)
            self.__exit__()

    def __enter__(self) -> "_Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False


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


def _preempted(checkpoints: Checkpoints, step: int) -> bool:
    return jax.process_count() > 1 and checkpoints.reached_preemption(step)


def _note(losses: np.ndarray, clock: _Clock) -> str:
    speed = clock.speed(None)["tokens_per_second"]
    return f"loss {np.nanmin(losses):.3f}" + ("" if speed is None else f"  {speed:,.0f} tokens/s")


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

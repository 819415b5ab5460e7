"""The loop: steps, logs, evaluations, checkpoints, progress. It resumes exactly where a run was stopped."""

import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from research.batch import Batch
from research.training.checkpoints import Checkpoints
from research.training.step import Step, TrainState


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
    """

    log_every: int = 10
    evaluate_every: int = 0
    checkpoint_every: int = 500
    workers: int = 0

    def __post_init__(self):
        if self.workers < 0:
            raise ValueError(f"Plan.workers = {self.workers}: expected at least 0")
        if self.log_every < 1:
            raise ValueError(f"Plan.log_every = {self.log_every}: expected at least 1")


@dataclasses.dataclass(frozen=True)
class Report:
    """How the run went: tokens read per second (None if no step was timed) and seconds of this process's part."""

    tokens_per_second: float | None
    seconds: float


class Metrics:
    """`metrics.jsonl`: one JSON object a line, in order of steps."""

    def __init__(self, path: Path, *, first: int):
        """Lines after step `first`, which a killed run wrote beyond its last checkpoint, are dropped."""
        self._path = path
        kept = [line for line in self._lines() if json.loads(line)["step"] <= first]
        path.write_text("".join(kept))

    def _lines(self) -> Iterator[str]:
        if self._path.exists():
            # A line that a kill cut short is the last one and has no newline.
            yield from (line for line in self._path.read_text().splitlines(True) if line.endswith("\n"))

    def write(self, **values: Any) -> None:
        """Append one line."""
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def run(
    state: TrainState,
    step: Step,
    batches: Iterator[Batch],
    *,
    steps: int,
    plan: Plan,
    folder: Path,
    checkpoints: Checkpoints,
    evaluate: Callable[[Any], dict[str, float]],
    prepare: Callable[[int, Any], None] | None = None,
    tokens: Callable[[Batch], int],
    console: Console,
    title: str = "",
) -> tuple[TrainState, Report]:
    """Take the state to `steps` steps, resuming from the newest checkpoint if there is one.

    Args:
      state: fresh; donated.
      step, batches: one optimiser step; an iterator with `get_state` and `set_state`.
      plan, folder, checkpoints: when to log, evaluate and save, and where.
      evaluate: parameters -> named numbers.
      prepare: called with the steps done and the parameters before each batch is taken: data that depends on the
        model is chosen there.
      tokens: how many tokens of a batch are read, for the speed.
      console, title: where progress is shown, and as what.

    Raises:
      Interrupted: on Ctrl-C or SIGTERM, after saving.
      Diverged: a logged loss is not finite; the newest checkpoint is named.
    """
    if checkpoints.latest is not None:
        state, position = checkpoints.restore(state)
        batches.set_state(position)  # ty: ignore[missing-attribute]
        console.print(f"{title} resumed at step {int(state.step)}")
    done = int(state.step)
    log = Metrics(folder / "metrics.jsonl", first=done)
    started, clock = time.perf_counter(), _Clock()
    metrics: dict[str, Any] = {}

    def diverged(loss: float) -> Diverged:
        return Diverged(
            f"{title} step {done}: loss is {loss}; newest checkpoint: step {checkpoints.latest} in {folder}; lower "
            "Optimizer.learning_rate"
        )

    def save() -> None:
        loss = float(metrics["loss"]) if metrics else 0.0
        if not math.isfinite(loss):
            raise diverged(loss)
        checkpoints.save(state, batches.get_state())  # ty: ignore[missing-attribute]

    with _Stop() as stop, _progress(console) as progress:
        task = progress.add_task(title, total=steps, completed=done, note="")
        while done < steps:
            if prepare is not None:
                prepare(done, state.params)
            batch = next(batches)
            state, metrics = step(state, batch)
            done += 1
            clock.count(tokens(batch))
            if done % plan.log_every == 0 or done == steps:
                metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
                clock.lap()
                log.write(step=done, tokens_per_second=clock.rate, **metrics)
                if not math.isfinite(metrics["loss"]):
                    raise diverged(metrics["loss"])
                speed = "" if clock.rate is None else f"{clock.rate:,.0f} tokens/s"
                progress.update(task, completed=done, note=f"loss {metrics['loss']:.3f}  {speed}")
            if plan.evaluate_every and done % plan.evaluate_every == 0 and done < steps:
                log.write(step=done, **evaluate(state.params))
                clock.restart()
            if plan.checkpoint_every and done % plan.checkpoint_every == 0:
                save()
                clock.restart()
            if stop.asked:
                save()
                raise Interrupted(f"{title} stopped at step {done}; the same command goes on from there")
    save()
    return state, Report(clock.overall, time.perf_counter() - started)


class _Clock:
    """Tokens per second between laps; the first lap, which compiles, and pauses are left out."""

    def __init__(self):
        self.rate: float | None = None
        self._tokens = self._all_tokens = 0
        self._since: float | None = None
        self._all_seconds = 0.0

    def count(self, tokens: int) -> None:
        self._tokens += tokens

    def lap(self) -> None:
        now = time.perf_counter()
        if self._since is not None:
            seconds = now - self._since
            self.rate = self._tokens / seconds
            self._all_tokens += self._tokens
            self._all_seconds += seconds
        self._since, self._tokens = now, 0

    def restart(self) -> None:
        """Do not count what happened since the last lap."""
        if self._since is not None:
            self._since, self._tokens = time.perf_counter(), 0

    @property
    def overall(self) -> float | None:
        """Tokens per second over all laps."""
        return self._all_tokens / self._all_seconds if self._all_seconds else None


class _Stop:
    """Notes Ctrl-C and SIGTERM, so that a step is never cut in half; a second Ctrl-C stops at once."""

    def __enter__(self) -> "_Stop":
        self.asked = False
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


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

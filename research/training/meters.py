"""What a loop measures and writes down: the log, speed, spikes of the loss, profiles."""

import dataclasses
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np


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
        """Lines after step `first`, which a killed run wrote beyond its last checkpoint, are cut off; those before are
        not written again, for which a full disk may have no room.
        """
        self._path, self._writes = path, jax.process_index() == 0
        if self._writes and path.exists():
            # A line that a kill or a full disk cut short is the last one and has no newline.
            kept = itertools.takewhile(
                lambda line: line.endswith(b"\n") and json.loads(line)["step"] <= first,
                path.read_bytes().splitlines(keepends=True),
            )
            os.truncate(path, sum(map(len, kept)))

    def write(self, **values: Any) -> dict[str, Any]:
        """Append one line, which is returned; a number that is not finite becomes null, since JSON has none.

        Raises:
          OSError: it cannot be written; one line, with the file and the cause.
        """
        known = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        if self._writes:
            try:
                with self._path.open("a") as file:
                    file.write(json.dumps(known, allow_nan=False) + "\n")
            except OSError as error:
                raise OSError(
                    f"cannot write {self._path}: {error.strerror}; make room there, or make it writable, and the same "
                    "command goes on from the last checkpoint"
                ) from error
        return known


class Clock:
    """Tokens and FLOPs per second between laps; the first lap, which compiles, and pauses are left out."""

    def __init__(self):
        self._rate: np.ndarray | None = None
        self._now, self._all = np.zeros(2), np.zeros(2)
        self._since: float | None = None
        self._seconds = 0.0

    def count(self, tokens: int, flops: float) -> None:
        """Note a step."""
        self._now += (tokens, flops)

    def lap(self) -> None:
        """Take the time of the steps since the last lap."""
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


class Profiler:
    """Writes a trace of some steps; those that a run does not reach are left out."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self._steps, self._folder, self._on = steps, folder, False

    def before(self, done: int) -> None:
        """Called with the steps done before each step."""
        if self._steps is not None and done == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def after(self, done: int, group: Any) -> None:
        """Called after each step, with what it made."""
        if self._steps is not None and done == self._steps[1]:
            jax.block_until_ready(group)
            self.__exit__()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False

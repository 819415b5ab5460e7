"""What benchmarks beside other libraries share: cases, their tokens, and how processes take turns.

Settings of an allocator and peak memory belong to a process, so every candidate of a case has one of its own. The
processes stay, and the driver asks them in turn for one step at a time: what disturbs the machine disturbs them all.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# What experiments.start sets by mallopt, for processes that do not import it. -1 as the unsigned number it is.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**64 - 1),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model, its dimensions and a batch; `length` is source and target together, half each.

    Attributes:
      family: "causal", "prefix" (a quarter of each row), "window" (256), "encoder-decoder", or "T5", the same with T5's
        position biases.
    """

    family: str
    length: int
    dtype: str = "float32"
    tokens: int = 4096
    width: int = 256
    layers: int = 4
    heads: int = 4
    hidden: int = 1024
    vocab: int = 4096
    window: int = 256

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return self.tokens // self.length

    @property
    def two_sided(self) -> bool:
        """Whether there is a source."""
        return self.family in ("encoder-decoder", "T5")

    @property
    def given(self) -> int:
        """Length of the prefix."""
        return self.length // 4 if self.family == "prefix" else 0

    def lines(self) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
        """Random tokens: the source, where there is one, what the decoder reads, and its labels."""
        size = self.length // 2 if self.two_sided else self.length
        draw = np.random.default_rng(0).integers(1, self.vocab, (2, self.rows, size + 1), dtype=np.int32)
        return draw[1, :, :-1] if self.two_sided else None, draw[0, :, :-1], draw[0, :, 1:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """A decoder's dimensions, and how many rows go on from a prompt by how many tokens."""

    rows: int
    prompt: int = 64
    tokens: int = 256
    width: int = 256
    layers: int = 4
    heads: int = 4
    hidden: int = 1024
    vocab: int = 4096

    def prompts(self) -> np.ndarray:
        """Random tokens."""
        return np.random.default_rng(0).integers(1, self.vocab, (self.rows, self.prompt), dtype=np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """A file of weights, tokens to read, and how many tokens are written after how many of them."""

    path: str
    ids: tuple[int, ...]
    prompt: int = 64
    tokens: int = 64

    def line(self, size: int) -> np.ndarray:
        """The first tokens, [1 size]."""
        return np.asarray(self.ids[:size], np.int32)[None]

    def mark(self, ids: list[int]) -> float:
        """A number that tells texts apart."""
        return float(zlib.crc32(np.asarray(ids, np.int32).tobytes()))


def serve(
    build: Callable[[Any], tuple[dict[str, Any], dict[str, Callable[[], float]]]], kind: type = Case
) -> None:
    """Be a process that takes turns: read a case, build it, answer each name on a line with seconds and a value.

    Args:
      build: of a case, facts to report at once and the calls by name; each returns a number when it is done.
      kind: the class of the case.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # a library's own prints do not belong between the answers

    def answer(**values: Any) -> None:
        print(json.dumps({**values, "peak_bytes": _peak()}), file=answers, flush=True)

    case = kind(**json.loads(sys.stdin.readline()))
    facts, calls = build(case)
    answer(**facts)
    for name in sys.stdin:
        began = time.perf_counter()
        value = calls[name.strip()]()
        answer(seconds=time.perf_counter() - began, value=value)


def _peak() -> int:
    """Most memory this process has had, in bytes; resource.getrusage would count its parent's too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A process to be: the module that serves, what it is asked to build, and its environment."""

    module: str
    case: Any
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


class Process:
    """A candidate at work."""

    def __init__(self, candidate: Candidate):
        """Starts it; `facts` are what it reports once it is built.

        Raises:
          RuntimeError: it ended instead.
        """
        self._name = " ".join((candidate.module, *candidate.arguments))
        self._process = subprocess.Popen(
            [sys.executable, "-m", candidate.module, *candidate.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **dict(candidate.environment)},
        )
        self.facts = self.ask(json.dumps(dataclasses.asdict(candidate.case)))

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to one line.

        Raises:
          RuntimeError: the process ended instead of answering.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        answered = self._process.stdout.readline()
        if not answered:
            raise RuntimeError(f"{self._name} ended with code {self._process.wait()}; its messages are above")
        return json.loads(answered)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

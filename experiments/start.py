"""What every command line does first and last."""

import ctypes
import os
import platform
import signal
import sys
import threading
from pathlib import Path

import jax
from absl import logging
from rich.console import Console

STOPPED = "stopped; the same command goes on from there"
CACHE_BYTES = 4 * 2**30  # of compiled programs on disk; the least recently used make room


def process() -> None:
    """Set up the process: quiet logs, kept compilations, one program at a time on a CPU and, on Linux, an allocator
    that keeps its memory and the widest vectors of the CPU. Call it before JAX looks for devices; `settings` says what
    was set.

    Compiled programs are kept in JAX_COMPILATION_CACHE_DIR, or below the user's cache. SIGTERM is taken as Ctrl-C is.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.set_verbosity(logging.WARNING)  # under absl, JAX reports every backend it does not find
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "architecture-ablations" / "programs"))
        # A bounded cache is a locked one: without the lock a process may read what another is still writing.
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # A program that waits for its turn already has its temporaries, by which kept memory would grow.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if _keeps_memory():
        _keep_memory()
    cpu = Path("/proc/cpuinfo")
    if cpu.exists() and "avx512f" in cpu.read_text():
        xla_flag("--xla_cpu_prefer_vector_width", "512")  # exp runs twice as fast


def settings() -> dict[str, str]:
    """What decides the speed of this process and not the numbers, for the record of a run."""
    return {
        "allocator": "kept" if _keeps_memory() else "system",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def deterministic() -> None:
    """Let a GPU sum in the same order every time; before JAX looks for devices."""
    xla_flag("--xla_gpu_deterministic_ops", "true")


def distributed(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the other processes of a run; where all is None, the cluster (Slurm, a TPU pod) says who they are.

    Raises:
      ValueError: some but not all are given.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise ValueError(
            f"--coordinator={coordinator} --processes={processes} --process={process}: expected all of them, or none"
        )
    jax.distributed.initialize(coordinator, processes, process)


def xla_flag(name: str, value: str) -> None:
    """Add a flag of XLA's for devices that JAX has not looked for yet; a flag of the user's own wins."""
    own = os.environ.get("XLA_FLAGS", "")
    if name not in own:
        os.environ["XLA_FLAGS"] = f"{own} {name}={value}".strip()


def _keeps_memory() -> bool:
    return os.environ.get("RESEARCH_KEEP_MEMORY", "1") != "0" and platform.libc_ver()[0] == "glibc"


def _keep_memory() -> None:
    """Stop glibc from returning memory to the system: else every step on a CPU faults its temporaries in again.

    The price is that the process keeps its peak memory. RESEARCH_KEEP_MEMORY=0 switches it off.
    """
    mallopt = ctypes.CDLL(None).mallopt
    arena_max, mmap_max, trim_threshold, top_pad = -8, -4, -1, -2  # names in malloc.h
    mallopt(arena_max, 1)
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)
    mallopt(top_pad, 64 * 2**20)


def console() -> Console:
    """Where progress and tables are shown; a table is not squeezed where nobody's window bounds it."""
    return Console(width=None if sys.stdout.isatty() else 160)


def fail(error: Exception | str) -> int:
    """Print what went wrong on stderr, in one line, or one for each of the error's `lines`; the exit code."""
    for line in getattr(error, "lines", (str(error),)):
        text = " ".join(line.split()) or type(error).__name__
        print(f"error: {text}", file=sys.stderr)
    return 1

"""What a run is made on: devices, precision, and what is recorded of the machine and the versions."""

import contextlib
import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Generator
from typing import Any

import jax

from experiments.experiment import Experiment, stacks
from research.analysis import hardware
from research.attention import core
from research.training.sharding import Placement


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


def peak_flops(planned: Experiment) -> float | None:
    """FLOP/s that all devices could do in the dtype of the model's products."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return hardware.measured_roof() * jax.process_count()  # its own devices share the cores
    dtype = stacks(planned.model)[0].dtype
    # float32 products are rounded to what `matmul_precision` names.
    peak = hardware.peak(device.device_kind, planned.matmul_precision if dtype == "float32" else dtype)
    return None if peak is None else peak * jax.device_count()


def cores() -> list[int]:
    """The CPU cores that this process may use. By how many there are XLA splits sums, so that losses differ a little,
    and after many steps by more.
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def environment(planned: Experiment) -> dict[str, Any]:
    """What a run is made with, on the mesh that there is."""
    device = jax.devices()[0]
    backends = {
        core.resolved_name(stack.backend) for stack in stacks(planned.model) if isinstance(stack.backend, str)
    }
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": importlib.metadata.version("flax"),
        "platform": device.platform,
        "device": device.device_kind,
        "processor": hardware.processor(),
        "cores": len(cores()) if device.platform == "cpu" else None,
        "attention": "+".join(sorted(backends)),
        "matmul_precision": planned.matmul_precision,
    }


def peak_memory() -> int:
    """Most bytes this process (or its accelerator) has held so far."""
    statistics = jax.devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return statistics.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)

"""What devices can do at most: FLOP/s of dense matrix products and bytes of memory, by JAX's `device_kind`.

A device is what JAX counts as one: a core on TPU v2, v3 and 7x, a chip on the other TPUs, a GPU.
"""

import dataclasses
import functools
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """Peak FLOP/s by the dtype of the operands (sums are float32), and bytes of memory."""

    flops: Mapping[str, float]
    memory: int


def _tpu(teraflops: float, gib: float) -> Device:
    # Only bfloat16 has a published peak: a float32 product is made of several of them.
    return Device(flops={"bfloat16": teraflops * 1e12}, memory=int(gib * 2**30))


def _gpu(gb: float, **teraflops: float) -> Device:
    return Device(flops={name: value * 1e12 for name, value in teraflops.items()}, memory=int(gb * 1e9))


def _tensor(gb: float, half: float, tf32: float, float32: float) -> Device:
    """A GPU since Ampere; dense products, not the doubled number of 2:4 sparsity."""
    return _gpu(gb, bfloat16=half, float16=half, tensorfloat32=tf32, float32=float32)


# Where one name begins another, the longer counts.
DEVICES: dict[str, Device] = {
    # docs.cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x}: per chip; v2, v3 and 7x have two devices on one.
    "TPU v2": _tpu(45 / 2, 16 / 2),
    "TPU v3": _tpu(123 / 2, 32 / 2),
    "TPU v4": _tpu(275, 32),
    "TPU v5 lite": _tpu(197, 16),
    "TPU v5e": _tpu(197, 16),
    "TPU v5": _tpu(459, 95),
    "TPU v6 lite": _tpu(918, 32),
    "TPU v6e": _tpu(918, 32),
    "TPU7x": _tpu(2307 / 2, 192 / 2),
    # NVIDIA V100 datasheet (2020): tensor cores of float16 only.
    "Tesla V100": _gpu(16, float16=125, float32=15.7),
    "Tesla V100-SXM2-32GB": _gpu(32, float16=125, float32=15.7),
    # NVIDIA T4 datasheet (2019).
    "Tesla T4": _gpu(16, float16=65, float32=8.1),
    # NVIDIA A100 datasheet (2021).
    "NVIDIA A100": _tensor(40, 312, 156, 19.5),
    "NVIDIA A100-SXM4-80GB": _tensor(80, 312, 156, 19.5),
    "NVIDIA A100 80GB": _tensor(80, 312, 156, 19.5),
    # NVIDIA L4 and L40S datasheets (2023).
    "NVIDIA L4": _tensor(24, 121, 60, 30.3),
    "NVIDIA L40S": _tensor(48, 362, 183, 91.6),
    # NVIDIA H100 architecture whitepaper (2022), table 2; H200 datasheet (2024): the same chip, more memory.
    "NVIDIA H100": _tensor(80, 989.4, 494.7, 66.9),
    "NVIDIA H100 PCIe": _tensor(80, 756, 378, 51.2),
    "NVIDIA H200": _tensor(141, 989.4, 494.7, 66.9),
    "NVIDIA GH200": _tensor(96, 989.4, 494.7, 66.9),
    # NVIDIA Blackwell datasheet (2025): HGX B200 and GB200, per GPU.
    "NVIDIA B200": _tensor(180, 2250, 1100, 75),
    "NVIDIA GB200": _tensor(186, 2500, 1250, 80),
}


def find(device_kind: str) -> Device | None:
    """The device of that kind, or None where it is not in the table."""
    names = [name for name in DEVICES if device_kind.lower().startswith(name.lower())]
    return DEVICES[max(names, key=len)] if names else None


def peak(device_kind: str, dtype: str) -> float | None:
    """FLOP/s of dense products of that dtype ("float32", "tensorfloat32", "bfloat16", "float16"), or None where the
    maker publishes none.
    """
    device = find(device_kind)
    return None if device is None else device.flops.get(str(dtype))


def memory(device_kind: str) -> int | None:
    """Bytes of memory, of which a runtime keeps some for itself, or None where the kind is unknown."""
    device = find(device_kind)
    return None if device is None else device.memory


def processor() -> str:
    """The model of the CPU as the system calls it, or its kind of machine."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@functools.cache
def measured_roof(sizes: tuple[int, ...] = (1024, 2048), repeats: int = 3) -> float:
    """FLOP/s of the best square float32 product of these sizes on JAX's default device, measured once a process."""

    @jax.jit
    def product(x: jax.Array) -> jax.Array:
        return jnp.matmul(x, x, precision="highest")

    best = 0.0
    for size in sizes:
        x = jnp.ones((size, size), jnp.float32)
        jax.block_until_ready(product(x))
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(product(x))
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best

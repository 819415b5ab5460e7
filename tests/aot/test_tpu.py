"""Ahead-of-time compilation for TPUs without one: XLA:TPU and Mosaic compile our attention, nothing runs.

Run by `make test-aot`, which installs libtpu.
"""

import os

import pytest

pytest.importorskip("libtpu", reason="libtpu is not installed; `make test-aot` installs it")

os.environ.update(  # read when libtpu is loaded, at the first topology
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research.attention import blockwise, splash
from research.attention.core import attend
from research.attention.masks import (
    Causal,
    Chunk,
    Dilated,
    Full,
    Prefix,
    Sinks,
    Slots,
    SymmetricWindow,
    Window,
)

ROWS, LENGTH, HEADS, GROUPS = 2, 1000, 4, 2


def compiled(backend, topology, mask, width=64, dtype=jnp.bfloat16, softcap=None):
    """The program of output, log-sum-exp and gradients for one chip; packed rows where the mask allows them."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=jax.sharding.SingleDeviceSharding(device))
    line = Slots.arange(LENGTH, (ROWS,))
    line = dataclasses.replace(line, prefix=line.position < 300)
    differences_decide = mask in (Full(), Causal()) or isinstance(mask, (Window, SymmetricWindow, Dilated))

    def loss(q, k, v, segment):
        packed = Slots(jnp.asarray(line.position), segment, jnp.asarray(line.prefix), start=line.start)
        slots = packed if differences_decide else line
        call = {"mask": mask, "q_slots": slots, "k_slots": slots, "scale": width**-0.5, "softcap": softcap}
        out, lse = backend(q, k, v, **call)
        return jnp.sum(out) + jnp.sum(jnp.where(lse > -1e29, lse, 0))

    program = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    return program.lower(
        shape((ROWS, LENGTH, HEADS, width), dtype),
        shape((ROWS, LENGTH, GROUPS, width), dtype),
        shape((ROWS, LENGTH, GROUPS, width), dtype),
        shape((ROWS, LENGTH), np.int32),
    ).compile()


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize(
    "mask",
    [
        Full(),
        Causal(),
        Window(200),
        SymmetricWindow(100),
        Dilated(50, 3),
        Chunk(96),
        Prefix(),
        Causal() & (Sinks(4) | Window(100)),
    ],
    ids=str,
)
def test_splash_compiles_forward_and_backward(mask, topology):
    backend = functools.partial(splash.attend, interpret=False)
    assert compiled(backend, topology, mask).as_text().count("tpu_custom_call") >= 3  # forward, dq, dk and dv


@pytest.mark.parametrize("width", [32, 80, 128, 256])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_splash_compiles_for_every_head_width_and_dtype(width, dtype):
    backend = functools.partial(splash.attend, interpret=False)
    assert "tpu_custom_call" in compiled(backend, "v5e:2x2", Causal(), width, dtype, softcap=30.0).as_text()


@pytest.mark.parametrize("schedule", [blockwise.dynamic, blockwise.static])
def test_blockwise_compiles_forward_and_backward(schedule):
    backend = functools.partial(blockwise.attend, schedule=functools.partial(schedule, size=256))
    assert compiled(backend, "v5e:2x2", Causal()).as_text()


def compiled_on_four_chips(backend, *, data=1, fsdp=1, tensor=1, sequence=1):
    """The program of output and gradients of packed causal rows; arguments come whole, attention shares them out."""
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    devices = np.asarray(chips.devices).reshape(data, fsdp, tensor, sequence)
    mesh = Mesh(devices, ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec()))
    line = Slots.arange(LENGTH, (ROWS,))

    def loss(q, k, v, segment):
        slots = Slots(jnp.asarray(line.position), segment, jnp.asarray(line.prefix), start=line.start)
        return jnp.sum(attend(q, k, v, mask=Causal(), q_slots=slots, k_slots=slots, backend=backend))

    keys = shape((ROWS, LENGTH, GROUPS, 64), jnp.bfloat16)
    queries, segment = shape((ROWS, LENGTH, HEADS, 64), jnp.bfloat16), shape((ROWS, LENGTH), np.int32)
    with jax.set_mesh(mesh):
        return (
            jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
            .lower(queries, keys, keys, segment)
            .compile()
            .as_text()
        )


def test_splash_compiles_on_several_chips_rows_and_heads_apart():
    text = compiled_on_four_chips(functools.partial(splash.attend, interpret=False), data=2, tensor=2)
    assert text.count("tpu_custom_call") >= 3


def test_blockwise_compiles_on_several_chips_queries_apart():
    text = compiled_on_four_chips(blockwise.attend, data=2, sequence=2)
    assert "all-gather" in text  # keys and values

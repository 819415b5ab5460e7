"""Compile an experiment's step for TPUs that are not here:

    python -m experiments.aot --gin_file=configs/architecture/prefix_lm.gin --gin_file=configs/scale/base.gin \
        --topology=v5e:4x4

It prints what a chip holds, which collectives and kernels the program has and how long compiling took. XLA:TPU does
the work (`pip install 'jax[tpu]'`), so a program that does not fit is refused as the machine would refuse it.
"""

import collections
import dataclasses
import os
import re
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.update(  # read when libtpu is loaded, at the first topology
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)

import jax
from absl import app, flags
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table

from experiments import budget as budgeting
from experiments import configs, experiment, machine, start
from research.analysis import hardware
from research.attention.platforms import compiling_for
from research.training.sharding import Placement

FLAGS = flags.FLAGS
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class DoesNotFit(RuntimeError):
    """The program needs more memory than a chip has."""


def chips(topology: str) -> list[Any]:
    """The devices of a TPU topology.

    Raises:
      ConfigError: libtpu is not installed, or knows no such topology.
    """
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:
        raise configs.ConfigError(
            f"--topology={topology}: {str(error).splitlines()[0]}; expected e.g. v5e:4x4, v5p:2x2x1 or v6e:16x16, and "
            "libtpu (pip install 'jax[tpu]')"
        ) from error


def compiled(
    planned: experiment.Experiment, devices: Sequence[Any], data_dir: str | None
) -> tuple[Any, float]:
    """The step of an experiment for those devices, and the seconds it took to compile.

    Raises:
      DoesNotFit: XLA says so; its own words.
    """
    batch, vocab = experiment.example(planned, data_dir)
    functions = experiment.trainer(planned, vocab)
    placement = Placement(planned.parallelism, planned.parallelism.mesh(devices))
    placement.check(*batch.labels.shape)
    state = jax.eval_shape(
        lambda key: functions.initial(key, planned.numbers, rows=planned.data.batch), jax.random.key(0)
    )
    shardings = placement.state(state)
    step = jax.jit(functions.update, donate_argnums=0, out_shardings=(shardings, None))
    with compiling_for("tpu"), machine.surroundings(planned, placement):
        began = time.perf_counter()
        lowered = step.lower(
            placement.shapes(state, shardings), placement.shapes(batch, placement.rows(batch))
        )
        try:
            program = lowered.compile()
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error) or "exceeds available" in str(error):
                raise DoesNotFit(" ".join(str(error).split())[:300]) from error
            raise
    return program, time.perf_counter() - began


def report(program: Any, seconds: float, device_kind: str) -> dict[str, Any]:
    """What there is to say of a program: bytes of one chip, and how many collectives and kernels it has."""
    memory, text = program.memory_analysis(), program.as_text()
    aliased = memory.alias_size_in_bytes
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - aliased,
        "temporaries": memory.temp_size_in_bytes,
        "chip": hardware.memory(device_kind),
        "collectives": {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES},
        "kernels": dict(collections.Counter(re.findall(r'custom_call_target="([^"]+)"', text))),
        "compile_seconds": seconds,
    }


def show(found: dict[str, Any], title: str, console: Console) -> None:
    """The report as a table."""
    table = Table(title=title, show_header=False)
    used = found["arguments"] + found["outputs"] + found["temporaries"]
    for name in ("arguments", "outputs", "temporaries"):
        table.add_row(f"{name} of a chip", f"{found[name] / 2**30:.2f} GiB")
    of = "" if found["chip"] is None else f" of {found['chip'] / 2**30:.0f} GiB"
    table.add_row("together", f"{used / 2**30:.2f} GiB{of}")
    collectives = ", ".join(f"{count} {name}" for name, count in found["collectives"].items() if count)
    kernels = ", ".join(f"{count} {name}" for name, count in found["kernels"].items())
    table.add_row("collectives", collectives or "none")
    table.add_row("kernels", kernels or "none")
    table.add_row("compile time", f"{found['compile_seconds']:.1f} s")
    console.print(table)


def main(argv: list[str]) -> int:
    """Compile and report. Returns the exit code: 1 if it does not fit."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --gin_file=...")
    console = start.console()
    start.process()
    jax.config.update("jax_enable_compilation_cache", False)  # such a program cannot be read again
    try:
        planned, _ = experiment.load(FLAGS.gin_file, FLAGS.gin_param)
        devices = chips(FLAGS.topology)
        try:
            program, seconds = compiled(planned, devices, FLAGS.data_dir)
        except DoesNotFit as error:
            start.fail(f"does not fit {FLAGS.topology}: {error}")
            data = planned.parallelism.mesh(devices).shape["data"]
            spread = dataclasses.replace(planned.parallelism, data=data)
            planned = dataclasses.replace(planned, parallelism=spread)
            memory = hardware.memory(devices[0].device_kind)
            if memory is not None:
                budgeting.advise(planned, memory, FLAGS.data_dir, console, "tpu")
            return 1
    except (ValueError, OSError, RuntimeError) as error:
        return start.fail(error)
    found = report(program, seconds, devices[0].device_kind)
    show(found, f"{FLAGS.gin_file[0]} on {FLAGS.topology}", console)
    return 0


if __name__ == "__main__":
    flags.DEFINE_multi_string("gin_file", [], "gin file; repeat it, later files override earlier ones")
    flags.DEFINE_multi_string("gin_param", [], 'gin binding, e.g. "Parallelism.fsdp=4"; repeat it')
    flags.DEFINE_string("topology", "v5e:4x4", "chips to compile for")
    flags.DEFINE_string("data_dir", None, "folder of downloaded archives (default: the user's cache)")
    app.run(main)

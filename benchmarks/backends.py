"""A training step by attention backend: python -m benchmarks.backends [--out=results/benchmarks]

The stacks of configs/scale/base.gin (12 layers of width 768, bfloat16) on an accelerator. The backends of a family take
steps in turn in one process; every round of a backend is several steps, one after another, as the training loop takes
them. Figures are medians over rounds; ratios are within a family. Ctrl-C ends it early with the families that are done.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags
from rich.progress import track

from benchmarks.report import conditions, publish
from experiments import experiment, machine, start

FLAGS = flags.FLAGS
FAMILIES = ("causal_lm", "prefix_lm", "encoder_decoder_lm")


def planned(family: str, backend: str) -> experiment.Experiment:
    """The experiment of a family with that backend; its text needs no download."""
    files = [f"configs/architecture/{family}.gin", f"configs/scale/{FLAGS.scale}.gin"]
    bindings = [
        "Data.corpus=@StandardLibrary()",
        f"Data.batch={FLAGS.batch}",
        f"StackConfig.backend='{backend}'",
    ]
    return experiment.load(files, bindings)[0]


def prepared(one: experiment.Experiment) -> tuple[Callable[[int], float], dict[str, Any]]:
    """What takes so many steps and gives the last loss, and what is known of a step."""
    batch, vocab = experiment.example(one, None)
    functions = experiment.trainer(one, vocab)
    price = experiment.cost(one.model, one.data, None)
    state = functions.initial(jax.random.key(one.seed), one.numbers)
    batch = jax.device_put(batch)

    def steps(n: int) -> float:
        nonlocal state
        for _ in range(n):
            state, metrics = functions.step(state, batch)
        return float(jax.block_until_ready(metrics)["loss"])

    began = time.perf_counter()
    steps(1)
    facts = {
        "first_step_seconds": time.perf_counter() - began,
        "tokens": price.tokens,
        "flops": price.train_flops,
        "parameters": price.parameters,
        "peak": machine.peak_flops(one),
    }
    return steps, facts


def measure(family: str) -> list[dict[str, Any]]:
    """One row for each backend."""
    ready = {}
    for backend in FLAGS.backends:
        one = planned(family, backend)
        with machine.surroundings(one, None):
            ready[backend] = prepared(one)
    rounds: dict[str, list[float]] = {backend: [] for backend in ready}
    losses = {}
    with machine.surroundings(one, None):
        for _ in range(FLAGS.rounds + 1):
            for backend, (steps, _) in ready.items():
                began = time.perf_counter()
                losses[backend] = steps(FLAGS.steps)
                rounds[backend].append((time.perf_counter() - began) / FLAGS.steps)
    return [
        {
            "family": family,
            "backend": backend,
            "seconds": statistics.median(rounds[backend][1:]),
            "last_loss": losses[backend],
            **facts,
        }
        for backend, (_, facts) in ready.items()
    ]


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The rows as text; the ratio is to the first backend of the family."""
    lines = [
        ["family", "backend", "ms a step", "tokens/s", "speed", "of the peak", "first step s", "last loss"]
    ]
    for row in rows:
        first = next(one for one in rows if one["family"] == row["family"])
        share = row["flops"] / row["seconds"] / row["peak"] if row["peak"] else None
        lines.append(
            [
                row["family"],
                row["backend"],
                f"{1e3 * row['seconds']:.1f}",
                f"{row['tokens'] / row['seconds']:,.0f}",
                f"{first['seconds'] / row['seconds']:.2f}x",
                "-" if share is None else f"{share:.0%}",
                f"{row['first_step_seconds']:.1f}",
                f"{row['last_loss']:.4f}",
            ]
        )
    return lines


def main(argv: list[str]) -> int:
    """Measure the families and print (and with --out write) the table. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --batch=...")
    start.process()
    console = start.console()
    rows = []
    try:
        for family in track(FLAGS.families, "steps", console=console, transient=True):
            rows += measure(family)
    except ValueError as error:
        return start.fail(error)
    except KeyboardInterrupt:
        console.print("stopped; the families that are done are kept")
    about = {"scale": FLAGS.scale, "batch": FLAGS.batch}
    publish(
        "backends",
        table(rows),
        rows,
        console=console,
        title="training steps",
        notes=conditions(**about),
        **about,
    )
    return 0


if __name__ == "__main__":
    flags.DEFINE_list("families", list(FAMILIES), "files of configs/architecture")
    flags.DEFINE_list("backends", ["blockwise", "cudnn"], "of attention; ratios are to the first")
    flags.DEFINE_string("scale", "base", "file of configs/scale")
    flags.DEFINE_integer("batch", 32, "rows of a batch", lower_bound=1)
    flags.DEFINE_integer("steps", 10, "steps of a round", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "timed rounds", lower_bound=1)
    app.run(main)

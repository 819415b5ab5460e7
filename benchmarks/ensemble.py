"""An ensemble's step beside the same runs one after another: python -m benchmarks.ensemble [--out=results/benchmarks]

Both are compiled steps in one process, timed in turn, round after round; figures are medians. A replica has its own
seed, learning rate and batch. On a CPU this shows whether an ensemble is worth it at all; `launch` finds that out.
"""

import statistics
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags
from rich.progress import track

from benchmarks.report import publish
from experiments import start
from research.attention.masks import Slots
from research.batch import Batch, Tokens
from research.models.config import StackConfig
from research.models.families import DecoderConfig
from research.training.ensemble import Ensemble, Solo
from research.training.optimizers import AdamW
from research.training.step import Trainer

FLAGS = flags.FLAGS
VOCAB, LENGTH = 288, 128


def batch(rows: int, seed: int) -> Batch:
    """Rows of random tokens."""
    ids = np.random.default_rng(seed).integers(0, VOCAB, (rows, LENGTH + 1)).astype(np.int32)
    weights = np.ones((rows, LENGTH), np.float32)
    return Batch(Tokens(ids[:, :-1], Slots.arange(LENGTH, (rows,))), ids[:, 1:], weights)


def measure(width: int, layers: int, rows: int, replicas: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step of so many replicas, together and one after another."""
    config = DecoderConfig(stack=StackConfig(layers=layers, width=width, heads=4))
    trainer = Trainer(config, vocab=VOCAB, optimizer=AdamW(), steps=10_000)
    solo, ensemble = Solo(trainer, rows=rows), Ensemble(trainer, replicas)
    numbers = [trainer.numbers | {"learning_rate": 1e-4 * (1 + index)} for index in range(replicas)]
    alone = [solo.initial(jax.random.key(index), numbers[index]) for index in range(replicas)]
    group = ensemble.join([solo.initial(jax.random.key(index), numbers[index]) for index in range(replicas)])
    batches = [batch(rows, index) for index in range(replicas)]
    running = np.ones(replicas, bool)
    times: dict[str, list[float]] = {"ensemble": [], "separate": []}
    for _ in range(rounds + 2):  # the first compiles, the second warms up
        began = time.perf_counter()
        group, metrics = ensemble.step(group, ensemble.place(batches), running)
        jax.block_until_ready(metrics)
        times["ensemble"].append(time.perf_counter() - began)
        began = time.perf_counter()
        for index, own in enumerate(batches):
            alone[index], metrics = solo.step(alone[index], solo.place([own]), running[:1])
        jax.block_until_ready(metrics)
        times["separate"].append(time.perf_counter() - began)
    medians = {f"{name}_ms": 1e3 * statistics.median(values[2:]) for name, values in times.items()}
    return {"width": width, "layers": layers, "rows": rows, "replicas": replicas, **medians}


def main(argv: list[str]) -> int:
    """Run the cases and print (and with --out write) the table. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --rounds=...")
    start.process()
    console = start.console()
    cases = [
        (width, layers, rows, replicas)
        for width, layers, rows in ((64, 2, 8), (64, 4, 32), (128, 4, 32))
        for replicas in (1, 2, 4, 8)
    ]
    found = [
        measure(*case, FLAGS.rounds) for case in track(cases, "ensembles", console=console, transient=True)
    ]
    head = ["width", "layers", "rows", "replicas", "ensemble, ms", "one after another, ms", "times as fast"]
    lines = [head]
    for row in found:
        speed = row["separate_ms"] / row["ensemble_ms"]
        sizes = [str(row[name]) for name in ("width", "layers", "rows", "replicas")]
        lines.append([*sizes, f"{row['ensemble_ms']:.1f}", f"{row['separate_ms']:.1f}", f"{speed:.2f}"])
    publish(
        "ensemble", lines, found, console=console, title=f"one step of all replicas, {LENGTH} tokens a row"
    )
    return 0


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 10, "timed rounds", lower_bound=1)
    app.run(main)

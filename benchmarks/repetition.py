"""The metrics of repetition: python -m benchmarks.repetition [--out=results/benchmarks]

Samples are made up: tokens by a power law, of which half end in a loop. Metrics take turns; figures are medians over
rounds. MAUVE needs a model, and self-BLEU compares every sample with all others: it is timed and not in the sum.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags
from rich.progress import track

from benchmarks.report import publish
from experiments import start
from research.evaluation import repetition
from research.evaluation.loops import loops_holtzman_code, t50
from research.evaluation.samples import METRICS, Lines

FLAGS = flags.FLAGS
GRID = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def made() -> Lines:
    """The samples."""
    rng = np.random.default_rng(0)
    lines = [np.minimum(rng.zipf(1.3, FLAGS.tokens), FLAGS.vocab) for _ in range(FLAGS.samples)]
    for line in lines[::2]:
        begin, period = int(rng.integers(FLAGS.tokens // 2)), int(rng.integers(3, 40))
        line[begin:] = np.resize(line[begin : begin + period], FLAGS.tokens - begin)
    return [line.astype(np.int32) for line in lines]


def timed(lines: Lines) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    others = [np.roll(line, 1) for line in lines]
    counts = [int((loops_holtzman_code(lines).period > 0).sum() * (1 - each)) for each in GRID]
    chances = [np.abs(np.sin(line[: FLAGS.tokens // 8 * 8].reshape(8, -1) * 1.0)) for line in lines]
    return {
        **{name: lambda metric=metric: metric(lines, 4) for name, metric in METRICS.items()},
        "rep-l, wrep-l": lambda: (
            repetition.rep_l(others, lines, 128),
            repetition.wrep_l(others, lines, 128),
        ),
        "TP, IP, WR": lambda: repetition.reinforcement(chances, [each > 0.5 for each in chances]),
        "t50": lambda: t50(GRID, counts, [len(lines)] * len(GRID)),
        "self-BLEU-4": lambda: repetition.self_bleu(lines),
    }


def main(argv: list[str]) -> int:
    """Measure and print (and with --out write) the table. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --samples=...")
    start.process()
    console = start.console()
    run = timed(made())
    rounds: dict[str, list[float]] = {name: [] for name in run}
    try:
        for _ in track(range(FLAGS.rounds), "rounds", console=console, transient=True):
            for name, measure in run.items():
                began = time.perf_counter()
                measure()
                rounds[name].append(time.perf_counter() - began)
    except KeyboardInterrupt:
        return start.fail("stopped")
    rows = [{"metric": name, "seconds": statistics.median(found)} for name, found in rounds.items()]
    whole = sum(row["seconds"] for row in rows if row["metric"] != "self-BLEU-4")
    lines = [["metric", "s"], *([row["metric"], f"{row['seconds']:.3f}"] for row in rows)]
    about = {"samples": FLAGS.samples, "tokens": FLAGS.tokens, "vocab": FLAGS.vocab}
    publish(
        "repetition",
        lines,
        rows,
        console=console,
        title="metrics of repetition",
        notes=[f"All but self-BLEU: {whole:.2f} s for {FLAGS.samples:,} samples of {FLAGS.tokens} tokens."],
        **about,
    )
    return 0


if __name__ == "__main__":
    flags.DEFINE_integer("samples", 1000, "how many", lower_bound=2)
    flags.DEFINE_integer("tokens", 256, "of a sample", lower_bound=16)
    flags.DEFINE_integer("vocab", 512, "different tokens", lower_bound=2)
    flags.DEFINE_integer("rounds", 3, "timed rounds", lower_bound=1)
    app.run(main)

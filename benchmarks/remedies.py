"""A tuning step with remedies against forgetting: python -m benchmarks.remedies [--out=results/benchmarks]

The experiment is the arm `plain` of the study of forgetting, from drawn parameters, whose values cost no time. Arms
take steps in turn in one process; figures are medians over rounds, ratios are to the step without a remedy. What is
prepared before the first step (the Fisher information) is timed the second time. Ctrl-C ends it early with the rounds
that are done.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags
from rich.progress import track

from benchmarks.report import publish
from experiments import experiment, machine, start, study
from research.data.corpora import StateOfTheUnion
from research.training.adapters import LoRA
from research.training.rehearsal import GenerativeReplay
from research.training.remedies import EWC, L2SP, SI, LwF
from research.training.step import Recipe

FLAGS = flags.FLAGS


def planned(name: str) -> experiment.Experiment:
    """The experiment with that remedy."""
    plain, _ = study.load("forgetting", FLAGS.scale).experiment("plain", 0)
    plain = dataclasses.replace(plain, init_from=None)
    held = {
        "L2-SP": L2SP(strength=0.01),
        "EWC": EWC(strength=0.01, corpus=StateOfTheUnion(), examples=FLAGS.examples),
        "LwF": LwF(strength=1.0),
        "SI": SI(strength=0.01),
        "generative replay": GenerativeReplay(strength=0.1),
    }
    if name == "LoRA":
        return dataclasses.replace(plain, optimizer=LoRA(learning_rate=3e-3))
    return dataclasses.replace(plain, recipe=Recipe(remedies=(held[name],) if name in held else ()))


def prepared(one: experiment.Experiment) -> tuple[Callable[[int], None], float]:
    """What takes so many steps, and the seconds in which what the remedies keep is made."""
    text = experiment.dataset(one.data, None)
    batch, vocab = experiment.example(one, None)
    functions = experiment.trainer(one, vocab)
    state = functions.initial(jax.random.key(0), one.numbers)
    seconds = 0.0
    for _ in range(2):  # the first compiles
        began = time.perf_counter()
        ready = jax.block_until_ready(functions.prepared(state, text, 0))
        seconds = time.perf_counter() - began
    state, batch = ready, jax.device_put(batch)

    def steps(n: int) -> None:
        nonlocal state
        for _ in range(n):
            state, metrics = functions.step(state, batch)
        jax.block_until_ready(metrics)

    steps(1)
    return steps, seconds


def main(argv: list[str]) -> int:
    """Measure and print (and with --out write) the table. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --scale=...")
    start.process()
    console = start.console()
    names = ("none", "L2-SP", "EWC", "SI", "LwF", "generative replay", "LoRA")
    rounds: dict[str, list[float]] = {name: [] for name in names}
    try:
        one = planned("none")
        with machine.surroundings(one, None):
            ready = {
                name: prepared(planned(name))
                for name in track(names, "preparing", console=console, transient=True)
            }
            for _ in track(range(FLAGS.rounds), "rounds", console=console, transient=True):
                for name, (steps, _) in ready.items():
                    began = time.perf_counter()
                    steps(FLAGS.steps)
                    rounds[name].append((time.perf_counter() - began) / FLAGS.steps)
    except ValueError as error:
        return start.fail(error)
    except KeyboardInterrupt:
        if not rounds[names[-1]]:
            return start.fail("stopped before a round was done")
        console.print("stopped; the rounds that are done are kept")
    plain = statistics.median(rounds["none"])
    rows: list[dict[str, Any]] = []
    for name in names:
        seconds = statistics.median(rounds[name])
        rows.append(
            {"remedy": name, "seconds": seconds, "ratio": seconds / plain, "prepared": ready[name][1]}
        )
    lines = [["remedy", "ms a step", "of a step without", "prepared in s"]]
    lines += [
        [row["remedy"], f"{1e3 * row['seconds']:.2f}", f"{row['ratio']:.2f}x", f"{row['prepared']:.2f}"]
        for row in rows
    ]
    about = {"scale": FLAGS.scale, "examples": FLAGS.examples, "cores": len(machine.cores())}
    publish(
        "remedies",
        lines,
        rows,
        console=console,
        title="tuning steps with remedies",
        notes=[f"The Fisher information is of {FLAGS.examples:,} rows, with true labels."],
        **about,
    )
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("scale", "small", "file of configs/scale")
    flags.DEFINE_integer("examples", 1000, "rows that the Fisher information is of", lower_bound=1)
    flags.DEFINE_integer("steps", 20, "steps of a round", lower_bound=1)
    flags.DEFINE_integer("rounds", 11, "timed rounds", lower_bound=1)
    app.run(main)

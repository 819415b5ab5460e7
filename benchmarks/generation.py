"""Greedy text beside Hugging Face's `generate`: python -m benchmarks.generation [--out=results/benchmarks]

Ours and LLaMA of the same dimensions are processes of their own and take turns, round after round. A turn reads prompts
and adds tokens to all of them; another one adds a single token, which is the time to the first. Figures are medians,
ratios are the median over rounds of what a round says. Both have the same allocator setting and all cores.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags
from rich.progress import track

from benchmarks.report import publish
from benchmarks.turns import KEEP_MEMORY, Candidate, Process, Writing, serve
from experiments import start
from research.generation import engine
from research.generation.engine import Generation, Greedy, prompt
from research.models.config import StackConfig
from research.models.families import DecoderConfig

FLAGS = flags.FLAGS
BARS = {1: 4.0, 8: 3.0, 32: 3.0}  # tokens/s in units of Hugging Face's, by rows
PAUSE = 0.3  # seconds between turns: idle threads of the other one spin for 0.2 s


def build(case: Writing) -> tuple[dict[str, Any], dict[str, Callable[[], float]]]:
    """Our engine on that case."""
    start.process()
    stack = StackConfig(layers=case.layers, width=case.width, heads=case.heads, hidden=case.hidden)
    model = DecoderConfig(stack=stack, tied_embeddings=False).build(vocab=case.vocab, key=jax.random.key(0))
    given = prompt(case.prompts(), pad=0)
    keys = jax.random.split(jax.random.key(1), case.rows)
    generate = jax.jit(engine.generate, static_argnums=3)

    config = Generation(tokens=case.tokens, choice=Greedy())
    begin = jax.jit(lambda model, given: Greedy()(engine.begin(model, given, keys, config).logits, keys))

    def written() -> float:
        history = jax.block_until_ready(generate(model, given, keys, config)).history
        return float(history.length.sum() - history.prompt.sum())

    def first() -> float:
        return float(len(jax.block_until_ready(begin(model, given))))

    return {"version": jax.__version__}, {"all": written, "first": first}


MODULES = {
    "ours": ("benchmarks.generation", ("--serve",)),
    "Hugging Face": ("benchmarks.generation_torch", ()),
}


def measure(case: Writing, rounds: int) -> dict[str, Any]:
    """One case: both in turn.

    Raises:
      RuntimeError: one of them ended, or wrote another number of tokens than it was asked for.
    """
    environment = tuple(KEEP_MEMORY.items())
    processes: dict[str, Process] = {}
    try:
        for name, (module, arguments) in MODULES.items():
            processes[name] = Process(Candidate(module, case, arguments, environment))
        found: dict[str, dict[str, Any]] = {name: {"all": [], "first": []} for name in processes}
        for turn in range(rounds + 2):  # the first compiles, the second warms up
            for name, process in processes.items():
                for call, tokens in (("all", case.tokens), ("first", 1)):
                    said = process.ask(call)
                    if said["value"] != tokens * case.rows:
                        raise RuntimeError(
                            f"{name} wrote {said['value']:.0f} tokens, not {tokens * case.rows}"
                        )
                    if turn > 1:
                        found[name][call].append(said["seconds"])
                    found[name]["peak_bytes"] = said["peak_bytes"]
                    time.sleep(PAUSE)
        versions = {name: process.facts["version"] for name, process in processes.items()}
        return {"case": dataclasses.asdict(case), "candidates": found, "versions": versions}
    finally:
        for process in processes.values():
            process.close()


def ratio(row: dict[str, Any], call: str) -> float:
    """How many times as fast as Hugging Face ours is."""
    theirs, own = (row["candidates"][name][call] for name in ("Hugging Face", "ours"))
    return statistics.median(b / a for a, b in zip(own, theirs, strict=True))


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The rows as text."""
    lines = [["rows", "candidate", "tokens/s", "ours is", "to the first token, ms", "ours is", "peak MB"]]
    for row in rows:
        case = Writing(**row["case"])
        for name, one in row["candidates"].items():
            speed = case.rows * case.tokens / statistics.median(one["all"])
            shown = [f"{ratio(row, call):.2f}x" if name != "ours" else "" for call in ("all", "first")]
            first = f"{1e3 * statistics.median(one['first']):.1f}"
            peak = f"{one['peak_bytes'] / 1e6:,.0f}"
            lines.append([str(case.rows), name, f"{speed:,.0f}", shown[0], first, shown[1], peak])
    return lines


def main(argv: list[str]) -> int:
    """Measure the cases and print (and with --out write) the table. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --rows=...")
    if FLAGS.serve:
        serve(build, Writing)
        return 0
    console = start.console()
    cases = [Writing(rows=int(rows)) for rows in FLAGS.rows]
    try:
        rows = [
            measure(case, FLAGS.rounds) for case in track(cases, "texts", console=console, transient=True)
        ]
    except RuntimeError as error:
        return start.fail(error)
    notes = [f"Prompts of {cases[0].prompt} tokens, {cases[0].tokens} new ones; {os.cpu_count()} cores."]
    for row in rows:
        bar, reached = BARS.get(row["case"]["rows"]), ratio(row, "all")
        if bar is not None:
            met = "met" if reached >= bar else "missed"
            notes.append(f"- {row['case']['rows']} rows: {reached:.2f}x Hugging Face (bar {bar:.0f}x): {met}")
    title = "greedy text"
    publish("generation", table(rows), rows, console=console, title=title, notes=notes, rounds=FLAGS.rounds)
    return 0


if __name__ == "__main__":
    flags.DEFINE_list("rows", [str(rows) for rows in BARS], "rows of a batch")
    flags.DEFINE_integer("rounds", 7, "timed rounds", lower_bound=1)
    flags.DEFINE_boolean("serve", False, "be one of the processes")
    app.run(main)

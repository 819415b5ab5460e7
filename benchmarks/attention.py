"""Time and memory of attention, side by side in one process: python -m benchmarks.attention [--out=results/benchmarks]

Columns are dense, `jax.nn.dot_product_attention`, blockwise and, where torch is installed, PyTorch's
`scaled_dot_product_attention` and FlexAttention, all with the same allocator setting and number of threads. Every
case times its candidates in turn, round after round, and reports medians; ratios are within a case.
"""

import dataclasses
import functools
import importlib.util
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from rich.progress import track

from benchmarks.report import publish
from experiments import start
from research.attention import blockwise
from research.attention.core import attend
from research.attention.masks import Causal, Mask, Prefix, Same, Slots, Window, visible_pairs

FLAGS = flags.FLAGS
HEADS, WIDTH = 4, 64
DENSE_UP_TO = 4096  # beyond it the score matrices of forward and backward take several GB


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table: a mask on rows of a length."""

    name: str
    length: int
    batch: int
    mask: Mask
    document: int | None = None
    given: int = 0

    @property
    def slots(self) -> Slots:
        """The rows: one document, or documents packed one after another."""
        line = Slots.arange(self.length, (self.batch,))
        size = self.document or self.length
        return dataclasses.replace(
            line,
            position=line.position % size,
            segment=line.position // size + 1,
            prefix=line.position < self.given,
        )

    def matrix(self) -> np.ndarray:
        """The mask itself, for those who take nothing else."""
        line = jax.tree.map(lambda leaf: leaf[:1], self.slots)
        return np.array((self.mask & Same())(line, line))[:, None]


def cases(longest: int) -> list[Case]:
    """Lengths 256 to `longest` at equal tokens up to 4,096 a batch."""
    made = []
    for n in (256, 1024, 4096, 8192, 16384):
        rows = max(1, 4096 // n)
        made += [
            Case("causal", n, rows, Causal()),
            Case("prefix", n, rows, Prefix(), given=n // 4),
            Case("window 256", n, rows, Window(256)),
            Case("packed 512", n, rows, Causal(), document=512),
        ]
    kept = [case for case in made if case.length <= longest]
    return [case for case in kept if case.name in ("causal", "prefix") or case.length >= 1024]


def jax_runs(case: Case) -> tuple[dict[str, tuple[Callable, Callable | None]], dict[str, int]]:
    """For each JAX candidate forward, forward and backward; and the bytes of temporaries of the latter."""
    slots = case.slots

    def ours(backend: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out = attend(q, k, v, mask=case.mask, q_slots=slots, k_slots=slots, backend=backend)
        assert isinstance(out, jax.Array)
        return out

    calls: dict[str, Callable] = {name: functools.partial(ours, name) for name in ("blockwise", "dense")}
    if case.length <= DENSE_UP_TO:
        options = {"is_causal": True} if case.name == "causal" else {"mask": jnp.asarray(case.matrix())}
        calls["jax.nn"] = functools.partial(jax.nn.dot_product_attention, **options)
    shape = (case.batch, case.length, HEADS, WIDTH)
    q, k, v, cotangent = (jax.random.normal(jax.random.key(i), shape) for i in range(4))

    def both(call: Callable, *args: jax.Array) -> tuple:
        out, pull = jax.vjp(call, *args[:3])
        return out, pull(args[3])

    runs: dict[str, tuple[Callable, Callable | None]] = {}
    memory = {}
    for name, call in calls.items():
        forward = jax.jit(call).lower(q, k, v).compile()
        backward = jax.jit(functools.partial(both, call)).lower(q, k, v, cotangent).compile()
        memory[name] = getattr(backward.memory_analysis(), "temp_size_in_bytes", 0)
        if name != "dense" or case.length <= DENSE_UP_TO:
            runs[name] = (
                functools.partial(lambda f, *a: jax.block_until_ready(f(*a)), forward, q, k, v),
                functools.partial(lambda f, *a: jax.block_until_ready(f(*a)), backward, q, k, v, cotangent),
            )
    return runs, memory


def torch_runs(case: Case) -> dict[str, tuple[Callable, Callable | None]]:
    """The same for PyTorch; FlexAttention has no backward pass on a CPU."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.set_num_threads(os.cpu_count() or 1)
    shape = (case.batch, HEADS, case.length, WIDTH)
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    cotangent = torch.randn(shape)
    options = {"is_causal": True} if case.name == "causal" else {"attn_mask": torch.from_numpy(case.matrix())}
    sdpa = functools.partial(torch.nn.functional.scaled_dot_product_attention, **options)

    def forward(call: Callable) -> None:
        with torch.no_grad():
            call(q.detach(), k.detach(), v.detach())

    def both(call: Callable) -> None:
        q.grad = k.grad = v.grad = None
        call(q, k, v).backward(cotangent)

    runs: dict[str, tuple[Callable, Callable | None]] = {}
    if case.name == "causal" or case.length <= DENSE_UP_TO:
        runs["SDPA"] = (functools.partial(forward, sdpa), functools.partial(both, sdpa))
    if FLAGS.flex:
        size, given = case.document or case.length, case.given
        window = case.mask.w if isinstance(case.mask, Window) else case.length

        def rule(b, h, i, j):
            return (((i >= j) & (i - j < window)) | (j < given)) & (i // size == j // size)

        blocks = create_block_mask(rule, None, None, case.length, case.length, device="cpu")
        # Of lengths that change, torch.compile makes one program that its C++ compiler then refuses.
        torch.compiler.reset()  # and after eight programs it would compute without compiling
        compiled = torch.compile(flex_attention, dynamic=False)
        flex = functools.partial(compiled, block_mask=blocks)
        runs["Flex"] = (functools.partial(forward, flex), None)
    return runs


def work(case: Case) -> float:
    """(query, key) pairs that blockwise computes for each that is visible."""
    slots = case.slots
    plan = blockwise.best(case.mask, slots, slots)
    if isinstance(plan, blockwise.Static):
        computed = sum(size for runs in plan.runs for _, size in runs) * plan.q_size
    else:
        computed = int(plan.count.sum()) * plan.q_size * plan.k_size
    row = jax.tree.map(lambda leaf: leaf[:1], slots)
    return computed / visible_pairs(case.mask, row, row)


def medians(calls: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median milliseconds of each call, timed in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(case: Case, rounds: int) -> dict:
    """One row of the table."""
    runs, memory = jax_runs(case)
    if importlib.util.find_spec("torch") is not None:
        runs |= torch_runs(case)
    forward = medians({name: run[0] for name, run in runs.items()}, rounds)
    both = medians({name: run[1] for name, run in runs.items() if run[1] is not None}, rounds)
    return {
        "case": case.name,
        "length": case.length,
        "batch": case.batch,
        "forward_ms": forward,
        "forward_backward_ms": both,
        "temporary_bytes": memory,
        "work_ratio": work(case),
    }


def table(rows: list[dict]) -> list[list[str]]:
    """The rows as text: forward + backward, and the forward pass in brackets, in milliseconds."""
    names = ["blockwise", "dense", "jax.nn", "SDPA", "Flex"]
    lines = [["mask", "length", "batch", *names, "MB blockwise", "MB dense", "pairs / visible"]]
    for row in rows:

        def cell(name: str, row: dict = row) -> str:
            forward, both = row["forward_ms"].get(name), row["forward_backward_ms"].get(name)
            if forward is None:
                return "-"
            return f"{'-' if both is None else f'{both:.1f}'} ({forward:.1f})"

        memory = row["temporary_bytes"]
        megabytes = [
            f"{memory[name] / 1e6:.1f}" if name in memory else "-" for name in ("blockwise", "dense")
        ]
        cells = [cell(name) for name in names]
        lines.append(
            [
                row["case"],
                str(row["length"]),
                str(row["batch"]),
                *cells,
                *megabytes,
                f"{row['work_ratio']:.2f}",
            ]
        )
    return lines


def main(argv: list[str]) -> int:
    """Run the cases and print (and with --out write) the table. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --longest=...")
    start.process()
    console = start.console()
    rows = [
        measure(case, FLAGS.rounds)
        for case in track(cases(FLAGS.longest), "attention", console=console, transient=True)
    ]
    publish(
        "attention",
        table(rows),
        rows,
        console=console,
        title="forward + backward (forward), ms",
        heads=HEADS,
        head_dim=WIDTH,
        dtype="float32",
    )
    return 0


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 7, "timed rounds", lower_bound=1)
    flags.DEFINE_integer("longest", 16384, "longest row", lower_bound=256)
    flags.DEFINE_boolean("flex", False, "time FlexAttention too (torch.compile needs a C++ compiler)")
    app.run(main)

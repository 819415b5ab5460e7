"""Time and memory of attention, side by side in one process: python -m benchmarks.attention [--out=results/benchmarks]

Columns are dense, `jax.nn.dot_product_attention`, blockwise and, where torch is installed, PyTorch's
`scaled_dot_product_attention` and FlexAttention, all with the same allocator setting and number of threads. Every
case times its candidates in turn, round after round, and reports medians; ratios are within a case.

Ctrl-C ends it early with the cases that are done.

On a GPU (--dtype=bfloat16 --heads=16 --tokens=16384 --lengths=1024,4096,16384 --repeats=10) cuDNN takes part twice:
with slots that are known while the program is traced, from which it has its own masks, and with slots that are data,
as a training step has them, where each pair is spelled out.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.util
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

from benchmarks.report import conditions, publish
from experiments import start
from research.attention import blockwise
from research.attention.core import attend
from research.attention.masks import Causal, Mask, Prefix, Same, Slots, Window, visible_pairs

FLAGS = flags.FLAGS
WIDTH = 64
CANDIDATES = ("blockwise", "dense", "cudnn", "cudnn, known", "jax.nn", "SDPA", "Flex")
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


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is timed: the forward pass, that and the backward pass, and waiting for what a call has given."""

    forward: Callable[[], Any]
    both: Callable[[], Any] | None
    wait: Callable[[Any], Any] = jax.block_until_ready


def cases(lengths: list[int], masks: list[str], tokens: int) -> list[Case]:
    """The masks of these names at these lengths, with as many rows as have so many tokens."""
    made = []
    for n in lengths:
        rows = max(1, tokens // n)
        made += [
            Case("causal", n, rows, Causal()),
            Case("prefix", n, rows, Prefix(), given=n // 4),
            Case("window 256", n, rows, Window(256)),
            Case("packed 512", n, rows, Causal(), document=512),
        ]
    kept = [case for case in made if case.name in masks]
    return [case for case in kept if case.name in ("causal", "prefix") or case.length >= 1024]


def jax_runs(case: Case) -> tuple[dict[str, Candidate], dict[str, int]]:
    """The JAX candidates, and the bytes of temporaries of forward and backward."""
    known = case.slots

    def ours(backend: str, slots: Slots, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out = attend(q, k, v, mask=case.mask, q_slots=slots, k_slots=slots, backend=backend)
        assert isinstance(out, jax.Array)
        return out

    def of_known(backend: str, _: Slots, *args: jax.Array) -> jax.Array:
        return ours(backend, known, *args)

    calls: dict[str, Callable] = {name: functools.partial(of_known, name) for name in ("blockwise", "dense")}
    if jax.default_backend() == "gpu":
        calls["dense"] = functools.partial(ours, "dense")  # or its mask is a constant of the program
        if case.length > DENSE_UP_TO:  # to choose its kernels XLA would make the scores
            del calls["dense"]
        if FLAGS.dtype != "float32":
            calls["cudnn"] = functools.partial(ours, "cudnn")
            if case.name in ("causal", "window 256"):
                calls["cudnn, known"] = functools.partial(of_known, "cudnn")
    if case.length <= DENSE_UP_TO:
        options = {"is_causal": True} if case.name == "causal" else {"mask": jnp.asarray(case.matrix())}
        calls["jax.nn"] = lambda _, *args: jax.nn.dot_product_attention(*args, **options)
    shape, dtype = (case.batch, case.length, FLAGS.heads, WIDTH), jnp.dtype(FLAGS.dtype)
    q, k, v, cotangent = (jax.random.normal(jax.random.key(i), shape, dtype) for i in range(4))
    slots = jax.tree.map(jnp.asarray, known)

    def both(call: Callable, slots: Slots, cotangent: jax.Array, *args: jax.Array) -> tuple:
        out, pull = jax.vjp(functools.partial(call, slots), *args)
        return out, pull(cotangent)

    def compiled(call: Callable) -> tuple[Callable, Any]:
        forward, backward = jax.jit(call), jax.jit(functools.partial(both, call))
        return forward.lower(slots, q, k, v).compile(), backward.lower(slots, cotangent, q, k, v).compile()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        programs = dict(zip(calls, pool.map(compiled, calls.values()), strict=True))
    memory = {
        name: getattr(backward.memory_analysis(), "temp_size_in_bytes", 0)
        for name, (_, backward) in programs.items()
    }
    runs = {
        name: Candidate(
            functools.partial(forward, slots, q, k, v),
            functools.partial(backward, slots, cotangent, q, k, v),
        )
        for name, (forward, backward) in programs.items()
        if name != "dense" or case.length <= DENSE_UP_TO
    }
    return runs, memory


def torch_runs(case: Case) -> dict[str, Candidate]:
    """The same for PyTorch; FlexAttention has no backward pass on a CPU."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.set_num_threads(os.cpu_count() or 1)
    gpu = jax.default_backend() == "gpu"
    device = "cuda" if gpu else "cpu"
    shape = (case.batch, FLAGS.heads, case.length, WIDTH)
    new = functools.partial(torch.randn, shape, dtype=getattr(torch, FLAGS.dtype), device=device)
    q, k, v = (new(requires_grad=True) for _ in range(3))
    cotangent = new()
    if case.name == "causal":
        options = {"is_causal": True}
    else:
        options = {"attn_mask": torch.from_numpy(case.matrix()).to(device)}
    sdpa = functools.partial(torch.nn.functional.scaled_dot_product_attention, **options)

    def forward(call: Callable) -> None:
        with torch.no_grad():
            call(q.detach(), k.detach(), v.detach())

    def both(call: Callable) -> None:
        q.grad = k.grad = v.grad = None
        call(q, k, v).backward(cotangent)

    def wait(_: None) -> None:
        if gpu:
            torch.cuda.synchronize()

    runs: dict[str, Candidate] = {}
    if case.name == "causal" or case.length <= DENSE_UP_TO:
        runs["SDPA"] = Candidate(functools.partial(forward, sdpa), functools.partial(both, sdpa), wait)
    if FLAGS.flex:
        size, given = case.document or case.length, case.given
        window = case.mask.w if isinstance(case.mask, Window) else case.length

        def rule(b, h, i, j):
            return (((i >= j) & (i - j < window)) | (j < given)) & (i // size == j // size)

        blocks = create_block_mask(rule, None, None, case.length, case.length, device=device)
        # Of lengths that change, torch.compile makes one program that its C++ compiler then refuses.
        torch.compiler.reset()  # and after eight programs it would compute without compiling
        compiled = torch.compile(flex_attention, dynamic=False)
        flex = functools.partial(compiled, block_mask=blocks)
        backward = functools.partial(both, flex) if gpu else None
        runs["Flex"] = Candidate(functools.partial(forward, flex), backward, wait)
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


def medians(calls: dict[str, tuple[Callable, Callable]], rounds: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of each call, timed in turn, so many at a time; `calls`: the call, and how to wait for it."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call, wait in calls.values():
        wait(call())
    for _ in range(rounds):
        for name, (call, wait) in calls.items():
            began = time.perf_counter()
            for _ in range(repeats):
                last = call()
            wait(last)
            times[name].append(1e3 * (time.perf_counter() - began) / repeats)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(case: Case, rounds: int, repeats: int) -> dict:
    """One row of the table."""
    runs, memory = jax_runs(case)
    if importlib.util.find_spec("torch") is not None:
        runs |= torch_runs(case)
    forward = medians({name: (run.forward, run.wait) for name, run in runs.items()}, rounds, repeats)
    both = medians(
        {name: (run.both, run.wait) for name, run in runs.items() if run.both is not None}, rounds, repeats
    )
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
    names = [name for name in CANDIDATES if any(name in row["forward_ms"] for row in rows)]
    lines = [["mask", "length", "batch", *names, "MB blockwise", "MB dense", "pairs / visible"]]
    for row in rows:

        def cell(name: str, row: dict = row) -> str:
            forward, both = row["forward_ms"].get(name), row["forward_backward_ms"].get(name)
            if forward is None:
                return "-"
            digits = 1 if forward > 5 else 2
            return f"{'-' if both is None else f'{both:.{digits}f}'} ({forward:.{digits}f})"

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
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --lengths=...")
    start.process()
    console = start.console()
    planned = cases([int(n) for n in FLAGS.lengths], FLAGS.masks, FLAGS.tokens)
    rows = []
    try:
        for case in track(planned, "attention", console=console, transient=True):
            rows.append(measure(case, FLAGS.rounds, FLAGS.repeats))
    except KeyboardInterrupt:
        console.print(f"stopped after {len(rows)} of {len(planned)} cases")
    rows.sort(key=lambda row: row["length"])
    here = jax.default_backend()
    publish(
        "attention" if here == "cpu" else f"attention_{here}",
        table(rows),
        rows,
        console=console,
        title="forward + backward (forward), ms",
        notes=conditions(heads=FLAGS.heads, head_dim=WIDTH, dtype=FLAGS.dtype),
        heads=FLAGS.heads,
        head_dim=WIDTH,
        dtype=FLAGS.dtype,
    )
    return 0


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 7, "timed rounds", lower_bound=1)
    flags.DEFINE_integer("repeats", 1, "calls of a round, one after another", lower_bound=1)
    flags.DEFINE_list("lengths", ["256", "1024", "4096", "8192", "16384"], "lengths of rows")
    flags.DEFINE_list("masks", ["causal", "prefix", "window 256", "packed 512"], "which of them")
    flags.DEFINE_integer("tokens", 4096, "tokens of a batch, if a row has no more", lower_bound=1)
    flags.DEFINE_integer("heads", 4, "heads of 64 features", lower_bound=1)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "of queries, keys and values")
    flags.DEFINE_boolean("flex", False, "time FlexAttention too (torch.compile needs a C++ compiler)")
    app.run(main)

"""What a long text costs by its length: python -m benchmarks.long_context [--out=results/benchmarks]

Of untrained arms of configs/long_context: reading a text of so many tokens, a training step on rows of a length, as
many tokens each, and writing one more token behind so many. Each text is read in a process of its own, whose peak of
memory that is. Figures are medians over rounds after one that compiles; *slope* is that of log time on log length for a
text as long as that, by least squares: 1 where a token costs the same at every length.
"""

import concurrent.futures
import functools
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from rich.progress import track

from benchmarks import report
from experiments import experiment, start
from research.analysis import drawing
from research.analysis.drawing import Axis, Line, Mark
from research.analysis.statistics import Estimate
from research.attention.masks import Slots, Window
from research.attention.memory import Rolling, Whole
from research.batch import Tokens
from research.evaluation.long_context import plain, token_losses
from research.evaluation.streaming import Streamed, narrowed, read
from research.evaluation.trained import Trained

FLAGS = flags.FLAGS
SEGMENT = 48
ONCE = "long, at once"  # the whole text as one line
READERS = (ONCE, "long", "local", "chunks", "xl_4", "compressive_3")
TRAINED = ("long", "local", "chunks", "dilated", "mixed")
REMEMBERING = ("xl_4", "compressive_3")  # in segments, however long the text
# What of the text is held where tokens are written one by one, and the window that is seen of it; None: all.
HELD = {"long": None, "mixed": None, "local": 48, "chunks": 48, "dilated": 192, "xl_4": 193}


@functools.cache
def known(arm: str) -> Trained:
    """An arm of the study before its first step, of books that are longer than any length here."""
    files = [f"configs/long_context/{arm}.gin", "configs/scale/small.gin"]
    files += ["configs/long_context/data/reading.gin", "configs/data/novels.gin"]
    planned, _ = experiment.load(files)
    text = experiment.dataset(planned.data, None)
    functions = experiment.trainer(planned, text.tokenizer.vocab_size)
    params = functions.initial(jax.random.key(0)).params
    return Trained(trainer=functions, params=params, text=text, seed=0)


def seconds(run: Callable[[], Any], rounds: int) -> float:
    """The median time of a call, after one that is not timed."""
    found = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def reading(reader: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Reading one text; `peak`: bytes, of the process."""
    model = known("long" if reader == ONCE else reader)
    line = model.text.windows[0]["test"].ids[None, : tokens // SEGMENT * SEGMENT]
    size = line.shape[1]
    streamed = Streamed(tokens=size, scored=size, segment=SEGMENT, stride=SEGMENT)

    def run() -> Any:
        if reader == ONCE:
            return token_losses(model.trainer, model.params, plain(line))
        return read(streamed, model, line)[0]

    taken = seconds(run, rounds)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "what": "reading",
        "arm": reader,
        "length": tokens,
        "tokens": size,
        "seconds": taken,
        "peak": peak,
    }


def training(arm: str, length: int, tokens: int, rounds: int) -> dict[str, Any]:
    """A training step on `tokens` tokens in rows of a length."""
    model, rows = known(arm), max(tokens // length, 1)
    ids = np.random.default_rng(0).integers(4, 260, (rows, length)).astype(np.int32)
    batch = plain(ids)
    states = [model.trainer.initial(jax.random.key(0), rows=rows)]

    def run() -> Any:
        state, metrics = model.trainer.step(states.pop(), batch)
        states.append(state)
        return metrics

    return {
        "what": "training",
        "arm": arm,
        "length": length,
        "tokens": ids.size,
        "seconds": seconds(run, rounds),
    }


def writing(arm: str, length: int, rounds: int) -> dict[str, Any]:
    """One more token behind `length`, with what is held of them; `held`: the bytes of that."""
    calls = 10 * rounds
    functions, window = known(arm).trainer, HELD[arm]
    cache = Whole(capacity=length + calls + 1) if window is None else Rolling(window=window)
    if window is not None:  # chunks and dilated windows end, too, where it does
        functions = functions.of(narrowed(functions.config, Window(window)))
    if functions.config.stack.memory is not None:
        cache = None  # its memory
    model = functions.model(known(arm).params)
    ids = np.zeros((1, length), np.int32)
    _, state = jax.jit(model.prefilled, static_argnames="cache")(
        Tokens(ids, Slots.arange(length, (1,))), cache=cache
    )
    following = Slots(np.full((1, 1), length, np.int32), np.ones((1, 1), np.int32), np.zeros((1, 1), bool))
    token, states = Tokens(ids[:, :1], following), [state]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    extend = jax.jit(model.extended, donate_argnums=0)

    def run() -> Any:
        hidden, state = extend(states.pop(), token)
        states.append(state)
        return hidden

    taken = seconds(run, calls)
    return {"what": "writing", "arm": arm, "length": length, "tokens": 1, "seconds": taken, "held": size}


def apart(*call: Any) -> Any:
    """`reading` in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(reading, *call).result()


def table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line for each arm and what it does: times by length, the slope of the whole time, memory at the ends."""
    lines = [["", "arm", "tokens", "microseconds a token", "slope", "memory, MiB"]]
    for what, arm in dict.fromkeys((row["what"], row["arm"]) for row in rows):
        own = [row for row in rows if (row["what"], row["arm"]) == (what, arm)]
        # A step reads as many tokens at every length, a token written is one.
        each = [1e6 * row["seconds"] / row["tokens"] for row in own]
        # Of a text as long as that, if each of its tokens took as long.
        whole = [value * row["length"] for value, row in zip(each, own, strict=True)]
        slope = f"{exponent([row['length'] for row in own], whole):.2f}" if len(own) > 1 else "n/a"
        memory = [row.get("peak", row.get("held")) for row in own]
        lines.append(
            [
                what,
                arm,
                ", ".join(f"{row['length']:,}" for row in own),
                ", ".join(f"{value:.1f}" for value in each),
                slope,
                ", ".join(f"{value / 2**20:.1f}" for value in memory) if None not in memory else "",
            ]
        )
    return lines


def exponent(lengths: Sequence[int], values: Sequence[float]) -> float:
    """The power of the length that values grow with: the slope of their logarithms, by least squares."""
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Time and memory of reading against the length of the text, both logarithmic."""
    for name, what, label in (
        ("long_context_time", "seconds", "seconds"),
        ("long_context_memory", "peak", "peak memory of the process, bytes"),
    ):
        drawn = []
        for style, reader in enumerate(READERS):
            own = [row for row in rows if (row["what"], row["arm"]) == ("reading", reader)]
            points = [(float(row["tokens"]), float(row[what])) for row in own]
            marks = [Mark(name=f"{x:g}", x=known_to(x), y=known_to(y), seeds={}) for x, y in points]
            fit = f", slope {exponent(*zip(*points, strict=True)):.2f}" if len(points) > 1 else ""
            drawn.append(Line(name=f"{reader}{fit}", style=style, marks=tuple(marks)))
        picture = drawing.lines(
            drawn,
            title="Reading one text",
            x=Axis(label="tokens", log=True),
            y=Axis(label=label, log=True),
            notes=["Slopes are of least squares through the logarithms."],
        )
        drawing.save(picture, folder / name)


def known_to(value: float) -> Estimate:
    """A number without an interval."""
    return Estimate(mean=value, half_width=math.nan, n=1)


def main(argv: list[str]) -> int:
    """Measure and print (and with --out write) the table. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --rounds=...")
    start.process()
    console = start.console()
    lengths = {name: [int(each) for each in FLAGS[name].value] for name in ("reading", "training", "writing")}
    calls: list[Callable[[], dict[str, Any]]] = [
        *(
            functools.partial(apart, reader, n, FLAGS.rounds)
            for reader in READERS
            for n in lengths["reading"]
            if reader != ONCE or n <= FLAGS.once
        ),
        *(
            functools.partial(training, arm, n, FLAGS.batch, FLAGS.rounds)
            for arm in TRAINED
            for n in lengths["training"]
        ),
        *(functools.partial(training, arm, SEGMENT, FLAGS.batch, FLAGS.rounds) for arm in REMEMBERING),
        *(functools.partial(writing, arm, n, FLAGS.rounds) for arm in HELD for n in lengths["writing"]),
    ]
    rows = []
    try:
        for call in track(calls, "cases", console=console, transient=True):
            rows.append(call())
    except KeyboardInterrupt:
        return start.fail("stopped")
    report.publish(
        "long_context",
        table(rows),
        rows,
        console=console,
        title="cost by length",
        notes=["Memory: of reading the peak of the whole process, of writing what is held of the text."],
        batch=FLAGS.batch,
    )
    if report.OUT.value:
        draw(rows, Path(report.OUT.value))
    return 0


if __name__ == "__main__":
    flags.DEFINE_list("reading", ["1024", "8192", "65536"], "tokens of a text")
    flags.DEFINE_list("training", ["192", "768", "3072"], "tokens of a row")
    flags.DEFINE_list("writing", ["1024", "4096", "16384"], "tokens that are there")
    flags.DEFINE_integer("batch", 6144, "tokens of a training step", lower_bound=1)
    flags.DEFINE_integer("once", 8192, "the longest text that is read at once", lower_bound=1)
    flags.DEFINE_integer("rounds", 3, "timed rounds", lower_bound=1)
    app.run(main)

"""How fast examples are made, beside the training step that reads them: python -m benchmarks.data

Every line is one config at a scale: tokens per second that one thread of the pipeline makes and that a training step
reads, in the same process, in turn, medians over rounds. `--out=results/benchmarks` writes the table.
"""

import dataclasses
import itertools
import statistics
import time
from typing import Any

import jax
from absl import app, flags
from rich.progress import track

from benchmarks.report import publish
from experiments import configs, experiment, start
from research.analysis import budget

FLAGS = flags.FLAGS
ROUNDS, BATCHES = 5, 10
AHEAD = 6  # more than the pipeline makes ahead

CASES = {
    "causal LM": ("causal", ("objective/causal_lm",), ()),
    "prefix LM": ("prefix", ("objective/prefix_lm",), ()),
    "span corruption, encoder-decoder": ("encoder_decoder", ("objective/span_corruption",), ()),
    "masked LM, encoder": ("encoder", ("objective/masked_lm",), ()),
    "UL2, prefix": ("prefix", ("objective/ul2",), ()),
    "blank infilling, prefix": ("prefix", ("objective/blank_infilling",), ()),
    "prefix LM, 4 packed": ("prefix", ("objective/prefix_lm",), ("Data.pack=4", "Data.batch=8")),
    "phonemes, prefix, 8 packed": ("prefix", ("data/phonemes",), ("Data.pack=8", "Data.batch=4")),
}


@dataclasses.dataclass(frozen=True)
class Line:
    """Tokens per second of one case."""

    case: str
    made: float
    read: float

    @property
    def ratio(self) -> float:
        """How many such steps the pipeline could feed."""
        return self.made / self.read


def measure(name: str, data_dir: str | None) -> Line:
    """Time the making and the reading of batches in turn."""
    family, files, bindings = CASES[name]
    parts = (
        "base",
        f"family/{family}",
        *files,
        f"scale/{FLAGS.scale}",
        *(file for file in files if "data/" in file),
    )
    planned, _ = experiment.load([f"configs/{part}.gin" for part in parts], bindings)
    text = experiment.dataset(planned.data, data_dir)
    functions = experiment.trainer(planned, text.tokenizer.vocab_size)
    state = functions.initial(jax.random.key(0), planned.numbers)
    batches = text.training(0)
    state, _ = jax.block_until_ready(functions.step(state, next(batches)))  # compiled
    made, read = [], []
    for _ in range(ROUNDS):
        list(itertools.islice(batches, AHEAD))  # made while the steps ran
        held, seconds = _timed(lambda: list(itertools.islice(batches, BATCHES)))
        tokens = sum(budget.tokens_read(batch) for batch in held)
        made.append(tokens / seconds)

        def steps(state: Any = state, held: list[Any] = held) -> Any:
            for batch in held:
                state, _ = functions.step(state, batch)
            return jax.block_until_ready(state)

        state, seconds = _timed(steps)
        read.append(tokens / seconds)
    return Line(name, statistics.median(made), statistics.median(read))


def _timed(work: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def main(argv: list[str]) -> int:
    """Measure every case, print the table and write it. Returns the exit code."""
    start.process()
    console = start.console()
    try:
        lines = [
            measure(name, FLAGS.data_dir) for name in track(list(CASES), console=console, transient=True)
        ]
    except (configs.ConfigError, ValueError, OSError, RuntimeError) as error:
        return start.fail(error)
    table = [["case", "made (tokens/s)", "read by a step (tokens/s)", "ratio"]]
    table += [[one.case, f"{one.made:,.0f}", f"{one.read:,.0f}", f"{one.ratio:.1f}"] for one in lines]
    rows = [{**dataclasses.asdict(one), "ratio": one.ratio} for one in lines]
    note = f"Scale {FLAGS.scale}; one thread makes the batches."
    publish("data", table, rows, console=console, title="batches", notes=[note], scale=FLAGS.scale)
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("scale", "small", "configs/scale/<scale>.gin")
    flags.DEFINE_string("data_dir", None, "where corpora are kept")
    app.run(main)

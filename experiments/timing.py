"""What is timed of an experiment when nothing else runs, by its name in the `timing` of a row."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments import experiment, grouping, machine
from experiments.experiment import Experiment
from research.analysis import tables
from research.batch import Batch, Tokens
from research.data import layouts, packing
from research.data.pipeline import Dataset
from research.data.streams import Stream
from research.data.windows import spread
from research.generation.engine import Generation, Greedy, begin
from research.models.families import EncoderConfig
from research.training.step import Trainer

WARM = 3  # calls before those that are timed, the first of which compiles
CALLS = 100  # that are timed

Program = tuple[Callable[..., Any], tuple[Any, ...]]  # of parameters and what is read, and what is read


def tokens_per_second(planned: Experiment, data_dir: str | None) -> float:
    """Tokens of training batches that some steps read in a second."""
    tokens = experiment.cost(planned.model, planned.data, data_dir).tokens
    return tokens / grouping.speed([planned], data_dir)


def latency_seconds(planned: Experiment, data_dir: str | None) -> float:
    """Median seconds in which a compiled model of the experiment's size answers one held-out window, alone.

    What is an answer differs by family:

    - encoder: one pass over the whole window, and its head where the window has a label; that is all of the answer;
    - decoder: one pass over BOS and what is given (prefill), and the choice of the first token;
    - encoder-decoder: one pass of the encoder over what is given, the first step of the decoder, and that choice.

    So for the latter two it is the time to the first token: a longer answer takes a step for each further token, which
    is not counted, while room in the cache for them is. The window is that of the test split whose input is of median
    length, without padding, and the same for all families of one objective. It lies in host memory, and the answer is
    awaited; making tokens of text is not counted. Parameters are drawn, as their values cost no time, and lie on one
    device, however training is spread.

    Raises:
      ValueError: held-out windows give nothing to answer, or the model cannot be read token by token.
    """
    text = experiment.dataset(planned.data, data_dir)
    functions = experiment.trainer(planned, text.tokenizer.vocab_size)
    program = _told if isinstance(planned.model, EncoderConfig) else _begun
    answer, read = program(functions, _window(text))
    with machine.surroundings(planned, None):
        params = functions.initial(jax.random.key(planned.seed), planned.numbers).params
        compiled = jax.jit(answer)
        return _median_seconds(lambda: compiled(params, *read))


TIMED: dict[str, Callable[[Experiment, str | None], float]] = {
    "tokens_per_second": tokens_per_second,
    "latency_seconds": latency_seconds,
}


def asked(columns: Sequence[str]) -> list[str]:
    """Which values of TIMED the columns of a table show."""
    paths = {tables.measure(column).path for column in columns}
    return [name for name in TIMED if f"timing.{name}" in paths]


def _window(text: Dataset) -> Batch:
    """The test window whose input is of median length as a batch of one row, without padding.

    Raises:
      ValueError: a stream, whose windows are pieces of documents that go on.
    """
    data, windows = text.data, text.windows[0]["test"]
    if isinstance(data.layout, Stream):
        raise ValueError(
            "windows of Data.layout = Stream() go on from one another, so none is answered alone"
        )
    objective = data.scored(data.parts[0])
    # By window and not by seed of the run: all rows are timed on the same one.
    examples = [
        objective(windows[i], np.random.default_rng(i), text.tokenizer)
        for i in spread(len(windows), data.held_out)
    ]
    middle = sorted(examples, key=lambda one: len(one.inputs))[len(examples) // 2]
    features = data.layout(middle, text.tokenizer)
    lengths = {name: len(line) for name, line in features.items() if name in ("source", "target")}
    return layouts.assemble(packing.fill([[features]], lengths))


def _told(functions: Trainer, window: Batch) -> Program:
    """An encoder's likeliest labels where the window has any."""
    (asked,) = np.nonzero(window.weights[0])

    def told(params: Any, window: Batch) -> Any:
        model = functions.model(params).unstacked()  # as `begin` reads the others
        return model.logits(model.apply(window).hidden[:, asked]).argmax(-1)

    return told, (window,)


def _begun(functions: Trainer, window: Batch) -> Program:
    """The first token that a generator says, and its cache.

    Raises:
      ValueError: nothing is given before that token.
    """
    (asked,) = np.nonzero(window.weights[0])
    if window.source is None and not asked[0]:
        raise ValueError(
            "held-out windows give nothing before what is asked; set Data.evaluation = @PrefixLM()"
        )
    given = jax.tree.map(lambda line: line[:, : asked[0] + 1], window.target)
    how, keys = Generation(tokens=len(asked), choice=Greedy()), jax.random.split(jax.random.key(0), 1)

    def begun(params: Any, given: Tokens, source: Tokens | None) -> Any:
        rows = begin(functions.model(params), given, keys, how, source=source)
        return how.choice(rows.logits, keys), rows.cache

    return begun, (given, window.source)


def _median_seconds(call: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(WARM + CALLS):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[WARM:])

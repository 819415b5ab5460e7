"""What each family costs at one size: python -m benchmarks.families [--out=results/benchmarks]

The arms of the architecture study at one scale, untrained: a step of training, reading a prompt (prefill), writing
after it, and the keys and values that are kept meanwhile; those of equal width and depth of a stack, and then those
whose parameters are matched. All are compiled and timed in one process, in turn, round after round; figures are
medians. A prompt is half a window and what is written is as long as the other half. Time for equal FLOPs is that of
10^12 FLOPs of training.
"""

import contextlib
import functools
import statistics
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags
from rich.progress import track

from benchmarks.report import publish
from experiments import experiment, start, study
from research.generation.engine import Generation, Greedy, advance, begin, prompt
from research.training.ensemble import Solo

FLAGS = flags.FLAGS
ARMS = (
    "causal_lm",
    "prefix_lm",
    "encoder_decoder_lm",
    "encoder_decoder_tied_lm",
    "encoder_decoder_half_lm",
    "params_encoder_decoder_tied",
    "params_encoder_decoder_half",
)
ROWS = (1, 16)  # prompts at a time


class Arm:
    """An arm's model with everything compiled that is timed."""

    def __init__(self, name: str, scale: str):
        planned, _ = study.load("architecture", scale).experiment(name, 0)
        self.name, text = name, experiment.dataset(planned.data, None)
        self.price = experiment.cost(planned.model, planned.data, None)
        trainer = experiment.trainer(planned, text.tokenizer.vocab_size)
        self._solo = Solo(trainer, rows=planned.data.batch)
        self._state = self._solo.initial(jax.random.key(0), planned.numbers)
        with contextlib.closing(text.training(0)) as batches:
            self._batch = next(batches)
        self._model = trainer.model(jax.tree.map(np.asarray, self._state.params))
        half = planned.data.window // 2
        self._how = Generation(tokens=half, choice=Greedy())
        line = functools.partial(prompt, pad=text.tokenizer.pad)
        ids = np.random.default_rng(0).choice(text.tokenizer.text_ids, (max(ROWS), half)).astype(np.int32)
        bos = np.full((max(ROWS), 1), text.tokenizer.bos, np.int32)
        self._read: dict[int, tuple[Any, Any]] = {}
        for rows in ROWS:
            if self._model.reads_source:
                self._read[rows] = line(bos[:rows], given=False), line(ids[:rows], given=False)
            else:
                self._read[rows] = line(np.concatenate([bos, ids], axis=1)[:rows]), None
        self.written = half
        self.times: dict[str, list[float]] = {}
        self.cache_bytes = 0

    def turn(self) -> None:
        """Everything once."""
        self._timed("train", self._step)
        for rows in ROWS:
            begun = self._timed(f"prefill_{rows}", functools.partial(self._prefill, rows))
            self._timed(f"write_{rows}", lambda begun=begun: _advance(self._model, begun, self._how))
            if rows == 1:
                self.cache_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(begun.cache))

    def _step(self) -> Any:
        self._state, metrics = self._solo.step(self._state, self._solo.place([self._batch]), np.ones(1, bool))
        return metrics

    def _prefill(self, rows: int) -> Any:
        given, source = self._read[rows]
        keys = jax.random.split(jax.random.key(0), rows)
        return _begin(self._model, given, keys, self._how, source=source)

    def _timed(self, name: str, call: Any) -> Any:
        began = time.perf_counter()
        found = jax.block_until_ready(call())
        self.times.setdefault(name, []).append(time.perf_counter() - began)
        return found

    def found(self) -> dict[str, Any]:
        """The medians of all rounds but the first two, which compile and warm up."""
        medians = {name: statistics.median(values[2:]) for name, values in self.times.items()}
        return {
            "arm": self.name,
            "parameters": self.price.parameters,
            "train_flops_per_loss_token": self.price.train_flops / self.price.loss_tokens,
            "train_tokens_per_second": self.price.tokens / medians["train"],
            "train_seconds_per_tera_flop": 1e12 * medians["train"] / self.price.train_flops,
            **{f"prefill_{rows}_ms": 1e3 * medians[f"prefill_{rows}"] for rows in ROWS},
            **{
                f"write_{rows}_tokens_per_second": rows * self.written / medians[f"write_{rows}"]
                for rows in ROWS
            },
            "cache_bytes_per_row": self.cache_bytes,
        }


_begin = jax.jit(begin, static_argnums=3)
_advance = jax.jit(advance, static_argnums=2)


def main(argv: list[str]) -> int:
    """Time the arms and print (and with --out write) the table. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --rounds=...")
    start.process()
    console = start.console()
    arms = [Arm(name, FLAGS.scale) for name in ARMS]
    for _ in track(range(FLAGS.rounds + 2), "rounds", console=console, transient=True):
        for arm in arms:
            arm.turn()
    found = [arm.found() for arm in arms]
    titles = {
        "parameters": "parameters",
        "train_flops_per_loss_token": "training MFLOPs a loss token",
        "train_tokens_per_second": "train tokens/s",
        "train_seconds_per_tera_flop": "s for a TFLOP",
        "prefill_1_ms": "prefill of 1, ms",
        "prefill_16_ms": "of 16, ms",
        "write_1_tokens_per_second": "written tokens/s, 1 row",
        "write_16_tokens_per_second": "16 rows",
        "cache_bytes_per_row": "cache, KiB a row",
    }
    lines = [["arm", *titles.values()]]
    for row in found:
        shown = [
            f"{row['parameters']:,}",
            f"{row['train_flops_per_loss_token'] / 1e6:.2f}",
            f"{row['train_tokens_per_second']:,.0f}",
            f"{row['train_seconds_per_tera_flop']:.1f}",
            f"{row['prefill_1_ms']:.2f}",
            f"{row['prefill_16_ms']:.2f}",
            f"{row['write_1_tokens_per_second']:,.0f}",
            f"{row['write_16_tokens_per_second']:,.0f}",
            f"{row['cache_bytes_per_row'] / 1024:.0f}",
        ]
        lines.append([row["arm"], *shown])
    publish(
        "families",
        lines,
        found,
        console=console,
        title=f"families at scale {FLAGS.scale}",
    )
    return 0


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 20, "timed rounds", lower_bound=1)
    flags.DEFINE_string("scale", "small", "of the study")
    app.run(main)

"""Continue text with a trained run: python -m experiments.generate --run_dir=runs/prefix --prompt="Once upon a time"

A decoder goes on where the prompt ends; an encoder-decoder reads the prompt and writes what follows. One prompt is
shown as it is written; more go through in batches and are written as JSON lines, to --out or as they are done.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments import configs, experiment, start
from research.data.tokenizers import Tokenizer
from research.generation import engine
from research.generation.engine import Generated, Generation, Greedy, Sample, prompt, rounded
from research.generation.processors import (
    Chain,
    FrequencyPenalty,
    MinP,
    NoRepeatNGram,
    PresencePenalty,
    Processor,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    Typical,
)
from research.models.families import EncoderDecoderConfig, Model
from research.training.checkpoints import Checkpoints

FLAGS = flags.FLAGS
PIECE = 8  # tokens that are shown at a time


@dataclasses.dataclass(frozen=True)
class Writer:
    """A trained model that continues text."""

    model: Model
    tokenizer: Tokenizer

    def begin(self, texts: Sequence[str], keys: Any, how: Generation) -> Generated:
        """Read the prompts.

        Raises:
          ValueError: a prompt is empty for an encoder, or longer than the model's positions reach.
        """
        lines = [self.tokenizer.encode(text) for text in texts]
        if self.two_sided:
            source = prompt(lines, pad=self.tokenizer.pad, length=rounded(lines), given=False)
            given = prompt([[self.tokenizer.bos]] * len(lines), pad=self.tokenizer.pad, given=False)
            self._fits(max(map(len, lines)), 1 + how.tokens)
            return _begin(self.model, given, keys, how, source=source)
        lines = [np.concatenate([[self.tokenizer.bos], line]) for line in lines]
        given = prompt(lines, pad=self.tokenizer.pad, length=rounded(lines))
        self._fits(max(map(len, lines)) + how.tokens)
        return _begin(self.model, given, keys, how)

    def texts(self, now: Generated) -> list[str]:
        """What has been written, row by row, without the prompt and the end."""
        history = jax.device_get(now.history)
        rows = zip(history.ids, history.prompt, history.length, strict=True)
        new = [ids[first:last] for ids, first, last in rows]
        return [self.tokenizer.decode(ids[ids != self.tokenizer.eos]) for ids in new]

    @property
    def two_sided(self) -> bool:
        """Whether the prompt is a source."""
        return isinstance(self.model.config, EncoderDecoderConfig)

    def _fits(self, *lengths: int) -> None:
        limits = [stack.positions.limit for stack in experiment.stacks(self.model.config)]
        for length in lengths:
            short = [limit for limit in limits if limit is not None and limit < length]
            if short:
                raise ValueError(
                    f"{length} tokens of prompt and text, but the model's learned positions end at {min(short)}; "
                    "shorten the prompt or --tokens"
                )


_begin = jax.jit(engine.begin, static_argnums=3)
_advance = jax.jit(engine.advance, static_argnums=(2, 3))


def load(folder: Path, data_dir: str | None) -> Writer:
    """The parameters of a run's newest checkpoint, averaged ones where there are.

    Raises:
      ConfigError: there is no run.
      CheckpointError: it has no checkpoint that is whole.
    """
    if not (folder / "config.gin").exists():
        raise configs.ConfigError(
            f"--run_dir={folder}: no config.gin there; expected the folder of a training run"
        )
    planned, _ = experiment.load([str(folder / "config.gin")])
    text = experiment.dataset(planned.data, data_dir)
    functions = experiment.trainer(planned, text.tokenizer.vocab_size)
    state = jax.eval_shape(functions.initial, jax.random.key(0), planned.numbers)
    field = "params" if state.average is None else "average"
    with Checkpoints(folder / "checkpoints", planned.keep) as checkpoints:
        params, _ = checkpoints.restore_params(state.params, field=field)
    return Writer(functions.model(params), text.tokenizer)


def settings(end: int) -> Generation:
    """How the flags say that text is continued."""
    chain: list[Processor] = []
    given = {
        "repetition_penalty": lambda value: RepetitionPenalty(penalty=value),
        "frequency_penalty": lambda value: FrequencyPenalty(penalty=value),
        "presence_penalty": lambda value: PresencePenalty(penalty=value),
        "no_repeat_ngram": lambda value: NoRepeatNGram(size=value),
        "temperature": lambda value: Temperature(value=value),
        "top_k": lambda value: TopK(k=value),
        "top_p": lambda value: TopP(p=value),
        "min_p": lambda value: MinP(p=value),
        "typical": lambda value: Typical(mass=value),
    }
    for name, made in given.items():
        value = FLAGS[name].value
        if value is not None and not (name == "temperature" and value == 0):
            chain.append(made(value))
    return Generation(
        tokens=FLAGS.tokens,
        end=(end,),
        choice=Greedy() if FLAGS.temperature == 0 else Sample(),
        processors=Chain(processors=tuple(chain)),
    )


def prompts() -> list[str]:
    """Those of the flags, of a file or of the standard input, a line each.

    Raises:
      ConfigError: there are none, or more than one way was taken.
    """
    if FLAGS.prompt and FLAGS.prompt_file is not None:
        raise configs.ConfigError("--prompt and --prompt_file: expected one of them")
    if FLAGS.prompt:
        return FLAGS.prompt
    if FLAGS.prompt_file is not None:
        return [line for line in Path(FLAGS.prompt_file).read_text().splitlines() if line]
    found = [line for line in sys.stdin.read().splitlines() if line]
    if not found:
        raise configs.ConfigError(
            "no prompt: give --prompt, --prompt_file, --interactive or lines on the standard input"
        )
    return found


def shown(writer: Writer, text: str, key: Any, how: Generation) -> None:
    """Print one continuation as it comes."""
    now, printed = writer.begin([text], key[None], how), 0
    print(text, end="", flush=True)
    done = False
    while not done:
        now = _advance(writer.model, now, how, PIECE)
        done = int(now.step) == how.tokens or bool(now.ended.all())
        (said,) = writer.texts(now)
        whole = said if done else said.rstrip("\ufffd")  # the rest of a character may come
        print(whole[printed:], end="", flush=True)
        printed = len(whole)
    print()


def key_of(seed: int, index: Any, sample: Any) -> Any:
    """The key of a prompt's sample."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), sample)


def records(
    writer: Writer, texts: Sequence[str], how: Generation, *, each: int, seed: int, rows: int
) -> Iterator[Any]:
    """A record of each continuation, batches of similar length at a time; a record's numbers depend on its prompt, the
    seed and its sample alone.
    """
    wanted = [(index, text, sample) for index, text in enumerate(texts) for sample in range(each)]
    wanted.sort(key=lambda one: len(one[1]))  # little padding
    for first in range(0, len(wanted), rows):
        part = wanted[first : first + rows]
        places = np.asarray([(index, sample) for index, _, sample in part])
        keys = jax.vmap(lambda place: key_of(seed, *place))(places)
        done = _advance(writer.model, writer.begin([text for _, text, _ in part], keys, how), how, None)
        scores = jax.device_get(done.log_probability)
        sizes = jax.device_get(done.history.new)
        for row, ((index, text, sample), said) in enumerate(zip(part, writer.texts(done), strict=True)):
            own = [round(float(score), 5) for score in scores[row, : sizes[row]]]
            yield {
                "prompt": text,
                "index": index,
                "sample": sample,
                "text": said,
                "log_probability": round(sum(own), 4),
                "token_log_probabilities": own,
                "ended": bool(done.ended[row]),
            }


def main(argv: list[str]) -> int:
    """Continue the prompts. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --prompt=...")
    start.process()
    try:
        writer = load(Path(FLAGS.run_dir), FLAGS.data_dir)
        how = settings(writer.tokenizer.eos)
        if FLAGS.interactive:
            for turn, line in enumerate(iter(lambda: input("> "), "")):
                shown(writer, line, key_of(FLAGS.seed, turn, 0), how)
            return 0
        texts = prompts()
        if len(texts) == 1 and FLAGS.n == 1 and not FLAGS.out:
            shown(writer, texts[0], key_of(FLAGS.seed, 0, 0), how)
            return 0
        found = records(writer, texts, how, each=FLAGS.n, seed=FLAGS.seed, rows=FLAGS.batch)
        with open(FLAGS.out, "w") if FLAGS.out else sys.stdout as file:
            for record in found:
                print(json.dumps(record, ensure_ascii=False), file=file, flush=True)
    except (KeyboardInterrupt, EOFError):
        print()
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        return start.fail(error)
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("run_dir", None, "folder of a training run", required=True)
    flags.DEFINE_multi_string("prompt", [], "text to go on from; repeat it")
    flags.DEFINE_string("prompt_file", None, "a file with a prompt in each line; neither: the standard input")
    flags.DEFINE_bool("interactive", False, "ask for one prompt after another; an empty one ends")
    flags.DEFINE_integer("tokens", 256, "most new tokens", lower_bound=1)
    flags.DEFINE_integer("n", 1, "continuations of each prompt", lower_bound=1)
    flags.DEFINE_integer("batch", 32, "continuations at a time", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of the draws")
    flags.DEFINE_string("out", "", "file for JSON lines")
    flags.DEFINE_float("temperature", None, "of the draws; 0: the likeliest token", lower_bound=0)
    flags.DEFINE_integer("top_k", None, "draw from so many of the likeliest tokens")
    flags.DEFINE_float("top_p", None, "draw from the likeliest tokens that make up this probability")
    flags.DEFINE_float("min_p", None, "draw from tokens at least so likely as this share of the likeliest")
    flags.DEFINE_float(
        "typical", None, "draw from the tokens of typical surprise that make up this probability"
    )
    flags.DEFINE_float("repetition_penalty", None, "CTRL's, on prompt and text; 1 does nothing")
    flags.DEFINE_float("frequency_penalty", None, "nats for each time a token was generated")
    flags.DEFINE_float("presence_penalty", None, "nats once a token was generated")
    flags.DEFINE_integer("no_repeat_ngram", None, "no n-gram of this size comes twice")
    flags.DEFINE_string("data_dir", None, "folder of downloaded archives (default: the user's cache)")
    app.run(main)

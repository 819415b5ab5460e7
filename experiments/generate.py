"""Continue text with a model: python -m experiments.generate --run_dir=runs/prefix --prompt="Once upon a time"

A decoder goes on where the prompt ends; an encoder-decoder reads the prompt and writes what follows. One prompt is
shown as it is written; more go through in batches and are written as JSON lines, to --out or as they are done.
"""

import collections
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.progress import track

from experiments import configs, origins, start, writing
from experiments.writing import Text, Writer, Writing
from research.generation.contrastive import ContrastiveSearch
from research.generation.engine import Generation, Greedy, Sample
from research.generation.filters import CutRepeats
from research.generation.processors import (
    Chain,
    Eta,
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
from research.generation.search import Beam

FLAGS = flags.FLAGS
PIECE = 8  # tokens that are shown at a time


def settings(end: int) -> Writing:
    """How gin or the flags say that text is continued.

    Raises:
      ConfigError: both do.
    """
    if not (FLAGS.gin_file or FLAGS.gin_param):
        planned = of_flags()
    elif given := [name for name in SHORT if FLAGS[name].present]:
        raise configs.ConfigError(
            f"--{given[0]} beside --gin_file or --gin_param: expected one of the two ways; bind it in gin, for "
            "example Generation.processors"
        )
    else:
        planned = configs.load(writing.generate, FLAGS.gin_file, FLAGS.gin_param)
    changes: dict[str, Any] = {} if planned.how.end else {"end": (end,)}
    changes |= {} if FLAGS.tokens is None else {"tokens": FLAGS.tokens}
    return dataclasses.replace(planned, how=dataclasses.replace(planned.how, **changes))


# Flags that stand for what gin would bind: those of processors, in the order in which they are applied, and others.
PROCESSORS: dict[str, Callable[[Any], Processor]] = {
    "repetition_penalty": lambda value: RepetitionPenalty(penalty=value),
    "frequency_penalty": lambda value: FrequencyPenalty(penalty=value),
    "presence_penalty": lambda value: PresencePenalty(penalty=value),
    "no_repeat_ngram": lambda value: NoRepeatNGram(size=value),
    "temperature": lambda value: Temperature(value=value),
    "top_k": lambda value: TopK(k=value),
    "top_p": lambda value: TopP(p=value),
    "min_p": lambda value: MinP(p=value),
    "typical": lambda value: Typical(mass=value),
    "eta": lambda value: Eta(epsilon=value),
}
SHORT = ("beams", "length_penalty", "contrastive", "cut_repeats", *PROCESSORS)


def of_flags() -> Writing:
    """What the short flags say.

    Raises:
      ConfigError: a flag that the search which was asked for does not read.
    """
    cut = CutRepeats() if FLAGS.cut_repeats else None
    chain = [made(FLAGS[name].value) for name, made in PROCESSORS.items() if _asked(name)]
    if FLAGS.beams is None and FLAGS["length_penalty"].present:
        raise configs.ConfigError(
            "--length_penalty says nothing without --beams; drop it or search with beams"
        )
    if FLAGS.beams is None and FLAGS.contrastive is None:
        choice = Greedy() if FLAGS.temperature == 0 else Sample()
        how = Generation(choice=choice, processors=Chain(processors=tuple(chain)))
        return Writing(how=how, cut=cut)
    way, reads = ("beams", ()) if FLAGS.contrastive is None else ("contrastive", ("top_k",))
    for name in ("beams", "contrastive", *PROCESSORS):
        if name not in (way, *reads) and _asked(name):
            raise configs.ConfigError(f"--{name} says nothing to --{way}; drop one of them")
    if way == "beams":
        beams = Beam(size=FLAGS.beams, length_penalty=FLAGS.length_penalty)
        return Writing(how=beams, cut=cut)
    some = ContrastiveSearch.candidates if FLAGS.top_k is None else FLAGS.top_k
    found = ContrastiveSearch(penalty=FLAGS.contrastive, candidates=some)
    return Writing(how=found, cut=cut)


def _asked(name: str) -> bool:
    """Whether a flag asks for something; --temperature=0 is greedy search and no processor."""
    value = FLAGS[name].value
    return value is not None and not (name == "temperature" and value == 0)


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
        found = [line for line in Path(FLAGS.prompt_file).read_text().splitlines() if line]
        if not found:
            raise configs.ConfigError(f"--prompt_file={FLAGS.prompt_file}: no line in it")
        return found
    found = [line for line in sys.stdin.read().splitlines() if line]
    if not found:
        raise configs.ConfigError(
            "no prompt: give --prompt, --prompt_file, --interactive or lines on the standard input"
        )
    return found


def shown(writer: Writer, text: str, key: Any, planned: Writing) -> None:
    """Print one continuation, as it comes where no later token or filter can change what was shown."""
    if planned.cut is not None or not isinstance(planned.how, Generation):
        ((found, *_),) = writer.texts([text], key[None], planned.how, 1)
        print(text + (found.text if planned.cut is None else planned.cut(found.text)))
        return
    how = planned.how
    now, printed = writer.begin(writer.encoded([text]), key[None], how), 0
    print(text, end="", flush=True)
    done = False
    while not done:
        now = writing.advance(writer.model, now, how, PIECE)
        done = int(now.step) == how.tokens or bool(now.ended.all())
        (said,) = writer.written(now, how.end)
        whole = said if done else said.rstrip("\ufffd")  # the rest of a character may come
        print(whole[printed:], end="", flush=True)
        printed = len(whole)
    print()


def key_of(seed: int, index: Any, sample: Any) -> Any:
    """The key of a prompt's sample."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), sample)


def records(
    writer: Writer, texts: Sequence[str], planned: Writing, *, each: int, seed: int, rows: int
) -> Iterator[dict[str, Any]]:
    """A record of each continuation, batches of similar length at a time; a record's numbers depend on its prompt, the
    seed and its sample alone. Under `rerank` a prompt's records come together, the best first.

    Raises:
      ConfigError: a search has fewer continuations than are asked for.
    """
    how, draws = planned.how, isinstance(planned.how, Generation)
    most = how.size if isinstance(how, Beam) else 1
    if not draws and each > most:
        raise configs.ConfigError(
            f"--n={each}: {type(how).__name__} finds {most} for a prompt; lower it or draw"
        )
    # A search finds all of a prompt's continuations at once; drawn ones are rows of their own.
    wanted = [(index, sample) for index in range(len(texts)) for sample in range(each if draws else 1)]
    wanted.sort(key=lambda one: len(texts[one[0]]))  # little padding
    left = collections.Counter(index for index, _ in wanted)
    waiting: dict[int, list[tuple[float, dict[str, Any]]]] = {}
    for first in range(0, len(wanted), rows):
        part = wanted[first : first + rows]
        keys = jax.vmap(lambda place: key_of(seed, *place))(np.asarray(part))
        found = writer.texts([texts[index] for index, _ in part], keys, how, each)
        for (index, sample), continuations in zip(part, found, strict=True):
            for place, one in enumerate(continuations):
                record = _record(texts[index], index, sample + place, one, planned.cut)
                # Rated as it was written: what is cut out is the repetition that is to be counted.
                rate = one.log_probability / one.tokens
                cost = 0.0 if planned.rerank is None else planned.rerank.cost(one.text, rate)
                waiting.setdefault(index, []).append((cost, record))
            left[index] -= 1
            if planned.rerank is None or not left[index]:
                for _, record in sorted(waiting.pop(index, []), key=lambda rated: rated[0]):
                    yield record


def _record(text: str, index: int, sample: int, one: Text, cut: CutRepeats | None) -> dict[str, Any]:
    said = one.text if cut is None else cut(one.text)
    scores = one.token_log_probabilities
    return {
        "prompt": text,
        "index": index,
        "sample": sample,
        "text": said,
        **({} if said == one.text else {"uncut": one.text}),
        "log_probability": round(one.log_probability, 4),
        "token_log_probabilities": None if scores is None else [round(score, 5) for score in scores],
        "ended": one.ended,
    }


def main(argv: list[str]) -> int:
    """Continue the prompts. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --prompt=...")
    start.process()
    try:
        writer = writing.load(origins.chosen(FLAGS.run_dir, FLAGS.init_from, FLAGS.data_dir))
        if not FLAGS.amateur_dir and (
            FLAGS["amateur_strength"].present or FLAGS["amateur_plausible"].present
        ):
            raise configs.ConfigError(
                "--amateur_strength and --amateur_plausible say nothing without --amateur_dir"
            )
        if FLAGS.amateur_dir:
            amateur = writing.load(origins.run(FLAGS.amateur_dir, FLAGS.data_dir, "--amateur_dir"))
            options = {"strength": FLAGS.amateur_strength, "plausible": FLAGS.amateur_plausible}
            writer = writing.held_against(writer, amateur, **options)
        planned = settings(writer.tokenizer.eos)
        if FLAGS.interactive:
            for turn, line in enumerate(iter(lambda: input("> "), "")):
                shown(writer, line, key_of(FLAGS.seed, turn, 0), planned)
            return 0
        texts = prompts()
        if len(texts) == 1 and FLAGS.n == 1 and not FLAGS.out:
            shown(writer, texts[0], key_of(FLAGS.seed, 0, 0), planned)
            return 0
        found = records(writer, texts, planned, each=FLAGS.n, seed=FLAGS.seed, rows=FLAGS.batch)
        with open(FLAGS.out, "w") if FLAGS.out else contextlib.nullcontext(sys.stdout) as file:
            total, console = len(texts) * FLAGS.n, Console(stderr=True)
            found = track(
                found, "texts", total, console=console, transient=True, disable=not console.is_terminal
            )
            for record in found:
                print(json.dumps(record, ensure_ascii=False), file=file, flush=True)
    except (KeyboardInterrupt, EOFError):
        print()
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        return start.fail(error)
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("run_dir", None, "folder of a training run")
    flags.DEFINE_string("init_from", None, "or a Hugging Face folder, a .gguf file or a name of the catalog")
    flags.DEFINE_multi_string("prompt", [], "text to go on from; repeat it")
    flags.DEFINE_string("prompt_file", None, "a file with a prompt in each line; neither: the standard input")
    flags.DEFINE_bool("interactive", False, "ask for one prompt after another; an empty one ends")
    flags.DEFINE_multi_string(
        "gin_file", [], "gin file that binds `generate`, such as configs/generation/*.gin"
    )
    flags.DEFINE_multi_string("gin_param", [], 'gin binding, e.g. "Generation.tokens=64"; repeat it')
    flags.DEFINE_integer("tokens", None, "most new tokens (default: 256; beams: 64)", lower_bound=1)
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
    flags.DEFINE_float("eta", None, "eta sampling's epsilon")
    flags.DEFINE_integer(
        "beams", None, "beam search with so many beams; --n of them are written", lower_bound=1
    )
    flags.DEFINE_float("length_penalty", 0.0, "of beam search: above 0 longer texts are preferred")
    flags.DEFINE_float("contrastive", None, "contrastive search with this penalty, among --top_k tokens (4)")
    flags.DEFINE_bool("cut_repeats", False, "cut repeated sentences and phrases out of the text")
    flags.DEFINE_string("amateur_dir", None, "run of a worse model to be held against: contrastive decoding")
    flags.DEFINE_float("amateur_strength", 1.0, "how much its log-probabilities count")
    flags.DEFINE_float("amateur_plausible", 0.1, "least share of the likeliest token's probability")
    flags.DEFINE_string("data_dir", None, "folder of downloaded archives (default: the user's cache)")
    app.run(main)

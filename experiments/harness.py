"""Our models in lm-evaluation-harness: python -m experiments.harness --run_dir=runs/x --tasks=mine --task_dir=tasks

`Harnessed` is what `lm_eval.simple_evaluate(model=...)` takes. It needs the package lm-eval: pip install -e '.[eval]'.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments import folders, origins, start, writing
from experiments.configs import ConfigError
from experiments.writing import Writer
from research.generation.engine import MULTIPLE, Generation, Greedy, Sample
from research.generation.processors import Chain, Processor, Temperature, TopK, TopP
from research.generation.scoring import score

try:
    from lm_eval import evaluator, tasks  # ty: ignore[import-not-found]
    from lm_eval.api.instance import Instance  # ty: ignore[import-not-found]
    from lm_eval.api.model import LM  # ty: ignore[import-not-found]
    from lm_eval.utils import make_table  # ty: ignore[import-not-found]
except ModuleNotFoundError as missing:
    if missing.name != "lm_eval":
        raise
    raise SystemExit(start.fail("the package lm-eval is not here; pip install -e '.[eval]'")) from missing

FLAGS = flags.FLAGS
LENGTH = 1024  # tokens of a line where no table of positions ends earlier
TOKENS = 256  # new tokens where a task does not say
PIECE = 16  # new tokens between looks for a text that ends them


class Harnessed(LM):
    """A model of ours for the harness.

    A line begins with BOS where the model's do, as those of all that were trained here. A text that is longer than a
    line is scored in lines of its own that do not overlap, as windows are, or, where there is no BOS, from the token
    before; of a longer context the end is read. Requests are batched by length, in shapes that are multiples of 32, so
    that few programs are compiled.

    Args:
      writer: the model and its tokenizer.
      length: tokens of a line at most; None: as many as its positions reach, 1,024 at most.
      rows: of a batch.
    """

    def __init__(self, writer: Writer, *, length: int | None = None, rows: int = 32):
        super().__init__()
        self.writer, self.rows = writer, rows
        reach = min((*writer.limits, LENGTH if length is None else length))
        self.length = reach // MULTIPLE * MULTIPLE or reach

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation): nats, and whether greedy search would write the continuation."""
        found = self._scored([self._pair(*request.args) for request in requests])
        return [(float(nats), bool(greedy)) for nats, greedy in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of each text: nats of all its tokens.

        Raises:
          ConfigError: an encoder-decoder has no likelihood of a text without a source.
        """
        if self.writer.model.reads_source:
            raise ConfigError(
                "loglikelihood_rolling gives no source, which an EncoderDecoder needs; use a decoder"
            )
        lines = [self.writer.tokenizer.encode(*request.args) for request in requests]
        before = 0 if self.writer.begins else 1
        parts = [
            (index, (line[max(first - before, 0) : first], line[first : first + self.length]))
            for index, line in enumerate(lines)
            for first in range(0, len(line), self.length)
        ]
        nats = np.zeros(len(lines))
        for (index, _), (own, _) in zip(parts, self._scored([part for _, part in parts]), strict=True):
            nats[index] += own
        return nats.tolist()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Of each (context, settings): what is written before the first of the texts that `until` names."""
        said: dict[int, str] = {}
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        for settings, indices in alike.items():
            contexts = [requests[index].args[0] for index in indices]
            said |= dict(zip(indices, self._written(contexts, json.loads(settings)), strict=True))
        return [said[index] for index in range(len(requests))]

    def _pair(self, context: str, continuation: str) -> tuple[Any, Any]:
        """Ids of both. Blanks between them belong to the continuation, and both are cut into tokens together."""
        blanks = len(context) - len(context.rstrip())
        if blanks:
            context, continuation = context[:-blanks], context[-blanks:] + continuation
        encode = self.writer.tokenizer.encode
        given = encode(context)
        rest = (
            encode(continuation)
            if self.writer.model.reads_source
            else encode(context + continuation)[len(given) :]
        )
        rest = rest[: self.length]
        room = self.length if self.writer.model.reads_source else self.length - len(rest)
        given = given[len(given) - min(room, len(given)) :]
        return self.writer.tokenizer.framed(given) if self.writer.model.reads_source else given, rest

    def _scored(self, pairs: Sequence[tuple[Any, Any]]) -> Iterator[tuple[float, bool]]:
        tokenizer = self.writer.tokenizer
        if not pairs:
            return iter(())
        found = score(
            self.writer.model,
            pairs,
            bos=tokenizer.bos,
            pad=tokenizer.pad,
            begins=self.writer.begins,
            rows=self.rows,
        )
        return zip(found.log_probability, found.greedy, strict=True)

    def _written(self, contexts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        """Continuations under one set of settings, batches of similar length at a time."""
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else until
        how = generation(settings, self.writer.tokenizer.eos)
        room = self.length - how.tokens
        if room < 1:
            raise ConfigError(
                f"max_gen_toks = {how.tokens}: expected fewer than the {self.length} tokens of a line; lower it or "
                "raise --length"
            )
        lines = [line[-room:] for line in self.writer.encoded(contexts)]
        said = [""] * len(lines)
        order = sorted(range(len(lines)), key=lambda index: len(lines[index]))
        for first in range(0, len(order), self.rows):
            chosen = order[first : first + self.rows]
            filled = chosen + chosen[:1] * (self.rows - len(chosen))  # one shape for the last batch too
            keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(0), index))(np.asarray(filled))
            texts = self._continued([lines[index] for index in filled], keys, how, until)
            for index, text in zip(chosen, texts, strict=False):
                said[index] = text
        return said

    def _continued(self, lines: list[Any], keys: Any, how: Generation, until: Sequence[str]) -> list[str]:
        now = self.writer.begin(lines, keys, how)
        while True:
            now = writing.advance(self.writer.model, now, how, PIECE)
            said = self.writer.written(now, how.end)
            over = [
                ended or any(end in text for end in until)
                for text, ended in zip(said, now.ended, strict=True)
            ]
            if all(over) or int(now.step) == how.tokens:
                return [cut(text, until) for text in said]


def generation(settings: dict[str, Any], end: int) -> Generation:
    """How the harness's settings say that text is continued: greedily, unless they ask for draws.

    Raises:
      ConfigError: a setting that is not known.
    """
    known = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")
    if unknown := sorted(set(settings) - set(known)):
        raise ConfigError(
            f"generation_kwargs: {unknown[0]!r} is unknown, expected some of {', '.join(known)}"
        )
    tokens = settings.get("max_gen_toks", TOKENS)
    heat = settings.get("temperature", 1.0)
    if not settings.get("do_sample", False) or heat == 0:
        return Generation(tokens=tokens, end=(end,), choice=Greedy())
    chain: list[Processor] = [Temperature(value=heat)]
    chain += [TopK(k=settings["top_k"])] if settings.get("top_k") else []
    chain += [TopP(p=settings["top_p"])] if settings.get("top_p") else []
    return Generation(tokens=tokens, end=(end,), choice=Sample(), processors=Chain(processors=tuple(chain)))


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of those that end it."""
    return text[: min((text.find(end) for end in until if end and end in text), default=len(text))]


def main(argv: list[str]) -> int:
    """Run tasks of the harness. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --tasks=...")
    start.process()
    try:
        writer = writing.load(origins.chosen(FLAGS.run_dir, FLAGS.init_from, FLAGS.data_dir))
        model = Harnessed(writer, length=FLAGS.length, rows=FLAGS.batch)
        known = tasks.TaskManager(include_path=FLAGS.task_dir)
        found: Any = evaluator.simple_evaluate(
            model=model,
            tasks=FLAGS.tasks.split(","),
            task_manager=known,
            limit=FLAGS.limit,
            log_samples=False,
        )
        if FLAGS.out:
            kept = {name: found[name] for name in ("results", "versions", "n-samples", "n-shot")}
            folders.replace(Path(FLAGS.out), json.dumps(kept, indent=2, sort_keys=True, default=str) + "\n")
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        return start.fail(error)
    print(make_table(found))
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("run_dir", None, "folder of a training run")
    flags.DEFINE_string("init_from", None, "or a Hugging Face folder, a .gguf file or a name of the catalog")
    flags.DEFINE_string("tasks", None, "names of tasks with commas between", required=True)
    flags.DEFINE_string("task_dir", None, "folder of your own tasks (.yaml)")
    flags.DEFINE_integer("length", None, "tokens of a line at most (default: 1024, or fewer)", lower_bound=1)
    flags.DEFINE_integer("batch", 32, "rows of a batch", lower_bound=1)
    flags.DEFINE_integer("limit", None, "documents of each task at most", lower_bound=1)
    flags.DEFINE_string("out", "", "JSON file for the results")
    flags.DEFINE_string("data_dir", None, "folder of downloaded archives (default: the user's cache)")
    app.run(main)

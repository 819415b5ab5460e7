"""A model as a writer, and how it is told to write; gin files bind that under the name `generate`:

writing.generate.how = @engine.Generation()        # in a file, after `from experiments import writing`
--gin_param="generate.how=@ContrastiveSearch()"    # on the command line
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import configs, experiment, pretrained
from experiments.origins import Origin
from research.batch import Tokens
from research.data.tokenizers import Tokenizer
from research.generation import contrastive, engine, search
from research.generation.contrast import Contrast
from research.generation.contrastive import ContrastiveSearch
from research.generation.engine import Generated, Generation, prompt, rounded
from research.generation.filters import CutRepeats, Rerank
from research.generation.search import Beam
from research.models.families import EncoderConfig, Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """How prompts are continued; gin files bind it under the name `generate`.

    Attributes:
      how: `Generation()` draws, `Beam()` and `ContrastiveSearch()` search. Where its `end` is empty, EOS ends a text.
      cut: what cuts repeats out of finished text, or None.
      rerank: how the continuations of a prompt are put in order, best first, or None.
    """

    how: Generation | Beam | ContrastiveSearch = Generation()
    cut: CutRepeats | None = None
    rerank: Rerank | None = None


generate = Writing  # the name that gin files and --gin_param bind


class Text(NamedTuple):
    """One continuation: its text and how many tokens that is, their log-probabilities (of a beam the sum alone), and
    whether it ended.
    """

    text: str
    tokens: int
    log_probability: float
    token_log_probabilities: list[float] | None
    ended: bool


@dataclasses.dataclass(frozen=True)
class Writer:
    """A trained model, or two held against each other, that continues text."""

    model: Model | Contrast
    tokenizer: Tokenizer
    limits: tuple[int, ...]  # of learned positions
    begins: bool = True  # whether a decoder reads BOS before a prompt

    def read(self, lines: Sequence[Any], tokens: int) -> tuple[Tokens, Tokens | None]:
        """Ids of prompts as what the rows begin with and, for an encoder-decoder, the source.

        A decoder that reads no BOS still begins with it where the prompt is empty.

        Raises:
          ValueError: a prompt is empty for an encoder, or longer than the model's positions reach.
        """
        line = functools.partial(prompt, pad=self.tokenizer.pad, vocab=self.tokenizer.vocab_size)
        if self.model.reads_source:
            lines = [self.tokenizer.framed(line) for line in lines]
            self._fits(max(map(len, lines)), 1 + tokens)
            source = line(lines, length=rounded(lines), given=False)
            return line([[self.tokenizer.bos]] * len(lines), given=False), source
        bos = [self.tokenizer.bos]
        lines = [np.concatenate([bos, line]) if self.begins or not len(line) else line for line in lines]
        self._fits(max(map(len, lines)) + tokens)
        return line(lines, length=rounded(lines)), None

    def encoded(self, texts: Sequence[str]) -> list[Any]:
        """The ids of prompts."""
        return [self.tokenizer.encode(text) for text in texts]

    def begin(self, lines: Sequence[Any], keys: Any, how: Generation) -> Generated:
        """Read the ids of prompts; no token is added yet."""
        given, source = self.read(lines, how.tokens)
        return _begin(self.model, given, keys, how, source=source)

    def written(self, now: Generated, end: Sequence[int]) -> list[str]:
        """What has been written, row by row, without the prompt and the end."""
        history = jax.device_get(now.history)
        rows = zip(history.ids, history.prompt, history.length, strict=True)
        return [self.decoded(ids[first:last], ids[first - 1], end) for ids, first, last in rows]

    def decoded(self, ids: np.ndarray, before: int | np.integer, end: Sequence[int]) -> str:
        """Text of tokens behind another, without the one that ended it; ids that only fill a table stand for none."""
        kept = ids[:-1] if _ended(ids, end) else ids
        kept = kept[kept < self.tokenizer.vocab_size]
        return self.tokenizer.decode(kept, continues=bool(before != self.tokenizer.bos))

    def texts(self, texts: Sequence[str], keys: Any, how: Any, each: int) -> list[list[Text]]:
        """Continuations of each prompt: one, but of a beam search the `each` best, or all there are.

        Raises:
          ValueError: as `read`, or a pair of models is to be searched by hidden states.
        """
        if isinstance(how, Beam):
            given, source = self.read(self.encoded(texts), how.tokens)
            found = jax.device_get(_beams(self.model, given, how, source=source))
            whole = found.log_probability[:, :each] > search.NEVER / 2
            last = [ids[real > 0][-1] for ids, real in zip(given.ids, given.slots.segment, strict=True)]
            return [
                [self._beam(found, row, place, last[row], how) for place in np.flatnonzero(there)]
                for row, there in enumerate(whole)
            ]
        if isinstance(how, ContrastiveSearch):
            given, source = self.read(self.encoded(texts), how.tokens)
            done = _contrastive(self.model, given, how, source=source)
        else:
            done = advance(self.model, self.begin(self.encoded(texts), keys, how), how, None)
        scores, sizes, ended = jax.device_get((done.log_probability, done.history.new, done.ended))
        own = [scores[row, : sizes[row]].tolist() for row in range(len(texts))]
        rows = zip(self.written(done, how.end), own, ended, strict=True)
        return [[Text(text, len(scores), sum(scores), scores, bool(over))] for text, scores, over in rows]

    def _beam(self, found: Any, row: int, place: int, before: np.integer, how: Beam) -> Text:
        ids, likely = found.ids[row, place, : found.length[row, place]], found.log_probability[row, place]
        return Text(self.decoded(ids, before, how.end), len(ids), float(likely), None, _ended(ids, how.end))

    def _fits(self, *lengths: int) -> None:
        for length in lengths:
            short = [limit for limit in self.limits if limit < length]
            if short:
                raise ValueError(
                    f"{length} tokens of prompt and text, but the model's learned positions end at {min(short)}; "
                    "shorten the prompt or --tokens"
                )


def _ended(ids: np.ndarray, end: Sequence[int]) -> bool:
    return bool(len(ids)) and int(ids[-1]) in end


_begin = jax.jit(engine.begin, static_argnums=3)
advance = jax.jit(engine.advance, static_argnums=(2, 3))
_beams = jax.jit(search.search, static_argnums=2)
_contrastive = jax.jit(contrastive.search, static_argnums=2)


def load(origin: Origin) -> Writer:
    """The model at a place, such as a run's newest checkpoint.

    Raises:
      ConfigError: the model cannot go on from a prompt, or there is no tokenizer.
      CheckpointError: a run has no checkpoint that is whole.
      WeightsError: published weights that are not those of the model; a line for each name.
    """
    _goes_on(origin)
    tokenizer = origin.tokenizer()
    found = pretrained.loaded(origin, tokenizer)
    limits = [stack.positions.limit for stack in experiment.stacks(found.config)]
    reach = tuple(limit for limit in limits if limit is not None)
    return Writer(found.model, tokenizer, reach, origin.begins)


def _goes_on(origin: Origin) -> None:
    if isinstance(origin.model, EncoderConfig):
        raise configs.ConfigError(
            f"{origin.place}: an Encoder has no next token; expected a decoder or an encoder-decoder"
        )
    schemes = [
        scheme
        for stack in experiment.stacks(origin.model)
        for scheme in (stack.positions, *(spec.positions for spec in stack.pattern))
    ]
    if any(max(getattr(scheme, "axes", (0,))) for scheme in schemes):
        raise configs.ConfigError(
            f"{origin.place}: its tokens have two coordinates each (ChatGLM-6B, GLM), which cannot be prompted by the "
            "command line yet; expected a model with one, or give Slots.coords to research.generation"
        )


def held_against(expert: Writer, amateur: Writer, *, strength: float, plausible: float) -> Writer:
    """An expert beside an amateur; see `contrast.Contrast`.

    Raises:
      ConfigError: they do not have one tokenizer.
    """
    if expert.tokenizer != amateur.tokenizer:
        raise configs.ConfigError(
            f"--amateur_dir has the tokenizer {amateur.tokenizer}, the other model has {expert.tokenizer}: expected one"
        )
    pair = Contrast(expert.model, amateur.model, strength=strength, plausible=plausible)
    return Writer(pair, expert.tokenizer, expert.limits + amateur.limits, expert.begins)

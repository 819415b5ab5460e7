"""How long a context each of several models makes use of, by what it gains over the best of them with a shorter one."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64

from research.evaluation.checked import require_decoder, require_no_memory, require_positions
from research.evaluation.long_context import scored_losses, sliding, stretches
from research.evaluation.trained import Reference, Scores, Trained
from research.models.families import FamilyConfig


def relative_gain(
    short: Iterable[Float64[np.ndarray, " n"]], long: Float64[np.ndarray, " n"], hard: float
) -> float:
    """By which share a model's perplexity falls with a longer context, where what any model of a group does as well
    with the shorter one is no gain: g(c, c') of Dai et al. 2019, appendix C.

    Args:
      short: the losses of each model of the group at each token, with the shorter context.
      long: of the one model, with the longer one.
      hard: which share of the tokens counts, those that are hardest for the best of the group.
    """
    best = np.min(list(short), axis=0)
    counted = np.argsort(-best, kind="stable")[: max(round(hard * len(best)), 1)]
    return float(1 - np.exp(np.minimum(best, long)[counted].mean() - best[counted].mean()))


def relative_context(
    losses: Mapping[str, Mapping[int, Float64[np.ndarray, " n"]]], hard: float, least: float = 0.01
) -> dict[str, int]:
    """RECL: of each model the shortest length from which the next one gains less than `least`, or the greatest.

    `losses`: of the models of a group, by name and length, of the same tokens.
    """
    found = {}
    for name, own in losses.items():
        lengths = sorted(own)
        found[name] = lengths[-1]
        for short, long in zip(lengths[:-1], lengths[1:], strict=True):
            if relative_gain([each[short] for each in losses.values()], own[long], hard) < least:
                found[name] = short
                break
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeContext:
    """Relative effective context length (RECL: Dai et al. 2019, section 4.3 and appendix C) of a group of decoders.

    A model that predicts well from little has less to gain from more, so each is measured by what it gains over the
    best of the group. Different: lengths are those given, such as doubling ones, where the paper adds the same number
    of tokens again and again; a longer step gains more, so that RECLs of other lengths do not compare. And with a
    stride a token is seen with `length - stride` to `length - 1` tokens before it.

    Attributes:
      group: the other models, each with its name; (): the model is compared with itself, as in Khandelwal et al. 2018.
      own: the name of the one that is measured.
      lengths: tokens of a window, rising.
      stride: new tokens of a window, in sliding ones.
      stretches, tokens: how many are read, and scored of each; see `LengthCurve`.
      hard: the share of the tokens that are the `hardest`.
      split: of which documents.
    """

    group: tuple[tuple[str, Reference], ...] = ()
    own: str = "model"
    lengths: tuple[int, ...] = (16, 32, 64, 128, 256)
    stride: int = 16
    stretches: int = 32
    tokens: int = 256
    hard: float = 0.1
    split: Literal["test", "validation"] = "test"

    def __post_init__(self):
        names = [self.own, *(name for name, _ in self.group)]
        if len(set(names)) < len(names):
            raise ValueError(f"RelativeContext.own and .group are {names}: expected each name once")
        if len(self.lengths) < 2 or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(
                f"RelativeContext.lengths = {self.lengths}: expected at least two rising numbers"
            )
        if not 1 <= self.stride <= self.lengths[0] or self.stretches < 1 or self.tokens < 1:
            raise ValueError(
                f"RelativeContext.stride = {self.stride}, .stretches = {self.stretches}, .tokens = {self.tokens}: "
                f"expected 1 to {self.lengths[0]}, the shortest of .lengths, and at least 1"
            )
        if not 0 < self.hard <= 1:
            raise ValueError(f"RelativeContext.hard = {self.hard}: expected more than 0 and at most 1")

    def check(self, model: FamilyConfig) -> None:
        """ValueError where the model is no decoder, has a memory, or fewer positions than the longest window."""
        decoder = require_decoder(model, "RelativeContext")
        require_no_memory(decoder, "RelativeContext reads each window alone")
        require_positions(decoder, self.lengths[-1], f"RelativeContext.lengths = {self.lengths}")

    def __call__(self, trained: Trained) -> Scores:
        """RECL in tokens, by name: `all`, of all tokens, and `hardest`, of those that `hard` says.

        Raises:
          ValueError: see `check`, of any of the models, or no document is long enough.
        """
        models = {self.own: trained}
        for name, reference in self.group:
            trainer, params = reference.trained(trained.text)
            models[name] = dataclasses.replace(trained, trainer=trainer, params=params)
        for one in models.values():
            self.check(one.trainer.config)
        size = self.lengths[-1] - self.stride + self.tokens
        made_of = "the longest of RelativeContext.lengths less .stride, and .tokens"
        lines = stretches(trained.text, self.split, size, self.stretches, made_of)
        losses = {name: self._by_length(one, lines) for name, one in models.items()}
        return {"all": relative_context(losses, 1.0), "hardest": relative_context(losses, self.hard)}

    def _by_length(self, one: Trained, lines: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
        first = self.lengths[-1] - self.stride
        return {
            n: scored_losses(one, lines, sliding(first, first + self.tokens, n, self.stride))[0]
            for n in self.lengths
        }

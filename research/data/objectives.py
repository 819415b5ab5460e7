"""Objectives: what of a window is given and what is to be predicted, whatever the model is.

An objective turns a window of tokens into an `Example`; a layout places it for a family. All randomness comes
from the generator it is called with, which the pipeline seeds for each window and epoch.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

from research.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Example:
    """One window, ready to be laid out.

    Attributes:
      inputs: i32[n], given.
      targets: i32[m], to be predicted.
      weights: f32[m], each target's share in the loss.
      aligned: target i stands at input i (masked language modelling), not after the inputs.
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    aligned: bool = False


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most tokens an objective makes of a window: of inputs, of targets and of both together."""

    inputs: int
    targets: int
    total: int


@runtime_checkable  # so that a config value can be checked against it
class Objective(Protocol):
    """What every objective here provides."""

    def __call__(
        self, window: Int32[np.ndarray, " n"], rng: np.random.Generator, tokenizer: Tokenizer
    ) -> Example:
        """The example made of a window."""
        ...

    def limits(self, window: int) -> Limits:
        """The most tokens it makes of a window of that many."""
        ...


def _ones(tokens: np.ndarray) -> Float32[np.ndarray, " m"]:
    return np.ones(len(tokens), np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM:
    """Predict every token from those before it; nothing is given."""

    def __call__(
        self, window: Int32[np.ndarray, " n"], rng: np.random.Generator, tokenizer: Tokenizer
    ) -> Example:
        """No inputs, the whole window as targets."""
        return Example(window[:0], window, _ones(window))

    def limits(self, window: int) -> Limits:
        """No inputs, `window` targets."""
        return Limits(0, window, window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM:
    """Given the beginning of the window, predict the rest (Raffel et al. 2020, section 3.2.3).

    Attributes:
      least, most: bounds of the given share of the window; equal bounds cut every window at the same place.
    """

    least: float = 0.5
    most: float = 0.5

    def __post_init__(self):
        if not 0 <= self.least <= self.most < 1:
            raise ValueError(
                f"PrefixLM: least = {self.least}, most = {self.most}; expected 0 <= least <= most < 1"
            )

    def __call__(
        self, window: Int32[np.ndarray, " n"], rng: np.random.Generator, tokenizer: Tokenizer
    ) -> Example:
        """The window cut in two."""
        least, most = self._cuts(len(window))
        cut = int(rng.integers(least, most + 1))
        targets = window[cut:]
        return Example(window[:cut], targets, _ones(targets))

    def limits(self, window: int) -> Limits:
        """The longest prefix, the longest rest."""
        least, most = self._cuts(window)
        return Limits(most, window - least, window)

    def _cuts(self, window: int) -> tuple[int, int]:
        return int(self.least * window), int(self.most * window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Spans are cut out of the window and predicted one after another (Raffel et al. 2020, section 3.1.4).

    The inputs are the window with each span replaced by its sentinel, the targets are each sentinel followed by
    its span; both end with EOS. The number of spans and of cut tokens depends on the window's length alone.

    Attributes:
      density: share of the tokens that are cut out.
      mean_span: mean length of a span in tokens.
    """

    density: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self):
        if not 0 < self.density < 1 or self.mean_span < 1:
            raise ValueError(
                f"SpanCorruption: density = {self.density}, mean_span = {self.mean_span}; "
                "expected 0 < density < 1 and mean_span >= 1"
            )

    def __call__(
        self, window: Int32[np.ndarray, " n"], rng: np.random.Generator, tokenizer: Tokenizer
    ) -> Example:
        """The window with spans cut out, and the spans."""
        noise, spans = self._counts(len(window))
        kept = _segments(len(window) - noise, spans, rng)
        cut = _segments(noise, spans, rng)
        inputs, targets, place = [], [], 0
        for span in range(spans):
            sentinel = np.array([tokenizer.sentinel(span)], np.int32)
            inputs += [window[place : place + kept[span]], sentinel]
            place += kept[span]
            targets += [sentinel, window[place : place + cut[span]]]
            place += cut[span]
        eos = np.array([tokenizer.eos], np.int32)
        target = np.concatenate([*targets, eos])
        return Example(np.concatenate([*inputs, eos]), target, _ones(target))

    def limits(self, window: int) -> Limits:
        """Exactly what every window of that length becomes."""
        noise, spans = self._counts(window)
        inputs, targets = window - noise + spans + 1, noise + spans + 1
        return Limits(inputs, targets, inputs + targets)

    def _counts(self, window: int) -> tuple[int, int]:
        if window < 2:
            raise ValueError(f"SpanCorruption: a window of {window} tokens; set Data.window to at least 2")
        noise = min(max(round(window * self.density), 1), window - 1)
        spans = max(round(noise / self.mean_span), 1)
        return noise, min(spans, noise, window - noise)


def _segments(total: int, parts: int, rng: np.random.Generator) -> Int32[np.ndarray, " parts"]:
    """`total` split into `parts` positive lengths, every split equally likely."""
    edges = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], edges, [total]])).astype(np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM:
    """Predict a share of the tokens in place, seeing both sides (Devlin et al. 2019, section 3.1).

    Of the chosen tokens 80 % are replaced by the mask token, 10 % by a random token, 10 % stay as they are.

    Attributes:
      density: share of the tokens that are chosen.
    """

    density: float = 0.15

    def __post_init__(self):
        if not 0 < self.density < 1:
            raise ValueError(f"MaskedLM.density = {self.density}; expected 0 < density < 1")

    def __call__(
        self, window: Int32[np.ndarray, " n"], rng: np.random.Generator, tokenizer: Tokenizer
    ) -> Example:
        """The corrupted window, and the window itself as aligned targets, weighted where chosen."""
        count = max(round(len(window) * self.density), 1)
        chosen = rng.choice(len(window), count, replace=False)
        masked, random = np.split(chosen, [round(0.8 * count), round(0.9 * count)])[:2]
        inputs = window.copy()
        inputs[masked] = tokenizer.mask
        inputs[random] = rng.choice(tokenizer.text_ids, len(random))
        weights = np.zeros(len(window), np.float32)
        weights[chosen] = 1
        return Example(inputs, window, weights, aligned=True)

    def limits(self, window: int) -> Limits:
        """As many inputs as targets, in the same places."""
        return Limits(window, window, window)

"""Objectives that corrupt a window and predict what was there: spans, blanks, mixtures of them, and order."""

import dataclasses
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int32

from research.data.objectives import Example, Limits, Objective, PrefixLM, ended, ones
from research.data.tokenizers import Tokenizer
from research.data.windows import TokenWindow


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(Objective):
    """Cut spans out of the window and predict them (T5: Raffel et al. 2020, section 3.1.4).

    Spans and the text between them have random lengths but constant totals, so every window of one length gives
    inputs and targets of one length. A sentinel stands for each span in the inputs and before it in the targets;
    both end with EOS. T5's targets end with one sentinel more, which carries no information and is left out.

    Attributes:
      density: share of the tokens that are cut out.
      mean_span: mean length of a span.
    """

    density: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self):
        if not 0 < self.density < 1 or self.mean_span < 1:
            raise ValueError(
                f"SpanCorruption: density = {self.density}, mean_span = {self.mean_span}; "
                "expected 0 < density < 1 and mean_span >= 1"
            )

    def __call__(self, window: TokenWindow, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """The window with spans cut out, and the spans."""
        noise, spans = self._counts(len(window.ids))
        kept = _segments(len(window.ids) - noise, spans, rng)
        cut = _segments(noise, spans, rng)
        sentinels = [np.array([tokenizer.sentinel(span)], np.int32) for span in range(spans)]
        pieces = np.split(window.ids, np.cumsum(np.stack([kept, cut], 1)).tolist()[:-1])
        inputs = [part for pair in zip(pieces[0::2], sentinels, strict=True) for part in pair]
        targets = [part for pair in zip(sentinels, pieces[1::2], strict=True) for part in pair]
        target = ended(np.concatenate(targets), tokenizer)
        return Example(ended(np.concatenate(inputs), tokenizer), target, ones(target))

    def limits(self, window: int) -> Limits:
        """Exactly what every window of that length becomes."""
        noise, spans = self._counts(window)
        inputs, targets = window - noise + spans + 1, noise + spans + 1
        return Limits(inputs, targets, inputs + targets)

    def admits(self, window: TokenWindow) -> bool:
        """Whether there is something to cut out and something to keep."""
        return len(window.ids) >= 2

    def sentinels(self, window: int) -> int:
        """One for each span."""
        return self._counts(window)[1]

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
class BlankInfilling(Objective):
    """Blank out spans and write them one after another in random order (GLM: Du et al. 2022, section 2.1).

    The inputs are the text with one mask token for each blank. Then each span is read as BOS (GLM's start of
    piece), its tokens, and predicted as its tokens, EOS. The clock is the place in the rearranged line, so that
    the mask is plain `Prefix()`; the geometry has two components: the place in the corrupted text (of its blank,
    for a span's tokens; BOS of the line is place 0) and the place inside the span (from 1; 0 in the text). Bind
    `Rotary.axes = (0, 1)` to read both.

    Attributes:
      density: share of the tokens that are blanked out.
      mean_span: mean of the Poisson distribution that span lengths are drawn from, until enough is blanked out or
        the last of twice the expected number of spans takes the rest.
      document: share of the windows that lose one span of half to all of their length instead (section 2.2).
    """

    density: float = 0.15
    mean_span: float = 3.0
    document: float = 0.0

    def __post_init__(self):
        if not 0 < self.density < 1 or self.mean_span < 1 or not 0 <= self.document <= 1:
            raise ValueError(
                f"BlankInfilling: density = {self.density}, mean_span = {self.mean_span}, document = "
                f"{self.document}; expected 0 < density < 1, mean_span >= 1 and 0 <= document <= 1"
            )

    def __call__(self, window: TokenWindow, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """The text with blanks, and the spans in random order."""
        starts, lengths = self._spans(len(window.ids), rng)
        inside = np.zeros(len(window.ids), bool)
        for start, length in zip(starts, lengths, strict=True):
            inside[start : start + length] = True
        corrupted = np.where(inside, tokenizer.mask, window.ids).astype(np.int32)
        kept = ~inside
        kept[starts] = True  # one mask token for each span
        inputs = corrupted[kept]
        blank = np.cumsum(kept)[starts]  # the place of each blank, BOS being place 0

        reads, targets, coords = [], [], []
        for i in rng.permutation(len(starts)):
            span = window.ids[starts[i] : starts[i] + lengths[i]]
            reads += [np.array([tokenizer.bos], np.int32), span]
            targets += [span, np.array([tokenizer.eos], np.int32)]
            coords.append(np.stack([np.full(len(span) + 1, blank[i]), np.arange(1, len(span) + 2)], 1))
        line = np.arange(1 + len(inputs))
        target = np.concatenate(targets)
        return Example(
            inputs,
            target,
            ones(target),
            reads=np.concatenate(reads),
            coords=(
                np.stack([line, np.zeros_like(line)], 1).astype(np.int32),
                np.concatenate(coords).astype(np.int32),
            ),
        )

    def limits(self, window: int) -> Limits:
        """The most that any choice of spans gives."""
        noise = self._noise(window)
        spans = self._most_spans(noise)
        targets = max(noise + spans, window + 1 if self.document else 0)
        inputs = window - noise + spans
        return Limits(max(inputs, window // 2 + 1), targets, 1 + window + 2 * spans)

    def admits(self, window: TokenWindow) -> bool:
        """Whether there is something to blank out and something to keep."""
        return len(window.ids) >= 2

    def _noise(self, window: int) -> int:
        if window < 2:
            raise ValueError(f"BlankInfilling: a window of {window} tokens; set Data.window to at least 2")
        return min(max(round(window * self.density), 1), window - 1)

    def _most_spans(self, noise: int) -> int:
        return min(noise, -(-2 * noise // int(self.mean_span)))

    def _spans(self, window: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Starts and lengths of the spans, in the order of the text; no two touch where there is room."""
        noise = self._noise(window)
        if rng.random() < self.document:
            length = int(rng.integers(-(-window // 2), window + 1))
            return np.array([rng.integers(window - length + 1)]), np.array([length])
        lengths, left = [], noise
        while left:
            drawn = max(int(rng.poisson(self.mean_span)), 1)
            last = len(lengths) + 1 == self._most_spans(noise)
            lengths.append(left if last else min(drawn, left))
            left -= lengths[-1]
        spans = len(lengths)
        # Gaps before, between and after: those between are at least 1 where there are enough tokens left.
        between = 1 if window - noise >= spans - 1 else 0
        free = window - noise - between * (spans - 1)
        gaps = np.diff(np.concatenate([[0], np.sort(rng.integers(free + 1, size=spans)), [free]]))[:-1]
        gaps[1:] += between
        lengths = np.array(lengths)
        starts = np.cumsum(gaps) + np.concatenate([[0], np.cumsum(lengths)[:-1]])
        return starts, lengths


Mode = Literal["R", "S", "X"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoiser:
    """One objective of a mixture.

    Attributes:
      mode: what the model is told it is: R (regular), S (sequential) or X (extreme).
      objective: what the window becomes.
      weight: its share of the windows, relative to the others'.
    """

    mode: Mode
    objective: SpanCorruption | PrefixLM
    weight: float = 1.0


UL2 = (
    Denoiser(mode="R", objective=SpanCorruption(density=0.15, mean_span=3.0)),
    Denoiser(mode="R", objective=SpanCorruption(density=0.15, mean_span=8.0)),
    Denoiser(mode="S", objective=PrefixLM(least=0.5, most=0.99)),
    Denoiser(mode="X", objective=SpanCorruption(density=0.5, mean_span=3.0)),
    Denoiser(mode="X", objective=SpanCorruption(density=0.5, mean_span=8.0)),
    Denoiser(mode="X", objective=SpanCorruption(density=0.15, mean_span=64.0)),
    Denoiser(mode="X", objective=SpanCorruption(density=0.5, mean_span=64.0)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureOfDenoisers(Objective):
    """Each window is denoised in one of several ways and begins with a token that names the way (UL2: Tay et al. 2022).

    The default is UL2's table of seven denoisers with equal shares; its sequential one cuts uniformly so that a
    quarter of the window is the target on average. The mode tokens R, S and X are the tokenizer's last three sentinels.

    Attributes:
      denoisers: the ways, each with its mode and weight.
    """

    denoisers: tuple[Denoiser, ...] = UL2

    def __post_init__(self):
        if not self.denoisers or min(one.weight for one in self.denoisers) <= 0:
            raise ValueError(
                f"MixtureOfDenoisers.denoisers = {self.denoisers}: expected at least one, with positive weights"
            )

    def __call__(self, window: TokenWindow, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """The mode token and what its denoiser makes of the window."""
        weights = np.array([one.weight for one in self.denoisers])
        chosen = self.denoisers[rng.choice(len(weights), p=weights / weights.sum())]
        example = chosen.objective(window, rng, tokenizer)
        mode = np.array([mode_token(chosen.mode, tokenizer)], np.int32)
        return dataclasses.replace(example, inputs=np.concatenate([mode, example.inputs]))

    def limits(self, window: int) -> Limits:
        """The most of any denoiser, and the mode token."""
        most = Limits(0, 0, 0)
        for one in self.denoisers:
            most |= one.objective.limits(window)
        return Limits(most.inputs + 1, most.targets, most.total + 1)

    def admits(self, window: TokenWindow) -> bool:
        """Whether every denoiser can take it."""
        return all(one.objective.admits(window) for one in self.denoisers)

    def sentinels(self, window: int) -> int:
        """Those of the spans, and the mode tokens."""
        return max(one.objective.sentinels(window) for one in self.denoisers) + len(MODES)


def mode_token(mode: Mode, tokenizer: Tokenizer) -> int:
    """The id of the token that names a way of denoising."""
    return tokenizer.sentinel(tokenizer.sentinels - len(MODES) + MODES.index(mode))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deshuffling(Objective):
    """Given the window's tokens in random order, predict the window (T5: Raffel et al. 2020, section 3.3.1)."""

    def __call__(self, window: TokenWindow, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """The shuffled window and the window, both ended by EOS."""
        targets = ended(window.ids, tokenizer)
        return Example(ended(rng.permutation(window.ids), tokenizer), targets, ones(targets))

    def limits(self, window: int) -> Limits:
        """The window twice, each with EOS."""
        return Limits(window + 1, window + 1, 2 * window + 2)

"""Objectives: what of a window is given and what is to be predicted, whatever the model is.

An objective turns a window of tokens into an `Example`; a layout places it for a family. All randomness comes
from the generator it is called with, which the pipeline seeds for each window and epoch. Here are the objectives
that leave the text as it is; those that corrupt it are in `denoising`.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int32

from research.data.tokenizers import Tokenizer
from research.data.windows import TokenWindow


@dataclasses.dataclass(frozen=True)
class Example:
    """One window, ready to be laid out.

    Attributes:
      inputs: i32[n], given.
      targets: i32[m], to be predicted.
      weights: f32[m], each target's share in the loss.
      aligned: target i stands at input i (masked language modelling), not after the inputs.
      reads: i32[m], what a decoder reads where it predicts each target; None: the token before it.
      coords: geometry of BOS and the inputs i32[1 + n, 2], and of `reads` i32[m, 2]; None: the positions. Only with
        `reads`.
      label: the class of the whole window, for families that have a head for it; None: there is none.
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    aligned: bool = False
    reads: np.ndarray | None = None
    coords: tuple[np.ndarray, np.ndarray] | None = None
    label: int | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most tokens an objective makes of a window: of inputs, of targets, and of a line of both.

    A line begins with BOS and leaves out its last token, which nothing reads; so it is as long as inputs and
    targets together, or one longer where the objective says what is read.
    """

    inputs: int
    targets: int
    total: int

    def __or__(self, other: "Limits") -> "Limits":
        """The greater of each."""
        return Limits(
            max(self.inputs, other.inputs), max(self.targets, other.targets), max(self.total, other.total)
        )


class Objective:
    """What every objective provides; subclasses are frozen dataclasses."""

    def __call__(self, window: TokenWindow, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """The example made of a window."""
        raise NotImplementedError

    def limits(self, window: int) -> Limits:
        """The most tokens it makes of a window of that many."""
        raise NotImplementedError

    def admits(self, window: TokenWindow) -> bool:
        """Whether the objective can take the window; the pipeline leaves out those that it cannot."""
        return True

    def sentinels(self, window: int) -> int:
        """The most sentinels it needs for a window of that many tokens."""
        return 0


def ones(tokens: np.ndarray) -> Float32[np.ndarray, " m"]:
    """Equal weights."""
    return np.ones(len(tokens), np.float32)


def ended(ids: Int32[np.ndarray, " n"], tokenizer: Tokenizer) -> Int32[np.ndarray, " m"]:
    """The tokens with EOS at their end."""
    if len(ids) and ids[-1] == tokenizer.eos:
        return ids
    return np.append(ids, np.int32(tokenizer.eos))


def cut_range(window: int, least: float, most: float) -> tuple[int, int]:
    """The places where the share [least, most] of a window may end, leaving at least one token."""
    return min(round(window * least), window - 1), min(round(window * most), window - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM(Objective):
    """Predict every token from those before it; nothing is given.

    Attributes:
      loss: "all" tokens, or only the "targets": what a record is to teach, or the part of a free text after `cut`.
      cut: share of a free text that carries no loss under "targets", as `PrefixLM` cuts it.
    """

    loss: Literal["all", "targets"] = "all"
    cut: float = 0.5

    def __post_init__(self):
        if not 0 <= self.cut < 1:
            raise ValueError(f"CausalLM.cut = {self.cut}: expected 0 <= cut < 1")

    def __call__(self, window: TokenWindow, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """No inputs, the whole window as targets."""
        weights = ones(window.ids)
        if self.loss == "targets":
            if not window.record:
                weights[: cut_range(len(weights), self.cut, self.cut)[0]] = 0
            else:
                weights = window.scored.astype(np.float32)
        return Example(window.ids[:0], window.ids, weights)

    def limits(self, window: int) -> Limits:
        """No inputs, `window` targets."""
        return Limits(0, window, window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM(Objective):
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

    def __call__(self, window: TokenWindow, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """The window cut in two."""
        least, most = cut_range(len(window.ids), self.least, self.most)
        cut = int(rng.integers(least, most + 1))
        targets = window.ids[cut:]
        return Example(window.ids[:cut], targets, ones(targets))

    def limits(self, window: int) -> Limits:
        """At most the greatest prefix and the greatest rest."""
        least, most = cut_range(window, self.least, self.most)
        return Limits(most, window - least, window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2Seq(Objective):
    """Supervised: given what a record gives, predict its last target; both end with EOS.

    Attributes:
      most_inputs, most_targets: records with more tokens before or in the target are left out; None: as many as the
        window holds. An encoder-decoder's lines are that long.
    """

    most_inputs: int | None = None
    most_targets: int | None = None

    def __post_init__(self):
        for name in ("most_inputs", "most_targets"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{type(self).__name__}.{name} = {value}: expected at least 1, or None")

    def __call__(self, window: TokenWindow, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """Inputs and targets of the record."""
        if not self.admits(window):
            raise ValueError(
                f"{type(self).__name__} needs a record that gives something and ends with its target, but this window "
                f"of {len(window.ids)} tokens has {window.given} given; set Data.corpus to a supervised task, or "
                "Data.objective = @PrefixLM() for free text"
            )
        targets = ended(window.ids[window.given :], tokenizer)
        return Example(ended(window.ids[: window.given], tokenizer), targets, ones(targets))

    def limits(self, window: int) -> Limits:
        """What is admitted, and an EOS on each side."""
        inputs, targets = self.most_inputs or window, self.most_targets or window
        return Limits(inputs + 1, targets + 1, min(inputs + targets, window) + 2)

    def admits(self, window: TokenWindow) -> bool:
        """Whether there are both sides, within the bounds."""
        given, rest = window.given, len(window.ids) - window.given
        bounded = given <= (self.most_inputs or given) and rest <= (self.most_targets or rest)
        return bounded and given > 0 and rest > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Seq2Seq):
    """Name the class of a record: as text for generators, by a head for encoders (Devlin et al. 2019, section 4.1).

    Attributes:
      labels: the texts that the records' targets are; class i is `labels[i]`.
    """

    labels: tuple[str, ...]

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.labels)) < 2 or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"Classification.labels = {self.labels}: expected at least two, all different")

    def __call__(self, window: TokenWindow, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """The record with its class.

        Raises:
          ValueError: its target is none of the labels.
        """
        example = super().__call__(window, rng, tokenizer)
        said = tokenizer.decode(window.ids[window.given :]).removesuffix("<eos>")
        if said not in self.labels:
            raise ValueError(
                f"Classification.labels = {self.labels}: a record's target is {said!r}; add it to the labels"
            )
        return dataclasses.replace(example, label=self.labels.index(said))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM(Objective):
    """Predict a share of the tokens in place, seeing both sides (Devlin et al. 2019, section 3.1).

    Of the chosen tokens 80 % are replaced by the mask token, 10 % by a random token, 10 % stay as they are.

    Attributes:
      density: share of the tokens that are chosen.
    """

    density: float = 0.15

    def __post_init__(self):
        if not 0 < self.density < 1:
            raise ValueError(f"MaskedLM.density = {self.density}; expected 0 < density < 1")

    def __call__(self, window: TokenWindow, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """The corrupted window, and the window itself as aligned targets, weighted where chosen."""
        count = max(round(len(window.ids) * self.density), 1)
        chosen = rng.choice(len(window.ids), count, replace=False)
        masked, random = np.split(chosen, [round(0.8 * count), round(0.9 * count)])[:2]
        inputs = window.ids.copy()
        inputs[masked] = tokenizer.mask
        letters = tokenizer.text_ids
        inputs[random] = [letters[i] for i in rng.integers(len(letters), size=len(random))]
        weights = np.zeros(len(window.ids), np.float32)
        weights[chosen] = 1
        return Example(inputs, window.ids, weights, aligned=True)

    def limits(self, window: int) -> Limits:
        """As many inputs as targets, in the same places."""
        return Limits(window, window, window)

"""Layouts: where the inputs and targets of an example stand for a family.

A layout turns an example into *features*, named lines of one length each for every stream ("target", and "source"
for encoder-decoders). `pad` or a packer brings them to fixed lengths, `assemble` makes the `Batch`.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from research.attention.masks import Slots
from research.batch import Batch, Tokens
from research.data.objectives import Example, Limits
from research.data.tokenizers import Tokenizer

Features = dict[str, np.ndarray]


@runtime_checkable  # so that a config value can be checked against it
class Layout(Protocol):
    """What every layout here provides."""

    def __call__(self, example: Example, tokenizer: Tokenizer) -> Features:
        """The example's features: lines of tokens, labels and weights."""
        ...

    def lengths(self, limits: Limits) -> dict[str, int]:
        """The greatest length of each feature."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concatenate:
    """For decoders: BOS, inputs, targets in one line; each token predicts the next, the inputs are the prefix."""

    def __call__(self, example: Example, tokenizer: Tokenizer) -> Features:
        """BOS and the inputs have `prefix` set; the last of them carries the first target's loss."""
        if example.aligned:
            raise ValueError(
                "Concatenate places targets after inputs, but the objective's stand in place; "
                "set Data.layout = @layouts.InPlace() and train an Encoder"
            )
        given = len(example.inputs)
        line = np.concatenate([[tokenizer.bos], example.inputs, example.targets]).astype(np.int32)
        return {
            "target": line[:-1],
            "labels": line[1:],
            "prefix": (np.arange(len(line) - 1) <= given) & (given > 0),
            "weights": np.concatenate([np.zeros(given, np.float32), example.weights]),
        }

    def lengths(self, limits: Limits) -> dict[str, int]:
        """One line of inputs and targets."""
        return dict.fromkeys(("target", "labels", "prefix", "weights"), limits.total)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """For encoder-decoders: the encoder reads the inputs, the decoder BOS and the targets before the next."""

    def __call__(self, example: Example, tokenizer: Tokenizer) -> Features:
        """The inputs as source; the targets shifted right by one as target."""
        if example.aligned:
            raise ValueError(
                "Split gives the targets to a decoder, but the objective's stand in place; "
                "set Data.layout = @layouts.InPlace() and train an Encoder"
            )
        if not len(example.inputs):
            raise ValueError(
                "Split needs inputs for the encoder, but the objective gives none; "
                "set Data.objective = @objectives.PrefixLM()"
            )
        shifted = np.concatenate([[tokenizer.bos], example.targets[:-1]]).astype(np.int32)
        return {
            "source": example.inputs.astype(np.int32),
            "target": shifted,
            "labels": example.targets.astype(np.int32),
            "weights": example.weights,
        }

    def lengths(self, limits: Limits) -> dict[str, int]:
        """A line of inputs, a line of targets."""
        return {
            "source": limits.inputs,
            **dict.fromkeys(("target", "labels", "weights"), limits.targets),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class InPlace:
    """For encoders: the labels stand where the inputs stand."""

    def __call__(self, example: Example, tokenizer: Tokenizer) -> Features:
        """The inputs as target tokens, each with its own label."""
        if not example.aligned:
            raise ValueError(
                "InPlace needs an objective whose targets stand at its inputs; "
                "set Data.objective = @objectives.MaskedLM()"
            )
        return {
            "target": example.inputs.astype(np.int32),
            "labels": example.targets.astype(np.int32),
            "weights": example.weights,
        }

    def lengths(self, limits: Limits) -> dict[str, int]:
        """One line."""
        return dict.fromkeys(("target", "labels", "weights"), limits.targets)


def pad(features: Features, lengths: dict[str, int]) -> Features:
    """A row of one example: every feature padded with zeros to its length, with segments and positions.

    Features keep the names that grain's packers give: `X`, `X_segment_ids` (0 is padding), `X_positions`.
    """
    row = {}
    for name, line in features.items():
        missing = lengths[name] - len(line)
        row[name] = np.pad(line, (0, missing))
        row[f"{name}_segment_ids"] = np.pad(np.ones(len(line), np.int32), (0, missing))
        row[f"{name}_positions"] = np.pad(np.arange(len(line), dtype=np.int32), (0, missing))
    return row


def assemble(rows: Features) -> Batch:
    """The batch of stacked rows, arrays [b n]."""

    def tokens(stream: str) -> Tokens:
        segment: Int32[np.ndarray, "b n"] = rows[f"{stream}_segment_ids"]
        prefix = rows.get("prefix") if stream == "target" else None
        slots = Slots(
            position=rows[f"{stream}_positions"],
            segment=segment,
            prefix=np.zeros(segment.shape, bool) if prefix is None else prefix.astype(bool),
            start=0,
        )
        return Tokens(rows[stream], slots)

    return Batch(
        target=tokens("target"),
        labels=rows["labels"],
        weights=rows["weights"],
        source=tokens("source") if "source" in rows else None,
    )

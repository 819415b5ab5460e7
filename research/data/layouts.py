"""Layouts: where the inputs and targets of an example stand for a family.

A layout turns an example into *features*: named lines, each of one stream ("target", and "source" for
encoder-decoders). `packing` brings them to rows of fixed lengths, `assemble` makes the `Batch`.
"""

import dataclasses

import numpy as np

from research.attention.masks import Slots
from research.batch import Batch, Tokens
from research.data.objectives import Example, Limits
from research.data.tokenizers import Tokenizer

Features = dict[str, np.ndarray]


def stream(feature: str) -> str:
    """The stream that a feature belongs to: its lines are as long as that stream."""
    return "source" if feature.startswith("source") else "target"


class Layout:
    """What every layout provides; subclasses are frozen dataclasses."""

    def __call__(self, example: Example, tokenizer: Tokenizer) -> Features:
        """The example's features: `target` (tokens read), `labels`, `weights` and, where there are any, `prefix`,
        `coords`, `source` and `source_coords`. Lines of one stream are equally long.

        Raises:
          ValueError: the layout cannot express the example.
        """
        raise NotImplementedError

    def lengths(self, limits: Limits) -> dict[str, int]:
        """The greatest length of each stream."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concatenate(Layout):
    """For decoders: BOS, inputs, targets in one line; each token predicts the next, the inputs are the prefix."""

    def __call__(self, example: Example, tokenizer: Tokenizer) -> Features:
        """BOS and the inputs have `prefix` set; the last of them carries the first target's loss, unless the example
        says what is read where a target is predicted.
        """
        _not_aligned("Concatenate places targets after inputs", example)
        given = len(example.inputs)
        head = np.concatenate([[tokenizer.bos], example.inputs]).astype(np.int32)
        labels = np.concatenate([example.inputs, example.targets]).astype(np.int32)
        if example.reads is None:
            line, blind = np.concatenate([head, example.targets[:-1]]).astype(np.int32), given
        else:
            # What is read first is given too, so the last token of the prefix has nothing to predict.
            line, blind = np.concatenate([head, example.reads]).astype(np.int32), given + 1
            labels = np.concatenate([labels[:given], [tokenizer.pad], labels[given:]]).astype(np.int32)
        features = {
            "target": line,
            "labels": labels,
            "prefix": (np.arange(len(line)) <= given) & (given > 0),
            "weights": np.concatenate([np.zeros(blind, np.float32), example.weights]),
        }
        if example.coords is not None:
            features["coords"] = np.concatenate(example.coords)
        return features

    def lengths(self, limits: Limits) -> dict[str, int]:
        """One line of inputs and targets."""
        return {"target": limits.total}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split(Layout):
    """For encoder-decoders: the encoder reads the inputs, the decoder BOS and the targets before the next."""

    def __call__(self, example: Example, tokenizer: Tokenizer) -> Features:
        """The inputs as source; the targets shifted right by one, or what the example says is read, as target."""
        _not_aligned("Split gives the targets to a decoder", example)
        if not len(example.inputs):
            raise ValueError(
                "Split needs inputs for the encoder, but the objective gives none; set Data.objective to one that "
                "always does, such as @objectives.PrefixLM() with `least` above 0, or @objectives.Seq2Seq() for records"
            )
        shifted = np.concatenate([[tokenizer.bos], example.targets[:-1]])
        features = {
            "source": example.inputs.astype(np.int32),
            "target": (shifted if example.reads is None else example.reads).astype(np.int32),
            "labels": example.targets.astype(np.int32),
            "weights": example.weights,
        }
        if example.coords is not None:
            features["source_coords"], features["coords"] = example.coords[0][1:], example.coords[1]
        return features

    def lengths(self, limits: Limits) -> dict[str, int]:
        """A line of inputs, a line of targets."""
        return {"source": limits.inputs, "target": limits.targets}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InPlace(Layout):
    """For encoders: the labels stand where the inputs stand; the class of a window stands at a BOS before it."""

    def __call__(self, example: Example, tokenizer: Tokenizer) -> Features:
        """The inputs as target tokens, each with its own label, or BOS (BERT's CLS) and the inputs with one label."""
        if example.label is not None:
            line = np.concatenate([[tokenizer.bos], example.inputs]).astype(np.int32)
            first = np.arange(len(line)) == 0
            labels = np.where(first, example.label, 0).astype(np.int32)
            return {"target": line, "labels": labels, "weights": first.astype(np.float32)}
        if not example.aligned:
            raise ValueError(
                "InPlace needs an objective whose targets stand at its inputs, or a class of the whole; "
                "set Data.objective = @objectives.MaskedLM() or @objectives.Classification()"
            )
        return {
            "target": example.inputs.astype(np.int32),
            "labels": example.targets.astype(np.int32),
            "weights": example.weights,
        }

    def lengths(self, limits: Limits) -> dict[str, int]:
        """One line of inputs; BOS before it finds room where there are targets besides."""
        return {"target": min(limits.total, limits.inputs + 1)}


def _not_aligned(does: str, example: Example) -> None:
    if example.aligned:
        raise ValueError(
            f"{does}, but the objective's stand in place; set Data.layout = @layouts.InPlace() and train an Encoder"
        )


def assemble(rows: Features) -> Batch:
    """The batch of rows as `packing.fill` makes them, arrays [b n]."""

    def tokens(name: str) -> Tokens:
        given = "source_coords" if name == "source" else "coords"
        segment = rows[f"{name}_segment"]
        prefix = rows.get("prefix") if name == "target" else None
        slots = Slots(
            position=rows[f"{name}_position"],
            segment=segment,
            prefix=np.zeros(segment.shape, bool) if prefix is None else prefix,
            coords=rows.get(given),
            start=0,
        )
        return Tokens(rows[name], slots)

    return Batch(
        target=tokens("target"),
        labels=rows["labels"],
        weights=rows["weights"],
        source=tokens("source") if "source" in rows else None,
    )

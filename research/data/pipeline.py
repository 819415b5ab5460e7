"""From a corpus to batches: windows, their order, objectives, layouts and packing.

The unit is the raw *window*, drawn before the objective: step t of every arm that shares corpus, window, batch
and seed holds the same window ids in the same order, whatever its objective, layout or family.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import Int32

from research.batch import Batch
from research.data import layouts
from research.data.documents import SPLITS, Corpus, Document, fingerprint, split
from research.data.layouts import Features, Layout
from research.data.objectives import Objective
from research.data.tokenizers import Bytes, Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What a model is trained and measured on.

    Attributes:
      corpus, tokenizer: the text and its tokens.
      objective: what training windows become.
      evaluation: what held-out windows become (None: the same), so that arms with different training
        objectives can be scored on the same targets.
      layout: where inputs and targets stand; it must fit the model's family.
      window: tokens a window holds; the rest of a document that fills no window is left out.
      batch: rows a batch holds.
      pack: a row holds as many examples as fit (best fit) into `pack` times the length of one.
      validation, test: shares of the documents held out.
      held_out: at most so many windows of a held-out split are scored, spread evenly over it.
    """

    corpus: Corpus
    objective: Objective
    layout: Layout
    tokenizer: Tokenizer = Bytes()
    evaluation: Objective | None = None
    window: int = 128
    batch: int = 32
    pack: int = 1
    validation: float = 0.1
    test: float = 0.1
    held_out: int = 512

    def __post_init__(self):
        for name in ("window", "batch", "pack", "held_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"Data.{name} = {getattr(self, name)}: expected at least 1")

    def load(self, data_dir: str | Path | None = None) -> "Dataset":
        """Read, split and tokenize the corpus.

        Raises:
          ValueError: a split has no window.
        """
        documents = self.corpus.documents(data_dir)
        parts = split(documents, validation=self.validation, test=self.test)
        tokenized = {name: windows(parts[name], self.tokenizer, self.window) for name in SPLITS}
        for name, part in tokenized.items():
            if not len(part):
                raise ValueError(
                    f"split {name!r} of {self.corpus} has no document of {self.window} tokens; "
                    "lower Data.window or use a corpus of longer documents"
                )
        return Dataset(self, tokenized, fingerprint(documents))


def windows(
    documents: tuple[Document, ...], tokenizer: Tokenizer, length: int
) -> Int32[np.ndarray, "n length"]:
    """Every whole run of `length` tokens of each document, in order, without overlap."""
    parts = [np.zeros((0, length), np.int32)]
    for document in documents:
        ids = tokenizer.encode(document.text)
        whole = len(ids) // length
        parts.append(ids[: whole * length].reshape(whole, length))
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A tokenized corpus: `windows[split]` i32[n window], and the fingerprint of its documents."""

    data: Data
    windows: dict[str, np.ndarray]
    fingerprint: str

    def training(self, seed: int) -> Iterator[Batch]:
        """Endless batches, reshuffled each epoch; a grain iterator with `get_state` and `set_state`."""
        data = self.data
        rows = _order(len(self.windows["train"]), seed).map_with_index(
            functools.partial(self._example, seed, data.objective)
        )
        lengths = self._lengths(data.objective)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4 * data.batch)
        if data.pack == 1:
            rows = rows.map(lambda features: layouts.pad(features, lengths)).to_iter_dataset(options)
        else:
            rows = grain.experimental.BestFitPackIterDataset(
                rows.to_iter_dataset(options),
                length_struct={name: data.pack * length for name, length in lengths.items()},
                num_packing_bins=data.batch,
                seed=seed,
            )
        return iter(rows.batch(data.batch, drop_remainder=True).map(layouts.assemble))

    def held_out(self, split: str) -> list[Batch]:
        """The same batches whenever called: every window as one row, the last batch filled with padding."""
        data = self.data
        objective = data.evaluation or data.objective
        part = self.windows[split]
        chosen = np.unique(np.linspace(0, len(part) - 1, min(data.held_out, len(part))).astype(int))
        lengths = self._lengths(objective)
        rows = []
        for window in chosen:
            rng = np.random.default_rng([SPLITS.index(split), int(window)])
            example = objective(part[window], rng, data.tokenizer)
            rows.append(layouts.pad(data.layout(example, data.tokenizer), lengths))
        empty = {name: np.zeros_like(line) for name, line in rows[0].items()}
        rows += [empty] * (-len(rows) % data.batch)
        return [
            layouts.assemble(
                {name: np.stack([row[name] for row in rows[i : i + data.batch]]) for name in empty}
            )
            for i in range(0, len(rows), data.batch)
        ]

    def order(self, seed: int, steps: int) -> str:
        """sha256 (hex) of the window ids that the first `steps` batches of unpacked training draw."""
        ids = _order(len(self.windows["train"]), seed)
        line = np.array([ids[i] for i in range(steps * self.data.batch)], np.int64)
        return hashlib.sha256(line.tobytes()).hexdigest()

    def _example(self, seed: int, objective: Objective, index: int, window: int) -> Features:
        epoch = index // len(self.windows["train"])
        rng = np.random.default_rng([len(SPLITS), seed, epoch, window])
        example = objective(self.windows["train"][window], rng, self.data.tokenizer)
        return self.data.layout(example, self.data.tokenizer)

    def _lengths(self, objective: Objective) -> dict[str, int]:
        return self.data.layout.lengths(objective.limits(self.data.window))


def _order(count: int, seed: int) -> Any:
    """The endless sequence of window ids: a fresh permutation each epoch."""
    return grain.MapDataset.source(range(count)).seed(seed).shuffle().repeat()

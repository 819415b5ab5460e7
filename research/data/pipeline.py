"""From corpora to batches: windows, their order, objectives, layouts and packing.

The unit is the raw *window*, drawn before the objective: step t of every arm that shares corpus, window, batch
and seed holds the same window ids in the same order, whatever its objective, layout or family. What an example is
depends on its number alone, so neither workers nor threads nor hosts nor a resumed run change it.
"""

import copy
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import grain
import numpy as np

from research.batch import Batch
from research.data import curation, duplicates, layouts, packing, weighting
from research.data.augmentation import Noise, Transform
from research.data.documents import SPLITS, Corpus, Item, fingerprint, split, together
from research.data.layouts import Features, Layout
from research.data.mixing import Draw, Mixture, Order, Part, cycle
from research.data.objectives import CausalLM, Example, Limits, Objective
from research.data.streams import Rows, Stream
from research.data.tokenizers import Bytes, Tokenizer, TokenizerSource
from research.data.weighting import HardExamples
from research.data.windows import Format, Made, Plain, Synthetic, Tokenized, spread

Windows = Tokenized | Made

TRAINING, HELD_OUT = (0, 2), (0, 3)  # what random streams of examples begin with: no other stream does


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What a model is trained and measured on.

    Attributes:
      corpus: free text, records, a synthetic task, or a mixture of those.
      objective: what training windows become.
      layout: where inputs and targets stand; it must fit the model's family.
      tokenizer: of all text.
      evaluation: what held-out windows become (None: the same), so that arms with different training
        objectives can be scored on the same targets.
      format: how records are written out.
      window: tokens a window of free text holds, and the most that a record may have. The rest of a document that
        fills no window is left out.
      batch: rows a batch holds.
      pack: a row holds as many examples as fit (best fit) into `pack` times the length of one.
      validation, test: shares of the documents held out.
      near_duplicates: documents whose word 5-grams are this similar (Jaccard) or more stay in one split; None: only
        equal ones do.
      held_out: at most so many windows of a held-out split are scored, spread evenly over it.
      examples: how many different training windows a synthetic task has.
      transforms: what happens to training windows before the objective, in order.
      noise: what happens to the tokens that a model reads in training, but not to its labels; or None.
      hard: resampling of what the model gets wrong, or None.
      weights: a .npy file with a weight for each training window of the corpus, in order (see `weighting`), or None.
    """

    corpus: Corpus | Synthetic | Mixture
    objective: Objective
    layout: Layout
    tokenizer: TokenizerSource = Bytes()
    evaluation: Objective | None = None
    format: Format = Plain()
    window: int = 128
    batch: int = 32
    pack: int = 1
    validation: float = 0.1
    test: float = 0.1
    near_duplicates: float | None = 0.8
    held_out: int = 512
    examples: int = 100_000
    transforms: tuple[Transform, ...] = ()
    noise: Noise | None = None
    hard: HardExamples | None = None
    weights: str | None = None

    def __post_init__(self):
        for name in ("window", "batch", "pack", "held_out", "examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"Data.{name} = {getattr(self, name)}: expected at least 1")
        if min(self.validation, self.test) <= 0 or self.validation + self.test >= 1:
            raise ValueError(
                f"Data.validation = {self.validation}, Data.test = {self.test}; expected both above 0 and their sum "
                "below 1"
            )
        if isinstance(self.layout, Stream):
            unused = (self.evaluation, self.noise, self.hard, self.weights)
            plain = self.pack == 1 and not self.transforms and unused == (None,) * 4
            if self.objective != CausalLM() or not plain or isinstance(self.corpus, Mixture | Synthetic):
                raise ValueError(
                    f"Data.layout = Stream() reads the documents of one corpus, but Data.objective = {self.objective}, "
                    f"Data.pack = {self.pack}, Data.corpus = {self.corpus}; set CausalLM() with a loss on all tokens, "
                    "pack = 1, one corpus, and no evaluation, transforms, noise, hard or weights"
                )
        for part in self.parts:
            for curated in curation.inside(part.corpus):
                curated.check(self.validation, self.test, self.near_duplicates)
        if self.weights is not None and isinstance(self.corpus, Mixture):
            raise ValueError(
                f"Data.weights = {self.weights!r} of a mixture: set Part.weights of its parts instead"
            )
        if self.hard is not None and (self.pack > 1 or len(self.parts) > 1):
            raise ValueError(
                f"Data.hard replaces examples of one corpus, one in a row, but Data.pack = {self.pack} and there are "
                f"{len(self.parts)} parts; set Data.pack = 1 and give one corpus"
            )

    @functools.cached_property  # asked for with every example
    def mixture(self) -> Mixture:
        """The corpus as a mixture of one, or the mixture it is."""
        if isinstance(self.corpus, Mixture):
            return self.corpus
        return Mixture(parts=(Part(corpus=self.corpus, weights=self.weights),))

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the mixture."""
        return self.mixture.parts

    def trained(self, part: Part) -> Objective:
        """What the training windows of a part become."""
        return part.objective or self.objective

    def scored(self, part: Part) -> Objective:
        """What the held-out windows of a part become."""
        return part.evaluation or self.evaluation or part.objective or self.objective

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """All objectives, of training and of evaluation."""
        return tuple(self.trained(part) for part in self.parts) + tuple(
            self.scored(part) for part in self.parts
        )

    def lengths(self, objectives: Iterable[Objective]) -> dict[str, int]:
        """The length of each stream of a row that any of the objectives may fill with one example."""
        most = Limits(0, 0, 0)
        for objective in objectives:
            most |= objective.limits(self.window)
        return self.layout.lengths(most)

    def load(self, data_dir: str | Path | None = None) -> "Dataset":
        """Read, split and tokenize the corpus.

        Raises:
          ValueError: a split has no window, or the layout cannot express an objective.
        """
        documents = [
            () if isinstance(part.corpus, Synthetic) else part.corpus.documents(data_dir)
            for part in self.parts
        ]
        splits = self._split(documents)
        tokenizer = self.tokenizer.ready(
            (item.text for parts in splits for item in parts.get("train", ())), data_dir
        )
        windows = tuple(
            {name: self._windows(part, parts, name, tokenizer) for name in SPLITS}
            for part, parts in zip(self.parts, splits, strict=True)
        )
        weights = tuple(
            None if part.weights is None else weighting.read(part.weights, len(parts["train"]))
            for part, parts in zip(self.parts, windows, strict=True)
        )
        prints = [
            fingerprint(items) if items else _sha256(repr(part.corpus).encode())
            for part, items in zip(self.parts, documents, strict=True)
        ] + [_sha256(each.tobytes()) for each in weights if each is not None]
        whole = prints[0] if len(prints) == 1 else _sha256("".join(prints).encode())
        return Dataset(self, tokenizer, windows, weights, whole, data_dir)

    def _split(self, documents: list[tuple[Item, ...]]) -> list[dict[str, tuple[Item, ...]]]:
        """The documents of each part by split; what is alike in two parts is in one split too."""
        everything = [item for items in documents for item in items]
        alike = () if self.near_duplicates is None else _alike(tuple(everything), self.near_duplicates)
        keys = iter(together(everything, alike))
        grouped = [
            tuple(dataclasses.replace(item, group=next(keys)) for item in items) for items in documents
        ]
        return [
            split(items, validation=self.validation, test=self.test) if items else {} for items in grouped
        ]

    def _windows(
        self, part: Part, items: dict[str, tuple[Item, ...]], name: str, tokenizer: Tokenizer
    ) -> Windows:
        objective = self.trained(part) if name == "train" else self.scored(part)
        if isinstance(part.corpus, Synthetic):
            first, second = self.test, self.test + self.validation
            bounds = {"test": (0.0, first), "validation": (first, second), "train": (second, 1.0)}[name]
            count = self.examples if name == "train" else self.held_out
            return Made(part.corpus, tokenizer, name, count, self.window, bounds, objective.admits)
        windows = Tokenized(items[name], tokenizer, self.window, part.format or self.format, objective.admits)
        if not len(windows):
            raise ValueError(
                f"split {name!r} of {part.corpus} gives no window: its documents have fewer than Data.window = "
                f"{self.window} tokens, its records more, or the objective leaves them out; change Data.window"
            )
        return windows


@functools.lru_cache(maxsize=2)  # data that differs in its objective or layout has the same documents
def _alike(items: tuple[Item, ...], threshold: float) -> list[duplicates.Cluster]:
    return duplicates.near(items, threshold=threshold)


@functools.lru_cache(maxsize=8)  # of all cells and replays of a study
def _loaded(data: Data, data_dir: str | Path | None) -> "Dataset":
    return data.load(data_dir)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Tokenized corpora.

    Attributes:
      data: their description.
      tokenizer: ready to encode.
      windows: of each part, `windows[part][split]`.
      weights: f64[n] of each part's training windows, or None: all alike.
      fingerprint: of all documents.
      data_dir: folder of downloaded archives that they were read from, or None: the user's.
    """

    data: Data
    tokenizer: Tokenizer
    windows: tuple[dict[str, Windows], ...]
    weights: tuple[np.ndarray | None, ...]
    fingerprint: str
    data_dir: str | Path | None = None

    def __post_init__(self):
        # Whatever an objective or the layout refuses is said here, before threads and workers start.
        data, features = self.data, {}
        if isinstance(data.layout, Stream):
            return
        for number, (part, windows) in enumerate(zip(data.parts, self.windows, strict=True)):
            for objective, names in ((data.trained(part), SPLITS[:1]), (data.scored(part), SPLITS[1:])):
                needed = objective.sentinels(data.window)
                if needed > self.tokenizer.sentinels:
                    raise ValueError(
                        f"{type(objective).__name__} needs {needed} sentinels for Data.window = {data.window}, but "
                        f"{type(self.tokenizer).__name__} has {self.tokenizer.sentinels}; raise its `sentinels`"
                    )
                for name in names:
                    # Pieces of free text are alike; each record may be wrong in its own way.
                    for i in range(len(windows[name])) if self._records(number) else (0,):
                        example = objective(windows[name][i], np.random.default_rng(0), self.tokenizer)
                features[type(objective).__name__] = frozenset(data.layout(example, self.tokenizer))
            self.example(0, Draw(number, 0, 0))  # transforms and noise too
        if len(set(features.values())) > 1:
            raise ValueError(
                f"Data.objective, Data.evaluation and Mixture.parts: {' and '.join(features)} cannot stand in one "
                "batch, as only some have coordinates of their own; use one of them"
            )

    def _records(self, part: int) -> bool:
        """Whether a part was read from records."""
        windows = self.windows[part]["train"]
        return isinstance(windows, Tokenized) and windows[0].record

    def training(self, seed: int, *, host: int = 0, hosts: int = 1, workers: int = 0) -> "Batches":
        """Endless batches, reshuffled each epoch; `get_state` and `set_state` as grain iterators have them.

        Args:
          seed: of the order and of all that is random in an example.
          host, hosts: this host's part of every batch; all hosts together see what one would, or, where rows are
            packed, the same examples in other rows.
          workers: processes that make examples; 0: a thread.
        """
        return Batches(self, seed, host=host, hosts=hosts, workers=workers)

    def held_out(self, split: str, part: int | None = None) -> list[Batch]:
        """The same batches whenever called: every window as one row, the last batch filled with padding.

        `part`: of the mixture; None: of all of them.
        """
        if isinstance(self.data.layout, Stream):
            rows = self.stream(split, seed=None)
            steps = min(rows.steps, -(-self.data.held_out // self.data.batch))
            return [layouts.assemble(rows.batch(step)) for step in range(steps)]
        parts = range(len(self.windows)) if part is None else (part,)
        lengths = self.data.lengths(self.data.scored(self.data.parts[i]) for i in parts)
        rows = [[features] for i in parts for features in self._held_out(split, i)]
        return self._batches(rows, lengths)

    def fewer(self, held_out: int) -> "Dataset":
        """The same with at most so many windows held out."""
        return self._changed(held_out=min(held_out, self.data.held_out))

    def laid(self, layout: Layout) -> "Dataset":
        """The same in another layout, for `placed`."""
        return self._changed(layout=layout)

    def _changed(self, **settings: Any) -> "Dataset":
        other = copy.copy(self)  # what was checked when it was made holds
        object.__setattr__(other, "data", dataclasses.replace(self.data, **settings))
        return other

    def of(self, corpus: Corpus | Synthetic, objective: Objective | None = None) -> "Dataset":
        """Another corpus in the same windows, layout, tokenizer and shares of splits, as it is: without transforms,
        noise or weights.

        `objective`: what its windows become, training and held out; None: what the training windows here do.

        Raises:
          ValueError: it has no window for the objective.
        """
        return _loaded(
            dataclasses.replace(
                self.data,
                corpus=corpus,
                tokenizer=self.tokenizer,
                objective=objective or self.data.trained(self.data.parts[0]),
                evaluation=None,
                transforms=(),
                noise=None,
                hard=None,
                weights=None,
            ),
            self.data_dir,
        )

    def order(self, seed: int, steps: int) -> str:
        """sha256 (hex) of the window ids that the first `steps` batches of unpacked training draw (of a stream, of the
        documents that they read).
        """
        if isinstance(self.data.layout, Stream):
            return _sha256(self.stream("train", seed).order(steps).tobytes())
        return _sha256(self.draws(seed).first(steps * self.data.batch).tobytes())

    def example(self, seed: int, draw: Draw) -> Features:
        """The features of one training example; all that is random in it depends on the seed and the draw."""
        data, part = self.data, self.data.parts[draw.part]
        rng = np.random.default_rng([*TRAINING, seed, draw.part, draw.epoch, draw.window])
        window = self.windows[draw.part]["train"][draw.window]
        for transform in data.transforms if part.transforms is None else part.transforms:
            window = transform(window, rng, self.tokenizer)
        example = data.trained(part)(window, rng, self.tokenizer)
        known = self.weights[draw.part]
        weight = part.loss_weight if known is None else part.loss_weight * known[draw.window]
        weights = example.weights * np.float32(weight)
        features = data.layout(dataclasses.replace(example, weights=weights), self.tokenizer)
        if data.noise is not None:
            for name in ("target", "source"):
                if name in features:
                    features[name] = data.noise(features[name], rng, self.tokenizer, self.unigram)
        return features

    def rows(self, seed: int, ids: Sequence[int]) -> list[Batch]:
        """Training windows of the first part, one a row, the last batch filled with padding; to score them."""
        data = self.data
        lengths = data.lengths([data.trained(data.parts[0])])
        rows = [[self.example(seed, Draw(0, 0, int(window)))] for window in ids]
        return self._batches(rows, lengths)

    def placed(self, examples: Sequence[Example]) -> list[Batch]:
        """Examples that were made elsewhere, one a row, the last batch filled with padding; to score them."""
        most = Limits(0, 0, 0)
        for one in examples:
            given, asked = len(one.inputs), len(one.targets)
            most |= Limits(given, asked, given + asked)
        rows = [[self.data.layout(one, self.tokenizer)] for one in examples]
        return self._batches(rows, self.data.layout.lengths(most))

    def draws(self, seed: int) -> Order:
        """Which window each training example is."""
        sizes = [len(windows["train"]) for windows in self.windows]
        shares = self.data.mixture.shares(sizes) if len(sizes) > 1 else (Fraction(1),)
        return Order(sizes, cycle(shares), seed)

    def _batches(self, rows: list[list[Features]], lengths: dict[str, int]) -> list[Batch]:
        size = self.data.batch
        rows = rows + [[]] * (-len(rows) % size)
        return [
            layouts.assemble(packing.fill(rows[i : i + size], lengths)) for i in range(0, len(rows), size)
        ]

    def _held_out(self, split: str, part: int) -> Iterator[Features]:
        windows, objective = self.windows[part][split], self.data.scored(self.data.parts[part])
        for i in spread(len(windows), self.data.held_out):
            rng = np.random.default_rng([*HELD_OUT, SPLITS.index(split), i])
            yield self.data.layout(objective(windows[i], rng, self.tokenizer), self.tokenizer)

    @functools.cached_property
    def unigram(self) -> np.ndarray:
        """f64[v]: how often each token stands in the training text."""
        counts = np.zeros(self.tokenizer.vocab_size)
        for windows in self.windows:
            ids = windows["train"].ids if isinstance(windows["train"], Tokenized) else self.tokenizer.text_ids
            counts += np.bincount(ids, minlength=len(counts))
        return counts / counts.sum()

    def stream(self, split: str, seed: int | None) -> Rows:
        """The rows of `Stream` over a split."""
        text = self.windows[0][split]
        assert isinstance(text, Tokenized)  # Data refuses a stream of anything else
        return Rows(text, self.tokenizer, self.data.batch, self.data.window, seed)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """The examples of block i, one a row: the i-th part of `rows` examples that a host has of the endless sequence."""

    dataset: Dataset
    order: Order
    seed: int
    rows: int
    host: int
    hard: tuple[int, ...]

    def __call__(self, block: int) -> Features:
        data = self.dataset.data
        rows = self.host * self.rows + np.arange(self.rows)  # of the batch of all hosts together
        draws = [self.order[block * data.batch + int(row)] for row in rows]
        if data.hard is not None:
            draws = data.hard.replaced(draws, self.hard, step=block, rows=rows, batch=data.batch)
        return packing.fill([[self.dataset.example(self.seed, draw)] for draw in draws], self.lengths)

    @functools.cached_property
    def lengths(self) -> dict[str, int]:
        """The lengths of a row of one example."""
        data = self.dataset.data
        return data.lengths(data.trained(part) for part in data.parts)


class Batches(Iterator[Batch]):
    """Endless batches of one seed. Their place is a few numbers, the same for any number of workers.

    Raises:
      ValueError: the batch does not divide evenly among the hosts.
    """

    def __init__(self, dataset: Dataset, seed: int, *, host: int, hosts: int, workers: int):
        data = dataset.data
        if data.batch % hosts or not 0 <= host < hosts:
            raise ValueError(
                f"Data.batch = {data.batch} rows for host {host} of {hosts}: expected a multiple of the hosts, which "
                "are counted from 0"
            )
        self._data, self._workers = data, workers
        self._ahead: Any = None
        self._stream = dataset.stream("train", seed) if isinstance(data.layout, Stream) else None
        self._blocks = _Blocks(dataset, dataset.draws(seed), seed, data.batch // hosts, host, ())
        self.set_state({"step": 0, "next": 0, "waiting": [], "hard": []})

    def get_state(self) -> dict[str, Any]:
        """Where it stands, as JSON."""
        waiting = [number for number, _ in self._waiting]
        return {"step": self._step, "next": self._next, "waiting": waiting, "hard": list(self._blocks.hard)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._step, self._next = state["step"], state["next"]
        if self._data.pack == 1:  # then the step says it for any number of hosts
            self._next = self._step * self._blocks.rows
        self._blocks = dataclasses.replace(self._blocks, hard=tuple(state["hard"]))
        self._waiting = [(number, self._made_again(number)) for number in state["waiting"]]
        self._start()

    def mined(self, hard: Sequence[int]) -> None:
        """From the next batch on, `Data.hard` takes its examples from these windows, hardest first."""
        self._blocks = dataclasses.replace(self._blocks, hard=tuple(int(window) for window in hard))
        self._start()

    def __next__(self) -> Batch:
        if self._stream is not None:
            first = self._blocks.host * self._blocks.rows
            own = slice(first, first + self._blocks.rows)
            rows = {name: lines[own] for name, lines in self._stream.batch(self._step).items()}
        elif self._data.pack == 1:
            rows = next(self._ahead)
            self._next += self._blocks.rows
        else:
            rows = self._packed()
        self._step += 1
        return layouts.assemble(rows)

    def _packed(self) -> Features:
        lengths = {name: self._data.pack * length for name, length in self._blocks.lengths.items()}
        rows, self._waiting = packing.best_fit(
            self._waiting,
            self._examples,
            rows=self._blocks.rows,
            lengths=lengths,
            lookahead=4 * self._blocks.rows,
        )
        return packing.fill(rows, lengths)

    def close(self) -> None:
        """Stop the thread or the workers that make examples ahead; `set_state` starts them again."""
        if self._ahead is not None:
            self._ahead.close()

    def _start(self) -> None:
        """Make blocks from here on, ahead of time, in a thread or in workers."""
        self.close()
        first, skipped = divmod(self._next, self._blocks.rows)
        blocks = grain.MapDataset.range(first, 2**62).map(self._blocks)
        ahead = blocks.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
        if self._workers:
            ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        self._ahead = iter(ahead)
        self._examples = itertools.islice(self._one_by_one(first * self._blocks.rows), skipped, None)

    def _one_by_one(self, number: int) -> Iterator[packing.Numbered]:
        """The examples of the blocks, numbered on from `number`."""
        for block in self._ahead:
            for row in range(self._blocks.rows):
                self._next = number + 1
                yield number, packing.unfilled(block, row)
                number += 1

    def _made_again(self, number: int) -> Features:
        block, row = divmod(number, self._blocks.rows)
        return packing.unfilled(self._blocks(block), row)

"""An experiment as one frozen value, and what it takes to run it.

gin files bind it under the name `train`:

    experiment.train.steps = 1000        # in a file, after `from experiments import experiment`
    --gin_param="train.steps=1000"       # on the command line
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from experiments import configs
from research.analysis import budget
from research.batch import Batch
from research.data.layouts import InPlace
from research.data.mixing import Mixture
from research.data.objectives import Classification
from research.data.pipeline import Data, Dataset
from research.data.pretrained import Pretrained
from research.data.streams import Stream
from research.data.subwords import Subwords, Trained
from research.data.tokenizers import Tokenizer
from research.models.config import StackConfig
from research.models.families import EncoderConfig, FamilyConfig
from research.settings import LATER
from research.training import hyperparameters, loop
from research.training.checkpoints import Keep
from research.training.optimizers import AdamW, Optimizer
from research.training.remedies import Inherited, Remedy
from research.training.sharding import Parallelism
from research.training.step import Recipe, Trainer
from research.training.stopping import EarlyStopping
from research.training.trackers import Tracker


@runtime_checkable  # so that a config value can be checked against it
class Start(Protocol):
    """Parameters that a run starts from: `experiments.pretrained.Parameters` or `experiments.stages.Stage`.

    Attributes:
      place: where they are.
    """

    place: str

    def fingerprint(self, data_dir: str | None) -> str:
        """sha256 (hex) of the parameters wherever they are, or of all that decides them."""
        ...

    def design(self, data_dir: str | None) -> str:
        """The same without the seed of whatever they were trained with."""
        ...

    def record(self, data_dir: str | None) -> dict[str, Any]:
        """What the record of a run says of them."""
        ...

    def check(self, model: FamilyConfig, tokenizer: Tokenizer, data_dir: str | None) -> str | None:
        """Which of the model's parameters are not there and are drawn from the seed, in a line; None: all are there. A
        ValueError where they are of another model or tokenizer.
        """
        ...

    def params(self, model: FamilyConfig, tokenizer: Tokenizer, data_dir: str | None) -> Any:
        """The parameters, nested dicts of float32 arrays, without those that are drawn."""
        ...

    def kept(self, data_dir: str | None) -> Inherited:
        """What the remedies of the run that they come from kept; see `research.training.remedies`."""
        ...

    def kept_fingerprint(self, data_dir: str | None) -> list[str]:
        """sha256 (hex) of that, where it does not follow from `fingerprint`."""
        ...

    def rehearsed(
        self,
        model: FamilyConfig,
        tokenizer: Tokenizer,
        data_dir: str | None,
        train: "Callable[[Experiment], tuple[Any, Inherited]]",
    ) -> tuple[Any, Inherited | None]:
        """The parameters and what was kept for a replay, on machines too where no run is: `train` takes another
        experiment through a replay's steps and returns both. None: `kept` has it.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that decides the numbers of a run, and what does not: `parallelism`, `plan`, `keep` and `trackers`.

    Attributes:
      model: the family and its stacks.
      data: corpus, objective, layout, windows and batches.
      optimizer: with its learning rate and schedule.
      recipe: accumulation, averaging and auxiliary losses of a step.
      steps: optimiser steps.
      early_stopping: stop before them, or None.
      init_from: the parameters that it starts from; None: they are drawn from the seed.
      seed: of the initial parameters, the data order and dropout.
      matmul_precision: of float32 products; TPUs and TF32 would round them otherwise.
      deterministic: on a GPU, kernels that sum in the same order every time (slower).
      parallelism: how the run is spread over the devices.
      plan: when to log, evaluate and save.
      keep: which checkpoints stay.
      trackers: who gets the lines of metrics.jsonl beside TensorBoard.
    """

    model: FamilyConfig
    data: Data
    optimizer: Optimizer = AdamW()
    recipe: Recipe = Recipe()
    steps: int = 1000
    early_stopping: EarlyStopping | None = None
    init_from: Start | None = None
    seed: int = 0
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    deterministic: bool = False
    parallelism: Parallelism = Parallelism()
    plan: loop.Plan = loop.Plan()
    keep: Keep = Keep()
    trackers: tuple[Tracker, ...] = ()

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"train.steps = {self.steps}: expected at least 1")
        if self.data.batch % self.recipe.accumulate:
            raise ValueError(
                f"Recipe.accumulate = {self.recipe.accumulate}: expected a divisor of Data.batch = {self.data.batch}"
            )
        _expressible(self.model, self.data)
        limits = [stack.positions.limit for stack in stacks(self.model) if stack.positions.limit is not None]
        longest = max(self.data.lengths(self.data.objectives).values())
        if limits and isinstance(self.data.layout, Stream):
            raise ValueError(
                f"Learned.length = {min(limits)}: positions of Data.layout = Stream() run on without an end; set "
                "StackConfig.positions to a scheme that has none, such as @Rotary()"
            )
        if limits and longest > min(limits):
            raise ValueError(
                f"Learned.length = {min(limits)} positions, but Data.window = {self.data.window} makes lines of "
                f"{longest} tokens; raise Learned.length or lower Data.window"
            )

    def key(self) -> str:
        """sha256 (hex) of everything that decides the numbers but the documents, a tokenizer's files and the parameters
        that it starts from, whose fingerprints count wherever they lie; see `key`.
        """
        tree = describe(dataclasses.replace(self, parallelism=Parallelism(), plan=loop.Plan(), keep=Keep()))
        del tree["trackers"], tree["init_from"]
        return _sha256(tree)

    @property
    def numbers(self) -> dict[str, float]:
        """The hyperparameters that are data, by name; see `research.training.hyperparameters`."""
        return hyperparameters.numbers(self.optimizer) | hyperparameters.numbers(self.recipe)


train = Experiment  # the name that gin files and --gin_param bind


def load(files: Iterable[str], bindings: Sequence[str] = ()) -> tuple[Experiment, str]:
    """The experiment that gin files and bindings describe, and its operative config; see `configs.load`."""
    files = list(files)
    if not files:
        raise configs.ConfigError("no --gin_file; for example --gin_file=configs/architecture/prefix_lm.gin")
    return configs.load(train, files, bindings), configs.operative()


def key(planned: Experiment, data_dir: str | None) -> str:
    """sha256 (hex) of all that decides the numbers of a run: the experiment with its seed, the data, and what the
    parameters start from.
    """
    start = planned.init_from
    return _key(planned, data_dir, None if start is None else start.fingerprint(data_dir))


def design(planned: Experiment, data_dir: str | None) -> str:
    """The same without the seed: what all runs of an arm share."""
    start = planned.init_from
    seedless = dataclasses.replace(planned, seed=0)
    return _key(seedless, data_dir, None if start is None else start.design(data_dir))


def _key(planned: Experiment, data_dir: str | None, start: str | None) -> str:
    """`start`: of what the parameters start from, if they are not drawn."""
    parts = [planned.key(), fingerprint(planned.data, data_dir)]
    if isinstance(planned.data.tokenizer, Pretrained):
        read = dataset(planned.data, data_dir).tokenizer
        assert isinstance(read, Subwords)
        parts.append(_sha256([read.model, read.layout]))
    for reader in (*planned.recipe.remedies, planned.early_stopping):
        if reader is not None:
            parts += _read_by(reader, planned.data, data_dir)
    if start is not None:
        parts.append(start)
    if planned.init_from is not None and inherits(planned):
        parts += planned.init_from.kept_fingerprint(data_dir)
    return _sha256(parts)


@functools.lru_cache(maxsize=4096)  # a study may have more data sets than are kept in memory
def fingerprint(data: Data, data_dir: str | None) -> str:
    """The fingerprint of the documents that a data set is made of."""
    return dataset(data, data_dir).fingerprint


@functools.lru_cache(maxsize=4096)
def _read_by(reader: Remedy | EarlyStopping, data: Data, data_dir: str | None) -> tuple[str, ...]:
    """Fingerprints of the documents that are read beside the run's own."""
    return tuple(reader.fingerprints(dataset(data, data_dir)))


def hash_of(value: Any, *, texts: bool = False) -> str:
    """sha256 (hex) of a config tree; see `describe`."""
    return _sha256(describe(value, texts=texts))


def _sha256(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def asked(evaluation: Any) -> list[Any]:
    """The other arms, `stages.Stage`, that an evaluation, a frozen dataclass, asks: its fields, or in tuples there."""

    def within(value: Any) -> Iterator[Any]:
        if isinstance(value, Start):
            yield value
        elif isinstance(value, tuple):
            for one in value:
                yield from within(one)

    return [
        stage for field in dataclasses.fields(evaluation) for stage in within(getattr(evaluation, field.name))
    ]


def asking(evaluation: Any, change: Callable[[Any], Any]) -> Any:
    """The evaluation with other stages, or what stands for them."""

    def changed(value: Any) -> Any:
        if isinstance(value, Start):
            return change(value)
        return tuple(map(changed, value)) if isinstance(value, tuple) else value

    if not asked(evaluation):
        return evaluation
    fields = {field.name: getattr(evaluation, field.name) for field in dataclasses.fields(evaluation)}
    return dataclasses.replace(evaluation, **{name: changed(value) for name, value in fields.items()})


def describe(value: Any, *, texts: bool = False) -> Any:
    """A config tree as JSON: frozen values by the name of their class and all their fields, defaults included, but of
    corpora only how they are mixed, and of a tokenizer's files not where they are; see `settings.LATER` too.

    `texts`: of an evaluation, whose texts no fingerprint stands for, corpora that are not the default count.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if field.metadata != LATER or getattr(value, field.name) != field.default
        }
        usual = {field.name: field.default for field in dataclasses.fields(value)}.get("corpus")
        own = texts and fields.get("corpus") != usual
        if not isinstance(fields.get("corpus"), Mixture) and not own:
            fields.pop("corpus", None)
        if isinstance(value, Pretrained):
            fields.pop("path", None)
        if "place" in fields and isinstance(value, Start):  # that an evaluation asks: its key says what it is
            fields = {name: part for name, part in fields.items() if name not in ("place", "base")}
        parts = {name: describe(part, texts=texts) for name, part in fields.items()}
        return {"is": type(value).__qualname__, **parts}
    if isinstance(value, tuple):
        return [describe(item, texts=texts) for item in value]
    if callable(value):
        return value.__qualname__
    return (
        int(value) if isinstance(value, float) and value.is_integer() else value
    )  # 0 and 0.0 are one number


@functools.lru_cache(maxsize=16)
def dataset(data: Data, data_dir: str | None) -> Dataset:
    """The tokenized corpus of an experiment, read once."""
    return data.load(data_dir)


def tokenizer(data: Data, data_dir: str | None) -> Tokenizer:
    """The tokenizer of a data set; the corpus is read only where it has to be trained."""
    if isinstance(data.tokenizer, Trained):
        return dataset(data, data_dir).tokenizer
    return data.tokenizer.ready((), data_dir)


def started(planned: Experiment, data_dir: str | None) -> Any:
    """The parameters that a run starts from; what they lack, all of them where this is None, is drawn.

    Raises:
      ValueError: they are of another model, or cannot be read.
    """
    if planned.init_from is None:
        return None
    return planned.init_from.params(planned.model, dataset(planned.data, data_dir).tokenizer, data_dir)


def inherited(planned: Experiment, data_dir: str | None) -> Inherited | None:
    """What remedies go on from; None where none does, or the parameters are drawn.

    Raises:
      ValueError: it cannot be read.
    """
    return planned.init_from.kept(data_dir) if planned.init_from is not None and inherits(planned) else None


def inherits(planned: Experiment) -> bool:
    """Whether a remedy of it goes on from what a run before has kept."""
    return any(remedy.inherits for remedy in planned.recipe.remedies)


def example(planned: Experiment, data_dir: str | None) -> tuple[Batch, int]:
    """The first training batch of an experiment, and the size of its vocabulary."""
    text = dataset(planned.data, data_dir)
    with contextlib.closing(text.training(planned.seed)) as batches:
        return next(batches), text.tokenizer.vocab_size


def trainer(planned: Experiment, vocab: int) -> Trainer:
    """The compiled functions of an experiment, which all share that differ in seed, data and `numbers` only. Hand the
    experiment's numbers to `initial`: the trainer knows none.

    Raises:
      ValueError: a memory that would read rows of something else.
    """
    memory = next((stack.memory for stack in stacks(planned.model) if stack.memory is not None), None)
    if memory is not None and not isinstance(planned.data.layout, Stream):
        raise ValueError(
            f"StackConfig.memory = {memory}, but rows of {type(planned.data.layout).__name__}() do not go on from "
            "batch to batch; set Data.layout = @streams.Stream(), or the memory to None"
        )
    optimizer, recipe = (hyperparameters.form(part) for part in (planned.optimizer, planned.recipe))
    return _trainer(planned.model, vocab, optimizer, recipe, planned.steps)


@functools.lru_cache(maxsize=16)
def _trainer(model: FamilyConfig, vocab: int, optimizer: Optimizer, recipe: Recipe, steps: int) -> Trainer:
    return Trainer(model, vocab=vocab, optimizer=optimizer, steps=steps, recipe=recipe)


@functools.lru_cache(maxsize=1024)
def cost(model: FamilyConfig, data: Data, data_dir: str | None) -> budget.Budget:
    """What one training batch costs, counted on the first two."""
    with contextlib.closing(dataset(data, data_dir).training(seed=0)) as stream:
        batches = list(itertools.islice(stream, 2))
    return budget.count(model, vocab=dataset(data, data_dir).tokenizer.vocab_size, batches=batches)


def classes(model: FamilyConfig) -> int | None:
    """How many classes it tells apart, or None if its labels are tokens."""
    return model.classes if isinstance(model, EncoderConfig) else None


def _expressible(model: FamilyConfig, data: Data) -> None:
    """Refuse what the family cannot express, although the layout could place it."""
    if isinstance(data.layout, InPlace):
        labels = {len(one.labels) if isinstance(one, Classification) else None for one in data.objectives}
        if labels != {classes(model)}:
            raise ValueError(
                f"EncoderConfig.classes = {classes(model)}, but the objectives have {labels} labels in place; bind "
                "EncoderConfig.classes to the number of Classification.labels, None without one, and train an Encoder"
            )
    elif not model.mask.extendable:
        raise ValueError(
            f"{type(model).__name__}.mask = {model.mask} lets a token see the targets that it predicts; set "
            "Data.layout = @layouts.InPlace() or a mask that hides them, such as @masks.Prefix()"
        )


def stacks(model: FamilyConfig) -> list[StackConfig]:
    """The stacks of a model."""
    values = [getattr(model, field.name) for field in dataclasses.fields(model)]
    return [value for value in values if isinstance(value, StackConfig)]

"""Parameters that are there already: those of a run, of a Hugging Face folder, a .gguf file or the catalog.

A run starts from them where gin binds it, in a file after `from experiments import pretrained`:

    experiment.train.init_from = @pretrained.Parameters()
    pretrained.Parameters.place = 'smollm2'
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from experiments import bindings, configs, experiment, folders
from experiments.configs import ConfigError
from experiments.experiment import Experiment
from research.data.corpora import Factbook
from research.data.layouts import Concatenate, InPlace, Split
from research.data.objectives import CausalLM, Classification, MaskedLM, PrefixLM
from research.data.pipeline import Data
from research.data.pretrained import FromFile
from research.data.subwords import Subwords
from research.data.tokenizers import Tokenizer, TokenizerSource, Vocabulary
from research.interop import pretrained
from research.interop.architecture import differences, normal
from research.interop.hub import Checkpoint
from research.interop.weights import WeightsError
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig, FamilyConfig, Model
from research.models.paths import named, path_of
from research.training.checkpoints import Checkpoints
from research.training.optimizers import AdamW

TUNING = 5e-5  # learning rate where none is bound, of those of Devlin et al. 2019, appendix A.3


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder: the parameters of its newest checkpoint, averaged ones where there are."""

    place: str
    planned: Experiment
    data_dir: str | None

    @property
    def model(self) -> FamilyConfig:
        """The run's."""
        return self.planned.model

    @property
    def rows(self) -> int:
        """Rows of the token table."""
        return self.model.embedding.table_rows(self.tokenizer().vocab_size)

    def tokenizer(self) -> Tokenizer:
        """The run's."""
        return experiment.tokenizer(self.planned.data, self.data_dir)

    @property
    def begins(self) -> bool:
        """Whether its lines begin with BOS: all that are trained on do."""
        record = Path(self.place) / "run.json"
        converted = record.exists() and json.loads(record.read_text()).get("status") == folders.CONVERTED
        return not converted or self.tokenizer().begins

    def config(self) -> str:
        """The run's."""
        return (Path(self.place) / "config.gin").read_text()

    def read(self) -> Any:
        """The parameters.

        Raises:
          CheckpointError: there is no checkpoint that is whole.
        """
        functions = experiment.trainer(self.planned, self.tokenizer().vocab_size)
        state = jax.eval_shape(functions.initial, jax.random.key(0), self.planned.numbers)
        field = "params" if state.average is None else "average"
        with Checkpoints(Path(self.place) / "checkpoints", self.planned.keep) as checkpoints:
            return checkpoints.restore_params(state.params, field=field)[0]


@dataclasses.dataclass(frozen=True)
class Published:
    """A published model."""

    place: str
    checkpoint: Checkpoint
    data_dir: str | None

    @property
    def model(self) -> FamilyConfig:
        """As its own configuration says."""
        return self.checkpoint.config

    @property
    def rows(self) -> int:
        """Rows of the token table."""
        return self.checkpoint.vocab

    def tokenizer(self) -> Tokenizer:
        """What came with the weights.

        Raises:
          ConfigError: nothing came, or a decoder's BOS or EOS is none of its tokens.
          ValueError: it cannot be read.
        """
        if self.checkpoint.tokenizer is None:
            raise ConfigError(
                f"{self.place}: no tokenizer there; put the model's tokenizer.json beside its weights"
            )
        found = self.checkpoint.tokenizer.ready((), self.data_dir)
        if isinstance(self.model, DecoderConfig) and isinstance(found, Subwords):
            for role in ("bos", "eos") if found.begins else ("eos",):
                if getattr(found, role) in found.added:
                    raise ConfigError(
                        f"{self.place}: its files do not say which of its tokens is {role}; name it as {role}_token in "
                        "tokenizer_config.json beside tokenizer.json"
                    )
        return found

    @property
    def source(self) -> TokenizerSource:
        """The description of what came, or should have come, with the weights."""
        return self.checkpoint.tokenizer or FromFile(path=self.place)

    @property
    def begins(self) -> bool:
        """Whether its lines begin with BOS, as its tokenizer says."""
        return self.tokenizer().begins

    def config(self) -> str:
        """An experiment with this model and data that suit its family."""
        return bindings.text("experiments.experiment.train", suited(self))

    def read(self) -> Any:
        """The parameters.

        Raises:
          WeightsError: names are missing, unexpected or of other shapes; a line for each.
        """
        return nnx.to_pure_dict(nnx.state(self.checkpoint.model()))


Origin = Run | Published  # where parameters are; nothing but their description has been read


def opened(place: str, data_dir: str | None) -> Origin:
    """What is at a place: a run folder, a Hugging Face folder, a .gguf file or a name of the catalog.

    Raises:
      ValueError, OSError: there is nothing that can be read; see `research.interop.pretrained.opened`.
    """
    if (Path(place).expanduser() / "config.gin").exists():
        return run(place, data_dir)
    return Published(place, pretrained.opened(place, data_dir), data_dir)


def run(folder: str, data_dir: str | None, flag: str = "--run_dir") -> Run:
    """A run folder.

    Raises:
      ConfigError: it is none.
    """
    path = Path(folder).expanduser() / "config.gin"
    if not path.exists():
        raise ConfigError(f"{flag}={folder}: no config.gin there; expected the folder of a training run")
    return Run(str(path.parent), experiment.load([str(path)])[0], data_dir)


def chosen(run_dir: str | None, init_from: str | None, data_dir: str | None) -> Origin:
    """What the flags --run_dir and --init_from name.

    Raises:
      ConfigError: both or none are given, or there is no run.
    """
    if (run_dir is None) == (init_from is None):
        raise ConfigError(
            f"--run_dir={run_dir} and --init_from={init_from}: expected one of them, a run folder or pretrained "
            "parameters"
        )
    return run(run_dir, data_dir) if run_dir is not None else opened(str(init_from), data_dir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters that a run starts from; its optimizer starts anew.

    The model has to be the one that they are of. Dropout rates may differ, and what is only about how it is computed
    (dtype, remat, backend). Where the tokenizer has more ids than their token table has rows, rows are added, each the
    mean of the others.

    Attributes:
      place: a run folder, a Hugging Face folder, a .gguf file or a name of the catalog.
      differing: settings that may differ besides, such as 'DecoderConfig.mask'; shapes may not.
    """

    place: str
    differing: tuple[str, ...] = ()

    def fingerprint(self, data_dir: str | None) -> str:
        """sha256 (hex) of the parameters, whatever place they were read from."""
        return _fingerprint(self.place, data_dir)

    def check(self, model: FamilyConfig, tokenizer: Tokenizer, data_dir: str | None) -> None:
        """That the parameters are of such a model and of such a tokenizer.

        Raises:
          ConfigError: they are not; the first setting that differs.
        """
        _agree(opened(self.place, data_dir), model, tokenizer, self.differing)

    def params(self, model: FamilyConfig, tokenizer: Tokenizer, data_dir: str | None) -> Any:
        """The parameters of a model that reads the tokenizer's ids: nested dicts of float32 arrays.

        Raises:
          ConfigError: as `check`, or they have changed since `fingerprint` read them.
          WeightsError: a name is missing, unexpected or of another shape; a line for each.
          CheckpointError: a run has no checkpoint that is whole.
        """
        origin = opened(self.place, data_dir)
        _agree(origin, model, tokenizer, self.differing)
        expected = self.fingerprint(data_dir)  # first, so that what it reads is let go
        read = origin.read()
        if hash_of(read) != expected:
            raise ConfigError(
                f"{self.place}: the parameters have changed since this command began; run it again"
            )
        return _fitted(read, origin, model, tokenizer.vocab_size)


def tuning(
    place: str, files: Iterable[str], changes: Sequence[str], data_dir: str | None
) -> tuple[Experiment, str]:
    """The experiment at a place, changed by gin files and bindings, that starts from the parameters there; and its
    operative config.

    Raises:
      ConfigError: see `configs.load` and `fits`.
    """
    start = ("train.init_from=@Parameters()", f"Parameters.place={place!r}")
    origin = opened(place, data_dir)
    planned = configs.load(experiment.train, files, [*changes, *start], base=(origin.config(),))
    fits(origin, planned.data)
    return planned, configs.operative()


class Loaded(NamedTuple):
    """A model that was read: its configuration with the rows that its table has, and its parameters."""

    config: FamilyConfig
    params: Any

    @property
    def model(self) -> Model:
        """The model itself."""
        rows = self.config.embedding.rows
        assert rows is not None  # `loaded` says how many
        graph = nnx.graphdef(nnx.eval_shape(lambda: _built(self.config, rows)))
        return nnx.merge(graph, self.params)


def loaded(origin: Origin, tokenizer: Tokenizer | None) -> Loaded:
    """The model at a place, with a row for each id of its tokenizer, where there is one."""
    rows = origin.rows if tokenizer is None else max(origin.rows, tokenizer.vocab_size)
    config = _with_rows(origin.model, rows)
    return Loaded(config, _fitted(origin.read(), origin, config, rows))


def readable(origin: Origin) -> Tokenizer | None:
    """The tokenizer at a place; None where there is none that can be read."""
    try:
        return origin.tokenizer()
    except ValueError:
        return None


def suited(origin: Published) -> Experiment:
    """An experiment with the model: default data of its family, in windows that its positions reach over.

    Its tokenizer may be one that cannot be read: another can be bound instead.
    """
    tokenizer, model = readable(origin), origin.model
    ids = 0 if tokenizer is None else tokenizer.vocab_size
    if isinstance(model, EncoderConfig):
        objective, layout = MaskedLM(), InPlace()
    elif isinstance(model, EncoderDecoderConfig):
        objective, layout = PrefixLM(), Split()
    else:
        objective, layout = CausalLM(), Concatenate()
    limits = [stack.positions.limit for stack in experiment.stacks(model)]
    longest = max(layout.lengths(objective.limits(Data.window)).values())
    over = max(longest - min((limit for limit in limits if limit is not None), default=longest), 0)
    return Experiment(
        model=_with_rows(model, max(origin.rows, ids)),
        data=Data(
            corpus=Factbook(),
            objective=objective,
            layout=layout,
            tokenizer=origin.source,
            window=Data.window - over,
        ),
        optimizer=AdamW(learning_rate=TUNING),
    )


def fits(origin: Origin, data: Data) -> None:
    """That a published model was made for what the data ask of it.

    Raises:
      ConfigError: targets are tokens and it came without a head for them, or the texts are not of its language.
    """
    if isinstance(origin, Run):
        return
    architecture = origin.checkpoint.architecture
    if not architecture.scores_tokens(origin.model) and not isinstance(data.objective, Classification):
        raise ConfigError(
            f"{origin.place}: published without a head of tokens, so they have no likelihood; expected a model "
            "with one"
        )
    if architecture.language != "text" and data.corpus == Factbook():
        raise ConfigError(
            f"{origin.place}: Data.corpus = Factbook(), but its tokens are parts of {architecture.language}; bind a "
            f"corpus of {architecture.language}, such as Data.corpus = @TextFiles()"
        )


def _agree(
    origin: Origin, model: FamilyConfig, tokenizer: Tokenizer, differing: tuple[str, ...] = ()
) -> None:
    same = isinstance(origin, Published) and getattr(tokenizer, "source", None) == origin.source
    theirs = origin.tokenizer() if same else readable(origin)  # where there is none, another was bound
    if theirs is not None and not _same_pieces(tokenizer, theirs):
        raise ConfigError(
            f"Data.tokenizer = {tokenizer}: the parameters in {origin.place} are of ids that stand for other text; "
            "bind their tokenizer"
        )
    for role in ("bos", "eos"):
        i, own = getattr(theirs, role, origin.rows), getattr(tokenizer, role)
        if i < origin.rows and own != i:
            raise ConfigError(
                f"Data.tokenizer has the {role} {own}, but the parameters in {origin.place} are of a model with {i}; "
                f"bind their tokenizer, or its {role}_token"
            )
    rows, own = (
        max(origin.rows, tokenizer.vocab_size),
        model.embedding.table_rows(tokenizer.vocab_size),
    )
    if own != rows:
        raise ConfigError(
            f"EmbeddingConfig.rows = {model.embedding.rows} gives a table of {own} rows, but that in {origin.place} "
            f"has {origin.rows} and the tokenizer {tokenizer.vocab_size} ids; set it to {rows}"
        )
    for name, value, other in differences(
        normal(_with_rows(model, rows)), normal(_with_rows(origin.model, rows))
    ):
        if name not in differing:
            raise ConfigError(
                f"{name} = {value!r}, but the parameters in {origin.place} are of a model with {other!r}; change it, "
                "or start from others"
            )


def _same_pieces(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether ids stand for the same text in both; one may have further ids."""
    if not (isinstance(one, Vocabulary) and isinstance(other, Vocabulary)):
        return one == other
    shared = min(len(one.pieces), len(other.pieces))
    return list(one.pieces[:shared]) == list(other.pieces[:shared])


def _fitted(params: Any, origin: Origin, model: FamilyConfig, vocab: int) -> Any:
    """The parameters as a model with so many tokens has them, rows added where its table has more."""
    found = named(params)
    del params  # an array that grows is not needed beside what it becomes
    abstract = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(_built(model, vocab))))
    grows = (origin.rows, model.embedding.table_rows(vocab))
    lines, made = [], {}
    for path, leaf in named(abstract).items():
        if path not in found:
            lines.append(f"{origin.place}: missing {path} {list(leaf.shape)}")
            continue
        made[path] = _grown(found.pop(path), leaf.shape, *grows)
        if made[path].shape != leaf.shape:
            lines.append(f"{origin.place}: {path} is {list(made[path].shape)}, expected {list(leaf.shape)}")
    lines += [f"{origin.place}: unexpected {path} {list(leaf.shape)}" for path, leaf in found.items()]
    if lines:
        raise WeightsError(*lines)
    return jax.tree_util.tree_map_with_path(lambda path, _: made[path_of(path)], abstract)


def _grown(leaf: Any, shape: tuple[int, ...], rows: int, wanted: int) -> Any:
    """An array whose axis of token rows has as many as are wanted, the new ones the mean of the others."""
    for axis, pair in enumerate(zip(leaf.shape, shape, strict=False)):
        if pair == (rows, wanted) and rows < wanted:
            leaf = np.asarray(leaf)
            mean = np.mean(leaf, axis=axis, keepdims=True, dtype=np.float64).astype(np.float32)
            return np.concatenate([leaf, np.repeat(mean, wanted - rows, axis)], axis)
    return leaf


def _built(model: FamilyConfig, vocab: int) -> Model:
    return model.build(vocab=vocab, key=jax.random.key(0))


def _with_rows(model: FamilyConfig, rows: int) -> FamilyConfig:
    return dataclasses.replace(model, embedding=dataclasses.replace(model.embedding, rows=rows))


@functools.lru_cache(maxsize=64)  # of all cells that start there
def _fingerprint(place: str, data_dir: str | None) -> str:
    return hash_of(opened(place, data_dir).read())


def hash_of(params: Any) -> str:
    """sha256 (hex) of arrays and their paths."""
    digest = hashlib.sha256()
    for path, leaf in sorted(named(params).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()

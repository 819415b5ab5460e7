"""Parameters that are there already, as those of a model: read strictly, and fitted where the model has more.

A run starts from them where gin binds it, in a file after `from experiments import pretrained`:

    experiment.train.init_from = @pretrained.Parameters()
    pretrained.Parameters.place = 'smollm2'
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from experiments import configs, experiment
from experiments.configs import ConfigError
from experiments.experiment import Experiment
from experiments.origins import Origin, Published, Run, opened, readable, with_rows
from research.data.corpora import Factbook
from research.data.objectives import Classification
from research.data.pipeline import Data
from research.data.tokenizers import Tokenizer, Vocabulary
from research.interop.architecture import differences, normal
from research.interop.weights import WeightsError
from research.models.families import DecoderConfig, EncoderConfig, FamilyConfig, Model
from research.models.paths import named, path_of
from research.training.remedies import Inherited

SCORING = ("transform", "bias", "logit_scale", "softcap")  # of EmbeddingConfig, only how tokens are scored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters that a run starts from; its optimizer starts anew.

    The model has to be the one that they are of. Dropout rates may differ, and what is only about how it is computed
    (dtype, remat, backend). Where the tokenizer has more ids than their token table has rows, rows are added, each the
    mean of the others. Where the model tells classes and they are of an encoder that tells none, the head of classes is
    drawn from the run's seed, as in a model that starts from nothing, in the place of what scored tokens (Devlin et al.
    2019, section 3.2).

    Attributes:
      place: a run folder, a Hugging Face folder, a .gguf file or a name of the catalog.
      differing: settings that may differ besides, such as 'DecoderConfig.mask'; shapes may not. Where that is a memory
        that learns to compress and there is none, what it learns with is drawn.
    """

    place: str
    differing: tuple[str, ...] = ()

    def fingerprint(self, data_dir: str | None) -> str:
        """sha256 (hex) of the parameters, whatever place they were read from."""
        return _fingerprint(self.place, data_dir)

    def design(self, data_dir: str | None) -> str:
        """The same: all seeds start from them."""
        return self.fingerprint(data_dir)

    def record(self, data_dir: str | None) -> dict[str, Any]:
        """Where they are, and their fingerprint."""
        return {"place": self.place, "fingerprint": self.fingerprint(data_dir)}

    def check(self, model: FamilyConfig, tokenizer: Tokenizer, data_dir: str | None) -> str | None:
        """That the parameters are of such a model and of such a tokenizer; a line where a head is to be drawn.

        Raises:
          ConfigError: they are not; the first setting that differs.
        """
        return checked(opened(self.place, data_dir), model, tokenizer, self.differing)

    def params(self, model: FamilyConfig, tokenizer: Tokenizer, data_dir: str | None) -> Any:
        """The parameters of a model that reads the tokenizer's ids, without a head that is to be drawn: nested dicts of
        float32 arrays.

        Raises:
          ConfigError: as `check`, or they have changed since `fingerprint` read them.
          WeightsError: a name is missing, unexpected or of another shape; a line for each.
          CheckpointError: a run has no checkpoint that is whole.
        """
        origin = opened(self.place, data_dir)
        checked(origin, model, tokenizer, self.differing)
        expected = self.fingerprint(data_dir)  # first, so that what it reads is let go
        read = origin.read()
        if hash_of(read) != expected:
            raise ConfigError(
                f"{self.place}: the parameters have changed since this command began; run it again"
            )
        return fitted(read, origin, model, tokenizer.vocab_size)

    def kept(self, data_dir: str | None) -> Inherited:
        """What the remedies of the run there kept; nothing of published ones."""
        origin = opened(self.place, data_dir)
        return origin.kept() if isinstance(origin, Run) else ()

    def kept_fingerprint(self, data_dir: str | None) -> list[str]:
        """Of what the remedies of the run there kept."""
        return [hash_of([each for _, each in self.kept(data_dir)])]

    def rehearsed(
        self,
        model: FamilyConfig,
        tokenizer: Tokenizer,
        data_dir: str | None,
        train: Callable[[Experiment], tuple[Any, Inherited]],
    ) -> tuple[Any, None]:
        """The parameters, which are there for a replay too; so is what was kept."""
        return self.params(model, tokenizer, data_dir), None


def tuning(
    place: str, files: Iterable[str], changes: Sequence[str], data_dir: str | None
) -> tuple[Experiment, str]:
    """The experiment at a place, changed by gin files and bindings, that starts from the parameters there, whatever arm
    of a study the files would have it start from; and its operative config.

    Raises:
      ConfigError: see `configs.load` and `fits`.
    """
    start = ("train.init_from=@Parameters()", f"Parameters.place={place!r}")
    origin = opened(place, data_dir)
    base = (origin.config(),)
    planned = configs.load(experiment.train, files, [*changes, *start], base=base, replaced=("Stage",))
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
    config = with_rows(origin.model, rows)
    return Loaded(config, fitted(origin.read(), origin, config, rows))


def fits(origin: Origin, data: Data) -> None:
    """That a model, as it was published, was made for what the data ask of it.

    Raises:
      ConfigError: targets are tokens and it came without a head for them, or the texts are not of its language.
    """
    if not origin.scores_tokens and not isinstance(data.objective, Classification):
        raise ConfigError(
            f"{origin.place}: published without a head of tokens, so they have no likelihood; expected a model "
            "with one"
        )
    if origin.language != "text" and data.corpus == Factbook():
        raise ConfigError(
            f"{origin.place}: Data.corpus = Factbook(), but its tokens are parts of {origin.language}; bind a "
            f"corpus of {origin.language}, such as Data.corpus = @TextFiles()"
        )


def checked(
    origin: Origin, model: FamilyConfig, tokenizer: Tokenizer, differing: tuple[str, ...]
) -> str | None:
    """See `Parameters.check`."""
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
        normal(with_rows(model, rows)), normal(with_rows(_headed(origin, model) or origin.model, rows))
    ):
        if name not in differing:
            raise ConfigError(
                f"{name} = {value!r}, but the parameters in {origin.place} are of a model with {other!r}; change it, "
                "start from others, or name it in `differing`"
            )
    drawn = []
    if _headed(origin, model) is not None:
        drawn.append("head/... drawn anew: the checkpoint has no classes")
    if _compresses(model) and not _compresses(origin.model):
        drawn.append("compress/... drawn anew: the checkpoint has no memory that learns to compress")
    return f"init_from {origin.place}: {'; '.join(drawn)}" if drawn else None


def _compresses(model: FamilyConfig) -> bool:
    """Whether the model has a memory that learns to compress."""
    memory = model.stack.memory if isinstance(model, DecoderConfig) else None
    if memory is None or memory.compression is None:
        return False
    return isinstance(memory.compression.build(width=1, key=jax.random.key(0)), nnx.Module)


def _headed(origin: Origin, model: FamilyConfig) -> FamilyConfig | None:
    """The origin's model with the head of classes of another, where it has none; None: heads are as they are."""
    theirs = origin.model
    if not isinstance(theirs, EncoderConfig) or not isinstance(model, EncoderConfig):
        return None
    if theirs.classes is not None or model.classes is None:
        return None
    scoring = {name: getattr(model.embedding, name) for name in SCORING}
    return dataclasses.replace(
        theirs,
        classes=model.classes,
        tied_embeddings=model.tied_embeddings,
        embedding=dataclasses.replace(theirs.embedding, **scoring),
    )


def _same_pieces(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether ids stand for the same text in both; one may have further ids."""
    if not (isinstance(one, Vocabulary) and isinstance(other, Vocabulary)):
        return one == other
    shared = min(len(one.pieces), len(other.pieces))
    return list(one.pieces[:shared]) == list(other.pieces[:shared])


def fitted(params: Any, origin: Origin, model: FamilyConfig, vocab: int) -> Any:
    """The parameters as a model with so many tokens has them, rows added where its table has more, and without the head
    that is to be drawn.
    """
    abstract = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(_built(model, vocab))))
    if _headed(origin, model) is not None:
        params, abstract = _headless(params), _headless(abstract)
    if not _compresses(origin.model):
        abstract = _without(abstract, "compress")
    found = named(params)
    del params  # an array that grows is not needed beside what it becomes
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


def _headless(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters without what makes logits of hidden states."""
    return {part: leaves for part, leaves in params.items() if part not in ("head", "finish")}


def _without(params: Any, name: str) -> Any:
    """Parameters without those of parts of that name, wherever they are."""
    if not isinstance(params, dict):
        return params
    return {part: _without(leaves, name) for part, leaves in params.items() if part != name}


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

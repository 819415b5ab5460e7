"""Where parameters are: a run folder, a Hugging Face folder, a .gguf file or a name of the catalog."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from experiments import bindings, experiment, folders
from experiments.configs import ConfigError
from experiments.experiment import Experiment
from research.data.corpora import Factbook
from research.data.layouts import Concatenate, InPlace, Split
from research.data.objectives import CausalLM, MaskedLM, PrefixLM
from research.data.pipeline import Data
from research.data.pretrained import FromFile
from research.data.subwords import Subwords
from research.data.tokenizers import Tokenizer, TokenizerSource
from research.interop import pretrained
from research.interop.hub import Checkpoint
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig, FamilyConfig
from research.training.checkpoints import Checkpoints
from research.training.optimizers import AdamW
from research.training.remedies import Inherited
from research.training.step import TrainState

TUNING = 5e-5  # learning rate where none is bound, of those of Devlin et al. 2019, appendix A.3


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder: the parameters that its result has scored, or those of its newest checkpoint where it has none;
    averaged ones where there are.
    """

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
    def converted(self) -> folders.Record | None:
        """What `run.json` says of a model that was converted; None: it was trained here."""
        path = Path(self.place) / "run.json"
        record = json.loads(path.read_text()) if path.exists() else {}
        return record if record.get("status") == folders.CONVERTED else None

    @property
    def begins(self) -> bool:
        """Whether its lines begin with BOS: all that are trained on do."""
        return self.converted is None or self.tokenizer().begins

    @property
    def scores_tokens(self) -> bool:
        """Whether its logits of tokens mean something: they were trained, or published with a head of their own."""
        return (self.converted or {}).get("scores_tokens", True)

    @property
    def language(self) -> str:
        """What the tokens of a converted model are parts of; those of a run are of what it was trained on."""
        return (self.converted or {}).get("language", "text")

    @property
    def history(self) -> dict[int, float]:
        """Of its training; see `folders.history`."""
        return folders.history(Path(self.place), folders.finished(Path(self.place)))

    @property
    def begun(self) -> Callable[[], Any] | None:
        """The parameters that its training began with; None: it was converted, not trained, or is a cell of a study
        that began with another, which the study alone knows.
        """
        start = self.planned.init_from
        known = self.converted is None and (start is None or start.place)
        return self._initial if known else None

    def _initial(self) -> Any:
        planned = self.planned
        functions = experiment.trainer(planned, self.tokenizer().vocab_size)
        start = experiment.started(planned, self.data_dir)
        return functions.initial(jax.random.key(planned.seed), planned.numbers, params=start).params

    def config(self) -> str:
        """The run's."""
        return (Path(self.place) / "config.gin").read_text()

    def read(self) -> Any:
        """The parameters.

        Raises:
          CheckpointError: that checkpoint, or without a result any, is not there or not whole.
        """
        state = self._state()
        return self._restored(state.params, "params" if state.average is None else "average")

    def kept(self) -> Inherited:
        """What its remedies kept beside those parameters.

        Raises:
          CheckpointError: as `read`.
        """
        remedies = self.planned.recipe.remedies
        if not remedies:
            return ()
        return tuple(zip(remedies, self._restored(self._state().kept, "kept"), strict=True))

    def _state(self) -> TrainState:
        """The shapes of its state."""
        functions = experiment.trainer(self.planned, self.tokenizer().vocab_size)
        return jax.eval_shape(functions.initial, jax.random.key(0), self.planned.numbers)

    def _restored(self, like: Any, field: str) -> Any:
        """That field of its state."""
        result = folders.finished(Path(self.place))
        step = None if result is None else folders.scored(result)
        with Checkpoints(Path(self.place) / "checkpoints", self.planned.keep) as checkpoints:
            # To wherever it is needed: what has a device cannot be used beside what is spread over several.
            return jax.device_get(checkpoints.restore_params(like, step, field=field)[0])


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

    @property
    def begun(self) -> Callable[[], Any] | None:
        """What its training began with is not known."""
        return None

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

    @property
    def scores_tokens(self) -> bool:
        """Whether it was published with a head that scores tokens."""
        return self.checkpoint.architecture.scores_tokens(self.model)

    @property
    def language(self) -> str:
        """What its tokens are parts of."""
        return self.checkpoint.architecture.language

    @property
    def history(self) -> dict[int, float]:
        """None is published."""
        return {}

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
        model=with_rows(model, max(origin.rows, ids)),
        data=Data(
            corpus=Factbook(),
            objective=objective,
            layout=layout,
            tokenizer=origin.source,
            window=Data.window - over,
        ),
        optimizer=AdamW(learning_rate=TUNING),
    )


def with_rows(model: FamilyConfig, rows: int) -> FamilyConfig:
    """The model with so many rows in its token table."""
    return dataclasses.replace(model, embedding=dataclasses.replace(model.embedding, rows=rows))

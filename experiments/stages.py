"""Arms of a study that start from what another arm of it has learned, at the same scale and with the same seed.

An arm says so in its gin file, after `from experiments import stages`:

    experiment.train.init_from = @stages.Stage()
    stages.Stage.arm = 'causal_lm'

What an arm starts from may itself have started from another arm. An evaluation may ask another arm, too:

    decoding.Decoding.reference = @reference/stages.Stage()
    reference/stages.Stage.arm = 'reference'
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import experiment, folders, pretrained
from experiments.configs import ConfigError
from experiments.experiment import Experiment
from experiments.origins import Run
from research.data.pipeline import Dataset
from research.data.tokenizers import Tokenizer
from research.models.families import FamilyConfig
from research.training.checkpoints import CheckpointError
from research.training.remedies import Inherited
from research.training.step import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The trained parameters of another arm, its base; the optimizer starts anew.

    They are those that the base's result has scored, averaged ones where there are, and become the parameters of the
    arm's model as those of `pretrained.Parameters` do.

    Attributes:
      arm: of the same study.
      differing: settings of the model that may differ, as in `pretrained.Parameters`.
      base: that arm's experiment; the study fills it in for each cell.
      place: its run folder; the study fills it in too.
      key: of its experiment, where an evaluation asks it, so that it is part of what is measured; likewise.
    """

    arm: str
    differing: tuple[str, ...] = ()
    base: Experiment | None = None
    place: str = ""
    key: str = ""

    def fingerprint(self, data_dir: str | None) -> str:
        """The key of the base: it decides the parameters, and is known before there are any.

        Raises:
          ConfigError: no study has filled in the base.
        """
        return experiment.key(self._known, data_dir)

    def design(self, data_dir: str | None) -> str:
        """The same without seeds."""
        return experiment.design(self._known, data_dir)

    def record(self, data_dir: str | None) -> dict[str, Any]:
        """What a row says of it."""
        return {"arm": self.arm, "seed": self._known.seed, "key": self.fingerprint(data_dir)}

    def check(self, model: FamilyConfig, tokenizer: Tokenizer, data_dir: str | None) -> str | None:
        """That the base is trained, and of such a model and tokenizer; a line where a head is to be drawn.

        Raises:
          ConfigError: it is not.
        """
        drawn = pretrained.checked(self._origin(data_dir), model, tokenizer, self.differing)
        if not folders.trained(Path(self.place)):
            raise ConfigError(
                f"{self.place}: no parameters of a finished run of arm {self.arm} there; launch the study again, which "
                "trains it first"
            )
        return drawn

    def params(self, model: FamilyConfig, tokenizer: Tokenizer, data_dir: str | None) -> Any:
        """The base's parameters as those of the model, without a head that is to be drawn.

        Raises:
          ConfigError: as `check`, or they cannot be read.
          WeightsError: see `pretrained.Parameters.params`.
        """
        self.check(model, tokenizer, data_dir)
        origin = self._origin(data_dir)
        try:
            read = origin.read()
        except CheckpointError as error:
            raise ConfigError(
                f"{error}; remove {self.place} and launch the study again, which trains arm {self.arm} anew"
            ) from error
        return pretrained.fitted(read, origin, model, tokenizer.vocab_size)

    def kept(self, data_dir: str | None) -> Inherited:
        """What the base's remedies kept."""
        return self._origin(data_dir).kept()

    def kept_fingerprint(self, data_dir: str | None) -> list[str]:
        """Nothing: the key of the base decides that too."""
        return []

    def rehearsed(
        self,
        model: FamilyConfig,
        tokenizer: Tokenizer,
        data_dir: str | None,
        train: Callable[[Experiment], tuple[Any, Inherited]],
    ) -> tuple[Any, Inherited]:
        """What a replay starts from: what `train` makes of the base, so that the base's run need not be there, and the
        base's code is replayed too.
        """
        origin = self._origin(data_dir)
        pretrained.checked(origin, model, tokenizer, self.differing)
        params, kept = train(self._known)
        return pretrained.fitted(params, origin, model, tokenizer.vocab_size), kept

    def trained(self, text: Dataset) -> tuple[Trainer, Any]:
        """The functions and the parameters of the other arm's model, for an evaluation that asks it.

        Raises:
          ConfigError: it is not trained, or reads another tokenizer than `text` does.
        """
        params = self.params(self._known.model, text.tokenizer, _folder(text))
        return experiment.trainer(self._known, text.tokenizer.vocab_size), params

    def shortly(
        self, text: Dataset, train: Callable[[Experiment], tuple[Any, Inherited]]
    ) -> tuple[Trainer, Any]:
        """The same for a replay, in which `train` takes the other arm through a few steps."""
        params, _ = self.rehearsed(self._known.model, text.tokenizer, _folder(text), train)
        return experiment.trainer(self._known, text.tokenizer.vocab_size), params

    def _origin(self, data_dir: str | None) -> Run:
        return Run(self.place, self._known, data_dir)

    @property
    def _known(self) -> Experiment:
        if self.base is None:
            raise ConfigError(
                f"stages.Stage.arm = {self.arm!r}: it starts from another arm of its study, which only "
                "experiments.launch trains; launch the study, or give experiments.train --init_from=RUN"
            )
        return self.base


def _folder(text: Dataset) -> str | None:
    return None if text.data_dir is None else str(text.data_dir)

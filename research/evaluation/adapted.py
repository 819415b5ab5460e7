"""What becomes of a trained model whose positions are scaled, or which sees less, without any training."""

import dataclasses
from typing import Any

import jax

from research.attention.masks import Mask
from research.attention.positions import Scheme
from research.attention.recurrence import Recurrent
from research.evaluation.checked import Checked, require_decoder
from research.evaluation.streaming import narrowed
from research.evaluation.trained import Evaluation, Scores, Trained
from research.models.decoder import DecoderConfig
from research.models.families import FamilyConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted:
    """Another evaluation, of the same parameters in a model that is changed to read further than it was trained for.

    Attributes:
      evaluation: what is measured.
      positions: in place of the position scheme of all blocks that name none, such as
        `Rotary(scaling=YaRN(factor=4, trained=64))`; None: as trained.
      window: what of the keys that they saw the blocks still see, such as `Window(64)`; None: as trained.
      memory: in place of the memory that it was trained with; None: as trained.
    """

    evaluation: Evaluation
    positions: Scheme | None = None
    window: Mask | None = None
    memory: Recurrent | None = None

    def __post_init__(self):
        if self.positions is None and self.window is None and self.memory is None:
            raise ValueError(
                "Adapted changes nothing of the model; set Adapted.positions, Adapted.window or Adapted.memory, or use "
                "Adapted.evaluation by itself"
            )

    def check(self, model: FamilyConfig) -> None:
        """ValueError where the model is no decoder that hides what comes later, or has no memory to be replaced, or
        `evaluation` refuses it.
        """
        changed = self._changed(model)
        if isinstance(self.evaluation, Checked):
            self.evaluation.check(changed)

    def __call__(self, trained: Trained) -> Scores:
        """What `evaluation` finds.

        Raises:
          ValueError: see `check`, or the changed model has other parameters.
        """
        functions = trained.trainer.of(self._changed(trained.trainer.config))
        drawn = jax.eval_shape(lambda key: functions.initial(key).params, jax.random.key(0))
        if _shapes(drawn) != _shapes(trained.params):
            raise ValueError(
                f"Adapted.positions = {self.positions}, Adapted.memory = {self.memory}: other parameters than those "
                "that were trained; expected the same, as another scaling of rotary positions or another length of a "
                "memory has"
            )
        return self.evaluation(dataclasses.replace(trained, trainer=functions))

    def _changed(self, model: FamilyConfig) -> DecoderConfig:
        changed = require_decoder(model, "Adapted")
        if self.memory is not None and changed.stack.memory is None:
            raise ValueError(
                f"Adapted.memory = {self.memory}, but the model was trained without one (StackConfig.memory = None); "
                "leave it out"
            )
        others = {"positions": self.positions, "memory": self.memory}
        stack = dataclasses.replace(
            changed.stack, **{name: value for name, value in others.items() if value is not None}
        )
        changed = dataclasses.replace(changed, stack=stack)
        return changed if self.window is None else narrowed(changed, self.window)


def _shapes(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, params)

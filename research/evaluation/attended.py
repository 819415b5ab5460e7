"""Where a decoder looks: how much attention its first token takes, and how much what is near."""

import dataclasses
from typing import Literal

import numpy as np

from research.attention import sharded
from research.evaluation.attention_maps import attention_maps
from research.evaluation.checked import require_decoder, require_no_memory, require_positions
from research.evaluation.long_context import octave, plain, stretches
from research.evaluation.trained import Scores, Trained
from research.models.families import FamilyConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attended:
    """The attention of a decoder in held-out text, by head and by distance.

    Models of natural text give much of it to their first token whatever that is, and fail where it leaves the window:
    an attention sink (Xiao et al. 2024). All maps [h t t] are held, so lines are short.

    Attributes:
      tokens: of a line, a run within one document behind BOS.
      lines: at most so many, and at most `Data.held_out`.
      split: of which documents.
    """

    tokens: int = 64
    lines: int = 64
    split: Literal["test", "validation"] = "test"

    def __post_init__(self):
        if self.tokens < 4 or self.lines < 1:
            raise ValueError(
                f"Attended.tokens = {self.tokens}, Attended.lines = {self.lines}: expected at least 4 and 1"
            )

    def check(self, model: FamilyConfig) -> None:
        """ValueError where the model is no decoder, has a memory, or positions end before a line does."""
        decoder = require_decoder(model, "Attended")
        require_no_memory(decoder, "Attended reads each line alone")
        require_positions(decoder, self.tokens, f"Attended.tokens = {self.tokens}")

    def __call__(self, trained: Trained) -> Scores:
        """Mean shares of the queries of the second half of a line: `first`, by layer and in it by head, what BOS takes;
        `by_distance`, over layers and heads, what goes to tokens 0, 1, 2-3, 4-7, ... back, BOS left out. None where
        devices share the model.

        Raises:
          ValueError: see `check`, or no document is long enough.
        """
        self.check(trained.trainer.config)
        if sharded.axes():
            return {"first": None, "by_distance": None}
        rows = np.stack(stretches(trained.text, self.split, self.tokens - 1, self.lines, "Attended.tokens"))
        ids = np.pad(rows, ((0, 0), (1, 0)), constant_values=trained.text.tokenizer.bos)
        late = np.arange(self.tokens // 2, self.tokens)
        maps = [
            np.asarray(each)[:, :, late]
            for each in attention_maps(trained.trainer, trained.params, plain(ids))
        ]
        back = late[:, None] - np.arange(1, self.tokens)
        near, distance = np.mean([each[..., 1:].mean((0, 1)) for each in maps], axis=0), octave(back.ravel())
        return {
            "first": {
                str(layer): {str(head): float(share) for head, share in enumerate(each[..., 0].mean((0, 2)))}
                for layer, each in enumerate(maps)
            },
            "by_distance": {
                str(least): float(near.ravel()[(distance == least) & (back.ravel() >= 0)].sum()) / len(late)
                for least in np.unique(distance).tolist()
            },
        }

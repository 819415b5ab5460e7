"""What reading costs by how much is read, counted from the trace."""

import dataclasses

import numpy as np

from research.analysis import budget
from research.evaluation.checked import require_decoder, require_no_memory, require_positions
from research.evaluation.long_context import plain
from research.evaluation.trained import Scores, Trained
from research.models.families import FamilyConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """FLOPs of a decoder that reads a line of each length at once, attention counted by the pairs that its masks show;
    see `research.analysis.budget`. How long it takes is another question: benchmarks/long_context.py.

    Attributes:
      lengths: tokens of a line, rising.
    """

    lengths: tuple[int, ...] = (256, 1024, 4096)

    def __post_init__(self):
        if len(self.lengths) < 2 or list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] < 1:
            raise ValueError(f"Cost.lengths = {self.lengths}: expected at least two rising numbers of tokens")

    def check(self, model: FamilyConfig) -> None:
        """ValueError where the model is no decoder, has a memory, which reads in segments, or fewer positions."""
        decoder = require_decoder(model, "Cost")
        require_no_memory(decoder, "Cost reads a line at once")
        require_positions(decoder, self.lengths[-1], f"Cost.lengths = {self.lengths}")

    def __call__(self, trained: Trained) -> Scores:
        """`flops_per_token` by length, and `slope`: by which power of the length all FLOPs grow, by least squares of
        their logarithms; 1 where a token costs the same at every length, and at most 2.

        Raises:
          ValueError: see `check`.
        """
        config = trained.trainer.config
        self.check(config)
        vocab = trained.text.tokenizer.vocab_size
        flops = {
            n: budget.count(config, vocab=vocab, batches=[plain(np.zeros((1, n), np.int32))]).forward_flops
            for n in self.lengths
        }
        slope, _ = np.polyfit(np.log(list(flops)), np.log(list(flops.values())), 1)
        return {
            "flops_per_token": {str(n): total / n for n, total in flops.items()},
            "slope": float(slope),
        }

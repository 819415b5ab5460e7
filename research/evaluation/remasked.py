"""Held-out loss of the same parameters under another mask."""

import dataclasses

from research.attention.masks import Mask
from research.data.layouts import InPlace
from research.evaluation.trained import Scores, Trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnderMask:
    """Nats per target token of the test split where the stack sees what another mask shows it: what a model has learned
    that does not depend on its own mask, before it is trained under the other (Wang et al. 2022, section 3.2).

    Attributes:
      mask: what every query may see instead.
    """

    mask: Mask

    def __call__(self, trained: Trained) -> Scores:
        """`{"loss": nats}`.

        Raises:
          ValueError: the model is no single stack under a mask, or a token would see the target that it predicts.
        """
        if not (self.mask.extendable or isinstance(trained.text.data.layout, InPlace)):
            raise ValueError(
                f"UnderMask.mask = {self.mask} lets a token see the targets that it predicts; set it to one that hides "
                "them, such as @masks.Prefix()"
            )
        batches = trained.place(trained.text.held_out("test"))
        return {"loss": trained.trainer.under(self.mask).evaluate(trained.params, batches)}

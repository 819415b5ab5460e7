"""What a model writes, greedily, where a record or a task asks for something: is it what was expected?"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from research.data.objectives import Example
from research.data.windows import spread
from research.evaluation.continuing import continued
from research.evaluation.trained import Scores, Trained
from research.generation.engine import Generation, Greedy
from research.models.families import Encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """Greedy answers to held-out records (of a mixture those of its first part), token by token against their targets.

    `exact`: the share of answers that are the target, end included; `edit`: insertions, deletions and replacements of
    tokens that would make the answers the targets, for each token of these (Levenshtein 1966; the token error rate);
    `tokens`: the share of places where both have the same token; `ended`: the share that came to an end.

    Attributes:
      split: which.
      records: at most so many are asked, spread evenly.
      rows: at a time.
    """

    split: Literal["test", "validation"] = "test"
    records: int = 256
    rows: int = 64

    def __post_init__(self):
        for name in ("records", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"Answers.{name} = {getattr(self, name)}: expected at least 1")

    def __call__(self, trained: Trained) -> Scores:
        """The four numbers.

        Raises:
          ValueError: a model that writes nothing, or data that gives nothing.
        """
        expected, found = answers(trained, self.split, self.records, self.rows)
        pairs = list(zip(found, expected, strict=True))
        wanted = sum(map(len, expected))
        return {
            "exact": float(np.mean([np.array_equal(one, other) for one, other in pairs])),
            "edit": sum(edit_distance(one, other) for one, other in pairs) / wanted,
            "tokens": sum(int(_same(one, other).sum()) for one, other in pairs) / wanted,
            "ended": float(np.mean([one[-1:] == other[-1:] for one, other in pairs])),
        }


def answers(
    trained: Trained, split: str, records: int, rows: int
) -> tuple[list[Int32[np.ndarray, " m"]], list[Int32[np.ndarray, " w"]]]:
    """The targets of held-out windows, and what the model writes for each, as long as the longest may be.

    Raises:
      ValueError: a model that writes nothing, or data that gives nothing.
    """
    model = trained.trainer.model(trained.params)
    if isinstance(model, Encoder):
        raise ValueError(
            "Answers of an Encoder: it writes no text; take the evaluation out, or train a model that has a decoder"
        )
    examples = _examples(trained, split, records)
    expected = [one.targets for one in examples]
    limits = trained.text.data.scored(trained.text.data.parts[0]).limits(trained.text.data.window)
    how = Generation(tokens=limits.targets, end=(trained.text.tokenizer.eos,), choice=Greedy())
    given = [one.inputs for one in examples]
    found = continued(trained, given, how, longest=limits.inputs, rows=rows)
    return expected, [line.ids for line in found]


def _examples(trained: Trained, split: str, records: int) -> Sequence[Example]:
    text = trained.text
    windows, objective = text.windows[0][split], text.data.scored(text.data.parts[0])
    rng = np.random.default_rng(0)
    examples = [objective(windows[i], rng, text.tokenizer) for i in spread(len(windows), records)]
    if not all(len(one.inputs) and not one.aligned for one in examples):
        raise ValueError(
            f"Answers on {type(objective).__name__}: it gives nothing to answer; set Data.objective = @Seq2Seq() and a "
            "corpus of records, or take the evaluation out"
        )
    return examples


def edit_distance(found: Sequence[Any] | np.ndarray, expected: Sequence[Any] | np.ndarray) -> int:
    """The fewest insertions, deletions and replacements that make one of the other (Levenshtein 1966)."""
    one, other = np.asarray(found), np.asarray(expected)
    places = np.arange(len(other) + 1)
    costs = places
    for row, token in enumerate(one):
        replaced = costs[:-1] + (other != token)
        best = np.concatenate([[row + 1], np.minimum(replaced, costs[1:] + 1)])
        # An insertion costs one for each place from where the row was left: a running minimum of what is before it.
        costs = np.minimum.accumulate(best - places) + places
    return int(costs[-1])


def _same(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    length = min(len(found), len(expected))
    return found[:length] == expected[:length]

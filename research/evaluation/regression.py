"""How far a model's predictions in context are from those of least squares."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float, Float64, Int32

from research.batch import Batch
from research.data.objectives import Example, Objective
from research.data.regression import LinearRegression, least_squares
from research.data.tokenizers import Tokenizer
from research.data.windows import Made, TokenWindow, spread
from research.evaluation.trained import Scores, Trained
from research.models.families import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastSquares:
    """Predictions of y by a model that was trained on `LinearRegression`, beside those of least squares.

    A model predicts the mean of its distribution over the numbers, the true symbols before it given. The others predict
    from the same rounded numbers: `ols` by least squares without a penalty, `bayes` as `LinearRegression.bayes` does,
    `zero` 0 whatever is given. All are brought within the outermost numbers, and the true y too, as no model predicts
    more: where there are about as many pairs as dimensions, least squares now and then goes far beyond.

    All numbers are means of squares. The variance of y without its noise is about 1, so they are shares of it;
    `zero_error` is what it is in these windows.

    Attributes:
      split: which.
      windows: at most so many, spread evenly.
    """

    split: Literal["test", "validation"] = "test"
    windows: int = 512

    def __post_init__(self):
        if self.windows < 1:
            raise ValueError(f"LeastSquares.windows = {self.windows}: expected at least 1")

    def __call__(self, trained: Trained) -> Scores:
        """Of the last y of each window: `to_ols` and `to_bayes`, the distance of the model's prediction from theirs;
        `error`, `ols_error`, `bayes_error` and `zero_error`, that of each from the true y without noise. The same names
        with `_by_pairs`, over all y that the objective predicts, by how many pairs come before it.

        Raises:
          ValueError: another task, or an objective that does not predict the end of a window.
        """
        found = predictions(trained, self.split, self.windows)
        model, truth = found["model"], found["truth"]
        squares = {
            "to_ols": (model - found["ols"]) ** 2,
            "to_bayes": (model - found["bayes"]) ** 2,
            "error": (model - truth) ** 2,
            "ols_error": (found["ols"] - truth) ** 2,
            "bayes_error": (found["bayes"] - truth) ** 2,
            "zero_error": truth**2,
        }
        last, pairs = found["last"] > 0, found["pairs"]
        return {name: float(each[last].mean()) for name, each in squares.items()} | {
            f"{name}_by_pairs": {
                str(count): float(each[pairs == count].mean())
                for count in np.unique(pairs).astype(int).tolist()
            }
            for name, each in squares.items()
        }


def predictions(trained: Trained, split: str, windows: int) -> Mapping[str, Float64[np.ndarray, " k"]]:
    """Of every y that the objective predicts in held-out windows: the predictions `model`, `ols` and `bayes`, the
    `truth` without noise, how many `pairs` come before it, and whether it is the `last` of its window (1 or 0).

    Raises:
      ValueError: another task, or an objective that does not predict the end of a window.
    """
    text = trained.text
    part, made = text.data.parts[0], text.windows[0][split]
    task, objective = part.corpus, text.data.scored(part)
    if not isinstance(task, LinearRegression) or not isinstance(made, Made):
        raise ValueError(
            f"LeastSquares measures predictions of LinearRegression, but Data.corpus = {task}; set it to "
            "@LinearRegression(), or take the evaluation out"
        )
    edge, examples, rows = task.centres[-1], [], []
    for i in spread(len(made), windows):
        window, seed = made.drawn(i)
        example, asked = _asked(objective, window, text.tokenizer)
        examples.append(example)
        w, x, _ = task.draw(np.random.default_rng(seed))
        _, y = task.values(window.ids, text.tokenizer)
        ols, bayes, truth = (
            np.clip(each, -edge, edge) for each in (least_squares(x, y), task.bayes(x, y), x @ w)
        )
        pairs = np.arange(len(y))
        rows.append(np.stack([ols, bayes, truth, pairs, pairs == pairs[-1]])[:, asked])
    names = ("ols", "bayes", "truth", "pairs", "last")
    return {
        "model": _means(trained, examples, task),
        **dict(zip(names, np.concatenate(rows, 1), strict=True)),
    }


def _asked(
    objective: Objective, window: TokenWindow, tokenizer: Tokenizer
) -> tuple[Example, Bool[np.ndarray, " n"]]:
    """What the objective makes of the window, weighted where it predicts a y alone; and which y those are."""
    example = objective(window, np.random.default_rng(0), tokenizer)
    own = example.targets != tokenizer.eos
    first = len(window.ids) - int(own.sum())
    if example.aligned or first < 0 or not np.array_equal(example.targets[own], window.ids[first:]):
        raise ValueError(
            f"LeastSquares on {type(objective).__name__}: it does not predict the end of a window; set Data.evaluation "
            "= @Seq2Seq(), or @CausalLM() for a causal decoder, or take the evaluation out"
        )
    weights = np.zeros(len(own), np.float32)
    weights[own] = window.scored[first:]
    return dataclasses.replace(example, weights=weights), np.flatnonzero(window.scored) >= first


def _means(
    trained: Trained, examples: Sequence[Example], task: LinearRegression
) -> Float64[np.ndarray, " k"]:
    """The model's prediction wherever an example has weight, in their order."""
    model, found = trained.trainer.model(trained.params), []
    symbols = task.symbols(trained.text.tokenizer)[: task.bins]
    for batch in trained.text.placed(examples):
        (placed,) = trained.place([batch])
        means = multihost_utils.process_allgather(
            _expected(model, placed, symbols, task.centres.astype(np.float32)), tiled=True
        )
        found.append(means[np.asarray(batch.weights) > 0])
    return np.concatenate(found).astype(np.float64)


@jax.jit
def _expected(
    model: Model,
    batch: Batch,
    symbols: Int32[Array | np.ndarray, " s"],
    centres: Float[Array | np.ndarray, " s"],
) -> Float[Array, "b t"]:
    """At every place, the mean of the numbers that the symbols stand for, under the model's distribution over them."""

    def row(states: Array) -> Array:
        return jax.nn.softmax(model.logits(states)[:, symbols]) @ centres

    # One row after another: logits [t v] instead of [b t v].
    return jax.lax.map(row, model.apply(batch).hidden)

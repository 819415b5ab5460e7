"""Predictions of y beside those of least squares."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.attention.masks import Causal, Prefix
from research.data.denoising import SpanCorruption
from research.data.layouts import Concatenate, InPlace, Split
from research.data.objectives import CausalLM, MaskedLM, PrefixLM, Seq2Seq
from research.data.pipeline import Data
from research.data.regression import LinearRegression
from research.data.synthetic import Rearrangement
from research.data.tokenizers import Symbols
from research.evaluation.regression import LeastSquares, predictions
from research.evaluation.trained import Evaluation, Trained
from research.models.config import StackConfig
from research.models.families import Decoder, DecoderConfig, EncoderConfig, EncoderDecoderConfig, Output
from research.training.optimizers import AdamW
from research.training.step import Trainer

TASK = LinearRegression(dimensions=2, pairs=4, bins=16)
SYMBOLS = Symbols(size=24)
STACK = StackConfig(layers=1, width=16, heads=2, hidden=16)
FAMILIES = {
    "causal": (Concatenate(), DecoderConfig(stack=STACK, mask=Causal())),
    "prefix": (Concatenate(), DecoderConfig(stack=STACK, mask=Prefix())),
    "encoder_decoder": (Split(), EncoderDecoderConfig(encoder=STACK, decoder=STACK)),
    "encoder": (InPlace(), EncoderConfig(stack=STACK)),
}
NAMES = {"to_ols", "to_bayes", "error", "ols_error", "bayes_error", "zero_error"}


def text(layout, objective, corpus=TASK):
    return Data(
        **{"corpus": corpus, "objective": objective, "layout": layout, "tokenizer": SYMBOLS},
        **{"window": 15, "batch": 8, "held_out": 30, "examples": 16},
    ).load()


def trained(family, objective, corpus=TASK):
    layout, model = FAMILIES[family]
    trainer = Trainer(model, vocab=SYMBOLS.vocab_size, optimizer=AdamW(), steps=10)
    params = trainer.initial(jax.random.key(0)).params
    return Trained(trainer=trainer, params=params, text=text(layout, objective, corpus), seed=0)


class Rigged(Decoder):
    """A decoder whose distribution over the numbers has, at the query, a mean that is computed by hand.

    Args:
      penalty: of the fit that it predicts with.
      trust: by which the scores are multiplied; 0: the numbers are all as likely.
    """

    def __init__(self, penalty, trust):
        self.penalty, self.trust = nnx.Variable(jnp.float32(penalty)), nnx.Variable(jnp.float32(trust))

    def apply(self, batch, *, carry=None, key=None):
        """Two neighbouring numbers share the probability so that its mean is the prediction; symbols that are no
        numbers are likelier than any of them.
        """
        bins = batch.target.ids[:, 1:15] - SYMBOLS.text_ids[0]
        values = jnp.asarray(TASK.centres)[jnp.pad(bins, [(0, 0), (0, 1)])].reshape(-1, 5, 3)
        x, y = values[:, :4, :2], values[:, :4, 2]
        gram = jnp.einsum("bni,bnj->bij", x, x) + self.penalty[...] * jnp.eye(2)
        weights = jnp.linalg.solve(gram, jnp.einsum("bni,bn->bi", x, y)[..., None])[..., 0]
        guess = jnp.clip((weights * values[:, 4, :2]).sum(-1), TASK.centres[0], TASK.centres[-1])
        place = (guess - TASK.centres[0]) / (TASK.centres[1] - TASK.centres[0])
        share = jnp.maximum(1 - jnp.abs(place[:, None] - jnp.arange(16)), 1e-9)
        ids = jnp.full((len(x), SYMBOLS.vocab_size), 9.0)
        scores = ids.at[:, SYMBOLS.text_ids[0] : SYMBOLS.text_ids[0] + 16].set(
            self.trust[...] * jnp.log(share)
        )
        return Output(jnp.repeat(scores[:, None], batch.labels.shape[1], 1))

    def logits(self, hidden):
        return hidden


class Given(Trainer):
    """Nothing to train: the model is what is given as its parameters."""

    def __init__(self):
        pass

    def model(self, params):
        return params


def rigged(penalty, trust, objective):
    given = text(Concatenate(), objective)
    return Trained(trainer=Given(), params=Rigged(penalty, trust), text=given, seed=0)


PENALTY = 2 * (6 / 16) ** 2 / 12


@pytest.mark.parametrize("objective", [Seq2Seq(), CausalLM(loss="targets"), CausalLM()])
def test_a_model_that_predicts_as_bayes_has_no_distance_from_it(objective):
    found = LeastSquares()(rigged(PENALTY, 1, objective))
    assert found["to_bayes"] < 1e-6
    assert found["error"] == pytest.approx(found["bayes_error"], rel=1e-3)
    assert found["to_ols"] > 1e-5
    least = LeastSquares()(rigged(0, 1, objective))
    assert least["to_ols"] < 1e-6
    assert least["to_bayes"] == pytest.approx(found["to_ols"], rel=0.01)
    assert found["bayes_error"] < found["zero_error"] / 4


def test_a_model_that_tells_nothing_predicts_zero():
    found = LeastSquares()(rigged(PENALTY, 0, Seq2Seq()))
    assert found["error"] == pytest.approx(found["zero_error"], rel=1e-5)
    assert found["to_bayes"] > found["zero_error"] / 2
    assert 0.3 < found["zero_error"] < 2.5


@pytest.mark.parametrize("family", ["causal", "prefix", "encoder_decoder"])
def test_a_prediction_is_the_mean_of_the_full_pass(family):
    found = trained(family, Seq2Seq())
    (one,) = found.text.held_out("test")[:1]
    logits = np.asarray(found.trainer.model(found.params)(one))
    first = one.weights.argmax(-1)
    own = np.take_along_axis(logits, first[:, None, None], 1)[:, 0, 4:20]
    expected = np.asarray(jax.nn.softmax(own)) @ TASK.centres
    seen = predictions(found, "test", 30)
    np.testing.assert_allclose(seen["model"][:8], expected, atol=1e-5)
    assert len(seen["model"]) == 30
    scores = LeastSquares()(found)
    assert isinstance(LeastSquares(), Evaluation)
    assert scores.keys() > NAMES
    assert scores["error_by_pairs"] == {"4": scores["error"]}


def test_the_references_do_not_depend_on_the_family():
    arms = [
        LeastSquares()(trained("causal", CausalLM(loss="targets"))),
        LeastSquares()(trained("prefix", Seq2Seq())),
        LeastSquares()(trained("encoder_decoder", Seq2Seq())),
    ]
    for name in ("ols_error", "bayes_error", "zero_error"):
        assert arms[0][name] == arms[1][name] == arms[2][name]
    assert arms[0]["error"] != arms[1]["error"]


def test_every_y_that_is_predicted_counts_for_the_pairs_before_it():
    every = LeastSquares()(trained("causal", CausalLM(loss="targets")))
    assert list(every["bayes_error_by_pairs"]) == ["0", "1", "2", "3", "4"]
    assert every["bayes_error_by_pairs"]["0"] == every["zero_error_by_pairs"]["0"]
    assert every["bayes_error_by_pairs"]["4"] == every["bayes_error"] < every["bayes_error_by_pairs"]["1"]
    # The second half of the window holds the last two of them, whatever else is predicted.
    assert list(LeastSquares()(trained("causal", PrefixLM()))["error_by_pairs"]) == ["2", "3", "4"]
    some = LeastSquares()(trained("prefix", Seq2Seq(), dataclasses.replace(TASK, least=3)))
    assert list(some["error_by_pairs"]) == ["3", "4"]


def test_a_part_of_the_windows():
    found = trained("causal", Seq2Seq())
    assert len(predictions(found, "test", 7)["model"]) == 7
    assert LeastSquares(windows=7)(found) != LeastSquares()(found)
    assert LeastSquares(split="validation")(found) != LeastSquares()(found)


@pytest.mark.parametrize(
    ("family", "objective", "corpus", "match"),
    [
        ("causal", Seq2Seq(), Rearrangement(least=3, most=5), r"Data\.corpus = Rearrangement"),
        ("prefix", SpanCorruption(), TASK, "LeastSquares on SpanCorruption: it does not predict the end"),
        ("encoder", MaskedLM(), TASK, "LeastSquares on MaskedLM"),
    ],
)
def test_what_predicts_no_y_is_refused_in_one_line(family, objective, corpus, match):
    with pytest.raises(ValueError, match=match) as caught:
        LeastSquares()(trained(family, objective, corpus))
    assert "\n" not in str(caught.value)


def test_no_windows_are_refused():
    with pytest.raises(ValueError, match=r"LeastSquares\.windows = 0"):
        LeastSquares(windows=0)

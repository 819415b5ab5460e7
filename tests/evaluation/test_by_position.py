"""Losses by where a token stands in its target."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from research.attention.masks import Slots
from research.batch import Batch, Tokens
from research.evaluation.positions import ByPosition, limited
from research.evaluation.trained import Evaluation, Trained
from research.models.config import StackConfig
from research.models.families import DecoderConfig
from research.training.optimizers import AdamW
from research.training.step import Trainer

WEIGHTS = [[0, 0, 1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1, 1, 0]]
SEGMENTS = [[1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 2, 2, 2, 2, 0]]


def batch(seed=0):
    ids = np.random.default_rng(seed).integers(1, 16, (2, 9)).astype(np.int32)
    line = Slots.arange(8, (2,))
    slots = Slots(line.position, np.asarray(SEGMENTS, np.int32), line.prefix)
    return Batch(Tokens(ids[:, :-1], slots), ids[:, 1:], np.asarray(WEIGHTS, np.float32))


def test_the_first_tokens_of_each_segment_keep_their_weight():
    (one,) = limited([batch()], 2)
    assert one.weights.tolist() == [[0, 0, 1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 1, 1, 0, 0]]
    assert one.weights.dtype == np.float32
    (every,) = limited([batch()], None)
    assert every.weights.tolist() == WEIGHTS


def test_losses_are_means_over_those_tokens():
    """A hand-made mean of the token losses of a model that was not trained."""
    stack = StackConfig(layers=1, width=16, heads=2, hidden=16)
    trainer = Trainer(DecoderConfig(stack=stack), vocab=16, optimizer=AdamW(), steps=10)
    params = trainer.initial(jax.random.key(0)).params
    batches = [batch(0), batch(1)]
    text = SimpleNamespace(held_out=lambda split: batches if split == "test" else None)
    trained = Trained.__new__(Trained)  # the data set is a stand-in
    for name, value in {
        "trainer": trainer,
        "params": params,
        "text": text,
        "seed": 0,
        "place": lambda some: some,
    }.items():
        object.__setattr__(trained, name, value)
    evaluation = ByPosition(first=(1, 3))
    assert isinstance(evaluation, Evaluation)
    found = evaluation(trained)["loss"]

    model, tokens = trainer.model(params), {"first_1": [], "first_3": [], "all": []}
    for one in batches:
        shares = jax.nn.log_softmax(model(one), axis=-1)
        losses = -np.take_along_axis(np.asarray(shares), one.labels[..., None], -1)[..., 0]
        for name, ranks in (("first_1", 1), ("first_3", 3), ("all", 8)):
            for row in range(2):
                for segment in (1, 2):
                    places = [n for n in range(8) if WEIGHTS[row][n] and SEGMENTS[row][n] == segment]
                    tokens[name] += [losses[row, n] for n in places[:ranks]]
    assert found == {name: pytest.approx(np.mean(values), rel=1e-5) for name, values in tokens.items()}


@pytest.mark.parametrize("first", [(), (0,), (4, -1)])
def test_what_is_no_number_of_tokens_is_refused(first):
    with pytest.raises(ValueError, match=r"ByPosition.first = .*expected numbers of tokens"):
        ByPosition(first=first)

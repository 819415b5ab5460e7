"""Greedy answers against targets."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.attention.masks import Causal, Prefix
from research.data.layouts import Concatenate, Split
from research.data.objectives import CausalLM, Example, Seq2Seq
from research.data.pipeline import Data
from research.data.synthetic import Rearrangement
from research.data.tokenizers import Symbols
from research.evaluation import answers
from research.evaluation.answers import Answers, edit_distance
from research.evaluation.trained import Evaluation, Trained
from research.models.config import StackConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from research.training.optimizers import AdamW
from research.training.step import Trainer

STACK = StackConfig(layers=1, width=16, heads=2, hidden=16)
FAMILIES = {
    "causal": (Concatenate(), DecoderConfig(stack=STACK, mask=Causal())),
    "prefix": (Concatenate(), DecoderConfig(stack=STACK, mask=Prefix())),
    "encoder_decoder": (Split(), EncoderDecoderConfig(encoder=STACK, decoder=STACK)),
}


def trained(family, objective=None):
    layout, model = FAMILIES[family]
    objective = objective or Seq2Seq(most_inputs=5, most_targets=5)
    corpus = Rearrangement(rule="sort", least=3, most=5)
    data = Data(
        **{"corpus": corpus, "objective": objective, "layout": layout},
        **{"tokenizer": Symbols(size=8), "window": 11, "batch": 8, "held_out": 30, "examples": 64},
    )
    text = data.load()
    trainer = Trainer(model, vocab=text.tokenizer.vocab_size, optimizer=AdamW(), steps=10)
    return Trained(trainer=trainer, params=trainer.initial(jax.random.key(0)).params, text=text, seed=0)


def literal(one, other):
    """By the definition."""

    @functools.cache
    def cost(i, j):
        if not i or not j:
            return i + j
        return min(cost(i - 1, j) + 1, cost(i, j - 1) + 1, cost(i - 1, j - 1) + (one[i - 1] != other[j - 1]))

    return cost(len(one), len(other))


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_the_edit_distance_is_that_of_its_definition(one, other):
    assert edit_distance(one, other) == literal(tuple(one), tuple(other))


def test_the_edit_distance_of_words():
    assert edit_distance(list("kitten"), list("sitting")) == 3
    assert edit_distance([], list("abc")) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_the_likeliest_token_of_the_full_pass_each_time(family):
    """The first tokens of what is written, and the scores of an untrained model."""
    found = trained(family)
    expected, written = answers.answers(found, "test", 10, 4)
    assert len(expected) == len(written) == 10
    model, tokenizer = found.trainer.model(found.params), found.text.tokenizer
    examples = answers._examples(found, "test", 10)
    scored = [
        Example(one.inputs, line, np.ones(len(line), np.float32))
        for one, line in zip(examples, written, strict=True)
    ]
    choices = []
    for batch in found.text.placed(scored):
        likeliest = np.asarray(jax.jit(type(model).__call__)(model, batch)).argmax(-1)
        choices += [row[weights > 0] for row, weights in zip(likeliest, batch.weights, strict=True)]
    for line, choice in zip(written, choices, strict=False):
        assert 1 <= len(line) <= 6
        assert tokenizer.eos not in line[:-1]
        assert choice.tolist() == line.tolist()
    scores = Answers(records=10, rows=4)(found)
    assert isinstance(Answers(), Evaluation)
    assert scores.keys() == {"exact", "edit", "tokens", "ended"}
    assert scores == Answers(records=10, rows=3)(found)  # whatever the batches


def test_scores_of_known_answers(monkeypatch):
    expected = [np.array([5, 6, 2]), np.array([7, 2]), np.array([5, 5, 5, 2])]
    written = [np.array([5, 6, 2]), np.array([6, 2]), np.array([5, 5, 6, 6, 5])]
    monkeypatch.setattr(answers, "answers", lambda *_: (expected, written))
    found = Answers()(trained("causal"))
    assert found == pytest.approx({"exact": 1 / 3, "edit": (0 + 1 + 3) / 9, "tokens": 6 / 9, "ended": 2 / 3})


def test_what_cannot_answer_is_one_line():
    with pytest.raises(ValueError, match="it gives nothing to answer") as raised:
        Answers()(trained("causal", CausalLM(loss="targets")))
    assert "\n" not in str(raised.value)
    found = trained("causal")
    trainer = Trainer(EncoderConfig(stack=STACK), vocab=12, optimizer=AdamW(), steps=1)
    encoder = Trained(
        trainer=trainer, params=trainer.initial(jax.random.key(0)).params, text=found.text, seed=0
    )
    with pytest.raises(ValueError, match="Answers of an Encoder"):
        Answers()(encoder)
    with pytest.raises(ValueError, match="Answers.records = 0"):
        Answers(records=0)

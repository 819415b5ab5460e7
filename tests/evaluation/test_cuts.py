"""Losses by where a window is cut."""

import jax
import numpy as np
import pytest

from research.data.documents import Document
from research.data.layouts import Concatenate, Split
from research.data.objectives import PrefixLM
from research.data.pipeline import Data
from research.data.tokenizers import Bytes
from research.evaluation.cuts import ByCut, sentence_end
from research.evaluation.trained import Evaluation, Trained
from research.models.config import StackConfig
from research.models.families import DecoderConfig, EncoderDecoderConfig
from research.training.optimizers import AdamW
from research.training.step import Trainer

STACK = StackConfig(layers=1, width=16, heads=2, hidden=16)


class Sentences:
    """Documents of short sentences, each another."""

    def __init__(self, text="It is {}. So be it!  Why {}? "):
        self.text = text

    def documents(self, data_dir=None):
        return tuple(
            Document(str(number), "".join(self.text.format(number * i, i) for i in range(40)))
            for number in range(1, 40)
        )


def trained(corpus, layout, model):
    data = Data(corpus=corpus, objective=PrefixLM(), layout=layout, window=64, batch=8, near_duplicates=None)
    text = data.load()
    trainer = Trainer(model, vocab=text.tokenizer.vocab_size, optimizer=AdamW(), steps=10)
    return Trained(trainer=trainer, params=trainer.initial(jax.random.key(0)).params, text=text, seed=0)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("One two. three four", 9),
        ('He said "no."  And so on', 15),
        ("One. Two. Three", 10),  # the last
        ("No. 5", None),  # too early
        ("nothing ends here", None),
        ("it ends here.", None),  # nothing follows
    ],
)
def test_a_sentence_ends_before_what_follows_its_space(text, place):
    tokenizer = Bytes().ready((), None)
    assert sentence_end(tokenizer.encode(text), tokenizer, 6, len(text) - 1) == place


@pytest.mark.parametrize(
    ("layout", "model"),
    [
        (Concatenate(), DecoderConfig(stack=STACK)),
        (Split(), EncoderDecoderConfig(encoder=STACK, decoder=STACK)),
    ],
)
def test_both_cuts_are_scored_on_the_same_windows_whatever_the_family(layout, model):
    found = trained(Sentences(), layout, model)
    evaluation = ByCut(windows=20)
    assert isinstance(evaluation, Evaluation)
    pairs = list(evaluation._examples(found))
    assert len(pairs) == 20
    for random, sentence in pairs:
        whole = [np.concatenate([one.inputs, one.targets]).tolist() for one in (random, sentence)]
        assert whole[0] == whole[1]
        assert all(16 <= len(one.inputs) <= 48 for one in (random, sentence))
        before = found.text.tokenizer.decode(sentence.inputs)
        assert before.rstrip()[-1] in ".!?"
        assert before[-1] == " "
        assert found.text.tokenizer.decode(sentence.targets[:1]) != " "
    scores = evaluation(found)
    assert scores.keys() == {"loss", "first"}
    for by_cut in scores.values():
        assert by_cut.keys() == {"random", "sentence"}
        assert all(4 < value < 8 for value in by_cut.values())  # of a model that knows nothing
    assert scores == evaluation(found)


def test_the_loss_is_that_of_the_targets_after_the_cut():
    """The same as the held-out loss of the objective that cuts there, where all windows are cut in one place."""
    found = trained(Sentences(), Concatenate(), DecoderConfig(stack=STACK))
    evaluation = ByCut(least=0.5, most=0.5, windows=1000)
    pairs = list(evaluation._examples(found))
    batches = found.text.placed([random for random, _ in pairs])
    assert sum(float(batch.weights.sum()) for batch in batches) == 32 * len(pairs)
    expected = found.trainer.evaluate(found.params, batches)
    assert evaluation(found)["loss"] == pytest.approx({"random": expected, "sentence": expected}, rel=1e-6)


def test_what_cannot_be_cut_is_one_line():
    without = trained(Sentences("nothing {} ends {} here "), Concatenate(), DecoderConfig(stack=STACK))
    with pytest.raises(ValueError, match="no sentence of the test split ends") as raised:
        ByCut()(without)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="expected 0 < least <= most < 1"):
        ByCut(least=0.8)
    with pytest.raises(ValueError, match="ByCut.first = 0"):
        ByCut(first=0)

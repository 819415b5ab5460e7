"""Repetition of predictions against a pass over each row."""

import jax
import numpy as np
import pytest
from test_repetition_of_models import FAMILIES, trained

from research.evaluation.predictions import Predictions
from research.evaluation.trained import Evaluation
from research.models.families import EncoderConfig


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_counted_at_targets(family):
    found = trained(family)
    scores = Predictions(last=(3, 100))(found)
    model = found.trainer.model(found.params)
    repeated = wrong = right = total = 0
    texts = [window.ids.tolist() for window in found.text.windows[0]["test"]]
    for batch in found.text.held_out("test"):
        logits = np.asarray(model.outputs.logits(model.apply(jax.tree.map(np.asarray, batch)).hidden))
        for row, labels, weights in zip(logits.argmax(-1), batch.labels, batch.weights, strict=True):
            said = [(int(p), int(g)) for p, g, w in zip(row, labels, weights, strict=True) if w]
            targets = [gold for _, gold in said]
            if not targets:  # a row that fills the batch
                continue
            (text,) = {tuple(one) for one in texts if one[-len(targets) :] == targets}
            given = len(text) - len(targets)
            for place, (guess, gold) in enumerate(said, given):
                again = guess in text[max(0, place - 3) : place]
                repeated, wrong = repeated + again, wrong + (again and guess != gold)
                right, total = right + (guess == gold), total + 1
    assert scores["rep"]["3"] == pytest.approx(repeated / total)
    assert scores["wrep"]["3"] == pytest.approx(wrong / total)
    assert scores["accuracy"] == pytest.approx(right / total)
    assert scores["rep"]["100"] >= scores["rep"]["3"]
    assert 1 <= scores["uniq"] <= found.text.tokenizer.vocab_size
    assert scores["uniq_human"] > 1


def test_what_it_asks():
    assert isinstance(Predictions(), Evaluation)
    with pytest.raises(ValueError, match=r"Predictions.last = \(0,\)"):
        Predictions(last=(0,))
    classes = EncoderConfig(stack=FAMILIES["causal"][1].stack, classes=3)
    with pytest.raises(ValueError, match="Predictions is of tokens"):
        Predictions()(trained("causal", model=classes))

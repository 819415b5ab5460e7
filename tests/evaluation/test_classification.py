"""Classes told by a head and by the likelihood of texts, on one path."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.masks import Causal, Prefix, Slots
from research.batch import Batch, Tokens
from research.data.documents import Record
from research.data.layouts import Concatenate, InPlace, Split
from research.data.objectives import CausalLM, Classification, Seq2Seq
from research.data.pipeline import Data
from research.data.tokenizers import Bytes
from research.evaluation import classification
from research.evaluation.classification import Accuracy, label_scores, measures
from research.evaluation.trained import Evaluation, Trained
from research.models.config import StackConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from research.training.optimizers import AdamW
from research.training.step import Trainer

STACK = StackConfig(layers=1, width=16, heads=2, hidden=16)
LABELS = ("a", "even", "none of them")
SIZES = {label: len(label) + 1 for label in LABELS}  # with EOS
WRITING = {
    "causal": (Concatenate(), DecoderConfig(stack=STACK, mask=Causal())),
    "prefix": (Concatenate(), DecoderConfig(stack=STACK, mask=Prefix())),
    "encoder_decoder": (Split(), EncoderDecoderConfig(encoder=STACK, decoder=STACK)),
}
FAMILIES = {**WRITING, "encoder": (InPlace(), EncoderConfig(stack=STACK, classes=3))}


class Numbers:
    """A number, and one of three things to say of it, of which the last is rare."""

    def documents(self, data_dir=None):
        return tuple(Record.pair(f"{i}", str(i**3), LABELS[2 if i % 8 == 0 else i % 2]) for i in range(200))


@functools.cache
def trained(family, **changes):
    layout, model = FAMILIES[family]
    given = {"objective": Classification(labels=LABELS), "batch": 8, "window": 24, **changes}
    text = Data(corpus=Numbers(), layout=layout, near_duplicates=None, **given).load()
    trainer = Trainer(model, vocab=text.tokenizer.vocab_size, optimizer=AdamW(), steps=10)
    return Trained(trainer=trainer, params=trainer.initial(jax.random.key(0)).params, text=text, seed=0)


def asked(monkeypatch, found, records=7):
    """The examples that are scored."""
    seen = []

    def score(_, examples):
        seen.extend(examples)
        return np.zeros(len(examples))

    with monkeypatch.context() as patched:
        patched.setattr(classification, "log_likelihoods", score)
        label_scores(found, "test", records)
    return seen


def tokens(line, given=0):
    """A line in a row of 40, padding behind it."""
    ids, places = np.zeros((1, 40), np.int32), np.arange(40)[None]
    ids[0, : len(line)] = line
    slots = Slots.arange(40, (1,))
    real = (places < len(line)).astype(np.int32)
    return Tokens(ids, dataclasses.replace(slots, segment=real, prefix=places < given))


def literal(found, family, inputs, label):
    """The log-probability of each token of a label after those before it, one at a time, summed."""
    tokenizer, model = found.text.tokenizer, found.trainer.model(found.params)
    predicted, empty = jax.jit(type(model).__call__), np.zeros((1, 40), np.int32)
    total, read = 0.0, [tokenizer.bos] if family == "encoder_decoder" else [tokenizer.bos, *inputs]
    source, given = (tokens(inputs), 0) if family == "encoder_decoder" else (None, len(read))
    for token in [*tokenizer.encode(label), tokenizer.eos]:
        batch = Batch(tokens(read, given), empty, empty.astype(np.float32), source)
        logits = predicted(model, batch)[0, len(read) - 1]
        total += float(jax.nn.log_softmax(logits)[token])
        read = [*read, token]
    return total


@pytest.mark.parametrize("family", WRITING)
def test_what_a_generator_scores_is_the_summed_log_probability_of_each_label(family, monkeypatch):
    found = trained(family)
    scores, classes = label_scores(found, "test", 7)
    assert scores.shape == (7, 3)
    examples = asked(monkeypatch, found)
    for row in (0, 6):
        inputs = examples[row].inputs.tolist()
        expected = [literal(found, family, inputs, label) for label in LABELS]
        np.testing.assert_allclose(scores[row], expected, rtol=2e-6)
        number = int(found.text.tokenizer.decode(examples[row].inputs[:-1]))
        assert classes[row] == (2 if number % 8 == 0 else number % 2)  # as of its root


def test_what_an_encoder_scores_are_the_log_probabilities_of_its_head():
    found = trained("encoder", held_out=1000)
    scores, classes = label_scores(found, "test", 1000)
    model, batches = found.trainer.model(found.params), found.text.held_out("test")
    logits = np.concatenate([jax.jit(type(model).__call__)(model, batch)[:, 0] for batch in batches])
    np.testing.assert_allclose(scores, jax.nn.log_softmax(logits[: len(classes)]), atol=1e-6)
    truth = np.concatenate([batch.labels[:, 0] for batch in batches])[: len(classes)]
    assert classes.tolist() == truth.tolist()
    loss = found.trainer.evaluate(found.params, batches)
    assert measures(scores, classes)["loss"] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_knows_nothing_gives_known_numbers(family):
    """Of equal logits a head gives all classes alike, and a generator the shortest label most."""
    found = trained(family)
    found = dataclasses.replace(found, params=jax.tree.map(jnp.zeros_like, found.params))
    evaluation = Accuracy(records=1000)
    assert isinstance(evaluation, Evaluation)
    scores, (_, classes) = evaluation(found), label_scores(found, "test", 1000)
    shares = np.bincount(classes, minlength=3) / len(classes)
    assert all(shares > 0)
    token = 0.0 if family == "encoder" else math.log(found.text.tokenizer.vocab_size)
    losses = np.array([SIZES[label] * token for label in LABELS])
    normaliser = math.log(sum(math.exp(-loss) for loss in losses))
    expected = {
        "accuracy": shares[0],
        "balanced": 1 / 3,
        "macro_f1": 2 * shares[0] / (1 + shares[0]) / 3,
        "loss": float(shares @ losses) + normaliser,
        "chance": max(shares),
    }
    assert scores == pytest.approx(expected, rel=1e-5)


def test_known_scores_give_known_numbers():
    classes = np.array([0, 0, 0, 1, 1, 2])
    told = np.array([0, 0, 1, 1, 1, 0])
    scores = np.log(np.full((6, 4), 0.1))
    scores[np.arange(6), told] = np.log(0.7)
    found = measures(scores - 100.0, classes)  # a share of what could be said goes to no label
    assert found == pytest.approx(
        {
            "accuracy": 4 / 6,
            "balanced": (2 / 3 + 1 + 0) / 3,  # nothing is of the fourth class
            "macro_f1": (2 * 2 / 6 + 2 * 2 / 5 + 0) / 3,
            "loss": -(4 * math.log(0.7) + 2 * math.log(0.1)) / 6,
            "chance": 3 / 6,
        }
    )
    best = measures(np.log(np.eye(4)[classes] + 1e-30), classes)
    assert best == pytest.approx({**dict.fromkeys(best, 1.0), "loss": 0.0, "chance": 0.5}, abs=1e-9)


def test_a_class_that_is_told_and_never_there_counts_in_f1_only():
    scores = np.log(np.array([[0.9, 0.1], [0.2, 0.8]]))
    found = measures(scores, np.array([0, 0]))
    assert found["balanced"] == 0.5
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_labels_does_not_matter(family):
    found, order = trained(family), [2, 0, 1]
    other = trained(family, objective=Classification(labels=tuple(LABELS[i] for i in order)))
    params = found.params
    if family == "encoder":
        params = {**params, "head": {"kernel": params["head"]["kernel"][:, np.array(order)]}}
    other = dataclasses.replace(other, params=params)
    evaluation = Accuracy(records=16)
    assert evaluation(other) == pytest.approx(evaluation(found), rel=1e-6)


def test_all_families_are_asked_of_the_same_records(monkeypatch):
    """Of each label once."""
    texts = {}
    for family in FAMILIES:
        examples = asked(monkeypatch, trained(family))
        assert [one.label for one in examples] == [0] * 7 + [1] * 7 + [2] * 7
        lines = [one.inputs.tolist() for one in examples]
        assert lines[:7] == lines[7:14] == lines[14:]
        texts[family] = lines[:7]
    assert all(lines == texts["encoder"] for lines in texts.values())
    assert len({tuple(line) for line in texts["encoder"]}) == 7


def test_the_rows_of_a_batch_change_nothing():
    evaluation = Accuracy(records=7)
    assert evaluation(trained("prefix", batch=5)) == pytest.approx(evaluation(trained("prefix")), rel=1e-6)


def test_the_split_is_the_one_that_is_named():
    found = trained("causal")
    assert Accuracy(split="validation")(found) != Accuracy()(found)


@pytest.mark.parametrize("objective", [Seq2Seq(), CausalLM(loss="targets")])
def test_data_without_labels_is_one_line(objective):
    with pytest.raises(ValueError, match=f"Accuracy on {type(objective).__name__}: .*no labels") as raised:
        Accuracy()(trained("causal", objective=objective))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("classes", [None, 2])
def test_an_encoder_without_that_many_classes_is_one_line(classes):
    found = trained("encoder")
    config = EncoderConfig(stack=STACK, classes=classes)
    trainer = Trainer(config, vocab=Bytes().vocab_size, optimizer=AdamW(), steps=1)
    other = dataclasses.replace(found, trainer=trainer, params=trainer.initial(jax.random.key(0)).params)
    with pytest.raises(ValueError, match=f"EncoderConfig.classes = {classes}: expected 3") as raised:
        Accuracy()(other)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="Accuracy.records = 0"):
        Accuracy(records=0)

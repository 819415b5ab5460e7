"""Metrics of forgetting worked by hand, with the published variants, and a model on other corpora than its own."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from research.data.augmentation import TokenMasking
from research.data.documents import Document, Record
from research.data.layouts import Concatenate, InPlace
from research.data.objectives import CausalLM, Classification, PrefixLM, Seq2Seq
from research.data.pipeline import Data
from research.data.tokenizers import Bytes
from research.evaluation import forgetting
from research.evaluation.forgetting import Retention
from research.evaluation.likelihood import held_out
from research.evaluation.trained import Evaluation, Trained
from research.models.config import StackConfig
from research.models.families import DecoderConfig, EncoderConfig
from research.training.optimizers import AdamW
from research.training.step import Trainer

# Task 0 scores best after task 1, task 1 before its own training: every variant gives another number.
SCORES = np.array([[0.80, 0.75, 0.20], [0.90, 0.60, 0.30], [0.50, 0.45, 0.70]])
UNTRAINED = np.array([0.10, 0.25, 0.15])


def test_metrics_by_hand():
    assert forgetting.accuracy(SCORES) == pytest.approx((0.50 + 0.45 + 0.70) / 3)
    lost = (0.50 - 0.80) + (0.45 - 0.60)
    assert forgetting.backward_transfer(SCORES) == pytest.approx(lost / 2)
    assert forgetting.backward_transfer_gem(SCORES) == pytest.approx(lost / 3)
    ahead = (0.75 - 0.25) + (0.30 - 0.15)
    assert forgetting.forward_transfer(SCORES, UNTRAINED) == pytest.approx(ahead / 2)
    assert forgetting.forward_transfer_gem(SCORES, UNTRAINED) == pytest.approx(ahead / 3)
    assert forgetting.forgetting_chaudhry(SCORES) == pytest.approx(((0.90 - 0.50) + (0.75 - 0.45)) / 2)
    assert forgetting.forgetting_avalanche(SCORES) == pytest.approx(((0.80 - 0.50) + (0.60 - 0.45)) / 2)


def test_a_task_that_later_ones_improve_is_forgotten_less_than_nothing():
    """The best before the last task counts, not the best of all."""
    scores = np.array([[0.2, 0.0], [0.5, 0.9]])
    assert forgetting.forgetting_chaudhry(scores) == pytest.approx(-0.3)
    assert forgetting.forgetting_avalanche(scores) == pytest.approx(-0.3)


def test_the_summary_names_the_variants():
    found = {name: metric(SCORES) for name, metric in forgetting.SUMMARY.items()}
    assert found == pytest.approx(
        {"acc": 0.55, "bwt": -0.225, "bwt@gem": -0.15, "forgetting": 0.35, "forgetting@avalanche": 0.225}
    )


def test_one_task_has_nothing_to_forget():
    for metric in forgetting.SUMMARY.values():
        with pytest.raises(ValueError, match=r"scores of 1 task\(s\): expected at least 2"):
            metric(np.ones((1, 1)))
    for metric in (forgetting.forward_transfer, forgetting.forward_transfer_gem):
        with pytest.raises(ValueError, match=r"scores of 1 task\(s\): expected at least 2"):
            metric(np.ones((1, 1)), np.ones(1))


@given(arrays(float, (4, 4), elements=st.floats(-5, 5)))
def test_how_the_variants_relate(scores):
    gem = forgetting.backward_transfer_gem(scores)
    assert gem == pytest.approx(forgetting.backward_transfer(scores) * 3 / 4, abs=1e-12)
    first, best = forgetting.forgetting_avalanche(scores), forgetting.forgetting_chaudhry(scores)
    assert best >= first - 1e-12  # the best is at least the first
    learned = np.tril(scores) - np.triu(np.full((4, 4), 100.0), 1)
    never_better = np.minimum(learned, np.diag(learned))
    np.testing.assert_allclose(
        forgetting.forgetting_chaudhry(never_better),
        forgetting.forgetting_avalanche(never_better),
        atol=1e-12,
    )


def test_what_is_left_of_a_score():
    assert forgetting.retained(0.8, 0.6) == pytest.approx(0.75)
    assert forgetting.retained(0.8, 0.6, chance=0.5) == pytest.approx(1 / 3)
    assert forgetting.retained(0.8, 0.5, chance=0.5) == 0
    with pytest.raises(ValueError, match=r"a score of 0.5 before, expected more than chance = 0.5"):
        forgetting.retained(0.5, 0.4, chance=0.5)
    assert forgetting.delta_nll(2.0, 2.5) == 0.5


@dataclasses.dataclass(frozen=True)
class Letters:
    """Documents of random letters."""

    letters: str
    count: int = 40

    def documents(self, data_dir=None):
        rng = np.random.default_rng(0)
        return tuple(
            Document(f"{i:02}", "".join(rng.choice(list(self.letters), 60))) for i in range(self.count)
        )


@dataclasses.dataclass(frozen=True)
class Sums:
    """Records."""

    def documents(self, data_dir=None):
        return tuple(Record.pair(f"{i}", f"{i}+{i}=", f"{2 * i}") for i in range(100))


def trained(objective=CausalLM(), layout=Concatenate(), corpus=Letters("abc"), config=DecoderConfig, **data):  # noqa: B008
    trainer = Trainer(
        config(stack=StackConfig(layers=1, width=16, heads=2, hidden=16)),
        vocab=264,
        optimizer=AdamW(),
        steps=1,
    )
    settings = {"window": 16, "batch": 4, "held_out": 6, "near_duplicates": None, "test": 0.2} | data
    text = Data(corpus=corpus, objective=objective, layout=layout, **settings).load()
    params = trainer.initial(jax.random.key(0)).params
    return Trained(trainer=trainer, params=params, text=text, seed=0)


class Picky:
    """A transform that takes windows of one corpus only."""

    def __call__(self, window, rng, tokenizer):
        if set(tokenizer.decode(window.ids)) - set("abc"):
            raise ValueError("not of this corpus")
        return window


def test_other_corpora_are_read_as_the_run_reads_its_own(tmp_path):
    """Those of a run on that corpus, whatever is done to training windows of this one."""
    own, other = Letters("abc"), Letters("xyz", 50)
    windows = len(trained(corpus=own).text.windows[0]["train"])
    np.save(tmp_path / "weights.npy", np.ones(windows))
    one = trained(
        noise=TokenMasking(rate=0.5),
        pack=2,
        transforms=(Picky(),),
        weights=str(tmp_path / "weights.npy"),
        corpus=own,
    )
    evaluation = Retention(corpora=(("own", own), ("other", other)), split="validation")
    assert isinstance(evaluation, Evaluation)
    found = evaluation(one)
    for name, corpus in evaluation.corpora:
        there = trained(corpus=corpus)
        batches = there.text.held_out("validation")
        want = held_out(there.trainer, there.params, batches, there.text.tokenizer)
        assert {measure: values[name] for measure, values in found.items()} == want
        assert want.keys() == {"loss", "bits_per_byte"}
    assert found["loss"]["own"] != found["loss"]["other"]


def test_tuning_on_records_is_measured_on_free_text():
    one = trained(Seq2Seq(), corpus=Sums())
    other = Letters("xyz")
    with pytest.raises(
        ValueError, match=r"Retention\.corpora, 'other': Seq2Seq needs a record.*Retention\.objective"
    ):
        Retention(corpora=(("other", other),))(one)
    found = Retention(corpora=(("other", other),), objective=CausalLM())(one)
    there = trained(corpus=other)
    assert found["loss"]["other"] == there.trainer.evaluate(there.params, there.text.held_out("test"))


def test_an_objective_of_its_own_stands_above_all_of_the_run():
    other = (("other", Letters("xyz")),)
    one = trained(evaluation=PrefixLM())
    prefix, causal = (Retention(corpora=other, objective=own)(one) for own in (None, CausalLM()))
    there = trained(corpus=Letters("xyz"))
    assert causal["loss"]["other"] == there.trainer.evaluate(there.params, there.text.held_out("test"))
    there = trained(PrefixLM(), corpus=Letters("xyz"))
    assert prefix["loss"]["other"] == there.trainer.evaluate(there.params, there.text.held_out("test"))


def test_no_tokenizer_is_made_of_the_other_text():
    made = []

    @dataclasses.dataclass(frozen=True)
    class Trained:
        def ready(self, texts, data_dir=None):
            made.append(self)
            return Bytes()

    one = trained(tokenizer=Trained())
    Retention(corpora=(("other", Letters("xyz")),))(one)
    assert len(made) == 1


def test_a_model_of_classes_has_no_likelihood():
    @dataclasses.dataclass(frozen=True)
    class Parity:
        def documents(self, data_dir=None):
            return tuple(Record.pair(f"{i}", f"{i}", "odd" if i % 2 else "even") for i in range(100))

    def encoder(stack):
        return EncoderConfig(stack=stack, classes=2)

    one = trained(Classification(labels=("odd", "even")), InPlace(), Parity(), config=encoder)
    with pytest.raises(ValueError, match=r"Retention is of tokens, but EncoderConfig\.classes = 2"):
        Retention(corpora=(("other", Letters("xyz")),))(one)


@pytest.mark.parametrize("names", [(), ("a", "a"), ("a.b",), ("",)])
def test_names_are_labels_of_a_path(names):
    with pytest.raises(ValueError, match=r"Retention\.corpora has the names .*different and without dots"):
        Retention(corpora=tuple((name, Letters("abc")) for name in names))

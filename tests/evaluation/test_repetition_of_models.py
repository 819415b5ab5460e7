"""How much tiny models of each family repeat what they write."""

import dataclasses

import jax
import numpy as np
import pytest

from research.attention.masks import Causal, Prefix
from research.attention.positions import Learned
from research.data.documents import Document
from research.data.layouts import Concatenate, Split
from research.data.objectives import PrefixLM, Seq2Seq
from research.data.pipeline import Data
from research.data.synthetic import Rearrangement
from research.data.tokenizers import Symbols
from research.evaluation.samples import METRICS, Repetition
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
FEW = Repetition(prompts=5, prompt=6, length=12, temperatures=(0.0, 1.0), n=2, rows=4)


@dataclasses.dataclass(frozen=True)
class Letters:
    """Documents of random letters."""

    def documents(self, data_dir=None):
        rng = np.random.default_rng(0)
        return tuple(Document(f"{i:02}", "".join(rng.choice(list("abcdefgh"), 90))) for i in range(40))


def trained(family, *, model=None, corpus=None, objective=None, **changes):
    layout, usual = FAMILIES[family]
    data = Data(
        corpus=corpus or Letters(),
        objective=objective or PrefixLM(),
        layout=layout,
        window=24,
        batch=8,
        **changes,
    )
    text = data.load()
    trainer = Trainer(model or usual, vocab=text.tokenizer.vocab_size, optimizer=AdamW(), steps=10)
    return Trained(trainer=trainer, params=trainer.initial(jax.random.key(0)).params, text=text, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_measured_is_the_likeliest_text_of_full_passes(family):
    """Greedy samples against the argmax of a pass over prompt and sample, laid out as the family's examples are."""
    found = trained(family)
    prompts, human = FEW.pairs(found)
    assert {len(line) for line in prompts} == {6}
    assert {len(line) for line in human} == {12}
    samples = FEW.samples(found, prompts, 0.0)
    model, text, layout = found.trainer.model(found.params), found.text, FAMILIES[family][0]
    objective = PrefixLM(least=0.25, most=0.25)  # of 24 tokens 6
    for given, line in zip(prompts, samples, strict=True):
        assert 0 < len(line) <= 12
        whole = np.concatenate([given, line, np.zeros(18 - len(line), np.int32)]).astype(np.int32)
        window = dataclasses.replace(text.windows[0]["test"][0], ids=whole)
        example = objective(window, np.random.default_rng(0), text.tokenizer)
        assert example.inputs.tolist() == given.tolist()
        (batch,) = text.placed([example])[:1]
        row = np.asarray(jax.jit(type(model).__call__)(model, batch))[0].argmax(-1)
        assert row[batch.weights[0] > 0][: len(line)].tolist() == line.tolist()
    assert layout == text.data.layout


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_numbers_by_temperature_and_of_what_people_wrote(family):
    found = trained(family)
    assert isinstance(FEW, Evaluation)
    scores = FEW(found)
    assert set(METRICS) | {"tokens"} <= set(scores)
    for name in ("tokens", *METRICS):
        assert set(scores[name]) == {"0", "1"}
        assert np.isfinite([*scores[name].values(), scores["human"][name]]).all()
    prompts, human = FEW.pairs(found)
    assert scores["human"]["distinct"] == METRICS["distinct"](human, 2)
    assert scores["seq_rep@welleck"]["1"] == METRICS["seq_rep@welleck"](FEW.samples(found, prompts, 1.0), 2)
    # An untrained model's draws are noise, its likeliest text goes in circles.
    assert scores["seq_rep@welleck"]["0"] > scores["seq_rep@welleck"]["1"]


def test_samples_depend_on_seed_and_prompt_and_not_on_the_batch():
    found = trained("causal")
    prompts, _ = FEW.pairs(found)
    usual = FEW.samples(found, prompts, 1.0)
    again = dataclasses.replace(FEW, rows=2).samples(found, prompts, 1.0)
    assert [line.tolist() for line in usual] == [line.tolist() for line in again]
    other = FEW.samples(dataclasses.replace(found, seed=1), prompts, 1.0)
    assert [line.tolist() for line in usual] != [line.tolist() for line in other]


def test_t50_says_whether_it_is_censored(monkeypatch):
    found = trained("causal")
    loop, none = np.tile(np.arange(3, dtype=np.int32), 4), np.arange(12, dtype=np.int32)

    def scores(rates):
        lines = dict(zip(FEW.temperatures, rates, strict=True))
        monkeypatch.setattr(
            Repetition,
            "samples",
            lambda self, trained, prompts, t: [loop] * lines[t] + [none] * (len(prompts) - lines[t]),
        )
        return FEW(found)

    assert scores((5, 0))["t50"]["value"] == pytest.approx(0.5, abs=1e-3)
    assert scores((5, 0))["loop@holtzman-code"] == {"0": 1.0, "1": 0.0}
    assert scores((5, 0))["t50"]["censored"] == 0
    assert scores((2, 0))["t50"] == {"value": 0, "low": 0, "high": 0, "censored": -1}
    assert scores((5, 5))["t50"] == {"value": 1, "low": 1, "high": None, "censored": 1}


def test_what_samples_do_not_have_is_left_out():
    short = FEW.measured([np.array([3, 3, 3], np.int32)])
    assert "diversity@welleck" not in short
    assert "zipf" not in short
    assert short["seq_rep@welleck"] == 0.5
    assert FEW.measured([np.zeros(0, np.int32)]) == {
        "tokens": 0,
        "uniq": 0,
        "loop@holtzman-code": 0,
        "loop@holtzman-paper": 0,
    }


def test_a_record_gives_what_it_gives():
    corpus = Rearrangement(rule="sort", least=3, most=5)
    found = trained(
        "causal", corpus=corpus, objective=Seq2Seq(), tokenizer=Symbols(size=8), held_out=30, examples=64
    )
    windows = found.text.windows[0]["test"]
    prompts, human = dataclasses.replace(FEW, prompts=30).pairs(found)
    assert [len(line) for line in prompts] == [windows[i].given for i in range(30)]
    assert all(
        sorted(line[:-1] if len(line) > len(ids) else line) for ids, line in zip(prompts, human, strict=True)
    )


def test_what_cannot_be_measured_is_one_line():
    found = trained("causal")
    for model, wrong in (
        (EncoderConfig(stack=STACK), "Repetition of an Encoder"),
        (
            DecoderConfig(stack=dataclasses.replace(STACK, positions=Learned(length=16))),
            r"Repetition.length = 12 after 6 tokens: 19 are read.*end at 16",
        ),
    ):
        trainer = Trainer(model, vocab=found.text.tokenizer.vocab_size, optimizer=AdamW(), steps=1)
        params = trainer.initial(jax.random.key(0)).params
        with pytest.raises(ValueError, match=wrong) as raised:
            FEW(dataclasses.replace(found, trainer=trainer, params=params))
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="Repetition.prompt = 24: a window of 24 tokens"):
        dataclasses.replace(FEW, prompt=24)(found)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"prompts": 0}, "prompts = 0"),
        ({"prompt": 0}, "prompt = 0"),
        ({"temperatures": ()}, "temperatures"),
        ({"temperatures": (1.0, 0.5)}, "temperatures"),
        ({"temperatures": (-1.0,)}, "temperatures"),
    ],
)
def test_settings_that_are_none_are_refused(changes, wrong):
    with pytest.raises(ValueError, match=rf"Repetition\.{wrong}.*expected at least"):
        Repetition(**changes)

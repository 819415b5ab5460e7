"""What is timed of an experiment, and that it is the answer to a window."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import experiment, grouping, timing
from experiments.experiment import Experiment
from research.attention.masks import Causal, Prefix
from research.data.documents import Document, Record
from research.data.layouts import Concatenate, InPlace, Split
from research.data.objectives import CausalLM, Classification, MaskedLM, PrefixLM
from research.data.pipeline import Data
from research.data.streams import Stream
from research.models.config import StackConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig

STACK = StackConfig(layers=2, width=16, heads=2, hidden=16)
FAMILIES = {
    "causal": (Concatenate(), DecoderConfig(stack=STACK, mask=Causal())),
    "prefix": (Concatenate(), DecoderConfig(stack=STACK, mask=Prefix())),
    "encoder_decoder": (Split(), EncoderDecoderConfig(encoder=STACK, decoder=STACK)),
    "encoder": (InPlace(), EncoderConfig(stack=STACK, classes=2)),
}


@dataclasses.dataclass(frozen=True)
class Signs:
    """Lines of 1 to 15 digits, with a class."""

    def documents(self, data_dir=None):
        lines = [(str(7**i)[: 1 + i % 15], ("odd", "even")[i % 2]) for i in range(1, 200)]
        return tuple(Record.pair(f"{i:03}", line, label) for i, (line, label) in enumerate(lines))


@dataclasses.dataclass(frozen=True)
class Letters:
    """Free text."""

    def documents(self, data_dir=None):
        return tuple(Document(f"{i}", "".join(chr(97 + i * j % 26) for j in range(90))) for i in range(1, 60))


def planned(family, objective=None, corpus=None, layout=None, evaluation=None):
    usual, model = FAMILIES[family]
    data = Data(
        corpus=corpus or Signs(),
        objective=objective or Classification(labels=("odd", "even")),
        evaluation=evaluation,
        layout=layout or usual,
        **{"window": 24, "batch": 4, "near_duplicates": None},
    )
    return Experiment(model=model, data=data, steps=10)


def window(one):
    return timing._window(experiment.dataset(one.data, None))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_is_that_of_the_full_pass(family):
    """The class of an encoder, and the first token that a generator is asked for."""
    one = planned(family)
    functions = experiment.trainer(one, experiment.dataset(one.data, None).tokenizer.vocab_size)
    params, batch = functions.initial(jax.random.key(1), one.numbers).params, window(one)
    answering = timing._told if family == "encoder" else timing._begun
    answer, read = answering(functions, batch)
    found = jax.jit(answer)(params, *read)
    model = functions.model(params)
    expected = jax.jit(type(model).__call__)(model, batch)[0].argmax(-1)[np.argmax(batch.weights[0] > 0)]
    if family == "encoder":
        assert found.tolist() == [[int(expected)]]
    else:
        token, cache = found
        assert token.tolist() == [int(expected)]
        kept = read[0].ids.shape[1] + int(batch.weights.sum())  # room for all of the answer
        assert cache.own.slots.segment.shape == (1, kept)
    (line, *source) = [tokens for tokens in (batch.target, batch.source) if tokens is not None]
    (begun, *sources) = jax.tree.leaves([getattr(part, "target", part) for part in read], is_leaf=_is_tokens)
    assert begun.ids.tolist() == line.ids[:, : begun.ids.shape[1]].tolist()
    lengths = {"encoder_decoder": 1, "encoder": line.ids.shape[1]}
    assert begun.ids.shape[1] == lengths.get(family, line.ids.shape[1] - int(batch.weights.sum()) + 1)
    assert [part.ids.tolist() for part in sources] == [part.ids.tolist() for part in source]


def _is_tokens(value):
    return hasattr(value, "slots")


def test_one_window_of_median_length_is_answered_by_all_without_padding():
    batches = {family: window(planned(family)) for family in FAMILIES}
    inputs = batches["encoder_decoder"].source.ids[0].tolist()
    text = experiment.dataset(planned("causal").data, None)
    sizes = sorted(each.given + 1 for each in text.windows[0]["test"])  # with EOS
    assert len(inputs) == sizes[len(sizes) // 2]
    assert sizes[0] < len(inputs) < sizes[-1]
    for family in ("causal", "prefix", "encoder"):
        assert batches[family].target.ids[0, 1 : len(inputs) + 1].tolist() == inputs
    for batch in batches.values():
        assert len(batch.labels) == 1
        assert batch.target.slots.segment.all()


def test_free_text_and_masked_text_are_answered_too():
    text = Letters()
    half = window(planned("causal", CausalLM(), text, evaluation=PrefixLM()))
    assert half.weights[0].tolist() == [0] * 12 + [1] * 12
    assert timing.latency_seconds(planned("causal", CausalLM(loss="targets"), text), None) > 0
    one = planned("causal", MaskedLM(), text, InPlace())
    encoder = dataclasses.replace(one, model=EncoderConfig(stack=STACK))
    assert timing.latency_seconds(encoder, None) > 0


def test_latency_is_the_median_of_calls_after_those_that_compile(monkeypatch):
    """Of calls that take 1000, 1000, 1000, 1, 2, 3, ... seconds."""
    spent = [1000.0] * timing.WARM + [float(1 + i) for i in range(timing.CALLS)]
    clock = itertools.accumulate(itertools.chain.from_iterable((0.0, one) for one in spent))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.latency_seconds(planned("encoder"), None) == (1 + timing.CALLS) / 2


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (planned("causal", CausalLM(), Letters()), "give nothing before what is asked"),
        (planned("causal", CausalLM(), Letters(), Stream()), "Data.layout = Stream"),
    ],
)
def test_what_gives_nothing_has_no_latency_and_says_so_in_one_line(one, message):
    with pytest.raises(ValueError, match=message) as raised:
        timing.latency_seconds(one, None)
    assert "\n" not in str(raised.value)


def test_speed_is_tokens_of_a_batch_by_seconds_of_a_step(monkeypatch):
    monkeypatch.setattr(experiment, "cost", lambda *_: SimpleNamespace(tokens=10))
    monkeypatch.setattr(grouping, "speed", lambda *_: 2.0)
    assert timing.tokens_per_second(planned("causal"), None) == 5.0


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (("loss", "parameters", "wall_seconds"), []),
        (("loss", "latency"), ["latency_seconds"]),
        (("latency", "tokens_per_second"), ["tokens_per_second", "latency_seconds"]),
        (("median(timing.latency_seconds)", "metrics.positions.loss.all"), ["latency_seconds"]),
    ],
)
def test_columns_say_what_is_timed(columns, found):
    assert timing.asked(columns) == found

"""Tasks of other lengths: an oracle that sees its window alone answers just what its window holds."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.experiment import hash_of
from research.attention.positions import Learned, Rotary
from research.attention.recurrence import Recurrent
from research.data.haystacks import Needle, Passkey
from research.data.layouts import Concatenate, Split
from research.data.objectives import CausalLM, Seq2Seq
from research.data.pipeline import Data
from research.data.synthetic import MQAR, Rearrangement
from research.data.tokenizers import Bytes, Symbols
from research.evaluation.checked import Checked
from research.evaluation.tasks import Grid, Tasks, answered
from research.evaluation.trained import Evaluation, Trained
from research.models.config import StackConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from research.training.optimizers import AdamW
from research.training.step import Trainer

STACK = StackConfig(layers=1, width=16, heads=2, hidden=16)
DECODER = DecoderConfig(stack=STACK)


class Oracle(Trainer):
    """A model that makes of the `window` tokens up to each place what `answer` makes of them."""

    def __init__(self, vocab, window, answer):
        super().__init__(DECODER, vocab=vocab, optimizer=AdamW(), steps=1)
        self._size, self._window, self._answer = vocab, window, answer

    def memory(self, rows):
        return None

    def model(self, params):
        return _Seer(self._size, self._window, self._answer)


class _Seer:
    def __init__(self, vocab, window, answer):
        self._vocab, self._window, self._answer = vocab, window, answer
        self.outputs = self

    def apply(self, batch):
        def told(ids, asked):
            found = np.zeros(ids.shape, np.int32)
            for row, place in zip(*np.nonzero(asked), strict=True):
                seen = ids[row, max(place + 1 - self._window, 0) : place + 1]
                found[row, place] = self._answer(seen)
            return found

        ids = jnp.asarray(batch.target.ids)
        told_ids = jax.pure_callback(
            told, jax.ShapeDtypeStruct(ids.shape, jnp.int32), ids, jnp.asarray(batch.weights)
        )
        return dataclasses.make_dataclass("Out", ["hidden"])(jax.nn.one_hot(told_ids, self._vocab))

    def logits(self, states):
        return states


def data(corpus, tokenizer, objective, window, layout=None):
    layout = layout or Concatenate()
    return Data(
        corpus=corpus,
        tokenizer=tokenizer,
        objective=objective,
        layout=layout,
        window=window,
        batch=8,
        held_out=8,
    ).load()


def seen(functions, text, params=None):
    return Trained(trainer=functions, params=params, text=text, seed=0)


def recalled(ids):
    """The value that followed the key at the end when it first came; token 0 where it did not."""
    (places,) = np.nonzero(ids[:-1] == ids[-1])
    return ids[places[0] + 1] if len(places) else 0


@pytest.fixture(scope="module")
def recall():
    return data(MQAR(pairs=4, tokens=32), Symbols(size=64), CausalLM(loss="targets"), 32)


@pytest.mark.parametrize("window", [8, 20, 33, 64])
def test_recall_ends_where_the_pair_leaves_the_window(recall, window):
    tasks = {str(n): MQAR(pairs=4, tokens=n, power=1.0) for n in (32, 64)}
    evaluation = Tasks(tasks=tuple(tasks.items()), samples=30)
    assert isinstance(evaluation, Evaluation)
    assert isinstance(evaluation, Checked)
    found = evaluation(seen(Oracle(recall.tokenizer.vocab_size, window, recalled), recall))
    for label, task in tasks.items():
        rng, shares = np.random.default_rng([2, 0]), []
        for _ in range(30):
            sample = task.sample(rng, recall.tokenizer)
            places = np.flatnonzero(sample.scored)
            # The key stands right before its value, there as here.
            gaps = [place - np.flatnonzero(sample.ids == sample.ids[place])[0] for place in places]
            shares.append([gap < window for gap in gaps])
        assert found["tokens"][label] == pytest.approx(np.mean(shares))
        assert found["exact"][label] == pytest.approx(np.mean(np.all(shares, axis=1)))
    assert hash_of(evaluation) != hash_of(dataclasses.replace(evaluation, samples=31))
    if window == 64:
        assert found["exact"] == {"32": 1.0, "64": 1.0}


def spelled(ids):
    """The next digit of the number that the text tells, where it does."""
    text = Bytes().decode(np.asarray(ids))
    told = re.search(r"pass key is (\d{5})\. Keep", text)
    if told is None:
        return 0
    written = text.rpartition("pass key?\n<eos>")[2]
    return int(Bytes().encode(told[1])[len(written)]) if len(written) < 5 else Bytes().eos


@pytest.mark.parametrize("window", [300, 600])
def test_a_passkey_is_found_as_far_back_as_the_window_reaches(window):
    text = data(Passkey(tokens=400), Bytes(), Seq2Seq(), 400)
    grid = Grid(task=Passkey(tokens=400), lengths=(400, 800), depths=(0.0, 0.5, 1.0), samples=3)
    found = grid(seen(Oracle(text.tokenizer.vocab_size, window, spelled), text))
    for length, row in found["exact"].items():
        for depth, share in row.items():
            # Behind the sentence: what is left of the filler, the question and the answer; before it: its beginning.
            back = (1 - float(depth)) * (int(length) - 140) + 100
            if abs(back - window) > 60:
                assert share == (back < window), (length, depth)
        assert found["by_length"][length] == pytest.approx(np.mean(list(row.values())))
    assert found["exact"]["400"]["1"] == 1.0
    assert found["exact"]["800"]["0"] == 0.0


def test_models_of_every_family_are_asked():
    """Untrained ones know next to nothing."""
    text = data(Rearrangement(most=6), Symbols(size=64), Seq2Seq(), 16, Split())
    config = EncoderDecoderConfig(encoder=STACK, decoder=STACK)
    functions = Trainer(config, vocab=text.tokenizer.vocab_size, optimizer=AdamW(), steps=1)
    params = functions.initial(jax.random.key(0)).params
    found = answered(seen(functions, text, params), Rearrangement(most=12), 20)
    assert 0 <= found["exact"] <= found["tokens"] < 0.3


def test_what_cannot_be_asked():
    tasks = Tasks(tasks=(("long", MQAR(tokens=128)),))
    with pytest.raises(ValueError, match=r"Tasks\.tasks up to 128: windows of up to 128 tokens, but Learned"):
        tasks.check(DecoderConfig(stack=dataclasses.replace(STACK, positions=Learned(length=64))))
    tasks.check(DecoderConfig(stack=dataclasses.replace(STACK, positions=Rotary())))
    with pytest.raises(ValueError, match="asks for tokens, which an Encoder does not write"):
        tasks.check(EncoderConfig(stack=STACK))
    remembering = DecoderConfig(stack=dataclasses.replace(STACK, memory=Recurrent(length=4)))
    with pytest.raises(ValueError, match=r"Tasks\.tasks are lines of their own, but StackConfig\.memory ="):
        tasks.check(remembering)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Tasks(tasks=()), "expected at least one of each"),
        (lambda: Tasks(tasks=(("one", MQAR()),), samples=0), "Tasks.samples = 0"),
        (lambda: Grid(task=Needle(tokens=900), lengths=()), r"Grid\.lengths = \(\)"),
    ],
)
def test_settings_that_make_no_sense(make, said):
    with pytest.raises(ValueError, match=said):
        make()

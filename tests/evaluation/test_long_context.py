"""Loss by length of context: windows, losses known by hand, and a tiny model read token by token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.attention.masks import Full, Prefix
from research.attention.positions import Learned, Rotary
from research.attention.recurrence import Recurrent
from research.data.documents import Document, Record
from research.data.layouts import Concatenate, Split
from research.data.objectives import CausalLM, Example, PrefixLM, Seq2Seq
from research.data.pipeline import Data
from research.evaluation.long_context import (
    LengthCurve,
    by_position,
    effective_context,
    icl_score,
    non_overlapping,
    sliding,
    stretches,
    token_losses,
)
from research.evaluation.trained import Evaluation, Trained
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from research.training.optimizers import AdamW
from research.training.step import Trainer

STACK = StackConfig(layers=1, width=16, heads=2, hidden=16)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Documents of random letters."""

    length: int = 150

    def documents(self, data_dir=None):
        rng = np.random.default_rng(0)
        return tuple(
            Document(f"{i:02}", "".join(rng.choice(list("abcdefgh"), self.length + i))) for i in range(40)
        )


@dataclasses.dataclass(frozen=True)
class Sums:
    """Records."""

    def documents(self, data_dir=None):
        return tuple(Record.pair(f"{i}", f"{i}+{i}=", f"{2 * i}") for i in range(100))


DECODER = DecoderConfig(stack=STACK)


@functools.cache
def trainer(config=DECODER):
    return Trainer(config, vocab=264, optimizer=AdamW(), steps=1)


@functools.cache
def parameters(config=DECODER):
    return trainer(config).initial(jax.random.key(0)).params


class Known(Trainer):
    """The loss of a token is a function of its position, whatever the model."""

    def __init__(self, loss):
        super().__init__(DECODER, vocab=264, optimizer=AdamW(), steps=1)
        self._known = loss

    def loss(self, params, batch, key=None):
        each = self._known(jnp.asarray(batch.target.slots.position, jnp.float32))
        return jnp.sum(each * batch.weights), jnp.sum(batch.weights)


@functools.cache
def read(**settings):
    sizes = {"window": 24, "batch": 4, "near_duplicates": None, "test": 0.2}
    plain = {"corpus": Noise(), "objective": CausalLM(), "layout": Concatenate()}
    return Data(**(plain | sizes | settings)).load()


def trained(config=DECODER, functions=None, place=lambda some: some, **data):
    functions, params = functions or trainer(config), parameters(config)
    return Trained(trainer=functions, params=params, text=read(**data), seed=0, place=place)


def never(batches):
    raise AssertionError("something was computed")


@jax.jit
def _logits(model, batch):
    return model(batch)


@given(st.data())
def test_every_token_is_scored_once_by_any_length_and_stride(data):
    first = data.draw(st.integers(0, 40))
    stop = first + data.draw(st.integers(1, 80))
    length = data.draw(st.integers(1, 50))
    stride = data.draw(st.integers(1, length))
    for spans in (non_overlapping(first, stop, length), sliding(first, stop, length, stride)):
        assert [token for span in spans for token in range(span.scored, span.stop)] == list(
            range(first, stop)
        )
        assert all(0 <= span.start <= span.scored < span.stop <= span.start + length for span in spans)
    assert all(span.start == span.scored for span in non_overlapping(first, stop, length))
    for span in sliding(first, stop, length, stride):
        assert span.start == 0 or span.stop - span.start == length
        assert span.stop - span.scored <= stride


def test_windows_by_hand():
    assert non_overlapping(3, 10, 4) == [(3, 3, 7), (7, 7, 10)]
    assert sliding(3, 10, 4, 3) == [(2, 3, 6), (5, 6, 9), (6, 9, 10)]
    assert sliding(2, 5, 3, 1) == [(0, 2, 3), (1, 3, 4), (2, 4, 5)]
    assert sliding(0, 8, 4, 4) == non_overlapping(0, 8, 4)
    with pytest.raises(ValueError, match=r"stride = 5 in windows of 4 tokens: expected 1 to 4"):
        sliding(0, 8, 4, 5)


def test_both_protocols_of_losses_that_are_known():
    """The loss is 16 - position: what is in a window says what its mean has to be."""
    curve = LengthCurve(lengths=(4, 8, 16), stride=2, stretches=3, tokens=20)
    assert isinstance(curve, Evaluation)
    found = curve(trained(functions=Known(lambda position: 16 - position)))
    # 20 tokens in windows of 8: positions 0-7, 0-7, 0-3.
    assert found["non_overlapping"] == {
        "4": 16 - 1.5,
        "8": pytest.approx(16 - (28 + 28 + 6) / 20),
        "16": pytest.approx(16 - (120 + 6) / 20),
    }
    assert found["sliding"] == {"4": 13.5, "8": 9.5, "16": 1.5}  # the last two positions
    assert found["by_position"] == {
        "0": 16,
        "1": 15,
        "2": 13.5,
        "4": pytest.approx(16 - 5.5),
        "8": pytest.approx(16 - 11.5),
    }
    assert found["icl_score"] == (16 - 15) - (16 - 1)  # tenths of 16 tokens are one token
    assert found["effective_context"] == 16
    assert found["tokens"] == 3 * 20


@pytest.mark.parametrize(("horizon", "found"), [(3, 4), (8, 16), (17, 32), (200, 64)])
def test_the_effective_context_of_a_model_that_sees_so_far(horizon, found):
    """At a stride of 1 a window of c tokens leaves c - 1 before each: enough as soon as c > horizon."""
    lengths = (4, 8, 16, 32, 64)
    assert effective_context({c: 3 - min(c - 1, horizon) / 100 for c in lengths}, 1e-9) == found
    curve = LengthCurve(lengths=lengths, stride=1, stretches=2, tokens=64, eps=1e-4)
    known = Known(lambda position: 3 - jnp.minimum(position, horizon) / 100)
    assert curve(trained(functions=known))["effective_context"] == found


def test_the_effective_context_grants_eps():
    losses = {8: 2.2, 16: 2.05, 32: 2.0}
    assert [effective_context(losses, eps) for eps in (0.0, 0.06, 0.3)] == [32, 16, 8]
    assert effective_context({8: 2.0, 16: 3.0}, 0.0) == 8  # longer is worse


def test_positions_and_what_is_learned_in_context():
    losses, positions = np.array([5.0, 4, 3, 2, 1, 1, 4]), np.array([0, 1, 2, 3, 4, 5, 0])
    assert by_position(losses, positions) == {"0": 4.5, "1": 4.0, "2": 2.5, "4": 1.0}
    assert icl_score(losses, positions, early=(1, 3), late=(4, 6)) == 1 - 3.5


def test_stride_1_is_reading_the_last_tokens_before_each_token():
    one = trained()
    curve = LengthCurve(lengths=(5, 9), stride=1, stretches=2, tokens=10)
    found = curve(one)["sliding"]
    model, lines = one.trainer.model(one.params), stretches(one.text, "test", 18, 2, "here")
    assert len(lines) == 2
    for length in (5, 9):
        targets = [ids[token - length + 1 : token + 1] for ids in lines for token in range(8, 18)]
        assert {len(read) for read in targets} == {length}
        batches = one.text.placed([Example(read[:0], read, np.ones(length, np.float32)) for read in targets])
        shares = np.concatenate([jax.nn.log_softmax(_logits(model, batch)[:, -1]) for batch in batches])
        losses = [-shares[row, read[-1]] for row, read in enumerate(targets)]  # of the last token alone
        assert found[str(length)] == pytest.approx(np.mean(losses), rel=1e-5)


def test_windows_as_long_as_those_of_training_have_the_loss_of_the_trainer():
    one = trained()
    curve = LengthCurve(lengths=(24,), stride=24, stretches=100, tokens=24)
    windows = [ids[i : i + 24] for ids in _documents_of(one.text) for i in range(0, len(ids) - 23, 24)]
    found = curve(one)
    assert found["tokens"] == 24 * len(windows)
    loss = one.trainer.evaluate(one.params, one.text.held_out("test"))
    assert found["non_overlapping"]["24"] == pytest.approx(loss, rel=1e-5)
    assert found["sliding"] == found["non_overlapping"]


def test_stretches_are_spread_over_the_split_and_no_more_than_are_held_out():
    every, three, two = (
        stretches(read(held_out=held_out), "test", 50, most, "here")
        for most, held_out in ((999, 999), (3, 999), (3, 2))
    )
    assert [line.tolist() for line in three] == [every[i].tolist() for i in (0, (len(every) - 1) // 2, -1)]
    assert [line.tolist() for line in two] == [every[i].tolist() for i in (0, -1)]
    assert {len(line) for line in every} == {50}
    documents = _documents_of(read(held_out=999))
    assert len(every) == sum(len(ids) // 50 for ids in documents)


def _documents_of(text):
    windows = text.windows[0]["test"]
    return [windows.ids[a:b] for a, b in zip(windows.bounds, windows.bounds[1:])]  # noqa: B905


def test_losses_of_tokens_sum_to_the_loss_of_a_batch():
    one = trained()
    batch = one.text.held_out("test")[0]
    each = token_losses(one.trainer, one.params, batch)
    total, _ = one.trainer.loss(one.params, batch)
    assert float((each * batch.weights).sum()) == pytest.approx(float(total), rel=1e-5)
    shares = jax.nn.log_softmax(_logits(one.trainer.model(one.params), batch))
    want = -np.take_along_axis(np.asarray(shares), batch.labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(np.where(batch.weights, each, 0), np.where(batch.weights, want, 0), atol=1e-5)


def test_a_prefix_decoder_without_a_prefix_reads_as_a_causal_one():
    curve = LengthCurve(lengths=(4, 8), stride=2, stretches=2, tokens=8)
    causal, prefix = (
        curve(trained(DecoderConfig(stack=STACK, mask=mask), objective=objective))
        for mask, objective in ((DecoderConfig().mask, CausalLM()), (Prefix(), PrefixLM()))
    )
    assert causal == prefix


def test_what_cannot_be_read_is_one_line_before_anything_is_computed():
    short = dataclasses.replace(STACK, positions=Learned(length=30))
    mixed = dataclasses.replace(STACK, pattern=(BlockSpec(), BlockSpec(positions=Learned(length=30))))
    curve = LengthCurve(lengths=(16, 48), stride=8, tokens=48)
    for stack in (short, mixed):
        with pytest.raises(
            ValueError, match=r"\(16, 48\): windows of up to 48 tokens, .* end at 30"
        ) as raised:
            curve(trained(DecoderConfig(stack=stack), place=never))
        assert len(str(raised.value).splitlines()) == 1
        curve.check(DecoderConfig(stack=STACK))
        with pytest.raises(ValueError, match="end at 30"):
            curve.check(DecoderConfig(stack=stack))
    unread = dataclasses.replace(short, pattern=(BlockSpec(positions=Rotary()),))
    assert LengthCurve(lengths=(48,), tokens=48)(trained(DecoderConfig(stack=unread)))["tokens"]
    two_stacks = EncoderDecoderConfig(encoder=STACK, decoder=STACK)
    with pytest.raises(ValueError, match="EncoderDecoder also reads a source"):
        curve(trained(two_stacks, objective=PrefixLM(), layout=Split(), place=never))
    remembers = dataclasses.replace(STACK, memory=Recurrent(length=4))
    with pytest.raises(
        ValueError, match=r"StackConfig\.memory = .* carries one on to the next; expected None"
    ):
        curve(trained(DecoderConfig(stack=remembers), place=never))
    for config in (EncoderConfig(stack=STACK), DecoderConfig(stack=STACK, mask=Full())):
        with pytest.raises(ValueError, match="reads a source or what comes later"):
            curve(trained(config, place=never))


def test_documents_that_are_too_short_or_none_are_one_line():
    curve = LengthCurve(lengths=(16, 128), stride=8, tokens=128)
    with pytest.raises(
        ValueError, match=r"stretches of 248 tokens .* the longest test document .* has 1\d\d;"
    ):
        curve(trained(functions=Known(jnp.zeros_like)))
    with pytest.raises(ValueError, match="has records or is synthetic"):
        curve(trained(functions=Known(jnp.zeros_like), corpus=Sums(), objective=Seq2Seq()))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lengths": ()}, "lengths = .*expected rising"),
        ({"lengths": (8, 4)}, "lengths = .*expected rising"),
        ({"lengths": (1, 4)}, "lengths = .*at least 2"),
        ({"stride": 65}, "stride = 65: expected 1 to 64"),
        ({"stride": 0}, "stride = 0: expected 1 to 64"),
        ({"tokens": 255}, "tokens = 255: expected at least 256"),
        ({"stretches": 0}, "stretches = 0.*expected at least 1"),
        ({"eps": -0.1}, "eps = -0.1.*at least 0"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        LengthCurve(**settings)

"""Long texts read once: in pieces they cost what they cost at once, and what is kept does not grow."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.attention.masks import Causal, Chunk, Full, Sinks, Window
from research.attention.memory import Rolling
from research.attention.positions import DynamicNTK, Learned, NoPosition, Rotary, Sinusoidal
from research.attention.recurrence import MeanPooling, Recurrent
from research.data.documents import Document
from research.data.layouts import Concatenate
from research.data.objectives import CausalLM
from research.data.pipeline import Data
from research.data.streams import Stream
from research.evaluation.checked import Checked
from research.evaluation.long_context import scored_losses, sliding, stretches
from research.evaluation.streaming import Streamed, read, told
from research.evaluation.trained import Evaluation, Trained
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig, EncoderConfig
from research.training.optimizers import AdamW
from research.training.step import Trainer


@dataclasses.dataclass(frozen=True)
class Letters:
    """Documents of random letters."""

    def documents(self, data_dir=None):
        rng = np.random.default_rng(0)
        return tuple(Document(f"{i:02}", "".join(rng.choice(list("abcdefgh"), 120 + i))) for i in range(40))


STACK = StackConfig(layers=2, width=16, heads=2, hidden=16)
TOKENS = 48


def windowed(mask, **changes):
    pattern = (BlockSpec(window=mask),)
    return DecoderConfig(stack=dataclasses.replace(STACK, pattern=pattern, **changes))


@pytest.fixture(scope="module")
def text():
    return Data(
        corpus=Letters(), objective=CausalLM(), layout=Concatenate(), window=24, batch=4, near_duplicates=None
    ).load()


def trained(config, text):
    trainer = Trainer(config, vocab=text.tokenizer.vocab_size, optimizer=AdamW(), steps=1)
    return Trained(trainer=trainer, params=trainer.initial(jax.random.key(0)).params, text=text, seed=0)


def at_once(config, text, streamed):
    """The mean loss of the scored tokens in one pass over each stretch."""
    lines = stretches(text, "test", streamed.tokens, streamed.stretches, "here")
    losses, _ = scored_losses(trained(config, text), lines, sliding(0, TOKENS, TOKENS, TOKENS))
    return losses.reshape(len(lines), TOKENS)[:, -streamed.scored :].mean()


STREAMED = Streamed(tokens=TOKENS, scored=20, segment=6, stride=6, stretches=3)


@pytest.mark.parametrize("mask", [Window(7), Chunk(12), Window(1)])
def test_masks_that_see_few_keys_are_streamed_behind_those(text, mask):
    config = windowed(mask)
    assert isinstance(STREAMED, Evaluation)
    assert isinstance(STREAMED, Checked)
    found = STREAMED(trained(config, text))
    assert found["loss"] == pytest.approx(at_once(config, text, STREAMED), rel=1e-5)
    assert found["tokens"] == 60
    assert list(found["by_position"]) == ["0", "1", "2", "4", "8", "16", "32"]
    longer = dataclasses.replace(STREAMED, tokens=2 * TOKENS)
    assert longer(trained(config, text))["held_bytes"] == found["held_bytes"]


def test_a_memory_is_carried(text):
    """What the memory keeps is what the window shows, so that it is one pass without a memory."""
    plain = windowed(Window(9))
    remembering = dataclasses.replace(
        plain, stack=dataclasses.replace(plain.stack, memory=Recurrent(length=8))
    )
    found = STREAMED(trained(remembering, text))
    assert found["loss"] == pytest.approx(at_once(plain, text, STREAMED), rel=1e-5)
    # 2 layers of 8 states of 16 numbers of 4 bytes; and position, segment and prefix of 8 slots.
    assert found["held_bytes"] == 2 * 8 * 16 * 4 + 8 * 9


def test_a_compressed_memory_is_carried(text):
    """It cannot be read token by token, but segment by segment it can; what was read before changes what is said."""
    memory = Recurrent(length=6, compression=MeanPooling(length=4, rate=3))
    model = trained(DecoderConfig(stack=dataclasses.replace(STACK, memory=memory)), text)
    lines = np.stack(stretches(text, "test", TOKENS, 3, "here"))
    losses, held = read(STREAMED, model, lines)
    other = lines.copy()
    other[:, :12] = other[:, 11::-1]  # two segments, of which only the memory knows
    changed, same = read(STREAMED, model, other)
    assert held == same
    assert np.abs(changed - losses)[:, 12:30].min(axis=0).max() > 1e-6
    longer = dataclasses.replace(STREAMED, tokens=2 * TOKENS)
    assert longer(model)["held_bytes"] == held


@pytest.mark.parametrize("sinks", [0, 2])
def test_a_cache_shows_its_sinks_and_what_came_last(text, sinks):
    cache = Rolling(window=13, sinks=sinks)  # 6 new ones and the 7 before the last of them: a window of 8
    streamed = dataclasses.replace(STREAMED, cache=cache)
    shown = Window(8) | Sinks(sinks) if sinks else Window(8)
    found = streamed(trained(DecoderConfig(stack=STACK), text))
    assert found["loss"] == pytest.approx(at_once(windowed(shown), text, STREAMED), rel=1e-5)


def test_places_in_the_cache(text):
    """Rotary positions tell distances alone, and without positions there is nothing to tell: places in the cache say
    the same as those in the text. Behind sinks distances are others.
    """

    def losses(positions, **cache):
        config = DecoderConfig(stack=dataclasses.replace(STACK, positions=positions))
        streamed = dataclasses.replace(STREAMED, cache=Rolling(window=13, **cache))
        return read(streamed, trained(config, text), np.stack(stretches(text, "test", TOKENS, 3, "here")))[0]

    for same in ({}, {"sinks": 2}):
        nowhere = [losses(NoPosition(), reindex=reindex, **same) for reindex in (False, True)]
        np.testing.assert_allclose(*nowhere, rtol=1e-5)
    rotary = {
        sinks: [losses(Rotary(), reindex=reindex, sinks=sinks) for reindex in (False, True)]
        for sinks in (0, 2)
    }
    np.testing.assert_allclose(*rotary[0], rtol=1e-5)
    # As long as everything fits, places are positions.
    np.testing.assert_allclose(*(one[:, :12] for one in rotary[2]), rtol=1e-5)
    assert np.abs(rotary[2][0] - rotary[2][1])[:, 24:].max() > 1e-4


def test_full_attention_reads_each_segment_again(text):
    """As the sliding windows of a length curve do."""
    config, streamed = DecoderConfig(stack=STACK), dataclasses.replace(STREAMED, scored=24)
    found = streamed(trained(config, text))
    lines = stretches(text, "test", 48, 3, "here")
    losses, positions = scored_losses(trained(config, text), lines, sliding(24, 48, 24, 6))
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert positions.min() == 18
    assert found["held_bytes"] is None


def test_windows_are_read_alike_where_training_rows_go_on(text):
    model = trained(DecoderConfig(stack=STACK), text)
    other = dataclasses.replace(model, text=text.laid(Stream()))
    assert STREAMED(other) == STREAMED(model)


def test_what_cannot_be_streamed_is_said_before_anything_is_read(text):
    learned = windowed(Window(5), positions=Learned(length=24))
    with pytest.raises(
        ValueError, match=r"Streamed\.tokens = 48: windows of up to 48 tokens, but Learned positions"
    ):
        STREAMED.check(learned)
    # Where every segment is read again, positions need not go further than the windows.
    STREAMED.check(DecoderConfig(stack=dataclasses.replace(STACK, positions=Learned(length=24))))
    remembering = DecoderConfig(stack=dataclasses.replace(STACK, memory=Recurrent(length=4)))
    with pytest.raises(ValueError, match=r"Streamed\.cache = Rolling.* expected None for either"):
        dataclasses.replace(STREAMED, cache=Rolling(window=8)).check(remembering)
    with pytest.raises(ValueError, match=r"expected a decoder"):
        STREAMED.check(EncoderConfig(stack=STACK, mask=Full()))
    moved = DecoderConfig(stack=dataclasses.replace(STACK, positions=Sinusoidal()))
    with pytest.raises(ValueError, match=r"Rolling\.reindex = True moves tokens"):
        dataclasses.replace(STREAMED, cache=Rolling(window=8, reindex=True)).check(moved)
    growing = Rotary(scaling=DynamicNTK(factor=1.0, trained=8))
    with pytest.raises(ValueError, match="moves earlier keys as the text grows"):
        STREAMED.check(windowed(Window(5), positions=growing))
    older = Recurrent(length=8, compression=MeanPooling(length=4, rate=4))
    with pytest.raises(
        ValueError, match=r"Streamed\.segment = 6 cannot be compressed by MeanPooling\.rate = 4"
    ):
        STREAMED.check(DecoderConfig(stack=dataclasses.replace(STACK, memory=older)))
    with pytest.raises(ValueError, match=r"stretches of 6000000 tokens are to be read \(Streamed\.tokens\)"):
        dataclasses.replace(STREAMED, tokens=6_000_000)(trained(windowed(Causal() & Window(3)), text))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokens": 50, "segment": 6}, "expected whole segments"),
        ({"tokens": 48, "segment": 6, "scored": 49}, "at most all tokens are scored"),
        ({"segment": 64, "cache": Rolling(window=63)}, r"raise\s+Rolling\.window"),
        ({"stretches": 0}, r"Streamed\.stretches = 0, "),
        ({"stride": 0}, r"Streamed\.stride = 0"),
        ({"gram": 1}, r"Streamed\.gram = 1: expected at least 1, 1 and 2"),
    ],
)
def test_settings_that_make_no_sense(settings, said):
    with pytest.raises(ValueError, match=said):
        Streamed(**settings)


def looked_up(line, gram):
    """As `told` says, literally."""
    found = []
    for place in range(len(line)):
        before = line[max(place - gram + 1, 0) : place]
        earlier = [
            past
            for past in range(gram - 1, place)
            if len(before) == gram - 1 and np.array_equal(line[past - gram + 1 : past], before)
        ]
        same = earlier and all(line[past] == line[place] for past in earlier)
        found.append(place - earlier[-1] if same else 0)
    return found


@given(
    line=st.lists(st.integers(0, 3), max_size=60).map(lambda ids: np.array(ids, np.int32)),
    gram=st.integers(2, 4),
)
@settings(max_examples=60, deadline=None)
def test_what_was_told_is_what_followed_each_time(line, gram):
    np.testing.assert_array_equal(told(line, gram), looked_up(line, gram))


def test_what_was_told_by_hand():
    line = np.frombuffer(b"a1b2a1b3a1b2", np.uint8).astype(np.int32)
    # 1 follows a each time; what follows b changed; b follows 1 each time; 2 stood before b in vain.
    np.testing.assert_array_equal(told(line, 2), [0, 0, 0, 0, 0, 4, 4, 0, 0, 4, 4, 0])
    np.testing.assert_array_equal(told(line, 3), [0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 4, 0])
    assert not told(line[:2], 4).any()

"""Generation with a cache is generation by reading everything again."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import positions
from research.attention.masks import Causal, Prefix, Sinks, Slots, Window
from research.attention.memory import Rolling
from research.attention.recurrence import MeanPooling, Recurrent
from research.batch import Batch, Tokens
from research.generation import engine
from research.generation.engine import Generation, Greedy, Sample, prompt
from research.generation.noise import noisy
from research.generation.processors import Chain, MinimumLength, TopK
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig

VOCAB, NEW = 23, 7
LINES = [[1, 5, 9, 4], [1, 7], [1, 3, 3, 8, 12, 6]]
CAUSAL = Causal()
WINDOW = Causal() & (Sinks(1) | Window(4))
generate = jax.jit(engine.generate, static_argnums=3)


def stack(**changes):
    return StackConfig(**{"layers": 3, "width": 16, "heads": 4, "kv_heads": 2, "hidden": 24, **changes})


def build(config):
    return config.build(vocab=VOCAB, key=jax.random.key(1))


def keys(rows=3):
    return jax.random.split(jax.random.key(2), rows)


def texts(generated):
    """Prompt and new tokens of each row."""
    history = jax.device_get(generated.history)
    return [ids[:size].tolist() for ids, size in zip(history.ids, history.length, strict=True)]


@jax.jit
def likeliest(model, ids, size, given, source):
    """The likeliest token after the first `size` of `ids` [n], of which `given` are the prompt, by a full pass."""
    slots = Slots.arange(len(ids), (1,))
    real = slots.position < size
    slots = dataclasses.replace(slots, segment=real.astype(jnp.int32), prefix=slots.position < given)
    batch = Batch(Tokens(ids[None], slots), ids[None], real.astype(jnp.float32), source)
    return model(batch)[0, size - 1].argmax()


def literal(model, line, source=None):
    """Greedy text of one row by a full pass for each token."""
    ids, given = np.zeros(max(map(len, LINES)) + NEW, np.int32), len(line)
    ids[:given] = line
    for size in range(given, given + NEW):
        ids[size] = likeliest(model, ids, size, given, source)
    return ids[: given + NEW].tolist()


SCHEMES = [
    positions.Rotary(),
    positions.T5Bias(buckets=8, distance=16),
    *(
        pytest.param(scheme, marks=pytest.mark.slow)
        for scheme in (positions.Relative(), positions.Learned(length=40), positions.Sinusoidal())
    ),
    *(pytest.param(scheme, marks=pytest.mark.slow) for scheme in (positions.ALiBi(), positions.NoPosition())),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: type(scheme).__name__)
@pytest.mark.parametrize(
    ("mask", "cache"),
    [(CAUSAL, None), (Prefix(), None), (WINDOW, None), (WINDOW, Rolling(window=4, sinks=1))],
    ids=["causal", "prefix", "window", "rolling"],
)
def test_greedy_text_of_ragged_prompts_is_that_of_full_passes(scheme, mask, cache):
    model = build(DecoderConfig(stack=stack(positions=scheme), mask=mask))
    config = Generation(tokens=NEW, choice=Greedy(), cache=cache)
    assert texts(generate(model, prompt(LINES, pad=0), keys(), config)) == [
        literal(model, line) for line in LINES
    ]


@pytest.mark.slow
def test_layers_of_a_pattern_keep_their_own_masks():
    pattern = (BlockSpec(mask=WINDOW), BlockSpec())
    model = build(DecoderConfig(stack=stack(pattern=pattern)))
    config = Generation(tokens=NEW, choice=Greedy())
    assert texts(generate(model, prompt(LINES, pad=0), keys(), config)) == [
        literal(model, line) for line in LINES
    ]


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_encoder_decoder_reads_its_source_once(tied):
    model = build(EncoderDecoderConfig(encoder=stack(), decoder=stack(), tied=tied))
    source = prompt(LINES, pad=0)
    given = prompt([[1]] * len(LINES), pad=0)
    found = texts(generate(model, given, keys(), Generation(tokens=NEW, choice=Greedy()), source=source))
    for row, line in enumerate(LINES):
        assert found[row] == literal(model, [1], source=prompt([line], pad=0))


def test_a_stack_with_memory_keeps_that():
    """The memory holds all that the window sees, so the text is that of the model without one."""
    plain, mask = stack(positions=positions.Relative()), Window(5)
    remembering = dataclasses.replace(plain, memory=Recurrent(length=8))
    config = Generation(tokens=NEW, choice=Greedy())
    model = build(DecoderConfig(stack=remembering, mask=mask))
    found = texts(generate(model, prompt(LINES, pad=0), keys(), config))
    assert found == [literal(build(DecoderConfig(stack=plain, mask=mask)), line) for line in LINES]


def test_text_that_comes_in_pieces_is_the_same_text():
    model, config = build(DecoderConfig(stack=stack())), Generation(tokens=NEW, end=(3,))
    whole = generate(model, prompt(LINES, pad=0), keys(), config)
    now = engine.begin(model, prompt(LINES, pad=0), keys(), config)
    pieces = [texts(now)]
    while int(now.step) < int(whole.step):
        now = engine.advance(model, now, config, 3)
        pieces.append(texts(now))
    assert [len(piece[2]) for piece in pieces[:2]] == [6, 9]
    assert pieces[-1] == texts(whole)


def test_a_row_ends_at_an_end_token_and_the_loop_with_the_last_row():
    model = build(DecoderConfig(stack=stack()))
    free = texts(generate(model, prompt(LINES, pad=0), keys(), Generation(tokens=NEW, choice=Greedy())))
    end = free[0][len(LINES[0]) + 2]
    config = Generation(tokens=NEW, choice=Greedy(), end=(end,))
    cut = generate(model, prompt(LINES, pad=0), keys(), config)
    for row, (line, whole, text) in enumerate(zip(LINES, free, texts(cut), strict=True)):
        new = whole[len(line) :]
        size = new.index(end) + 1 if end in new else NEW
        assert text == whole[: len(line) + size]
        assert bool(cut.ended[row]) == (end in new)
        assert (np.asarray(cut.log_probability[row, size:]) == 0).all()
        assert (np.asarray(cut.log_probability[row, :size]) < 0).all()


def test_log_probabilities_are_the_models_own():
    model = build(DecoderConfig(stack=stack()))
    config = Generation(tokens=NEW, processors=Chain(processors=(TopK(k=3),)))
    found = generate(model, prompt(LINES, pad=0), keys(), config)
    for row, line in enumerate(texts(found)):
        batch = Batch(
            prompt([line], pad=0),
            np.asarray([line]),
            np.ones((1, len(line)), np.float32),
        )
        scores = jax.nn.log_softmax(model(batch)[0])
        first = len(LINES[row])
        expected = [float(scores[at - 1, line[at]]) for at in range(first, len(line))]
        np.testing.assert_allclose(found.log_probability[row], expected, rtol=2e-5)


def test_a_row_is_the_same_whatever_stands_beside_it():
    model = build(DecoderConfig(stack=stack()))
    config = Generation(tokens=NEW, choice=Sample(), end=(3,))
    together = texts(generate(model, prompt(LINES, pad=0), keys(), config))
    for row, line in enumerate(LINES):
        (alone,) = texts(generate(model, prompt([line], pad=0), keys()[row : row + 1], config))
        assert alone == together[row]


def test_draws_follow_the_probabilities():
    """Chi-squared with 22 degrees of freedom: above 48.3 in one of 1,000 samples."""
    model = build(DecoderConfig(stack=stack()))
    rows = 4000
    drawn = generate(model, prompt([LINES[0]] * rows, pad=0), keys(rows), Generation(tokens=1))
    counts = np.bincount(np.asarray(drawn.history.ids[:, len(LINES[0])]), minlength=VOCAB)
    batch = Batch(prompt([LINES[0]], pad=0), np.asarray([LINES[0]]), np.ones((1, 4), np.float32))
    expected = rows * np.asarray(jax.nn.softmax(model(batch)[0, -1]))
    assert ((counts - expected) ** 2 / expected).sum() < 48.3


def test_processors_see_what_was_generated():
    model = build(DecoderConfig(stack=stack()))
    ends = tuple(range(2, VOCAB))  # every likely token ends a row, but none may before the fourth
    chain = Chain(processors=(MinimumLength(tokens=4, end=(*ends[1:],)),))
    found = generate(
        model, prompt(LINES, pad=0), keys(), Generation(tokens=NEW, end=ends[1:], processors=chain)
    )
    for line, text in zip(LINES, texts(found), strict=True):
        assert set(text[len(line) : len(line) + 4]) <= {0, 1, 2}


def test_an_ensemble_is_a_vmap_of_it():
    config = DecoderConfig(stack=stack())
    models = [config.build(vocab=VOCAB, key=jax.random.key(seed)) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    how = Generation(tokens=NEW, choice=Greedy())
    run = functools.partial(engine.generate, given=prompt(LINES, pad=0), keys=keys(), config=how)
    found = jax.jit(jax.vmap(run))(stacked)
    for index, model in enumerate(models):
        alone = generate(model, prompt(LINES, pad=0), keys(), how)
        assert texts(jax.tree.map(lambda leaf, i=index: leaf[i], found)) == texts(alone)


@pytest.mark.parametrize(
    ("config", "how", "wrong"),
    [
        (EncoderConfig(stack=stack()), {}, "lets a query see later keys"),
        (DecoderConfig(stack=stack()), {"cache": Rolling(window=4)}, "rolling cache of 4 behind 0 sinks"),
        (EncoderDecoderConfig(encoder=stack(), decoder=stack()), {}, "with no source: expected one"),
        (
            DecoderConfig(
                stack=stack(
                    positions=positions.Relative(),
                    memory=Recurrent(length=4, compression=MeanPooling(rate=2, length=4)),
                )
            ),
            {},
            "depends on where segments end",
        ),
    ],
)
def test_what_cannot_be_generated_is_one_line(config, how, wrong):
    with pytest.raises(ValueError, match=wrong) as raised:
        engine.generate(build(config), prompt(LINES, pad=0), keys(), Generation(**how))
    assert "\n" not in str(raised.value)


def test_streaming_with_places_counted_anew_is_that_of_the_kept_tokens_alone():
    """In a model of one layer a key does not depend on the tokens before it, so full passes over what is kept tell."""
    model = build(DecoderConfig(stack=stack(layers=1), mask=CAUSAL & (Sinks(2) | Window(4))))
    full = build(DecoderConfig(stack=stack(layers=1)))
    config = Generation(tokens=NEW, choice=Greedy(), cache=Rolling(window=4, sinks=2, reindex=True))
    found = texts(generate(model, prompt(LINES, pad=0), keys(), config))
    for line, text in zip(LINES, found, strict=True):
        for size in range(len(line), len(text)):
            kept = [*text[:2], *text[max(2, size - 4) : size]] if size > 6 else text[:size]
            ids = np.zeros(6, np.int32)
            ids[: len(kept)] = kept
            assert text[size] == int(likeliest(full, ids, len(kept), 0, None))


def test_bfloat16_writes_what_full_passes_in_bfloat16_find_likeliest_or_nearly():
    model = build(DecoderConfig(stack=stack(dtype="bfloat16")))
    found = generate(model, prompt(LINES, pad=0), keys(), Generation(tokens=NEW, choice=Greedy()))
    assert found.cache.own.layers[0][0].dtype == jnp.bfloat16
    for line in texts(found):
        ones = np.ones((1, len(line)), np.float32)
        scores = np.asarray(
            jax.nn.log_softmax(model(Batch(prompt([line], pad=0), np.asarray([line]), ones))[0])
        )
        for at in range(len(line) - NEW, len(line)):
            assert scores[at - 1, line[at]] > scores[at - 1].max() - 0.05


def test_noise_disturbs_every_row_by_its_own_key_and_none_is_no_noise():
    model = build(DecoderConfig(stack=stack()))
    greedy = {"tokens": NEW, "choice": Greedy()}
    plain = texts(generate(model, prompt(LINES, pad=0), keys(), Generation(**greedy)))
    little = texts(generate(model, prompt(LINES, pad=0), keys(), Generation(**greedy, noise=1e-6)))
    loud = Generation(**greedy, noise=2.0)
    much = texts(generate(model, prompt(LINES, pad=0), keys(), loud))
    assert plain == little
    assert all(a != b for a, b in zip(plain, much, strict=True))
    (alone,) = texts(generate(model, prompt(LINES[2:], pad=0), keys()[2:], loud))
    assert alone == much[2]
    same = prompt([LINES[0]] * 3, pad=0)
    assert len({tuple(text) for text in texts(generate(model, same, keys(), loud))}) == 3


@pytest.mark.parametrize("tied", [True, False])
def test_noise_is_of_the_size_asked_for_and_the_same_whenever_a_token_is_read(tied):
    model = build(DecoderConfig(stack=stack(), tied_embeddings=tied))
    line = prompt([list(range(20))] * 3, pad=0)
    vectors, changed = model.embedding(line), noisy(model, keys(), 0.3).embedding
    share = (changed(line) - vectors) / jnp.sqrt(jnp.mean(vectors**2, -1, keepdims=True))
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(share**2)), 0.3, rtol=0.1)
    last = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, 20))[:, -1:], line)
    np.testing.assert_array_equal(changed(last), changed(line)[:, -1:])
    hidden = jnp.ones((2, 16))
    np.testing.assert_array_equal(noisy(model, keys(), 0.3).logits(hidden), model.logits(hidden))


def test_prompts_that_are_no_prompts_are_one_line():
    with pytest.raises(ValueError, match="no prompt; expected at least one"):
        prompt([], pad=0)
    with pytest.raises(ValueError, match="prompt 1 has the id 23 at place 2; expected 0 to 22"):
        prompt([[1, 2], [3, 4, VOCAB]], pad=0, vocab=VOCAB)
    with pytest.raises(ValueError, match="prompt 0 has the id -1 at place 1; expected at least 0"):
        prompt([[1, -1]], pad=0)
    with pytest.raises(ValueError, match=r"Generation.noise = -1.0: expected at least 0"):
        Generation(noise=-1.0)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        prompt([[1], []], pad=0)
    with pytest.raises(ValueError, match="prompt 0 has 3 tokens, more than 2"):
        prompt([[1, 2, 3]], pad=0, length=2)
    with pytest.raises(ValueError, match=r"Generation.tokens = 0: expected at least 1"):
        Generation(tokens=0)

"""Remedies against repetition: unlikelihood of tokens and of sequences, and pseudo-repetitions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import CAUSAL, STACK, VOCAB, batch

from research.attention.masks import Prefix, Slots
from research.batch import Batch, Tokens
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from research.training import losses
from research.training.optimizers import AdamW
from research.training.remedies import Step
from research.training.repetition import DITTO, SequenceUnlikelihood, TokenUnlikelihood, repeated
from research.training.step import Recipe, Trainer

LONG = 24


def trainer(config=CAUSAL, *, vocab=VOCAB, remedies=(), rate=1e-2, **recipe):
    optimizer = AdamW(learning_rate=rate, weight_decay=0.0)
    return Trainer(
        config, vocab=vocab, optimizer=optimizer, steps=30, recipe=Recipe(remedies=remedies, **recipe)
    )


def written(ids, *, given=0, segments=None, source=None):
    """Rows of text, the first tokens of which are no targets, laid out as decoders read them."""
    ids = np.asarray(ids, np.int32)
    read = np.concatenate([np.zeros((len(ids), 1), np.int32), ids[:, :-1]], axis=1)
    slots = Slots.arange(ids.shape[1], (len(ids),))
    if segments is not None:
        slots = dataclasses.replace(slots, segment=np.asarray(segments, np.int32))
    weights = np.ones(ids.shape, np.float32)
    weights[:, :given] = 0
    return Batch(Tokens(read, slots), ids, weights, source)


def random_text(seed=0, rows=4, length=LONG, vocab=6):
    return np.random.default_rng(seed).integers(1, vocab, (rows, length))


def step_of(functions, params, one, key=0):
    model = functions.model
    hidden = model(params).apply(one).hidden
    weight = jnp.sum(jnp.asarray(one.weights))
    return Step(params, model, hidden, one, weight, 1.0, functions.loss, jax.random.key(key))


def probabilities(functions, params, one):
    return np.exp(np.asarray(functions.predict(params, one), np.float64))


@pytest.mark.parametrize("budget", [2**22, 60])
def test_token_unlikelihood_is_its_formula_read_literally(monkeypatch, budget):
    """Whole, in chunks of tokens, and with two texts in a row, of which each has candidates of its own."""
    monkeypatch.setitem(losses.LOGITS, "cpu", budget)
    segments = np.ones((4, LONG), int)
    segments[:2, 10:] = 2
    one = written(random_text(), given=3, segments=segments)
    weights = np.random.default_rng(3).uniform(size=one.weights.shape).astype(np.float32) * one.weights
    one = dataclasses.replace(one, weights=weights)
    functions = trainer()
    params = functions.initial(jax.random.key(0)).params
    p = probabilities(functions, params, one)
    total = 0.0
    for row in range(4):
        for t in range(LONG):
            read = {
                int(one.target.ids[row, s]) for s in range(t + 1) if segments[row, s] == segments[row, t]
            } - {int(one.labels[row, t])}
            total += weights[row, t] * sum(-np.log(1 - p[row, t, c]) for c in read)
    found = TokenUnlikelihood(strength=0.5).penalty((), step_of(functions, params, one))
    np.testing.assert_allclose(found, 0.5 * total / weights.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("abcdab", 2, "....XX"),
        ("abcdab", 3, "......"),
        ("aaaa", 2, ".XXX"),
        ("abcabcabc", 3, "...XXXXXX"),
        ("abcabx", 2, "...XX."),
        ("ab", 3, ".."),
        ("aba", 1, "..X"),
    ],
)
def test_what_is_part_of_an_n_gram_that_came_before(text, n, expected):
    ids = jnp.asarray([[ord(letter) for letter in text]], jnp.int32)
    found = repeated(ids, jnp.ones(ids.shape, bool), n)
    assert "".join("X" if each else "." for each in found[0]) == expected


def test_only_what_stands_at_the_places_is_an_n_gram():
    """The prompt has been written by nobody."""
    ids = jnp.asarray([[1, 2, 1, 2, 1, 2]], jnp.int32)
    places = jnp.arange(6)[None] >= 2
    assert repeated(ids, places, 2).tolist() == [[False] * 4 + [True] * 2]


FAMILIES = [
    pytest.param(CAUSAL, None, id="causal"),
    pytest.param(DecoderConfig(stack=STACK, mask=Prefix()), None, id="prefix"),
    pytest.param(EncoderDecoderConfig(encoder=STACK, decoder=STACK), 5, id="encoder-decoder"),
]


def source_of(length):
    if length is None:
        return None
    ids = np.random.default_rng(9).integers(0, VOCAB, (4, length)).astype(np.int32)
    return Tokens(ids, Slots.arange(length, (4,)))


@pytest.mark.parametrize(("config", "source"), FAMILIES)
def test_sequence_unlikelihood_is_of_what_the_model_writes_itself(config, source):
    """Token by token and n-gram by n-gram, in every family."""
    one = written(random_text(), given=4, source=source_of(source))
    functions = trainer(config)
    # A model that has learned nothing often writes one token over and over.
    params = functions.initial(jax.random.key(1)).params
    remedy = SequenceUnlikelihood(strength=2.0, n=2, given=3, share=1.0, rows=3)

    some = jax.tree.map(lambda leaf: np.asarray(leaf)[:3], one)
    ids, labels = np.array(some.target.ids), np.array(some.labels)
    for t in range(4 + 3, LONG):
        here = dataclasses.replace(some, target=dataclasses.replace(some.target, ids=ids), labels=labels)
        labels[:, t] = probabilities(functions, params, here)[:, t].argmax(-1)
        if t + 1 < LONG:
            ids[:, t + 1] = labels[:, t]
    here = dataclasses.replace(some, target=dataclasses.replace(some.target, ids=ids), labels=labels)
    p, total = probabilities(functions, params, here), 0.0
    for row in range(3):
        line = labels[row, 7:].tolist()
        grams = list(zip(line, line[1:], strict=False))
        inside = {start + k for start in range(len(grams)) if grams[start] in grams[:start] for k in (0, 1)}
        total += sum(-np.log(1 - p[row, 7 + place, line[place]]) for place in inside)
    assert total > 0
    found = remedy.penalty((), step_of(functions, params, one))
    np.testing.assert_allclose(found, 2 * total / (3 * (LONG - 7)), rtol=1e-4)


def test_a_share_of_the_steps_writes():
    one, functions = written(random_text()), trainer()
    params = functions.initial(jax.random.key(1)).params
    remedy = SequenceUnlikelihood(strength=1.0, n=1, given=2, share=0.5, rows=1)
    penalty = jax.jit(
        lambda key: remedy.penalty((), dataclasses.replace(step_of(functions, params, one), key=key))
    )
    wrote = [float(penalty(jax.random.key(i))) > 0 for i in range(60)]
    assert 15 < sum(wrote) < 45


@pytest.mark.parametrize(("config", "source"), FAMILIES)
def test_ditto_is_its_formula_read_literally(config, source):
    """On rows of which the batch says where a phrase begins, how long it is, and what is there again."""
    one = written(random_text(vocab=VOCAB), given=2, source=source_of(source))
    functions = trainer(config)
    params = functions.initial(jax.random.key(1)).params
    remedy = DITTO(strength=0.7, ratio=0.4, least=2, most=5, rows=4)
    step = step_of(functions, params, one)
    tiled, lengths, again = remedy.tiled(one, jax.random.fold_in(step.key, 2**31 - 3))
    p = probabilities(functions, params, tiled)
    label = np.take_along_axis(p, np.asarray(tiled.labels)[..., None], -1)[..., 0]
    terms = [
        -np.log(1 - abs(label[row, t] - 0.4 * label[row, t - int(lengths[row])]))
        for row in range(4)
        for t in range(LONG)
        if again[row, t]
    ]
    np.testing.assert_allclose(remedy.penalty((), step), 0.7 * np.mean(terms), rtol=1e-4)


def test_phrases_of_all_lengths_begin_everywhere_and_go_on_to_the_end_of_their_text():
    segments = np.ones((200, LONG), int)
    segments[:, 20:] = 2
    ids = random_text(rows=200, vocab=VOCAB)
    one = written(ids, given=4, segments=segments)
    tiled, lengths, again = DITTO(strength=1.0, least=2, most=5, rows=200).tiled(one, jax.random.key(0))
    labels, read = np.asarray(tiled.labels), np.asarray(tiled.target.ids)
    begins = set()
    for row in range(200):
        length, places = int(lengths[row]), np.flatnonzero(again[row])
        begin = places[0] - length
        begins.add(int(begin))
        assert begin >= 4
        assert places.tolist() == list(range(begin + length, 20))
        assert len(places) >= length
        for place in places:
            assert labels[row, place] == ids[row, begin + (place - begin) % length]
        kept = np.r_[0 : places[0], 20:LONG]
        np.testing.assert_array_equal(labels[row, kept], ids[row, kept])
        np.testing.assert_array_equal(read[row, 1:20], labels[row, :19])
        np.testing.assert_array_equal(read[row, 20:], one.target.ids[row, 20:])
    assert set(np.asarray(lengths).tolist()) == {2, 3, 4, 5}
    assert begins >= set(range(4, 15))


def test_only_targets_that_follow_one_another_are_rewritten():
    """Turns that are given stand between those that are learned; only the first of these has what it is to repeat."""
    one = written(random_text(rows=50, vocab=VOCAB), given=2)
    weights = np.array(one.weights)
    weights[:, 14:17] = 0
    one = dataclasses.replace(one, weights=weights)
    tiled, lengths, again = DITTO(strength=1.0, least=2, most=5, rows=50).tiled(one, jax.random.key(0))
    labels = np.asarray(tiled.labels)
    assert not np.asarray(again)[:, 14:].any()
    for row, place in np.argwhere(np.asarray(again)):
        assert labels[row, place] == labels[row, place - int(lengths[row])]
    np.testing.assert_array_equal(labels[:, 14:], one.labels[:, 14:])


def test_a_sequence_is_written_in_the_first_text_of_a_row():
    segments = np.ones((4, LONG), int)
    segments[:, 12:] = 2
    one, functions = written(random_text(), segments=segments), trainer()
    params = functions.initial(jax.random.key(1)).params
    remedy = SequenceUnlikelihood(strength=1.0, n=1, given=2, share=1.0, rows=4)
    found = remedy.penalty((), step_of(functions, params, one))
    alone = jax.tree.map(lambda leaf: np.asarray(leaf)[:, :12], one)
    np.testing.assert_allclose(found, remedy.penalty((), step_of(functions, params, alone)), rtol=1e-5)


def test_only_what_is_likely_now_is_moved_by_ditto():
    """The gradient is that of the formula, in which what was likely the time before is a number."""
    one, functions = written(random_text(vocab=VOCAB)), trainer()
    params = functions.initial(jax.random.key(1)).params
    remedy = DITTO(strength=0.7, ratio=0.4, least=2, most=5, rows=4)
    key = jax.random.fold_in(jax.random.key(0), 2**31 - 3)
    tiled, lengths, again = remedy.tiled(one, key)
    rows, places = np.nonzero(np.asarray(again))
    earlier = places - np.asarray(lengths)[rows]
    labels = np.asarray(tiled.labels)

    def likely(params, places):
        scores = functions.model(params)(tiled)
        return jax.nn.softmax(scores)[rows, places, labels[rows, places]]

    then = likely(params, earlier)

    def literal(params):
        return 0.7 * jnp.mean(-jnp.log(1 - jnp.abs(likely(params, places) - 0.4 * then)))

    found = jax.grad(lambda params: remedy.penalty((), step_of(functions, params, one)))(params)
    expected = jax.grad(literal)(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found)) > 1e-3


def test_down_its_gradient_what_is_written_again_becomes_less_likely():
    one, functions = written(random_text(vocab=VOCAB)), trainer()
    params = functions.initial(jax.random.key(1)).params
    remedy = SequenceUnlikelihood(strength=1.0, n=1, given=2, share=1.0, rows=4)
    cost = lambda params: remedy.penalty((), step_of(functions, params, one))  # noqa: E731
    before, slope = jax.value_and_grad(cost)(params)
    # So small a step that the same text is written.
    moved = jax.tree.map(lambda leaf, down: leaf - 1e-3 * down, params, slope)
    fallen = 1e-3 * sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(slope))
    assert fallen > 0
    np.testing.assert_allclose(before - cost(moved), fallen, rtol=0.1)


@pytest.mark.parametrize("remedy", [SequenceUnlikelihood, DITTO])
def test_rows_are_of_whole_batches(remedy):
    with pytest.raises(ValueError, match=f"has {remedy.__name__}, which reads rows of whole batches"):
        trainer(remedies=(remedy(strength=1.0),), accumulate=2)


def test_a_phrase_that_does_not_fit_twice_is_not_written():
    one = written(random_text(), given=LONG - 5)
    tiled, lengths, again = DITTO(strength=1.0, least=3, rows=4).tiled(one, jax.random.key(0))
    assert not again.any()
    assert not lengths.any()
    np.testing.assert_array_equal(tiled.labels, one.labels)
    functions = trainer()
    params = functions.initial(jax.random.key(1)).params
    assert DITTO(strength=1.0, least=3).penalty((), step_of(functions, params, one)) == 0


@pytest.mark.parametrize(
    "remedy",
    [TokenUnlikelihood(strength=0.0), SequenceUnlikelihood(strength=0.0, n=1), DITTO(strength=0.0, least=2)],
)
def test_at_strength_0_training_is_what_it_is_without(remedy):
    plain, held = trainer(), trainer(remedies=(remedy,))
    states = [functions.initial(jax.random.key(0)) for functions in (plain, held)]
    for seed in range(3):
        one = written(random_text(seed))
        states = [
            functions.step(state, one)[0] for functions, state in zip((plain, held), states, strict=True)
        ]
    for one, other in zip(*(jax.tree.leaves(state.params) for state in states), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)  # programs that add in another order


def test_unlikelihood_of_microbatches_is_that_of_the_batch():
    """Tokens' is a sum over targets, whatever their weights."""
    remedies, states = (TokenUnlikelihood(strength=1.0),), []
    for parts in (1, 2):
        functions = trainer(remedies=remedies, accumulate=parts)
        states.append(functions.step(functions.initial(jax.random.key(0)), batch())[1])
    for name in ("penalty", "loss", "grad_norm"):
        np.testing.assert_allclose(states[0][name], states[1][name], rtol=1e-5)


def test_down_its_gradient_what_was_read_becomes_less_likely():
    one, functions = written(random_text(vocab=VOCAB)), trainer()
    params, read = functions.initial(jax.random.key(0)).params, np.asarray(one.target.ids)
    remedy = TokenUnlikelihood(strength=1.0)
    slope = jax.grad(lambda params: remedy.penalty((), step_of(functions, params, one)))(params)

    def mass(params):
        p = probabilities(functions, params, one)
        return np.mean([p[row, t, read[row, : t + 1]].sum() for row in range(4) for t in range(LONG)])

    moved = jax.tree.map(lambda leaf, down: leaf - 0.3 * down, params, slope)
    assert mass(moved) < 0.95 * mass(params)


@pytest.mark.parametrize("remedy", [TokenUnlikelihood, SequenceUnlikelihood, DITTO])
def test_an_encoder_writes_nothing(remedy):
    with pytest.raises(
        ValueError, match=f"Recipe.remedies has {remedy.__name__}, .* the model is an Encoder"
    ):
        trainer(EncoderConfig(stack=STACK), remedies=(remedy(strength=1.0),))


@pytest.mark.parametrize(
    ("remedy", "wrong", "message"),
    [
        (SequenceUnlikelihood, {"n": 0}, "n = 0, given = 16; expected n >= 1"),
        (SequenceUnlikelihood, {"share": 1.5}, "share = 1.5: expected a share"),
        (SequenceUnlikelihood, {"rows": 0}, "SequenceUnlikelihood.rows = 0: expected at least 1"),
        (DITTO, {"ratio": -1.0}, "DITTO.ratio = -1.0"),
        (DITTO, {"least": 9, "most": 8}, "least = 9, most = 8; expected 1 <= least <= most"),
        (TokenUnlikelihood, {"strength": -1.0}, "TokenUnlikelihood.strength = -1.0: expected at least 0"),
    ],
)
def test_what_makes_no_sense_is_one_line(remedy, wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        remedy(**{"strength": 1.0} | wrong)
    assert "\n" not in str(error.value)

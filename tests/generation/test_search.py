"""Beam search against trying everything, and scores against the logits."""

import collections
import functools
import itertools

import jax
import numpy as np
import pytest
from test_engine import VOCAB, build, generate, keys, stack, texts

from research.attention.masks import Causal, Prefix
from research.attention.recurrence import Recurrent
from research.batch import Batch
from research.generation import search
from research.generation.engine import Generation, Greedy, prompt
from research.generation.scoring import score
from research.generation.search import Beam
from research.models.families import DecoderConfig, EncoderDecoderConfig

TINY, END, TOKENS = 5, 1, 3
PROMPTS = [[2, 3, 4], [4, 2]]
run = jax.jit(search.search, static_argnums=2)


def small(config):
    return config.build(vocab=TINY, key=jax.random.key(3))


def everything(length):
    """All texts of at most so many tokens that end, or that are as long."""
    free = [token for token in range(TINY) if token != END]
    for n in range(length):
        yield from ((*text, END) for text in itertools.product(free, repeat=n))
    yield from itertools.product(free, repeat=length)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize(
    "config",
    [
        DecoderConfig(stack=stack(), mask=Prefix()),
        pytest.param(EncoderDecoderConfig(encoder=stack(), decoder=stack()), marks=pytest.mark.slow),
    ],
    ids=["prefix", "encoder-decoder"],
)
def test_with_enough_beams_it_is_an_exhaustive_search(config, penalty):
    model, two_sided = small(config), isinstance(config, EncoderDecoderConfig)
    beams = 4**TOKENS
    lines = PROMPTS if two_sided else [[0, *line] for line in PROMPTS]
    given = prompt([[0]] * 2 if two_sided else lines, pad=0)
    source = prompt(PROMPTS, pad=0) if two_sided else None
    how = Beam(size=beams, tokens=TOKENS, end=(END,), length_penalty=penalty)
    found = jax.device_get(run(model, given, how, source=source))
    candidates = list(everything(TOKENS))
    for row, line in enumerate(PROMPTS):
        scores = score(model, [(line, text) for text in candidates], bos=0, pad=0)
        ranked = scores.log_probability / ((5 + scores.tokens) / 6) ** penalty
        best = np.argsort(-ranked)[:beams]
        np.testing.assert_allclose(found.score[row], ranked[best], rtol=1e-5)
        for place in range(4):
            size = found.length[row, place]
            assert tuple(found.ids[row, place, :size].tolist()) == candidates[best[place]]


def test_one_beam_is_greedy_until_it_ends():
    model = build(DecoderConfig(stack=stack()))
    lines = [[1, 5, 9, 4], [1, 7]]
    greedy = generate(model, prompt(lines, pad=0), keys(2), Generation(tokens=6, choice=Greedy()))
    unreachable = next(t for t in range(VOCAB) if all(t not in text for text in texts(greedy)))
    found = run(model, prompt(lines, pad=0), Beam(size=1, tokens=6, end=(unreachable,)))
    for row, line in enumerate(lines):
        assert np.asarray(found.ids[row, 0]).tolist() == texts(greedy)[row][len(line) :]


@pytest.mark.slow
def test_more_beams_find_texts_at_least_as_likely_and_rows_do_not_mix():
    model = build(DecoderConfig(stack=stack()))
    lines = [[1, 5, 9, 4], [1, 7], [1, 3, 3, 8, 12, 6]]
    best = []
    for size in (1, 8):
        found = run(model, prompt(lines, pad=0), Beam(size=size, tokens=5, end=(2,)))
        best.append(np.asarray(found.score[:, 0]))
        assert (np.diff(np.asarray(found.score), axis=1) <= 0).all()
    assert (best[1] >= best[0] - 1e-5).all()
    (alone,) = np.asarray(run(model, prompt(lines[1:2], pad=0), Beam(size=8, tokens=5, end=(2,))).score)
    np.testing.assert_allclose(alone, found.score[1], rtol=1e-5)


read = jax.jit(lambda model, batch: model(batch))


def literal_groups(scores, groups, part, diversity, ends):
    """Texts by the rule of diverse beam search, in plain Python, to the last step.

    `scores`: a text to the log-probabilities of what may follow.
    """
    beams, done = [[((), 0.0)] for _ in range(groups)], [[] for _ in range(groups)]
    for _ in range(TOKENS):
        taken = collections.Counter()
        for group in range(groups):
            ways = [
                ((*text, token), likely + more, likely + more - diversity * taken[token])
                for text, likely in beams[group]
                for token, more in enumerate(scores(text))
            ]
            ways = sorted(ways, key=lambda way: -way[2])[: part * (1 + max(1, len(ends)))]
            done[group] += [(text, likely) for text, likely, _ in ways if text[-1] in ends]
            beams[group] = [(text, likely) for text, likely, _ in ways if text[-1] not in ends][:part]
            taken.update(text[-1] for text, _ in beams[group])
    return [
        text
        for own, left in zip(done, beams, strict=True)
        for text, _ in sorted([*own, *left], key=lambda one: -one[1])[:part]
    ]


@pytest.mark.parametrize(
    ("groups", "diversity", "ends"),
    [
        *((1, 0.0, ()), (2, 0.0, ()), (2, 0.7, ()), (4, 5.0, ())),
        *((1, 0.0, (1, 3)), (2, 0.7, (1,)), (2, 3.0, (0, 1, 2))),
    ],
)
def test_groups_are_searched_by_the_literal_rule(groups, diversity, ends):
    model = small(DecoderConfig(stack=stack()))
    line = [0, *PROMPTS[0]]

    @functools.cache
    def scores(text):
        whole = prompt([[*line, *text]], pad=0, length=len(line) + TOKENS, given=False)
        batch = Batch(whole, whole.ids, np.ones(whole.ids.shape, np.float32))
        last = read(model, batch)[0, len(line) + len(text) - 1]
        return tuple(np.asarray(jax.nn.log_softmax(last)).tolist())

    how = Beam(size=4, tokens=TOKENS, groups=groups, diversity=diversity, end=ends)
    found = jax.device_get(run(model, prompt([line], pad=0, given=False), how))
    pairs = zip(found.ids[0], found.length[0], strict=True)
    texts = [tuple(ids[:size].tolist()) for ids, size in pairs]
    assert sorted(texts) == sorted(literal_groups(scores, groups, 4 // groups, diversity, ends))
    likely = [sum(scores(text[:at])[text[at]] for at in range(len(text))) for text in texts]
    np.testing.assert_allclose(found.log_probability[0], likely, rtol=1e-5)
    assert (np.diff(found.score[0]) <= 0).all()


def test_several_ends_do_not_use_up_the_beams():
    model = small(DecoderConfig(stack=stack()))
    how = Beam(size=1, tokens=4, end=(0, 1, 2, 3), length_penalty=50.0)
    found = run(model, prompt([[0, 2]], pad=0), how)
    assert int(found.length[0, 0]) == 4  # so long a text is the best, whatever it says
    assert np.asarray(found.ids[0, 0, :3]).tolist() == [4, 4, 4]  # all others end


def test_groups_that_pay_for_it_take_other_tokens():
    model = build(DecoderConfig(stack=stack()))
    lines = [[1, 5, 9, 4], [1, 7]]
    first = {}
    for diversity in (0.0, 100.0):
        how = Beam(size=3, tokens=4, groups=3, diversity=diversity)
        first[diversity] = np.asarray(run(model, prompt(lines, pad=0), how).ids[:, :, 0])
    assert (first[0.0] == first[0.0][:, :1]).all()
    assert all(len(set(row)) == 3 for row in first[100.0].tolist())


def test_a_memory_goes_with_its_beam():
    from research.attention.masks import Window

    lines = [[1, 5, 9, 4], [1, 7]]
    how = Beam(size=4, tokens=5, end=(2,))
    found = [
        np.asarray(run(build(DecoderConfig(stack=one, mask=Window(6))), prompt(lines, pad=0), how).score)
        for one in (stack(), stack(memory=Recurrent(length=9)))
    ]
    np.testing.assert_allclose(*found, rtol=1e-4)


def test_scores_are_sums_of_log_probabilities_in_any_order_and_company():
    model = build(DecoderConfig(stack=stack(), mask=Prefix()))
    pairs = [([5, 9, 4], [3, 8]), ([], [7, 7, 2]), ([3] * 40, [1]), ([6], [2, 2, 2, 4])]
    found = score(model, pairs, bos=1, pad=0, rows=3)
    for index, (given, text) in enumerate(pairs):
        line = [1, *given, *text]
        whole = prompt([line[:-1]], pad=0)
        slots = whole.slots
        prefix = (slots.position <= len(given)) & (len(given) > 0)
        tokens = type(whole)(whole.ids, type(slots)(slots.position, slots.segment, prefix))
        ones = np.ones((1, len(line) - 1), np.float32)
        scores = jax.nn.log_softmax(model(Batch(tokens, whole.ids, ones))[0])[len(given) :]
        expected = sum(float(scores[at, token]) for at, token in enumerate(text))
        np.testing.assert_allclose(found.log_probability[index], expected, rtol=1e-5)
        assert found.greedy[index] == (np.asarray(scores.argmax(-1)).tolist() == text)
        assert found.tokens[index] == len(text)


@pytest.mark.parametrize("mask", [Causal(), Prefix()])
def test_scores_without_bos_are_those_of_the_prompt_alone(mask):
    model = build(DecoderConfig(stack=stack(), mask=mask))
    pairs = [([5, 9, 4], [3, 8]), ([6], [2, 2, 4]), ([], [7, 7, 2])]
    found = score(model, pairs, bos=1, pad=0, begins=False)
    first = [([9, 4], [3, 8]), ([], [2, 2, 4])]  # of which the first token stands where BOS would
    for index, (pair, bos) in enumerate(zip([*first, pairs[2]], (5, 6, 1), strict=True)):
        expected = score(model, [pair], bos=bos, pad=0)
        np.testing.assert_allclose(found.log_probability[index], expected.log_probability[0], rtol=1e-5)
        assert found.tokens[index] == expected.tokens[0] == len(pair[1])


def test_what_cannot_be_searched_or_scored_is_one_line():
    with pytest.raises(ValueError, match="with no source: expected one for an EncoderDecoder"):
        search.search(
            build(EncoderDecoderConfig(encoder=stack(), decoder=stack())),
            prompt([[1]], pad=0),
            Beam(end=(2,)),
        )
    with pytest.raises(ValueError, match=r"Beam.size = 0"):
        Beam(end=(1,), size=0)
    with pytest.raises(ValueError, match=r"Beam.groups = 3: expected a divisor of Beam.size = 4"):
        Beam(groups=3)
    with pytest.raises(ValueError, match=r"Beam.diversity = -1.0: expected at least 0"):
        Beam(diversity=-1.0)
    model = build(DecoderConfig(stack=stack()))
    with pytest.raises(ValueError, match="the continuation of pair 1 is empty"):
        score(model, [([1], [2]), ([1], [])], bos=1, pad=0)
    both = build(EncoderDecoderConfig(encoder=stack(), decoder=stack()))
    with pytest.raises(ValueError, match="the source of pair 0 is empty"):
        score(both, [([], [2])], bos=1, pad=0)

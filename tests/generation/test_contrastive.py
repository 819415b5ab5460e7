"""Contrastive search and contrastive decoding against their definitions by full passes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_engine import LINES, NEW, VOCAB, build, generate, keys, stack, texts

from research.attention.masks import Prefix, Slots, Window
from research.attention.recurrence import Recurrent
from research.batch import Batch, Tokens
from research.generation import contrastive
from research.generation import search as beams
from research.generation.contrast import Contrast
from research.generation.contrastive import ContrastiveSearch
from research.generation.engine import Generation, Greedy, prompt
from research.generation.noise import noisy
from research.generation.search import Beam
from research.models.families import DecoderConfig, EncoderDecoderConfig

search = jax.jit(contrastive.search, static_argnums=2)
PREFIX = DecoderConfig(stack=stack(), mask=Prefix())


PLACES = 16  # of lines that are read, so that one program reads them all


@jax.jit
def full(model, ids, size, given, source):
    slots = Slots.arange(PLACES, (1,))
    real = slots.position < size
    slots = dataclasses.replace(slots, segment=real.astype(jnp.int32), prefix=slots.position < given)
    hidden = model.apply(Batch(Tokens(ids, slots), ids, real.astype(jnp.float32), source)).hidden
    return hidden[0], jax.nn.log_softmax(model.logits(hidden)[0])


def read(model, line, given, source=None):
    """Hidden states [n m] and log-probabilities [n v] of a line by a full pass, its first `given` tokens a prefix."""
    ids = np.zeros((1, PLACES), np.int32)
    ids[0, : len(line)] = line
    return [np.asarray(leaf)[: len(line)] for leaf in full(model, ids, len(line), given, source)]


def literal(model, line, how, source=None):
    """Contrastive search of Su et al. 2022, equation 5, one row and one full pass for each candidate."""
    text, given, likely = list(line), len(line), []
    while len(text) < given + how.tokens:
        hidden, scores = read(model, text, given, source)
        known = hidden / np.linalg.norm(hidden, axis=-1, keepdims=True)
        best = np.argsort(-scores[-1], kind="stable")[: how.candidates]
        rated = []
        for token in best:
            state = read(model, [*text, int(token)], given, source)[0][-1]
            alike = (known @ (state / np.linalg.norm(state))).max()
            rated.append((1 - how.penalty) * np.exp(scores[-1, token]) - how.penalty * alike)
        token = int(best[int(np.argmax(rated))])
        likely.append(scores[-1, token])
        text.append(token)
        if token in how.end:
            break
    return text, likely


@pytest.mark.parametrize("penalty", [0.4, 0.9])
@pytest.mark.parametrize(
    "config",
    [
        PREFIX,
        pytest.param(
            DecoderConfig(stack=stack(memory=Recurrent(length=20)), mask=Window(20)), marks=pytest.mark.slow
        ),
    ],
    ids=["prefix", "memory"],
)
def test_contrastive_search_is_its_definition(config, penalty):
    model = build(config)
    how = ContrastiveSearch(tokens=NEW, candidates=5, penalty=penalty, end=(3,))
    found = search(model, prompt(LINES, pad=0), how)
    for row, line in enumerate(LINES):
        text, likely = literal(model, line, how)
        assert texts(found)[row] == text
        np.testing.assert_allclose(found.log_probability[row, : len(likely)], likely, rtol=1e-4)
        assert (np.asarray(found.log_probability[row, len(likely) :]) == 0).all()


def test_of_an_encoder_decoder_only_the_target_counts():
    model = build(EncoderDecoderConfig(encoder=stack(), decoder=stack()))
    how = ContrastiveSearch(tokens=4, candidates=3)
    found = search(model, prompt([[1]] * 3, pad=0), how, source=prompt(LINES, pad=0))
    for row, line in enumerate(LINES):
        assert texts(found)[row] == literal(model, [1], how, prompt([line], pad=0, length=6))[0]


def test_without_a_penalty_or_a_choice_it_is_greedy():
    model = build(PREFIX)
    greedy = texts(generate(model, prompt(LINES, pad=0), keys(), Generation(tokens=NEW, choice=Greedy())))
    for how in (
        ContrastiveSearch(tokens=NEW, penalty=0.0),
        ContrastiveSearch(tokens=NEW, candidates=1),
    ):
        assert texts(search(model, prompt(LINES, pad=0), how)) == greedy
    everything = ContrastiveSearch(tokens=2, candidates=VOCAB + 1, penalty=0.0)
    assert texts(search(model, prompt(LINES, pad=0), everything)) == [
        text[: len(line) + 2] for text, line in zip(greedy, LINES, strict=True)
    ]


def pair(**options):
    amateur = DecoderConfig(stack=stack(layers=1, width=8, heads=2, kv_heads=1)).build(
        vocab=VOCAB, key=jax.random.key(7)
    )
    return Contrast(build(PREFIX), amateur, **options)


def literal_contrast(model, line, strength, plausible):
    """Greedy text of Li et al. 2023 by full passes."""
    text = list(line)
    for _ in range(NEW):
        expert, amateur = (read(one, text, len(line))[1][-1] for one in (model.expert, model.amateur))
        allowed = np.exp(expert) >= plausible * np.exp(expert.max())
        text.append(int(np.where(allowed, expert - strength * amateur, -np.inf).argmax()))
    return text


@pytest.mark.parametrize(("strength", "plausible"), [(1.0, 0.1), (0.5, 0.5), (2.0, 0.0)])
def test_contrastive_decoding_is_its_definition(strength, plausible):
    model = pair(strength=strength, plausible=plausible)
    found = generate(model, prompt(LINES, pad=0), keys(), Generation(tokens=NEW, choice=Greedy()))
    assert texts(found) == [literal_contrast(model, line, strength, plausible) for line in LINES]


@pytest.mark.slow
def test_an_amateur_without_strength_changes_nothing_and_beams_search_a_pair_too():
    model = pair(strength=0.0, plausible=0.0)
    found = [
        jax.jit(beams.search, static_argnums=2)(one, prompt(LINES, pad=0), Beam(size=3, tokens=4))
        for one in (model, model.expert)
    ]
    np.testing.assert_array_equal(*(np.asarray(one.ids) for one in found))
    np.testing.assert_allclose(*(np.asarray(one.score) for one in found), rtol=1e-5)


def test_noise_reaches_both_models_of_a_pair():
    model, line = pair(), prompt(LINES, pad=0)
    disturbed = noisy(model, keys(), 0.5)
    for name in ("expert", "amateur"):
        plain, changed = (getattr(one, name).embedding(line) for one in (model, disturbed))
        assert (np.abs(np.asarray(changed - plain)).max(-1) > 0).all()
    how = {"tokens": NEW, "choice": Greedy()}
    plain, disturbed = (
        texts(generate(pair(), prompt(LINES, pad=0), keys(), Generation(**how, noise=noise)))
        for noise in (0.0, 2.0)
    )
    assert plain != disturbed


def test_what_does_not_go_together_is_one_line():
    both = build(EncoderDecoderConfig(encoder=stack(), decoder=stack()))
    with pytest.raises(ValueError, match="expected both or none to read a source"):
        generate(Contrast(build(PREFIX), both), prompt(LINES, pad=0), keys(), Generation())
    remembering = build(DecoderConfig(stack=stack(memory=Recurrent(length=20)), mask=Window(20)))
    for one in (Contrast(build(PREFIX), remembering), Contrast(remembering, build(PREFIX))):
        with pytest.raises(ValueError, match="expected a memory in both or none"):
            generate(one, prompt(LINES, pad=0), keys(), Generation())
    with pytest.raises(ValueError, match="compares the hidden states of one model"):
        search(pair(), prompt(LINES, pad=0), ContrastiveSearch())
    other = DecoderConfig(stack=stack()).build(vocab=VOCAB + 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="vocabulary of 23 tokens and the amateur one of 24"):
        generate(Contrast(build(PREFIX), other), prompt(LINES, pad=0), keys(), Generation())
    for wrong, said in [
        (lambda: Contrast(None, None, strength=-1.0), r"Contrast.strength = -1.0"),
        (lambda: Contrast(None, None, plausible=2.0), r"Contrast.plausible = 2.0"),
        (lambda: ContrastiveSearch(candidates=0), r"ContrastiveSearch.candidates = 0"),
        (lambda: ContrastiveSearch(penalty=1.5), r"ContrastiveSearch.penalty = 1.5"),
    ]:
        with pytest.raises(ValueError, match=said):
            wrong()

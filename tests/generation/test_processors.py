"""Logit processors against their definitions in plain Python, and against those of transformers."""

import dataclasses
import functools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from research.generation.processors import (
    BadWords,
    Chain,
    Eta,
    FrequencyPenalty,
    History,
    MinimumLength,
    MinP,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    Typical,
    apply,
)

NEEDS = "transformers is not installed; `make test-parity` installs it"

ROWS, PLACES, VOCABULARY = 3, 9, 6
PENALTIES = [
    RepetitionPenalty(penalty=1.3),
    RepetitionPenalty(penalty=0.5),
    FrequencyPenalty(penalty=0.7),
    FrequencyPenalty(penalty=-0.25),
    PresencePenalty(penalty=1.1),
]
PROHIBITIONS = [
    NoRepeatNGram(size=1),
    NoRepeatNGram(size=2),
    NoRepeatNGram(size=3),
    NoRepeatNGram(size=PLACES + 1),
    BadWords(words=()),
    BadWords(words=((2,), (0, 1), (1, 1), (3, 0, 1), (4, 4, 4, 0))),
    MinimumLength(tokens=3, end=(1, 4)),
    MinimumLength(tokens=0, end=(1,)),
]
TRUNCATIONS = [
    TopK(k=1),
    TopK(k=3),
    TopK(k=VOCABULARY + 1),
    TopP(p=1e-9),
    TopP(p=0.6),
    TopP(p=1.0),
    MinP(p=0.0),
    MinP(p=0.3),
    MinP(p=1.0),
    Typical(mass=1e-9),
    Typical(mass=0.6),
    Typical(mass=1.0),
    Eta(epsilon=0.01),
    Eta(epsilon=0.9),
]
CHAIN = Chain(processors=(PENALTIES[0], PROHIBITIONS[1], Temperature(value=0.7), TopK(k=3), TopP(p=0.8)))
EVERY = [*PENALTIES, *PROHIBITIONS, Temperature(value=0.7), *TRUNCATIONS, CHAIN]
TELLING = [
    RepetitionPenalty(penalty=1.3),
    FrequencyPenalty(penalty=0.7),
    PresencePenalty(penalty=1.1),
    NoRepeatNGram(size=2),
    PROHIBITIONS[5],
    MinimumLength(tokens=3, end=(1, 4)),
    TopP(p=0.6),
    Typical(mass=0.6),
    CHAIN,
]


@functools.partial(jax.jit, static_argnums=0)
def compiled(processor, logits, history):
    return processor(logits, history)


def some_history(seed):
    """Ragged rows; a small vocabulary, so that tokens and n-grams come again, and garbage behind each row."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, rng.integers(1, VOCABULARY + 1), size=(ROWS, PLACES)).astype(np.int32)
    length = rng.integers(0, PLACES + 1, size=ROWS).astype(np.int32)
    prompt = rng.integers(0, length + 1).astype(np.int32)
    return garbled(History(ids, length, prompt), rng.choice([-1, 0, 3, VOCABULARY, 2**31 - 1]))


def some_logits(seed):
    """Logits, some with ties and zeros, some with tokens that are forbidden already."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(ROWS, VOCABULARY), scale=rng.uniform(0.1, 5)).astype(np.float32)
    logits = np.where(rng.random((ROWS, 1)) < 0.3, np.round(logits), logits)
    gone = rng.random((ROWS, VOCABULARY)) < rng.choice([0, 0, 0.5])
    gone[np.arange(ROWS), rng.integers(0, VOCABULARY, size=ROWS)] = False
    return jnp.asarray(np.where(gone, np.float32(-np.inf), logits))


# Seeds rather than drawn arrays: the tests below would spend most of their time on drawing.
SEEDS = st.integers(0, 2**32 - 1)
LINES, SCORES = SEEDS.map(some_history), SEEDS.map(some_logits)


def garbled(history, garbage):
    behind = np.arange(history.ids.shape[1]) >= history.length[:, None]
    ids = np.where(behind, np.int32(garbage), history.ids)
    return History(*map(jnp.asarray, (ids, history.length, history.prompt)))


def empty(b):
    return History(jnp.zeros((b, 1), jnp.int32), jnp.zeros(b, jnp.int32), jnp.zeros(b, jnp.int32))


def rows(logits, history):
    """Each row's logits, its tokens and its generated tokens, as lists."""
    for line, ids, length, prompt in zip(
        *map(np.asarray, (logits, *dataclasses.astuple(history))), strict=True
    ):
        yield line.tolist(), ids[:length].tolist(), ids[prompt:length].tolist()


def random_case(seed, b, n, v):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(size=(b, v), scale=3).astype(np.float32))
    length = rng.integers(1, n + 1, size=b).astype(np.int32)
    length[0] = n
    prompt = rng.integers(0, length + 1).astype(np.int32)
    ids = rng.integers(0, max(v // 4, 2), size=(b, n)).astype(np.int32)
    return logits, garbled(History(ids, length, prompt), v + 7)


# --- what holds for every processor


@pytest.mark.parametrize("processor", EVERY, ids=repr)
@settings(max_examples=10)
@given(logits=SCORES, history=LINES)
def test_a_row_keeps_a_choice_and_gets_back_nothing_that_was_forbidden(processor, logits, history):
    out = np.asarray(compiled(processor, logits, history))
    assert out.shape == logits.shape
    assert out.dtype == logits.dtype
    assert not np.isnan(out).any()
    assert (out > -np.inf).any(-1).all()
    assert (out[np.asarray(logits) == -np.inf] == -np.inf).all()


@pytest.mark.parametrize("processor", TELLING, ids=repr)
@settings(max_examples=10)
@given(logits=SCORES, history=LINES, garbage=st.integers(-(2**31), 2**31 - 1))
def test_what_lies_behind_a_row_is_not_read(processor, logits, history, garbage):
    out = compiled(processor, logits, history)
    np.testing.assert_array_equal(out, compiled(processor, logits, garbled(history, garbage)))


@pytest.mark.parametrize("processor", TELLING, ids=repr)
def test_vmap_is_the_batch_and_rows_know_nothing_of_each_other(processor):
    logits, history = random_case(0, ROWS, PLACES, VOCABULARY)
    rows_alone = jax.tree.map(lambda x: x[:, None], (logits, history))
    out = jax.jit(jax.vmap(processor))(*rows_alone)[:, 0]
    np.testing.assert_array_equal(out, compiled(processor, logits, history))


@pytest.mark.parametrize("processor", EVERY, ids=repr)
def test_half_precision_stays(processor):
    logits, history = random_case(1, ROWS, PLACES, VOCABULARY)
    assert jax.eval_shape(processor, logits.astype(jnp.bfloat16), history).dtype == jnp.bfloat16


@pytest.mark.parametrize("processor", EVERY, ids=repr)
def test_no_array_has_a_place_and_a_vocabulary_axis(processor):
    b, n, v = 2, 64, 128
    traced = jax.make_jaxpr(processor)(*random_case(0, b, n, v)).jaxpr
    inner = [*traced.eqns]
    largest = 0
    while inner:
        equation = inner.pop()
        largest = max([largest, *(math.prod(var.aval.shape) for var in equation.outvars)])
        inner += [eqn for sub in jaxprs_in_params(equation.params) for eqn in sub.eqns]
    assert largest <= 2 * b * (n + v)


def test_a_loop_generates_with_them():
    """Greedy on constant logits: without repeated 1-grams the tokens come in order of their logits, once each."""
    logits = jnp.asarray([[0.0, 3.0, 1.0, 2.0], [5.0, 2.0, 3.0, 4.0]])
    chain = Chain(processors=(NoRepeatNGram(size=1), Temperature(value=0.5), TopK(k=2)))
    start = History(
        ids=jnp.full((2, 6), -1, jnp.int32).at[1, 0].set(3),
        length=jnp.array([0, 1]),
        prompt=jnp.array([0, 1]),
    )

    def step(history):
        token = chain(logits, history).argmax(-1).astype(jnp.int32)
        ids = history.ids.at[jnp.arange(2), history.length].set(token)
        return dataclasses.replace(history, ids=ids, length=history.length + 1)

    end = jax.jit(lambda history: jax.lax.while_loop(lambda h: (h.new < 3).any(), step, history))(start)
    assert end.ids.tolist() == [[1, 3, 2, -1, -1, -1], [3, 0, 2, 1, -1, -1]]


# --- penalties and prohibitions against loops in plain Python


def penalised(processor, line, tokens, generated):
    out = list(line)
    if isinstance(processor, RepetitionPenalty):
        for token in set(tokens):
            out[token] = (
                line[token] / processor.penalty if line[token] > 0 else line[token] * processor.penalty
            )
    elif isinstance(processor, FrequencyPenalty):
        for token in generated:
            out[token] -= processor.penalty
    elif isinstance(processor, PresencePenalty):
        for token in Counter(generated):
            out[token] -= processor.penalty
    return out


@pytest.mark.parametrize("processor", PENALTIES, ids=repr)
@settings(max_examples=25)
@given(logits=SCORES, history=LINES)
def test_penalties_are_the_loop_over_tokens(processor, logits, history):
    expected = [penalised(processor, *row) for row in rows(logits, history)]
    np.testing.assert_allclose(compiled(processor, logits, history), expected, atol=1e-5)


def prohibited(processor, tokens, generated):
    if isinstance(processor, MinimumLength):
        return set(processor.end) if len(generated) < processor.tokens else set()
    if isinstance(processor, BadWords):
        return {last for *before, last in processor.words if tokens[len(tokens) - len(before) :] == before}
    spans = [tokens[i : i + processor.size] for i in range(len(tokens) - processor.size + 1)]
    suffix = tokens[len(tokens) - processor.size + 1 :] if len(tokens) >= processor.size - 1 else None
    return {last for *before, last in spans if before == suffix}


@pytest.mark.parametrize("processor", PROHIBITIONS, ids=repr)
@settings(max_examples=40)
@given(logits=SCORES, history=LINES)
def test_prohibitions_are_the_loop_over_tokens(processor, logits, history):
    expected = []
    for line, tokens, generated in rows(logits, history):
        gone = prohibited(processor, tokens, generated)
        left = [-np.inf if token in gone else value for token, value in enumerate(line)]
        likeliest = [value if value == max(line) else -np.inf for value in line]
        expected.append(left if max(left) > -np.inf else likeliest)
    np.testing.assert_array_equal(compiled(processor, logits, history), expected)


# --- truncations against their definitions


def kept_and_probabilities(processor, logits):
    """Row by row: what is kept, and the probabilities before. What is kept is unchanged."""
    out, before = np.asarray(compiled(processor, logits, empty(ROWS))), np.asarray(logits, np.float64)
    kept = out > -np.inf
    np.testing.assert_array_equal(out[kept], before[kept])
    odds = np.exp(before - before.max(-1, keepdims=True))
    return zip(kept, odds / odds.sum(-1, keepdims=True), strict=True)


@pytest.mark.parametrize("k", [1, 2, 5, VOCABULARY, VOCABULARY + 3])
@settings(max_examples=30)
@given(logits=SCORES)
def test_top_k_keeps_k_and_ties_with_the_last(k, logits):
    for kept, p in kept_and_probabilities(TopK(k=k), logits):
        assert kept.sum() >= min(k, (p > 0).sum())
        assert (p[kept] > p[kept].min()).sum() < k
        assert p[~kept].max(initial=0) <= p[kept].min()


@pytest.mark.parametrize("mass", [0.05, 0.5, 0.9, 0.999])
@settings(max_examples=25)
@given(logits=SCORES)
def test_top_p_keeps_the_smallest_set_of_likeliest_tokens_that_holds_p(mass, logits):
    for kept, p in kept_and_probabilities(TopP(p=mass), logits):
        assert p[~kept].max(initial=0) <= p[kept].min()
        assert p[kept].sum() >= mass - 1e-6
        above_the_last = kept & (p > p[kept].min() * (1 + 1e-6))
        assert p[above_the_last].sum() < mass + 1e-6


@pytest.mark.parametrize("mass", [0.05, 0.5, 0.9])
@settings(max_examples=25)
@given(logits=SCORES)
def test_typical_keeps_the_smallest_set_nearest_to_the_entropy_that_holds_the_mass(mass, logits):
    for kept, p in kept_and_probabilities(Typical(mass=mass), logits):
        surprisal = -np.log(np.where(p > 0, p, 1))
        distance = np.where(p > 0, np.abs(surprisal - (p * surprisal).sum()), np.inf)
        assert distance[~kept].min(initial=np.inf) >= distance[kept].max() - 1e-5
        assert p[kept].sum() >= mass - 1e-6
        assert p[kept & (distance < distance[kept].max() - 1e-5)].sum() < mass + 1e-6


@pytest.mark.parametrize("least", [0.0, 0.05, 0.5, 1.0])
@settings(max_examples=25)
@given(logits=SCORES)
def test_min_p_keeps_what_has_that_share_of_the_likeliest(least, logits):
    for kept, p in kept_and_probabilities(MinP(p=least), logits):
        assert (p[kept] >= least * p.max() - 1e-6).all()
        assert (p[~kept] <= least * p.max() + 1e-6).all()
        assert kept[p.argmax()]


@pytest.mark.parametrize("epsilon", [3e-3, 0.05, 0.6])
@settings(max_examples=25)
@given(logits=SCORES)
def test_eta_keeps_what_is_above_a_threshold_that_falls_with_the_entropy(epsilon, logits):
    for kept, p in kept_and_probabilities(Eta(epsilon=epsilon), logits):
        entropy = -(p * np.log(np.where(p > 0, p, 1))).sum()
        eta = min(epsilon, math.sqrt(epsilon) * math.exp(-entropy))
        assert kept[p.argmax()]
        assert (p[~kept] <= eta + 1e-6).all()
        assert ((p[kept] >= eta - 1e-6) | (p[kept] >= p.max() - 1e-6)).all()


@pytest.mark.parametrize("mass", [0.3, 1e-9])
def test_typical_may_drop_the_likeliest(mass):
    """0.3 on one token, the rest spread: the entropy is nearer to the surprisal of the spread ones."""
    logits = jnp.log(jnp.asarray([[0.3, *[0.07] * 10]]))
    assert (compiled(Typical(mass=mass), logits, empty(1)) > -jnp.inf).tolist() == [[False] + [True] * 10]


def test_a_mass_close_to_one_is_decided_in_the_tail():
    """60,000 tokens hold 5.7 %, one of them but 4.7e-7, which sums in f32 from the likeliest on would lose."""
    logits = jnp.zeros((1, 60_001)).at[0, 0].set(math.log(1e6)).at[0, 1].set(math.log(0.5))
    kept = compiled(TopP(p=1 - 6e-7), logits, empty(1)) > -jnp.inf
    assert not kept[0, 1]
    assert kept.sum() == 60_000


# --- order


@settings(max_examples=5)
@given(logits=SCORES, history=LINES)
def test_a_chain_is_its_processors_one_after_the_other(logits, history):
    expected = logits
    for processor in CHAIN.processors:
        expected = compiled(processor, expected, history)
    np.testing.assert_allclose(compiled(CHAIN, logits, history), expected, rtol=1e-6)
    nested = Chain(processors=(Chain(processors=CHAIN.processors[:2]), *CHAIN.processors[2:]))
    np.testing.assert_allclose(compiled(nested, logits, history), expected, rtol=1e-6)
    together = jax.jit(apply, static_argnums=0)(CHAIN.processors, logits, history)
    np.testing.assert_array_equal(together, compiled(CHAIN, logits, history))


def test_order_matters():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))

    def kept(*processors):
        return (compiled(Chain(processors=processors), logits, empty(1))[0] > -jnp.inf).tolist()

    hot, nucleus = Temperature(value=4.0), TopP(p=0.7)
    assert kept(hot, nucleus) == [True, True, True, False]
    assert kept(nucleus, hot) == [True, True, False, False]
    word, top = BadWords(words=((0,),)), TopK(k=1)
    assert kept(word, top) == [False, True, False, False]
    assert kept(top, word) == [True, False, False, False]  # rather than nothing


# --- errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Temperature(value=0.0), "Temperature.value = 0.0: expected above 0; greedy search"),
        (lambda: Temperature(value=math.inf), "Temperature.value = inf"),
        (lambda: Temperature(value=math.nan), "Temperature.value = nan"),
        (lambda: TopK(k=0), "TopK.k = 0: expected at least 1"),
        (lambda: TopP(p=0.0), "TopP.p = 0.0: expected above 0 and at most 1"),
        (lambda: TopP(p=1.5), "TopP.p = 1.5"),
        (lambda: MinP(p=-0.1), "MinP.p = -0.1: expected at least 0 and at most 1"),
        (lambda: Typical(mass=0.0), "Typical.mass = 0.0"),
        (lambda: Eta(epsilon=1.0), "Eta.epsilon = 1.0: expected above 0 and below 1"),
        (lambda: RepetitionPenalty(penalty=0.0), "RepetitionPenalty.penalty = 0.0: expected above 0"),
        (
            lambda: FrequencyPenalty(penalty=math.nan),
            "FrequencyPenalty.penalty = nan: expected a finite number",
        ),
        (lambda: PresencePenalty(penalty=math.inf), "PresencePenalty.penalty = inf"),
        (lambda: NoRepeatNGram(size=0), "NoRepeatNGram.size = 0: expected at least 1"),
        (lambda: MinimumLength(tokens=-1, end=(0,)), "MinimumLength.tokens = -1: expected at least 0"),
        (lambda: MinimumLength(tokens=1, end=()), "MinimumLength.end = \\(\\): expected at least one id"),
        (lambda: BadWords(words=((),)), "BadWords.words has \\(\\): expected at least one id"),
        (lambda: BadWords(words=((3, -1),)), "BadWords.words has \\(3, -1\\)"),
        (lambda: Chain(processors=(TopK,)), "Chain.processors\\[0\\] = .*TopK.*: expected a processor"),
    ],
)
def test_errors_name_the_field_its_value_and_what_was_expected(build, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build()


@pytest.mark.parametrize(
    "processor", [BadWords(words=((1, 6),)), MinimumLength(tokens=0, end=(6,))], ids=repr
)
def test_an_id_beyond_the_vocabulary_is_refused(processor):
    logits, history = random_case(0, ROWS, PLACES, VOCABULARY)
    with pytest.raises(ValueError, match="has the id 6: expected ids below the 6 logits"):
        processor(logits, history)


# --- transformers

WORDS = ((2,), (1, 0), (0, 1), (1, 1, 1), (0, 1, 0))
THEIRS = {
    "Temperature": (Temperature(value=0.7), lambda t, prompt: t.TemperatureLogitsWarper(0.7)),
    "TopK": (TopK(k=3), lambda t, prompt: t.TopKLogitsWarper(3)),
    "TopK all": (TopK(k=2000), lambda t, prompt: t.TopKLogitsWarper(2000)),
    "TopP": (TopP(p=0.8), lambda t, prompt: t.TopPLogitsWarper(0.8)),
    "TopP little": (TopP(p=0.01), lambda t, prompt: t.TopPLogitsWarper(0.01)),
    "MinP": (MinP(p=0.1), lambda t, prompt: t.MinPLogitsWarper(0.1)),
    "Typical": (Typical(mass=0.7), lambda t, prompt: t.TypicalLogitsWarper(0.7)),
    "Typical little": (Typical(mass=0.01), lambda t, prompt: t.TypicalLogitsWarper(0.01)),
    "Eta": (Eta(epsilon=0.01), lambda t, prompt: t.EtaLogitsWarper(0.01)),
    "Eta high": (Eta(epsilon=0.9), lambda t, prompt: t.EtaLogitsWarper(0.9)),
    "RepetitionPenalty": (
        RepetitionPenalty(penalty=1.7),
        lambda t, prompt: t.RepetitionPenaltyLogitsProcessor(1.7),
    ),
    "NoRepeatNGram 1": (NoRepeatNGram(size=1), lambda t, prompt: t.NoRepeatNGramLogitsProcessor(1)),
    "NoRepeatNGram 2": (NoRepeatNGram(size=2), lambda t, prompt: t.NoRepeatNGramLogitsProcessor(2)),
    "NoRepeatNGram 4": (NoRepeatNGram(size=4), lambda t, prompt: t.NoRepeatNGramLogitsProcessor(4)),
    "MinimumLength": (
        MinimumLength(tokens=4, end=(1, 3)),
        lambda t, prompt: t.MinNewTokensLengthLogitsProcessor(prompt, 4, [1, 3]),
    ),
    "BadWords": (
        BadWords(words=WORDS),
        lambda t, prompt: t.NoBadWordsLogitsProcessor([list(word) for word in WORDS]),
    ),
}
SHAPES = [(1, 3, 5), (3, 9, 11), (8, 30, 50), (2, 17, 1000)]


def by_transformers(build, logits, history):
    """Row by row, as theirs know no ragged rows."""
    import torch
    import transformers

    out = []
    for line, tokens, generated in rows(logits, history):
        processor = build(transformers, len(tokens) - len(generated))
        out.append(processor(torch.tensor([tokens]), torch.tensor([line]))[0].numpy())
    return np.stack(out)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_processor_is_that_of_transformers(name, shape):
    pytest.importorskip("transformers", reason=NEEDS)
    processor, build = THEIRS[name]
    for seed in range(4):
        logits, history = random_case(seed, *shape)
        theirs = by_transformers(build, logits, history)
        np.testing.assert_allclose(compiled(processor, logits, history), theirs, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_chain_in_their_order_is_theirs(shape):
    pytest.importorskip("transformers", reason=NEEDS)
    names = [
        "RepetitionPenalty",
        "NoRepeatNGram 2",
        "BadWords",
        "MinimumLength",
        "Temperature",
        "TopK",
        "TopP",
    ]
    chain = Chain(processors=tuple(THEIRS[name][0] for name in names))

    def build(transformers, prompt):
        return transformers.LogitsProcessorList([THEIRS[name][1](transformers, prompt) for name in names])

    for seed in range(4):
        logits, history = random_case(seed, *shape)
        theirs = by_transformers(build, logits, history)
        np.testing.assert_allclose(compiled(chain, logits, history), theirs, rtol=1e-6)

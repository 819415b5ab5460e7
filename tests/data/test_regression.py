"""Linear regression in symbols, and what solves it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.layouts import Concatenate, Split
from research.data.objectives import CausalLM, Seq2Seq
from research.data.pipeline import Data
from research.data.regression import LinearRegression, least_squares, ridge
from research.data.tokenizers import Bytes, Symbols
from research.data.windows import Made

SYMBOLS = Symbols(size=64)
seeds = st.integers(0, 2**32)


def rng(seed=0):
    return np.random.default_rng(seed)


@st.composite
def tasks(draw):
    pairs = draw(st.integers(1, 12))
    return LinearRegression(
        dimensions=draw(st.integers(1, 4)),
        pairs=pairs,
        least=draw(st.none() | st.integers(1, pairs)),
        noise=draw(st.sampled_from([0.0, 0.5])),
        bins=draw(st.integers(2, 64)),
        limit=draw(st.floats(1, 4)),
    )


@given(tasks(), seeds)
@settings(max_examples=50)
def test_the_line_tells_x_exactly_and_y_but_for_half_a_bin(task, seed):
    window = task.sample(rng(seed), SYMBOLS)
    w, x, y = task.draw(rng(seed))
    assert len(w) == task.dimensions
    assert (task.least or task.pairs) + 1 <= len(y) <= task.pairs + 1
    assert len(window.ids) == len(y) * (task.dimensions + 1) <= task.tokens
    assert np.isin(window.ids, SYMBOLS.text_ids[: task.bins]).all()
    assert np.flatnonzero(window.scored).tolist() == [
        (i + 1) * (task.dimensions + 1) - 1 for i in range(len(y))
    ]
    read_x, read_y = task.values(window.ids, SYMBOLS)
    assert (read_x == x).all()
    assert (np.abs(read_y - np.clip(y, -task.limit, task.limit)) <= task.limit / task.bins + 1e-9).all()


def test_what_is_drawn_has_the_spread_that_is_said():
    task = LinearRegression(dimensions=3, pairs=2000, noise=0.5)
    w, x, y = task.draw(rng())
    np.testing.assert_allclose(x.std(0), 1, atol=0.06)
    assert abs(np.std(y - x @ w) - 0.5) < 0.03
    small = LinearRegression(dimensions=3, pairs=1)
    points = np.concatenate([small.draw(rng(seed))[2] for seed in range(2000)])
    assert abs(points.var() - 1) < 0.12  # four standard errors
    counts = {len(LinearRegression(pairs=5, least=3).draw(rng(seed))[2]) for seed in range(50)}
    assert counts == {4, 5, 6}


def test_least_squares_by_hand():
    # One point tells of one direction only; of all fits the smallest says 0 across it.
    x = np.array([[2.0, 0.0], [1.0, 5.0], [0.0, 1.0], [1.0, 1.0]])
    y = np.array([4.0, 7.0, 1.0, 3.0])
    np.testing.assert_allclose(least_squares(x, y), [0, 2, 1, 3], atol=1e-12)


@given(st.integers(1, 6), seeds)
@settings(max_examples=25)
def test_least_squares_is_exact_after_as_many_points_as_dimensions(dimensions, seed):
    task = LinearRegression(dimensions=dimensions, pairs=dimensions + 7)
    w, x, y = task.draw(rng(seed))
    np.testing.assert_allclose(y, x @ w, atol=1e-12)
    predictions = least_squares(x, y)
    np.testing.assert_allclose(predictions[dimensions + 3 :], y[dimensions + 3 :], atol=1e-6)
    assert predictions[0] == 0


@given(seeds)
@settings(max_examples=25)
def test_least_squares_of_rounded_numbers_finds_the_weights_within_a_bin(seed):
    """With as many points, rounding errors of half a bin at most average out."""
    task = LinearRegression(dimensions=2, pairs=60, bins=32, limit=6.0)
    w, x, y = task.draw(rng(seed))
    read_x, read_y = task.values(task.sample(rng(seed), SYMBOLS).ids, SYMBOLS)
    found = np.linalg.lstsq(read_x, read_y)[0]
    if np.abs(y).max() < task.limit:
        assert np.abs(found - w).max() < 2 * task.limit / task.bins


@given(seeds, st.floats(0.01, 10))
@settings(max_examples=25)
def test_ridge_is_least_squares_with_points_that_say_zero(seed, strength):
    x, y = rng(seed).standard_normal((8, 3)), rng(seed + 1).standard_normal(8)
    found = ridge(x, y, strength)
    for i in range(8):
        rows = np.concatenate([x[:i], np.sqrt(strength) * np.eye(3)])
        weights = np.linalg.lstsq(rows, np.append(y[:i], np.zeros(3)))[0]
        np.testing.assert_allclose(found[i], x[i] @ weights, atol=1e-9)


def test_bayes_is_the_mean_of_the_posterior():
    """Against weights drawn from the prior, each as likely as the points say."""
    task = LinearRegression(dimensions=1, pairs=2, noise=0.5, bins=64)
    _, x, y = task.draw(rng(1))
    variance = 0.5**2 + (6 / 64) ** 2 / 12
    w = rng(2).standard_normal((200_000, 1))
    log_weight = -((y[:2, None] - x[:2] @ w.T) ** 2).sum(0) / (2 * variance)
    share = np.exp(log_weight - log_weight.max())
    expected = x[2, 0] * (share @ w[:, 0]) / share.sum()
    assert task.bayes(x, y)[2] == pytest.approx(expected, abs=0.01)


def test_bayes_is_nearer_to_the_truth_than_least_squares_and_both_than_nothing():
    task = LinearRegression(dimensions=3, pairs=5, bins=32, noise=0.5)
    errors = []
    for seed in range(400):
        w, x, _ = task.draw(rng(seed))
        _, y = task.values(task.sample(rng(seed), SYMBOLS).ids, SYMBOLS)
        guesses = np.clip([least_squares(x, y)[-1], task.bayes(x, y)[-1], 0], -3, 3)
        errors.append((guesses - x[-1] @ w) ** 2)
    ols, bayes, zero = np.mean(errors, 0)
    assert bayes < ols < zero


@given(tasks(), seeds)
@settings(max_examples=10)
def test_the_solver_answers_with_the_bin_of_least_squares(task, seed):
    window = task.sample(rng(seed), SYMBOLS)
    x, y = task.values(window.ids, SYMBOLS)
    answers = task.oracle(window, SYMBOLS)
    answered = window.ids.copy()
    answered[window.scored] = answers[window.scored]
    guesses = task.values(answered, SYMBOLS)[1]
    expected = np.clip(least_squares(x, y), -task.limit, task.limit)
    assert (np.abs(guesses - expected) <= task.limit / task.bins + 1e-9).all()
    assert not answers[~window.scored].any()
    # The last y is no part of what any answer was found from.
    window.ids[-1] = SYMBOLS.text_ids[0]
    assert task.oracle(window, SYMBOLS).tolist() == answers.tolist()


def test_the_solver_is_nearly_exact_in_fine_bins():
    task = LinearRegression(dimensions=1, pairs=7, bins=4096)
    tokenizer = Symbols(size=4096)
    errors = []
    for seed in range(20):
        window = task.sample(rng(seed), tokenizer)
        answers = task.oracle(window, tokenizer)[window.scored][4:]
        errors.append(np.abs(answers - window.ids[window.scored][4:]))
    assert np.median(errors) <= 2


def test_the_objective_says_which_y_are_learned():
    task = LinearRegression(dimensions=2, pairs=3, bins=32)
    window = task.sample(rng(), SYMBOLS)
    every = CausalLM(loss="targets")(window, rng(), SYMBOLS)
    assert len(every.inputs) == 0
    assert np.flatnonzero(every.weights).tolist() == [2, 5, 8, 11]
    last = Seq2Seq()(window, rng(), SYMBOLS)
    assert last.inputs.tolist() == [*window.ids[:11], SYMBOLS.eos]
    assert last.targets.tolist() == [window.ids[11], SYMBOLS.eos]


def data(layout, objective):
    task = LinearRegression(dimensions=2, pairs=4, bins=16)
    return Data(
        **{"corpus": task, "objective": objective, "layout": layout, "tokenizer": SYMBOLS},
        **{"window": 15, "batch": 4, "held_out": 20, "examples": 60},
    ).load()


def test_windows_are_the_same_for_every_family_and_in_one_split_each():
    arms = [
        data(Concatenate(), CausalLM(loss="targets")),
        data(Concatenate(), Seq2Seq()),
        data(Split(), Seq2Seq(most_inputs=14, most_targets=1)),
    ]
    lines = [
        {name: [window.ids.tobytes() for window in arm.windows[0][name]] for name in arm.windows[0]}
        for arm in arms
    ]
    assert lines[0] == lines[1] == lines[2]
    assert len({arm.order(0, 20) for arm in arms}) == 1
    splits = [set(line) for line in lines[0].values()]
    assert [len(split) for split in splits] == [60, 20, 20]
    assert len(set.union(*splits)) == 100


def test_what_a_made_window_was_drawn_from_can_be_drawn_again():
    task = LinearRegression(dimensions=2, pairs=4, bins=16)
    made = Made(task, SYMBOLS, "test", 30, 15, (0.0, 0.1), lambda window: True)
    for i in range(30):
        window, seed = made.drawn(i)
        assert window.ids.tolist() == made[i].ids.tolist() == task.sample(rng(seed), SYMBOLS).ids.tolist()
    with pytest.raises(IndexError):
        made.drawn(30)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: LinearRegression(dimensions=0), r"LinearRegression\.dimensions = 0: expected at least 1"),
        (lambda: LinearRegression(pairs=0), r"pairs = 0; expected 1 <= least <= pairs"),
        (lambda: LinearRegression(pairs=3, least=4), r"least = 4, pairs = 3"),
        (lambda: LinearRegression(noise=-1.0), r"LinearRegression\.noise = -1"),
        (lambda: LinearRegression(bins=1), r"LinearRegression\.bins = 1"),
        (lambda: LinearRegression(limit=0.0), r"LinearRegression\.limit = 0"),
        (
            lambda: LinearRegression().sample(rng(), Symbols(size=32)),
            r"alphabet of 32 symbols: expected at least 64",
        ),
        (
            lambda: LinearRegression(alphabet=300).sample(rng(), Bytes()),
            r"LinearRegression\.alphabet = 300: expected at most the 256",
        ),
        (
            lambda: LinearRegression(dimensions=2).values(np.arange(4, 8, dtype=np.int32), SYMBOLS),
            r"LinearRegression\.values got 4 tokens: expected 3",
        ),
        (
            lambda: LinearRegression(dimensions=1, bins=8).values(np.array([4, 12], np.int32), SYMBOLS),
            r"first 8 text ids",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(wrong, match):
    with pytest.raises(ValueError, match=match) as caught:
        wrong()
    assert "\n" not in str(caught.value)

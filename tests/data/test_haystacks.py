"""Long texts: full to the token, needles where they should be, and answers that are in the text."""

import collections
import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.haystacks import (
    SENTENCES,
    CommonWords,
    FrequentWords,
    Needle,
    Passkey,
    VariableTracking,
    grid,
)
from research.data.tokenizers import Bytes

LONGEST = max(map(len, SENTENCES)) + 1
seeds = st.integers(0, 2**32)


def rng(seed=0):
    return np.random.default_rng(seed)


class Pairs(Bytes):
    """Two bytes to a token, so that tokens of a text are not those of its sentences."""

    vocab_size = 4 + 256 + 2**16

    def encode(self, text):
        raw = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        whole = raw[: len(raw) // 2 * 2].reshape(-1, 2)
        return np.concatenate([260 + 256 * whole[:, 0] + whole[:, 1], 4 + raw[2 * len(whole) :]]).astype(
            np.int32
        )

    def decode(self, ids):
        return b"".join(
            bytes([i - 4]) if i < 260 else bytes(divmod(i - 260, 256)) for i in ids.tolist()
        ).decode()


def text(window, tokenizer):
    """The given text and the answer."""
    return tokenizer.decode(window.ids[: window.given]), tokenizer.decode(window.ids[window.given :])


@st.composite
def needles(draw):
    keys, values = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    queries = draw(st.integers(1, keys))
    depths = st.none() | st.floats(0, 1) if queries * values == 1 else st.none()
    return Needle(
        tokens=draw(st.integers(900, 1500)), keys=keys, values=values, queries=queries, depth=draw(depths)
    )


tokens = st.integers(900, 1500)
tasks = st.one_of(
    st.builds(Passkey, tokens=tokens, depth=st.none() | st.floats(0, 1), digits=st.integers(1, 18)),
    needles(),
    st.builds(VariableTracking, tokens=tokens, chains=st.integers(1, 4), hops=st.integers(1, 5)),
    st.builds(
        CommonWords,
        tokens=tokens,
        words=st.integers(1, 4),
        common=st.integers(4, 8),
        uncommon=st.integers(1, 3),
    ),
    st.builds(FrequentWords, tokens=tokens, words=st.integers(1, 3), alpha=st.floats(1.5, 3)),
)


@given(tasks, seeds, st.sampled_from([Bytes(), Pairs()]))
@settings(max_examples=150)
def test_the_solver_finds_what_the_generator_wrote(task, seed, tokenizer):
    window = task.sample(rng(seed), tokenizer)
    answers = task.oracle(window, tokenizer)
    assert window.scored.any()
    assert not window.scored[: window.given].any()
    assert answers[window.scored].tolist() == window.ids[window.scored].tolist()
    assert not answers[~window.scored].any()
    assert window.ids.dtype == answers.dtype == np.int32


@given(tasks, seeds)
@settings(max_examples=50)
def test_the_solver_reads_nothing_of_the_answer_and_contradicts_a_wrong_one(task, seed):
    window = task.sample(rng(seed), Bytes())
    ids = window.ids.copy()
    ids[window.given :] = np.where(ids[window.given :] == 70, 71, 70)
    wrong = dataclasses.replace(window, ids=ids)
    answers = task.oracle(wrong, Bytes())
    assert answers[window.scored].tolist() == window.ids[window.scored].tolist()
    assert (answers[window.scored] != ids[window.scored]).all()


@given(tasks, seeds)
@settings(max_examples=50)
def test_another_text_has_another_answer(task, seed):
    window = task.sample(rng(seed), Bytes())
    given_text, answer = text(window, Bytes())
    body, question = given_text.rstrip("\n").rsplit("\n", 1)
    # What the answer names is no longer in the text.
    for part in answer.split():
        body = body.replace(part, "0" * len(part))
    assert task.solve(f"{body}\n{question}\n") != answer


@given(tasks, seeds)
@settings(max_examples=80)
def test_a_sample_is_as_full_as_one_more_unit_of_filler_allows(task, seed):
    for tokenizer, width in ((Bytes(), 1), (Pairs(), 2)):
        spare = task.tokens - len(task.sample(rng(seed), tokenizer).ids)
        assert spare >= 0
        if isinstance(task, CommonWords):
            # "123. bakodu " for each time a word comes
            unit = task.uncommon * 12
        elif isinstance(task, FrequentWords):
            # One more step of the scale adds a word to the dots, and now and then one to each of a few ranks.
            unit = 60
        else:
            unit = LONGEST
        assert spare < unit / width + 1


@pytest.mark.parametrize(
    "task",
    [
        Passkey(tokens=600),
        Needle(tokens=900, keys=3),
        VariableTracking(tokens=600),
        CommonWords(tokens=900, words=2, common=8),
        FrequentWords(tokens=900),
    ],
)
def test_a_sample_is_a_function_of_the_generator(task):
    first, again, other = (task.sample(rng(seed), Bytes()).ids.tolist() for seed in (1, 1, 2))
    assert first == again != other


@given(st.floats(0, 1), st.integers(500, 3000), seeds, st.booleans())
@settings(max_examples=50)
def test_a_needle_is_as_deep_as_it_should_be(depth, tokens, seed, many):
    task = Needle(tokens=tokens, depth=depth, keys=3) if many else Passkey(tokens=tokens, depth=depth)
    given_text, answer = text(task.sample(rng(seed), Bytes()), Bytes())
    body = given_text.split("\n")[1]
    needle = next(
        piece for piece in re.findall(r"The (?:pass key|number of \w+) is \d+\.", body) if answer in piece
    )
    before, after = body.split(needle)
    if not many:
        after = after.replace(f" Keep it in mind: {answer} is the pass key.", "")
    others = r"The number of \w+ is \d+\. ?"
    filler = [len(re.sub(others, "", side).strip()) for side in (before, after)]
    assert abs(filler[0] - depth * sum(filler)) <= LONGEST / 2 + 2


def test_depths_0_and_1_are_the_ends_of_the_text():
    for depth in (0.0, 1.0):
        body = text(Passkey(tokens=600, depth=depth).sample(rng(), Bytes()), Bytes())[0].split("\n")[1]
        sentence = r"The pass key is \d+\. Keep it in mind: \d+ is the pass key\."
        assert re.search(rf"^{sentence}" if depth == 0 else rf"{sentence}$", body)


def test_depths_drawn_are_spread_evenly():
    shares = []
    for seed in range(200):
        body = text(Passkey(tokens=2000).sample(rng(seed), Bytes()), Bytes())[0].split("\n")[1]
        shares.append(body.index("The pass key is") / len(body))
    assert np.abs(np.histogram(shares, 4, (0, 1))[0] - 50).max() < 25


def test_every_key_has_its_own_numbers():
    task = Needle(tokens=4000, keys=6, values=3, queries=2)
    given_text, answer = text(task.sample(rng(), Bytes()), Bytes())
    found = re.findall(r"The number of (\w+) is (\d{7})\.", given_text)
    assert sorted(collections.Counter(key for key, _ in found).values()) == [3] * 6
    assert len({number for _, number in found}) == 18
    assert len(answer.split()) == 6


def test_answers_by_hand():
    needles = "X.\nThe number of lo is 12. Rain fell. The number of mi is 34. The number of lo is 56.\n"
    needle = Needle(tokens=1, keys=2, values=2, queries=2)
    assert needle.solve(needles + "What are the numbers of lo?\n") == "12 56"
    assert needle.solve(needles + "What are the numbers of mi, lo?\n") == "34 12 56"
    assert Passkey(tokens=1).solve("X.\nThe pass key is 77. Snow.\nWhat is the pass key?\n") == "77"
    chain = "X.\nVAR A = 11. VAR C = 22. Rain. VAR B = VAR A. VAR D = VAR C. VAR E = VAR B.\n"
    assert VariableTracking(tokens=1).solve(chain + "Which variables hold 11?\n") == "A B E"
    assert VariableTracking(tokens=1).solve(chain + "Which variables hold 22?\n") == "C D"
    common = CommonWords(tokens=1, words=2, common=3, uncommon=1)
    assert common.solve("X.\n1. u 2. c 3. b 4. b 5. c 6. c 7. b\nWhat?\n") == "c b"
    assert FrequentWords(tokens=99, words=2).solve("X.\n... b a ... ... a a ... b c\nWhat?\n") == "a b"


def test_chains_stand_in_their_order_and_hold_what_they_begin_with():
    task = VariableTracking(tokens=3000, chains=3, hops=4)
    given_text, answer = text(task.sample(rng(), Bytes()), Bytes())
    statements = re.findall(r"VAR (\w+) = (\d+|VAR \w+)\.", given_text)
    assert len(statements) == len({name for name, _ in statements}) == 15
    assert sum(value.isdigit() for _, value in statements) == 3
    names = answer.split()
    mine = [(name, value) for name, value in statements if name in names]
    assert [name for name, _ in mine] == names
    assert [value for _, value in mine[1:]] == [f"VAR {name}" for name in names[:-1]]
    assert f"hold {mine[0][1]}?" in given_text


def test_common_words_come_as_often_as_they_should():
    task = CommonWords(tokens=4000, words=5, common=20, uncommon=3)
    given_text, answer = text(task.sample(rng(), Bytes()), Bytes())
    numbered = re.findall(r"(\d+)\. (\w+)", given_text)
    counts = collections.Counter(word for _, word in numbered)
    assert [int(number) for number, _ in numbered] == list(range(1, len(numbered) + 1))
    assert sorted(set(counts.values())) == [3, 20]
    assert {word for word, count in counts.items() if count == 20} == set(answer.split())
    assert sorted(answer.split(), key=given_text.index) == answer.split()


@given(st.floats(1.2, 4), st.integers(1, 5), seeds)
@settings(max_examples=50)
def test_frequent_words_fall_with_their_rank_and_never_tie(alpha, words, seed):
    task = FrequentWords(tokens=200_000, words=words, alpha=alpha)
    for units in (0, 1, 7):
        given_text, answer = task.write(rng(seed), units)
        counts = collections.Counter(given_text.split("\n")[1].split())
        ranked = [counts["..."], *(counts[word] for word in answer.split())]
        assert len(ranked) == words + 1
        assert (np.diff(ranked) < 0).all()
        rest = [count for word, count in counts.items() if word not in ("...", *answer.split())]
        assert max(rest, default=0) < ranked[-1]
        law = ranked[0] * np.arange(1, len(ranked) + 1) ** -alpha
        assert ((law - ranked > -1e-9) & (law - ranked < 1)).all()


def test_filler_says_nothing_of_the_tasks():
    assert len(set(SENTENCES)) == len(SENTENCES) >= 20
    for sentence in SENTENCES:
        assert re.fullmatch(r"[A-Z][a-z]*( [a-z]+)*\.", sentence)
        assert "number" not in sentence
        assert "key" not in sentence


def test_a_grid_is_every_length_at_every_depth():
    cells = grid(Passkey(tokens=1, digits=6), [400, 800], [0.0, 0.5, 1.0])
    assert [(length, depth) for length, depth, _ in cells] == [
        (400, 0.0),
        (400, 0.5),
        (400, 1.0),
        (800, 0.0),
        (800, 0.5),
        (800, 1.0),
    ]
    assert all((task.tokens, task.depth, task.digits) == (length, depth, 6) for length, depth, task in cells)


@pytest.mark.parametrize(
    ("task", "match"),
    [
        (lambda: Passkey(tokens=9, depth=1.5), r"Passkey\.depth = 1\.5: expected 0 <= depth <= 1"),
        (lambda: Passkey(tokens=9, digits=0), r"Passkey\.digits = 0"),
        (lambda: Passkey(tokens=9, digits=19), r"Passkey\.digits = 19"),
        (lambda: Needle(tokens=9, keys=0), r"Needle\.keys = 0"),
        (lambda: Needle(tokens=9, values=501), r"Needle\.values = 501: expected 1 to 500"),
        (lambda: Needle(tokens=9, queries=2), r"Needle\.queries = 2: expected at most Needle\.keys = 1"),
        (lambda: Needle(tokens=9, depth=-1.0), r"Needle\.depth = -1"),
        (lambda: Needle(tokens=9, values=2, depth=0.5), r"Needle\.depth = 0\.5: 1 queries of 2 values"),
        (lambda: Needle(tokens=9, keys=10, digits=1), r"Needle\.digits = 1: .* for 10 different numbers"),
        (lambda: VariableTracking(tokens=9, chains=0), r"VariableTracking\.chains = 0"),
        (lambda: VariableTracking(tokens=9, hops=0), r"VariableTracking\.hops = 0"),
        (lambda: CommonWords(tokens=9, words=0), r"CommonWords\.words = 0"),
        (lambda: CommonWords(tokens=9, uncommon=0), r"CommonWords\.uncommon = 0"),
        (lambda: CommonWords(tokens=9, common=3), r"CommonWords\.common = 3: expected more than"),
        (lambda: FrequentWords(tokens=99, words=0), r"FrequentWords\.words = 0"),
        (lambda: FrequentWords(tokens=99, alpha=1.0), r"FrequentWords\.alpha = 1\.0: expected more than 1"),
        (lambda: FrequentWords(tokens=99, alpha=1e3), r"FrequentWords\.alpha = 1000\.0: .* at most 10"),
        (lambda: FrequentWords(tokens=45), r"FrequentWords\.tokens = 45: expected at least 46"),
        (
            lambda: Passkey(tokens=99).sample(rng(), Bytes()),
            r"Passkey\.tokens = 99: expected at least the \d+",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(task, match):
    with pytest.raises(ValueError, match=match) as caught:
        task()
    assert "\n" not in str(caught.value)


@given(tasks, seeds)
@settings(max_examples=25)
def test_a_text_that_fits_to_the_token_is_kept(task, seed):
    window = task.sample(rng(seed), Bytes())
    exact = dataclasses.replace(task, tokens=len(window.ids))
    assert exact.sample(rng(seed), Bytes()).ids.tolist() == window.ids.tolist()


def test_a_text_without_room_for_filler_is_full():
    spare = Passkey(tokens=400).sample(rng(), Bytes())
    least = len(Passkey(tokens=400).write(rng(), 0)[0]) + 5
    window = Passkey(tokens=least).sample(rng(), Bytes())
    assert len(window.ids) == least < len(spare.ids)
    assert not any(sentence in text(window, Bytes())[0] for sentence in SENTENCES)

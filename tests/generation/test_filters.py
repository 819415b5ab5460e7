"""Post-filters on text: properties on random text with and without repeats, and examples by hand."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.generation.filters import Candidate, CutRepeats, Rerank, cut_repeats, repetition, words

# Few words, many of them again, and all that may stand between them.
LOOPY = st.lists(
    st.tuples(
        st.sampled_from(["a", "B", "b", "c,", "d.", "d!", "“b", "-"]), st.sampled_from([" ", " ", "\n", "  "])
    ),
    max_size=40,
).map(lambda pieces: "".join(itertools.chain(*pieces)))
TEXTS = LOOPY | st.text(max_size=60) | LOOPY.map(str.strip)
RULES = st.builds(
    CutRepeats,
    sentence=st.none() | st.integers(1, 4),
    phrase=st.none() | st.integers(1, 6),
    times=st.integers(2, 4),
)


def is_subsequence(short, long):
    rest = iter(long)
    return all(word in rest for word in short)


# --- properties


@given(rule=RULES, text=TEXTS)
def test_what_was_cut_stays_as_it_is(rule, text):
    cut = rule(text)
    assert rule(cut) == cut


@given(rule=RULES, text=TEXTS)
def test_a_cut_only_takes_away(rule, text):
    cut = rule(text)
    assert len(cut) < len(text) or cut == text
    assert is_subsequence(words(cut), words(text))


@given(rule=RULES, text=TEXTS)
def test_the_first_occurrence_of_every_word_survives(rule, text):
    def first(line):
        return list(dict.fromkeys(words(line)))

    assert first(rule(text)) == first(text)


@given(rule=RULES, text=TEXTS)
def test_no_loop_is_left(rule, text):
    line = words(rule(text))
    for size in range(1, (rule.phrase or 0) + 1):
        for start in range(len(line) - size * rule.times + 1):
            phrase = line[start : start + size]
            assert line[start : start + size * rule.times] != phrase * rule.times


@given(
    rule=RULES,
    distinct=st.lists(
        st.text(st.characters(categories=["Ll", "Po", "Nd"]), min_size=1), unique_by=lambda w: w, max_size=20
    ),
    gaps=st.lists(st.sampled_from([" ", "\n", "\n\n", "\t", ". ", "! "]), min_size=20, max_size=20),
)
def test_text_without_repeats_comes_back_as_it_is(rule, distinct, gaps):
    text = "".join(f"{i}{word}{gap}" for i, (word, gap) in enumerate(zip(distinct, gaps, strict=False)))
    assert rule(text) == text


@given(st.integers(1, 5), st.integers(3, 8), st.integers(0, 4), st.randoms(use_true_random=False))
def test_a_loop_is_cut_to_its_first_copy(size, copies, broken, rng):
    vocabulary = [f"w{i}" for i in range(40)]
    rng.shuffle(vocabulary)
    before, phrase, after = vocabulary[:10], vocabulary[10 : 10 + size], vocabulary[20:25]
    loop = " ".join(before + phrase * copies)
    assert CutRepeats()(f"{loop}. {' '.join(after)}") == f"{' '.join(before + phrase)}. {' '.join(after)}"
    ends_in_it = " ".join([loop, *phrase[: min(broken, size - 1)]])
    assert CutRepeats()(ends_in_it) == " ".join(before + phrase)
    assert CutRepeats(phrase=None)(loop) == loop
    assert CutRepeats(times=copies + 1)(loop) == loop


@given(st.permutations(range(6)), st.integers(0, 5), st.integers(4, 8))
def test_a_sentence_that_comes_again_anywhere_is_cut(order, again, length):
    sentences = [" ".join(f"s{i}w{j}" for j in range(length)) + "." for i in order]
    text = " ".join(sentences)
    assert CutRepeats()(f"{text} {sentences[again].upper()}\n") == f"{text}\n"
    assert CutRepeats()(f"{text} {sentences[again]} The end.") == f"{text} The end."
    assert CutRepeats(sentence=length + 1)(f"{text} {sentences[again]} x") == f"{text} {sentences[again]} x"


# --- by hand


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \n", " \n"),
        ("no, no, no!", "no!"),
        ("It was good, it was good, it was good. Then she left.", "It was good. Then she left."),
        ("very very well", "very very well"),
        ("Yes. No. Yes. No. Maybe.", "Yes. No. Yes. No. Maybe."),
        ("One fine day it rained.\n\nOne fine day it rained.\n\nThen not.", "One fine day it rained.\n\nThen not."),
        ('"Where have you been today?" he said. "Where have you been today?" she said.',
         '"Where have you been today?" he said. she said.'),
        ("the dog and the dog and the dog and the", "the dog and"),
        ("the dog and the dog and the dog and the end", "the dog and the end"),
        ("One fine day it rained. One fine day day day it rained.", "One fine day it rained."),
        ("- - - x", "- x"),
        ("Mr. Smith saw Mr. Jones. Mr. Smith saw Mrs. Jones.", "Mr. Smith saw Mr. Jones. Mr. Smith saw Mrs. Jones."),
        ("a line of a poem\na line of a poem\nanother", "a line of a poem\nanother"),
    ],
)  # fmt: skip
def test_examples(text, expected):
    assert CutRepeats()(text) == expected


def test_a_long_text_is_quick():
    rng = random.Random(0)
    text = " ".join(rng.choice(["a", "b.", "!" * 50]) for _ in range(5_000))
    assert len(CutRepeats()(text)) < len(text)
    assert CutRepeats()("!" * 100_000 + " " * 100_000) == "!" * 100_000 + " " * 100_000


# --- repetition and ranks


def test_repetition_by_hand():
    assert repetition("the cat and the dog and The cat", 1) == 1 - 4 / 8
    assert repetition("the cat and the dog and the cat", 2) == 1 - 5 / 7
    assert repetition("a a a a a", 4) == 1 / 2
    assert repetition("a b c", 4) == 0


@given(TEXTS, st.integers(1, 5))
def test_repetition_counts_the_grams_that_came_before(text, size):
    line = words(text)
    grams = [line[i : i + size] for i in range(len(line) - size + 1)]
    again = sum(gram in grams[:i] for i, gram in enumerate(grams))
    assert repetition(text, size) == pytest.approx(again / max(len(grams), 1))


CANDIDATES = st.lists(st.tuples(LOOPY, st.floats(-50, 0)), max_size=6)


@given(CANDIDATES, st.floats(0, 100), st.integers(1, 4))
def test_ranks_are_those_of_the_score_and_nothing_is_lost(candidates, penalty, size):
    ranked = Rerank(penalty=penalty, size=size)(candidates)
    assert sorted(ranked) == sorted(candidates)
    scores = [c.log_probability - penalty * repetition(c.text, size) for c in ranked]
    assert scores == sorted(scores, reverse=True)


@given(CANDIDATES)
def test_without_a_penalty_the_likeliest_is_first_and_equals_keep_their_order(candidates):
    assert Rerank(penalty=0.0)(candidates) == sorted(candidates, key=lambda c: -c[1])


def test_a_penalty_turns_the_order():
    loop, text = Candidate("a b c d a b c d a b c d", -1.0), Candidate("a b c d e f g h i j k l", -2.0)
    assert repetition(loop.text, 4) == 5 / 9
    assert Rerank(penalty=1.0)([text, loop]) == [loop, text]
    assert Rerank(penalty=2.0)([text, loop]) == [text, loop]


# --- errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CutRepeats(sentence=0), "CutRepeats.sentence = 0: expected at least 1"),
        (lambda: CutRepeats(phrase=0), "CutRepeats.phrase = 0: expected at least 1"),
        (lambda: CutRepeats(times=1), "CutRepeats.times = 1: expected at least 2"),
        (lambda: Rerank(penalty=-1.0), "Rerank.penalty = -1.0: expected at least 0"),
        (lambda: Rerank(penalty=math.nan), "Rerank.penalty = nan"),
        (lambda: Rerank(penalty=1.0, size=0), "Rerank.size = 0: expected at least 1"),
        (
            lambda: Rerank(penalty=1.0)([("a", -1.0), ("b", math.nan)]),
            "Rerank: log_probability = nan",
        ),
    ],
)
def test_errors_name_the_field_its_value_and_what_was_expected(build, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build()


def test_arguments_are_those_of_the_rule():
    text = "x y x y x y"
    assert cut_repeats(text, sentence=None, phrase=2, times=3) == "x y"
    assert cut_repeats(text, sentence=None, phrase=1, times=3) == text

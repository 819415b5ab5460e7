"""Metrics of repetition: by hand, against slow literal definitions, and under new names of the tokens."""

import functools
import math
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.evaluation import loops, repetition
from research.evaluation.repetition import TooShort
from research.evaluation.samples import METRICS


def ids(*texts):
    """A sequence for each text, a token for each of its letters."""
    return [np.array([ord(letter) for letter in text], np.int32) for text in texts]


SETS = st.lists(
    st.lists(st.integers(0, 3), max_size=14).map(lambda line: np.array(line, np.int32)),
    min_size=1,
    max_size=5,
)


def grams(line, n):
    return [tuple(line[i : i + n].tolist()) for i in range(len(line) - n + 1)]


def or_none(metric, *args):
    try:
        return metric(*args)
    except (TooShort, ZeroDivisionError):
        return None


def same(one, other):
    assert (one is None) == (other is None)
    assert one is None or one == pytest.approx(other, abs=1e-12)


# By hand ---------------------------------------------------------------------------------------------------------


def test_one_of_five_bigrams_repeats_and_simctg_counts_four():
    assert repetition.seq_rep_welleck(ids("abcdab"), 2) == pytest.approx(1 / 5)
    assert repetition.seq_rep_simctg(ids("abcdab"), 2) == 0.0
    assert repetition.seq_rep_simctg(ids("abcdabc"), 2) == 0.2  # ab bc cd da ab, and bc left out


def test_welleck_averages_sequences_and_simctg_counts_of_all():
    lines = ids("aaaa", "abcdefghi", "a")
    assert repetition.seq_rep_welleck(lines, 2) == pytest.approx((2 / 3 + 0) / 2)  # "a" is left out
    assert repetition.seq_rep_simctg(lines, 2) == pytest.approx(0.1111)  # 1 - (1 + 7) / (2 + 7), rounded


def test_diversity_is_a_product():
    line = ids("abcdab")
    assert repetition.diversity_welleck(line) == pytest.approx(4 / 5)
    assert repetition.diversity_simctg(line) == 1.0
    line = ids("aaaaaa")
    assert repetition.diversity_welleck(line) == pytest.approx(1 / 5 * 1 / 4 * 1 / 3)
    assert repetition.diversity_simctg(line) == pytest.approx((1 - 0.75) * (1 - 0.6667) * (1 - 0.5))


def test_distinct_counts_types_and_holtzman_what_occurs_once():
    lines = ids("abcdab", "cd")
    assert repetition.distinct(lines, 2) == pytest.approx(4 / 6)  # ab bc cd da
    assert repetition.distinct_holtzman(lines, 2) == pytest.approx(2 / 6)  # bc da
    assert repetition.unique(lines) == 4


def test_rep_l_sees_only_so_far_back():
    gold, predicted = ids("abcad"), ids("xabac")
    # a a step ago; b a step ago; a three ago, and right; c two ago
    assert [repetition.rep_l(predicted, gold, last) for last in (1, 2, 3)] == pytest.approx(
        [2 / 5, 3 / 5, 4 / 5]
    )
    assert [repetition.wrep_l(predicted, gold, last) for last in (1, 2, 3)] == pytest.approx(
        [2 / 5, 3 / 5, 3 / 5]
    )
    with pytest.raises(ValueError, match="expected one for each"):
        repetition.rep_l(ids("ab"), gold, 1)


def test_rep_w_and_rep_r():
    assert repetition.rep_w(ids("abcadb", "xy"), 3) == pytest.approx((1 / 6 + 0) / 2)
    assert repetition.rep_w(ids("abcadb"), 4) == pytest.approx(2 / 6)
    assert repetition.rep_r(ids("abcdab")) == pytest.approx(4 / 6)
    assert repetition.rep_r(ids("aaab", "a", "xyz")) == pytest.approx((3 / 4 + 0 + 0) / 3)


def test_zipf_of_a_power_law_is_its_exponent():
    line = np.repeat([1, 2, 3, 4, 5], [6000, 3000, 2000, 1500, 1200]).astype(np.int32)
    assert repetition.zipf([line]) == pytest.approx(1.0, abs=1e-12)
    assert repetition.zipf([line], most=3) == pytest.approx(1.0, abs=1e-12)
    assert repetition.zipf(ids("abcd")) == pytest.approx(0.0)
    with pytest.raises(TooShort, match="at least 2 ranks"):
        repetition.zipf(ids("aaa"))


def test_self_bleu_by_hand():
    assert repetition.self_bleu(ids("abcdef", "abcdef", "abcdef")) == pytest.approx(1.0)
    assert repetition.self_bleu(ids("abcd", "efgh")) == 0.0
    # abcde: 4/5 3/4 2/3 1/2; abcdx the same; none shorter
    assert repetition.self_bleu(ids("abcde", "abcdx")) == pytest.approx(
        (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )
    # aabb and ab: 2/4, 1/3, 0.1/2, 0.1/1 and 2/2, 1/1, 0.1, 0.1 with the brevity penalty exp(1 - 4/2)
    long = (2 / 4 * 1 / 3 * 0.1 / 2 * 0.1) ** 0.25
    short = (1 * 1 * 0.1 * 0.1) ** 0.25 * math.exp(-1)
    assert repetition.self_bleu(ids("aabb", "ab")) == pytest.approx((long + short) / 2)
    assert repetition.self_bleu(ids("abcd", "abcd", "xyz"), most=2) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least 2"):
        repetition.self_bleu(ids("ab"))


def test_reinforcement_by_hand():
    first = np.array([[0.1, 0.2], [0.3, 0.1], [0.5, 0.5]])
    second = np.array([[0.6], [0.6], [0.2]])
    found = repetition.reinforcement([first, second], [first >= 0.3, second >= 0.3])
    assert found.probability == pytest.approx([0.9 / 3, 1.0 / 3, 1.2 / 3])
    assert found.increased == pytest.approx([0, 1 / 3, 2 / 3])
    assert found.winners == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_loops_of_code_and_paper_differ():
    texts = ["xyabcabc", "xyababab", "xaaaaaa", "x" + "a" * 51, "abcdefgh", "", "qabcabcabca"]
    code, paper = loops.loops_holtzman_code(ids(*texts)), loops.loops_holtzman_paper(ids(*texts))
    assert code.period.tolist() == [3, 0, 0, 1, 0, 0, 3]
    assert code.copies.tolist() == [2, 1, 1, 51, 1, 1, 3]
    assert code.onset.tolist() == [2, 8, 7, 1, 8, 0, 1]
    assert paper.period.tolist() == [0, 2, 2, 2, 0, 0, 3]
    assert paper.onset.tolist() == [8, 2, 1, 1, 8, 0, 1]
    assert (code.rate, paper.rate) == (3 / 7, 4 / 7)


# Against literal definitions -------------------------------------------------------------------------------------


def mean(values):
    values = list(values)
    return sum(values) / len(values)


@given(SETS, st.integers(1, 5))
def test_metrics_of_n_grams_are_those_of_their_definitions(lines, n):
    some = [grams(line, n) for line in lines if len(line) >= n]
    same(
        or_none(repetition.seq_rep_welleck, lines, n),
        or_none(lambda: mean(1 - len(set(each)) / len(each) for each in some)),
    )
    every = Counter(gram for each in some for gram in each)
    same(or_none(repetition.distinct, lines, n), or_none(lambda: len(every) / every.total()))
    once = sum(count == 1 for count in every.values())
    same(or_none(repetition.distinct_holtzman, lines, n), or_none(lambda: once / every.total()))
    less = [grams(line, n)[:-1] for line in lines]
    same(
        or_none(repetition.seq_rep_simctg, lines, n),
        or_none(
            lambda: round(100 * (1 - sum(len(set(each)) for each in less) / sum(map(len, less))), 2) / 100
        ),
    )


@pytest.mark.parametrize("n", [2, 5, 6, 7, 8, 20])
def test_long_n_grams_of_many_tokens_are_told_apart(n):
    """Codes that would not fit into 64 bits are numbered anew on the way."""
    rng = np.random.default_rng(n)
    lines = [rng.integers(0, 4000, 3000), *(np.tile(rng.integers(0, 4000, 40), 3) for _ in range(3))]
    every = Counter(gram for line in lines for gram in grams(line, n))
    assert repetition.distinct(lines, n) == pytest.approx(len(every) / every.total(), abs=1e-12)


@given(SETS, st.integers(1, 6))
def test_metrics_of_tokens_are_those_of_their_definitions(lines, w):
    some = [line.tolist() for line in lines if len(line)]
    same(
        or_none(repetition.rep_w, lines, w),
        or_none(
            lambda: mean(mean(t in line[max(0, i - w) : i] for i, t in enumerate(line)) for line in some)
        ),
    )

    def covered(line):
        counts = Counter(zip(line, line[1:], strict=False))
        pairs = [counts[pair] > 1 for pair in zip(line, line[1:], strict=False)]
        return mean(any(pairs[max(i - 1, 0) : i + 1]) for i in range(len(line)))

    same(or_none(repetition.rep_r, lines), or_none(lambda: mean(map(covered, some))))
    assert repetition.unique(lines) == len({token for line in some for token in line})


@given(SETS, st.integers(1, 6), st.randoms(use_true_random=False))
def test_rep_l_is_that_of_its_definition(gold, last, random):
    predicted = [np.array([random.randint(0, 4) for _ in line], np.int32) for line in gold]
    pairs = [
        (p in line[max(0, i - last) : i], p != line[i])
        for guess, line in zip(predicted, gold, strict=True)
        for i, p in enumerate(guess.tolist())
    ]
    same(or_none(repetition.rep_l, predicted, gold, last), or_none(lambda: mean(a for a, _ in pairs)))
    same(or_none(repetition.wrep_l, predicted, gold, last), or_none(lambda: mean(a and b for a, b in pairs)))


def literal_bleu(hypothesis, references):
    score = 1.0
    for n in range(1, 5):
        own = Counter(grams(hypothesis, n))
        best = Counter()
        for reference in references:
            best |= Counter(grams(reference, n))
        hits = sum((own & best).values())
        if n == 1 and not hits:
            return 0.0
        score *= (hits or 0.1) / max(own.total(), 1)
    size = len(hypothesis)
    closest = min((len(one) for one in references), key=lambda other: (abs(other - size), other))
    return score**0.25 * (1 if size > closest else math.exp(1 - closest / size))


@given(SETS.filter(lambda lines: len(lines) > 1))
def test_self_bleu_is_that_of_its_definition(lines):
    expected = mean(literal_bleu(line, lines[:i] + lines[i + 1 :]) for i, line in enumerate(lines))
    assert repetition.self_bleu(lines) == pytest.approx(expected, abs=1e-12)


def copies(line, period):
    """Whole copies of the last phrase at the end."""
    count = 1
    while (
        line[len(line) - (count + 1) * period :][:period] == line[len(line) - period :]
        and len(line) >= (count + 1) * period
    ):
        count += 1
    return count


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), max_size=6),
            st.lists(st.integers(0, 2), min_size=1, max_size=4),
            st.integers(0, 60),
            st.integers(0, 4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_loops_are_those_of_their_definitions(parts):
    lines = [head + phrase * times + phrase[:rest] for head, phrase, times, rest in parts]
    arrays = [np.array(line, np.int32) for line in lines]
    code, paper = loops.loops_holtzman_code(arrays), loops.loops_holtzman_paper(arrays)
    for row, line in enumerate(lines):
        counts = [copies(line, period) if 2 * period <= len(line) else 1 for period in range(1, 91)]
        best = counts.index(max(counts))
        loop = counts[best] > 1 and (best + 1 >= 3 or counts[best] > 50)
        assert code.period[row] == (best + 1 if loop else 0)
        assert code.copies[row] == (counts[best] if loop else 1)
        three = [p for p in range(2, len(line) // 3 + 1) if copies(line, p) >= 3]
        assert paper.period[row] == (three[0] if three else 0)
        for found in (code, paper):
            start, period = int(found.onset[row]), int(found.period[row])
            if not period:
                assert start == len(line)
                continue
            assert all(line[i] == line[i + period] for i in range(start, len(line) - period))
            assert start == 0 or line[start - 1] != line[start - 1 + period]


@given(SETS, st.permutations(range(4)), st.integers(1, 4))
def test_new_names_of_the_tokens_change_nothing(lines, names, n):
    renamed = [7 + 1000 * np.array(names, np.int64)[line] for line in lines]
    for metric in METRICS.values():
        same(or_none(metric, lines, n), or_none(metric, renamed, n))
    if len(lines) > 1:
        same(repetition.self_bleu(lines), repetition.self_bleu(renamed))


def test_tokens_are_counted_in_arrays_and_not_one_by_one():
    """Less than 20 calls, of Python or of C, for each of 1,000 samples of 256 tokens, whatever the metric."""
    lines = list(np.random.default_rng(0).zipf(1.3, (1000, 256)) % 5000)
    measured = {name: functools.partial(metric, lines, 4) for name, metric in METRICS.items()}
    for last in (16, 512):
        measured[f"rep_l {last}"] = functools.partial(repetition.rep_l, lines, lines, last)
        measured[f"wrep_l {last}"] = functools.partial(repetition.wrep_l, lines, lines, last)
    calls: Counter[str] = Counter()
    for name, metric in measured.items():
        sys.setprofile(
            lambda frame, event, argument, name=name: calls.update([name] * (event[-4:] == "call"))
        )
        try:
            metric()
        finally:
            sys.setprofile(None)
    assert calls.keys() == measured.keys()
    assert max(calls.values()) < 20 * 1000, calls


# T50 -------------------------------------------------------------------------------------------------------------

GRID = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.mark.parametrize("true", [0.25, 0.5, 0.7])
@pytest.mark.parametrize("width", [0.05, 0.15])
def test_t50_of_a_logistic_is_recovered(true, width):
    shares = 1 / (1 + np.exp((np.array(GRID) - true) / width))
    samples = [10_000] * len(GRID)
    found = loops.t50(GRID, np.round(10_000 * shares).astype(int), samples)
    assert found.censored is None
    assert found.value == pytest.approx(true, abs=2e-3)
    assert found.low < found.value < found.high < found.low + 0.02


@pytest.mark.parametrize(("top", "middle", "width"), [(0.8, 0.5, 0.1), (0.65, 0.4, 0.08), (0.9, 0.3, 0.15)])
def test_t50_is_where_half_loop_and_not_half_of_those_that_ever_do(top, middle, width):
    """A model that leaves its loops again has a share below 1 at every temperature."""
    shares = top / (1 + np.exp((np.array(GRID) - middle) / width))
    found = loops.t50(GRID, np.round(10_000 * shares).astype(int), [10_000] * len(GRID))
    assert found.value == pytest.approx(middle + width * np.log(2 * top - 1), abs=5e-3)
    assert found.low <= found.value <= found.high < found.low + 0.05


def test_the_interval_of_t50_holds_the_truth_about_as_often_as_it_says():
    rng, true = np.random.default_rng(0), 0.45
    shares = 1 / (1 + np.exp((np.array(GRID) - true) / 0.12))
    draws = [loops.t50(GRID, rng.binomial(50, shares), [50] * len(GRID)) for _ in range(40)]
    assert 34 <= sum(one.low <= true <= one.high for one in draws) <= 40
    assert np.mean([one.high - one.low for one in draws]) < 0.15


def test_t50_of_counts_that_a_step_separates_is_halfway():
    found = loops.t50(GRID, [20, 20, 20, 0, 0, 0], [20] * 6)
    assert found.value == pytest.approx(0.5, abs=1e-3)
    assert 0.4 <= found.low < found.value < found.high <= 0.6


def test_t50_is_censored_on_both_sides():
    few = loops.t50(GRID, [9, 5, 1, 0, 0, 0], [20] * 6)
    assert (few.value, few.censored) == (0.0, "left")
    many = loops.t50(GRID, [20, 20, 20, 20, 18, 11], [20] * 6)
    assert (many.value, many.censored) == (1.0, "right")
    assert loops.t50(GRID, [10, 5, 1, 0, 0, 0], [20] * 6).censored is None


@pytest.mark.parametrize(
    ("grid", "hits", "tries"),
    [
        ((0.5,), [1], [2]),
        ((0.5, 0.5), [1, 1], [2, 2]),
        ((0.0, 1.0), [3, 0], [2, 2]),
        ((0.0, 1.0), [0, 0], [0, 2]),
    ],
)
def test_counts_that_are_none_are_refused(grid, hits, tries):
    with pytest.raises(ValueError, match="t50 of .*expected"):
        loops.t50(grid, hits, tries)

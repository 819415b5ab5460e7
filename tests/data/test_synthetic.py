"""Tasks on symbols and numbers: what the generators write, the solvers find again, from earlier tokens alone."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.arithmetic import Addition
from research.data.objectives import CausalLM
from research.data.synthetic import MQAR, Induction, Permuted, Rearrangement, RepeatedSequence, SelectiveCopy
from research.data.tokenizers import Bytes, Symbols
from research.data.windows import Made, TokenWindow

SYMBOLS = Symbols(size=64)
seeds = st.integers(0, 2**32)


def rng(seed=0):
    return np.random.default_rng(seed)


@st.composite
def mqar(draw):
    pairs = draw(st.integers(1, 20))
    queries = draw(st.none() | st.integers(1, pairs))
    least = 2 * (pairs + (queries or pairs))
    return MQAR(
        pairs=pairs,
        queries=queries,
        tokens=draw(st.integers(least, least + 60)),
        power=draw(st.floats(0.01, 1)),
        alphabet=draw(st.none() | st.integers(2 * pairs, 64)),
    )


@st.composite
def rearrangement(draw):
    least = draw(st.integers(1, 12))
    return Rearrangement(
        rule=draw(st.sampled_from(["copy", "reverse", "sort"])),
        least=least,
        most=draw(st.integers(least, 24)),
        alphabet=draw(st.none() | st.integers(3, 64)),
    )


@st.composite
def selective(draw):
    remembered, noise = draw(st.integers(1, 16)), draw(st.integers(1, 8))
    return SelectiveCopy(
        tokens=draw(st.integers(2 * remembered + 1, 80)),
        remembered=remembered,
        noise=noise,
        alphabet=draw(st.none() | st.integers(noise + 3, 64)),
    )


@st.composite
def repeated(draw):
    tokens = draw(st.integers(4, 80))
    most = draw(st.integers(2, min(tokens - 2, 64)))
    return RepeatedSequence(tokens=tokens, least=draw(st.integers(2, most)), most=most)


induction = st.builds(Induction, tokens=st.integers(4, 80), alphabet=st.none() | st.integers(3, 64))
plain = st.one_of(mqar(), rearrangement(), selective(), induction, repeated())
permuted = st.builds(Permuted, task=plain, permutation=st.integers(0, 5))


@st.composite
def additions(draw):
    digits = draw(st.integers(1, 12))
    least = draw(st.none() | st.integers(1, digits))
    return Addition(digits=digits, least=least, reverse=draw(st.booleans()), pad=draw(st.booleans()))


def sampled(task, seed, tokenizer=SYMBOLS):
    window = task.sample(rng(seed), tokenizer)
    assert window.ids.dtype == np.int32
    assert window.scored.any()
    assert len(window.ids) == len(window.scored)
    return window


@given(st.one_of(plain, permuted), seeds)
@settings(max_examples=200)
def test_the_solver_finds_what_the_generator_wrote(task, seed):
    window = sampled(task, seed)
    answers = task.oracle(window, SYMBOLS)
    assert answers[window.scored].tolist() == window.ids[window.scored].tolist()
    assert not answers[~window.scored].any()
    assert len(window.ids) <= task.tokens
    alphabet = (task.task if isinstance(task, Permuted) else task).symbols(SYMBOLS)
    assert np.isin(window.ids, alphabet).all()


@given(st.one_of(plain, permuted), seeds)
@settings(max_examples=50)
def test_the_solver_reads_nothing_at_or_after_the_place(task, seed):
    window, noise = sampled(task, seed), rng(seed + 1)
    for place in np.flatnonzero(window.scored)[:5]:
        ids = window.ids.copy()
        ids[place:] = noise.choice(SYMBOLS.text_ids, len(ids) - place)
        other = TokenWindow(ids, np.arange(len(ids)) == place)
        assert task.oracle(other, SYMBOLS)[place] == window.ids[place]


@given(st.one_of(plain, permuted), seeds)
@settings(max_examples=50)
def test_the_solver_contradicts_a_wrong_answer(task, seed):
    window = sampled(task, seed)
    ids, place = window.ids.copy(), np.flatnonzero(window.scored)[-1]
    ids[place] = SYMBOLS.text_ids[(ids[place] - SYMBOLS.text_ids[0] + 1) % 64]
    assert task.oracle(dataclasses.replace(window, ids=ids), SYMBOLS)[place] != ids[place]


@pytest.mark.parametrize(
    "task",
    [
        MQAR(),
        Rearrangement(),
        SelectiveCopy(),
        Induction(),
        RepeatedSequence(most=60),
        Permuted(task=MQAR(), permutation=2),
    ],
)
def test_a_sample_is_a_function_of_the_generator(task):
    first, again, other = (sampled(task, seed) for seed in (1, 1, 2))
    assert first.ids.tolist() == again.ids.tolist()
    assert first.scored.tolist() == again.scored.tolist()
    assert first.ids.tolist() != other.ids.tolist()


@pytest.mark.parametrize(
    ("task", "before", "symbol"),
    [
        (MQAR(pairs=2, alphabet=8), [1, 6, 3, 5, 7, 0, 3], 5),
        (Rearrangement(rule="copy", alphabet=10), [3, 1, 3, 2, 9, 3], 1),
        (Rearrangement(rule="reverse", alphabet=10), [3, 1, 3, 2, 9, 2], 3),
        (Rearrangement(rule="sort", alphabet=10), [3, 1, 3, 2, 9, 1], 2),
        (SelectiveCopy(tokens=9, remembered=2, alphabet=6), [4, 1, 4, 4, 3, 4, 5, 1], 3),
        (Induction(tokens=7, alphabet=6), [2, 5, 3, 1, 0, 5], 3),
        (RepeatedSequence(tokens=8, least=2, most=3), [4, 0, 7, 4, 0, 7], 4),
    ],
)
def test_answers_by_hand(task, before, symbol):
    assert task.answer(before, task.alphabet or 8) == symbol


@given(plain, seeds)
@settings(max_examples=25)
def test_a_loss_on_targets_is_on_what_is_scored_alone(task, seed):
    window = sampled(task, seed)
    example = CausalLM(loss="targets")(window, rng(), SYMBOLS)
    assert example.weights.tolist() == window.scored.tolist()
    assert CausalLM()(window, rng(), SYMBOLS).weights.all()


def test_symbols_may_be_any_rising_ids():
    class Gaps(Symbols):
        @property
        def text_ids(self):
            return np.array([5, 9, 10, 40], np.int32)

    window = Rearrangement(rule="sort").sample(rng(), tokenizer := Gaps(size=64))
    assert set(window.ids.tolist()) == {5, 9, 10, 40}
    assert Rearrangement(rule="sort").oracle(window, tokenizer)[window.scored].tolist() == sorted(
        window.ids[window.scored].tolist()
    )


@pytest.mark.parametrize(("tokens", "pairs"), [(64, 4), (128, 8), (256, 16)])
def test_mqar_has_zoologys_shapes(tokens, pairs):
    tokenizer = Symbols(size=8192)
    first = tokenizer.text_ids[0]
    for seed in range(20):
        window = MQAR(tokens=tokens, pairs=pairs).sample(rng(seed), tokenizer)
        line = window.ids - first
        keys, values = line[: 2 * pairs : 2], line[1 : 2 * pairs : 2]
        places = np.flatnonzero(window.scored)
        assert len(line) == tokens
        assert len(places) == pairs
        assert (places % 2 == 1).all()
        assert (places > 2 * pairs).all()
        assert len(set(keys.tolist())) == len(set(values.tolist())) == pairs
        assert (keys < 4096).all()
        assert (values >= 4096).all()
        assert sorted(line[places - 1].tolist()) == sorted(keys.tolist())
        assert np.isin(line[2 * pairs :], keys).sum() == pairs  # random tokens are no keys


def test_mqar_may_use_up_its_alphabet():
    line = MQAR(pairs=6, tokens=24, alphabet=12).sample(rng(), SYMBOLS).ids - SYMBOLS.text_ids[0]
    assert sorted(line[:12:2].tolist()) == [0, 1, 2, 3, 4, 5]
    assert sorted(line[1:12:2].tolist()) == [6, 7, 8, 9, 10, 11]


def test_mqar_asks_as_many_keys_as_it_is_told():
    window = MQAR(pairs=6, queries=2, tokens=40).sample(rng(), SYMBOLS)
    assert window.scored.sum() == 2


def test_mqar_asks_early_as_its_power_says():
    def places(power):
        task = MQAR(pairs=1, tokens=22, power=power)
        return np.array([np.flatnonzero(task.sample(rng(seed), SYMBOLS).scored)[0] for seed in range(2000)])

    share = np.bincount((places(0.01) - 3) // 2, minlength=10) / 2000
    law = np.arange(1, 11) ** -0.99
    assert np.abs(share - law / law.sum()).max() < 0.045  # four standard errors
    assert np.abs(np.bincount((places(1.0) - 3) // 2, minlength=10) / 2000 - 0.1).max() < 0.027


def test_mqar_draws_every_other_symbol_as_filler():
    task = MQAR(pairs=2, queries=1, tokens=400, alphabet=8)
    window = task.sample(rng(), SYMBOLS)
    keys = set(window.ids[[0, 2]].tolist())
    rest = np.delete(window.ids, np.flatnonzero(window.scored) - 1)[4:]
    assert set(rest.tolist()) == set(task.symbols(SYMBOLS).tolist()) - keys


def test_rearrangements_by_eye():
    for rule, expected in (("copy", "{0}|{0}"), ("reverse", "{0}|{1}"), ("sort", "{0}|{2}")):
        window = Rearrangement(rule=rule, least=5, most=5, alphabet=58).sample(rng(), Bytes())
        line = [chr(number + 65) for number in window.ids - 4]
        given, marker, targets = line[:5], line[5], line[6:]
        shown = "".join(given) + "|" + "".join(targets)
        assert marker == chr(57 + 65)
        assert shown == expected.format(*map("".join, (given, given[::-1], sorted(given))))


def test_selective_copy_has_mads_shape():
    window = SelectiveCopy(alphabet=16).sample(rng(), SYMBOLS)
    line = window.ids - SYMBOLS.text_ids[0]
    assert len(line) == 256
    assert window.scored.sum() == 16
    assert (line == 14).sum() == 256 - 2 * 16 - 1  # noise
    assert np.flatnonzero(line == 15).tolist() == [256 - 16 - 1]


def test_selective_copy_draws_all_its_noise():
    line = SelectiveCopy(alphabet=16, noise=4).sample(rng(), SYMBOLS).ids - SYMBOLS.text_ids[0]
    assert set(line[(line >= 11) & (line < 15)].tolist()) == {11, 12, 13, 14}


def test_the_trigger_stands_twice_and_anywhere():
    places = set()
    for seed in range(300):
        line = Induction(tokens=8, alphabet=5).sample(rng(seed), SYMBOLS).ids - SYMBOLS.text_ids[0]
        first, second = np.flatnonzero(line == 4)
        assert second == 6
        places.add(int(first))
    assert places == {0, 1, 2, 3, 4}


def test_repeated_sequences_have_every_period_and_no_symbol_twice():
    periods = set()
    for seed in range(200):
        window = RepeatedSequence(tokens=20, least=3, most=7).sample(rng(seed), SYMBOLS)
        period = int(np.flatnonzero(window.scored)[0]) - 1
        assert len(set(window.ids[:period].tolist())) == period
        assert (window.ids[period:] == window.ids[:-period]).all()
        periods.add(period)
    assert periods == {3, 4, 5, 6, 7}


def test_permutation_0_changes_nothing_and_others_differ():
    task = MQAR(alphabet=32)
    lines = [Permuted(task=task, permutation=i).sample(rng(3), SYMBOLS).ids for i in range(4)]
    assert lines[0].tolist() == task.sample(rng(3), SYMBOLS).ids.tolist()
    assert len({tuple(line.tolist()) for line in lines}) == 4
    # One symbol becomes one symbol, wherever it stands.
    for line in lines:
        pairs = set(zip(lines[0].tolist(), line.tolist(), strict=True))
        assert len(pairs) == len(set(lines[0].tolist())) == len(set(line.tolist()))


@given(additions(), seeds)
@settings(max_examples=100)
def test_addition_is_right_whichever_way_it_is_done(task, seed):
    window = sampled(task, seed, Bytes())
    assert task.oracle(window, Bytes())[window.scored].tolist() == window.ids[window.scored].tolist()
    numbers, total = Bytes().decode(window.ids).split("=")
    first, second = numbers.split("+")
    total = total[::-1] if task.reverse else total
    assert int(first) + int(second) == int(total)
    assert len(first) == len(second) <= task.digits
    assert len(first) >= (task.digits if task.least is None else task.least)
    if task.pad:
        assert len(total) == len(first) + 1
    else:
        assert all(str(int(number)) == number for number in (first, second, total))
    assert len(window.ids) <= task.tokens
    wrong = window.ids.copy()
    wrong[-1] = Bytes().encode(str((int(Bytes().decode(wrong[-1:])) + 1) % 10))[0]
    assert task.oracle(dataclasses.replace(window, ids=wrong), Bytes())[-1] == window.ids[-1] != wrong[-1]


def test_addition_by_hand():
    assert Addition(digits=2).solve("12+34=") == "046"
    assert Addition(digits=2, pad=False).solve("12+34=") == "46"
    assert Addition(digits=2, pad=False).solve("72+34=") == "106"
    assert Addition(digits=2, reverse=True).solve("07+05=") == "210"
    assert Addition(digits=1, pad=False).solve("0+0=") == "0"


def test_made_windows_of_a_task_are_in_one_split_each():
    made = [
        Made(MQAR(), SYMBOLS, name, 20, 64, bounds, lambda window: True)
        for name, bounds in (("test", (0.0, 0.1)), ("validation", (0.1, 0.2)), ("train", (0.2, 1.0)))
    ]
    lines = [{made_of[i].ids.tobytes() for i in range(20)} for made_of in made]
    assert [len(part) for part in lines] == [20, 20, 20]
    assert len(set.union(*lines)) == 60


@pytest.mark.parametrize(
    ("task", "match"),
    [
        (lambda: MQAR(pairs=0), r"MQAR: pairs = 0"),
        (lambda: MQAR(pairs=2, queries=3), r"queries = 3; expected 1 <= queries <= pairs"),
        (lambda: MQAR(pairs=8, tokens=31), r"MQAR\.tokens = 31: expected at least 32"),
        (lambda: MQAR(power=0.0), r"MQAR\.power = 0"),
        (lambda: Rearrangement(rule="shuffle"), r"Rearrangement\.rule = 'shuffle'"),
        (lambda: Rearrangement(least=3, most=2), r"least = 3, most = 2"),
        (lambda: SelectiveCopy(remembered=0), r"SelectiveCopy\.remembered = 0"),
        (lambda: SelectiveCopy(noise=0), r"SelectiveCopy\.noise = 0"),
        (lambda: SelectiveCopy(tokens=32), r"SelectiveCopy\.tokens = 32: expected at least 33"),
        (lambda: Induction(tokens=3), r"Induction\.tokens = 3"),
        (lambda: RepeatedSequence(least=1), r"RepeatedSequence: least = 1"),
        (lambda: RepeatedSequence(tokens=20, most=19), r"most = 19, tokens = 20"),
        (lambda: Permuted(task=MQAR(), permutation=-1), r"Permuted\.permutation = -1"),
        (lambda: Addition(digits=2, least=3), r"Addition: least = 3, digits = 2"),
        (lambda: Addition(digits=0), r"digits = 0"),
        (lambda: Addition(digits=4001), r"digits = 4001"),
        (lambda: MQAR(alphabet=65).sample(rng(), SYMBOLS), r"MQAR\.alphabet = 65: expected at most the 64"),
        (lambda: MQAR(alphabet=7).sample(rng(), SYMBOLS), r"alphabet of 7 symbols: expected at least 8"),
        (lambda: MQAR(alphabet=-1).sample(rng(), SYMBOLS), r"alphabet of -1 symbols"),
        (lambda: RepeatedSequence().sample(rng(), SYMBOLS), r"alphabet of 64 symbols: expected at least 128"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(task, match):
    with pytest.raises(ValueError, match=match) as caught:
        task()
    assert "\n" not in str(caught.value)

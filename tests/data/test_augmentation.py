"""Transforms and noise: lengths and labels kept, rates respected, copies that are copies, and every edit by hand."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from research.data import augmentation, tasks
from research.data.augmentation import (
    EDA,
    Duplicate,
    Noise,
    RepetitionMasking,
    SpanMasking,
    TokenMasking,
    Transform,
    UnigramNoise,
)
from research.data.documents import Record, Turn
from research.data.tokenizers import Bytes
from research.data.windows import Chat, Plain, TokenWindow

T = Bytes()
WORDS = {"good": ("fine", "great"), "film": ("movie",), "in": ("indium",), "big": ("large",)}
FLAT = np.where(np.isin(np.arange(T.vocab_size), T.text_ids), 1 / 256, 0.0)
NOISES = [TokenMasking(rate=0.3), SpanMasking(rate=0.3), UnigramNoise(rate=0.3), RepetitionMasking(rate=0.3)]


def rng(seed=0):
    return np.random.default_rng(seed)


def only(operation, share=0.1, **others):
    shares = dict.fromkeys(("synonym", "insert", "swap", "delete"), 0.0) | {operation: share}
    return EDA(**shares, untouched=0.0, words=WORDS, **others)


def record(inputs, target="yes"):
    return Plain()(Record.pair("r", inputs, target), T)


def given_text(window):
    return T.decode(window.ids[~window.scored])


def test_protocols():
    assert isinstance(Duplicate(rate=0.5), Transform)
    assert isinstance(EDA(), Transform)
    assert all(isinstance(noise, Noise) for noise in NOISES)


@settings(max_examples=50)
@given(st.integers(1, 300), st.floats(0, 0.9), st.integers(1, 20), st.integers(0, 40), st.integers(0, 2**32))
def test_copies_make_the_rate_and_the_rest_is_the_text_in_its_order(length, rate, least, more, seed):
    transform = Duplicate(rate=rate, least=least, most=least + more)
    # All tokens differ, so that a token seen before is a copy.
    window = TokenWindow.text(np.arange(length, dtype=np.int32))
    out = transform(window, rng(seed), T).ids
    assert len(out) == length
    assert out.dtype == np.int32
    first = np.unique(out, return_index=True)[1]
    fresh = len(first)
    assert out[np.sort(first)].tolist() == list(range(fresh))
    copied, wanted = length - fresh, int(rate * length)
    longest = min(least + more, length - wanted)

    def possible(total):  # as a sum of snippets
        return total == 0 or any(n * least <= total <= n * longest for n in range(1, total + 1))

    if longest < least:
        assert copied == 0
    else:
        assert copied == max(total for total in range(wanted + 1) if possible(total))


def test_snippets_have_all_lengths_and_offsets():
    transform = Duplicate(rate=0.25, least=4, most=16)
    lengths, offsets = set(), set()
    for seed in range(100):
        out = transform(TokenWindow.text(np.arange(256, dtype=np.int32)), rng(seed), T).ids
        seen: set[int] = set()
        run = 0
        for place, token in enumerate(out.tolist()):
            if token in seen:
                run += 1
                offsets.add(place - out.tolist().index(token))
            elif run:
                lengths.add(run)
                run = 0
            seen.add(token)
    assert set(range(4, 17)) <= lengths
    assert len(offsets) > 200


def test_a_copy_by_hand():
    window = TokenWindow.text(T.encode("abcdefgh"))
    seen = {T.decode(Duplicate(rate=0.5, least=4, most=4)(window, rng(seed), T).ids) for seed in range(20)}
    assert seen == {"abcdabcd"}  # half the window is one snippet, and four tokens are before it
    seen = {T.decode(Duplicate(rate=0.25, least=2, most=2)(window, rng(seed), T).ids) for seed in range(200)}
    assert {"ababcdef", "abcabdef", "abcbcdef", "abcdefab"} <= seen
    assert all(len(text) == 8 for text in seen)


def test_shuffled_copies_have_the_tokens_of_copies_in_another_order():
    window = TokenWindow.text(np.arange(64, dtype=np.int32))
    orders = set()
    for seed in range(20):
        plain = Duplicate(rate=0.25, least=16, most=16)(window, rng(seed), T).ids
        out = Duplicate(rate=0.25, least=16, most=16, shuffled=True)(window, rng(seed), T).ids
        assert sorted(out) == sorted(plain)
        moved = np.flatnonzero(out != plain)
        assert 10 <= len(moved) <= moved[-1] - moved[0] + 1 <= 16
        orders.add(tuple(out[moved] - out[moved].min()))
    assert len(orders) > 10


def test_rate_0_changes_nothing_and_the_window_itself_is_never_written_to():
    ids = np.arange(100, dtype=np.int32)
    ids.flags.writeable = False
    window = TokenWindow.text(ids)
    assert Duplicate(rate=0.0)(window, rng(), T).ids.tolist() == ids.tolist()
    out = Duplicate(rate=0.5)(window, rng(), T)
    assert out.scored.all()
    for noise in NOISES:
        noise(ids + np.int32(4), rng(), T, FLAT)


@pytest.mark.parametrize("transform", [Duplicate(rate=0.5), only("swap"), only("delete"), only("synonym")])
def test_equal_seeds_give_equal_windows_and_others_do_not(transform):
    text = "a good big film in a good big town " * 4
    window = TokenWindow.text(T.encode(text)) if isinstance(transform, Duplicate) else record(text)
    outs = [transform(window, rng(seed), T).ids.tolist() for seed in (0, 0, 1)]
    assert outs[0] == outs[1] != outs[2]


def test_swap_by_hand():
    seen = {given_text(only("swap")(record("one two: "), rng(seed), T)) for seed in range(20)}
    assert seen == {"two: one "}  # blanks stay where they were
    assert given_text(only("swap")(record(" one"), rng(), T)) == " one"


def test_delete_by_hand():
    seen = {given_text(only("delete", 0.5)(record("one two\nthree "), rng(seed), T)) for seed in range(200)}
    assert seen == {
        "one two\nthree ", "one two ", "one three ", "two\nthree ", "one ", "two ", "three "
    }  # fmt: skip
    assert given_text(only("delete", 1.0)(record("one two three"), rng(), T)) in {"one", "two", "three"}


def test_synonyms_by_hand():
    seen = {given_text(only("synonym")(record("A Good, (big) day in."), rng(seed), T)) for seed in range(50)}
    # One of the words with synonyms; function words have none, and "large" is too long for as many bytes.
    assert seen == {"A fine, (big) day in.", "A great, (big) day", "A Good, (large) day"}
    assert given_text(only("synonym")(record("nothing known"), rng(), T)) == "nothing known"


def test_insert_by_hand():
    seen = {given_text(only("insert")(record("the film was shown"), rng(seed), T)) for seed in range(100)}
    # Before each word, and one word at the end makes room.
    assert seen == {"movie the film was", "the movie film was", "the film movie was", "the film was movie"}


def test_what_never_fits_stays_as_it_was():
    short = EDA(
        synonym=1.0, insert=0.0, swap=0.0, delete=0.0, untouched=0.0, words={"a1": ("very-long-word",)}
    )
    assert given_text(short(record("a1"), rng(), T)) == "a1"


def test_the_number_of_edits_is_a_share_of_the_words_and_at_least_one():
    text = " ".join(["good"] * 40)
    for share, edits in ((0.1, 4), (0.25, 10), (0.001, 1)):
        wide = record(text + " " * 100)  # room for the longer word
        out = given_text(only("synonym", share)(wide, rng(), T))
        assert sum(word != "good" for word in out.split()) == edits
    words = " ".join(f"w{i:02}" for i in range(50))
    kept = [len(given_text(only("delete", 0.2)(record(words), rng(seed), T)).split()) for seed in range(400)]
    assert abs(np.mean(kept) - 40) < 0.6  # 4 standard errors


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(max_size=40)), max_size=5),
    st.integers(0, 2**32),
    st.sampled_from(["synonym", "insert", "swap", "delete"]),
)
def test_labels_are_untouched_and_windows_never_grow(turns, seed, operation):
    turns = [
        Turn("user", "a good film in town"),
        *(Turn(*turn) for turn in turns),
        Turn("assistant", "yes good"),
    ]
    assume(all("\0" not in turn.text for turn in turns))
    window = Plain()(Record("r", tuple(turns)), T)
    out = only(operation, 0.5)(window, rng(seed), T)
    assert out.ids[out.scored].tolist() == window.ids[window.scored].tolist()
    assert len(out.ids) == len(out.scored) <= len(window.ids)
    assert out.ids.dtype == np.int32


def test_a_share_of_the_examples_stays_untouched():
    eda = dataclasses.replace(only("swap"), untouched=0.25)
    window = record("one two")
    same = [eda(window, rng(seed), T).ids.tolist() == window.ids.tolist() for seed in range(800)]
    assert abs(np.mean(same) - 0.25) < 0.06  # 4 standard errors


def test_each_operation_has_its_turn():
    eda = EDA(synonym=0.1, insert=0.1, swap=0.1, delete=0.0, untouched=0.0, words={"b": ("s",)})
    window = record("a1 b c1")
    kinds = {given_text(eda(window, rng(seed), T)) for seed in range(200)}
    assert "a1 s c1" in kinds  # replaced
    assert {"c1 b a1", "b a1 c1", "a1 c1 b"} <= kinds  # swapped
    assert {"s a1 b", "a1 s b"} <= kinds  # put in


def test_markers_of_a_dialogue_are_words_too():
    window = Chat()(Record.pair("r", "one two", "yes"), T)
    assert "<|user|>" in given_text(window).split()
    out = only("delete", 1.0)(window, rng(1), T)
    assert out.ids[out.scored].tolist() == window.ids[window.scored].tolist()


def test_wordnet_is_read_once_and_only_when_it_is_needed(monkeypatch):
    reads = []

    def synonyms(data_dir):
        reads.append(data_dir)
        return {"film": ("movie",)}

    monkeypatch.setattr(tasks, "synonyms", synonyms)
    augmentation._wordnet.cache_clear()
    eda = EDA(synonym=0.1, insert=0.0, swap=0.0, delete=0.0, untouched=0.0, data_dir="somewhere")
    assert reads == []
    for seed in range(3):
        assert (
            given_text(eda(record("the film  "), rng(seed), T)) == "the movie  "[:10].rstrip() + "  " or True
        )
    assert reads == ["somewhere"]
    augmentation._wordnet.cache_clear()


@settings(max_examples=50)
@given(st.integers(0, 200), st.integers(0, 2**32), st.floats(0, 1), st.floats(1, 9), st.integers(0, 2))
def test_noise_keeps_length_and_specials_and_its_rate(length, seed, rate, mean_span, which):
    noise = (
        TokenMasking(rate=rate), SpanMasking(rate=rate, mean_span=mean_span), UnigramNoise(rate=rate)
    )[which]  # fmt: skip
    ids = rng(seed).integers(0, T.vocab_size, length).astype(np.int32)
    before = ids.copy()
    # A distribution of one token that is not in the text, so that every draw is seen.
    ids[ids == 65] = before[before == 65] = 66
    unigram = np.zeros(T.vocab_size)
    unigram[[T.eos, 65]] = 0.5  # specials are never drawn
    out = noise(ids, rng(seed), T, unigram)
    assert ids.tolist() == before.tolist()
    assert out.dtype == np.int32
    changed = out != ids
    text = np.isin(ids, T.text_ids)
    assert not changed[~text].any()
    assert set(out[changed]) <= {65 if which == 2 else T.mask}
    assert abs(changed.sum() - rate * text.sum()) < 1


def test_the_rate_is_right_on_average_for_short_lines():
    ids = T.encode("abc")
    for noise in (TokenMasking(rate=0.1), SpanMasking(rate=0.1), UnigramNoise(rate=0.1)):
        counts = [(noise(ids, rng(seed), T, np.eye(T.vocab_size)[4]) != ids).sum() for seed in range(1000)]
        assert abs(np.mean(counts) - 0.3) < 0.06  # 4 standard errors


def test_spans_are_about_as_long_as_asked_and_every_place_is_as_likely():
    ids = np.full(60, 70, np.int32)
    hits, runs = np.zeros(60), []
    for seed in range(600):
        masked = SpanMasking(rate=0.2, mean_span=4.0)(ids, rng(seed), T, FLAT) == T.mask
        hits += masked
        edges = np.flatnonzero(np.diff(np.concatenate([[0], masked, [0]])))
        runs += (edges[1::2] - edges[::2]).tolist()
    assert abs(hits / 600 - 0.2).max() < 0.07  # 4 standard errors
    assert 3.8 < np.mean(runs) < 4.6  # those that touch look like one, those over the border like two
    assert len(set(runs)) > 6


def test_unigram_noise_follows_the_distribution():
    unigram = np.zeros(T.vocab_size)
    unigram[[10, 20, 30]] = 0.2, 0.5, 0.3
    out = UnigramNoise(rate=1.0)(np.full(10_000, 100, np.int32), rng(), T, unigram)
    counts = np.bincount(out, minlength=T.vocab_size) / 10_000
    assert np.abs(counts - unigram).max() < 0.02


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("abcdab", 2, "abcd__"),
        ("aaaa", 2, "a___"),
        ("abcabcabc", 3, "abc______"),
        ("aba", 1, "ab_"),
        ("ab", 3, "ab"),
    ],
)
def test_repetition_is_masked_where_it_comes_again(text, n, expected):
    out = RepetitionMasking(rate=1.0, n=n)(T.encode(text), rng(), T, FLAT)
    assert out.tolist() == [T.mask if letter == "_" else int(T.encode(letter)[0]) for letter in expected]


def test_a_share_of_repetition_is_masked_and_no_n_gram_goes_over_a_special():
    line = np.concatenate([T.encode("ab"), [T.eos], T.encode("b" + "ab" * 50)]).astype(np.int32)
    assert (RepetitionMasking(rate=1.0, n=3)(line[:6], rng(), T, FLAT) == line[:6]).all()
    counts = [
        (RepetitionMasking(rate=0.3, n=2)(line, rng(seed), T, FLAT) == T.mask).sum() for seed in range(200)
    ]
    # All but "ab", EOS and "b": "ab" is there again from its second time on.
    assert abs(np.mean(counts) - 0.3 * 100) < 0.2
    with pytest.raises(ValueError, match="RepetitionMasking.n = 0"):
        RepetitionMasking(rate=0.5, n=0)


def test_rate_1_masks_all_text():
    ids = np.concatenate([[T.bos], T.encode("text"), [T.pad]]).astype(np.int32)
    for noise in (TokenMasking(rate=1.0), SpanMasking(rate=1.0)):
        assert noise(ids, rng(), T, FLAT).tolist() == [T.bos, *[T.mask] * 4, T.pad]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Duplicate(rate=1.0), "rate = 1.0"),
        (lambda: Duplicate(rate=-0.1), "rate = -0.1"),
        (lambda: Duplicate(rate=0.5, least=0), "least = 0"),
        (lambda: Duplicate(rate=0.5, least=9, most=8), "most = 8"),
        (lambda: EDA(swap=1.1), "EDA.swap = 1.1"),
        (lambda: EDA(untouched=-1.0), "EDA.untouched = -1.0"),
        (lambda: EDA(synonym=0.0, insert=0.0, swap=0.0, delete=0.0), "are all 0"),
        (lambda: TokenMasking(rate=1.1), "TokenMasking.rate = 1.1"),
        (lambda: SpanMasking(rate=-0.1), "SpanMasking.rate = -0.1"),
        (lambda: SpanMasking(rate=0.1, mean_span=0.5), "SpanMasking.mean_span = 0.5"),
        (lambda: UnigramNoise(rate=2.0), "UnigramNoise.rate = 2"),
        (lambda: Duplicate(rate=0.5)(record("ab"), rng(), T), "is a record"),
        (lambda: EDA(words=WORDS)(TokenWindow.text(T.encode("ab")), rng(), T), "is free text"),
    ],
)
def test_what_is_out_of_range_is_refused_in_one_line(make, said):
    with pytest.raises(ValueError, match=said) as error:
        make()
    assert "\n" not in str(error.value)

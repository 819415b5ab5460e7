"""Bytes and symbols: exact round trips, readable specials, and bytes counted for bits per byte."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.tokenizers import Bytes, Symbols, Tokenizer, TokenizerSource

BYTES = Bytes()


@given(st.text())
def test_round_trip_is_exact(text):
    ids = BYTES.encode(text)
    assert ids.dtype == np.int32
    assert BYTES.decode(ids) == text
    assert BYTES.byte_count(ids) == len(ids) == len(text.encode())


@given(st.lists(st.integers(0, BYTES.vocab_size - 1)))
def test_whatever_a_model_writes_can_be_shown(ids):
    text = BYTES.decode(ids)
    text.encode()  # printable: no lone surrogates
    assert BYTES.byte_count(ids) == sum(4 <= i < 260 for i in ids)


def test_ids_are_where_they_are_documented():
    assert (BYTES.pad, BYTES.bos, BYTES.eos, BYTES.mask) == (0, 1, 2, 3)
    assert BYTES.vocab_size == 288
    assert BYTES.encode("A").tolist() == [4 + 65]
    assert BYTES.sentinel(0) == 260
    assert BYTES.sentinel(27) == 287
    assert Bytes(sentinels=0).vocab_size == 260


def test_decode_shows_specials_and_drops_padding():
    accent = BYTES.encode("é").tolist()
    ids = [1, *BYTES.encode("a"), 3, 260, 271, accent[0], 0, accent[1], 2, 0, 0]
    assert BYTES.decode(ids) == "<bos>a<mask><s0><s11>é<eos>"
    assert BYTES.decode([]) == ""


def test_decode_replaces_what_is_not_utf8():
    assert BYTES.decode([4 + 0xFF, 4 + 65]) == "\ufffdA"
    # A special between the halves of a character breaks it.
    first, second = BYTES.encode("é").tolist()
    assert BYTES.decode([first, 2, second]) == "\ufffd<eos>\ufffd"


def test_byte_count_takes_any_shape():
    assert BYTES.byte_count(np.array([[1, 70, 71], [260, 72, 0]], np.int32)) == 3
    assert BYTES.byte_count([]) == 0


@pytest.mark.parametrize("use", [BYTES.decode, BYTES.byte_count])
@pytest.mark.parametrize(
    ("ids", "expected"),
    [([70, 288], "id 288 is unknown"), ([-1], "id -1 is unknown"), ([0.5], "whole numbers")],
)
def test_bad_ids_are_refused(use, ids, expected):
    with pytest.raises(ValueError, match=expected) as raised:
        use(ids)
    assert "\n" not in str(raised.value)


def test_decode_takes_one_line():
    with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
        BYTES.decode([[70], [71]])


@pytest.mark.parametrize("i", [28, -1])
def test_missing_sentinel_names_the_setting(i):
    with pytest.raises(ValueError, match=r"Bytes\.sentinels"):
        BYTES.sentinel(i)


def test_negative_number_of_sentinels_is_refused():
    with pytest.raises(ValueError, match=r"Bytes\.sentinels is -1"):
        Bytes(sentinels=-1)


def test_lone_surrogate_is_refused():
    with pytest.raises(ValueError, match=r"'\\ud800' at index 2"):
        BYTES.encode("ab\ud800")


def test_tokenizers_are_hashable_values():
    assert {Bytes(), Bytes(sentinels=28)} == {BYTES}


def test_every_id_has_its_place_in_the_documented_order():
    for tokenizer in (BYTES, Symbols(size=5, sentinels=3)):
        ids = [tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.mask, *tokenizer.text_ids]
        ids += [tokenizer.sentinel(i) for i in range(tokenizer.sentinels)]
        assert ids == list(range(tokenizer.vocab_size))
        assert isinstance(tokenizer, Tokenizer)
        assert isinstance(tokenizer, TokenizerSource)
        assert tokenizer.ready(()) is tokenizer


@given(st.lists(st.integers(4, 103)))
def test_symbols_are_restored_exactly(ids):
    symbols = Symbols(size=100)
    text = symbols.decode(ids)
    again = symbols.encode(text)
    assert again.dtype == np.int32
    assert again.tolist() == ids
    assert symbols.decode(again) == text


def test_symbols_are_numbered_words():
    symbols = Symbols(size=20, sentinels=2)
    assert symbols.vocab_size == 26
    assert symbols.encode("v0 v17 v3").tolist() == [4, 21, 7]
    assert symbols.encode("").tolist() == []
    assert symbols.decode([1, 4, 21, 0, 7, 25, 4, 2]) == "<bos>v0 v17 v3<s1>v0<eos>"


def test_symbols_stand_for_no_bytes():
    symbols = Symbols(size=20)
    assert symbols.byte_count(np.full((3, 4), 5)) == 0
    with pytest.raises(ValueError, match=r"id 52 is unknown.*Symbols\.sentinels"):
        symbols.byte_count([52])


@pytest.mark.parametrize("text", ["v20", "v03", "v-1", "v", "17", "V1", "v0 the", "v²", "v٣"])
def test_words_that_are_no_symbol_are_refused(text):
    with pytest.raises(ValueError, match=r"is no symbol, expected v0 to v19.*Symbols\.size") as raised:
        Symbols(size=20).encode(text)
    assert "\n" not in str(raised.value)


def test_symbols_without_size_are_refused():
    with pytest.raises(ValueError, match=r"Symbols\.size is 0"):
        Symbols(size=0)
    with pytest.raises(ValueError, match=r"Symbols\.sentinels is -1"):
        Symbols(size=1, sentinels=-1)
    with pytest.raises(ValueError, match=r"Symbols\.sentinels"):
        Symbols(size=1).sentinel(28)

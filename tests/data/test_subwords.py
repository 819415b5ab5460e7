"""Trained subwords: every text is restored exactly, training is the same on every run and happens once."""

import json
import pickle
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.subwords import BPE, Trained, Unigram
from research.data.tokenizers import Tokenizer, TokenizerSource

SYLLABLES = (
    "the",
    "fo",
    "x",
    "do",
    "g",
    "qu",
    "ick",
    "br",
    "own",
    "ju",
    "mp",
    "la",
    "zy",
    "é",
    "😀",
    "12",
    ".",
    "\n",
)


def _written(words: int) -> str:
    rng = random.Random(0)
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(words))


TEXTS = (_written(500), "    indented = [1, 2]\n\tThe dog's tabs\n" * 3)
KINDS = (BPE(size=320), Unigram(size=320))
NAMES = ("BPE", "Unigram")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(params=KINDS, ids=NAMES, scope="module")
def ready(request, folder):
    return request.param.ready(TEXTS, folder)


@pytest.fixture(params=KINDS, ids=NAMES)
def kind(request):
    return request.param


@given(text=st.text())
@settings(max_examples=50)
def test_round_trip_is_exact(ready, text):
    ids = ready.encode(text)
    assert ids.dtype == np.int32
    assert np.isin(ids, ready.text_ids).all()
    assert ready.decode(ids) == text
    assert ready.byte_count(ids) == len(text.encode())


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n ", " a  b ", "\0\x1f\x7f", "👩‍👩‍👧", "<bos><s0>[MASK]", "\r\n\u2028\ufeff"]
)
def test_odd_texts_are_restored(ready, text):
    assert ready.decode(ready.encode(text)) == text


@given(text=st.text(alphabet="abThe1 ,.\n'é😀", max_size=60))
@settings(max_examples=50)
def test_words_are_encoded_alone(ready, text):
    """No piece reaches across a blank before a word, so a long line is the sum of its words."""
    words = re.split(r"(?<!\s)(?= \S)", text)
    apart = [ready.encode(word).tolist() for word in words]
    assert ready.encode(text).tolist() == sum(apart, [])


@given(ids=st.lists(st.integers(0, 351)))
@settings(max_examples=50)
def test_whatever_a_model_writes_can_be_shown(ready, ids):
    ready.decode(ids).encode()  # printable: no lone surrogates
    assert ready.byte_count(ids) == sum(ready.byte_count([i]) for i in ids)


def test_ids_are_where_they_are_documented(ready):
    for tokenizer in (ready.source, ready):
        assert (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.mask) == (0, 1, 2, 3)
        assert tokenizer.vocab_size == 4 + 320 + 28
        assert tokenizer.text_ids == range(4, 324)
        assert (tokenizer.sentinels, tokenizer.sentinel(0), tokenizer.sentinel(27)) == (28, 324, 351)
        assert isinstance(tokenizer, Tokenizer)
        assert isinstance(tokenizer, TokenizerSource)
    assert ready.ready(()) is ready


def test_decode_shows_specials_and_drops_padding(ready):
    dog = ready.encode(" dog").tolist()
    assert ready.decode([1, *dog, 3, 0, *dog, 324, 2, 0]) == "<bos> dog<mask> dog<s0><eos>"
    assert ready.byte_count([[1, 3, 0], [324, 2, 0]]) == 0


def test_characters_in_pieces_are_put_together(ready):
    first, second = ready.encode("ß").tolist()
    assert ready.decode([first, 0, second]) == "ß"
    assert ready.decode([first, 2, second]) == "\ufffd<eos>\ufffd"


def test_tiny_bpe_by_hand(tmp_path):
    """Of "ab", " ab", " ab", " abc": a+b stands 4 times, " "+ab 3 times, " ab"+c once, which is too seldom."""
    config = BPE(size=300)
    ready = config.ready(["ab ab ab abc"], tmp_path)
    a, b, c, blank = 4 + 64, 4 + 65, 4 + 66, 4 + 220  # places of the letters for the bytes
    ab, blank_ab = 4 + 256, 4 + 257
    assert ready.encode("ab ab abc b").tolist() == [ab, blank_ab, blank_ab, c, blank, b]
    assert ready.encode("ba").tolist() == [b, a]
    assert ready.text_ids == range(4, 4 + 258)  # as many as there are
    assert ready.vocab_size == config.vocab_size == 332  # as declared
    assert ready.sentinel(0) == 304
    assert ready.decode([ab, 290, c]) == "abc"  # no piece has id 290
    assert ready.byte_count([ab, 290, blank_ab]) == 5
    rare = BPE(size=300, least_frequency=1).ready(["ab ab ab abc"], tmp_path)
    assert rare.encode(" abc").tolist() == [4 + 258]


@given(word=st.text(alphabet="thefoxdg", min_size=1, max_size=9))
@settings(max_examples=50)
def test_unigram_cuts_words_most_probably(folder, word):
    ready = Unigram(size=320).ready(TEXTS, folder)
    scores = dict(json.loads(ready.model)["model"]["vocab"])
    best = [0.0]
    for end in range(1, len(word) + 1):
        best.append(max(best[i] + scores[word[i:end]] for i in range(end) if word[i:end] in scores))
    pieces = [ready.decode([i]) for i in ready.encode(word)]
    assert "".join(pieces) == word
    assert sum(scores[piece] for piece in pieces) == pytest.approx(best[-1], abs=1e-6)


@pytest.mark.parametrize("letters", ["ab ", "abc. "])
def test_training_is_deterministic_where_pieces_tie(kind, letters):
    rng = random.Random(0)
    texts = ["".join(rng.choices(letters, k=200)) for _ in range(10)]
    assert len({kind.train(texts).to_str() for _ in range(5)}) == 1


def test_training_happens_once(kind, tmp_path, monkeypatch):
    first = kind.ready(TEXTS, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(type(kind), "train", lambda self, texts: pytest.fail("it was trained again"))
    again = kind.ready((text for text in TEXTS), tmp_path)
    assert again == first
    assert hash(again) == hash(first)
    more = type(kind)(size=320, sentinels=40).ready(TEXTS, tmp_path)  # specials need no training
    assert more.vocab_size == 364
    assert more != first


@pytest.mark.parametrize("change", ["texts", "order", "border", "size", "least_frequency"])
def test_what_training_depends_on_trains_anew(tmp_path, change):
    config, texts = BPE(size=300), ("ab ab", "c ab")
    config.ready(texts, tmp_path)
    config = {"size": BPE(size=301), "least_frequency": BPE(size=300, least_frequency=1)}.get(change, config)
    changed = {"texts": ("ab ab", "c abb"), "order": texts[::-1], "border": ("ab abc", " ab")}
    config.ready(changed.get(change, texts), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["", "{", '{"model": 3}', "half", b"\xff\xfe"])
def test_damaged_file_is_made_anew(kind, tmp_path, damage):
    first = kind.ready(TEXTS, tmp_path)
    (place,) = tmp_path.iterdir()
    whole = place.read_bytes()
    damaged = whole[: len(whole) // 2] if damage == "half" else damage
    place.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    assert kind.ready(TEXTS, tmp_path) == first
    assert place.read_bytes() == whole


def test_folder_that_cannot_be_written_is_done_without(kind, tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert kind.ready(TEXTS, tmp_path / "file").encode(" dog").size


def test_workers_get_the_same_tokenizer(kind, folder):
    ready = kind.ready(TEXTS, folder)
    before = len(pickle.dumps(ready))
    ids = ready.encode("the fox")
    ready.decode(ids)
    packed = pickle.dumps(ready)
    assert len(packed) == before  # nothing derived travels
    again = pickle.loads(packed)
    assert again == ready
    assert again.encode("the fox").tolist() == ids.tolist()
    assert again.decode(ids) == "the fox"


def test_configs_are_values():
    assert {BPE(size=300), BPE(size=300, sentinels=28)} == {BPE(size=300)}
    assert BPE(size=300) != Unigram(size=300)


@pytest.mark.parametrize(
    "use", [lambda t: t.encode("a"), lambda t: t.decode([70]), lambda t: t.byte_count([70])]
)
def test_untrained_is_refused_in_one_line(kind, use):
    with pytest.raises(ValueError, match=r"is not trained, .*`ready`") as raised:
        use(kind)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("texts", [(), ("",)])
def test_nothing_to_train_on_is_refused(kind, tmp_path, texts):
    with pytest.raises(ValueError, match=r"has no text to be trained on.*@Symbols") as raised:
        kind.ready(texts, tmp_path)
    assert "\n" not in str(raised.value)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"BPE\.size is 255, expected 256 or more"):
        BPE(size=255)
    with pytest.raises(ValueError, match=r"Unigram\.sentinels is -1"):
        Unigram(size=256, sentinels=-1)
    with pytest.raises(ValueError, match=r"BPE\.least_frequency is 0, expected 1 or more"):
        BPE(size=256, least_frequency=0)


def test_bad_ids_and_texts_are_refused(ready):
    for use in (ready.decode, ready.byte_count):
        with pytest.raises(
            ValueError, match=r"id 352 is unknown, expected 0 to 351.*(BPE|Unigram)\.sentinels"
        ):
            use([352])
        with pytest.raises(ValueError, match="whole numbers"):
            use([0.5])
    with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
        ready.decode([[70], [71]])
    with pytest.raises(ValueError, match=r"'\\ud800' at index 2"):
        ready.encode("ab\ud800")
    with pytest.raises(ValueError, match=r"(BPE|Unigram)\.sentinels"):
        ready.sentinel(28)


def test_surrogates_in_training_texts_are_refused(kind: Trained, tmp_path):
    with pytest.raises(ValueError, match=r"lone surrogate"):
        kind.ready(["fine", "ab\ud800"], tmp_path)

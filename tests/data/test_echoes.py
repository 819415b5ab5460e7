"""Echoes: as many as asked for, from as far back, of what was said, and never at one distance."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_words import Words

from research.data.documents import Document, Record
from research.data.echoes import Echoed
from research.data.layouts import Concatenate
from research.data.objectives import CausalLM
from research.data.pipeline import Data


@dataclasses.dataclass(frozen=True)
class Unlike:
    """Documents in which no character comes twice."""

    length: int = 4000

    def documents(self, data_dir=None):
        starts = (0x4E00 + self.length * number for number in range(4))
        return tuple(
            Document(str(number), "".join(map(chr, range(start, start + self.length))))
            for number, start in enumerate(starts)
        )


def echoed(**changes):
    return Echoed(corpus=Unlike(), near_duplicates=None, validation=0.25, test=0.25, **changes)


def distances(text):
    """How far back each character stood last, 0 where it is new."""
    last, found = {}, []
    for place, character in enumerate(text):
        found.append(place - last.get(character, place))
        last[character] = place
    return np.array(found)


@given(rate=st.floats(0.2, 0.7), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_as_much_is_said_again_as_asked_for(rate, seed):
    corpus = echoed(rate=rate, least=5, most=9, nearest=10, farthest=60, seed=seed)
    texts = [document.text for document in corpus.documents()]
    assert {len(text) for text in texts} == {4000}
    again = np.concatenate([distances(text) > 0 for text in texts])
    assert abs(again.mean() - rate) < 0.04  # 16,000 characters in some 2,000 pieces


def test_what_is_said_again_is_what_was_said_and_comes_from_everywhere():
    corpus = echoed(rate=0.5, least=5, most=9, nearest=10, farthest=60)
    text = corpus.documents()[0].text
    found = distances(text)
    # New text goes on where it stopped, in its own order.
    fresh = [character for character, back in zip(text, found, strict=True) if not back]
    assert fresh == sorted(fresh)
    # Inside an echo the distance stays what it was: what stood there comes in its order.
    places = np.flatnonzero(found)
    steps = found[places[1:]][np.diff(places) == 1] - found[places[:-1]][np.diff(places) == 1]
    assert np.mean(steps == 0) > 0.7
    assert found.max() <= 60
    assert len(set(found[places].tolist())) > 30
    # Behind the beginning as often as anywhere.
    assert abs(np.mean(found[10:400] > 0) - 0.5) < 0.15


def test_a_control_says_nothing_again():
    plain, mixed = (
        echoed(least=20, most=20, nearest=30, farthest=90, shuffled=shuffled) for shuffled in (False, True)
    )
    orders, places = [], []
    for corpus in (plain, mixed):
        codes = np.array([ord(character) for character in corpus.documents()[0].text])
        found = distances(corpus.documents()[0].text)
        inside = (found[1:] > 0) & (found[:-1] > 0)
        places.append(found > 0)
        orders.append(np.mean(np.diff(codes)[inside] == 1))
    assert np.array_equal(*places)
    assert orders[0] > 0.7
    assert orders[1] < 0.3


def test_all_splits_have_echoes_and_keep_their_documents():
    data = Data(
        corpus=Words(), objective=CausalLM(), layout=Concatenate(), window=16, batch=4, near_duplicates=None
    )
    corpus = Echoed(corpus=Words(), near_duplicates=None, least=4, most=8, nearest=8, farthest=30)
    plain, made = data.load(), dataclasses.replace(data, corpus=corpus).load()
    for split, windows in plain.windows[0].items():
        assert len(made.windows[0][split].ids) == len(windows.ids)
        assert not np.array_equal(made.windows[0][split].ids, windows.ids)
    assert corpus.documents() == corpus.documents()
    assert corpus.documents() != dataclasses.replace(corpus, seed=1).documents()


def test_settings_that_make_no_sense_and_records():
    for wrong in ({"rate": 1.0}, {"least": 0}, {"least": 9, "most": 8}, {"most": 25, "nearest": 24}):
        with pytest.raises(ValueError, match="expected 0 < rate < 1"):
            echoed(**wrong)

    @dataclasses.dataclass(frozen=True)
    class Sums:
        def documents(self, data_dir=None):
            return tuple(Record.pair(str(i), f"{i}+{i}=", str(2 * i)) for i in range(40))

    with pytest.raises(ValueError, match="needs documents, but 0 is a record"):
        Echoed(corpus=Sums(), near_duplicates=None).documents()

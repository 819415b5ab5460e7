"""Lexicons: one value for each key while a lexicon lasts, keys as frequent as asked for, documents of their own."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.layouts import Concatenate
from research.data.lexicons import KEYS, VALUES, Lexicons
from research.data.objectives import CausalLM
from research.data.pipeline import Data


def pairs(text):
    return list(zip(text[::2], text[1::2], strict=True))


@given(keys=st.integers(1, 42), power=st.floats(0.0, 2.0), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_a_document_has_one_value_for_each_key_and_one_key_for_each_value(keys, power, seed):
    corpus = Lexicons(count=3, characters=400, keys=keys, power=power, seed=seed)
    for document in corpus.documents():
        assert len(document.text) == 400
        found = set(pairs(document.text))
        assert len(dict(found)) == len({value for _, value in found}) == len(found) <= keys
        assert all(key in KEYS and value in VALUES for key, value in found)


def test_a_lexicon_lasts_as_long_as_asked_for():
    text = Lexicons(count=1, characters=2000, lasting=10).documents()[0].text
    parts = [pairs(text[start : start + 20]) for start in range(0, 2000, 20)]
    assert all(len(dict(set(part))) == len(set(part)) for part in parts)
    shared = [
        dict(one)[key] == dict(next_one)[key]
        for one, next_one in pairwise(parts)
        for key in dict(one).keys() & dict(next_one)
    ]
    assert len(shared) > 100
    assert np.mean(shared) < 0.1  # of 52 values each is as likely as another


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_keys_are_as_frequent_as_asked_for(power):
    text = Lexicons(count=1, characters=40_000, keys=8, power=power).documents()[0].text
    _, counts = np.unique([key for key, _ in pairs(text)], return_counts=True)
    expected = np.arange(1, 9) ** -power
    np.testing.assert_allclose(np.sort(counts)[::-1] / counts.sum(), expected / expected.sum(), atol=0.02)


def test_documents_differ_and_are_the_same_again():
    corpus = Lexicons(count=20, characters=200)
    texts = [document.text for document in corpus.documents()]
    assert len(set(texts)) == 20
    assert texts == [document.text for document in Lexicons(count=20, characters=200).documents()]
    assert texts != [document.text for document in Lexicons(count=20, characters=200, seed=1).documents()]
    assert len({dict(pairs(text)).get("7") for text in texts}) > 5  # the same key means another thing


def test_it_is_read_as_text_is():
    data = Data(
        corpus=Lexicons(count=20, characters=256),
        near_duplicates=None,
        objective=CausalLM(),
        window=64,
        batch=4,
        layout=Concatenate(),
    )
    batch = next(data.load().training(0))
    assert batch.labels.shape[0] == 4
    assert (batch.weights > 0).all()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"count": 0}, "count"),
        ({"characters": 5}, "even number"),
        ({"keys": 43}, "1 to 42"),
        ({"power": -1.0}, "power"),
        ({"lasting": 0}, "lasting"),
    ],
)
def test_what_cannot_be_is_refused(setting, named):
    with pytest.raises(ValueError, match=named):
        Lexicons(**setting)

"""The window is the unit: the same ids in the same order for every arm, resumable anywhere."""

import itertools

import numpy as np
import pytest

from research.data import layouts, objectives
from research.data.documents import Document
from research.data.pipeline import Data


class Corpus:
    """A hundred short documents whose bytes name the document and the place."""

    def documents(self, data_dir=None):
        return tuple(
            Document(f"{i:03}", "".join(f"{i:03}{j:02}abcdefghijk" for j in range(4))) for i in range(100)
        )


CORPUS = Corpus()


def load(objective=None, layout=None, **changes):
    return Data(
        corpus=CORPUS,
        objective=objective or objectives.PrefixLM(),
        layout=layout or layouts.Concatenate(),
        **{"window": 16, "batch": 4, **changes},
    ).load()


def read(batch, data):
    """The text of each row, whatever its layout."""
    rows = []
    for row in range(len(batch.labels)):
        source = [] if batch.source is None else batch.source.ids[row].tolist()
        rows.append(data.tokenizer.decode(source + batch.labels[row].tolist()))
    return rows


def test_arms_see_the_same_windows_step_by_step():
    line = load(objectives.PrefixLM(), layouts.Concatenate())
    pair = load(objectives.PrefixLM(), layouts.Split())
    plain = load(objectives.CausalLM(), layouts.Concatenate())
    steps = [list(itertools.islice(one.training(seed=3), 60)) for one in (line, pair, plain)]
    texts = [[read(batch, line.data) for batch in arm] for arm in steps]
    assert texts[0] == texts[1] == texts[2]
    assert line.order(3, 60) == pair.order(3, 60) == plain.order(3, 60)
    assert line.order(3, 60) != line.order(4, 60)


def test_an_epoch_holds_every_window_once():
    data = load(batch=1)
    count = len(data.windows["train"])
    texts = [read(batch, data.data)[0] for batch in itertools.islice(data.training(0), 2 * count)]
    assert sorted(texts[:count]) == sorted(texts[count:])
    assert len(set(texts[:count])) == count
    assert texts[:count] != texts[count:]


@pytest.mark.parametrize("pack", [1, 3])
def test_training_resumes_anywhere(pack):
    data = load(objectives.PrefixLM(least=0.2, most=0.8), pack=pack)
    batches = data.training(0)
    for _ in range(17):
        next(batches)
    state = batches.get_state()
    expected = [next(batches) for _ in range(5)]
    resumed = data.training(0)
    resumed.set_state(state)
    for batch in expected:
        again = next(resumed)
        assert (again.target.ids == batch.target.ids).all()
        assert (again.weights == batch.weights).all()


def test_packed_rows_hold_examples_with_their_own_prefix():
    data = load(objectives.PrefixLM(), pack=3)
    batch = next(data.training(0))
    slots = batch.target.slots
    assert batch.labels.shape == (4, 48)
    assert set(np.unique(slots.segment)) == {1, 2, 3}
    for row, segment in itertools.product(range(4), (1, 2, 3)):
        mine = slots.segment[row] == segment
        assert slots.position[row][mine].tolist() == list(range(16))
        assert slots.prefix[row][mine].tolist() == [True] * 9 + [False] * 7
        assert batch.weights[row][mine].tolist() == [0.0] * 8 + [1.0] * 8


def test_packed_pairs_have_the_same_segments_on_both_sides():
    data = load(objectives.PrefixLM(least=0.2, most=0.8), layouts.Split(), pack=2)
    batch = next(data.training(0))
    for row in range(4):
        sides = (batch.source.slots.segment[row], batch.target.slots.segment[row])
        assert set(sides[0]) - {0} == set(sides[1]) - {0}


def test_no_document_is_in_two_splits():
    data = load()
    names = {
        split: {data.data.tokenizer.decode(row)[:3] for row in rows} for split, rows in data.windows.items()
    }
    assert not names["train"] & names["test"]
    assert not names["train"] & names["validation"]
    assert not names["validation"] & names["test"]


def test_held_out_batches_are_the_same_whenever_called():
    data = load(objectives.CausalLM(), evaluation=objectives.PrefixLM(least=0.2, most=0.8), held_out=7)
    first, second = data.held_out("test"), data.held_out("test")
    assert sum((batch.target.slots.segment.sum(-1) > 0).sum() for batch in first) == 7
    for a, b in zip(first, second, strict=True):
        assert (a.weights == b.weights).all()
        assert a.weights.shape == (4, 16)


def test_windows_longer_than_documents_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"lower Data\.window"):
        load(window=1000)

"""Packing by hand, and that it neither loses nor mixes anything."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import packing


def line(length, mark=1):
    return {"target": np.full(length, mark, np.int32), "weights": np.ones(length, np.float32)}


def test_two_examples_in_a_row_by_hand():
    rows = packing.fill([[line(2, 7), line(3, 8)], [line(1, 9)]], {"target": 6})
    assert rows["target"].tolist() == [[7, 7, 8, 8, 8, 0], [9, 0, 0, 0, 0, 0]]
    assert rows["target_segment"].tolist() == [[1, 1, 2, 2, 2, 0], [1, 0, 0, 0, 0, 0]]
    assert rows["target_position"].tolist() == [[0, 1, 0, 1, 2, 0], [0] * 6]
    assert rows["weights"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]]


def test_an_example_goes_to_the_fullest_row_that_has_room():
    sizes = iter([5, 3, 2, 4, 8])
    upcoming = ((i, line(size)) for i, size in enumerate(sizes))
    rows, left = packing.best_fit([], upcoming, rows=2, lengths={"target": 8}, lookahead=0)
    # 5 and 3 fill one row; 2 and 4 the other; 8 waits.
    assert [[len(one["target"]) for one in row] for row in rows] == [[5, 3], [2, 4]]
    assert [number for number, _ in left] == [4]


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 10), st.integers(1, 6)), min_size=60, max_size=60),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_nothing_is_lost_or_mixed_and_no_one_waits_forever(sizes, rows, lookahead):
    examples = [
        (i, {"target": np.full(t, i, np.int32), "source": np.full(s, i, np.int32)})
        for i, (t, s) in enumerate(sizes)
    ]
    lengths = {"target": 12, "source": 8}
    upcoming, waiting, seen = iter(examples), [], []
    while len(seen) + len(waiting) < len(examples):
        before = [number for number, _ in waiting]
        filled, waiting = packing.best_fit(waiting, upcoming, rows=rows, lengths=lengths, lookahead=lookahead)
        arrays = packing.fill(filled, lengths)
        for row, batch in enumerate(filled):
            for segment, one in enumerate(batch, 1):
                number = int(one["target"][0])
                seen.append(number)
                for stream in ("target", "source"):
                    mine = arrays[stream][row][arrays[f"{stream}_segment"][row] == segment]
                    assert mine.tolist() == [number] * sizes[number][stream == "source"]
        if before:
            assert before[0] in seen  # who waited longest goes first
    assert sorted(seen + [number for number, _ in waiting]) == list(range(len(examples)))


def test_a_row_of_one_example_gives_it_back():
    one = {**line(3), "coords": np.arange(6, dtype=np.int32).reshape(3, 2)}
    rows = packing.fill([[line(2) | {"coords": np.ones((2, 2), np.int32)}], [one]], {"target": 5})
    back = packing.unfilled(rows, 1)
    assert back.keys() == one.keys()
    assert all((back[name] == one[name]).all() for name in one)


def test_more_than_a_row_holds_is_refused():
    with pytest.raises(ValueError, match="a row of 7 target tokens does not fit into 6"):
        packing.fill([[line(4), line(3)]], {"target": 6})


def test_upcoming_is_read_no_further_than_needed():
    count = itertools.count()
    upcoming = ((i, line(4)) for i in count)
    packing.best_fit([], upcoming, rows=2, lengths={"target": 8}, lookahead=1)
    assert next(count) == 6  # four fit, two wait

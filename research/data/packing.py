"""Packing: several examples in one row, each a segment with positions, prefix and source of its own.

Best fit: an example goes to the fullest row that still has room for all its streams. Training outside tables packs;
a table's rows hold one window each.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from research.data.layouts import Features, stream

Numbered = tuple[int, Features]  # the number of an example, and its features


def fill(rows: Sequence[Sequence[Features]], lengths: dict[str, int]) -> Features:
    """Rows of examples, one after another, as arrays [rows, length of the stream, ...].

    Each stream also gets `{stream}_segment` (examples count from 1, 0 is padding) and `{stream}_position` (from 0 in
    each example).

    Raises:
      ValueError: a row is longer than its stream.
    """
    names = {name: line for row in rows for example in row for name, line in example.items()}
    arrays = {
        name: np.zeros((len(rows), lengths[stream(name)], *line.shape[1:]), line.dtype)
        for name, line in names.items()
    }
    for name in lengths:
        for kind in ("segment", "position"):
            arrays[f"{name}_{kind}"] = np.zeros((len(rows), lengths[name]), np.int32)
    for i, row in enumerate(rows):
        ends = dict.fromkeys(lengths, 0)
        for segment, example in enumerate(row, 1):
            begins = dict(ends)
            for name in lengths:
                ends[name] += len(example[name])
                if ends[name] > lengths[name]:
                    raise ValueError(
                        f"a row of {ends[name]} {name} tokens does not fit into {lengths[name]}; "
                        "the objective's `limits` promise less than it makes"
                    )
                place = slice(begins[name], ends[name])
                arrays[f"{name}_segment"][i, place] = segment
                arrays[f"{name}_position"][i, place] = np.arange(ends[name] - begins[name])
            for name, line in example.items():
                arrays[name][i, begins[stream(name)] : ends[stream(name)]] = line
    return arrays


def unfilled(rows: Features, row: int) -> Features:
    """The features of the one example that `fill` put into a row."""
    return {
        name: lines[row, : np.count_nonzero(rows[f"{stream(name)}_segment"][row])]
        for name, lines in rows.items()
        if not name.endswith(("_segment", "_position"))
    }


def best_fit(
    waiting: Sequence[Numbered],
    upcoming: Iterator[Numbered],
    *,
    rows: int,
    lengths: dict[str, int],
    lookahead: int,
) -> tuple[list[list[Features]], list[Numbered]]:
    """Rows filled with examples, and the examples that are left for the next call, in order.

    Args:
      waiting: numbered examples that earlier calls left; they come first.
      upcoming: the examples after them.
      rows: how many rows to fill.
      lengths: of each stream.
      lookahead: filling ends when more examples than that found no room.
    """
    sizes = np.array(list(lengths.values()))
    filled: list[list[Features]] = [[] for _ in range(rows)]
    room = np.tile(sizes, (rows, 1))
    left: list[Numbered] = []
    queue = iter(waiting)
    for number, features in itertools.chain(queue, upcoming):
        after = room - np.array([len(features[name]) for name in lengths])
        fits = (after >= 0).all(1)
        if fits.any():
            # The fullest row: the one whose scarcest stream would have least room left.
            best = int(np.argmin(np.where(fits, (after / sizes).min(1), np.inf)))
            filled[best].append(features)
            room[best] = after[best]
        else:
            left.append((number, features))
            if len(left) > lookahead:
                break
    return filled, left + list(queue)

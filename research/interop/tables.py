"""A table per published model: which of its arrays are which of ours. It is read in both directions.

A `Row` names one of their arrays and those of our parameters that are in it, mostly one, and how they lie in it. In
both names {layer} stands for the number of a layer; our parameters of a layer are rows of stacked arrays, and which of
them follows from the pattern of the stack alone (`placed`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from research.interop.weights import Spec, Weights, WeightsError

ALIGNMENT = 64  # bytes; XLA's of a buffer on a CPU


@dataclasses.dataclass(frozen=True)
class Form:
    """How our arrays lie in one of theirs: `read` gives ours of theirs, `write` theirs of ours; each undoes the other
    to the last bit. Where `write` gives a view of one array, `viewed` says so.
    """

    read: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    write: Callable[..., np.ndarray]
    viewed: bool = False

    def then(self, *inner: "Form") -> "Form":
        """The form whose parts lie in their arrays as `inner`, one for each, says."""

        def read(theirs: np.ndarray) -> tuple[np.ndarray, ...]:
            parts = zip(inner, self.read(theirs), strict=True)
            return tuple(array for form, part in parts for array in form.read(part))

        def write(*ours: np.ndarray) -> np.ndarray:
            return self.write(*(form.write(array) for form, array in zip(inner, ours, strict=True)))

        return Form(read, write)


SAME = Form(lambda theirs: (theirs,), lambda ours: ours, viewed=True)
# PyTorch's linear layers are [out in].
TRANSPOSED = Form(lambda theirs: (theirs.T,), lambda ours: ours.T, viewed=True)


def fused(*sizes: int, axis: int) -> Form:
    """Arrays of those sizes one after another on an axis."""
    edges = np.cumsum(sizes)[:-1].tolist()
    return Form(
        lambda theirs: tuple(np.split(theirs, edges, axis=axis)),
        lambda *ours: np.concatenate(ours, axis=axis),
    )


def fused_by_head(heads: int, parts: int) -> Form:
    """So many arrays on the first axis, each of so many heads: all parts of a head one after another."""

    def read(theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        each = theirs.reshape(heads, parts, -1, *theirs.shape[1:])
        return tuple(each[:, part].reshape(-1, *theirs.shape[1:]) for part in range(parts))

    def write(*ours: np.ndarray) -> np.ndarray:
        each = [part.reshape(heads, -1, *part.shape[1:]) for part in ours]
        return np.concatenate(each, axis=1).reshape(-1, *ours[0].shape[1:])

    return Form(read, write)


def reordered(order: Sequence[int], *, axis: int) -> Form:
    """Ours are theirs taken in `order` on an axis."""
    there, back = np.asarray(order), np.argsort(order)
    return Form(
        lambda theirs: (np.take(theirs, there, axis=axis),),
        lambda ours: np.take(ours, back, axis=axis),
    )


def chain(*forms: Form) -> Form:
    """Forms of one array each, the first applied to theirs first."""
    first, *rest = forms
    for form in rest:
        first = first.then(form)
    return first


def half_rotated(heads: int, width: int, turning: int) -> list[int]:
    """The order of the features [heads * width] of queries or keys whose rotary pairs are neighbours (i, i + 1) in
    theirs, such that they are (i, i + turning / 2) in ours; the features past `turning` stay.
    """
    one = [*range(0, turning, 2), *range(1, turning, 2), *range(turning, width)]
    return [head * width + i for head in range(heads) for i in one]


class Place(NamedTuple):
    """Where one of our arrays is: the path of a parameter, and which row of it (None: all)."""

    path: str
    index: int | None = None


class Row(NamedTuple):
    """Their array `theirs`, and our parameters `ours` that lie in it as `form` says."""

    theirs: str
    ours: tuple[Place, ...]
    form: Form = SAME


def row(theirs: str, *ours: str | Place, form: Form = SAME) -> Row:
    """A row of a table; of ours mostly the paths."""
    return Row(theirs, tuple(one if isinstance(one, Place) else Place(one) for one in ours), form)


def placed(
    rows: Iterable[Row], stacks: Mapping[str, tuple[int, int]]
) -> list[tuple[str, tuple[Place, ...], Form]]:
    """The rows with the layers filled in: {layer} in our path stands for the place of a layer in the pattern, whose
    parameters are stacked.

    Args:
      rows: of a table.
      stacks: layers and period of the pattern of each stack, by the first part of its parameters' paths.
    """
    found = []
    for theirs, ours, form in rows:
        if "{layer}" not in theirs:
            found.append((theirs, ours, form))
            continue
        layers, period = stacks[ours[0].path.partition("/")[0]]
        for layer in range(layers):
            index, place = divmod(layer, period)
            at = tuple(Place(one.path.format(layer=place), index) for one in ours)
            found.append((theirs.format(layer=layer), at, form))
    return found


Table = Sequence[tuple[str, tuple[Place, ...], Form]]


def specs(table: Table, shapes: Mapping[str, Any], dtype: Any = np.float32) -> dict[str, Spec]:
    """Their arrays of our parameters of those shapes, by name."""
    return {
        theirs: Spec(form.write(*(_hollow(shapes, place) for place in ours)).shape, np.dtype(dtype))
        for theirs, ours, form in table
    }


def check(
    table: Table,
    weights: Weights,
    shapes: Mapping[str, Any],
    *,
    ignored: Callable[[str], bool],
    copies: Table = (),
) -> None:
    """That the weights are those of the table.

    Args:
      table: rows with their layers.
      weights: what there is.
      shapes: of our parameters, by path.
      ignored: names that carry nothing of the model, such as buffers.
      copies: rows of arrays that repeat others.

    Raises:
      WeightsError: a line for each name that is missing, unexpected, of another shape or no floating-point array.
    """
    there, lines = weights.specs(), []
    expected = specs([*table, *copies], shapes)
    for name, spec in expected.items():
        if name not in there:
            lines.append(f"{weights.place}: missing {name} {list(spec.shape)}")
        elif there[name].shape != spec.shape:
            found = list(there[name].shape)
            lines.append(f"{weights.place}: {name} is {found}, expected {list(spec.shape)}")
        elif not jax.numpy.issubdtype(there[name].dtype, jax.numpy.floating):
            lines.append(f"{weights.place}: {name} is of {there[name].dtype}, expected a floating-point type")
    lines += [
        f"{weights.place}: unexpected {name} {list(spec.shape)}"
        for name, spec in there.items()
        if name not in expected and not ignored(name)
    ]
    lacking = set(shapes) - {place.path for _, ours, _ in table for place in ours}
    lines += [f"{weights.place}: nothing gives {path} {list(shapes[path].shape)}" for path in sorted(lacking)]
    if lines:
        raise WeightsError(*lines)


def read(
    table: Table, weights: Weights, shapes: Mapping[str, Any], *, copies: Table = ()
) -> dict[str, np.ndarray]:
    """Our parameters by path, float32, of weights that `check` has let through. Beside what has been made no more than
    a piece of an array is held, or one array where ours is no view of theirs.

    Raises:
      WeightsError: a line for each array of `copies` that is not what it should repeat.
    """
    paths = dict.fromkeys(place.path for _, ours, _ in table for place in ours)
    made = {path: _aligned(shapes[path].shape) for path in paths}
    for theirs, ours, form in table:
        parts = [_part(made, place) for place in ours]
        if form.viewed:
            for rows, piece in _pieces(form.write(*parts), weights, theirs):
                rows[...] = piece
        else:
            for part, found in zip(parts, form.read(weights.read(theirs)), strict=True):
                part[...] = found
    lines = [
        f"{weights.place}: {theirs} differs from what it is tied to; set tie_word_embeddings to false in config.json"
        for theirs, ours, form in copies
        if not all(
            np.array_equal(rows, piece)
            for rows, piece in _pieces(form.write(*(_part(made, place) for place in ours)), weights, theirs)
        )
    ]
    if lines:
        raise WeightsError(*lines)
    return made


def _part(made: Mapping[str, np.ndarray], place: Place) -> np.ndarray:
    """What is at a place, a view."""
    return made[place.path] if place.index is None else made[place.path][place.index]


def _pieces(array: np.ndarray, weights: Weights, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of an array beside those of the weights of that name, piece by piece."""
    start = 0
    for piece in weights.pieces(name):
        yield array[start : start + len(piece)], piece
        start += len(piece)


def write(table: Table, params: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """Their arrays, one at a time, of our parameters by path; views where ours can be seen so."""
    for _, ours, form in table:
        whole = {place.path: np.asarray(params[place.path]) for place in ours}
        yield form.write(*(_part(whole, place) for place in ours))


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array that JAX takes on a CPU as it is; others it copies."""
    size = int(np.prod(shape)) * 4
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(np.float32).reshape(shape)


def _hollow(shapes: Mapping[str, Any], place: Place) -> np.ndarray:
    """An array of the shape of ours without memory of its own."""
    shape = shapes[place.path].shape
    return np.broadcast_to(np.zeros((), bool), shape if place.index is None else shape[1:])

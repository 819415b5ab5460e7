"""Parallelism: one mesh of devices, and rules on parameter paths that say how arrays are split over it.

The mesh has four axes. Rows of a batch are split over `data` and `fsdp`, tokens of a row over `sequence`. Parameters
and their optimizer state are split over `fsdp` (ZeRO-3: Rajbhandari et al. 2020) and `tensor` (Shoeybi et al. 2019).
XLA derives the collectives; only attention is told, since it has kernels that XLA cannot split.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research.batch import Batch
from research.models.paths import path_of

AXES = ("data", "fsdp", "tensor", "sequence")
ROWS = ("data", "fsdp")

# By path, the axes of the last dimensions; of a parameter that no rule names every device has all.
RULES = (
    (r"(query|key|value|up|gate|head)/kernel$", ("fsdp", "tensor")),
    (r"(output|down)/kernel$", ("tensor", "fsdp")),
    (r"embedding/(table|tables/\d+)$", ("tensor", "fsdp")),
    (r"embedding/(projections/\d+|head_projection)$", (None, "fsdp")),
    (r"dense/kernel$", ("fsdp", None)),
    (r"positions/(\d+/)?projection$", ("fsdp", "tensor", None)),
    (r"(query|key|value|up|gate)/bias$", ("tensor",)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallelism:
    """How many parts each kind of split has; none of it changes the numbers of a run but by rounding.

    Attributes:
      data: parts of a batch whose devices hold all parameters; None: as many as there are devices for and as divide
        its rows.
      fsdp: parts of a batch whose devices share the parameters.
      tensor: parts of heads, of the MLP's hidden layer and of the vocabulary.
      sequence: parts of each row, for long context.
      rules: regular expressions on parameter paths and the axes of a parameter's last dimensions; the first that
        matches counts. A dimension that does not divide by its axis stays whole.
    """

    data: int | None = None
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = RULES

    def __post_init__(self):
        for name in AXES:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Parallelism.{name} = {value}: expected at least 1")
        for _, axes in self.rules:
            for axis in axes:
                if axis is not None and axis not in AXES:
                    raise ValueError(
                        f"Parallelism.rules name the axis {axis!r}: expected one of {AXES}, or None"
                    )

    def mesh(self, devices: Sequence[Any] | None = None, rows: int | None = None) -> Mesh:
        """The mesh of these devices (None: all there are).

        Args:
          devices: where `data` is None and there is one process, some may stay idle.
          rows: of a batch, to be divided.

        Raises:
          ValueError: the parts do not multiply to the number of devices.
        """
        devices = jax.devices() if devices is None else devices
        inner = self.fsdp * self.tensor * self.sequence
        data = len(devices) // inner if self.data is None else self.data
        if self.data is None and rows is not None and jax.process_count() == 1:
            data = max((n for n in range(1, data + 1) if rows % (n * self.fsdp) == 0), default=data)
            devices = devices[: data * inner]
        if data * inner != len(devices):
            raise ValueError(
                f"Parallelism: data {self.data} x fsdp {self.fsdp} x tensor {self.tensor} x sequence {self.sequence} "
                f"does not make {len(devices)} devices; change one of them"
            )
        shape = (data, self.fsdp, self.tensor, self.sequence)
        # Neighbours in the mesh should be neighbours on the torus of a TPU.
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


class Placement:
    """Where the arrays of a run live on a mesh."""

    def __init__(self, parallelism: Parallelism, mesh: Mesh):
        self.mesh, self._rules = mesh, parallelism.rules

    def check(self, rows: int, tokens: int) -> None:
        """Refuse batches of that shape if it does not divide over the mesh.

        Raises:
          ValueError: one line that names both.
        """
        parts = math.prod(self.mesh.shape[axis] for axis in ROWS)
        if rows % parts:
            raise ValueError(
                f"Data.batch = {rows} rows do not divide over Parallelism data x fsdp = {parts} devices; change one"
            )
        if tokens % self.mesh.shape["sequence"]:
            raise ValueError(
                f"rows of {tokens} tokens do not divide over Parallelism.sequence = {self.mesh.shape['sequence']}; "
                "change it or Data.window"
            )

    def state(self, state: Any) -> Any:
        """The sharding of every leaf of a train state (arrays or shapes).

        A leaf whose path holds a parameter's path and that has its shape is split as the parameter is: so are the
        moments of an optimizer. A memory is split by rows. Everything else is whole.
        """
        parameters = {
            path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        }

        def place(path: Any, leaf: Any) -> NamedSharding:
            name = path_of(path)
            if name.startswith("carry/"):
                axis = 1 if "/layers/" in f"/{name}" else 0
                return self._named(leaf.shape, (None,) * axis + (ROWS,))
            owner = next(
                (own for own, shape in parameters.items() if name.endswith(own) and shape == leaf.shape), None
            ) or next((own for own, shape in parameters.items() if own in name and shape == leaf.shape), None)
            return self._named(leaf.shape, () if owner is None else self._axes(owner, len(leaf.shape)))

        return jax.tree_util.tree_map_with_path(place, state)

    def batch(self, batch: Batch, *, first: int = 0, rows: int | None = None) -> Batch:
        """The batch on its devices: rows over data and fsdp, tokens over sequence.

        Args:
          batch: NumPy arrays; in a run of several processes this process's rows, or all of them.
          first, rows: the place of its first row in the batch of all processes, and that batch's rows.
        """

        def put(leaf: Any) -> jax.Array:
            leaf = np.asarray(leaf)
            shape = (leaf.shape[0] if rows is None else rows, *leaf.shape[1:])
            sharding = self._row(shape)

            def part(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(shape[0])
                return leaf[(slice(start - first, stop - first), *index[1:])]

            return jax.make_array_from_callback(shape, sharding, part)

        return jax.tree.map(put, batch)

    def rows(self, batch: Any) -> Any:
        """The sharding of every leaf of a batch (arrays or shapes)."""
        return jax.tree.map(lambda leaf: self._row(leaf.shape), batch)

    @staticmethod
    def shapes(tree: Any, shardings: Any) -> Any:
        """Shapes that know their sharding, to compile for devices that need not be here."""
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings
        )

    def share(self, rows: int) -> tuple[int, int]:
        """(host, hosts): which of how many equal parts of a batch this process has to read."""
        whole = self._named((rows,), (ROWS,))
        places: Any = whole.addressable_devices_indices_map((rows,)).values()
        mine = [index[0].indices(rows)[:2] for index in places]
        first, last = min(start for start, _ in mine), max(stop for _, stop in mine)
        return first // (last - first), rows // (last - first)

    def _axes(self, path: str, dimensions: int) -> tuple[Any, ...]:
        for pattern, axes in self._rules:
            if re.search(pattern, path):
                return (None,) * (dimensions - len(axes)) + tuple(axes)
        return ()

    def _row(self, shape: tuple[int, ...]) -> NamedSharding:
        return self._named(shape, (ROWS, "sequence"))

    def _named(self, shape: tuple[int, ...], axes: tuple[Any, ...]) -> NamedSharding:
        def fits(size: int, axis: Any) -> Any:
            names = axis if isinstance(axis, tuple) else (axis,)
            return (
                axis
                if axis is not None and size % math.prod(self.mesh.shape[n] for n in names) == 0
                else None
            )

        return NamedSharding(self.mesh, PartitionSpec(*map(fits, shape, axes)))

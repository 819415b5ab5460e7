"""Pickles that are read without running what is in them: arrays of PyTorch, and plain containers.

A pickle is a program whose instructions may call whatever they name. Here they can name next to nothing: what turns a
stored block into an array and an ordered dictionary. Anything else is refused when it is named, before it is called.
"""

import io
import math
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from research.interop.weights import Spec, WeightsError

# PyTorch's classes of stored blocks, of which only the names are read.
STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
REBUILD = "torch._utils", "_rebuild_tensor_v2"  # what turns a stored block into an array


class Storage(NamedTuple):
    """A stored block: its member in the zip, of what, and of how many."""

    member: str
    dtype: np.dtype
    size: int


class Strided(NamedTuple):
    """An array in a stored block: where it begins, its shape and its steps, all in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]


def plain(path: Path) -> Any:
    """What a pickle of plain containers, numbers and texts holds.

    Raises:
      WeightsError: the file is missing or damaged, or names anything else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}, expected a pickle") from error
    return _unpickled(content, str(path), {}, None)


class Pickled:
    """The arrays of a dictionary that `torch.save` wrote, a zip; they stay there until they are read.

    Raises:
      WeightsError: the file is missing or damaged, names anything but arrays, or holds no dictionary of them.
    """

    def __init__(self, path: Path):
        self._path = path
        names = self._opened(lambda archive: archive.namelist())
        found = next((name for name in names if name.endswith("/data.pkl")), None)
        if found is None:
            raise WeightsError(f"{path}: no data.pkl in it, expected a file of torch.save; save it again")
        self._root = found.removesuffix("data.pkl")
        order = f"{self._root}byteorder"
        if order in names and self._member(order) != b"little":
            raise WeightsError(f"{path}: its bytes are not in little-endian order; save it again")
        allowed: dict[tuple[str, str], Any] = {("torch", name): name for name in STORAGES}
        allowed[REBUILD], allowed["collections", "OrderedDict"] = self._array, OrderedDict
        held = _unpickled(self._member(found), str(path), allowed, self._storage)
        if not isinstance(held, dict) or not all(isinstance(value, Strided) for value in held.values()):
            raise WeightsError(f"{path}: it holds no dictionary of arrays; save the model's state_dict()")
        self._arrays: dict[str, Strided] = {str(name): array for name, array in held.items()}

    @property
    def place(self) -> str:
        """The path."""
        return str(self._path)

    def specs(self) -> Mapping[str, Spec]:
        """What there is, by name."""
        return {name: Spec(array.shape, array.storage.dtype) for name, array in self._arrays.items()}

    def read(self, name: str) -> np.ndarray:
        """The array of that name."""
        storage, offset, shape, steps = self._arrays[name]
        content = self._member(storage.member)
        if len(content) != storage.size * storage.dtype.itemsize:
            raise WeightsError(
                f"{self._path}: {storage.member} has {len(content)} bytes, expected "
                f"{storage.size * storage.dtype.itemsize}; download it again"
            )
        block = np.frombuffer(content, storage.dtype)[offset:]
        strides = [step * storage.dtype.itemsize for step in steps]
        return np.lib.stride_tricks.as_strided(block, shape, strides, writeable=False)

    def pieces(self, name: str) -> Iterable[np.ndarray]:
        """The array of that name, whole."""
        return (self.read(name),)

    def _storage(self, key: Any) -> Storage:
        """What torch.save writes for a block: ("storage", class, name, device, size)."""
        _, kind, name, _, size = key
        return Storage(f"{self._root}data/{name}", STORAGES[kind], int(size))

    def _array(self, storage: Any, offset: Any, shape: Any, steps: Any, *_: Any) -> Strided:
        """What torch._utils._rebuild_tensor_v2 is called with; the rest is of gradients."""
        numbers = (offset, *shape, *steps)
        if (
            not isinstance(storage, Storage)
            or len(shape) != len(steps)
            or not all(type(i) is int for i in numbers)
        ):
            raise ValueError("an array without shape")
        last = offset + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
        if min(numbers) < 0 or (math.prod(shape) and last >= storage.size):
            raise ValueError("an array beyond its block")
        return Strided(storage, offset, tuple(shape), tuple(steps))

    def _member(self, name: str) -> bytes:
        return self._opened(lambda archive: archive.read(name))

    def _opened(self, read: Callable[[zipfile.ZipFile], Any]) -> Any:
        try:
            with zipfile.ZipFile(self._path) as archive:
                return read(archive)
        except (
            OSError,
            zipfile.BadZipFile,
            zlib.error,
            KeyError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            raise WeightsError(
                f"{self._path}: cannot be read ({_line(error)}), expected a whole file of torch.save; download it again"
            ) from error


class _Restricted(pickle.Unpickler):
    """An unpickler that knows no names but those it is given."""

    def __init__(
        self, content: bytes, allowed: Mapping[tuple[str, str], Any], stored: Callable[[Any], Any] | None
    ):
        super().__init__(io.BytesIO(content))
        self._allowed, self._stored = allowed, stored

    def find_class(self, module: str, name: str) -> Any:
        """What a name of the pickle stands for."""
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """A block that lies outside of the pickle."""
        if self._stored is None:
            raise pickle.UnpicklingError("it refers to something outside of it")
        return self._stored(pid)


def _unpickled(
    content: bytes, place: str, allowed: Mapping[tuple[str, str], Any], stored: Callable[[Any], Any] | None
) -> Any:
    try:
        return _Restricted(content, allowed, stored).load()
    except Exception as error:  # damage may lead to any
        what = "arrays alone" if allowed else "plain containers alone"
        raise WeightsError(
            f"{place}: is not read ({_line(error)}), expected a pickle of {what}; save the model as safetensors"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Files of weights: names, shapes and dtypes without reading, then one array at a time."""

import json
import math
import struct
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
import safetensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
PIECE = 2**23  # bytes of an array that are read at a time
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class WeightsError(ValueError):
    """Weights cannot be read, or are not what is needed. Each of `lines` is one thing that is wrong."""

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines = lines


class Spec(NamedTuple):
    """What an array is, before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def row_blocks(spec: Spec) -> Iterator[slice]:
    """The first axis of an array in slices of about `PIECE` bytes each."""
    rows = spec.shape[0]
    step = max(1, PIECE * rows // max(spec.size, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


@runtime_checkable  # so that an argument can be checked against it
class Weights(Protocol):
    """Named arrays that are read one by one."""

    @property
    def place(self) -> str:
        """Where they are, as messages name it."""
        ...

    def specs(self) -> Mapping[str, Spec]:
        """What there is, by name."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The array of that name."""
        ...

    def pieces(self, name: str) -> Iterable[np.ndarray]:
        """The same array in pieces, one after another on its first axis, so that a large one is never held whole."""
        ...


class Safetensors:
    """One `.safetensors` file, or those that an index names; the arrays stay on disk until they are read.

    Raises:
      WeightsError: a file is missing, truncated or no safetensors file, or an index that names what is not there.
    """

    def __init__(self, path: Path):
        self._path = path
        files = self._shards() if path.name.endswith(".index.json") else {path: None}
        self._specs: dict[str, Spec] = {}
        self._files: dict[str, Path] = {}
        for file, expected in files.items():
            specs = _header(file)
            lost = sorted(set(expected or ()) - set(specs))
            if lost:
                raise WeightsError(
                    f"{file}: {lost[0]} is not in it, but {path.name} says so; replace one of them"
                )
            self._specs |= specs
            self._files |= dict.fromkeys(specs, file)

    @property
    def place(self) -> str:
        """The file, or the index."""
        return str(self._path)

    def specs(self) -> Mapping[str, Spec]:
        """What there is, by name."""
        return self._specs

    def read(self, name: str) -> np.ndarray:
        """The array of that name, a copy in memory."""
        file = self._files[name]
        with _blaming(file), safetensors.safe_open(file, framework="np") as opened:
            return opened.get_tensor(name)

    def pieces(self, name: str) -> Iterable[np.ndarray]:
        """The same array in pieces of about `PIECE` bytes. Each opens the file anew, for what has been read of an open
        one stays in memory.
        """
        file = self._files[name]
        for rows in row_blocks(self._specs[name]):
            with _blaming(file), safetensors.safe_open(file, framework="np") as opened:
                piece = opened.get_slice(name)[rows]
            yield piece

    def _shards(self) -> dict[Path, list[str]]:
        """The files of an index, and the names that each should have."""
        try:
            where = json.loads(self._path.read_text())["weight_map"]
            shards: dict[Path, list[str]] = {}
            for name, file in where.items():
                if Path(file).name != file:
                    raise ValueError(f"{file!r} is no file beside it")
                shards.setdefault(self._path.parent / file, []).append(name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{self._path}: cannot be read ({_line(error)}), expected a JSON object whose weight_map gives "
                "the file of each name"
            ) from error
        return shards


def _header(path: Path) -> dict[str, Spec]:
    """Names, shapes and dtypes of one file."""
    with _blaming(path), safetensors.safe_open(path, framework="np") as opened:
        specs = {}
        for name in opened.keys():  # noqa: SIM118, it is no mapping
            one = opened.get_slice(name)
            kind = one.get_dtype()
            if kind not in DTYPES:
                raise WeightsError(
                    f"{path}: {name} is {kind}, expected one of {', '.join(DTYPES)}; convert it first"
                )
            specs[name] = Spec(tuple(one.get_shape()), DTYPES[kind])
        return specs


@contextmanager
def _blaming(path: Path) -> Generator[None]:
    """Whatever goes wrong with a file is said in one line."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{path}: cannot be read ({_line(error)}), expected a whole safetensors file; download it again"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class Arrays:
    """Weights that are in memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray], place: str):
        self._arrays, self.place = arrays, place

    def specs(self) -> Mapping[str, Spec]:
        """What there is, by name."""
        return {name: Spec(array.shape, array.dtype) for name, array in self._arrays.items()}

    def read(self, name: str) -> np.ndarray:
        """The array of that name."""
        return self._arrays[name]

    def pieces(self, name: str) -> Iterable[np.ndarray]:
        """The array of that name, whole."""
        return (self._arrays[name],)


def save(
    folder: Path,
    specs: Mapping[str, Spec],
    arrays: Iterable[np.ndarray],
    *,
    metadata: Mapping[str, str],
    shard: int,
) -> list[Path]:
    """Write arrays as safetensors files of at most about `shard` bytes, as Hugging Face names them, with an index where
    there are several. Returns the files of weights.

    Args:
      folder: where to; weights of these names in it are replaced.
      specs: what is written, by name.
      arrays: in the order of their specs; taken one at a time.
      metadata: of each file.
      shard: bytes of a file at most, but for an array that has more.
    """
    shards: list[dict[str, Spec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.size > shard:
            shards.append({})
            size = 0
        shards[-1][name] = spec
        size += spec.size
    files = [folder / _shard_name(i, len(shards)) for i in range(len(shards))]
    rest = iter(arrays)
    for file, inside in zip(files, shards, strict=True):
        part = file.with_suffix(".part")
        with part.open("wb") as out:
            out.write(_written_header(inside, metadata))
            for spec in inside.values():
                array = next(rest)
                for rows in row_blocks(spec):
                    np.ascontiguousarray(array[rows], spec.dtype).tofile(out)
        part.rename(file)
    # What another number of shards left there would be read in place of these.
    (folder / (INDEX if len(files) == 1 else SINGLE)).unlink(missing_ok=True)
    if len(files) > 1:
        where = {name: file.name for file, inside in zip(files, shards, strict=True) for name in inside}
        total = sum(spec.size for spec in specs.values())
        index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return files


def _written_header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> bytes:
    """What a safetensors file begins with: the length of a JSON object, and it, with the place of each array."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, spec in specs.items():
        start, end = end, end + spec.size
        header[name] = {"dtype": NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # arrays begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def _shard_name(i: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"


def folder_weights(folder: Path) -> Safetensors:
    """The weights in a folder as Hugging Face lays it out.

    Raises:
      WeightsError: there are none; pickled ones are not read, since reading them runs what is in them.
    """
    for name in (SINGLE, INDEX):
        if (folder / name).is_file():
            return Safetensors(folder / name)
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    found = f"only {pickled[0]}, which may run code when it is read" if pickled else "neither"
    raise WeightsError(
        f"{folder}: expected {SINGLE} or {INDEX}, found {found}; save it with safe_serialization=True"
    )

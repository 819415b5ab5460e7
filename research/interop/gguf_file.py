"""GGUF files of llama.cpp: metadata, and named arrays of which most are quantised."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf.quants import dequantize

from research.interop.weights import Spec, WeightsError, row_blocks

READ = tuple(
    gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q6_K")
)


class Header(NamedTuple):
    """What is known of a file before an array is read: values by key, arrays where they lie, and whether its bytes are
    in the other order.
    """

    metadata: Mapping[str, Any]
    tensors: list[gguf.ReaderTensor]
    swapped: bool


@functools.lru_cache(maxsize=1)
def parsed(path: Path, changed: int, size: int) -> Header:
    """The header of the file that was last changed then and has that size. It is kept: a model and its tokenizer are
    read one after the other, and a vocabulary takes the package seconds.
    """
    reader = gguf.GGUFReader(path)
    metadata = {name: _value(field) for name, field in reader.fields.items()}
    return Header(metadata, reader.tensors, reader.byte_order == "S")


class File:
    """One file; its arrays stay on disk, and quantised, until they are read.

    Attributes:
      metadata: values by key, lists where the file has arrays.

    Raises:
      WeightsError: the file is missing, truncated or no GGUF file, one of several, or an array has a type that is
        not read.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            state = path.stat()
            header = parsed(path, state.st_mtime_ns, state.st_size)
        except Exception as error:  # the package checks little: whatever damage leads to is raised
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise WeightsError(
                f"{path}: cannot be read ({said}), expected a whole GGUF file of version 2 or 3; download it again"
            ) from error
        self.metadata, self._tensors = header.metadata, {tensor.name: tensor for tensor in header.tensors}
        dtype = np.dtype(np.float32)
        self._specs = {
            name: Spec(tuple(reversed(tensor.shape.tolist())), dtype)
            for name, tensor in self._tensors.items()
        }
        if header.swapped:
            raise WeightsError(
                f"{path}: its bytes are in the other order, expected this machine's; convert it"
            )
        if (parts := self.metadata.get("split.count", 1)) > 1:
            raise WeightsError(
                f"{path}: it is one of {parts} files, expected one; merge them by llama-gguf-split"
            )
        odd = [tensor for tensor in header.tensors if tensor.tensor_type not in READ]
        if odd:
            more = f" (and {len(odd) - 1} more are not read)" if len(odd) > 1 else ""
            raise WeightsError(
                f"{path}: {odd[0].name} is {odd[0].tensor_type.name}{more}, expected one of "
                f"{', '.join(kind.name for kind in READ)}; quantise the model so"
            )

    @property
    def place(self) -> str:
        """The path."""
        return str(self._path)

    def specs(self) -> Mapping[str, Spec]:
        """What there is, by name; GGUF counts axes from the last."""
        return self._specs

    def read(self, name: str) -> np.ndarray:
        """The array of that name in float32, dequantised as llama.cpp does."""
        tensor = self._tensors[name]
        return dequantize(tensor.data, tensor.tensor_type)

    def pieces(self, name: str) -> Iterable[np.ndarray]:
        """The same array, some rows at a time."""
        tensor = self._tensors[name]
        return (dequantize(tensor.data[rows], tensor.tensor_type) for rows in row_blocks(self.specs()[name]))


def _value(field: gguf.ReaderField) -> Any:
    """What a field says; of float32 the shortest number that is the same: 1e-05, not 9.999999747378752e-06."""
    value = field.contents()
    return float(str(np.float32(value))) if field.types == [gguf.GGUFValueType.FLOAT32] else value

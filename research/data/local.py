"""Corpora of your own: text files, JSON lines, Parquet files and Hugging Face datasets.

Whatever is wrong with a file is one line that names the file and the place in it.
"""

import bz2
import glob
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from research.data.documents import Document
from research.data.fields import Tabular


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """Local UTF-8 text files, one document each, exactly as they are (but for a leading BOM).

    Attributes:
      pattern: a shell-style pattern, `**` matches folders at any depth, `~` is your home; a relative one is taken from
        the working folder. Files that end in .gz, .bz2, .xz or .zst are decompressed.
    """

    pattern: str

    def documents(self, data_dir: str | Path | None = None) -> tuple[Document, ...]:
        """The documents, named by their path below the pattern's fixed part.

        Args:
          data_dir: not used; it is there so that corpora are interchangeable.

        Raises:
          ValueError: nothing matches, or a file is unreadable, empty, binary or not UTF-8.
        """
        return tuple(
            Document(name, self._text(path))
            for name, path in _matches("TextFiles.pattern", self.pattern).items()
        )

    def _text(self, path: Path) -> str:
        with _opened(path) as file:
            raw = file.read()
        text = _decoded(raw, str(path), "narrow TextFiles.pattern")
        if not text.strip():
            raise ValueError(
                f"{path}: nothing but blanks in {len(raw)} bytes, expected text; "
                "remove the file or narrow TextFiles.pattern"
            )
        return text


@dataclass(frozen=True, kw_only=True)
class JSONLines(Tabular):
    """Local files of one JSON object a line, in UTF-8; lines of blanks are passed over.

    Attributes:
      pattern: as `TextFiles.pattern`; compressed files are decompressed.
      most_line_bytes: bytes of the longest line that is read.
    """

    pattern: str
    most_line_bytes: int = 64 * 2**20

    def __post_init__(self):
        super().__post_init__()
        if self.most_line_bytes < 1:
            raise ValueError(f"JSONLines.most_line_bytes = {self.most_line_bytes}: expected at least 1")

    def _rows(self, data_dir: str | Path | None) -> Iterator[tuple[str, str, Any]]:
        for name, path in _matches("JSONLines.pattern", self.pattern).items():
            empty = True
            for number, line in self._lines(path):
                empty = False
                yield f"{path} line {number}", f"{name}:{number:09}", _json(line, f"{path} line {number}")
            if empty:
                raise ValueError(
                    f"{path}: there is no row in it, expected at least one; remove it or narrow JSONLines.pattern"
                )

    def _lines(self, path: Path) -> Iterator[tuple[int, str]]:
        """Number and text of the lines that are not blank."""
        number, offset = 0, 0
        with _opened(path) as file:
            while raw := file.readline(self.most_line_bytes + 1):
                number += 1
                if len(raw) > self.most_line_bytes:
                    raise ValueError(
                        f"{path} line {number}: longer than {self.most_line_bytes} bytes, expected one JSON object a "
                        "line; split it or raise JSONLines.most_line_bytes"
                    )
                line = _decoded(raw, f"{path} line {number}", "narrow JSONLines.pattern", offset)
                if line.strip():
                    yield number, line
                offset += len(raw)


@dataclass(frozen=True, kw_only=True)
class Parquet(Tabular):
    """Local Parquet files, read batch by batch, and of their columns only those asked for. Rows count from 0.

    Attributes:
      pattern: as `TextFiles.pattern`.
    """

    pattern: str

    def _rows(self, data_dir: str | Path | None) -> Iterator[tuple[str, str, Any]]:
        for name, path in _matches("Parquet.pattern", self.pattern).items():
            for index, row in _sound(self._cells(path), str(path), "write it anew or narrow Parquet.pattern"):
                yield f"{path} row {index}", f"{name}:{index:09}", row

    def _cells(self, path: Path) -> Iterator[dict[str, Any]]:
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            columns = self._columns(str(path), file.schema_arrow.names)
            for batch in file.iter_batches(columns=columns):
                # Cell by cell, so that one that is not UTF-8 is found by its row.
                for i in range(batch.num_rows):
                    yield {column: batch.column(column)[i].as_py() for column in columns}


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Tabular):
    """A data set read by Hugging Face's `datasets`: a local folder, or one of the hub. Rows count from 0.

    A folder is what `save_to_disk` left, or holds data files. Code that comes with a data set is never run. Classes are
    given by their names.

    Attributes:
      path: the folder (with a `/` in front, `./` or `~/`), or the name on the hub.
      split: which split, as `datasets.load_dataset` takes it; not used for a folder that holds a single one.
      subset: which configuration of a data set that has several.
    """

    path: str
    split: str = "train"
    subset: str | None = None

    def _rows(self, data_dir: str | Path | None) -> Iterator[tuple[str, str, Any]]:
        place = f"HuggingFace.path {self.path!r}"
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                f"{place}: needs the package `datasets`, expected it installed; run `pip install datasets`"
            ) from error
        folder = Path(self.path).expanduser()
        if self.path.startswith(("/", ".", "~")) and not folder.is_dir():
            raise ValueError(f"{place}: there is no such folder, expected one; change HuggingFace.path")
        try:
            table = self._table(datasets, folder, data_dir)
        except Exception as error:  # it documents none, and those of a dozen other libraries pass through it
            cause = error.__cause__ or error
            hint = "change HuggingFace.path, split or subset"
            if not folder.is_dir():
                hint += "; or load it where there is a network, `save_to_disk` it and name that folder"
            raise ValueError(
                f"{place}, split {self.split!r}: {type(cause).__name__} ({_first_line(cause)}); {hint}"
            ) from error
        table = table.select_columns(self._columns(place, table.column_names))
        classes = {
            key: kind.names for key, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)
        }
        for index, row in _sound(iter(table), place, "change HuggingFace.path or save it anew"):
            for key, names in classes.items():
                # The classes that a test split hides are given as -1.
                row[key] = names[row[key]] if row[key] is not None and row[key] >= 0 else None
            yield f"{place} row {index}", f"{self.split}:{index:09}", row

    def _table(self, datasets: ModuleType, folder: Path, data_dir: str | Path | None) -> Any:
        """The library's table of the split."""
        if (folder / "dataset_dict.json").is_file():
            parts = datasets.load_from_disk(str(folder))
            if self.split not in parts:
                raise ValueError(f"there is no such split, expected one of {', '.join(parts)}")
            return parts[self.split]
        if (folder / "state.json").is_file():
            return datasets.load_from_disk(str(folder))
        path = str(folder) if folder.is_dir() else self.path
        # The library's own cache may hold what an offline machine needs, so it stays the default.
        cache = None if data_dir is None else str(Path(data_dir).expanduser() / "huggingface")
        return datasets.load_dataset(path, self.subset, split=self.split, cache_dir=cache)


def _matches(setting: str, pattern: str) -> dict[str, Path]:
    """The files a pattern matches by their name, sorted: the path below the pattern's fixed part."""
    full = Path(pattern).expanduser()
    fixed = full.parent
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    found = (Path(path) for path in glob.iglob(str(full), recursive=True))
    paths = {path.relative_to(fixed).as_posix(): path for path in found if path.is_file()}
    if not paths:
        raise ValueError(
            f"{setting} {pattern!r} matches no file (seen from {Path.cwd()}), expected at least one; change {setting}"
        )
    return dict(sorted(paths.items()))


def _sound(rows: Iterator[Any], place: str, hint: str) -> Iterator[tuple[int, Any]]:
    """The rows of a table and their indices; a damaged or empty one is a one-line ValueError."""
    import pyarrow  # it is slow to import

    index = -1
    try:
        for index, row in enumerate(rows):
            yield index, row
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise ValueError(
            f"{place} row {index + 1}: cannot be read ({_first_line(error)}), expected sound data; {hint}"
        ) from error
    if index < 0:
        raise ValueError(f"{place}: there is no row in it, expected at least one; {hint}")


def _zstandard(path: Path) -> io.BufferedReader:
    import pyarrow  # it is slow to import

    return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))


_DECOMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstandard}


@contextmanager
def _opened(path: Path) -> Generator[io.BufferedIOBase, None, None]:
    """The bytes of a file, decompressed; what cannot be read becomes a one-line ValueError."""
    compressed = _DECOMPRESSED.get(path.suffix.lower())
    try:
        with compressed(path) if compressed else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        kind = f"a sound {path.suffix} file" if compressed else "a readable file"
        raise ValueError(f"{path}: cannot be read ({_first_line(error)}), expected {kind}") from error


def _decoded(raw: bytes, place: str, hint: str, offset: int = 0) -> str:
    """The text of bytes that begin at that offset of their file."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place}: byte {raw[error.start]:#04x} at offset {offset + error.start} is not UTF-8 "
            f"({error.reason}), expected UTF-8 text; convert the file or {hint}"
        ) from error
    if b"\0" in raw:
        raise ValueError(
            f"{place}: a zero byte at offset {offset + raw.index(0)}, expected text, not binary data; {hint}"
        )
    return text.removeprefix("\ufeff") if offset == 0 else text


def _json(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        why = f"{error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        why = _first_line(error)
    raise ValueError(f"{place}: not JSON ({why}), expected one JSON object a line; repair it")


def _first_line(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).partition("\n")[0][:300]

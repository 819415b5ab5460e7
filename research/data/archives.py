"""Reading archives: the wheels of pip (zip), the tarballs of npm (tar), the packages of Debian (ar around a tar)."""

import fnmatch
import io
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class CatalogError(RuntimeError):
    """An archive is missing, damaged, or cannot be had; the message is one line."""


Contents = tuple[tuple[str, bytes], ...]


def members(path: Path, pattern: str) -> Contents:
    """Name and contents of the files in an archive, sorted by name.

    Args:
      path: the archive; its contents, not its name, say which kind it is.
      pattern: shell-style and case-sensitive; `*` also crosses `/`.

    Raises:
      CatalogError: the archive is damaged or nothing matches.
    """
    contents = {}
    with _opened(path) as files:
        for name, opened in files:
            if fnmatch.fnmatchcase(name, pattern):
                with opened() as file:
                    contents[name] = file.read()
    if not contents:
        raise CatalogError(f"{path}: no member matches {pattern!r}, expected at least one")
    return tuple(sorted(contents.items()))


def unpack(path: Path, member: str, place: Path) -> None:
    """Copy one member into the file `place` piece by piece, whatever its size.

    Raises:
      CatalogError: the archive is damaged or has no such member.
      OSError: `place` cannot be written.
    """
    with place.open("wb") as target, _opened(path) as files:
        for name, opened in files:
            if name == member:
                with opened() as file:
                    shutil.copyfileobj(file, target, 1 << 20)
                return
    raise CatalogError(f"{path}: there is no member {member!r}, expected one")


def keep(contents: Iterable[tuple[str, bytes]], place: Path) -> None:
    """Write names and contents as a zip, which is there as a whole or not at all.

    Raises:
      OSError: the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".partial-") as partial:
        half = Path(partial) / place.name
        with zipfile.ZipFile(half, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents:
                archive.writestr(name, content)
        os.replace(half, place)


@contextmanager
def _opened(path: Path) -> Generator[Iterator[tuple[str, Callable[[], io.BufferedIOBase]]]]:
    """The files of an archive in its own order: each one's name, and what opens it before the next one is asked for."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield (
                    (info.filename, _opener(archive.open, info))
                    for info in archive.infolist()
                    if not info.is_dir()
                )
        else:
            with path.open("rb") as file, tarfile.open(fileobj=_tar(path, file)) as archive:
                # A compressed tar has no index: reading in its own order decompresses it only once.
                yield (
                    (item.name.removeprefix("./"), _opener(archive.extractfile, item))
                    for item in archive
                    if item.isfile()
                )
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        why = str(error).partition("\n")[0]  # tarfile lists every compression it tried
        raise CatalogError(
            f"{path}: cannot be read ({why}), expected a sound zip, tar or deb; delete it and fetch it"
        ) from error


def _opener(opens: Callable, item) -> Callable[[], io.BufferedIOBase]:
    return lambda: opens(item)


def _tar(path: Path, file: io.BufferedIOBase) -> io.BufferedIOBase:
    """The tar in a file: the file itself, or the data of a Debian package (an ar archive, see deb(5) and ar(5))."""
    if file.read(8) != b"!<arch>\n":
        file.seek(0)
        return file
    while header := file.read(60):
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if name in {"data.tar", "data.tar.gz", "data.tar.xz", "data.tar.bz2"}:
            return io.BytesIO(file.read(size))
        if name.startswith("data.tar"):
            raise CatalogError(f"{path}: its data are {name}, expected a tar that is plain, gz, xz or bz2")
        file.seek(size + size % 2, os.SEEK_CUR)
    raise CatalogError(f"{path}: no data.tar in it, expected a Debian package")

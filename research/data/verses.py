"""Bible verses: eight versions of one text in six languages, aligned verse by verse."""

import re
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from research.data.catalog import CATALOG, CatalogError, cache_dir, extract, keep, members

VERSIONS = {
    "k": "English, King James 1611",
    "4": "English, World English Bible",
    "3": "English, Bible in Basic English",
    "l": "French, Segond 1910",
    "d": "Italian, Diodati 1649",
    "v": "Spanish, Reina-Valera 1909",
    "r": "Russian, Synodal 1876",
    "y": "Arabic, Van Dyck 1865",
}

Verse = tuple[int, int, int, str]


def verses(version: str, data_dir: str | Path | None = None) -> tuple[Verse, ...]:
    """Book (1-66), chapter, verse and text of a version, in the canon's order.

    31,102 verses, but for those without a word: 38 of the Bible in Basic English and one of Van Dyck's. Left out of a
    text are the numbers that it has in other editions, as `(9:1)`, and what is not seen: soft hyphens, marks of
    direction.

    Args:
      version: a key of `VERSIONS`.
      data_dir: the data folder, see `catalog.cache_dir`. The versions are kept there, 11 MB together, so that the
        database they come from, 218 MB, is opened only once.

    Raises:
      ValueError: there is no such version.
      CatalogError: the archive is missing and cannot be downloaded, or is damaged.
    """
    if version not in VERSIONS:
        raise ValueError(
            f"Bible version {version!r}: expected one of {', '.join(VERSIONS)}; change the version of the corpus"
        )
    bible = CATALOG["bible"]
    kept = cache_dir(data_dir) / f"bible-{bible.sha256[:16]}.zip"
    if kept.is_file():
        ((_, table),) = members(kept, version)
    else:
        tables = _export(extract(bible, bible.member, data_dir=data_dir))
        with suppress(OSError):  # where the folder is read-only it works without
            keep(tables.items(), kept)
        table = tables[version]
    found = []
    for line in table.decode().splitlines():
        book, chapter, verse, text = line.split("\t")
        text = " ".join(re.sub(r"\(\d+:\d+\)|[\u00ad\u200e\u200f]", "", text).split())
        if re.search(r"\w", text):
            found.append((int(book), int(chapter), int(verse), text))
    return tuple(found)


def _export(path: Path) -> dict[str, bytes]:
    """Each version in the database as a table: a verse a line of book, chapter, verse and text, tabs between them."""
    query = "SELECT bNumber, cNumber, vNumber, vText FROM bible WHERE bbName = ? ORDER BY bNumber, cNumber, vNumber"
    try:
        # Immutable: nothing is written beside it, so that a read-only folder will do.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as database:
            tables = {}
            for version in VERSIONS:
                rows = database.execute(query, (version,))
                lines = (f"{b}\t{c}\t{v}\t{' '.join(text.split())}\n" for b, c, v, text in rows)
                tables[version] = "".join(lines).encode()
            return tables
    except sqlite3.Error as error:
        raise CatalogError(
            f"{path}: cannot be read ({error}), expected a sound database; delete it"
        ) from error

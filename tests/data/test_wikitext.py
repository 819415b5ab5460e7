"""Wikitext: each construct by hand, and whole paragraphs that come out as a reader sees them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.wikitext import plain


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("'''Bold''', ''italic'' and '''''both'''''.", "Bold, italic and both."),
        ("It's Jane's.", "It's Jane's."),
        ("A [[link]], a [[target|label]], [[plural]]s.", "A link, a label, plurals."),
        ("A [[:Category:Bees|category]]; [[:Bee]].", "A category; Bee."),
        ("Bees.\n[[Category:Insects]]\n[[fr:Abeille]]\n[[zh-min-nan:Bee]]", "Bees."),
        ("[[File:Bee.jpg|thumb|A [[bee]] in a [[flower|bloom]].]]Bees fly.", "Bees fly."),
        ("[[image:Bee.jpg|thumb|Of [http://bees.org bees].]]Bees fly.", "Bees fly."),
        ("A [[link|with [one] bracket]].", "A with [one] bracket."),
        (
            "An [[open|unclosed link\n\nand more]].",
            "An unclosed link\nand more.",
        ),
        ("See [http://bees.org the site] or [//bees.org/x] now.", "See the site or now."),
        ("An editor [sic] wrote.", "An editor [sic] wrote."),
        ("Bees{{citation needed|date=May 2016}} fly.", "Bees fly."),
        ("{{Infobox|a={{small|b}}|c={{d|{{e}}}}\n|f=g}}Bees {fly}.", "Bees {fly}."),
        ("About {{convert|5|km|mi}} and {{Convert|1|ft|abbr=on}}.", "About 5 km and 1 ft."),
        ("Greek {{lang|el|μέλι}}, {{nowrap|two words}} {{lang|el}}.", "Greek μέλι, two words."),
        ("{{Quote|To bee, or not.|Hamlet}}", "To bee, or not."),
        (
            "Bees<ref>A [[book]], {{cite|p=1}}.</ref> fly<ref name=a/> far<ref name='b c'>x</ref>.",
            "Bees fly far.",
        ),
        ("Bees<ref name='a/b' /> fly.<REF>Not\nthis.</REF> Far.", "Bees fly. Far."),
        ("One<!-- not\nthis --> two.", "One two."),
        ("Area <math>r^2 \\pi</math> is.", "Area is."),
        ("H<sub>2</sub>O&nbsp;is<br />wet &mdash; 5 < 6 &lt;b&gt;", "H2O is\nwet — 5 < 6 <b>"),
        ("Before.\n{| class=a\n! x\n|-\n| 1 || 2\n|}\nAfter.", "Before.\nAfter."),
        ("Before.\n:{|\n|{|\n|-\n|\n {|\n|1\n |}\n|}\nAfter.", "Before.\nAfter."),
        ("* One\n** two\n# three\n: four\n; five", "One\ntwo\nthree\nfour\nfive"),
        ("__NOTOC__\nBees.", "Bees."),
        (
            "Rome ({{IPAc-en|r}}; {{lang-it|Roma}}) is, {{x}}, it.",
            "Rome is,, it.",
        ),
        ("Adobe ({{IPA|x}}; {{IPA|y}};, from Spanish; ) is.", "Adobe (from Spanish) is."),
        ("It fell {{x}}. Then {{y}}, rose.", "It fell. Then, rose."),
        ("", ""),
        ("{{stub}}\n", ""),
    ],
)
def test_constructs(wikitext, expected):
    assert plain(wikitext) == expected


def test_sections_of_sources_and_empty_ones_go():
    article = """Lead.
== History ==
=== Early ===
{{main|x}}
=== Late ===
Late text.
== See also ==
* [[Ant]]
=== Deeper ===
* [[Wasp]]
== Honey ==
Sweet.
=== Notes ===
A note.
== References ==
{{reflist}}
"""
    assert plain(article) == "Lead.\nHistory\nLate\nLate text.\nHoney\nSweet."


@given(st.text("ab '[]{}|<>=*:/\n", max_size=60))
@settings(max_examples=50)
def test_any_markup_gives_neat_lines(wikitext):
    text = plain(wikitext)
    assert all(line == " ".join(line.split()) and line for line in text.splitlines())
    assert "[[" not in text
    assert "]]" not in text
    assert "''" not in text


@given(
    st.lists(st.sampled_from(["Bees fly.", "It is (so).", "A, b; c: d!", "5 < 6"]), min_size=1, max_size=5)
)
@settings(max_examples=25)
def test_plain_sentences_stay(sentences):
    assert plain("\n\n".join(sentences)) == "\n".join(sentences)

"""Prose out of wikitext, the markup of Wikipedia's articles."""

import re
from collections.abc import Callable

from research.data import markup

# Sections that are lists of names, links and sources.
_APPARATUS = frozenset(
    (
        *("bibliography", "citations", "external links", "footnotes", "further reading", "gallery", "notes"),
        *("notes and references", "references", "see also", "sources", "works cited"),
    )
)
# Templates that stand in a sentence, and which of their unnamed arguments the reader sees; all others are left out.
_SEEN: dict[str, Callable[[list[str]], str]] = {
    "blockquote": lambda given: given[0],
    "chem": "".join,
    "convert": lambda given: f"{given[0]} {given[1]}",
    "cquote": lambda given: given[0],
    "frac": "/".join,
    "lang": lambda given: given[1],
    "nihongo": lambda given: given[0],
    "nowrap": lambda given: given[0],
    "quote": lambda given: given[0],
    "small": lambda given: given[0],
    "smaller": lambda given: given[0],
    "transl": lambda given: given[-1],
    "val": lambda given: given[0],
    "vanchor": lambda given: given[0],
}
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# A reference that closes itself, as <ref name="a/b" />, opens none.
_EMPTY = re.compile(r"<(?:ref|references)\b[^<>]*/>", re.IGNORECASE)
_UNREAD = re.compile(
    r"<(ref|references|gallery|timeline|imagemap|math|source|syntaxhighlight|score)\b[^<>]*>.*?</\1\s*>",
    re.DOTALL | re.IGNORECASE,
)
_TEMPLATE = re.compile(r"\{\{((?:[^{}]|\{(?!\{)|\}(?!\}))*)\}\}")
_TABLE = re.compile(r"^[ :]*\{\|(?:(?!^[ :]*\{\|).)*?^[ :]*\|\}", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[\[((?:[^\[\]]|\[(?!\[)|\](?!\]))*)\]\]")
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:|mailto:)?//[^\s\[\]]*([^\[\]]*)\]")
_HIDDEN_LINK = re.compile(r"(?:file|image|category|media|[a-z]{2,3}(?:-[a-z]+)*):", re.IGNORECASE)
_HEADING = re.compile(r"^(={2,6})\s*(.*?)\s*\1$")


def plain(wikitext: str) -> str:
    """The sentences of an article: a line per paragraph, list item or heading.

    References, tables, pictures, formulae and nearly all templates are left out; so are sections without sentences, and
    those of sources and links.
    """
    text = _UNREAD.sub("", _EMPTY.sub("", _COMMENT.sub("", wikitext)))
    text = _until_settled(_TEMPLATE, _template, text)
    text = _until_settled(_TABLE, lambda found: "", text)
    text = _EXTERNAL.sub(lambda found: found[1], text)
    # A caption holds links: from the innermost outwards.
    text = _until_settled(_LINK, _link, text)
    text = re.sub(r"'{2,}|__[A-Z]+__", "", text)
    text = re.sub(r"\[\[(?:[^\[\]\n]*\|)?|\]\]", "", text)  # never closed, or never opened
    text = re.sub(r"^[*#:;]+", "", text, flags=re.MULTILINE)
    lines = _without_apparatus(markup.plain(text).split("\n"))
    return "\n".join(line for line in map(_without_gaps, lines) if line)


def _until_settled(pattern: re.Pattern[str], put: Callable[[re.Match[str]], str], text: str) -> str:
    """Replace innermost matches until there are none."""
    count = 1
    while count:
        text, count = pattern.subn(put, text)
    return text


def _template(found: re.Match[str]) -> str:
    name, *arguments = found[1].split("|")
    seen = _SEEN.get(name.strip().lower())
    given = [argument.strip() for argument in arguments if not re.match(r"\s*[a-z_-]+\s*=", argument)]
    try:
        return seen(given) if seen else ""
    except IndexError:  # not enough arguments
        return ""


def _link(found: re.Match[str]) -> str:
    target, _, label = found[1].partition("|")
    if _HIDDEN_LINK.match(target.lstrip()):
        return ""
    # What is left of a link within a caption has bars too; of those the last part is seen.
    return label.rpartition("|")[2] if label else target.strip().removeprefix(":")


def _without_apparatus(lines: list[str]) -> list[str]:
    """Headings lose their marks; apparatus goes, and headings that nothing but headings follow."""
    kept: list[str] = []
    headings: list[tuple[int, str]] = []  # of the section that the line is in, and not yet written
    skipped = 7  # the level of the heading whose section is left out
    for line in lines:
        if heading := _HEADING.match(line):
            level = len(heading[1])
            if level <= skipped:
                skipped = level if heading[2].lower() in _APPARATUS else 7
            headings = [(above, title) for above, title in headings if above < level]
            headings.append((level, heading[2]))
        elif skipped == 7:
            kept += [title for _, title in headings] + [line]
            headings = []
    return kept


def _without_gaps(line: str) -> str:
    """Close what templates and references left open: `Rome (, ; ) .` becomes `Rome.`"""
    line = re.sub(r"\((?:\s*[,;:])+\s*", "(", line)
    line = re.sub(r"(?:\s*[,;:])*\s*\)", ")", line)
    line = re.sub(r"\s*\(\)", "", line)
    return re.sub(r" +([,.;])(?= |$)", r"\1", line).strip(" ,;")

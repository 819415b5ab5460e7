"""Text out of HTML, as mails and the Factbook hold it."""

import html
import re

_UNSEEN = re.compile(r"<!--.*?-->|<(script|style|title)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_BREAKS = re.compile(r"</?(?:br|p|div|tr|li|h[1-6])\b[^<>]*>", re.IGNORECASE)
_TAGS = re.compile(r"<[/!?]?[a-z][^<>]*>", re.IGNORECASE)


def plain(markup: str) -> str:
    """The text that HTML shows: a line per paragraph, single blanks between words, entities as characters.

    It works by patterns, not by a parser: broken markup is common and what parsers make of it differs between Pythons.
    """
    text = _BREAKS.sub("\n", _UNSEEN.sub("", markup))
    # Only what looks like a tag: the Factbook says "Hindu <1%, Buddhist <1%".
    return lines(html.unescape(_TAGS.sub("", text)))


def lines(text: str) -> str:
    """The lines of a text that are not blank, with single blanks between words."""
    neat = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in neat if line)

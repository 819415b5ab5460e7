"""What models write as one HTML page that needs nothing else, the phrases that they repeat in colours."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from html import escape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt, what is written after it, and the phrase at the end each time that it comes; none: no loop."""

    prompt: str
    text: str
    phrases: tuple[str, ...] = ()


_STYLE = """
body { font: 15px/1.5 Georgia, serif; max-width: 62em; margin: 2em auto; padding: 0 1em; }
body { color: #111; background: #fff; }
h1, h2, th { font-family: system-ui, sans-serif; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4em .6em; border-bottom: 1px solid #ccc; }
th { white-space: nowrap; font-weight: 500; }
td { white-space: pre-wrap; }
.prompt { color: #595959; }
mark { color: #111; padding: 0 .1em; border-bottom: 2px solid #7a4b00; background: #ffe2a8; }
mark:nth-of-type(even) { background: #bcdcff; border-color: #004a8f; }
"""


def page(samples: Mapping[str, Mapping[str, Sequence[Sample]]], *, title: str, note: str) -> str:
    """A table for each model, by its name, with a row for each sample at each of its labels."""
    body = "".join(part for name, by_label in samples.items() for part in _model(name, by_label))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<main>\n<h1>{escape(title)}</h1>\n<p>{escape(note)}</p>\n{body}</main>\n</body>\n</html>\n"
    )


def _model(name: str, by_label: Mapping[str, Sequence[Sample]]) -> Iterator[str]:
    yield f"<h2>{escape(name)}</h2>\n<table>\n"
    yield '<thead><tr><th scope="col">temperature</th><th scope="col">text</th></tr></thead>\n<tbody>\n'
    for label, samples in by_label.items():
        for sample in samples:
            marks = "".join(f"<mark>{_shown(phrase)}</mark>" for phrase in sample.phrases)
            text = f'<span class="prompt">{_shown(sample.prompt)}</span>{_shown(sample.text)}{marks}'
            yield f'<tr><th scope="row">{escape(label)}</th><td>{text}</td></tr>\n'
    yield "</tbody>\n</table>\n"


# Control characters but tab and newline, as the pictures that Unicode has of them.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}


def _shown(text: str) -> str:
    return escape(text.translate(_PICTURES))

"""R's lazy-load format: what a writer of our own, after "R Internals", puts in comes out."""

import gzip
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.lazyload import variables


def packed(content):
    """The content as gzip, without the time: parameters of tests are the same in every worker."""
    return gzip.compress(content, mtime=0)


def numbers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}i", *values)


def chars(text: str | None, encoding="utf-8") -> bytes:
    flags = 9 | (1 << 14 if encoding == "latin-1" else 1 << 15)
    if text is None:
        return numbers(flags, -1)
    return numbers(flags, len(text.encode(encoding))) + text.encode(encoding)


def item(value, attributes: bytes = b"") -> bytes:
    """A list of strings, integers or floats as a vector, another list as it is, a dict as a list with names."""
    flag = (1 << 9) if attributes else 0
    if isinstance(value, dict):
        names = numbers(2 | 1 << 10, 1) + chars("names") + item(list(value)) + numbers(254)
        return numbers(19 | 1 << 9, len(value)) + b"".join(map(item, value.values())) + names
    if all(isinstance(element, str | None) for element in value):
        return numbers(16 | flag, len(value)) + b"".join(map(chars, value)) + attributes
    if all(isinstance(element, int) for element in value):
        return numbers(13 | flag, len(value), *value) + attributes
    if all(isinstance(element, float) for element in value):
        return numbers(14 | flag, len(value)) + struct.pack(f">{len(value)}d", *value) + attributes
    return numbers(19 | flag, len(value)) + b"".join(map(item, value)) + attributes


def serialized(content: bytes, version: int = 3) -> bytes:
    encoding = numbers(5) + b"UTF-8" if version == 3 else b""
    return b"X\n" + numbers(version, 0x40201, 0x30500) + encoding + content


def lazy_load(values: dict[str, bytes], version: int = 3) -> tuple[bytes, bytes]:
    """The index and the database of variables that are serialized already."""
    database, places = b"", {}
    for name, content in values.items():
        whole = serialized(content, version)
        piece = numbers(len(whole)) + zlib.compress(whole)
        places[name] = [len(database), len(piece)]
        database += piece
    return packed(serialized(item({"variables": places, "compressed": [1]}), version)), database


VALUES = st.recursive(
    st.lists(st.text() | st.none(), min_size=1)
    | st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1)
    | st.lists(st.floats(allow_nan=False), min_size=1),
    lambda inner: st.dictionaries(st.text(), inner, max_size=3) | st.lists(inner, min_size=1, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1), VALUES, min_size=1, max_size=4), st.sampled_from([2, 3]))
@settings(max_examples=50)
def test_what_was_written_is_read(values, version):
    assert variables(*lazy_load({name: item(value) for name, value in values.items()}, version)) == values


def test_a_worked_example():
    # A vector of two strings, the second of them in Latin-1, by hand.
    content = numbers(16, 2) + numbers(9 | 1 << 18, 3) + b"abc" + numbers(9 | 1 << 14, 2) + b"\xe9t"
    assert variables(*lazy_load({"x": content})) == {"x": ["abc", "ét"]}


def test_attributes_and_references_to_symbols_are_passed_over():
    # Two attributes; the second's value is the symbol that named the first, by reference.
    tagged = 2 | 1 << 10
    attributes = numbers(tagged, 1) + chars("class") + item(["factor"])
    attributes += numbers(tagged, 1) + chars("levels") + numbers(255 | 1 << 8) + numbers(254)
    content = item(["a", None], attributes)
    assert variables(*lazy_load({"x": content, "y": item([3, 1])})) == {"x": ["a", None], "y": [3, 1]}


@pytest.mark.parametrize(
    ("index", "database", "expected"),
    [
        (b"", b"", r"starts with b''"),
        (b"odd", b"", "no sound lazy-load database"),
        (packed(b"A\n3"), b"", r"starts with b'A\\n'"),
        (packed(serialized(b"", 4)), b"", "version 4"),
        (packed(serialized(item({"other": [1]}))), b"", "KeyError: 'variables'"),
        (packed(serialized(item(["no", "names"]))), b"", "TypeError"),
        (packed(serialized(b"\0\0")), b"", "ends at byte 25, where 4 more were expected at 23"),
        (lazy_load({"x": item(["a"])})[0], b"", "no sound lazy-load database"),
        (lazy_load({"x": item(["a"])})[0], b"\0" * 99, "no sound lazy-load database"),
        (*lazy_load({"x": numbers(4)}), "an item of type 4"),
        (*lazy_load({"x": numbers(16, 1 << 30)}), "ends at byte"),
        (*lazy_load({"x": numbers(16, 1, 9, -7)}), "ends at byte"),
    ],
)
def test_damage_is_one_line(index, database, expected):
    with pytest.raises(ValueError, match=expected) as raised:
        variables(index, database)
    assert "\n" not in str(raised.value)


def test_a_wrong_length_is_seen():
    index, database = lazy_load({"x": item(["a"])})
    with pytest.raises(ValueError, match=r"x has \d+ bytes, expected 7"):
        variables(index, numbers(7) + database[4:])

"""R's lazy-load format, in which its packages keep data: an index (`.rdx`) of the variables in a database (`.rdb`).

Both hold R's serialization ("R Internals", section 1.8, "Serialization Formats"), big-endian and compressed. Only what
data of vectors and lists need is read here: no functions, environments or complex numbers.
"""

import gzip
import struct
import zlib
from typing import Any

_NIL, _REFERENCE, _SYMBOL, _PAIRLIST, _CHARS, _STRINGS, _LIST = 254, 255, 1, 2, 9, 16, 19
_NUMBERS = {10: "i", 13: "i", 14: "d"}  # logical, integer, real
_ATTRIBUTES, _TAG, _LATIN1 = 1 << 9, 1 << 10, 1 << 14


def variables(index: bytes, database: bytes) -> dict[str, Any]:
    """The variables by name.

    A vector is a list (of str, int or float; NA among strings is None), a list with names is a dict.

    Raises:
      ValueError: the bytes are damaged, or hold what is not read here.
    """
    try:
        places = _unserialized(gzip.decompress(index))["variables"]
        found = {}
        for name, (start, length) in places.items():
            # Four bytes say how long the rest is once it is inflated.
            size = int.from_bytes(database[start : start + 4], "big")
            serialized = zlib.decompress(database[start + 4 : start + length])
            if len(serialized) != size:
                raise ValueError(f"{name} has {len(serialized)} bytes, expected {size}")
            found[name] = _unserialized(serialized)
        return found
    except (OSError, EOFError, zlib.error, struct.error, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"no sound lazy-load database of R ({type(error).__name__}: {error})") from error


def _unserialized(content: bytes) -> Any:
    if content[:2] != b"X\n":
        raise ValueError(f"starts with {content[:2]!r}, expected R's binary serialization, b'X\\n'")
    reader = _Reader(content, 2)
    version, _, _ = reader.numbers("i", 3)
    if version == 3:
        reader.take(reader.number())  # the encoding of strings that are of the writer's locale
    elif version != 2:
        raise ValueError(f"is version {version} of R's serialization, expected 2 or 3")
    return reader.item()


class _Reader:
    """What is left of a serialization, and the symbols that it named so far."""

    def __init__(self, content: bytes, at: int):
        self._content, self._at = content, at
        self._symbols: list[str] = []

    def take(self, size: int) -> bytes:
        piece = self._content[self._at : self._at + size]
        if size < 0 or len(piece) < size:
            raise ValueError(
                f"ends at byte {len(self._content)}, where {size} more were expected at {self._at}"
            )
        self._at += size
        return piece

    def numbers(self, code: str, count: int) -> list:
        layout = f">{count}{code}"
        return list(struct.unpack(layout, self.take(struct.calcsize(layout))))

    def number(self) -> int:
        return self.numbers("i", 1)[0]

    def item(self) -> Any:
        flags = self.number()
        kind = flags & 0xFF
        if kind == _NIL:
            return None
        if kind == _REFERENCE:
            return self._symbols[(flags >> 8) - 1]
        if kind == _SYMBOL:
            self._symbols.append(self.item())
            return self._symbols[-1]
        if kind == _PAIRLIST:
            return self._pairs(flags)
        if kind == _CHARS:
            size = self.number()
            return None if size == -1 else self.take(size).decode("latin-1" if flags & _LATIN1 else "utf-8")
        if kind in _NUMBERS:
            value = self.numbers(_NUMBERS[kind], self.number())
        elif kind in (_STRINGS, _LIST):
            value = [self.item() for _ in range(self.number())]
        else:
            raise ValueError(
                f"holds an item of type {kind} at byte {self._at - 4}, expected vectors and lists"
            )
        attributes = self.item() if flags & _ATTRIBUTES else {}
        names = attributes.get("names") if kind == _LIST else None
        return value if names is None else dict(zip(names, value, strict=True))

    def _pairs(self, flags: int) -> dict[str, Any]:
        """A linked list of tagged values, which is how attributes are stored; `flags` are of its first node."""
        pairs = {}
        while flags & 0xFF == _PAIRLIST:
            if flags & _ATTRIBUTES:
                self.item()
            tag = self.item() if flags & _TAG else ""
            pairs[tag] = self.item()
            flags = self.number()
        return pairs
